//! An evaluation: models asked, replies scored by rule and by judges, everything in logs.
//!
//! One model is in memory at a time, and all of its tasks are asked before the next; then code is run, then each judge
//! sees everything it has to see. Whatever the logs hold already is not done again.

mod ask;
mod score;
mod verdicts;

use std::path::PathBuf;
use std::rc::Rc;

use judge::Guard;
use model::chat::Mode;
use model::source::Progress;

use self::ask::ask_model;
use self::score::score;
use self::verdicts::judge_cells;
use crate::error::{Error, Result};
use crate::log::{Key, Log, Spec, Status, VERSION};
use crate::recipe::{JudgeRecipe, ModelRecipe, Recipe, TaskRecipe};
use crate::respondent::Respondent;
use crate::sandbox::Sandbox;
use crate::tasks::places::fetch;
use crate::tasks::{Item, draw, load, select};

/// What the evaluation cannot do by itself: weights are loaded, and progress is shown, by the program around it.
pub trait Host {
    /// The program's errors.
    type Error: From<Error>;

    /// Which model that is, by its weights or its place at a server; it need not be loaded for that.
    fn identity(&mut self, model: &ModelRecipe) -> std::result::Result<String, Self::Error>;

    /// Opens a model for prompts up to the length of `longest` and replies of up to `new_tokens`.
    fn model(
        &mut self,
        model: &ModelRecipe,
        longest: &str,
        new_tokens: usize,
    ) -> std::result::Result<Respondent, Self::Error>;

    /// Opens the built-in guard.
    fn guard(&mut self, judge: &JudgeRecipe) -> std::result::Result<Box<dyn Guard>, Self::Error>;

    /// Hears what happens.
    fn hear(&mut self, event: Event<'_>);
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// Data are fetched from the hub, and so far it has come.
    Fetch(&'a Progress),
    /// Work on so many things begins.
    Begin {
        /// What it is.
        what: &'a str,
        /// How many.
        total: usize,
    },
    /// One of them is done.
    Step,
    /// All of them are.
    End,
    /// A task failed; the others go on.
    Failed(&'a str),
}

/// Which part of a recipe to run; empty lists take all.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Tasks by name.
    pub tasks: Vec<String>,
    /// Models by name.
    pub models: Vec<String>,
}

impl Choice {
    /// Whether a recipe has all of its tasks and models.
    ///
    /// # Errors
    /// A name that the recipe does not have.
    pub fn check(&self, recipe: &Recipe) -> Result<()> {
        let known = |name: &String, what: &str, mut names: Box<dyn Iterator<Item = &String> + '_>| {
            if names.any(|known| known == name) {
                return Ok(());
            }
            Err(Error::Recipe {
                origin: recipe.run.clone(),
                what: format!("there is no {what} `{name}`"),
            })
        };
        for name in &self.tasks {
            known(name, "task", Box::new(recipe.tasks.iter().map(|task| &task.name)))?;
        }
        for name in &self.models {
            known(
                name,
                "model",
                Box::new(recipe.models.iter().map(|model| &model.name)),
            )?;
        }
        Ok(())
    }

    /// The tasks of a recipe that belong to it.
    pub fn tasks<'a>(&'a self, recipe: &'a Recipe) -> impl Iterator<Item = &'a TaskRecipe> {
        let tasks = recipe.tasks.iter();
        tasks.filter(|task| self.tasks.is_empty() || self.tasks.contains(&task.name))
    }

    /// The models of a recipe that belong to it.
    pub fn models<'a>(&'a self, recipe: &'a Recipe) -> impl Iterator<Item = &'a ModelRecipe> {
        let models = recipe.models.iter();
        models.filter(|model| self.models.is_empty() || self.models.contains(&model.name))
    }

    /// The judges of the tasks that belong to it.
    pub fn judges<'a>(&'a self, recipe: &'a Recipe) -> impl Iterator<Item = &'a JudgeRecipe> {
        let judges = recipe.judges.iter();
        judges.filter(|judge| self.tasks(recipe).any(|task| task.judges.contains(&judge.name)))
    }
}

/// One task, one model, one mode.
#[derive(Debug)]
pub struct Cell {
    /// The task.
    pub task: TaskRecipe,
    /// The model.
    pub model: ModelRecipe,
    /// The mode.
    pub mode: Mode,
    /// The prompts that are asked.
    pub items: Rc<Vec<Item>>,
    /// What has come of them.
    pub log: Log,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

impl Cell {
    /// Every sample of every prompt.
    pub fn keys(&self) -> impl Iterator<Item = (&Item, Key)> {
        self.items
            .iter()
            .flat_map(|item| (0..self.task.samples).map(move |sample| (item, (item.id.clone(), sample))))
    }
}

/// A task and what it asks.
struct Asked {
    task: TaskRecipe,
    items: Rc<Vec<Item>>,
    data_sha256: String,
}

/// The chosen tasks, their data fetched and read.
fn chosen<H: Host>(recipe: &Recipe, choice: &Choice, host: &mut H) -> Result<Vec<Asked>> {
    choice.check(recipe)?;
    choice
        .tasks(recipe)
        .map(|task| {
            let files = fetch(recipe, task, &mut |progress| {
                host.hear(Event::Fetch(&progress));
            })?;
            let loaded = load(recipe, task, &files)?;
            Ok(Asked {
                task: task.clone(),
                items: Rc::new(select(loaded.items, task, recipe.seed)),
                data_sha256: loaded.sha256,
            })
        })
        .collect()
}

/// Runs a recipe, or goes on with it, and returns every cell with its log. A cell that failed says why.
///
/// # Errors
/// What stops everything: a broken recipe, files that are missing or that the hub refuses, no sandbox where one is needed, a log of something else.
pub fn run<H: Host>(
    recipe: &Recipe,
    choice: &Choice,
    host: &mut H,
) -> std::result::Result<Vec<Cell>, H::Error> {
    let tasks = chosen(recipe, choice, host)?;
    let sandbox = tasks
        .iter()
        .any(|asked| asked.task.kind.runs_code())
        .then(|| Sandbox::open(&recipe.sandbox))
        .transpose()?;
    let mut cells = open_cells(recipe, choice, &tasks, host)?;
    if cells.iter().all(|cell| cell.items.is_empty()) {
        let what = "there is nothing to evaluate: expected at least one model, task and prompt".into();
        let origin = recipe.run.clone();
        return Err(Error::Recipe { origin, what }.into());
    }
    for model in choice.models(recipe) {
        ask_model(recipe, model, &mut cells, host)?;
    }
    for cell in &mut cells {
        score(recipe, sandbox.as_ref(), cell, host)?;
    }
    for judge in choice.judges(recipe) {
        judge_cells(recipe, judge, &mut cells, host)?;
    }
    for cell in &mut cells {
        let (status, what) = match &cell.failure {
            Some(what) => (Status::Failed, what.clone()),
            None => (Status::Done, String::new()),
        };
        cell.log.add_status(status, &what)?;
    }
    Ok(cells)
}

/// Where a cell's log lies.
pub fn log_path(recipe: &Recipe, task: &str, model: &str, mode: Mode) -> PathBuf {
    let folder = recipe.folder().join("logs").join(task);
    folder.join(format!("{model}.{}.jsonl", mode_name(mode)))
}

/// `think` or `no-think`.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Think => "think",
        Mode::NoThink => "no-think",
    }
}

fn open_cells<H: Host>(
    recipe: &Recipe,
    choice: &Choice,
    tasks: &[Asked],
    host: &mut H,
) -> std::result::Result<Vec<Cell>, H::Error> {
    let mut cells = Vec::new();
    for model in choice.models(recipe) {
        let identity = host.identity(model)?;
        for mode in &model.modes {
            for Asked {
                task,
                items,
                data_sha256,
            } in tasks
            {
                let prompts = format!("{:?} {:?}", task.template, task.system);
                let spec = Spec {
                    version: VERSION,
                    task: task.name.clone(),
                    kind: task.kind,
                    data_sha256: data_sha256.clone(),
                    prompt_sha256: format!("{:016x}", draw(&[&prompts])),
                    model: model.name.clone(),
                    identity: identity.clone(),
                    mode: *mode,
                    sampling: recipe.sampling.of(*mode, &task.sampling),
                    seed: recipe.seed,
                };
                let path = log_path(recipe, &task.name, &model.name, *mode);
                cells.push(Cell {
                    task: task.clone(),
                    model: model.clone(),
                    mode: *mode,
                    items: Rc::clone(items),
                    log: Log::open(&path, &spec)?,
                    failure: None,
                });
            }
        }
    }
    Ok(cells)
}

/// A task's own failure is kept in its cell; what would stop every task goes on up.
fn settle<H: Host>(cell: &mut Cell, outcome: Result<()>, host: &mut H) -> Result<()> {
    match outcome {
        Err(error @ Error::Task { .. }) => {
            let what = error.to_string();
            host.hear(Event::Failed(&what));
            cell.failure = Some(what);
            Ok(())
        }
        other => other,
    }
}

/// Counts failures up to the recipe's limit.
struct Bearable {
    task: String,
    limit: f64,
    failures: usize,
    total: usize,
}

impl Bearable {
    fn new(recipe: &Recipe, cell: &Cell) -> Self {
        Self {
            task: cell.task.name.clone(),
            limit: recipe.error_limit,
            failures: 0,
            total: cell.items.len() * cell.task.samples,
        }
    }

    fn note(&mut self, cause: &str) -> Result<()> {
        self.failures += 1;
        if self.failures as f64 <= self.limit * self.total as f64 {
            return Ok(());
        }
        Err(Error::Task {
            task: self.task.clone(),
            what: format!(
                "{} of {} failed, more than the {:.0}% of error_limit; the last one: {cause}",
                self.failures,
                self.total,
                self.limit * 100.0
            ),
            hint: "the log keeps what there is: run the same command again to ask for the rest".into(),
        })
    }
}
