//! The seam between prompts and completions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chat::Prompt;
use crate::{Error, Result};

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
    /// Subtracted from the logit of a token once for each time that it was generated.
    pub frequency_penalty: f64,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or reply; 1 switches it off.
    pub repetition_penalty: f64,
    /// Added to the logits of these tokens.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
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
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: BTreeMap::new(),
            stop: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Refuses settings that mean nothing, naming the setting, what was expected and what was found.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, expected: &str, found: &dyn std::fmt::Display| {
            Err(Error::Request(format!(
                "sampling: {key}: expected {expected}, found {found}"
            )))
        };
        if self.max_new_tokens == 0 {
            return refuse("max_new_tokens", "at least 1", &0);
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", "0 (greedy) or more", &self.temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", "above 0 and at most 1", &self.top_p);
        }
        if !(self.min_p >= 0.0 && self.min_p <= 1.0) {
            return refuse("min_p", "from 0 to 1", &self.min_p);
        }
        if !self.presence_penalty.is_finite() {
            return refuse("presence_penalty", "a finite number", &self.presence_penalty);
        }
        if !self.frequency_penalty.is_finite() {
            return refuse("frequency_penalty", "a finite number", &self.frequency_penalty);
        }
        if let Some(bias) = self.logit_bias.values().find(|bias| !bias.is_finite()) {
            return refuse("logit_bias", "finite numbers", bias);
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse("repetition_penalty", "above 0", &self.repetition_penalty);
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("stop", "texts of at least one character", &"an empty text");
        }
        Ok(())
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

impl Completion {
    /// A completion of which only the text is known: what stands before the last `</think>` is thinking.
    pub fn from_text(text: &str, finish_reason: FinishReason) -> Self {
        let (thinking, content) = match text.rsplit_once("</think>") {
            Some((thinking, content)) => {
                let thinking = thinking.trim_start().strip_prefix("<think>").unwrap_or(thinking);
                (
                    Some(thinking.trim_matches('\n').to_owned()),
                    content.trim_start_matches('\n'),
                )
            }
            None => (None, text),
        };
        Self {
            ids: Vec::new(),
            log_probabilities: Vec::new(),
            thinking,
            content: content.to_owned(),
            finish_reason,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meaningless_settings_are_named() {
        let base = Sampling::default();
        assert!(base.check().is_ok());
        for (key, sampling) in [
            (
                "max_new_tokens",
                Sampling {
                    max_new_tokens: 0,
                    ..base.clone()
                },
            ),
            (
                "temperature",
                Sampling {
                    temperature: -1.0,
                    ..base.clone()
                },
            ),
            (
                "temperature",
                Sampling {
                    temperature: f64::NAN,
                    ..base.clone()
                },
            ),
            (
                "top_p",
                Sampling {
                    top_p: 0.0,
                    ..base.clone()
                },
            ),
            (
                "top_p",
                Sampling {
                    top_p: 1.5,
                    ..base.clone()
                },
            ),
            (
                "min_p",
                Sampling {
                    min_p: -0.1,
                    ..base.clone()
                },
            ),
            (
                "presence_penalty",
                Sampling {
                    presence_penalty: f64::INFINITY,
                    ..base.clone()
                },
            ),
            (
                "repetition_penalty",
                Sampling {
                    repetition_penalty: 0.0,
                    ..base.clone()
                },
            ),
            (
                "frequency_penalty",
                Sampling {
                    frequency_penalty: f64::NAN,
                    ..base.clone()
                },
            ),
            (
                "logit_bias",
                Sampling {
                    logit_bias: BTreeMap::from([(3, f32::INFINITY)]),
                    ..base.clone()
                },
            ),
            (
                "stop",
                Sampling {
                    stop: vec![String::new()],
                    ..base
                },
            ),
        ] {
            let error = sampling.check().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn text_splits_at_the_last_end_of_thinking() {
        let split = |text| {
            let completion = Completion::from_text(text, FinishReason::Stop);
            (completion.thinking, completion.content)
        };
        assert_eq!(split("plain"), (None, "plain".into()));
        assert_eq!(
            split("<think>\na</think>b</think>\n\nc"),
            (Some("a</think>b".into()), "c".into())
        );
        assert_eq!(
            split("opened by the template\n</think>\n\nc"),
            (Some("opened by the template".into()), "c".into())
        );
    }
}
