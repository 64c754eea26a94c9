//! Prompts and rewards into better weights: data filter, rollouts, GSPO, checkpoints.
//!
//! ```text
//! Recipe --Deck--> Question --sample--> Completion --judge--> Group --advantage--> Family --pack--> Pack --loss--> step
//! ```
//!
//! A [`recipe::Recipe`] says everything about a run. [`run::Trainer`] holds the loop, which reads as the algorithm: deal
//! prompts, sample a group of answers to each, judge them, compare them within their group, and take the batch in
//! several minibatches of the clipped objective in [`gspo`]. Everything random follows from the recipe's seed and the
//! step, and a checkpoint holds all the rest, so that a killed run resumes bit for bit.
//!
//! ```
//! use train::advantage::advantages;
//! use train::recipe::Recipe;
//!
//! let recipe = Recipe::parse("steps = 3\n[loss]\nkind = \"gspo\"", "example", &["seed=7".into()])?;
//! assert_eq!((recipe.steps, recipe.seed, recipe.loss.clip_high), (3, 7, 4e-4));
//! // Two of a group's four answers were good, one could not be scored.
//! let advantages = advantages(&[Some(0.9), Some(-10.0), None, Some(0.9)]).unwrap();
//! assert!(advantages[0].unwrap() > 0.0 && advantages[1].unwrap() < 0.0 && advantages[2].is_none());
//! # Ok::<(), train::Error>(())
//! ```

pub mod advantage;
pub mod alarm;
pub mod checkpoint;
pub mod error;
pub mod filter;
pub mod folder;
pub mod gradient;
pub mod gspo;
pub mod journal;
pub mod judges;
pub mod launch;
pub mod metrics;
pub mod optimizer;
pub mod pack;
pub mod prompts;
pub mod question;
pub mod recipe;
pub mod report;
pub mod rollout;
pub mod run;
pub mod server;
pub mod toy;

pub use error::{Error, Result};
