//! A reward model (WorldPM and the like) behind vLLM's `/classify` or `/pooling`, or any server that answers alike.
//!
//! Each conversation is posted as `{"model", "messages", "use_activation": false}`: the server's own chat template
//! makes the text, and the raw score is asked for rather than its sigmoid (`activation` is vLLM's older name for the
//! same switch). The answer is one number, found at the first of
//!
//! - `data[0].probs` (`/classify`, one class) or `data[0].data` (`/pooling`; of scores a token, the last one's),
//! - `data[0].score`, `score` or `reward`.

use model::chat::Message;
use serde_json::{Value, json};

use crate::Result;
use crate::endpoint::{Client, Endpoint};
use crate::judge::{Conversation, Helpfulness};
use crate::verdict::Scored;

/// A helpfulness score that posts each conversation to an endpoint.
#[derive(Debug)]
pub struct RemoteHelpfulness(Client);

impl RemoteHelpfulness {
    /// A score from `endpoint`, whose `url` is the whole address, such as `http://localhost:8001/classify`.
    ///
    /// # Errors
    /// An address or a setting that cannot work, or a named environment variable that is not there.
    pub fn new(endpoint: Endpoint) -> Result<Self> {
        Ok(Self(Client::new(endpoint, "")?))
    }
}

impl Helpfulness for RemoteHelpfulness {
    fn score(&mut self, conversations: &[Conversation]) -> Vec<Scored<f32>> {
        let body = |conversation: &Conversation| {
            let reply = conversation.reply.iter().map(Message::assistant);
            let messages: Vec<_> = conversation.messages.iter().cloned().chain(reply).collect();
            json!({
                "model": self.0.model(),
                "messages": messages,
                "use_activation": false,
                "activation": false,
            })
        };
        let bodies: Vec<_> = conversations.iter().map(body).collect();
        self.0
            .post_each(&bodies, |index, answer| match conversations[index].reply {
                Some(_) => read(answer),
                None => Err("a conversation without a reply has no helpfulness".into()),
            })
    }
}

fn read(answer: &Value) -> std::result::Result<f32, String> {
    let places = [
        "/data/0/probs",
        "/data/0/data",
        "/data/0/score",
        "/score",
        "/reward",
    ];
    let (place, value) = places
        .into_iter()
        .find_map(|place| Some((place, answer.pointer(place)?)))
        .ok_or_else(|| format!("expected a score at one of {}, found none", places.join(", ")))?;
    let number = last_number(value).map_err(|what| format!("{place}: {what}"))?;
    if number.is_finite() {
        Ok(number)
    } else {
        Err(format!("{place}: {number} is not finite"))
    }
}

/// The number itself, that of a list of one, or that of the last row of a list of rows.
fn last_number(value: &Value) -> std::result::Result<f32, String> {
    match value {
        Value::Number(number) => number
            .as_f64()
            .map(|number| number as f32)
            .ok_or_else(|| "not a number".into()),
        Value::Array(rows) => match rows.as_slice() {
            [.., last @ Value::Array(_)] => last_number(last),
            [only] => last_number(only),
            _ => Err(format!("expected one number, found a list of {}", rows.len())),
        },
        other => Err(format!("expected a number, found {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::tests::{Answer, impatient, stand_in};

    #[test]
    fn finds_the_number_in_the_known_answers() {
        let cases = [
            (
                json!({"data": [{"index": 0, "label": "LABEL_0", "probs": [1.5], "num_classes": 1}]}),
                1.5,
            ),
            (json!({"data": [{"data": [-3.0]}]}), -3.0),
            (json!({"data": [{"data": [[9.0], [8.0], [-2.5]]}]}), -2.5),
            (json!({"data": [{"score": 4}]}), 4.0),
            (json!({"reward": 0.25}), 0.25),
        ];
        for (answer, expected) in cases {
            assert_eq!(read(&answer), Ok(expected));
        }
        for bad in [
            json!({}),
            json!({"data": [{"probs": [0.2, 0.8]}]}),
            json!({"data": [{"data": []}]}),
            json!({"score": null}),
            json!({"score": "high"}),
            json!({"score": 1e60}),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_reply_is_the_last_turn_and_its_absence_is_unscorable() {
        let url = stand_in(|_, body| {
            let turns = body["messages"].as_array().unwrap();
            assert_eq!(body["use_activation"], json!(false));
            Answer::Body(
                200,
                json!({"score": turns.last().unwrap()["content"].as_str().unwrap().len()}).to_string(),
            )
        });
        let mut remote = RemoteHelpfulness::new(impatient(url)).unwrap();
        let messages = vec![Message::user("hello there")];
        let scores = remote.score(&[
            Conversation {
                messages: messages.clone(),
                reply: Some("four".into()),
            },
            Conversation {
                messages,
                reply: None,
            },
        ]);
        assert_eq!(scores[0], Scored::Scored(4.0));
        assert!(scores[1].as_result().unwrap_err().contains("without a reply"));
    }
}
