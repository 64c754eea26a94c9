//! A model that says what it is told: for tests, and for trying a recipe without weights.

use crate::Result;
use crate::chat::Prompt;
use crate::generate::{Completion, FinishReason, Generate, Sampling};

/// Answers every prompt from a closure.
///
/// ```
/// use model::chat::{Mode, Message, Prompt};
/// use model::generate::{Generate, Sampling};
/// use model::scripted::Scripted;
///
/// # fn main() -> model::Result<()> {
/// let mut model = Scripted::texts(|prompt, index| format!("{} ({index})", prompt.messages[0].content));
/// let prompt = Prompt { ids: vec![], messages: vec![Message::user("Hello")], mode: Mode::NoThink };
/// let answers = model.generate(&[prompt], 2, &Sampling::default())?;
/// assert_eq!(answers[0][1].content, "Hello (1)");
/// # Ok(())
/// # }
/// ```
pub struct Scripted {
    answer: Box<Answer>,
}

type Answer = dyn FnMut(&Prompt, usize, &Sampling) -> Result<Completion> + Send;

impl std::fmt::Debug for Scripted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Scripted")
    }
}

impl Scripted {
    /// Whole completions, or errors, from the prompt, the completion's index and the sampling.
    pub fn new(answer: impl FnMut(&Prompt, usize, &Sampling) -> Result<Completion> + Send + 'static) -> Self {
        Self {
            answer: Box::new(answer),
        }
    }

    /// Texts from the prompt and the completion's index; text before `</think>` is thinking. There are no token ids.
    pub fn texts(mut text: impl FnMut(&Prompt, usize) -> String + Send + 'static) -> Self {
        Self::new(move |prompt, index, _| Ok(Completion::from_text(&text(prompt, index), FinishReason::Stop)))
    }
}

impl Generate for Scripted {
    fn generate(
        &mut self,
        prompts: &[Prompt],
        count: usize,
        sampling: &Sampling,
    ) -> Result<Vec<Vec<Completion>>> {
        prompts
            .iter()
            .map(|prompt| {
                (0..count)
                    .map(|index| (self.answer)(prompt, index, sampling))
                    .collect()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::chat::{Message, Mode};

    fn prompt(text: &str) -> Prompt {
        Prompt {
            ids: vec![1],
            messages: vec![Message::user(text)],
            mode: Mode::Think,
        }
    }

    #[test]
    fn answers_come_in_order_and_thinking_apart() {
        let mut model = Scripted::texts(|prompt, index| {
            format!(
                "<think>\nhm {index}\n</think>\n\nre {}",
                prompt.messages[0].content
            )
        });
        let answers = model
            .generate(&[prompt("a"), prompt("b")], 2, &Sampling::default())
            .unwrap();
        assert_eq!(answers[1][0].content, "re b");
        assert_eq!(answers[1][1].thinking.as_deref(), Some("hm 1"));
    }

    #[test]
    fn errors_pass_through() {
        let mut model = Scripted::new(|_, index, _| {
            if index == 1 {
                Err(Error::Request("no".into()))
            } else {
                Ok(Completion::from_text("", FinishReason::Stop))
            }
        });
        assert!(model.generate(&[prompt("a")], 1, &Sampling::default()).is_ok());
        assert!(model.generate(&[prompt("a")], 2, &Sampling::default()).is_err());
    }
}
