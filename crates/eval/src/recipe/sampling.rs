//! How tokens are drawn in each mode: the published settings, and a recipe's changes to them.

use model::chat::Mode;
use model::generate::Sampling;
use serde::{Deserialize, Serialize};

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
