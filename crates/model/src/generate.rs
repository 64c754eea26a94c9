//! The seam between prompts and completions.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::chat::Prompt;

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Most new tokens a completion may have.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 means greedy.
    pub temperature: f64,
    /// Smallest set of tokens whose probability reaches this; 1 switches it off.
    pub top_p: f64,
    /// The k likeliest tokens; 0 switches it off.
    pub top_k: usize,
    /// Tokens at least this share of the likeliest token's probability; 0 switches it off.
    pub min_p: f64,
    /// Subtracted from the logit of every token already generated.
    pub presence_penalty: f64,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or reply; 1 switches it off.
    pub repetition_penalty: f64,
    /// Texts that end a completion; they are not part of it.
    pub stop: Vec<String>,
    /// Seed; the same seed gives the same tokens whatever else is in the batch.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            seed: 0,
        }
    }
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token or a stop text.
    Stop,
    /// The limit on new tokens.
    Length,
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Token ids, the end token included where there was one.
    pub ids: Vec<u32>,
    /// Log-probability of each id under the sampler's model at temperature one, before penalties and filters.
    pub log_probabilities: Vec<f32>,
    /// Thinking, where the model thought.
    pub thinking: Option<String>,
    /// The answer.
    pub content: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Prompts in, completions out: the local engine or any OpenAI-compatible server.
pub trait Generate {
    /// `count` completions for each prompt, in the order of the prompts.
    fn generate(
        &mut self,
        prompts: &[Prompt],
        count: usize,
        sampling: &Sampling,
    ) -> Result<Vec<Vec<Completion>>>;
}
