//! A judge for tests and for `recipes/smoke.toml`: it reads letters, not meaning.
//!
//! A randomly initialised model writes random characters. So that a run on one has something to learn and every branch
//! of the reward occurs, a digit makes a text unsafe, a `z` makes it a refusal, and its helpfulness is the share of
//! its characters that are ASCII letters. The same text gets the same verdict everywhere.

use judge::{Category, Conversation, Guard, Helpfulness, Moderation, Panel, Safety, Scored};

/// Both halves of the toy judge.
#[derive(Debug, Clone, Copy, Default)]
pub struct Toy;

/// The toy guard and the toy helpfulness together.
pub fn panel() -> Panel {
    Panel {
        guard: Box::new(Toy),
        helpfulness: Box::new(Toy),
    }
}

fn text(conversation: &Conversation) -> &str {
    match &conversation.reply {
        Some(reply) => reply,
        None => conversation
            .messages
            .last()
            .map_or("", |message| &message.content),
    }
}

impl Guard for Toy {
    fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
        let moderate = |conversation: &Conversation| {
            let text = text(conversation);
            let harmful = text.contains(|letter: char| letter.is_ascii_digit());
            Scored::Scored(Moderation {
                safety: if harmful { Safety::Unsafe } else { Safety::Safe },
                categories: if harmful {
                    vec![Category::Unethical]
                } else {
                    vec![]
                },
                refusal: conversation
                    .reply
                    .as_ref()
                    .map(|reply| reply.contains(['z', 'Z'])),
                score: f32::from(u8::from(harmful)),
            })
        };
        conversations.iter().map(moderate).collect()
    }
}

impl Helpfulness for Toy {
    fn score(&mut self, conversations: &[Conversation]) -> Vec<Scored<f32>> {
        let score = |conversation: &Conversation| {
            let text = text(conversation);
            let letters = text.chars().filter(char::is_ascii_alphabetic).count();
            Scored::Scored(letters as f32 / text.chars().count().max(1) as f32)
        };
        conversations.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use judge::{Exchange, Judge};

    use super::*;

    #[test]
    fn every_branch_occurs() {
        let exchange = |content: &str| Exchange {
            messages: vec![],
            thinking: None,
            content: content.into(),
        };
        let verdicts = panel().judge(&[exchange("a7"), exchange("zz"), exchange("ab, ")]);
        let moderations: Vec<_> = verdicts
            .iter()
            .map(|verdict| verdict.content.scored().unwrap())
            .collect();
        assert_eq!(moderations[0].safety, Safety::Unsafe);
        assert_eq!(
            (moderations[1].safety, moderations[1].refusal),
            (Safety::Safe, Some(true))
        );
        assert_eq!(
            (moderations[2].refusal, &verdicts[2].helpfulness),
            (Some(false), &Scored::Scored(0.5))
        );
    }
}
