//! A model's name into the files that it stands for.

use std::path::PathBuf;

/// Where a model's weights lie, and in which format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsFormat {
    /// One or many safetensors files that together hold the checkpoint.
    Safetensors(Vec<PathBuf>),
    /// One GGUF file; it holds the configuration and the tokenizer too.
    Gguf(PathBuf),
    /// No weights: a folder that only renders and tokenizes.
    None,
}

/// The files of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The weights.
    pub weights: WeightsFormat,
    /// The folder that holds `config.json` and the tokenizer's files; a bare GGUF file has none.
    pub folder: Option<PathBuf>,
    /// The name as the user gave it.
    pub name: String,
}
