//! The models to measure.

use std::path::PathBuf;

use model::chat::Mode;
use model::dtype::Dtype;
use serde::{Deserialize, Serialize};

/// Most requests that are under way at an endpoint.
const PARALLEL: usize = 16;

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
    pub dtype: Dtype,
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

pub(super) fn parallel() -> usize {
    PARALLEL
}

pub(super) fn no_think() -> Vec<Mode> {
    vec![Mode::NoThink]
}
