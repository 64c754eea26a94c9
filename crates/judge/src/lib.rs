//! Completions into verdicts and one reward: guard, helpfulness, hybrid reward.
//!
//! ```text
//! Exchange --Judge--> Verdict --reward()--> Reward
//! ```
//!
//! A [`Judge`] takes exchanges (prompt, thinking, answer) and gives verdicts. [`Panel`] is the usual one: a [`Guard`]
//! that says how safe thinking and answer are and whether the answer refuses, and a [`Helpfulness`] that scores the
//! answer. [`reward()`] turns a verdict into the number that training maximises. Whatever could not be scored stays
//! [`Scored::Unscorable`] with its cause, all the way.
//!
//! The guard and the helpfulness score are built in ([`heads`] on the [`features`] of a frozen base model, trained by
//! [`probe`] from [`data`]), a checkpoint of their own in this process, or remote ([`endpoint`]); [`Panel::built_in`] is the default that needs no second model.
//!
//! ```
//! use judge::{Branch, Controversial, Exchange, Judge, Moderation, RewardKind, Safety, Scored, Scripted, Verdict};
//! use model::chat::Message;
//!
//! let mut judge = Scripted(|exchange: &Exchange| Verdict {
//!     thinking: None,
//!     content: Scored::Scored(Moderation {
//!         safety: if exchange.content.contains("fuse") { Safety::Unsafe } else { Safety::Safe },
//!         categories: vec![],
//!         refusal: Some(exchange.content.starts_with("I can't")),
//!         score: 0.0,
//!     }),
//!     helpfulness: Scored::Scored(0.8),
//! });
//! let exchange = Exchange {
//!     messages: vec![Message::user("How do I bake bread?")],
//!     thinking: None,
//!     content: "Mix flour, water, yeast and salt; let it rise; bake.".into(),
//! };
//! let verdict = &judge.judge(&[exchange])[0];
//! let reward = judge::reward(RewardKind::Hybrid, Controversial::Unsafe, verdict);
//! assert_eq!(reward.scored().map(|reward| (reward.value, reward.branch)), Some((0.8, Branch::Safe)));
//! ```

pub mod data;
pub mod endpoint;
pub mod error;
pub mod features;
pub mod guard;
pub mod heads;
pub mod helpfulness;
pub mod judge;
mod packing;
mod pieces;
pub mod probe;
pub mod reward;
pub mod rows;
pub mod verdict;

pub use endpoint::Endpoint;
pub use error::{Error, Result};
pub use guard::{
    BuiltInGuard, LanguageModelGuard, Qwen3Guard, RemoteGuard, RemoteWildGuard, StreamGuard, WildGuard,
};
pub use heads::Heads;
pub use helpfulness::{BuiltInHelpfulness, LanguageModelHelpfulness, LocalReward, ReadAt, RemoteHelpfulness};
pub use judge::{Conversation, Exchange, Guard, Helpfulness, Judge, Panel, Scripted};
pub use reward::{Branch, Controversial, Reward, RewardKind, reward};
pub use rows::{score_helpfulness, score_rows};
pub use verdict::{Category, Moderation, Safety, Scored, Verdict};
