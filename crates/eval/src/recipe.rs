//! A recipe: one TOML file that says which models answer which tasks, and who judges the replies.
//!
//! Unknown keys are refused. `--set key=value` overrides single keys; in a list of tables a name stands for the
//! position: `--set task.xstest.sample=50`, `--set model.after.source=runs/x`.

mod judges;
mod limits;
mod models;
mod sampling;
mod tasks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::chat::Mode;
use model::dataset::DatasetFile;
use serde::{Deserialize, Serialize};

use self::judges::check_judge;
pub use self::judges::{HARMBENCH_TEXTS, JudgeKind, JudgeRecipe};
pub use self::limits::Limits;
pub use self::models::ModelRecipe;
pub use self::sampling::{SamplingByMode, SamplingRecipe};
pub use self::tasks::{CustomScorer, TaskKind, TaskRecipe};
use crate::error::{Error, Result};

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
        for file in task.data.iter().chain(task.baselines.values()) {
            let name = file.to_str().unwrap_or_default();
            if let Some(error) = name
                .strip_prefix("hf://")
                .and_then(|_| DatasetFile::parse(name).err())
            {
                return wrong(format!("data: {error}"));
            }
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
                "[[judge]]\nname = \"j\"\nkind = \"wildguard\"\nscripted = \"x\"",
                "one of source and url",
            ),
            (
                "[[judge]]\nname = \"j\"\nkind = \"phrases\"\nurl = \"x\"",
                "part of the program",
            ),
            (
                "[[task]]\nname = \"t\"\nkind = \"livecodebench\"\nfrom = \"May\"",
                "YYYY-MM-DD",
            ),
            (
                "[[task]]\nname = \"t\"\nkind = \"aime\"\ndata = [\"hf://org/name/file\"]",
                "expected hf://datasets/ORG/NAME/FILE",
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
