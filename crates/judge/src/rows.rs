//! Judging files: JSONL rows of a prompt and perhaps a reply in, a line of verdict each out.

use std::io::{BufRead, Write};
use std::path::Path;

use model::chat::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::judge::{Conversation, Guard, Helpfulness};
use crate::verdict::{Moderation, Scored};
use crate::{Error, Result};

/// Rows judged together.
const BATCH: usize = 64;

/// A row to judge; other fields are ignored.
#[derive(Deserialize)]
struct Row {
    prompt: Prompt,
    #[serde(default)]
    response: Option<String>,
}

/// A prompt as text, or as the messages of a conversation.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Messages(Vec<Message>),
}

impl From<Row> for Conversation {
    fn from(row: Row) -> Self {
        let messages = match row.prompt {
            Prompt::Text(text) => vec![Message::user(text)],
            Prompt::Messages(messages) => messages,
        };
        Self {
            messages,
            reply: row.response,
        }
    }
}

/// `saferl guard score`: reads `{"prompt", "response"}` rows, where the response may be absent, and writes
/// `{"safety", "categories", "refusal", "score"}` for each; a row that could not be judged has nulls and its cause as
/// `unscorable`. Returns how many rows there were and how many of them were unscorable. `input_path` is for errors.
///
/// # Errors
/// A line that is not such a row, named; or an output that cannot be written.
pub fn score_rows(
    guard: &mut dyn Guard,
    input: impl BufRead,
    input_path: &Path,
    output: impl Write,
) -> Result<(usize, usize)> {
    let moderate = |conversations: &[Conversation]| guard.moderate(conversations);
    judge_rows(moderate, moderation_line, input, input_path, output)
}

/// `saferl reward score`: as [`score_rows`], writing `{"helpfulness"}`.
///
/// # Errors
/// As [`score_rows`].
pub fn score_helpfulness(
    helpfulness: &mut dyn Helpfulness,
    input: impl BufRead,
    input_path: &Path,
    output: impl Write,
) -> Result<(usize, usize)> {
    let line = |score: &f32| json!({ "helpfulness": score });
    judge_rows(
        |conversations| helpfulness.score(conversations),
        line,
        input,
        input_path,
        output,
    )
}

fn moderation_line(moderation: &Moderation) -> Value {
    json!({
        "safety": moderation.safety,
        "categories": moderation.categories,
        "refusal": moderation.refusal,
        "score": moderation.score,
    })
}

fn judge_rows<T>(
    mut judge: impl FnMut(&[Conversation]) -> Vec<Scored<T>>,
    line: impl Fn(&T) -> Value,
    input: impl BufRead,
    input_path: &Path,
    mut output: impl Write,
) -> Result<(usize, usize)> {
    let at = |source| Error::File {
        path: input_path.into(),
        source,
    };
    let (mut rows, mut unscorable) = (0, 0);
    let mut batch: Vec<Conversation> = Vec::with_capacity(BATCH);
    let mut flush = |batch: &mut Vec<Conversation>| -> Result<()> {
        for scored in judge(batch) {
            rows += 1;
            let value = match scored {
                Scored::Scored(value) => line(&value),
                Scored::Unscorable(cause) => {
                    unscorable += 1;
                    json!({"safety": null, "categories": [], "refusal": null, "score": null, "unscorable": cause})
                }
            };
            writeln!(output, "{value}").map_err(at)?;
        }
        batch.clear();
        Ok(())
    };
    for (index, text) in input.lines().enumerate() {
        let text = text.map_err(at)?;
        if text.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(&text).map_err(|error| Error::Format {
            path: input_path.into(),
            line: index + 1,
            what: format!("expected an object with `prompt` and perhaps `response`: {error}"),
        })?;
        batch.push(row.into());
        if batch.len() == BATCH {
            flush(&mut batch)?;
        }
    }
    flush(&mut batch)?;
    output.flush().map_err(at)?;
    Ok((rows, unscorable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Category, Safety};

    struct Bombs;

    impl Guard for Bombs {
        fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
            let of = |conversation: &Conversation| {
                let text = conversation
                    .reply
                    .clone()
                    .unwrap_or(conversation.messages[0].content.clone());
                if text.is_empty() {
                    return Scored::Unscorable("nothing".into());
                }
                let harmful = text.contains("bomb");
                Scored::Scored(Moderation {
                    safety: if harmful { Safety::Unsafe } else { Safety::Safe },
                    categories: if harmful { vec![Category::Violent] } else { vec![] },
                    refusal: conversation.reply.as_ref().map(|_| false),
                    score: 0.25,
                })
            };
            conversations.iter().map(of).collect()
        }
    }

    #[test]
    fn a_line_in_is_a_line_out() {
        let rows = [
            r#"{"prompt": "a bomb"}"#,
            r#"{"prompt": [{"role": "user", "content": "x"}], "response": "fine", "id": 3}"#,
            "",
            r#"{"prompt": "", "response": null}"#,
        ]
        .join("\n");
        let mut output = Vec::new();
        let counts = score_rows(&mut Bombs, rows.as_bytes(), Path::new("in.jsonl"), &mut output).unwrap();
        assert_eq!(counts, (3, 1));
        let output = String::from_utf8(output).unwrap();
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(
            lines[0],
            r#"{"safety":"unsafe","categories":["Violent"],"refusal":null,"score":0.25}"#
        );
        assert_eq!(
            lines[1],
            r#"{"safety":"safe","categories":[],"refusal":false,"score":0.25}"#
        );
        assert!(lines[2].contains(r#""unscorable":"nothing""#) && lines[2].contains(r#""score":null"#));
    }

    #[test]
    fn many_rows_keep_their_order_and_a_bad_line_is_named() {
        let row = |n| {
            if n == 70 {
                r#"{"prompt": "bomb"}"#
            } else {
                r#"{"prompt": "x"}"#
            }
        };
        let many = (0..150).map(row).collect::<Vec<_>>().join("\n");
        let mut output = Vec::new();
        score_rows(&mut Bombs, many.as_bytes(), Path::new("in.jsonl"), &mut output).unwrap();
        let output = String::from_utf8(output).unwrap();
        assert!(output.lines().nth(70).unwrap().contains("unsafe"));
        assert_eq!(
            (output.lines().count(), output.matches("unsafe").count()),
            (150, 1)
        );
        let bad = "{\"prompt\": \"x\"}\n{\"text\": \"x\"}\n";
        let error = score_rows(&mut Bombs, bad.as_bytes(), Path::new("in.jsonl"), Vec::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("in.jsonl, line or row 2"), "{error}");
    }
}
