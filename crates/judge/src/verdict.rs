//! What a judge says about a completion.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How safe a text is, in the three levels of Qwen3Guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Safety {
    /// Safe in every common context.
    Safe,
    /// Depends on context or on the policy in force.
    Controversial,
    /// Harmful in most contexts.
    Unsafe,
}

impl Safety {
    /// The three levels, mildest first.
    pub const ALL: [Self; 3] = [Self::Safe, Self::Controversial, Self::Unsafe];

    /// The word Qwen3Guard uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safe => "Safe",
            Self::Controversial => "Controversial",
            Self::Unsafe => "Unsafe",
        }
    }
}

impl fmt::Display for Safety {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The kinds of harm that Qwen3Guard tells apart; [`Category::Jailbreak`] is of prompts only.
///
/// Serialised by the names that Qwen3Guard prints; the short snake-case names are read as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Category {
    /// Violence and weapons.
    #[serde(rename = "Violent", alias = "violent")]
    Violent,
    /// Crime without violence: fraud, theft, drugs, intrusion into computers.
    #[serde(rename = "Non-violent Illegal Acts", alias = "non_violent_illegal")]
    NonViolentIllegal,
    /// Sexual content or acts.
    #[serde(rename = "Sexual Content or Sexual Acts", alias = "sexual")]
    Sexual,
    /// Personal information disclosed without leave.
    #[serde(rename = "PII", alias = "pii")]
    Pii,
    /// Suicide and self-harm.
    #[serde(rename = "Suicide & Self-Harm", alias = "self_harm")]
    SelfHarm,
    /// Bias, hate, harassment, deception.
    #[serde(rename = "Unethical Acts", alias = "unethical")]
    Unethical,
    /// False statements about governments, events and persons of politics.
    #[serde(rename = "Politically Sensitive Topics", alias = "political")]
    Political,
    /// Copies of protected works.
    #[serde(rename = "Copyright Violation", alias = "copyright")]
    Copyright,
    /// An attempt to get round the model's instructions.
    #[serde(rename = "Jailbreak", alias = "jailbreak")]
    Jailbreak,
}

impl Category {
    /// All nine; the first eight apply to replies as well as to prompts. Class indices follow this order.
    pub const ALL: [Self; 9] = [
        Self::Violent,
        Self::NonViolentIllegal,
        Self::Sexual,
        Self::Pii,
        Self::SelfHarm,
        Self::Unethical,
        Self::Political,
        Self::Copyright,
        Self::Jailbreak,
    ];

    /// The name Qwen3Guard prints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Violent => "Violent",
            Self::NonViolentIllegal => "Non-violent Illegal Acts",
            Self::Sexual => "Sexual Content or Sexual Acts",
            Self::Pii => "PII",
            Self::SelfHarm => "Suicide & Self-Harm",
            Self::Unethical => "Unethical Acts",
            Self::Political => "Politically Sensitive Topics",
            Self::Copyright => "Copyright Violation",
            Self::Jailbreak => "Jailbreak",
        }
    }

    /// The category of that printed name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|category| category.name() == name)
    }
}

impl fmt::Display for Category {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A guard's word on a prompt, or on a reply to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moderation {
    /// The level.
    pub safety: Safety,
    /// The kinds of harm; empty for a safe text.
    pub categories: Vec<Category>,
    /// Whether the reply refuses; `None` for a prompt.
    pub refusal: Option<bool>,
    /// Probability of harm, from 0 to 1. A guard that only prints words gives 0, 0.5 and 1.
    pub score: f32,
}

/// A component that was scored, or the reason why it could not be.
///
/// An unscorable component never becomes a number: it takes the completion out of its group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scored<T> {
    /// The score.
    Scored(T),
    /// Why there is none.
    Unscorable(String),
}

impl<T> Scored<T> {
    /// The score, if there is one.
    pub fn scored(&self) -> Option<&T> {
        match self {
            Self::Scored(value) => Some(value),
            Self::Unscorable(_) => None,
        }
    }

    /// The score, or the cause as an error.
    pub fn as_result(&self) -> Result<&T, &str> {
        match self {
            Self::Scored(value) => Ok(value),
            Self::Unscorable(cause) => Err(cause),
        }
    }
}

impl<T, E: Into<String>> From<Result<T, E>> for Scored<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Self::Scored(value),
            Err(cause) => Self::Unscorable(cause.into()),
        }
    }
}

/// Everything the judge says about one completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Of the thinking, judged as a reply of its own; `None` where the model did not think.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Scored<Moderation>>,
    /// Of the answer.
    pub content: Scored<Moderation>,
    /// How helpful the answer is to the prompt; larger is better, about unit variance for the built-in head.
    pub helpfulness: Scored<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn category_names_go_both_ways_and_short_names_are_read() {
        for category in Category::ALL {
            assert_eq!(Category::from_name(category.name()), Some(category));
            let json = serde_json::to_string(&category).unwrap();
            assert_eq!(json, format!("\"{}\"", category.name()));
        }
        assert_eq!(
            serde_json::from_str::<Category>("\"self_harm\"").unwrap(),
            Category::SelfHarm
        );
        assert_eq!(Category::from_name("violent"), None);
    }

    #[test]
    fn a_verdict_survives_json() {
        let verdict = Verdict {
            thinking: None,
            content: Scored::Unscorable("timeout".into()),
            helpfulness: Scored::Scored(0.5),
        };
        let json = serde_json::to_string(&verdict).unwrap();
        assert_eq!(
            json,
            r#"{"content":{"unscorable":"timeout"},"helpfulness":{"scored":0.5}}"#
        );
        assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
    }
}
