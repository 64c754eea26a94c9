//! `saferl eval`: the table of a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use eval::gate::Gate;
use eval::judges::endpoint;
use eval::page::page;
use eval::plan::plan;
use eval::recipe::{JudgeRecipe, ModelRecipe, Recipe};
use eval::respondent::{Respondent, Script};
use eval::results::{Results, summarize};
use eval::run::{Cell, Choice, Event, Host, run as run_recipe};
use eval::table;
use indicatif::ProgressBar;
use judge::{BuiltInGuard, Guard};
use model::engine::Engine;
use model::remote::Remote;
use sha2::{Digest, Sha256};

use crate::arguments::{Eval, HeadsFile, TableFormat};
use crate::commands::dry_run::{config_at_hand, unreachable};
use crate::commands::export::checkpoint;
use crate::commands::heads;
use crate::error::{Error, Result};
use crate::local::{Local, open_device};
use crate::output::{print_json, print_line, print_text};
use crate::progress::{Transfer, bar, say, watched};

/// Most tokens that a local model's engine has room for; longer batches wait.
const POOL: usize = 32_768;
/// Sequences that the room is made for.
const SEQUENCES: usize = 48;
/// How much of each end of a weight file goes into its fingerprint.
const END: u64 = 1 << 20;

/// Runs a recipe, or goes on with it, and prints its table.
pub(crate) fn run(arguments: &Eval) -> Result<()> {
    let mut overrides = arguments.recipe.overrides.clone();
    if let Some(folder) = &arguments.data {
        overrides.push(format!("data={:?}", folder.display().to_string()));
    }
    let mut recipe = Recipe::load(&arguments.recipe.recipe, &overrides)?;
    for task in &mut recipe.tasks {
        task.limit = arguments.limit.or(task.limit);
        task.sample = arguments.sample.or(task.sample);
    }
    recipe.models = expand(recipe.models)?;
    let choice = Choice {
        tasks: arguments.task.clone(),
        models: arguments.model.clone(),
    };
    let gates = arguments.fail_if.iter().map(|text| Gate::parse(text));
    let gates = gates.collect::<eval::Result<Vec<_>>>()?;
    if arguments.dry_run {
        return show_plan(&recipe, &choice);
    }
    let mut host = Program {
        device: open_device(&arguments.on)?,
        bar: None,
        transfer: None,
    };
    let cells = run_recipe(&recipe, &choice, &mut host)?;
    let results = summarize(&recipe, &cells);
    write(&recipe, &cells, &results)?;
    match arguments.format {
        TableFormat::Text => print_text(&table::terminal(&results))?,
        TableFormat::Markdown => print_text(&table::markdown(&results))?,
        TableFormat::Csv => print_text(&table::csv(&results))?,
        TableFormat::Latex => print_text(&table::latex(&results))?,
        TableFormat::Json => print_json(&results)?,
    }
    say(&format!(
        "the page: {}",
        recipe.folder().join("page.html").display()
    ));
    if let Some(failure) = results.failures.first() {
        return Err(Error::Request {
            what: failure.clone(),
            hint: "the logs keep what there is: run the same command again to ask for the rest".into(),
        });
    }
    let mut met = Vec::new();
    for gate in &gates {
        met.extend(gate.check(&results)?);
    }
    if met.is_empty() {
        return Ok(());
    }
    Err(eval::Error::Gate(met.join("; ")).into())
}

/// A model whose source is a run's folder and that asks for all steps becomes one model for each checkpoint.
fn expand(models: Vec<ModelRecipe>) -> Result<Vec<ModelRecipe>> {
    let mut expanded = Vec::new();
    for model in models {
        let Some(run) = model
            .source
            .as_deref()
            .and_then(|source| source.strip_suffix("/*"))
        else {
            expanded.push(model);
            continue;
        };
        let folder = Path::new(run).join("checkpoints");
        let mut steps: Vec<(usize, PathBuf)> = std::fs::read_dir(&folder)
            .map_err(|source| Error::file(&folder, source))?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
                Some((step, path))
            })
            .collect();
        if steps.is_empty() {
            let source = std::io::Error::other("expected checkpoints step-N, found none");
            return Err(Error::file(&folder, source));
        }
        steps.sort();
        expanded.extend(steps.into_iter().map(|(step, path)| ModelRecipe {
            name: format!("{} {step}", model.name),
            source: Some(path.display().to_string()),
            step: Some(step),
            series: model.name.clone(),
            ..model.clone()
        }));
    }
    Ok(expanded)
}

/// The tables and the figures, beside the logs.
fn write(recipe: &Recipe, cells: &[Cell], results: &Results) -> Result<()> {
    let folder = recipe.folder();
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|source| Error::file(&path, source))
    };
    file("table.md", table::markdown(results))?;
    file("table.csv", table::csv(results))?;
    file("table.tex", table::latex(results))?;
    file("page.html", page(recipe, cells, results))?;
    let json = serde_json::to_string_pretty(results).map_err(|error| Error::Output(error.into()))?;
    file("results.json", json + "\n")
}

/// What the evaluation asks of the program around it.
struct Program {
    /// Where local models and the guard compute.
    device: Device,
    bar: Option<ProgressBar>,
    transfer: Option<Transfer>,
}

impl Host for Program {
    type Error = Error;

    fn identity(&mut self, model: &ModelRecipe) -> Result<String> {
        if let Some(url) = &model.url {
            return Ok(format!("{} at {url}", model.model.as_deref().unwrap_or_default()));
        }
        if let Some(script) = &model.scripted {
            return fingerprint(std::slice::from_ref(script));
        }
        let source = checkpoint(model.source.as_deref().unwrap_or_default())?;
        let weights = fingerprint(&Local::weights(&source)?)?;
        Ok(format!("{weights} {:?}", model.dtype))
    }

    fn model(&mut self, model: &ModelRecipe, longest: &str, new_tokens: usize) -> Result<Respondent> {
        if let Some(script) = &model.scripted {
            return Ok(Respondent::Scripted(Script::read(script)?));
        }
        if let Some(url) = &model.url {
            let endpoint = endpoint(&model.name, url, model.api_key_env.as_deref())?;
            return Ok(Respondent::Remote(Remote {
                concurrency: model.parallel,
                ..Remote::new(endpoint, model.model.clone().unwrap_or_default())
            }));
        }
        let source = checkpoint(model.source.as_deref().unwrap_or_default())?;
        let local = Local::load(&source, model.dtype.into(), &self.device)?;
        // A tenth more than the longest text takes, for the template and for texts that take more tokens.
        let prompt = local.tokenizer.encode_plain(longest)?.len() * 11 / 10 + 128;
        let context = local.decoder.config.max_positions;
        let one = (prompt + new_tokens).min(context) + 64;
        let pool = one.max((one * SEQUENCES).min(POOL));
        let engine = Engine::new(local.decoder, Arc::clone(&local.tokenizer), pool)?;
        Ok(Respondent::Local {
            engine: Box::new(engine),
            tokenizer: local.tokenizer,
        })
    }

    fn guard(&mut self, judge: &JudgeRecipe) -> Result<Box<dyn Guard>> {
        let file = HeadsFile {
            heads: judge.heads.clone(),
        };
        let (heads, base) = heads::open(&file, &self.device)?;
        Ok(Box::new(BuiltInGuard::new(base.features, heads)?))
    }

    fn hear(&mut self, event: Event<'_>) {
        match event {
            Event::Fetch(progress) => {
                let transfer = self.transfer.get_or_insert_with(Transfer::default);
                transfer.update(progress.clone());
            }
            Event::Begin { what, total } => {
                self.transfer = None;
                if !watched() {
                    say(&format!("{what}: {total}"));
                }
                self.bar = Some(bar(what, total));
            }
            Event::Step => {
                if let Some(bar) = &self.bar {
                    bar.inc(1);
                }
            }
            Event::End => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
            Event::Failed(what) => say(&format!("failed: {what}")),
        }
    }
}

/// A hash over names, lengths and both ends of files: enough to tell checkpoints apart, and quick for large ones.
fn fingerprint(files: &[PathBuf]) -> Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut hash = Sha256::new();
    for path in files {
        let failed = |source| Error::file(path, source);
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let name = path.file_name().unwrap_or_default();
        hash.update(name.as_encoded_bytes());
        hash.update(length.to_le_bytes());
        for start in [0, length.saturating_sub(END)] {
            let mut part = Vec::new();
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
            (&mut file).take(END).read_to_end(&mut part).map_err(failed)?;
            hash.update(&part);
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Prints what is missing, and what the recipe would take. That something is missing is the answer, not an error.
fn show_plan(recipe: &Recipe, choice: &Choice) -> Result<()> {
    let mut plan = plan(recipe, choice)?;
    for model in choice.models(recipe) {
        let found = match (&model.source, &model.url, &model.scripted) {
            (Some(source), ..) => checkpoint(source)
                .map_err(|error| error.to_string())
                .and_then(|source| at_hand(&source))
                .err(),
            (_, Some(url), _) => unreachable(url),
            (.., Some(script)) => (!script.is_file()).then(|| format!("{}: no such file", script.display())),
            _ => None,
        };
        plan.missing
            .extend(found.map(|what| format!("model {}: {what}", model.name)));
    }
    for judge in choice.judges(recipe) {
        let found = match (&judge.source, &judge.url) {
            (Some(source), _) => at_hand(source).err(),
            (_, Some(url)) => unreachable(url),
            _ => None,
        };
        plan.missing
            .extend(found.map(|what| format!("judge {}: {what}", judge.name)));
    }
    print_line("# Data\n")?;
    if plan.data.is_empty() {
        print_line("- part of the program")?;
    }
    for data in &plan.data {
        print_line(&format!("- {data}"))?;
    }
    print_line("\n# Missing\n")?;
    if plan.missing.is_empty() {
        print_line("- nothing")?;
    }
    for missing in &plan.missing {
        print_line(&format!("- {missing}"))?;
    }
    print_line("\n# What it takes\n\nPrompt tokens are estimated at four characters each.\n")?;
    let (mut requests, mut typical, mut most, mut known) = (0, 0.0, 0.0, true);
    for load in &plan.loads {
        let (cost, at_most) = load.cost();
        requests += load.requests;
        most += at_most;
        typical += cost.unwrap_or(at_most);
        known &= cost.is_some();
        let usual = load
            .tokens_typical
            .map_or(String::new(), |tokens| format!("about {tokens:.0}, "));
        print_line(&format!(
            "- {}: {} requests, {:.0} tokens in, {usual}at most {:.0} out{}",
            load.who,
            load.requests,
            load.tokens_in,
            load.tokens_most,
            if at_most > 0.0 {
                format!(", cost at most {at_most:.2}")
            } else {
                String::new()
            }
        ))?;
    }
    let usual = if known {
        format!("about {typical:.2}, ")
    } else {
        String::new()
    };
    print_line(&format!(
        "\n{requests} requests; {usual}at most {most:.2} at the recipe's prices"
    ))
}

/// Why a model on this machine cannot be loaded; adapters are there when their own file is.
fn at_hand(source: &str) -> std::result::Result<(), String> {
    if Path::new(source).join("adapter_config.json").is_file() {
        return Ok(());
    }
    config_at_hand(source).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(source: &str) -> Vec<ModelRecipe> {
        let text = format!("[[model]]\nname = \"m\"\nsource = {source:?}\n");
        Recipe::parse(&text, "test", &[]).unwrap().models
    }

    #[test]
    fn a_runs_checkpoints_are_one_curve_in_the_order_of_their_steps() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        for name in ["step-10", "step-2", "step-x", "other"] {
            std::fs::create_dir_all(run.join("checkpoints").join(name)).unwrap();
        }
        let all = expand(models(&format!("{}/*", run.display()))).unwrap();
        let points: Vec<_> = all
            .iter()
            .map(|model| (model.name.as_str(), model.step, model.series.as_str()))
            .collect();
        assert_eq!(points, [("m 2", Some(2), "m"), ("m 10", Some(10), "m")]);
        assert_eq!(
            all[1].source,
            Some(run.join("checkpoints/step-10").display().to_string())
        );
        assert_eq!(expand(models("smollm2-135m")).unwrap(), models("smollm2-135m"));
        let empty = expand(models(&format!("{}/*", folder.path().display()))).unwrap_err();
        assert!(empty.to_string().contains("checkpoints"), "{empty}");
    }
}
