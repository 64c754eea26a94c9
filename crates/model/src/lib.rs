//! Conversations into completions: chat template, weights, forward pass, generation.
//!
//! A name becomes files ([`source`]), files become a [`tokenizer`] and a [`decoder`]; the tokenizer renders a
//! conversation into a [`Prompt`](chat::Prompt), and whatever implements [`Generate`](generate::Generate) turns prompts
//! into [`Completion`](generate::Completion)s: the [`engine`] in this process, a [`remote`] server, or a [`scripted`]
//! stand-in.
//!
//! | what | where |
//! |---|---|
//! | a name into files | [`source`], [`built_in`] |
//! | text into ids and back, conversations into prompts | [`tokenizer`], [`template`], [`chat`], [`thinking`] |
//! | weights and the forward pass | [`config`], [`weights`], [`decoder`], [`lora`], [`heads`] |
//! | prompts into completions | [`generate`], [`engine`], [`sampler`], [`constraint`], [`kv_pool`], [`remote`], [`scripted`] |
//! | rows of a Parquet file | [`parquet_file`] |
//! | a model into GGUF and Ollama's form | [`export`] |
//! | HTTP with patience, also for other crates | [`endpoint`] |
//! | models for tests, without a download | [`seeded`] |
//!
//! ```
//! use std::sync::Arc;
//!
//! use candle_core::{DType, Device};
//! use model::chat::{Message, Mode};
//! use model::config::Family;
//! use model::decoder::Decoder;
//! use model::engine::Engine;
//! use model::generate::{Generate, Sampling};
//! use model::tokenizer::Tokenizer;
//! use model::{seeded, source};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A Qwen3 of a few thousand weights that knows nothing; any folder, file or name works the same.
//! let folder = tempfile::tempdir()?;
//! seeded::write_tiny(folder.path(), Family::Qwen3)?;
//! let source = source::resolve(&folder.path().display().to_string(), &mut |_| {})?;
//!
//! let tokenizer = Arc::new(Tokenizer::load(&source)?);
//! let decoder = Decoder::load(&source, DType::F32, &Device::Cpu)?;
//! let mut engine = Engine::new(decoder, Arc::clone(&tokenizer), 1024)?;
//!
//! let prompt = tokenizer.prompt(&[Message::user("Hello!")], Mode::NoThink)?;
//! let sampling = Sampling { max_new_tokens: 8, seed: 1, ..Sampling::default() };
//! let completions = engine.generate(&[prompt], 2, &sampling)?;
//! assert_eq!(completions[0].len(), 2);
//! assert!(completions[0][0].log_probabilities.iter().all(|&log_probability| log_probability <= 0.0));
//! # Ok(())
//! # }
//! ```

mod block;
mod block_gradient;
pub mod built_in;
pub mod chat;
pub mod config;
pub mod constraint;
mod control;
pub mod dataset;
pub mod decoder;
pub mod dtype;
pub mod endpoint;
pub mod engine;
pub mod error;
pub mod export;
pub mod generate;
pub mod heads;
mod hub;
pub mod kv_pool;
mod linear;
pub mod lora;
mod memory;
mod parameters;
pub mod parquet_file;
mod python;
mod queue;
pub mod remote;
mod reply;
pub mod sampler;
pub mod scripted;
pub mod seeded;
pub mod source;
pub mod template;
pub mod text;
pub mod thinking;
pub mod tokenizer;
mod tokenizer_gguf;
mod toll;
pub mod weights;
mod wheels;

pub use error::{Error, Result};
