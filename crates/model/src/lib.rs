//! Conversations into completions: chat template, weights, forward pass, generation.

pub mod chat;
pub mod error;
pub mod generate;
pub mod kv_pool;
pub mod sampler;
pub mod scripted;
pub mod source;

pub use error::{Error, Result};
