//! `/v1/responses`: text, and stateless: a request brings its whole conversation along.

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use model::chat::{Message, Role};
use serde_json::{Map, Value, json};

use crate::body::{Body, Fields};
use crate::error::{Error, Result};
use crate::openai::generation::{End, Generation, Order, Step, Usage};
use crate::openai::messages::{Thinking, read_messages, read_parts, render, within};
use crate::openai::sampling::Drawing;
use crate::openai::stream::{Writer, respond as stream};
use crate::openai::{Service, name, now};
use crate::reply::Delta;

pub(crate) async fn respond(
    State(service): State<Service>,
    Body(mut fields): Body<Fields>,
) -> Result<Response> {
    let model = service.model(fields.take::<String>("model")?.as_deref())?;
    let streams = fields.take("stream")?.unwrap_or(false);
    let instructions: Option<String> = fields.take("instructions")?;
    let mut messages: Vec<Message> = instructions.iter().map(Message::system).collect();
    messages.extend(read_input(fields.require("input")?)?);
    let mut thinking = Thinking::take(&mut fields, model)?;
    if let Some(mut reasoning) = fields.take::<Fields>("reasoning")? {
        thinking.heed("reasoning.effort", within("reasoning", reasoning.take("effort"))?)?;
        within("reasoning", reasoning.finish())?;
    }
    let rendered = render(model, messages, thinking.enabled, None)?;
    let limit: Option<usize> = fields.take("max_output_tokens")?;
    for absent in ["n", "stop"] {
        fields.allow(absent, &[])?;
    }
    let mut drawing = Drawing::take(&mut fields, model, rendered.thinks)?;
    drawing.limit("max_output_tokens", limit, rendered.prompt.ids.len(), model)?;
    let mut head = json!({
        "id": name("resp_"),
        "object": "response",
        "created_at": now(),
        "model": model.name,
        "instructions": instructions,
        "max_output_tokens": limit,
        "temperature": drawing.sampling.temperature,
        "top_p": drawing.sampling.top_p,
        "presence_penalty": drawing.sampling.presence_penalty,
        "frequency_penalty": drawing.sampling.frequency_penalty,
        "reasoning": {"effort": (thinking.enabled == Some(false)).then_some("none"), "summary": null},
    });
    tell_what_changes_nothing(&mut fields, &mut head)?;
    fields.finish()?;

    let answer = Answer {
        head,
        thinking: Item::new("rs_"),
        message: Item::new("msg_"),
        number: 0,
    };
    let order = Order {
        rendered,
        drawing,
        tools: false,
        likeliest: 0,
        thinking_budget: thinking.budget,
        grammar: None,
    };
    let mut generation = Generation::start(model, service.guardrail.as_ref(), order).await?;
    if streams {
        return Ok(stream(generation, answer));
    }
    let mut answer = answer;
    let mut end = None;
    while let Some(step) = generation.next().await? {
        for delta in step.deltas {
            answer.add(delta);
        }
        end = step.end.or(end);
    }
    Ok(Json(answer.json(end.as_ref(), Some(generation.usage()))).into_response())
}

/// A text, or a list of messages and earlier output.
pub(crate) fn read_input(input: Value) -> Result<Vec<Message>> {
    let items = match input {
        Value::String(text) => return Ok(vec![Message::user(text)]),
        Value::Array(items) => items,
        _ => return Err(Error::field("input", "expected a text or a list of items")),
    };
    let mut messages = Vec::new();
    // What the item before this one says was thought; it belongs to no message but the next.
    let mut thought: Option<String> = None;
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("input[{index}]");
        let mut item: Fields =
            serde_json::from_value(item).map_err(|_| Error::field(&path, "expected an object"))?;
        match within(&path, item.take::<String>("type"))?.as_deref() {
            None | Some("message") => {
                for label in ["id", "status", "phase"] {
                    within(&path, item.take::<String>(label))?;
                }
                let mut read = read_messages("input", vec![item]).map_err(|error| match error {
                    Error::Field { field, what } => Error::field(field.replacen("input[0]", &path, 1), what),
                    other => other,
                })?;
                let thought = thought.take();
                for message in &mut read {
                    if message.role == Role::Assistant && thought.is_some() {
                        message.reasoning_content.clone_from(&thought);
                    }
                }
                messages.extend(read);
            }
            Some("reasoning") => thought = Some(within(&path, read_reasoning(item))?),
            Some(other) => {
                let what = format!("only `message` and `reasoning` are supported, found `{other}`");
                return Err(Error::field(format!("{path}.type"), what));
            }
        }
    }
    if messages.is_empty() {
        return Err(Error::field("input", "expected at least one message, found none"));
    }
    Ok(messages)
}

/// The text of a reasoning item, as [`Answer`] writes them.
fn read_reasoning(mut item: Fields) -> Result<String> {
    for label in ["id", "status"] {
        item.take::<String>(label)?;
    }
    item.allow("summary", &[json!([])])?;
    let content = item.take("content")?.unwrap_or_default();
    item.finish()?;
    read_parts("content", content, &["reasoning_text"])
}

/// Takes the fields that say who asks, and those of which only the value is supported that asks for nothing; and tells
/// both in the response, where clients expect all of them.
fn tell_what_changes_nothing(fields: &mut Fields, head: &mut Value) -> Result<()> {
    fields.take::<String>("user")?;
    for label in ["safety_identifier", "prompt_cache_key"] {
        head[label] = json!(fields.take::<String>(label)?);
    }
    head["metadata"] = json!(fields.take::<Map<String, Value>>("metadata")?.unwrap_or_default());
    fields.allow("include", &[json!([])])?;
    // Each with the value that is told, and others that mean the same.
    for (label, told, same) in [
        ("store", json!(false), json!(false)),
        ("background", json!(false), json!(false)),
        ("tools", json!([]), json!([])),
        ("tool_choice", json!("auto"), json!("none")),
        ("parallel_tool_calls", json!(true), json!(true)),
        ("truncation", json!("disabled"), json!("disabled")),
        ("service_tier", json!("default"), json!("auto")),
        ("text", json!({"format": {"type": "text"}}), json!({})),
        ("top_logprobs", json!(0), json!(0)),
    ] {
        fields.allow(label, &[told.clone(), same])?;
        head[label] = told;
    }
    for label in ["previous_response_id", "max_tool_calls", "error"] {
        head[label] = Value::Null;
    }
    Ok(())
}

/// An output item: its name, its text, and its place once it has begun.
struct Item {
    id: String,
    text: String,
    place: Option<usize>,
    done: bool,
}

impl Item {
    fn new(prefix: &str) -> Self {
        Self {
            id: name(prefix),
            text: String::new(),
            place: None,
            done: false,
        }
    }
}

/// The response as far as it has come.
struct Answer {
    head: Value,
    thinking: Item,
    message: Item,
    /// The next event's number.
    number: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Message,
}

impl Answer {
    fn item(&mut self, kind: Kind) -> &mut Item {
        match kind {
            Kind::Thinking => &mut self.thinking,
            Kind::Message => &mut self.message,
        }
    }

    /// Adds text; returns which item it is of, the text, and whether the item begins.
    fn add(&mut self, delta: Delta) -> (Kind, String, bool) {
        let (kind, text) = match delta {
            Delta::Thinking(text) => (Kind::Thinking, text),
            Delta::Content(text) => (Kind::Message, text),
            Delta::Call(call) => (Kind::Message, call.arguments),
        };
        let place = usize::from(kind == Kind::Message && self.thinking.place.is_some());
        let item = self.item(kind);
        let begins = item.place.is_none();
        item.place.get_or_insert(place);
        item.text.push_str(&text);
        (kind, text, begins)
    }

    fn item_json(&self, kind: Kind, status: &str) -> Value {
        match kind {
            Kind::Thinking => json!({
                "type": "reasoning",
                "id": self.thinking.id,
                "summary": [],
                "content": [{"type": "reasoning_text", "text": self.thinking.text}],
                "status": status,
            }),
            Kind::Message => json!({
                "type": "message",
                "id": self.message.id,
                "role": "assistant",
                "status": status,
                "content": [self.part_json(Kind::Message)],
            }),
        }
    }

    fn part_json(&self, kind: Kind) -> Value {
        match kind {
            Kind::Thinking => json!({"type": "reasoning_text", "text": self.thinking.text}),
            Kind::Message => json!({"type": "output_text", "text": self.message.text, "annotations": []}),
        }
    }

    /// The response: under way without an end.
    fn json(&self, end: Option<&End>, usage: Option<Usage>) -> Value {
        let reason = end.map(|end| end.reason);
        let incomplete = match reason {
            Some("length") => Some("max_output_tokens"),
            Some("content_filter") => Some("content_filter"),
            _ => None,
        };
        let status = match (reason, incomplete) {
            (None, _) => "in_progress",
            (_, Some(_)) => "incomplete",
            _ => "completed",
        };
        let mut output = Vec::new();
        for (kind, item) in [(Kind::Thinking, &self.thinking), (Kind::Message, &self.message)] {
            if item.place.is_some() {
                output.push(self.item_json(kind, status));
            }
        }
        let mut response = self.head.clone();
        response["status"] = json!(status);
        response["completed_at"] = json!((status == "completed").then(now));
        response["incomplete_details"] = json!(incomplete.map(|reason| json!({"reason": reason})));
        response["output"] = output.into();
        response["usage"] = json!(usage.map(|usage| json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.thinking},
            "total_tokens": usage.prompt + usage.completion,
        })));
        if let Some(safety) = end.and_then(|end| end.safety.clone()) {
            response["safety"] = safety;
        }
        response
    }

    fn event(&mut self, kind: &str, fields: Value) -> Event {
        let mut event = Map::from_iter([
            ("type".to_owned(), json!(kind)),
            ("sequence_number".to_owned(), json!(self.number)),
        ]);
        self.number += 1;
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        Event::default()
            .event(kind)
            .data(Value::Object(event).to_string())
    }

    /// Events that begin an item.
    fn open(&mut self, kind: Kind) -> Vec<Event> {
        let mut item = self.item_json(kind, "in_progress");
        item["content"] = json!([]);
        let (id, place) = (item["id"].clone(), self.item(kind).place);
        let mut part = self.part_json(kind);
        part["text"] = json!("");
        let added = json!({"output_index": place, "item": item});
        let begun = json!({"item_id": id, "output_index": place, "content_index": 0, "part": part});
        vec![
            self.event("response.output_item.added", added),
            self.event("response.content_part.added", begun),
        ]
    }

    /// Events that end an item, if it is open.
    fn close(&mut self, kind: Kind, status: &str) -> Vec<Event> {
        let item = self.item(kind);
        let Some(place) = item.place.filter(|_| !item.done) else {
            return Vec::new();
        };
        item.done = true;
        let (id, text) = (item.id.clone(), item.text.clone());
        let done = match kind {
            Kind::Thinking => "response.reasoning_text.done",
            Kind::Message => "response.output_text.done",
        };
        let (part, item) = (self.part_json(kind), self.item_json(kind, status));
        let place = json!({"item_id": id, "output_index": place, "content_index": 0});
        let with = |name: &str, value: Value| {
            let mut fields = place.clone();
            fields[name] = value;
            fields
        };
        let (texts, parts) = (with("text", json!(text)), with("part", part));
        let items = json!({"output_index": place["output_index"], "item": item});
        vec![
            self.event(done, texts),
            self.event("response.content_part.done", parts),
            self.event("response.output_item.done", items),
        ]
    }
}

impl Writer for Answer {
    fn begin(&mut self) -> Vec<Event> {
        let response = json!({"response": self.json(None, None)});
        vec![
            self.event("response.created", response.clone()),
            self.event("response.in_progress", response),
        ]
    }

    fn step(&mut self, step: Step, generation: &Generation) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for delta in step.deltas {
            let (kind, text, begins) = self.add(delta);
            if begins && kind == Kind::Message {
                events.extend(self.close(Kind::Thinking, "completed"));
            }
            if begins {
                events.extend(self.open(kind));
            }
            let name = match kind {
                Kind::Thinking => "response.reasoning_text.delta",
                Kind::Message => "response.output_text.delta",
            };
            let item = self.item(kind);
            let fields = json!({
                "item_id": item.id, "output_index": item.place, "content_index": 0, "delta": text, "logprobs": [],
            });
            events.push(self.event(name, fields));
        }
        if let Some(end) = step.end {
            let response = self.json(Some(&end), Some(generation.usage()));
            let status = response["status"].as_str().unwrap_or_default().to_owned();
            events.extend(self.close(Kind::Thinking, &status));
            events.extend(self.close(Kind::Message, &status));
            let kind = format!("response.{status}");
            events.push(self.event(&kind, json!({"response": response})));
        }
        Ok(events)
    }

    fn end(&mut self, _: &Generation) -> Vec<Event> {
        Vec::new()
    }

    fn fail(&mut self, error: &Error) -> Event {
        let error = error.body()["error"].take();
        let fields = json!({"code": error["code"], "message": error["message"], "param": error["param"]});
        self.event("error", fields)
    }
}
