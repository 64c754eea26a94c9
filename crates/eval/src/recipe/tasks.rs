//! The benchmarks to run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::sampling::SamplingRecipe;

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
    /// Its files, each below the recipe's `data` or `hf://datasets/ORG/NAME[@REVISION]/FILE` on the hub; without it the
    /// places that [`crate::tasks::places`] knows.
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
    /// Arena-Hard: the file of the baseline's answers, by category; without it those of Arena-Hard v2.
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
