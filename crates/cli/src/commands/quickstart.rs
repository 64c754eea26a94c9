//! `saferl quickstart`: the whole job on a small real model, measured before and after.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use eval::measure::{Question, Reply, Summary, measure};
use judge::Judge;
use model::generate::Sampling;
use serde::Serialize;
use train::prompts::PromptRow;
use train::recipe::{Kind, Prompts, Recipe};
use train::run::Trainer;

use crate::arguments::Quickstart;
use crate::commands::train::{tell, train_with_bar};
use crate::error::{Error, Result};
use crate::local::{open_device, resolve};
use crate::output::{print_json, print_line};
use crate::progress::{bar, say};
use crate::table::two_columns;

/// The recipe, part of the program so that the command works from any folder.
const RECIPE: &str = include_str!("../../../../recipes/quickstart.toml");

/// What `--json` prints, and `summary.json` holds.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Seconds from start to end, fetching apart.
    seconds: f64,
    /// The run's folder.
    run: PathBuf,
    /// The model as it came.
    before: Summary,
    /// The model as trained.
    after: Summary,
}

/// Pulls, measures, trains, measures again, and prints both.
pub(crate) fn run(arguments: &Quickstart) -> Result<()> {
    let mut recipe = match &arguments.recipe {
        Some(path) => Recipe::load(path, &arguments.overrides)?,
        None => Recipe::parse(RECIPE, "recipes/quickstart.toml", &arguments.overrides)?,
    };
    let named = |text: &String| text.split_once('=').is_some_and(|(key, _)| key.trim() == "run");
    if !arguments.overrides.iter().any(named) {
        recipe.run = free_name(&recipe.runs_dir, &recipe.run);
    }
    let device = open_device(&arguments.on)?;
    let source = resolve(&recipe.model)?;
    let start = Instant::now();
    let mut judge = train::judges::open(&recipe.judge, &device)?;
    let mut trainer = Trainer::new(&recipe, &source, &device, false, &mut tell)?;
    let questions = questions(&recipe)?;
    let (before, replies_before) = weigh(&mut trainer, &mut judge, &recipe, &questions, "before")?;
    train_with_bar(&mut trainer, &recipe, &mut judge)?;
    let (after, replies_after) = weigh(&mut trainer, &mut judge, &recipe, &questions, "after")?;

    let folder = recipe.folder();
    append_replies(&folder, &replies_before, &replies_after)?;
    let outcome = Outcome {
        seconds: start.elapsed().as_secs_f64(),
        run: folder.clone(),
        before,
        after,
    };
    write_summary(&folder, &outcome)?;
    let page = train::report::write(&folder)?;
    if arguments.json {
        return print_json(&outcome);
    }
    print_line(&two_columns(&outcome.before, &outcome.after))?;
    print_line(&format!(
        "{:.0} min {:.0} s. Now open\n  {}  curves, and replies before and after side by side\n  {}  every reply\n\
         or talk to it:\n  saferl chat {}",
        (outcome.seconds / 60.0).floor(),
        outcome.seconds % 60.0,
        page.display(),
        folder.join("samples.jsonl").display(),
        folder
            .join("checkpoints")
            .join(format!("step-{}", trainer.step()))
            .display(),
    ))
}

/// `name`, or the first of `name-2`, `name-3`, ... that is not taken yet.
fn free_name(runs: &Path, name: &str) -> String {
    let taken = |name: &str| runs.join(name).exists();
    if !taken(name) {
        return name.to_string();
    }
    let numbered = (2..).map(|number: usize| format!("{name}-{number}"));
    numbered.into_iter().find(|name| !taken(name)).unwrap_or_default()
}

/// The prompts that training does not see: the source's test split, and the checked ability set. Of the harmless kinds
/// every second prompt, since the ability set is harmless too and measuring is a third of the command's time.
fn questions(recipe: &Recipe) -> Result<Vec<Question>> {
    let held_out = train::prompts::load(&Prompts {
        split: "test".into(),
        ..recipe.prompts.clone()
    })?;
    let question = |row: PromptRow| Question {
        id: row.id,
        kind: format!("{:?}", row.kind).to_lowercase(),
        harmful: matches!(row.kind, Kind::Harmful | Kind::Adversarial),
        prompt: row.prompt,
        check: None,
    };
    let (harmful, harmless): (Vec<_>, Vec<_>) = held_out
        .into_iter()
        .map(question)
        .partition(|question| question.harmful);
    Ok(harmful
        .into_iter()
        .chain(harmless.into_iter().step_by(2))
        .chain(Question::of_ability())
        .collect())
}

/// Measures the model as it is now, with the judge that trains it.
fn weigh(
    trainer: &mut Trainer,
    judge: &mut dyn Judge,
    recipe: &Recipe,
    questions: &[Question],
    when: &str,
) -> Result<(Summary, Vec<Reply>)> {
    let bar = bar(&format!("replies {when} training"), questions.len());
    say(&format!(
        "answering {} held-out prompts {when} training",
        questions.len()
    ));
    let tokenizer = Arc::clone(trainer.tokenizer());
    let measured = measure(
        trainer.engine(),
        judge,
        &tokenizer,
        questions,
        recipe.modes[0],
        &sampling(recipe),
        &mut |done, _| {
            bar.set_position(done as u64);
        },
    );
    bar.finish_and_clear();
    Ok(measured?)
}

/// As `saferl chat` draws tokens, since that is how the model will be used; the same draw before and after.
fn sampling(recipe: &Recipe) -> Sampling {
    Sampling {
        max_new_tokens: recipe.rollout.max_new_tokens,
        temperature: 0.7,
        top_p: 0.8,
        top_k: 20,
        seed: recipe.seed,
        ..Sampling::default()
    }
}

/// A held-out reply in `samples.jsonl`.
#[derive(Serialize)]
struct Row<'a> {
    phase: &'a str,
    #[serde(flatten)]
    reply: &'a Reply,
}

fn append_replies(folder: &Path, before: &[Reply], after: &[Reply]) -> Result<()> {
    let path = folder.join("samples.jsonl");
    let failed = |source| Error::file(&path, source);
    let file = File::options()
        .append(true)
        .create(true)
        .open(&path)
        .map_err(failed)?;
    let mut out = BufWriter::new(file);
    let phases = [("before", before), ("after", after)];
    for (phase, reply) in phases
        .iter()
        .flat_map(|(phase, replies)| replies.iter().map(move |reply| (phase, reply)))
    {
        serde_json::to_writer(&mut out, &Row { phase, reply }).map_err(|error| failed(error.into()))?;
        out.write_all(b"\n").map_err(failed)?;
    }
    out.flush().map_err(failed)
}

fn write_summary(folder: &Path, outcome: &Outcome) -> Result<()> {
    let path = folder.join("summary.json");
    let text = serde_json::to_string_pretty(outcome).map_err(|error| Error::file(&path, error.into()))?;
    std::fs::write(&path, text + "\n").map_err(|source| Error::file(&path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_recipe_resolves() {
        let recipe = Recipe::parse(RECIPE, "recipes/quickstart.toml", &["steps=2".into()]).unwrap();
        assert_eq!((recipe.model.as_str(), recipe.steps), ("smollm2-135m", 2));
        assert_eq!(recipe.warnings().len(), 1, "one minibatch, as the recipe says");
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let runs = tempfile::tempdir().unwrap();
        assert_eq!(free_name(runs.path(), "quickstart"), "quickstart");
        for taken in ["quickstart", "quickstart-2"] {
            std::fs::create_dir(runs.path().join(taken)).unwrap();
        }
        assert_eq!(free_name(runs.path(), "quickstart"), "quickstart-3");
    }
}
