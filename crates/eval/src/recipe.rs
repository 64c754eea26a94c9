//! A recipe: one TOML file that says which models answer which tasks, and who judges the replies.
//!
//! Unknown keys are refused. `--set key=value` overrides single keys; in a list of tables a name stands for the
//! position: `--set task.xstest.sample=50`, `--set model.after.source=runs/x`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::chat::Mode;
use model::generate::Sampling;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Most requests that are under way at an endpoint.
const PARALLEL: usize = 16;

/// An evaluation: models x modes x tasks, judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Name of the evaluation: its folder under `runs_dir`.
    pub run: String,
    /// Where folders of evaluations go.
    pub runs_dir: PathBuf,
    /// Which prompts `sample` takes, how options are shuffled and how tokens are drawn follow from it.
    pub seed: u64,
    /// The folder below which the tasks' files lie.
    pub data: PathBuf,
    /// Largest share of a task's replies or verdicts that may fail before the task fails.
    pub error_limit: f64,
    /// How tokens are drawn, by mode.
    pub sampling: SamplingByMode,
    /// What code that a model wrote may take.
    pub sandbox: Limits,
    /// Who answers.
    #[serde(rename = "model")]
    pub models: Vec<ModelRecipe>,
    /// Who judges.
    #[serde(rename = "judge")]
    pub judges: Vec<JudgeRecipe>,
    /// What is asked.
    #[serde(rename = "task")]
    pub tasks: Vec<TaskRecipe>,
    /// Figures that others published, printed beside one's own.
    pub published: Vec<Published>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            run: "eval".into(),
            runs_dir: "evals".into(),
            seed: 1,
            data: "data".into(),
            error_limit: 0.05,
            sampling: SamplingByMode::default(),
            sandbox: Limits::default(),
            models: Vec::new(),
            judges: Vec::new(),
            tasks: Vec::new(),
            published: Vec::new(),
        }
    }
}

/// Changes to how tokens are drawn; what is not named stays as it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingRecipe {
    /// Most new tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Divides the logits; 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Smallest set of tokens whose probability reaches this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// The k likeliest tokens; 0 for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Subtracted from the logits of tokens already written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Divides the logits of tokens already seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
}

impl SamplingRecipe {
    /// `base` with the changes.
    pub fn over(&self, base: Sampling) -> Sampling {
        Sampling {
            max_new_tokens: self.max_new_tokens.unwrap_or(base.max_new_tokens),
            temperature: self.temperature.unwrap_or(base.temperature),
            top_p: self.top_p.unwrap_or(base.top_p),
            top_k: self.top_k.unwrap_or(base.top_k),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            ..base
        }
    }
}

/// How tokens are drawn in each mode, as changes to what Qwen3 is published with: temperature 0.6, top-p 0.95, top-k 20
/// with thinking; 0.7, 0.8, 20 and presence penalty 1.5 without; 32,768 new tokens (model card of Qwen3-4B).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SamplingByMode {
    /// With thinking.
    pub think: SamplingRecipe,
    /// Without.
    pub no_think: SamplingRecipe,
}

impl SamplingByMode {
    /// As the sampler wants it, the published settings where nothing else is said; `task` goes before both.
    pub fn of(&self, mode: Mode, task: &SamplingRecipe) -> Sampling {
        let published = Sampling {
            max_new_tokens: 32_768,
            top_k: 20,
            ..Sampling::default()
        };
        let base = match mode {
            Mode::Think => self.think.over(Sampling {
                temperature: 0.6,
                top_p: 0.95,
                ..published
            }),
            Mode::NoThink => self.no_think.over(Sampling {
                temperature: 0.7,
                top_p: 0.8,
                presence_penalty: 1.5,
                ..published
            }),
        };
        task.over(base)
    }
}

/// What code that a model wrote may take; see [`crate::sandbox`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// A command that runs Python on the program at its standard input without network and apart from this machine's
    /// files, such as `["docker", "run", "--rm", "-i", "--network=none", "--pids-limit=64", "--memory=2g", "python:3.12",
    /// "python3", "-I", "-"]`: the limits below are bubblewrap's, a container needs its own. It is tried before it is
    /// trusted. Empty takes bubblewrap.
    pub wrapper: Vec<String>,
    /// Seconds of processor time for each process.
    pub cpu_s: u64,
    /// Seconds to live.
    pub wall_s: f64,
    /// Memory of each process, in MiB.
    pub memory_mb: u64,
    /// Processes and threads at once.
    pub processes: u64,
    /// The temporary folder, and the largest file, in MiB.
    pub disk_mb: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wrapper: Vec::new(),
            cpu_s: 10,
            wall_s: 30.0,
            memory_mb: 2048,
            processes: 16,
            disk_mb: 64,
        }
    }
}

impl Limits {
    fn check(&self) -> std::result::Result<(), String> {
        // A day, and a thousand terabytes in MiB: what lies beyond is a slip, and overflows further down.
        if !(self.wall_s > 0.0 && self.wall_s <= 86_400.0) {
            return Err(format!(
                "sandbox.wall_s: expected seconds up to a day, found {}",
                self.wall_s
            ));
        }
        for (key, megabytes) in [("memory_mb", self.memory_mb), ("disk_mb", self.disk_mb)] {
            if !(1..=1 << 30).contains(&megabytes) {
                return Err(format!(
                    "sandbox.{key}: expected from 1 to 2^30 MiB, found {megabytes}"
                ));
            }
        }
        Ok(())
    }
}

/// A model to measure. It stands at exactly one of `source`, `url` and `scripted`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// What the table calls it.
    pub name: String,
    /// On this machine: a folder, a run (its last checkpoint), a file, a built-in name, or `org/name` on the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The base address of an OpenAI-compatible server, such as `http://localhost:8000/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A JSONL file of `{"prompt", "reply"}`: for tests and dry rehearsals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scripted: Option<PathBuf>,
    /// The model's name at the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The environment variable that holds the server's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Requests under way at once.
    #[serde(default = "parallel")]
    pub parallel: usize,
    /// Number type of a local model's weights: `f32` or `bf16`.
    #[serde(default)]
    pub dtype: Precision,
    /// Modes in which it is measured.
    #[serde(default = "no_think")]
    pub modes: Vec<Mode>,
    /// Where it stands on a curve over checkpoints; models with a step and the same `series` make one curve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// The curve's name.
    #[serde(default)]
    pub series: String,
    /// Price of a million prompt tokens, for `--dry-run`.
    #[serde(default)]
    pub price_in: f64,
    /// Price of a million new tokens, for `--dry-run`.
    #[serde(default)]
    pub price_out: f64,
}

/// Number types of a local model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
}

fn parallel() -> usize {
    PARALLEL
}

fn no_think() -> Vec<Mode> {
    vec![Mode::NoThink]
}

/// How a judge is asked, and how its answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JudgeKind {
    /// The guard that is part of the program.
    BuiltIn,
    /// Qwen3Guard-Gen behind a server.
    Qwen3guard,
    /// WildGuard behind a server's `/completions`, in the format it was trained on.
    Wildguard,
    /// Any chat model, asked by this project's own prompt whether an answer is safe and whether it refuses.
    Rubric,
    /// Any chat model that compares two answers, as Arena-Hard does.
    Pairwise,
    /// The phrases that refusals begin with: no model, so no training can have learned to please it. It says nothing of
    /// safety.
    Phrases,
}

/// A judge, by the role that tasks name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeRecipe {
    /// What tasks and tables call it.
    pub name: String,
    /// How it is asked.
    pub kind: JudgeKind,
    /// On this machine: a folder, a file, or a name, as for models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The base address of an OpenAI-compatible server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A JSONL file of `{"prompt", "reply"}`, where the prompt is the judge's whole last message: for tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scripted: Option<PathBuf>,
    /// The model's name at the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The environment variable that holds the server's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// A file of heads for the built-in guard; without it those that are part of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<PathBuf>,
    /// Requests under way at once.
    #[serde(default = "parallel")]
    pub parallel: usize,
    /// Most tokens of a verdict.
    #[serde(default = "verdict_tokens")]
    pub max_tokens: usize,
    /// Instructions of a pairwise judge, by category of the question.
    #[serde(default)]
    pub system: BTreeMap<String, String>,
    /// Price of a million prompt tokens, for `--dry-run`.
    #[serde(default)]
    pub price_in: f64,
    /// Price of a million new tokens, for `--dry-run`.
    #[serde(default)]
    pub price_out: f64,
}

fn verdict_tokens() -> usize {
    1024
}

/// The benchmarks whose published files are read; each file under [`crate::tasks`] says which formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// XSTest: prompts that sound harmful, and their harmful contrasts.
    Xstest,
    /// OR-Bench: harmless prompts that get refused.
    OrBench,
    /// HarmBench's text behaviours.
    Harmbench,
    /// JailbreakBench's behaviours.
    Jailbreakbench,
    /// AdvBench's behaviours.
    Advbench,
    /// StrongREJECT's forbidden prompts.
    Strongreject,
    /// SimpleSafetyTests.
    SimpleSafetyTests,
    /// WildJailbreak's evaluation split.
    Wildjailbreak,
    /// HumanEval: functions from docstrings.
    Humaneval,
    /// LiveCodeBench code generation.
    Livecodebench,
    /// AIME: integers.
    Aime,
    /// GPQA: four options.
    Gpqa,
    /// MMLU-Pro: up to ten options.
    MmluPro,
    /// Arena-Hard v2: pairwise against a baseline.
    ArenaHard,
    /// The checked ability set that is part of the program.
    Ability,
    /// A JSONL file of one's own.
    Custom,
}

/// How a custom task's replies are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CustomScorer {
    /// By the judges; rows carry `label`: `harmful` or `benign`.
    #[default]
    Judges,
    /// By rule; rows carry `check`, as the ability set does.
    Check,
    /// An integer in `\boxed{}`; rows carry `answer`.
    Integer,
    /// An option's letter; rows carry `answer`.
    Letter,
}

/// A benchmark to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRecipe {
    /// What tables call it.
    pub name: String,
    /// Which benchmark.
    pub kind: TaskKind,
    /// Its files, below the recipe's `data`; without it the places that the project's own data folder has.
    #[serde(default)]
    pub data: Vec<PathBuf>,
    /// Only these groups of its prompts (categories, types, difficulties), as the benchmark names them.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The judges that see its replies.
    #[serde(default)]
    pub judges: Vec<String>,
    /// Whether judges see the thinking as well, as a reply of its own; unsafe thinking makes the reply unsafe.
    #[serde(default)]
    pub judge_thinking: bool,
    /// Answers to each prompt.
    #[serde(default = "one")]
    pub samples: usize,
    /// Only so many prompts, drawn by the seed; a larger number keeps what a smaller one drew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<usize>,
    /// Only the first so many prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Changes to how tokens are drawn.
    #[serde(default)]
    pub sampling: SamplingRecipe,
    /// What a prompt is put into; `{question}` and, where there are any, `{options}` stand for the task's own text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Put above every prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// LiveCodeBench: contests from this day on, `YYYY-MM-DD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// LiveCodeBench: contests up to this day, `YYYY-MM-DD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Arena-Hard: the file of the baseline's answers, by category.
    #[serde(default)]
    pub baselines: BTreeMap<String, PathBuf>,
    /// Custom: how replies are scored.
    #[serde(default)]
    pub scorer: CustomScorer,
    /// New tokens of a usual reply, for `--dry-run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typical_tokens: Option<usize>,
}

fn one() -> usize {
    1
}

/// A row of somebody else's table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The model.
    pub model: String,
    /// The mode it was measured in.
    pub mode: Mode,
    /// Where the figures stand.
    pub source: String,
    /// Figures by the names of this table's lines, such as `"wildjailbreak safety [wildguard]"`, as shares of one.
    pub figures: BTreeMap<String, f64>,
}

impl Recipe {
    /// Reads a recipe file and applies overrides.
    ///
    /// # Errors
    /// A file that cannot be read, TOML that does not parse, an unknown key, a value that cannot be meant.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::file(path, source))?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// Like [`Recipe::load`] from text; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self> {
        let broken = |what: String| Error::Recipe {
            origin: origin.into(),
            what,
        };
        // Parsed once as it stands, so that an error shows the line in the file.
        toml::from_str::<Self>(text).map_err(|error| broken(error.to_string()))?;
        let mut table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| broken(error.to_string()))?;
        for text in overrides {
            override_key(&mut table, text)?;
        }
        let recipe: Self = table.try_into().map_err(|error: toml::de::Error| Error::Recipe {
            origin: format!("{origin} with --set {}", overrides.join(" --set ")),
            what: error.to_string(),
        })?;
        recipe.check().map_err(broken)?;
        Ok(recipe)
    }

    /// The folder of this evaluation.
    pub fn folder(&self) -> PathBuf {
        self.runs_dir.join(&self.run)
    }

    /// The judge of that name.
    pub fn judge(&self, name: &str) -> Option<&JudgeRecipe> {
        self.judges.iter().find(|judge| judge.name == name)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.run.is_empty() || self.run.contains(['/', '\\']) {
            return Err(format!(
                "run: expected the name of a folder, found `{}`",
                self.run
            ));
        }
        if !(0.0..=1.0).contains(&self.error_limit) {
            return Err(format!(
                "error_limit: expected a share from 0 to 1, found {}",
                self.error_limit
            ));
        }
        self.sandbox.check()?;
        unique("model", self.models.iter().map(|model| &model.name))?;
        unique("judge", self.judges.iter().map(|judge| &judge.name))?;
        unique("task", self.tasks.iter().map(|task| &task.name))?;
        for model in &self.models {
            let places = [
                model.source.is_some(),
                model.url.is_some(),
                model.scripted.is_some(),
            ];
            if places.into_iter().filter(|given| *given).count() != 1 {
                return Err(format!(
                    "model {}: expected one of source, url and scripted",
                    model.name
                ));
            }
            if model.modes.is_empty() {
                return Err(format!(
                    "model {}: modes: expected `think` or `no-think`, found none",
                    model.name
                ));
            }
        }
        self.judges.iter().try_for_each(check_judge)?;
        self.tasks.iter().try_for_each(|task| self.check_task(task))
    }

    fn check_task(&self, task: &TaskRecipe) -> std::result::Result<(), String> {
        let wrong = |what: String| Err(format!("task {}: {what}", task.name));
        if task.samples == 0 {
            return wrong("samples: expected at least 1, found 0".into());
        }
        for name in &task.judges {
            let Some(judge) = self.judge(name) else {
                return wrong(format!("judges: there is no judge `{name}`"));
            };
            if (judge.kind == JudgeKind::Pairwise) != (task.kind == TaskKind::ArenaHard) {
                return wrong(format!(
                    "judges: `{name}` is a {:?} judge, which this task cannot use",
                    judge.kind
                ));
            }
        }
        if task.kind.needs_judge(task.scorer) && task.judges.is_empty() {
            return wrong("judges: expected at least one, found none".into());
        }
        for day in [&task.from, &task.to].into_iter().flatten() {
            let shape = day.len() == 10 && day.split('-').map(str::len).eq([4, 2, 2]);
            if !shape || !day.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
                return wrong(format!("from, to: expected YYYY-MM-DD, found `{day}`"));
            }
        }
        Ok(())
    }
}

impl JudgeRecipe {
    /// A judge on this machine, as the model that it is.
    pub(crate) fn as_model(&self) -> ModelRecipe {
        ModelRecipe {
            name: self.name.clone(),
            source: self.source.clone(),
            url: None,
            scripted: None,
            model: None,
            api_key_env: None,
            parallel: self.parallel,
            dtype: Precision::default(),
            modes: no_think(),
            step: None,
            series: String::new(),
            price_in: 0.0,
            price_out: 0.0,
        }
    }
}

impl TaskKind {
    /// Whether replies are scored by judges and not by rule.
    pub fn needs_judge(self, scorer: CustomScorer) -> bool {
        match self {
            Self::Humaneval
            | Self::Livecodebench
            | Self::Aime
            | Self::Gpqa
            | Self::MmluPro
            | Self::Ability => false,
            Self::Custom => scorer == CustomScorer::Judges,
            _ => true,
        }
    }

    /// Whether scoring runs code that a model wrote.
    pub fn runs_code(self) -> bool {
        matches!(self, Self::Humaneval | Self::Livecodebench)
    }
}

fn check_judge(judge: &JudgeRecipe) -> std::result::Result<(), String> {
    let places = [
        judge.source.is_some(),
        judge.url.is_some(),
        judge.scripted.is_some(),
    ];
    let places = places.into_iter().filter(|given| *given).count();
    let wrong = |what: &str| Err(format!("judge {}: {what}", judge.name));
    match judge.kind {
        JudgeKind::BuiltIn | JudgeKind::Phrases if places > 0 => {
            wrong("it is part of the program and has neither source nor url nor scripted")
        }
        JudgeKind::BuiltIn | JudgeKind::Phrases => Ok(()),
        JudgeKind::Wildguard if places != 1 || judge.url.is_none() => {
            wrong("expected url: WildGuard judges behind a server only")
        }
        _ if places != 1 => wrong("expected one of source, url and scripted"),
        JudgeKind::Pairwise if judge.system.is_empty() => {
            wrong("system: expected instructions by category, found none")
        }
        _ => Ok(()),
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> std::result::Result<(), String> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if name.is_empty() || name.contains(['/', '\\', '"']) || name.starts_with('.') {
            return Err(format!("{what}: `{name}` cannot name a file"));
        }
        if !seen.insert(name) {
            return Err(format!("{what}: two are called `{name}`"));
        }
    }
    Ok(())
}

/// Sets `key=value`, where a part of the key may name an entry of a list of tables.
fn override_key(table: &mut toml::Table, text: &str) -> Result<()> {
    let broken = |what: String| Error::Recipe {
        origin: format!("--set {text}"),
        what,
    };
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| broken("expected key=value".into()))?;
    let parsed = format!("value = {value}").parse::<toml::Table>().ok();
    let value = parsed
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.trim().into()));
    let mut path: Vec<&str> = key.split('.').map(str::trim).collect();
    let last = path.pop().filter(|last| !last.is_empty());
    let last = last.ok_or_else(|| broken("expected a key before =".into()))?;
    let mut table = table;
    let mut parts = path.into_iter();
    while let Some(part) = parts.next() {
        let entry = table
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = match entry {
            toml::Value::Table(table) => table,
            toml::Value::Array(list) => {
                let name = parts
                    .next()
                    .ok_or_else(|| broken(format!("`{part}` is a list: name an entry")))?;
                let named =
                    |value: &toml::Value| value.get("name").and_then(toml::Value::as_str) == Some(name);
                list.iter_mut()
                    .find(|value| named(value))
                    .and_then(toml::Value::as_table_mut)
                    .ok_or_else(|| broken(format!("there is no {part} called `{name}`")))?
            }
            _ => return Err(broken(format!("`{part}` is a value, not a table"))),
        };
    }
    table.insert(last.into(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        [[model]]
        name = "m"
        source = "tiny-qwen3"
        modes = ["think", "no-think"]
        [[judge]]
        name = "g"
        kind = "built-in"
        [[task]]
        name = "xstest"
        kind = "xstest"
        judges = ["g"]
    "#;

    fn parse(text: &str, overrides: &[&str]) -> Result<Recipe> {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::parse(text, "test.toml", &overrides)
    }

    #[test]
    fn overrides_reach_into_lists_by_name() {
        let recipe = parse(
            SMALL,
            &["task.xstest.sample=50", "model.m.source=runs/x", "seed=7"],
        )
        .unwrap();
        assert_eq!(
            (
                recipe.tasks[0].sample,
                recipe.models[0].source.as_deref(),
                recipe.seed
            ),
            (Some(50), Some("runs/x"), 7)
        );
        let error = parse(SMALL, &["task.nope.sample=50"]).unwrap_err().to_string();
        assert!(error.contains("no task called `nope`"), "{error}");
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let cases = [
            ("steps = 3", "unknown field `steps`"),
            ("[[model]]\nname = \"m\"", "one of source, url and scripted"),
            ("[[model]]\nname = \"a/b\"\nsource = \"x\"", "cannot name a file"),
            (
                "[[task]]\nname = \"t\"\nkind = \"xstest\"",
                "expected at least one, found none",
            ),
            (
                "[[task]]\nname = \"t\"\nkind = \"xstest\"\njudges = [\"x\"]",
                "no judge `x`",
            ),
            (
                "[[judge]]\nname = \"j\"\nkind = \"rubric\"",
                "one of source, url and scripted",
            ),
            (
                "[[judge]]\nname = \"j\"\nkind = \"wildguard\"\nsource = \"x\"",
                "behind a server only",
            ),
            (
                "[[judge]]\nname = \"j\"\nkind = \"phrases\"\nurl = \"x\"",
                "part of the program",
            ),
            (
                "[[task]]\nname = \"t\"\nkind = \"livecodebench\"\nfrom = \"May\"",
                "YYYY-MM-DD",
            ),
            ("error_limit = 2.0", "error_limit"),
            ("sandbox.wall_s = -1.0", "sandbox.wall_s: expected seconds"),
            ("sandbox.wall_s = nan", "sandbox.wall_s: expected seconds"),
            (
                "sandbox.memory_mb = 99999999999999",
                "sandbox.memory_mb: expected from 1",
            ),
            ("sandbox.disk_mb = 0", "sandbox.disk_mb: expected from 1"),
        ];
        for (text, expected) in cases {
            let error = parse(text, &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn published_sampling_is_the_default_and_tasks_go_first() {
        let recipe = parse(&format!("[sampling.think]\ntop_k = 5\n{SMALL}"), &[]).unwrap();
        let think = recipe.sampling.of(Mode::Think, &SamplingRecipe::default());
        assert_eq!(
            (think.temperature, think.top_p, think.top_k, think.max_new_tokens),
            (0.6, 0.95, 5, 32_768)
        );
        let task = SamplingRecipe {
            temperature: Some(0.0),
            ..SamplingRecipe::default()
        };
        let plain = recipe.sampling.of(Mode::NoThink, &task);
        assert_eq!(
            (plain.temperature, plain.top_p, plain.presence_penalty),
            (0.0, 0.8, 1.5)
        );
    }
}
