//! What an evaluation would take: what is missing, how many requests and tokens, and what that costs.

use std::collections::BTreeMap;

use crate::log::Part;
use crate::recipe::{JudgeKind, Recipe};
use crate::run::{Choice, mode_name};
use crate::sandbox::Sandbox;
use crate::tasks::{Item, Target, load, paths, select};

/// Characters of a token, where no tokenizer is asked: about what English has.
const CHARACTERS: f64 = 4.0;

/// The plan of a recipe.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// What the evaluation would stop at.
    pub missing: Vec<String>,
    /// What each model and judge is asked.
    pub loads: Vec<Load>,
}

/// What one model or judge is asked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Load {
    /// Who, and in which task.
    pub who: String,
    /// Requests.
    pub requests: usize,
    /// Prompt tokens, estimated from characters.
    pub tokens_in: f64,
    /// New tokens where replies are of the length that the recipe calls typical; `None` where it names none.
    pub tokens_typical: Option<f64>,
    /// Most new tokens.
    pub tokens_most: f64,
    /// Price of a million prompt tokens.
    pub price_in: f64,
    /// Price of a million new tokens.
    pub price_out: f64,
}

impl Load {
    /// What it costs, at typical and at most.
    pub fn cost(&self) -> (Option<f64>, f64) {
        let of = |out: f64| (self.tokens_in * self.price_in + out * self.price_out) / 1e6;
        (self.tokens_typical.map(of), of(self.tokens_most))
    }
}

/// Plans a recipe. Files are read, and the sandbox is tried; models, judges and the network are not touched, so the
/// program adds what it knows of those to `missing`.
///
/// # Errors
/// A choice of tasks or models that the recipe does not have.
pub fn plan(recipe: &Recipe, choice: &Choice) -> crate::Result<Plan> {
    choice.check(recipe)?;
    let mut plan = Plan::default();
    let takes = |names: &[String], name: &String| names.is_empty() || names.contains(name);
    for task in recipe
        .tasks
        .iter()
        .filter(|task| takes(&choice.tasks, &task.name))
    {
        let absent: Vec<String> = paths(recipe, task)
            .into_iter()
            .filter(|path| !path.is_file())
            .map(|path| path.display().to_string())
            .collect();
        if !absent.is_empty() {
            plan.missing.push(format!(
                "task {}: {} ({})",
                task.name,
                absent.join(", "),
                task.kind.origin()
            ));
            continue;
        }
        let items = match load(recipe, task) {
            Ok(loaded) => select(loaded.items, task, recipe.seed),
            Err(error) => {
                plan.missing.push(error.to_string());
                continue;
            }
        };
        let characters: usize = items.iter().map(length).sum();
        for model in recipe
            .models
            .iter()
            .filter(|model| takes(&choice.models, &model.name))
        {
            for mode in &model.modes {
                let requests = items.len() * task.samples;
                let most = recipe.sampling.of(*mode, &task.sampling).max_new_tokens as f64;
                let typical = task.typical_tokens.map(|tokens| tokens as f64);
                plan.loads.push(Load {
                    who: format!("{} ({}): {}", model.name, mode_name(*mode), task.name),
                    requests,
                    tokens_in: characters as f64 * task.samples as f64 / CHARACTERS,
                    tokens_typical: typical.map(|tokens| tokens * requests as f64),
                    tokens_most: most * requests as f64,
                    price_in: model.price_in,
                    price_out: model.price_out,
                });
                let reply = typical.unwrap_or(most);
                for judge in task.judges.iter().filter_map(|name| recipe.judge(name)) {
                    if judge.kind == JudgeKind::BuiltIn {
                        continue;
                    }
                    let parts = parts(&items, task.judge_thinking) * task.samples;
                    let baselines: usize = items.iter().map(baseline).sum::<usize>() * task.samples;
                    let each = characters as f64 / CHARACTERS / items.len() as f64 + reply;
                    plan.loads.push(Load {
                        who: format!(
                            "{}: {} ({}): {}",
                            judge.name,
                            model.name,
                            mode_name(*mode),
                            task.name
                        ),
                        requests: parts,
                        tokens_in: each * parts as f64 + baselines as f64 / CHARACTERS,
                        tokens_typical: None,
                        tokens_most: (judge.max_tokens * parts) as f64,
                        price_in: judge.price_in,
                        price_out: judge.price_out,
                    });
                }
            }
        }
        if task.kind.runs_code()
            && let Err(error) = Sandbox::open(&recipe.sandbox)
        {
            plan.missing.push(format!("task {}: {error}", task.name));
        }
    }
    plan.missing.extend(missing_keys(recipe));
    Ok(plan)
}

fn length(item: &Item) -> usize {
    item.messages
        .iter()
        .map(|message| message.content.chars().count())
        .sum()
}

/// Characters of the baseline in both games.
fn baseline(item: &Item) -> usize {
    match &item.target {
        Target::Battle { baseline } => 2 * baseline.chars().count(),
        _ => 0,
    }
}

/// Texts that a judge sees, for one sample of each prompt.
fn parts(items: &[Item], thinking: bool) -> usize {
    let both = [Part::BaselineFirst, Part::BaselineSecond].len();
    let of = |item: &Item| match item.target {
        Target::Battle { .. } => both,
        Target::Harmful | Target::Benign => 1 + usize::from(thinking),
        _ => 0,
    };
    items.iter().map(of).sum()
}

fn missing_keys(recipe: &Recipe) -> Vec<String> {
    let mut keys: BTreeMap<&str, &str> = BTreeMap::new();
    for model in &recipe.models {
        keys.extend(model.api_key_env.as_deref().map(|key| (key, model.name.as_str())));
    }
    for judge in &recipe.judges {
        keys.extend(judge.api_key_env.as_deref().map(|key| (key, judge.name.as_str())));
    }
    keys.into_iter()
        .filter(|(key, _)| std::env::var_os(key).is_none())
        .map(|(key, name)| format!("{name}: the environment variable {key} with its key"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_tokens_and_prices_add_up() {
        let folder = tempfile::tempdir().unwrap();
        let rows = "{\"prompt\": \"12345678\", \"label\": \"harmful\"}\n{\"prompt\": \"1234\", \"label\": \"benign\"}\n";
        std::fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
        let text = format!(
            "data = {:?}\n[[model]]\nname = \"m\"\nurl = \"http://localhost:1\"\nmodes = [\"think\", \"no-think\"]\n\
             price_in = 1.0\nprice_out = 2.0\napi_key_env = \"NO_SUCH_KEY\"\n[[judge]]\nname = \"r\"\nkind = \"rubric\"\n\
             url = \"http://localhost:1\"\nmax_tokens = 100\nprice_out = 10.0\n[[task]]\nname = \"t\"\nkind = \"custom\"\n\
             data = [\"rows.jsonl\"]\njudges = [\"r\"]\nsamples = 5\ntypical_tokens = 50\njudge_thinking = true\n\
             sampling = {{ max_new_tokens = 200 }}\n[[task]]\nname = \"w\"\nkind = \"wildjailbreak\"\njudges = [\"r\"]\n",
            folder.path().display().to_string()
        );
        let recipe = Recipe::parse(&text, "test", &[]).unwrap();
        let plan = plan(&recipe, &Choice::default()).unwrap();
        assert_eq!(plan.missing.len(), 2, "{:?}", plan.missing);
        assert!(
            plan.missing[0].contains("wildjailbreak/eval.tsv") && plan.missing[1].contains("NO_SUCH_KEY")
        );
        assert_eq!(plan.loads.len(), 4);
        let model = &plan.loads[0];
        assert_eq!(
            (
                model.requests,
                model.tokens_in,
                model.tokens_typical,
                model.tokens_most
            ),
            (10, 15.0, Some(500.0), 2000.0)
        );
        assert_eq!(model.cost(), (Some((15.0 + 1000.0) / 1e6), (15.0 + 4000.0) / 1e6));
        let judge = &plan.loads[1];
        assert_eq!((judge.requests, judge.tokens_most), (20, 2000.0));
    }
}
