//! How tokens are drawn, as the API says it.

use std::collections::BTreeMap;

use model::generate::Sampling;
use serde::Deserialize;

use crate::body::Fields;
use crate::error::{Error, Result};
use crate::openai::Model;

/// Most completions of a prompt.
const MOST_COMPLETIONS: usize = 64;
/// Most likeliest tokens that are told.
pub(crate) const MOST_LIKELIEST: usize = 20;

/// One stop text or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// What chat and plain completions have in common.
pub(crate) struct Drawing {
    pub(crate) sampling: Sampling,
    pub(crate) count: usize,
    pub(crate) stop: Vec<String>,
}

impl Drawing {
    /// Takes the sampling fields. What is not said follows what Qwen3 is published with: temperature 0.6, top-p 0.95 and
    /// top-k 20 where the reply thinks; 0.7, 0.8 and 20 where it does not. Without a seed, one is drawn.
    ///
    /// # Errors
    /// Values out of range, named.
    pub(crate) fn take(fields: &mut Fields, model: &Model, thinks: bool) -> Result<Self> {
        let (temperature, top_p) = if thinks { (0.6, 0.95) } else { (0.7, 0.8) };
        let count = fields.take("n")?.unwrap_or(1);
        if !(1..=MOST_COMPLETIONS).contains(&count) {
            let what = format!("expected 1 to {MOST_COMPLETIONS}, found {count}");
            return Err(Error::field("n", what));
        }
        let stop = match fields.take("stop")? {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text],
            Some(Stop::Several(texts)) => texts,
        };
        if stop.iter().any(String::is_empty) {
            return Err(Error::field("stop", "expected texts of at least one character"));
        }
        let top_k = fields.take::<i64>("top_k")?.unwrap_or(20);
        let sampling = Sampling {
            temperature: fields.take("temperature")?.unwrap_or(temperature),
            top_p: fields.take("top_p")?.unwrap_or(top_p),
            // vLLM switches it off by -1.
            top_k: usize::try_from(top_k).unwrap_or(0),
            min_p: fields.take("min_p")?.unwrap_or(0.0),
            presence_penalty: fields.take("presence_penalty")?.unwrap_or(0.0),
            frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(0.0),
            repetition_penalty: fields.take("repetition_penalty")?.unwrap_or(1.0),
            logit_bias: take_bias(fields, model.vocabulary)?,
            seed: match fields.take::<i64>("seed")? {
                Some(seed) => seed as u64,
                None => rand::random(),
            },
            ..Sampling::default()
        };
        sampling.check().map_err(|error| named(&error))?;
        Ok(Self {
            sampling,
            count,
            stop,
        })
    }

    /// Sets the limit on new tokens: what was asked for, else all that the context leaves.
    ///
    /// # Errors
    /// A limit of none, or a prompt that leaves no room.
    pub(crate) fn limit(
        &mut self,
        field: &str,
        limit: Option<usize>,
        prompt: usize,
        model: &Model,
    ) -> Result<()> {
        let room = model.context.saturating_sub(prompt);
        if room == 0 {
            let what = format!(
                "the prompt has {prompt} tokens, and with its reply at most {} are possible here",
                model.context
            );
            return Err(Error::Request(what));
        }
        if limit == Some(0) {
            return Err(Error::field(field, "expected at least 1, found 0"));
        }
        self.sampling.max_new_tokens = limit.unwrap_or(room).min(room);
        Ok(())
    }
}

fn take_bias(fields: &mut Fields, vocabulary: usize) -> Result<BTreeMap<u32, f32>> {
    let bias = fields
        .take::<BTreeMap<String, f32>>("logit_bias")?
        .unwrap_or_default();
    let read = |(token, bias): (String, f32)| {
        let id = token.parse::<u32>().ok().filter(|&id| (id as usize) < vocabulary);
        match id {
            Some(id) if (-100.0..=100.0).contains(&bias) => Ok((id, bias)),
            Some(_) => Err(Error::field(
                format!("logit_bias.{token}"),
                format!("expected -100 to 100, found {bias}"),
            )),
            None => Err(Error::field(
                "logit_bias",
                format!("expected token ids below {vocabulary}, found `{token}`"),
            )),
        }
    };
    bias.into_iter().map(read).collect()
}

/// The sampler's complaint, `sampling: KEY: ...`, about the field of that name.
fn named(error: &model::Error) -> Error {
    let text = error.to_string();
    let text = text.strip_prefix("sampling: ").unwrap_or(&text);
    match text.split_once(": ") {
        Some((field, what)) => Error::field(field, what),
        None => Error::Request(text.to_owned()),
    }
}
