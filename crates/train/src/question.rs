//! A prompt as its source has it, and as the model reads it.

use model::chat::{Message, Prompt};
use model::tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::prompts::PromptRow;
use crate::recipe::Recipe;

/// A prompt rendered in one mode.
#[derive(Debug, Clone)]
pub struct Question {
    /// As its source has it.
    pub row: PromptRow,
    /// As the model reads it.
    pub prompt: Prompt,
}

/// Renders prompts, each in every mode of the recipe.
///
/// # Errors
/// A template that fails, or a prompt longer than `rollout.max_prompt_tokens`.
pub fn render(recipe: &Recipe, tokenizer: &Tokenizer, rows: &[&PromptRow]) -> Result<Vec<Question>> {
    let mut questions = Vec::with_capacity(rows.len() * recipe.modes.len());
    for row in rows {
        for &mode in &recipe.modes {
            let mut messages = vec![Message::user(&row.prompt)];
            if !recipe.prompts.system.is_empty() {
                messages.insert(0, Message::system(&recipe.prompts.system));
            }
            let prompt = tokenizer.prompt(&messages, mode)?;
            let (found, most) = (prompt.ids.len(), recipe.rollout.max_prompt_tokens);
            if found > most {
                let what =
                    format!("expected at most rollout.max_prompt_tokens = {most} tokens, found {found}");
                return Err(Error::Prompt {
                    id: row.id.clone(),
                    what,
                });
            }
            questions.push(Question {
                row: (*row).clone(),
                prompt,
            });
        }
    }
    Ok(questions)
}
