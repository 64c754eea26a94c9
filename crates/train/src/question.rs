//! A prompt as its source has it, and as the model reads it.

use model::chat::Prompt;


use crate::prompts::PromptRow;

/// A prompt rendered in one mode.
#[derive(Debug, Clone)]
pub struct Question {
    /// As its source has it.
    pub row: PromptRow,
    /// As the model reads it.
    pub prompt: Prompt,
}

