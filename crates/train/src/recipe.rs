//! A recipe: one TOML file that says everything about a run.
//!
//! Every key has a default, unknown keys are refused, and `--set table.key=value` overrides single ones. The recipe as
//! resolved, with all defaults written out, goes into the run folder; read again it means the same run.

mod check;
mod sections;

use std::path::{Path, PathBuf};

use model::chat::Mode;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use sections::*;

/// A training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Name of the run: its folder under `runs_dir`.
    pub run: String,
    /// Where run folders go.
    pub runs_dir: PathBuf,
    /// Everything random follows from it.
    pub seed: u64,
    /// The model to start from: a path, a built-in name, or `org/name` on the hub.
    pub model: String,
    /// The type that matrix products take their inputs in; sums, norms and weights in training stay f32.
    pub dtype: Dtype,
    /// Steps to take; each samples once and updates `update.minibatches` times.
    pub steps: usize,
    /// Seconds after which no further step begins, a step at least; the run is saved and can be resumed. 0 is no limit.
    pub time_limit_s: f64,
    /// Modes in which every prompt is answered.
    pub modes: Vec<Mode>,
    /// Where prompts come from.
    pub prompts: Prompts,
    /// How answers are sampled.
    pub rollout: Rollout,
    /// Who judges them.
    pub judge: Judges,
    /// What a verdict is worth.
    pub reward: Reward,
    /// How judges and reward are offered to other trainers by `saferl serve --reward`.
    pub service: Service,
    /// The loss.
    pub loss: LossRecipe,
    /// How the loss becomes gradients.
    pub update: Update,
    /// How gradients become weights.
    pub optimizer: OptimizerRecipe,
    /// Low-rank adapters; without this table all weights are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// When the run is saved.
    pub checkpoint: CheckpointRecipe,
    /// What makes the run suspicious.
    pub alarm: AlarmRecipe,
    /// The data filter.
    pub filter: FilterRecipe,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            run: "run".into(),
            runs_dir: "runs".into(),
            seed: 1,
            model: "smollm2-135m".into(),
            dtype: Dtype::F32,
            steps: 40,
            time_limit_s: 0.0,
            modes: vec![Mode::NoThink],
            prompts: Prompts::default(),
            rollout: Rollout::default(),
            judge: Judges::default(),
            reward: Reward::default(),
            service: Service::default(),
            loss: LossRecipe::default(),
            update: Update::default(),
            optimizer: OptimizerRecipe::default(),
            lora: None,
            checkpoint: CheckpointRecipe::default(),
            alarm: AlarmRecipe::default(),
            filter: FilterRecipe::default(),
        }
    }
}

impl Recipe {
    /// Reads a recipe file and applies overrides such as `optimizer.learning_rate=1e-5`.
    ///
    /// # Errors
    /// A file that cannot be read, TOML that does not parse, an unknown key, a value that cannot be meant.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::file(path, source))?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// Like [`Recipe::load`] from text; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self> {
        let broken = |what: &dyn ToString| Error::Recipe {
            path: origin.into(),
            what: what.to_string(),
        };
        // Parsed once as it stands, so that an error shows the line in the file.
        toml::from_str::<Self>(text).map_err(|error| broken(&error))?;
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| broken(&error))?;
        for text in overrides {
            override_key(&mut table, text)?;
        }
        let recipe: Self = table.try_into().map_err(|error: toml::de::Error| Error::Recipe {
            path: format!("{origin} with --set {}", overrides.join(" --set ")),
            what: error.to_string(),
        })?;
        recipe.check()?;
        Ok(recipe)
    }

    /// The recipe with all defaults written out.
    pub fn resolved(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::Recipe {
            path: "resolved".into(),
            what: error.to_string(),
        })
    }

    /// The first key in which this recipe would give other numbers than `other`, with both values. Keys that only say
    /// how long, how often saved, how patiently judged or where do not count: a run may be resumed with other ones.
    pub fn difference(&self, other: &Self) -> Result<Option<String>> {
        let mut same = other.clone();
        (same.runs_dir, same.steps) = (self.runs_dir.clone(), self.steps);
        same.time_limit_s = self.time_limit_s;
        (same.checkpoint, same.alarm, same.filter) =
            (self.checkpoint.clone(), self.alarm.clone(), self.filter.clone());
        (same.judge.attempts, same.judge.wait_s) = (self.judge.attempts, self.judge.wait_s);
        (same.judge.timeout_s, same.service) = (self.judge.timeout_s, self.service.clone());
        let table = |recipe: &Self| {
            toml::Table::try_from(recipe).map_err(|error| Error::Recipe {
                path: "resolved".into(),
                what: error.to_string(),
            })
        };
        Ok(first_difference("", &table(self)?, &table(&same)?))
    }

    /// The run's folder.
    pub fn folder(&self) -> PathBuf {
        self.runs_dir.join(&self.run)
    }
}

fn first_difference(prefix: &str, table: &toml::Table, other: &toml::Table) -> Option<String> {
    let keys: std::collections::BTreeSet<&String> = table.keys().chain(other.keys()).collect();
    keys.into_iter()
        .find_map(|key| match (table.get(key), other.get(key)) {
            (Some(toml::Value::Table(table)), Some(toml::Value::Table(other))) => {
                first_difference(&format!("{prefix}{key}."), table, other)
            }
            (value, other) if value == other => None,
            (value, other) => {
                let text = |value: Option<&toml::Value>| value.map_or("absent".into(), ToString::to_string);
                Some(format!("{prefix}{key} is {}, was {}", text(value), text(other)))
            }
        })
}

/// Sets `a.b=value` in a table. The value is read as TOML, and where it is none, as a plain string.
fn override_key(table: &mut toml::Table, text: &str) -> Result<()> {
    let broken = |what: &str| Error::Recipe {
        path: format!("--set {text}"),
        what: what.into(),
    };
    let (key, value) = text.split_once('=').ok_or_else(|| broken("expected key=value"))?;
    let value = value.trim();
    let parsed = format!("value = {value}").parse::<toml::Table>().ok();
    let value = parsed
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    let mut path: Vec<&str> = key.split('.').map(str::trim).collect();
    let last = path
        .pop()
        .filter(|last| !last.is_empty())
        .ok_or_else(|| broken("expected a key before ="))?;
    let mut table = table;
    for part in path {
        let entry = table
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = entry
            .as_table_mut()
            .ok_or_else(|| broken(&format!("`{part}` is a value, not a table")))?;
    }
    table.insert(last.into(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gspo::Loss;

    fn parse(text: &str, overrides: &[&str]) -> Result<Recipe> {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::parse(text, "test.toml", &overrides)
    }

    #[test]
    fn an_empty_recipe_is_the_default_and_the_resolved_form_reads_back() {
        let recipe = parse("", &[]).unwrap();
        assert_eq!(recipe, Recipe::default());
        let resolved = recipe.resolved().unwrap();
        assert!(resolved.contains("clip_high = 0.0004"), "{resolved}");
        assert_eq!(parse(&resolved, &[]).unwrap(), recipe);
        let recipe = parse(
            "modes = [\"think\", \"no-think\"]\n[lora]\nrank = 4\n[prompts.mix]\nharmful = 0.5\n",
            &[],
        );
        let recipe = recipe.unwrap();
        assert_eq!(parse(&recipe.resolved().unwrap(), &[]).unwrap(), recipe);
    }

    #[test]
    fn the_recipes_that_ship_are_good() {
        // The quickstart takes each batch whole, and says so.
        for (name, text, warnings) in [
            ("smoke", include_str!("../../../recipes/smoke.toml"), 0),
            ("quickstart", include_str!("../../../recipes/quickstart.toml"), 1),
            (
                "quickstart-qwen",
                include_str!("../../../recipes/quickstart-qwen.toml"),
                1,
            ),
            (
                "qwen3-4b-saferl",
                include_str!("../../../recipes/qwen3-4b-saferl.toml"),
                0,
            ),
        ] {
            let recipe = Recipe::parse(text, name, &[]).unwrap();
            assert_eq!((recipe.run.as_str(), recipe.warnings().len()), (name, warnings));
        }
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let error = parse("steps = 3\n[loss]\nclip = 0.2\n", &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("test.toml") && error.contains("line 3") && error.contains("clip"),
            "{error}"
        );
        assert!(
            parse("", &["loss.clip=0.2"])
                .unwrap_err()
                .to_string()
                .contains("--set loss.clip=0.2")
        );
    }

    #[test]
    fn overrides_reach_nested_keys_and_take_plain_words() {
        let overrides = [
            "run=trial-2",
            "optimizer.learning_rate=1e-5",
            "lora.rank=4",
            "modes=[\"think\"]",
            "loss.kind=grpo",
        ];
        let recipe = parse("steps = 3\n[optimizer]\nlearning_rate = 1.0\n", &overrides).unwrap();
        assert_eq!((recipe.run.as_str(), recipe.steps), ("trial-2", 3));
        assert_eq!(
            (recipe.optimizer.learning_rate, recipe.lora.unwrap().rank),
            (1e-5, 4)
        );
        assert_eq!((recipe.modes, recipe.loss.kind), (vec![Mode::Think], Loss::Grpo));
        assert!(parse("", &["steps"]).is_err());
        assert!(parse("", &["=3"]).is_err());
        assert!(
            parse("", &["steps.x=3"]).is_ok_and(|_| false) || parse("steps = 1", &["steps.x=3"]).is_err()
        );
    }

    #[test]
    fn impossible_values_are_named() {
        for (text, key) in [
            ("steps = 0", "steps"),
            ("run = \"a/b\"", "run"),
            ("run = \"..\"", "run"),
            ("modes = []", "modes"),
            ("modes = [\"think\", \"think\"]", "modes"),
            ("[rollout]\ncompletions = 1", "rollout.completions"),
            ("[rollout]\ntemperature = 0.0", "rollout.temperature"),
            ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate"),
            ("[judge]\nunscorable_limit = 2.0", "judge.unscorable_limit"),
            ("[prompts.mix]\nharmful = 0.0", "prompts.mix"),
        ] {
            let error = parse(text, &[]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{text}: {error}");
        }
    }

    #[test]
    fn a_difference_that_changes_numbers_is_named() {
        let recipe = Recipe::default();
        let longer = parse("steps = 99\n[checkpoint]\nevery = 1\n[judge]\nwait_s = 1.0", &[]).unwrap();
        assert_eq!(longer.difference(&recipe).unwrap(), None);
        let other = parse("[loss]\nkl = 0.5", &[]).unwrap();
        assert_eq!(
            other.difference(&recipe).unwrap().unwrap(),
            "loss.kl is 0.5, was 0.0"
        );
        let adapted = parse("[lora]", &[]).unwrap();
        assert!(
            adapted
                .difference(&recipe)
                .unwrap()
                .unwrap()
                .starts_with("lora is")
        );
    }

    #[test]
    fn one_minibatch_and_a_token_range_are_warned_of() {
        assert!(
            parse("[rollout]\nprompts = 8", &[])
                .unwrap()
                .warnings()
                .is_empty()
        );
        let recipe = parse(
            "[update]\nminibatches = 1\n[loss]\nclip_low = 0.2\nclip_high = 0.2",
            &[],
        )
        .unwrap();
        let warnings = recipe.warnings();
        assert!(warnings.len() == 2 && warnings[0].contains("minibatches") && warnings[1].contains("0.2"));
    }
}
