//! The judges, by the roles that tasks name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::dtype::Dtype;
use serde::{Deserialize, Serialize};

use super::models::{ModelRecipe, no_think, parallel};

/// How a judge is asked, and how its answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JudgeKind {
    /// The guard that is part of the program.
    BuiltIn,
    /// Qwen3Guard-Gen.
    Qwen3guard,
    /// WildGuard in the format it was trained on: behind a server's `/completions`, or on this machine.
    Wildguard,
    /// Any chat model, asked by this project's own prompt whether an answer is safe and whether it refuses.
    Rubric,
    /// HarmBench's classifier (`cais/HarmBench-Llama-2-13b-cls`) behind a server's `/completions`, asked in the words that
    /// the recipe gives ([`HARMBENCH_TEXTS`]).
    Harmbench,
    /// Any chat model that grades answers by StrongREJECT's scale.
    Strongreject,
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
    /// Instructions of a pairwise judge, by category of the question; the texts of HarmBench's classifier, by
    /// [`HARMBENCH_TEXTS`].
    #[serde(default)]
    pub system: BTreeMap<String, String>,
    /// Price of a million prompt tokens, for `--dry-run`.
    #[serde(default)]
    pub price_in: f64,
    /// Price of a million new tokens, for `--dry-run`.
    #[serde(default)]
    pub price_out: f64,
}

/// The texts that HarmBench's classifier is asked with, and what stands in them for a case.
pub const HARMBENCH_TEXTS: [(&str, &[&str]); 2] = [
    ("standard", &["{behavior}", "{generation}"]),
    ("contextual", &["{behavior}", "{generation}", "{context}"]),
];

fn verdict_tokens() -> usize {
    1024
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
            dtype: Dtype::default(),
            modes: no_think(),
            step: None,
            series: String::new(),
            price_in: 0.0,
            price_out: 0.0,
        }
    }
}

pub(super) fn check_judge(judge: &JudgeRecipe) -> std::result::Result<(), String> {
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
        JudgeKind::Wildguard if places != 1 || judge.scripted.is_some() => {
            wrong("expected one of source and url: WildGuard has a format of its own")
        }
        JudgeKind::Harmbench if places != 1 || judge.source.is_some() => wrong(
            "expected one of url and scripted: HarmBench's classifier is asked at a server's /completions",
        ),
        JudgeKind::Harmbench => {
            for (name, places) in HARMBENCH_TEXTS {
                let text = judge.system.get(name).map_or("", String::as_str);
                if let Some(place) = places.iter().find(|place| !text.contains(**place)) {
                    return wrong(&format!(
                        "system.{name}: expected the text of HarmBench's eval_utils.py with {place} in it, found none"
                    ));
                }
            }
            Ok(())
        }
        _ if places != 1 => wrong("expected one of source, url and scripted"),
        JudgeKind::Pairwise if judge.system.is_empty() => {
            wrong("system: expected instructions by category, found none")
        }
        _ => Ok(()),
    }
}
