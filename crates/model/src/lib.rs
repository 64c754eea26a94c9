//! Conversations into completions: chat template, weights, forward pass, generation.

pub mod built_in;
pub mod chat;
pub mod config;
mod control;
pub mod decoder;
pub mod endpoint;
pub mod engine;
pub mod error;
pub mod generate;
pub mod heads;
mod hub;
pub mod kv_pool;
mod linear;
pub mod lora;
mod python;
pub mod remote;
mod reply;
pub mod sampler;
pub mod scripted;
pub mod seeded;
pub mod source;
pub mod template;
pub mod thinking;
pub mod tokenizer;
mod tokenizer_gguf;
pub mod weights;

pub use error::{Error, Result};
