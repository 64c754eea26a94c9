//! Conversations as the API writes them, into prompts.

use model::chat::{Message, Mode, Prompt, Role};
use model::template::RenderOptions;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::body::Fields;
use crate::error::{Error, Result};
use crate::openai::Model;
use crate::reasoning::Parser;

/// A message's content: a text, or parts of which each is text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Fields>),
}

/// The messages of a request.
///
/// # Errors
/// No messages, an unknown role, content that is not text, a field that is not supported; each named by its path.
pub(crate) fn read_messages(field: &str, messages: Vec<Fields>) -> Result<Vec<Message>> {
    if messages.is_empty() {
        return Err(Error::field(field, "expected at least one message, found none"));
    }
    let read = |(index, message)| within(&format!("{field}[{index}]"), read_message(message));
    messages.into_iter().enumerate().map(read).collect()
}

/// Puts a path before the field that an error names.
pub(crate) fn within<T>(path: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Field { field, what } => Error::field(format!("{path}.{field}"), what),
        other => other,
    })
}

fn read_message(mut fields: Fields) -> Result<Message> {
    let role = match fields.require::<String>("role")?.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => {
            let expected = "expected system, developer, user, assistant or tool";
            return Err(Error::field("role", format!("{expected}, found `{other}`")));
        }
    };
    let content = match fields.take::<Value>("content")? {
        Some(content) => read_content("content", content)?,
        None if role == Role::Assistant => String::new(),
        None => return Err(Error::field("content", "expected text, found none")),
    };
    let reasoning = fields.take::<String>("reasoning")?;
    let message = Message {
        reasoning_content: fields.take("reasoning_content")?.or(reasoning),
        tool_calls: read_calls(fields.take("tool_calls")?)?,
        tool_call_id: fields.take("tool_call_id")?,
        name: fields.take("name")?,
        ..Message::new(role, content)
    };
    // What an assistant's message from this or another server may bring back, and says nothing.
    fields.allow("annotations", &[json!([])])?;
    fields.finish()?;
    Ok(message)
}

/// Text, or parts of type `text` (or `input_text`, `output_text`), put together.
///
/// # Errors
/// Other content, and parts of another type.
pub(crate) fn read_content(field: &str, content: Value) -> Result<String> {
    let content = serde_json::from_value(content)
        .map_err(|_| Error::field(field, "expected a text or a list of parts"))?;
    match content {
        Content::Text(text) => Ok(text),
        Content::Parts(parts) => read_parts(field, parts, &["text", "input_text", "output_text"]),
    }
}

/// Parts of one of these types, put together.
///
/// # Errors
/// Parts of another type, or with more than a text.
pub(crate) fn read_parts(field: &str, parts: Vec<Fields>, kinds: &[&str]) -> Result<String> {
    let mut text = String::new();
    for (index, mut part) in parts.into_iter().enumerate() {
        let read = |part: &mut Fields| {
            let kind: String = part.require("type")?;
            if !kinds.contains(&kind.as_str()) {
                let what = format!("expected {}, found `{kind}`", kinds.join(" or "));
                return Err(Error::field("type", what));
            }
            part.allow("annotations", &[json!([])])?;
            part.allow("logprobs", &[json!([])])?;
            part.require::<String>("text")
        };
        let path = format!("{field}[{index}]");
        text.push_str(&within(&path, read(&mut part))?);
        within(&path, part.finish())?;
    }
    Ok(text)
}

/// Earlier tool calls, for the template, whose arguments are JSON and not text that holds JSON, where they can be.
fn read_calls(calls: Option<Vec<Map<String, Value>>>) -> Result<Option<Value>> {
    let Some(mut calls) = calls.filter(|calls| !calls.is_empty()) else {
        return Ok(None);
    };
    for (index, call) in calls.iter_mut().enumerate() {
        let function = call.entry("function").or_insert(Value::Null);
        if !function["name"].is_string() {
            let field = format!("tool_calls[{index}].function.name");
            return Err(Error::field(field, "expected a text, found none"));
        }
        if let Some(text) = function["arguments"].as_str()
            && let Ok(arguments @ Value::Object(_)) = serde_json::from_str(text)
        {
            function["arguments"] = arguments;
        }
    }
    Ok(Some(calls.into()))
}

/// The tools of a request, as the template wants them.
///
/// # Errors
/// A tool that is not a function, or has no name.
pub(crate) fn read_tools(tools: Option<Vec<Value>>) -> Result<Option<Value>> {
    let Some(tools) = tools.filter(|tools| !tools.is_empty()) else {
        return Ok(None);
    };
    for (index, tool) in tools.iter().enumerate() {
        if tool["type"] != "function" {
            let what = format!("only `function` is supported, found {}", tool["type"]);
            return Err(Error::field(format!("tools[{index}].type"), what));
        }
        if !tool["function"]["name"].is_string() {
            let field = format!("tools[{index}].function.name");
            return Err(Error::field(field, "expected a text, found none"));
        }
    }
    Ok(Some(tools.into()))
}

/// Whether the model may think, and for how long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Thinking {
    /// The template's `enable_thinking`.
    pub(crate) enabled: Option<bool>,
    /// Most tokens of thinking.
    pub(crate) budget: Option<usize>,
}

impl Thinking {
    /// `enable_thinking` and `thinking_budget`, at the top or in `chat_template_kwargs`, and `reasoning_effort`.
    ///
    /// # Errors
    /// A budget for a model that does not think, and efforts that are not supported.
    pub(crate) fn take(fields: &mut Fields, model: &Model) -> Result<Self> {
        let mut enabled = fields.take("enable_thinking")?;
        let mut budget = fields.take("thinking_budget")?;
        let mut budget_field = "thinking_budget";
        if let Some(mut inner) = fields.take::<Fields>("chat_template_kwargs")? {
            let read =
                |inner: &mut Fields| Ok((inner.take("enable_thinking")?, inner.take("thinking_budget")?));
            let (inner_enabled, inner_budget) = within("chat_template_kwargs", read(&mut inner))?;
            if inner_budget.is_some() {
                budget_field = "chat_template_kwargs.thinking_budget";
            }
            (enabled, budget) = (inner_enabled.or(enabled), inner_budget.or(budget));
            within("chat_template_kwargs", inner.finish())?;
        }
        if budget.is_some() && model.parser == Parser::None {
            return Err(Error::field(
                budget_field,
                "not supported: this model does not think",
            ));
        }
        let mut thinking = Self { enabled, budget };
        thinking.heed("reasoning_effort", fields.take("reasoning_effort")?)?;
        Ok(thinking)
    }

    /// Follows an effort of reasoning, given as `field`; the effort `none` switches thinking off.
    ///
    /// # Errors
    /// Any other effort.
    pub(crate) fn heed(&mut self, field: &str, effort: Option<String>) -> Result<()> {
        match effort.as_deref() {
            None => {}
            Some("none") => self.enabled = Some(false),
            Some(other) => {
                let what = format!("only `none` is supported (see thinking_budget), found `{other}`");
                return Err(Error::field(field, what));
            }
        }
        Ok(())
    }
}

/// A conversation as the model will read it.
pub(crate) struct Rendered {
    pub(crate) prompt: Prompt,
    /// Whether the reply thinks, by what the template appended for it.
    pub(crate) thinks: bool,
}

/// Renders a conversation for generation.
///
/// # Errors
/// A template that refuses the conversation, or that has no place for tools.
pub(crate) fn render(
    model: &Model,
    messages: Vec<Message>,
    enabled: Option<bool>,
    tools: Option<Value>,
) -> Result<Rendered> {
    let template = model.tokenizer.chat().map_or("", |chat| chat.source.as_str());
    let tool_template = model.tokenizer.chat().and_then(|chat| chat.tool_source.as_ref());
    if tools.is_some() && tool_template.is_none() && !template.contains("tools") {
        return Err(Error::field(
            "tools",
            "not supported: this model's chat template has no tools",
        ));
    }
    let options = |generation_prompt| RenderOptions {
        enable_thinking: enabled,
        generation_prompt,
        tools: tools.clone(),
    };
    let rendered = model.tokenizer.render(&messages, &options(true))?;
    let before = model.tokenizer.render(&messages, &options(false))?.text;
    let common = rendered
        .text
        .bytes()
        .zip(before.bytes())
        .take_while(|(one, other)| one == other)
        .count();
    let appended = String::from_utf8_lossy(&rendered.text.as_bytes()[common..]);
    Ok(Rendered {
        thinks: model.parser.thinks(&appended),
        prompt: Prompt {
            ids: rendered.ids,
            messages,
            mode: if enabled == Some(false) {
                Mode::NoThink
            } else {
                Mode::Think
            },
        },
    })
}
