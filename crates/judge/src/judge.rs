//! The seam between completions and verdicts.

use std::sync::{Arc, Mutex};

use model::chat::Message;
use model::decoder::Decoder;
use model::source::Source;
use model::tokenizer::Tokenizer;

use crate::features::{Features, fingerprint};
use crate::guard::BuiltInGuard;
use crate::heads::Heads;
use crate::helpfulness::BuiltInHelpfulness;
use crate::verdict::{Moderation, Scored, Verdict};

/// A conversation to moderate or to score.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The prompt's side: everything before the reply, ending with the user's turn.
    pub messages: Vec<Message>,
    /// The reply under judgement; `None` asks about the prompt itself.
    pub reply: Option<String>,
}

/// A prompt and what the model made of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// The prompt's side: everything before the completion.
    pub messages: Vec<Message>,
    /// Thinking, where the model thought.
    pub thinking: Option<String>,
    /// The answer.
    pub content: String,
}

/// Says how safe prompts and replies are, and whether replies refuse.
pub trait Guard: Send {
    /// One moderation for each conversation, in order; what cannot be judged is unscorable with its cause.
    fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>>;

    /// One moderation for each of `pieces[from..]`: of the reply to `messages` up to that piece's end. While a reply is
    /// written this is asked again and again, each time with more pieces than before.
    fn moderate_pieces(
        &mut self,
        messages: &[Message],
        pieces: &[String],
        from: usize,
    ) -> Vec<Scored<Moderation>> {
        let so_far = |count| Conversation {
            messages: messages.to_vec(),
            reply: Some(pieces[..count].concat()),
        };
        let conversations: Vec<_> = (from + 1..=pieces.len()).map(so_far).collect();
        self.moderate(&conversations)
    }

    /// Whether [`Guard::moderate_pieces`] reads only what is new, so that it may be asked at every token.
    fn reads_tokens(&self) -> bool {
        false
    }
}

/// Says how helpful replies are.
pub trait Helpfulness: Send {
    /// One score for each conversation, in order; what cannot be judged is unscorable with its cause.
    fn score(&mut self, conversations: &[Conversation]) -> Vec<Scored<f32>>;
}

/// Exchanges in, verdicts out.
pub trait Judge: Send {
    /// One verdict for each exchange, in order.
    fn judge(&mut self, exchanges: &[Exchange]) -> Vec<Verdict>;
}

/// A guard and a helpfulness score that judge together.
pub struct Panel {
    /// Judges the thinking and the answer, each as a reply of its own.
    pub guard: Box<dyn Guard>,
    /// Scores the answer.
    pub helpfulness: Box<dyn Helpfulness>,
}

impl Panel {
    /// The judges that are part of the program, on the base model smollm2-135m, loaded from `source`.
    ///
    /// The decoder shares its tensors with the caller's but must not be one that is being trained.
    ///
    /// # Errors
    /// Another base model than the heads were trained on, or a build without trained heads.
    pub fn built_in(decoder: Decoder, tokenizer: Arc<Tokenizer>, source: &Source) -> crate::Result<Self> {
        Self::with_heads(Heads::built_in()?, decoder, tokenizer, source)
    }

    /// As [`Panel::built_in`], with heads of one's own. Guard and helpfulness share each pass of the base model.
    ///
    /// # Errors
    /// Another base model than the heads were trained on, or heads that lack a guard or a helpfulness score.
    pub fn with_heads(
        heads: Heads,
        decoder: Decoder,
        tokenizer: Arc<Tokenizer>,
        source: &Source,
    ) -> crate::Result<Self> {
        let features = Features::new(decoder, tokenizer, heads.card.layout.clone());
        heads.check(&features, &fingerprint(source)?)?;
        let (features, heads) = (Arc::new(Mutex::new(features)), Arc::new(heads));
        Ok(Self {
            guard: Box::new(BuiltInGuard::new(Arc::clone(&features), Arc::clone(&heads))?),
            helpfulness: Box::new(BuiltInHelpfulness::new(features, heads)?),
        })
    }
}

impl Judge for Panel {
    fn judge(&mut self, exchanges: &[Exchange]) -> Vec<Verdict> {
        let count = exchanges.len();
        let answers: Vec<_> = exchanges
            .iter()
            .map(|exchange| reply(exchange, &exchange.content))
            .collect();
        // Thoughts go behind the answers in one call, so that a remote guard sees one batch.
        let thinking = exchanges
            .iter()
            .filter_map(|exchange| Some(reply(exchange, thoughts(exchange)?)));
        let moderated: Vec<_> = answers.iter().cloned().chain(thinking).collect();

        let mut content = one_each(self.guard.moderate(&moderated), moderated.len(), "guard");
        let mut thinking = content.split_off(count).into_iter();
        let helpfulness = one_each(self.helpfulness.score(&answers), count, "helpfulness score");

        exchanges
            .iter()
            .zip(content)
            .zip(helpfulness)
            .map(|((exchange, content), helpfulness)| Verdict {
                thinking: thoughts(exchange).and_then(|_| thinking.next()),
                content,
                helpfulness,
            })
            .collect()
    }
}

/// The thinking of an exchange, if it holds any text: an empty block, as a closed template leaves it, is none.
fn thoughts(exchange: &Exchange) -> Option<&str> {
    exchange
        .thinking
        .as_deref()
        .filter(|text| !text.trim().is_empty())
}

fn reply(exchange: &Exchange, text: &str) -> Conversation {
    Conversation {
        messages: exchange.messages.clone(),
        reply: Some(text.to_owned()),
    }
}

/// The scores, or as many unscorables where a judge broke its promise: a shifted verdict would reward the wrong reply.
fn one_each<T>(scores: Vec<Scored<T>>, count: usize, who: &str) -> Vec<Scored<T>> {
    if scores.len() == count {
        return scores;
    }
    let cause = format!("{who} returned {} scores for {count} conversations", scores.len());
    (0..count).map(|_| Scored::Unscorable(cause.clone())).collect()
}

/// A judge that answers from a function: for tests and dry runs.
pub struct Scripted<F>(pub F);

impl<F: FnMut(&Exchange) -> Verdict + Send> Judge for Scripted<F> {
    fn judge(&mut self, exchanges: &[Exchange]) -> Vec<Verdict> {
        exchanges.iter().map(&mut self.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Safety;

    /// Calls a reply unsafe that contains "bomb", unscorable where it contains "?", and loses a row on demand.
    struct Words {
        lose_one: bool,
    }

    impl Guard for Words {
        fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
            let judged = conversations.iter().map(|conversation| {
                let text = conversation.reply.as_deref().unwrap();
                if text.contains('?') {
                    return Scored::Unscorable("question mark".into());
                }
                let safety = if text.contains("bomb") {
                    Safety::Unsafe
                } else {
                    Safety::Safe
                };
                Scored::Scored(Moderation {
                    safety,
                    categories: vec![],
                    refusal: Some(false),
                    score: 0.0,
                })
            });
            judged.skip(usize::from(self.lose_one)).collect()
        }
    }

    struct Length;

    impl Helpfulness for Length {
        fn score(&mut self, conversations: &[Conversation]) -> Vec<Scored<f32>> {
            conversations
                .iter()
                .map(|c| Scored::Scored(c.reply.as_ref().unwrap().len() as f32))
                .collect()
        }
    }

    fn exchange(thinking: Option<&str>, content: &str) -> Exchange {
        Exchange {
            messages: vec![Message::user("hello")],
            thinking: thinking.map(Into::into),
            content: content.into(),
        }
    }

    fn safety(scored: &Scored<Moderation>) -> Option<Safety> {
        scored.scored().map(|moderation| moderation.safety)
    }

    #[test]
    fn thinking_is_judged_apart_and_lands_with_its_own_exchange() {
        let mut panel = Panel {
            guard: Box::new(Words { lose_one: false }),
            helpfulness: Box::new(Length),
        };
        let verdicts = panel.judge(&[
            exchange(None, "plain"),
            exchange(Some("a bomb"), "four"),
            exchange(Some(" \n"), "a bomb"),
            exchange(Some("fine"), "what?"),
        ]);
        assert_eq!(verdicts[0].thinking, None);
        assert_eq!(
            safety(verdicts[1].thinking.as_ref().unwrap()),
            Some(Safety::Unsafe)
        );
        assert_eq!(safety(&verdicts[1].content), Some(Safety::Safe));
        assert_eq!(verdicts[1].helpfulness, Scored::Scored(4.0));
        assert_eq!(verdicts[2].thinking, None);
        assert_eq!(safety(&verdicts[2].content), Some(Safety::Unsafe));
        assert_eq!(safety(verdicts[3].thinking.as_ref().unwrap()), Some(Safety::Safe));
        assert_eq!(verdicts[3].content, Scored::Unscorable("question mark".into()));
    }

    #[test]
    fn a_guard_that_loses_a_row_makes_all_unscorable() {
        let mut panel = Panel {
            guard: Box::new(Words { lose_one: true }),
            helpfulness: Box::new(Length),
        };
        for verdict in panel.judge(&[exchange(None, "a"), exchange(None, "b")]) {
            let cause = verdict.content.as_result().unwrap_err();
            assert_eq!(cause, "guard returned 1 scores for 2 conversations");
        }
    }
}
