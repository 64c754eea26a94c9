//! Messages as protocols send them, into the exchange that is judged.

use judge::Exchange;
use model::chat::{Message, Role};
use model::generate::{Completion, FinishReason};
use serde_json::Value;

/// The exchange whose reply is the last message, an assistant's: its thinking in `reasoning_content`, or within its
/// text before the last `</think>`.
///
/// # Errors
/// A last message of another role, or none; a reply that calls tools.
pub(crate) fn exchange_of(mut messages: Vec<Message>) -> Result<Exchange, String> {
    let reply = messages
        .pop()
        .ok_or("messages: expected at least one, found none")?;
    if reply.role != Role::Assistant {
        let found = reply.role.name();
        return Err(format!(
            "the last message: expected the assistant's reply, found the {found}'s"
        ));
    }
    if messages.is_empty() {
        return Err("messages: expected a prompt before the reply, found none".into());
    }
    check_reply(&reply)?;
    let told = reply
        .reasoning_content
        .filter(|thinking| !thinking.trim().is_empty());
    let (thinking, content) = match told {
        Some(thinking) => (Some(thinking), reply.content),
        None => split(&reply.content),
    };
    Ok(Exchange {
        messages,
        thinking: thinking.filter(|thinking| !thinking.trim().is_empty()),
        content,
    })
}

/// Refuses a reply that calls tools: what it does is in the calls, which no judge reads. An empty list, as some servers
/// always send it, is no call.
///
/// # Errors
/// A reply with calls, whether it has text beside them or not.
pub(crate) fn check_reply(reply: &Message) -> Result<(), String> {
    let calls = match &reply.tool_calls {
        None | Some(Value::Null) => false,
        Some(Value::Array(calls)) => !calls.is_empty(),
        Some(_) => true,
    };
    if calls {
        return Err("the last message: a reply that calls tools is not judged".into());
    }
    Ok(())
}

/// Thinking and answer of a text; one that ends while it thinks is all thinking.
fn split(text: &str) -> (Option<String>, String) {
    if !text.contains("</think>")
        && let Some(thinking) = text.trim_start().strip_prefix("<think>")
    {
        return (Some(thinking.trim_matches('\n').to_owned()), String::new());
    }
    let completion = Completion::from_text(text, FinishReason::Stop);
    (completion.thinking, completion.content)
}

/// Messages of OpenAI's chat shape; content may be text or a list of text parts.
///
/// # Errors
/// Anything else, with the message's number.
pub(crate) fn messages(values: &[Value]) -> Result<Vec<Message>, String> {
    let message = |(index, value): (usize, &Value)| {
        let mut value = value.clone();
        if let Some(content) = value.get_mut("content")
            && content.is_array()
        {
            *content = text_of(content)
                .map_err(|what| format!("messages[{index}].content: {what}"))?
                .into();
        }
        serde_json::from_value(value).map_err(|error| format!("messages[{index}]: {error}"))
    };
    values.iter().enumerate().map(message).collect()
}

/// The text of content: a string, or parts of type `text`, `input_text` or `output_text`, joined.
///
/// # Errors
/// Parts of another type: images and sound are not judged.
pub(crate) fn text_of(content: &Value) -> Result<String, String> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Array(parts) => parts.iter().map(part_text).collect(),
        other => Err(format!("expected text or a list of parts, found {other}")),
    }
}

fn part_text(part: &Value) -> Result<String, String> {
    let kind = part["type"].as_str().unwrap_or("none");
    let text = part["text"].as_str();
    match (kind, text) {
        ("text" | "input_text" | "output_text", Some(text)) => Ok(text.to_owned()),
        _ => Err(format!("expected parts of text, found one of type `{kind}`")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(values: &Value) -> Result<Exchange, String> {
        exchange_of(messages(values.as_array().unwrap())?)
    }

    #[test]
    fn thinking_is_found_in_its_field_or_in_tags() {
        for reply in [
            json!({"role": "assistant", "content": "b", "reasoning_content": "a"}),
            json!({"role": "assistant", "content": "<think>\na\n</think>\n\nb"}),
            json!({"role": "assistant", "content": "<think>\na\n</think>\n\nb", "reasoning_content": ""}),
            json!({"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "\n", "tool_calls": []}),
            json!({"role": "assistant", "content": [{"type": "text", "text": "<think>a</think>b"}]}),
        ] {
            let exchange = read(&json!([{"role": "user", "content": "x"}, reply])).unwrap();
            assert_eq!(
                (exchange.thinking.as_deref(), exchange.content.as_str()),
                (Some("a"), "b")
            );
        }
        let cut =
            read(&json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>\na"}]));
        let cut = cut.unwrap();
        assert_eq!((cut.thinking.as_deref(), cut.content.as_str()), (Some("a"), ""));
    }

    #[test]
    fn what_is_no_exchange_says_why() {
        for (values, expected) in [
            (json!([]), "found none"),
            (json!([{"role": "user", "content": "x"}]), "found the user's"),
            (
                json!([{"role": "assistant", "content": "x"}]),
                "a prompt before the reply",
            ),
            (json!([{"role": "robot", "content": "x"}]), "messages[0]"),
            (
                json!([{"role": "user", "content": [{"type": "image_url"}]}]),
                "`image_url`",
            ),
            (
                json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [{}]}]),
                "calls tools",
            ),
            (
                json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "b", "tool_calls": [{}]}]),
                "calls tools",
            ),
        ] {
            let error = read(&values).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
