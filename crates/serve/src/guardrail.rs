//! A guard beside the model: the prompt and the reply are judged, and the verdict travels in the reply.
//!
//! One thread owns the guard and answers one question after another, in the order in which they came, so that neither
//! an engine nor a request that asks nothing waits for it. Whoever asks waits for a set time at most; a question whose
//! asker is gone is skipped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use judge::{Controversial, Conversation, Guard, Moderation, Safety, Scored};
use model::chat::Message;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// Longest wait for a verdict, the time in the queue included.
const PATIENCE: Duration = Duration::from_mins(2);

/// What happens to what is not safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is delivered with its verdict.
    Annotate,
    /// It is held back; the reply ends with `finish_reason: "content_filter"`. What cannot be judged is held back too.
    Block,
    /// The reply goes on from its last safe sentence, with a nudge that nobody sees; where that does not help, as
    /// [`Action::Block`]. An unsafe prompt is answered.
    Rewind,
}

type Question = Box<dyn FnOnce(&mut dyn Guard) + Send>;

/// Verdicts to come, or why the guard gives none.
pub(crate) type Asked =
    Pin<Box<dyn Future<Output = std::result::Result<Vec<Scored<Moderation>>, String>> + Send>>;

/// A guard, and what is done about its verdicts.
#[derive(Clone)]
pub struct Guardrail {
    questions: Sender<Question>,
    /// The guard's name.
    pub name: String,
    /// What happens to what is not safe.
    pub action: Action,
    /// Whether controversial counts as unsafe.
    pub controversial: Controversial,
    /// Whether the guard is asked at every token of a reply, and not at every sentence.
    pub(crate) reads_tokens: bool,
    pub(crate) patience: Duration,
}

impl Guardrail {
    /// A guardrail of `guard`, whose thread ends when the last clone is gone.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(
        guard: Box<dyn Guard>,
        name: &str,
        action: Action,
        controversial: Controversial,
    ) -> Result<Self> {
        let (questions, inbox) = channel();
        let reads_tokens = guard.reads_tokens();
        std::thread::Builder::new()
            .name(format!("guard {name}"))
            .spawn(move || answer(guard, &inbox))
            .map_err(Error::Server)?;
        Ok(Self {
            questions,
            name: name.to_owned(),
            action,
            controversial,
            reads_tokens,
            patience: PATIENCE,
        })
    }

    /// Asks for `count` verdicts.
    fn ask(
        &self,
        count: usize,
        judge: impl FnOnce(&mut dyn Guard) -> Vec<Scored<Moderation>> + Send + 'static,
    ) -> Asked {
        let (answer, verdicts) = oneshot::channel();
        let question = move |guard: &mut dyn Guard| {
            if !answer.is_closed() {
                // Whoever asked may have gone meanwhile.
                let _ = answer.send(judge(guard));
            }
        };
        // Where the thread is gone, so is the question, and with it the answer.
        let _ = self.questions.send(Box::new(question));
        let patience = self.patience;
        Box::pin(async move {
            match tokio::time::timeout(patience, verdicts).await {
                Ok(Ok(verdicts)) if verdicts.len() == count => Ok(verdicts),
                Ok(Ok(verdicts)) => Err(format!(
                    "guard: expected {count} verdicts, found {}",
                    verdicts.len()
                )),
                Ok(Err(_)) => Err("guard: it failed over this text; the log says how".into()),
                Err(_) => Err(format!("guard: no verdict within {} s", patience.as_secs_f32())),
            }
        })
    }

    /// Judges conversations.
    pub async fn moderate(&self, conversations: Vec<Conversation>) -> Vec<Scored<Moderation>> {
        let count = conversations.len();
        self.ask(count, move |guard| guard.moderate(&conversations))
            .await
            .unwrap_or_else(|cause| vec![Scored::Unscorable(cause); count])
    }

    /// Judges a prompt alone.
    pub async fn judge_prompt(&self, messages: &[Message]) -> Scored<Moderation> {
        let conversation = Conversation {
            messages: messages.to_vec(),
            reply: None,
        };
        self.moderate(vec![conversation]).await.remove(0)
    }

    /// Judges a reply under way, at the end of each of `pieces[from..]`.
    pub(crate) fn judge_pieces(&self, messages: &[Message], pieces: Vec<String>, from: usize) -> Asked {
        let messages = messages.to_vec();
        self.ask(pieces.len() - from, move |guard| {
            guard.moderate_pieces(&messages, &pieces, from)
        })
    }

    /// Whether a prompt with this verdict gets no reply.
    pub(crate) fn refuses_prompt(&self, verdict: &Scored<Moderation>) -> bool {
        match self.action {
            Action::Annotate => false,
            Action::Block => self.objects(verdict),
            // Whoever cannot judge the prompt will not judge the reply.
            Action::Rewind => verdict.scored().is_none(),
        }
    }

    /// Whether what has this verdict is to be held back, where anything is: it is unsafe, or could not be judged.
    pub(crate) fn objects(&self, verdict: &Scored<Moderation>) -> bool {
        verdict
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

/// The guard's thread.
fn answer(mut guard: Box<dyn Guard>, questions: &Receiver<Question>) {
    while let Ok(question) = questions.recv() {
        // A guard that panics over one text may well judge the next; the panic's message is in the log.
        let _ = catch_unwind(AssertUnwindSafe(|| question(guard.as_mut())));
    }
}

/// A verdict as it stands in a reply: the moderation itself, or `{"unscorable": cause}`.
pub(crate) fn verdict(scored: &Scored<Moderation>) -> Value {
    match scored {
        Scored::Scored(moderation) => json!(moderation),
        Scored::Unscorable(cause) => json!({"unscorable": cause}),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what it is asked; panics over "panic", hangs over "hang".
    struct Moody(Arc<AtomicUsize>);

    impl Guard for Moody {
        fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let text = conversations[0].messages[0].content.as_str();
            assert_ne!(text, "panic");
            if text == "hang" {
                std::thread::sleep(Duration::from_millis(400));
            }
            vec![Scored::Unscorable(text.to_owned()); conversations.len()]
        }
    }

    #[tokio::test]
    async fn a_guard_that_fails_or_hangs_costs_one_verdict_and_what_nobody_waits_for_is_skipped() {
        let asked = Arc::new(AtomicUsize::new(0));
        let guard = Box::new(Moody(Arc::clone(&asked)));
        let mut guardrail = Guardrail::new(guard, "moody", Action::Block, Controversial::Unsafe).unwrap();
        let cause = |verdict: Scored<Moderation>| verdict.as_result().unwrap_err().to_owned();
        let prompt = |text: &str| [Message::user(text)];
        assert!(cause(guardrail.judge_prompt(&prompt("panic")).await).contains("failed"));
        assert_eq!(cause(guardrail.judge_prompt(&prompt("fine")).await), "fine");
        guardrail.patience = Duration::from_millis(50);
        assert!(cause(guardrail.judge_prompt(&prompt("hang")).await).contains("within 0.05 s"));
        // It still hangs; the next question's asker gives up meanwhile.
        drop(guardrail.judge_pieces(&prompt("gone"), vec!["a".into()], 0));
        guardrail.patience = Duration::from_mins(1);
        assert_eq!(cause(guardrail.judge_prompt(&prompt("fine")).await), "fine");
        assert_eq!(asked.load(Ordering::SeqCst), 4);
    }
}
