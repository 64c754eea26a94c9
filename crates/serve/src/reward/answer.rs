//! What became of an item: its verdict, its reward, and both as JSON.

use std::collections::BTreeMap;

use judge::{Branch, Moderation, Reward, Scored, Verdict};
use serde_json::{Value, json};

use super::service::Settings;
use crate::Error;

/// A verdict, or why an item never got one.
pub(crate) type Answer = Result<Verdict, String>;

/// What an answer is worth.
pub(crate) fn reward_of(settings: &Settings, answer: &Answer) -> Scored<Reward> {
    match answer {
        Ok(verdict) => judge::reward(settings.kind, settings.controversial, verdict),
        Err(cause) => Scored::Unscorable(cause.clone()),
    }
}

/// An item's verdict and what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judged {
    /// What the judges said; `None` where the item never got that far.
    pub(crate) verdict: Option<Verdict>,
    /// The reward, or why there is none.
    pub(crate) reward: Scored<Reward>,
}

impl Judged {
    /// An answer with what it is worth.
    pub(crate) fn new(settings: &Settings, answer: Answer) -> Self {
        Self {
            reward: reward_of(settings, &answer),
            verdict: answer.ok(),
        }
    }

    /// The parts by name, a part that could not be scored with its `error`.
    pub(crate) fn components(&self) -> Value {
        let Some(verdict) = &self.verdict else {
            return Value::Null;
        };
        json!({
            "thinking": verdict.thinking.as_ref().map(moderation_json),
            "content": moderation_json(&verdict.content),
            "helpfulness": match &verdict.helpfulness {
                Scored::Scored(score) => json!(score),
                Scored::Unscorable(cause) => json!({ "error": cause }),
            },
        })
    }

    /// The parts as numbers, for protocols that log numbers: 1 is yes. None where there is no reward.
    pub(crate) fn numbers(&self) -> BTreeMap<&'static str, f32> {
        let flag = |yes: bool| f32::from(u8::from(yes));
        let (Scored::Scored(reward), Some(verdict)) = (&self.reward, &self.verdict) else {
            return BTreeMap::new();
        };
        let mut numbers = BTreeMap::from([("safe", flag(reward.branch != Branch::Unsafe))]);
        if let Some(refusal) = verdict.content.scored().and_then(|moderation| moderation.refusal) {
            numbers.insert("refusal", flag(refusal));
        }
        if let Scored::Scored(helpfulness) = verdict.helpfulness {
            numbers.insert("helpfulness", helpfulness);
        }
        numbers
    }
}

fn moderation_json(moderation: &Scored<Moderation>) -> Value {
    match moderation {
        Scored::Scored(moderation) => json!(moderation),
        Scored::Unscorable(cause) => json!({ "error": cause }),
    }
}

/// Every item's reward, for a protocol that has no place for an item's error.
///
/// # Errors
/// [`Error::Unscorable`] with the causes, where an item has none.
pub(crate) fn all_rewards(judged: &[Judged]) -> crate::Result<Vec<Reward>> {
    all_scored(judged.iter().map(|judged| judged.reward.clone()).collect())
}

/// As [`all_rewards`], of any scores.
pub(crate) fn all_scored<T>(scores: Vec<Scored<T>>) -> crate::Result<Vec<T>> {
    let cause = |score: &Scored<T>| score.as_result().err().map(ToOwned::to_owned);
    let causes: Vec<Option<String>> = scores.iter().map(cause).collect();
    if causes.iter().any(Option::is_some) {
        return Err(Error::Unscorable(causes));
    }
    let scored = scores.into_iter().filter_map(|score| match score {
        Scored::Scored(value) => Some(value),
        Scored::Unscorable(_) => None,
    });
    Ok(scored.collect())
}
