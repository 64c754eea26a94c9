//! Conversations into completions: chat template, weights, forward pass, generation.

mod linear;

pub mod chat;
pub mod config;
pub mod decoder;
pub mod error;
pub mod generate;
pub mod kv_pool;
pub mod lora;
pub mod sampler;
pub mod scripted;
pub mod source;
pub mod weights;

pub use error::{Error, Result};
