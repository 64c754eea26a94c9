//! A guard beside the model: the prompt and the reply are judged, and the verdict travels in the reply.

use std::sync::{Arc, Mutex, PoisonError};

use judge::{Controversial, Conversation, Guard, Moderation, Safety, Scored};
use model::chat::Message;
use serde_json::{Value, json};

/// What happens to what is not safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is delivered with its verdict.
    Annotate,
    /// It is held back; the reply ends with `finish_reason: "content_filter"`. What cannot be judged is held back too.
    Block,
}

/// A guard, and what is done about its verdicts.
#[derive(Clone)]
pub struct Guardrail {
    guard: Arc<Mutex<Box<dyn Guard>>>,
    /// The guard's name.
    pub name: String,
    /// What happens to what is not safe.
    pub action: Action,
    /// Whether controversial counts as unsafe.
    pub controversial: Controversial,
}

impl Guardrail {
    /// A guardrail of `guard`.
    pub fn new(guard: Box<dyn Guard>, name: &str, action: Action, controversial: Controversial) -> Self {
        Self {
            guard: Arc::new(Mutex::new(guard)),
            name: name.to_owned(),
            action,
            controversial,
        }
    }

    /// Judges conversations, on a thread where that may take its time.
    pub async fn moderate(&self, conversations: Vec<Conversation>) -> Vec<Scored<Moderation>> {
        let count = conversations.len();
        let guard = Arc::clone(&self.guard);
        let judged = tokio::task::spawn_blocking(move || {
            guard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .moderate(&conversations)
        })
        .await;
        match judged {
            Ok(verdicts) if verdicts.len() == count => verdicts,
            Ok(verdicts) => {
                let cause = format!("guard: expected {count} verdicts, found {}", verdicts.len());
                vec![Scored::Unscorable(cause); count]
            }
            Err(error) => vec![Scored::Unscorable(format!("guard: {error}")); count],
        }
    }

    /// Judges a prompt alone.
    pub async fn judge_prompt(&self, messages: &[Message]) -> Scored<Moderation> {
        let conversation = Conversation {
            messages: messages.to_vec(),
            reply: None,
        };
        self.moderate(vec![conversation]).await.remove(0)
    }

    /// Judges a reply: its content, and its thinking as a reply of its own.
    pub async fn judge_reply(&self, messages: &[Message], thinking: &str, content: &str) -> Judged {
        let reply = |text: &str| Conversation {
            messages: messages.to_vec(),
            reply: Some(text.to_owned()),
        };
        let thoughts = !thinking.trim().is_empty();
        let mut conversations = vec![reply(content)];
        conversations.extend(thoughts.then(|| reply(thinking)));
        let mut verdicts = self.moderate(conversations).await;
        Judged {
            thinking: thoughts.then(|| verdicts.remove(1)),
            content: verdicts.remove(0),
        }
    }

    /// Whether a text with this verdict is held back.
    pub fn blocks(&self, verdict: &Scored<Moderation>) -> bool {
        self.action == Action::Block
            && verdict
                .scored()
                .is_none_or(|moderation| self.is_unsafe(moderation))
    }

    /// Whether a verdict counts as unsafe.
    pub fn is_unsafe(&self, moderation: &Moderation) -> bool {
        match moderation.safety {
            Safety::Safe => false,
            Safety::Controversial => self.controversial == Controversial::Unsafe,
            Safety::Unsafe => true,
        }
    }
}

/// Verdicts on a reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// On the thinking, where there is any.
    pub thinking: Option<Scored<Moderation>>,
    /// On the answer.
    pub content: Scored<Moderation>,
}

/// A verdict as it stands in a reply: the moderation itself, or `{"unscorable": cause}`.
pub fn verdict(scored: &Scored<Moderation>) -> Value {
    match scored {
        Scored::Scored(moderation) => json!(moderation),
        Scored::Unscorable(cause) => json!({"unscorable": cause}),
    }
}
