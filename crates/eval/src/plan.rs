//! What an evaluation would take: what is missing, how many requests and tokens, and what that costs.

use std::collections::BTreeMap;

use model::chat::Mode;

use crate::recipe::{ModelRecipe, Recipe, TaskKind, TaskRecipe};
use crate::run::{Choice, mode_name};
use crate::sandbox::Sandbox;
use crate::tasks::places::{Place, Places, TaskFile};
use crate::tasks::{Item, Target, load, select};

/// Characters of a token, where no tokenizer is asked: about what English has.
const CHARACTERS: f64 = 4.0;
/// Tokens of a prompt of a benchmark whose files are missing.
const PROMPT_TOKENS: usize = 200;

/// The plan of a recipe.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Where each task's data are, and how they come to this machine.
    pub data: Vec<String>,
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

/// Plans a recipe. Files that are here are read, and the sandbox is tried; models, judges and the network are not
/// touched, and nothing is fetched, so the program adds what it knows of those to `missing`.
///
/// # Errors
/// A choice of tasks or models that the recipe does not have.
pub fn plan(recipe: &Recipe, choice: &Choice) -> crate::Result<Plan> {
    choice.check(recipe)?;
    let mut plan = Plan::default();
    for task in choice.tasks(recipe) {
        let Some(shape) = shape(recipe, task, &mut plan) else {
            continue;
        };
        for model in choice.models(recipe) {
            for mode in &model.modes {
                add_loads(&mut plan.loads, recipe, task, &shape, model, *mode);
            }
        }
        if task.kind.runs_code()
            && let Err(error) = Sandbox::open(&recipe.sandbox)
        {
            plan.missing.push(format!("task {}: {error}", task.name));
        }
    }
    plan.missing.extend(missing_keys(recipe, choice));
    Ok(plan)
}

/// What a task asks, for one sample of each prompt.
struct Shape {
    prompts: usize,
    /// Characters of all prompts.
    characters: usize,
    /// Texts that a judge sees.
    parts: usize,
    /// Characters of the baselines in both games.
    baselines: usize,
}

/// A task's shape by its files, or by what is published of it where they are not here; `None` where neither is known.
fn shape(recipe: &Recipe, task: &TaskRecipe, plan: &mut Plan) -> Option<Shape> {
    let places = Places::of(recipe, task);
    let files: Option<Vec<TaskFile>> = places.all().map(Place::at_hand).collect();
    let each = texts_each(task);
    if let Some(files) = files {
        tell_places(task, &places, "", &mut plan.data);
        let items = load(recipe, task, &files).map(|loaded| select(loaded.items, task, recipe.seed));
        let items = items.map_err(|error| plan.missing.push(error.to_string())).ok()?;
        return Some(Shape {
            prompts: items.len(),
            characters: items.iter().map(length).sum(),
            parts: items.len() * each,
            baselines: items.iter().map(baseline).sum(),
        });
    }
    let known = task.kind.published_prompts();
    let known = known.map(|prompts| {
        prompts
            .min(task.sample.unwrap_or(usize::MAX))
            .min(task.limit.unwrap_or(usize::MAX))
    });
    let counted = known.map_or("; not counted below".into(), |prompts| {
        format!("; counted below as {prompts} prompts of {PROMPT_TOKENS} tokens")
    });
    tell_places(task, &places, &counted, &mut plan.data);
    plan.missing.extend(missing_data(task, &places));
    let prompts = known?;
    let characters = prompts * PROMPT_TOKENS * CHARACTERS as usize;
    Some(Shape {
        prompts,
        characters,
        parts: prompts * each,
        baselines: if task.kind == TaskKind::ArenaHard {
            2 * characters
        } else {
            0
        },
    })
}

/// A line for each file of a task.
fn tell_places(task: &TaskRecipe, places: &Places, counted: &str, data: &mut Vec<String>) {
    for (index, place) in places.all().enumerate() {
        let counted = if index == 0 { counted } else { "" };
        data.push(format!("{}: {}{counted}", task.name, place.whereabouts()));
    }
}

/// What stands between a task and its data: files that are not there, and terms that nobody accepted.
fn missing_data(task: &TaskRecipe, places: &Places) -> Vec<String> {
    let mut missing: Vec<String> = places.all().filter_map(Place::locked).collect();
    missing.dedup();
    for page in &mut missing {
        *page = format!(
            "task {}: the environment variable HF_TOKEN, of an account that accepted the terms at {page}",
            task.name
        );
    }
    let on_disk = |place: &&Place| matches!(place, Place::Disk { .. }) && place.at_hand().is_none();
    let absent: Vec<String> = places.all().filter(on_disk).map(Place::whereabouts).collect();
    if !absent.is_empty() {
        missing.push(format!(
            "task {}: {} ({})",
            task.name,
            absent.join(", "),
            task.kind.origin()
        ));
    }
    missing
}

/// Texts of one reply that a judge sees.
fn texts_each(task: &TaskRecipe) -> usize {
    match task.kind {
        TaskKind::ArenaHard => 2,
        kind if kind.needs_judge(task.scorer) => 1 + usize::from(task.judge_thinking),
        _ => 0,
    }
}

/// What a model is asked in a mode, and each of the task's judges about its replies.
fn add_loads(
    loads: &mut Vec<Load>,
    recipe: &Recipe,
    task: &TaskRecipe,
    shape: &Shape,
    model: &ModelRecipe,
    mode: Mode,
) {
    let requests = shape.prompts * task.samples;
    let most = recipe.sampling.of(mode, &task.sampling).max_new_tokens as f64;
    let typical = task.typical_tokens.map(|tokens| tokens as f64);
    let tokens = |characters: usize| (characters * task.samples) as f64 / CHARACTERS;
    let name = format!("{} ({}): {}", model.name, mode_name(mode), task.name);
    loads.push(Load {
        who: name.clone(),
        requests,
        tokens_in: tokens(shape.characters),
        tokens_typical: typical.map(|tokens| tokens * requests as f64),
        tokens_most: most * requests as f64,
        price_in: model.price_in,
        price_out: model.price_out,
    });
    let reply = typical.unwrap_or(most);
    let judges = task.judges.iter().filter_map(|name| recipe.judge(name));
    for judge in judges.filter(|judge| judge.url.is_some() || judge.scripted.is_some()) {
        let requests = shape.parts * task.samples;
        let prompt = shape.characters as f64 / CHARACTERS / shape.prompts.max(1) as f64;
        loads.push(Load {
            who: format!("{}: {name}", judge.name),
            requests,
            tokens_in: (prompt + reply) * requests as f64 + tokens(shape.baselines),
            tokens_typical: None,
            tokens_most: (judge.max_tokens * requests) as f64,
            price_in: judge.price_in,
            price_out: judge.price_out,
        });
    }
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

fn missing_keys(recipe: &Recipe, choice: &Choice) -> Vec<String> {
    let mut keys: BTreeMap<&str, &str> = BTreeMap::new();
    for model in choice.models(recipe) {
        keys.extend(model.api_key_env.as_deref().map(|key| (key, model.name.as_str())));
    }
    for judge in choice.judges(recipe) {
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
             sampling = {{ max_new_tokens = 200 }}\n[[task]]\nname = \"s\"\nkind = \"strongreject\"\njudges = [\"r\"]\n",
            folder.path().display().to_string()
        );
        let recipe = Recipe::parse(&text, "test", &[]).unwrap();
        let plan = plan(&recipe, &Choice::default()).unwrap();
        assert_eq!(plan.missing.len(), 2, "{:?}", plan.missing);
        assert!(
            plan.missing[0].contains("strongreject_dataset.csv") && plan.missing[1].contains("NO_SUCH_KEY")
        );
        assert!(plan.data[0].ends_with("rows.jsonl"), "{:?}", plan.data);
        assert!(
            plan.data[1].ends_with("strongreject_dataset.csv; counted below as 313 prompts of 200 tokens"),
            "{:?}",
            plan.data
        );
        // Two modes of one model, by itself and before its judge; StrongREJECT by what is known of it.
        assert_eq!(plan.loads.len(), 8);
        assert_eq!((plan.loads[4].requests, plan.loads[4].tokens_in), (313, 62_600.0));
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

    #[test]
    fn data_of_the_hub_are_told_and_not_fetched() {
        let text = "data = \"nowhere\"\n[[model]]\nname = \"m\"\nurl = \"http://localhost:1\"\n\
            [[task]]\nname = \"a\"\nkind = \"aime\"\ndata = [\"hf://datasets/no/such@v1/test.jsonl\"]\n";
        let recipe = Recipe::parse(text, "test", &[]).unwrap();
        let plan = plan(&recipe, &Choice::default()).unwrap();
        assert!(plan.missing.is_empty(), "{:?}", plan.missing);
        assert!(
            plan.data[0].starts_with("a: hf://datasets/no/such@v1/test.jsonl, to be fetched from")
                && plan.data[0].ends_with("counted below as 30 prompts of 200 tokens"),
            "{:?}",
            plan.data
        );
        assert_eq!(plan.loads[0].requests, 30);
    }

    #[test]
    fn what_is_not_chosen_is_not_missing() {
        let model = |name: &str| {
            format!(
                "[[model]]\nname = \"{name}\"\nurl = \"http://localhost:1\"\napi_key_env = \"NO_KEY_{name}\"\n"
            )
        };
        let text = format!(
            "data = \"nowhere\"\n{}{}[[judge]]\nname = \"r\"\nkind = \"rubric\"\nurl = \"http://localhost:1\"\n\
             api_key_env = \"NO_KEY_R\"\n[[task]]\nname = \"a\"\nkind = \"ability\"\n\
             [[task]]\nname = \"x\"\nkind = \"harmbench\"\njudges = [\"r\"]\n",
            model("M"),
            model("N"),
        );
        let recipe = Recipe::parse(&text, "test", &[]).unwrap();
        let missing = |choice: &Choice| plan(&recipe, choice).unwrap().missing;
        // Two models' keys, the judge's, and a task's file.
        assert_eq!(missing(&Choice::default()).len(), 4);
        let choice = Choice {
            tasks: vec!["a".into()],
            models: vec!["N".into()],
        };
        let missing = missing(&choice);
        assert!(
            missing.len() == 1 && missing[0].contains("NO_KEY_N"),
            "{missing:?}"
        );
    }
}
