//! Qwen3Guard-Gen behind any OpenAI-compatible server (vLLM, SGLang).

use serde_json::json;

use crate::Result;
use crate::endpoint::{Client, Endpoint, chat_text};
use crate::guard::qwen3guard::{VERDICT_TOKENS, parse, turns};
use crate::judge::{Conversation, Guard};
use crate::verdict::{Moderation, Scored};

/// A guard that posts each conversation to `URL/chat/completions`: the user's and the assistant's turns, greedy, 128
/// tokens. What the server does not answer as Qwen3Guard-Gen does is unscorable, with its cause.
#[derive(Debug)]
pub struct RemoteGuard(Client);

impl RemoteGuard {
    /// A guard at `endpoint`, whose `url` is the API's base, such as `http://localhost:8000/v1`. Nothing is sent yet.
    ///
    /// # Errors
    /// An address or a setting that cannot work, or a named environment variable that is not there.
    pub fn new(endpoint: Endpoint) -> Result<Self> {
        Ok(Self(Client::new(endpoint, "/chat/completions")?))
    }
}

impl Guard for RemoteGuard {
    fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
        let body = |conversation: &Conversation| {
            json!({
                "model": self.0.model(),
                "messages": turns(conversation),
                "temperature": 0,
                "max_tokens": VERDICT_TOKENS,
            })
        };
        let bodies: Vec<_> = conversations.iter().map(body).collect();
        self.0.post_each(&bodies, |index, answer| {
            parse(chat_text(answer)?, conversations[index].reply.is_some())
        })
    }
}

#[cfg(test)]
mod tests {
    use model::chat::Message;

    use super::*;
    use crate::endpoint::tests::{Answer, chat, impatient, stand_in};
    use crate::verdict::Safety;

    fn conversation(prompt: &str, reply: Option<&str>) -> Conversation {
        Conversation {
            messages: vec![Message::user(prompt)],
            reply: reply.map(Into::into),
        }
    }

    #[test]
    fn prompts_and_replies_go_out_greedy_and_come_back_judged() {
        let url = stand_in(|_, body| {
            assert_eq!(
                (&body["temperature"], &body["max_tokens"]),
                (&json!(0), &json!(128))
            );
            let turns = body["messages"].as_array().unwrap();
            match turns.len() {
                1 => chat("Safety: Unsafe\nCategories: Jailbreak"),
                2 if turns[1]["content"] == "odd" => chat("Safety: Fine"),
                2 => chat("Safety: Safe\nCategories: None\nRefusal: Yes"),
                _ => Answer::Body(400, "too many turns".into()),
            }
        });
        let mut guard = RemoteGuard::new(impatient(url)).unwrap();
        let verdicts = guard.moderate(&[
            conversation("a", None),
            conversation("a", Some("no")),
            conversation("a", Some("odd")),
        ]);
        assert_eq!(verdicts[0].scored().unwrap().safety, Safety::Unsafe);
        assert_eq!(verdicts[1].scored().unwrap().refusal, Some(true));
        assert!(verdicts[2].as_result().unwrap_err().contains("`Fine`"));
    }

    #[test]
    fn an_answer_without_text_is_unscorable() {
        let mut guard = RemoteGuard::new(impatient(stand_in(|_, _| Answer::Body(200, "{}".into())))).unwrap();
        let verdicts = guard.moderate(&[conversation("a", None)]);
        assert!(verdicts[0].as_result().unwrap_err().contains("choices[0]"));
        assert!(guard.moderate(&[]).is_empty());
    }
}
