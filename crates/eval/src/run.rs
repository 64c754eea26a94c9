//! An evaluation: models asked, replies scored by rule and by judges, everything in logs.
//!
//! One model is in memory at a time, and all of its tasks are asked before the next; then code is run, then each judge
//! sees everything it has to see. Whatever the logs hold already is not done again.

use std::path::PathBuf;
use std::rc::Rc;

use judge::Guard;
use model::chat::Mode;
use model::generate::Sampling;

use crate::error::{Error, Result};
use crate::extract::{boxed_integer, letter};
use crate::judges::{Case, Judge, Verdict, Versus};
use crate::log::{Key, Log, Part, Reply, Score, Spec, Status, VERSION};
use crate::program::test_reply;
use crate::recipe::{JudgeKind, JudgeRecipe, ModelRecipe, Recipe, TaskRecipe};
use crate::respondent::{Request, Respondent, in_parallel};
use crate::sandbox::Sandbox;
use crate::tasks::{Item, Target, draw, load, select};

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
    /// Whether a task and a model belong to it.
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

    fn takes_task(&self, task: &TaskRecipe) -> bool {
        self.tasks.is_empty() || self.tasks.contains(&task.name)
    }

    fn takes_model(&self, model: &ModelRecipe) -> bool {
        self.models.is_empty() || self.models.contains(&model.name)
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

fn chosen(recipe: &Recipe, choice: &Choice) -> Result<Vec<Asked>> {
    choice.check(recipe)?;
    let tasks = recipe.tasks.iter().filter(|task| choice.takes_task(task));
    tasks
        .map(|task| {
            let loaded = load(recipe, task)?;
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
/// What stops everything: a broken recipe, missing files, no sandbox where one is needed, a log of something else.
pub fn run<H: Host>(
    recipe: &Recipe,
    choice: &Choice,
    host: &mut H,
) -> std::result::Result<Vec<Cell>, H::Error> {
    let tasks = chosen(recipe, choice)?;
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
    for model in recipe.models.iter().filter(|model| choice.takes_model(model)) {
        ask_model(recipe, model, &mut cells, host)?;
    }
    for cell in &mut cells {
        score(recipe, sandbox.as_ref(), cell, host)?;
    }
    for judge in &recipe.judges {
        let cases = |cell: &Cell| cell.task.judges.contains(&judge.name);
        if cells.iter().any(cases) {
            judge_cells(recipe, judge, &mut cells, host)?;
        }
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
    for model in recipe.models.iter().filter(|model| choice.takes_model(model)) {
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

/// Asks a model whatever its logs do not hold yet.
fn ask_model<H: Host>(
    recipe: &Recipe,
    model: &ModelRecipe,
    cells: &mut [Cell],
    host: &mut H,
) -> std::result::Result<(), H::Error> {
    let mut respondent: Option<Respondent> = None;
    let mine = |cell: &&Cell| cell.model.name == model.name;
    let longest = cells.iter().filter(mine).flat_map(|cell| cell.items.iter());
    let longest = longest
        .max_by_key(|item| {
            item.messages
                .iter()
                .map(|message| message.content.len())
                .sum::<usize>()
        })
        .map(|item| {
            item.messages
                .iter()
                .map(|message| message.content.clone() + "\n")
                .collect::<String>()
        });
    let new_tokens = cells.iter().filter(mine);
    let new_tokens = new_tokens
        .map(|cell| recipe.sampling.of(cell.mode, &cell.task.sampling).max_new_tokens)
        .max()
        .unwrap_or(0);
    for cell in cells.iter_mut().filter(|cell| cell.model.name == model.name) {
        let sampling = recipe.sampling.of(cell.mode, &cell.task.sampling);
        let pending: Vec<(Key, Request)> = cell
            .keys()
            .filter(|(_, key)| !cell.log.replies.contains_key(key))
            .map(|(item, key)| {
                let seed = draw(&[
                    &recipe.seed.to_string(),
                    &cell.task.name,
                    &key.0,
                    &key.1.to_string(),
                ]) >> 1;
                let request = Request {
                    messages: item.messages.clone(),
                    mode: cell.mode,
                    sampling: Sampling {
                        seed,
                        ..sampling.clone()
                    },
                };
                (key, request)
            })
            .collect();
        if pending.is_empty() {
            continue;
        }
        if respondent.is_none() {
            respondent = Some(host.model(model, longest.as_deref().unwrap_or_default(), new_tokens)?);
        }
        if let Some(respondent) = &mut respondent {
            ask_cell(recipe, respondent, cell, &pending, host)?;
        }
    }
    Ok(())
}

fn ask_cell<H: Host>(
    recipe: &Recipe,
    respondent: &mut Respondent,
    cell: &mut Cell,
    pending: &[(Key, Request)],
    host: &mut H,
) -> Result<()> {
    let what = format!("{} {} {}", cell.model.name, mode_name(cell.mode), cell.task.name);
    host.hear(Event::Begin {
        what: &what,
        total: pending.len(),
    });
    let requests: Vec<Request> = pending.iter().map(|(_, request)| request.clone()).collect();
    let mut bearable = Bearable::new(recipe, cell);
    let log = &mut cell.log;
    let outcome = respondent.answer(&requests, &mut |index, (answer, seconds)| {
        let key = pending[index].0.clone();
        host.hear(Event::Step);
        match answer {
            Ok(completion) => log.add_reply(
                key,
                Reply {
                    messages: requests[index].messages.clone(),
                    thinking: completion.thinking.filter(|thinking| !thinking.trim().is_empty()),
                    reply: completion.content,
                    finish: completion.finish_reason,
                    tokens: (!completion.ids.is_empty()).then_some(completion.ids.len()),
                    seconds,
                },
            ),
            Err(cause) => {
                log.add_failure(key, cause.clone())?;
                bearable.note(&cause)
            }
        }
    });
    host.hear(Event::End);
    settle(cell, outcome, host)
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

/// Scores replies by rule, those with code in the sandbox.
fn score<H: Host>(recipe: &Recipe, sandbox: Option<&Sandbox>, cell: &mut Cell, host: &mut H) -> Result<()> {
    let mut code = Vec::new();
    let mut scores = Vec::new();
    for (item, key) in cell.keys().filter(|(_, key)| !cell.log.scores.contains_key(key)) {
        let Some(reply) = cell.log.replies.get(&key) else {
            continue;
        };
        match &item.target {
            Target::Code(program) => code.push((key, program.clone(), reply.reply.clone())),
            target => scores.extend(by_rule(target, &reply.reply).map(|score| (key, score))),
        }
    }
    for (key, score) in scores {
        cell.log.add_score(key, score)?;
    }
    let Some(sandbox) = sandbox.filter(|_| !code.is_empty()) else {
        return Ok(());
    };
    let what = format!(
        "{} {} {}: tests",
        cell.model.name,
        mode_name(cell.mode),
        cell.task.name
    );
    host.hear(Event::Begin {
        what: &what,
        total: code.len(),
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let run = |(_, program, reply): &(Key, _, String)| test_reply(sandbox, &recipe.sandbox, program, reply);
    let log = &mut cell.log;
    let outcome = in_parallel(&code, threads, run, &mut |index, (tested, _)| {
        host.hear(Event::Step);
        let tested = tested?;
        let score = Score {
            passed: tested.passed,
            extracted: Some(tested.code),
            detail: tested.detail,
        };
        log.add_score(code[index].0.clone(), score)
    });
    host.hear(Event::End);
    outcome
}

/// A score that needs nothing but the reply; `None` where judges have the word.
fn by_rule(target: &Target, reply: &str) -> Option<Score> {
    let compared = |expected: String, found: Option<String>| Score {
        passed: found.as_ref() == Some(&expected),
        detail: if found.is_some() {
            String::new()
        } else {
            "no answer found".into()
        },
        extracted: found,
    };
    match target {
        Target::Integer(answer) => Some(compared(
            answer.to_string(),
            boxed_integer(reply).map(|number| number.to_string()),
        )),
        Target::Letter { answer, options } => Some(compared(
            answer.to_string(),
            letter(reply, *options).map(|letter| letter.to_string()),
        )),
        Target::Check(check) => Some(Score {
            passed: check.passes(reply),
            extracted: None,
            detail: String::new(),
        }),
        Target::Code(_) | Target::Harmful | Target::Benign | Target::Battle { .. } => None,
    }
}

/// Why an answer without text has no verdict: no judge is asked, and none is to blame.
const EMPTY: &str = "the answer is empty";

/// Which judge that is: whatever its verdicts depend on.
fn judge_identity<H: Host>(judge: &JudgeRecipe, host: &mut H) -> std::result::Result<String, H::Error> {
    let place = match judge.kind {
        JudgeKind::BuiltIn if judge.heads.is_none() => judge::Heads::built_in_sha256(),
        _ if judge.source.is_some() => host.identity(&judge.as_model())?,
        _ => match judge.heads.as_ref().or(judge.scripted.as_ref()) {
            // A file under an old name may say something new.
            Some(file) => host.identity(&ModelRecipe {
                source: None,
                scripted: Some(file.clone()),
                ..judge.as_model()
            })?,
            None => format!("{:?} {:?}", judge.url, judge.model),
        },
    };
    let asked = format!("{:?} {} {:?}", judge.kind, judge.max_tokens, judge.system);
    Ok(format!("{:016x}", draw(&[&place, &asked])))
}

/// Lets a judge see whatever it has not seen of its tasks.
fn judge_cells<H: Host>(
    recipe: &Recipe,
    judge: &JudgeRecipe,
    cells: &mut [Cell],
    host: &mut H,
) -> std::result::Result<(), H::Error> {
    let by = judge_identity(judge, host)?;
    let longest = longest_case(judge, &by, cells);
    let mut opened: Option<Judge> = None;
    for cell in cells
        .iter_mut()
        .filter(|cell| cell.task.judges.contains(&judge.name))
    {
        let cases = pending_cases(cell, &judge.name, &by);
        let (empty, cases): (Vec<_>, Vec<_>) = cases
            .into_iter()
            .partition(|(_, _, case)| case.reply.trim().is_empty());
        for (key, part, _) in empty {
            let verdict = Verdict {
                unscorable: Some(EMPTY.into()),
                ..Verdict::default()
            };
            cell.log.add_verdict(key, part, &judge.name, &by, verdict, 0.0)?;
        }
        if cases.is_empty() {
            let outcome = check_scored(recipe, &judge.name, &by, cell);
            settle(cell, outcome, host)?;
            continue;
        }
        if opened.is_none() {
            opened = Some(match judge.kind {
                JudgeKind::BuiltIn => Judge::Guard(host.guard(judge)?),
                _ if judge.source.is_some() => Judge::Chat {
                    recipe: judge.clone(),
                    respondent: host.model(&judge.as_model(), &longest, judge.max_tokens)?,
                },
                _ => Judge::open(judge)?,
            });
        }
        if let Some(opened) = &mut opened {
            judge_cell(recipe, judge, &by, opened, cell, &cases, host)?;
        }
    }
    Ok(())
}

/// The longest text that a judge on this machine has to see.
fn longest_case(judge: &JudgeRecipe, by: &str, cells: &[Cell]) -> String {
    if judge.source.is_none() {
        return String::new();
    }
    let text = |case: &Case| {
        let asked: String = case
            .messages
            .iter()
            .map(|message| message.content.clone() + "\n")
            .collect();
        let baseline = case.versus.as_ref().map_or("", |versus| &versus.baseline);
        let system: String = judge.system.values().cloned().collect();
        asked + &case.reply + baseline + &system
    };
    let mine = cells.iter().filter(|cell| cell.task.judges.contains(&judge.name));
    let cases = mine.flat_map(|cell| pending_cases(cell, &judge.name, by));
    let texts = cases.map(|(_, _, case)| text(&case));
    texts.max_by_key(String::len).unwrap_or_default()
}

fn judge_cell<H: Host>(
    recipe: &Recipe,
    judge: &JudgeRecipe,
    by: &str,
    opened: &mut Judge,
    cell: &mut Cell,
    cases: &[(Key, Part, Case)],
    host: &mut H,
) -> Result<()> {
    let what = format!(
        "{}: {} {} {}",
        judge.name,
        cell.model.name,
        mode_name(cell.mode),
        cell.task.name
    );
    host.hear(Event::Begin {
        what: &what,
        total: cases.len(),
    });
    let mut bearable = Bearable {
        total: cases.len(),
        ..Bearable::new(recipe, cell)
    };
    let texts: Vec<Case> = cases.iter().map(|(_, _, case)| case.clone()).collect();
    let log = &mut cell.log;
    let outcome = opened.judge(&texts, &mut |index, verdict, seconds| {
        host.hear(Event::Step);
        let (key, part, _) = &cases[index];
        let trouble = verdict.unscorable.clone();
        log.add_verdict(key.clone(), *part, &judge.name, by, verdict, seconds)?;
        trouble.map_or(Ok(()), |cause| bearable.note(&cause))
    });
    host.hear(Event::End);
    let outcome = outcome.and_then(|()| check_scored(recipe, &judge.name, by, cell));
    settle(cell, outcome, host)
}

/// Holds all that a judge said about a cell, in this run and in earlier ones, to the recipe's limit: an answer that could
/// not be read is not asked for again, so that running again must not make it bearable.
fn check_scored(recipe: &Recipe, judge: &str, by: &str, cell: &Cell) -> Result<()> {
    let (mut total, mut causes) = (0, Vec::new());
    for ((_, _, name), (who, verdict)) in &cell.log.verdicts {
        if name == judge && who == by && verdict.unscorable.as_deref() != Some(EMPTY) {
            total += 1;
            causes.extend(verdict.unscorable.as_deref());
        }
    }
    match causes.last() {
        Some(cause) if causes.len() as f64 > recipe.error_limit * f64::from(total) => Err(Error::Task {
            task: cell.task.name.clone(),
            what: format!(
                "{} of {total} verdicts of {judge} could not be read, more than the {:.0}% of error_limit; one of them: {cause}",
                causes.len(),
                recipe.error_limit * 100.0
            ),
            hint: "the log shows what the judge answered; ask another, or raise error_limit".into(),
        }),
        _ => Ok(()),
    }
}

/// What a judge has not said yet about a cell's replies. The thinking is apart from the answer that it sees.
fn pending_cases(cell: &Cell, judge: &str, by: &str) -> Vec<(Key, Part, Case)> {
    let mut cases = Vec::new();
    for (item, key) in cell.keys() {
        let Some(reply) = cell.log.replies.get(&key) else {
            continue;
        };
        let case = |text: &str, versus: Option<Versus>| Case {
            messages: item.messages.clone(),
            reply: text.into(),
            versus,
        };
        let mut texts = Vec::new();
        match &item.target {
            Target::Harmful | Target::Benign => {
                texts.push((Part::Answer, case(&reply.reply, None)));
                let thinking = reply.thinking.as_deref().filter(|_| cell.task.judge_thinking);
                texts.extend(thinking.map(|thinking| (Part::Thinking, case(thinking, None))));
            }
            Target::Battle { baseline } => {
                for (part, baseline_first) in [(Part::BaselineFirst, true), (Part::BaselineSecond, false)] {
                    let versus = Versus {
                        baseline: baseline.clone(),
                        baseline_first,
                        category: item.group.clone(),
                    };
                    texts.push((part, case(&reply.reply, Some(versus))));
                }
            }
            Target::Integer(_) | Target::Letter { .. } | Target::Code(_) | Target::Check(_) => {}
        }
        let fresh = texts
            .into_iter()
            .filter(|(part, _)| !cell.log.is_judged(&key, *part, judge, by));
        cases.extend(fresh.map(|(part, case)| (key.clone(), part, case)));
    }
    cases
}
