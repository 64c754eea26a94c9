//! `/v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use model::constraint::Constraint;
use serde_json::{Map, Value, json};

use crate::body::{Body, Fields};
use crate::error::{Error, Result};
use crate::openai::generation::{End, Generation, Order, Step, logprobs_json};
use crate::openai::messages::{Thinking, read_messages, read_tools, render, within};
use crate::openai::sampling::{Drawing, MOST_LIKELIEST};
use crate::openai::stream::{Writer, data, respond};
use crate::openai::{Model, Service, name, now};
use crate::reply::Delta;
use crate::tools::Call;

/// What a reply looks like, apart from what it says.
struct Form {
    id: String,
    created: u64,
    model: Model,
    logprobs: bool,
    /// Whether token ids are told, as vLLM tells them.
    ids: bool,
}

pub(crate) async fn complete(
    State(service): State<Service>,
    Body(mut fields): Body<Fields>,
) -> Result<Response> {
    let model = service.model(fields.take::<String>("model")?.as_deref())?;
    let streams = fields.take("stream")?.unwrap_or(false);
    let usage = take_include_usage(&mut fields, streams)?;
    let ids = fields.take("return_token_ids")?.unwrap_or(false);
    if ids && streams {
        return Err(Error::field(
            "return_token_ids",
            "expected only where `stream` is false",
        ));
    }
    let (order, logprobs) = read(&mut fields, model)?;
    fields.finish()?;
    let form = Form {
        id: name("chatcmpl-"),
        created: now(),
        model: model.clone(),
        logprobs,
        ids,
    };
    let count = order.drawing.count;
    let generation = Generation::start(model, service.guardrail.as_ref(), order).await?;
    if streams {
        let calls = vec![0; count];
        return Ok(respond(generation, Chunks { form, usage, calls }));
    }
    Ok(Json(whole(generation, &form, count).await?).into_response())
}

/// `stream_options.include_usage`.
pub(crate) fn take_include_usage(fields: &mut Fields, streams: bool) -> Result<bool> {
    let Some(mut options) = fields.take::<Fields>("stream_options")? else {
        return Ok(false);
    };
    if !streams {
        return Err(Error::field(
            "stream_options",
            "expected only where `stream` is true",
        ));
    }
    let usage = within("stream_options", options.take("include_usage"))?;
    // It pads events against eavesdroppers who measure them, which loopback has none of.
    within(
        "stream_options",
        options.allow("include_obfuscation", &[json!(false)]),
    )?;
    within("stream_options", options.finish())?;
    Ok(usage.unwrap_or(false))
}

fn read(fields: &mut Fields, model: &Model) -> Result<(Order, bool)> {
    let messages = read_messages("messages", fields.require("messages")?)?;
    let thinking = Thinking::take(fields, model)?;
    let tools = read_tools(fields.take("tools")?)?;
    let choice = fields.take::<Value>("tool_choice")?;
    let forced = force_call(model, choice.as_ref(), tools.as_ref())?;
    let tools = tools.filter(|_| choice.is_none_or(|choice| choice != "none"));
    let calls = tools.is_some();
    let rendered = render(model, messages, thinking.enabled, tools)?;
    let mut drawing = Drawing::take(fields, model, rendered.thinks)?;
    let (old, new) = (fields.take("max_tokens")?, fields.take("max_completion_tokens")?);
    drawing.limit(
        "max_completion_tokens",
        new.or(old),
        rendered.prompt.ids.len(),
        model,
    )?;
    let logprobs = fields.take("logprobs")?.unwrap_or(false);
    let likeliest = fields.take("top_logprobs")?;
    if likeliest.is_some() && !logprobs {
        return Err(Error::field(
            "top_logprobs",
            "expected only where `logprobs` is true",
        ));
    }
    if likeliest > Some(MOST_LIKELIEST) {
        let what = format!("expected at most {MOST_LIKELIEST}");
        return Err(Error::field("top_logprobs", what));
    }
    let format = take_format(fields, model)?;
    if calls && format.is_some() {
        return Err(Error::field(
            "response_format",
            "expected only without `tools`: a call is not of the schema",
        ));
    }
    allow_what_changes_nothing(fields)?;
    let order = Order {
        rendered,
        drawing,
        tools: calls,
        likeliest: likeliest.unwrap_or(0),
        thinking_budget: thinking.budget,
        grammar: format.or(forced),
    };
    Ok((order, logprobs))
}

/// What has the model call a tool, where `tool_choice` says that it must.
fn force_call(
    model: &Model,
    choice: Option<&Value>,
    tools: Option<&Value>,
) -> Result<Option<Box<dyn Constraint>>> {
    let all: Vec<&Value> = tools.and_then(Value::as_array).into_iter().flatten().collect();
    let chosen = match choice {
        None => return Ok(None),
        Some(choice) if choice == "none" || choice == "auto" => return Ok(None),
        Some(choice) if choice == "required" => all,
        Some(choice) => {
            let name = &choice["function"]["name"];
            let named = all.into_iter().filter(|tool| tool["function"]["name"] == *name);
            if choice["type"] != "function" || !name.is_string() {
                let expected = "expected none, auto, required or {type: function, function: {name}}";
                return Err(Error::field("tool_choice", format!("{expected}, found {choice}")));
            }
            named.collect()
        }
    };
    if chosen.is_empty() {
        return Err(Error::field(
            "tool_choice",
            "expected a tool of `tools`, found none",
        ));
    }
    model.grammars.call(&chosen, &model.tokenizer).map(Some)
}

/// `response_format`: any JSON, or JSON of a schema.
fn take_format(fields: &mut Fields, model: &Model) -> Result<Option<Box<dyn Constraint>>> {
    let Some(mut format) = fields.take::<Fields>("response_format")? else {
        return Ok(None);
    };
    let read = |format: &mut Fields| {
        Ok((
            format.require::<String>("type")?,
            format.take::<Fields>("json_schema")?,
        ))
    };
    let (kind, named) = within("response_format", read(&mut format))?;
    within("response_format", format.finish())?;
    let schema = match (kind.as_str(), named) {
        ("text", None) => return Ok(None),
        ("json_object", None) => json!({"type": "object"}),
        ("json_schema", Some(mut named)) => {
            let path = "response_format.json_schema";
            let schema = within(path, named.require("schema"))?;
            within(path, named.take::<String>("name"))?;
            within(path, named.take::<String>("description"))?;
            // Strict or not, the reply follows the schema.
            within(path, named.take::<bool>("strict"))?;
            within(path, named.finish())?;
            schema
        }
        ("json_schema", None) => {
            return Err(Error::field(
                "response_format.json_schema",
                "expected an object, found none",
            ));
        }
        ("text" | "json_object", Some(_)) => {
            return Err(Error::field(
                "response_format.json_schema",
                "expected only where the type is `json_schema`",
            ));
        }
        (other, _) => {
            let what = format!("expected text, json_object or json_schema, found `{other}`");
            return Err(Error::field("response_format.type", what));
        }
    };
    model
        .grammars
        .json("response_format", schema, &model.tokenizer)
        .map(Some)
}

/// Fields that say who asks, and fields of which only the value is supported that asks for nothing.
fn allow_what_changes_nothing(fields: &mut Fields) -> Result<()> {
    for label in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.take::<String>(label)?;
    }
    fields.take::<Map<String, Value>>("metadata")?;
    fields.allow("store", &[json!(false)])?;
    fields.allow("service_tier", &[json!("auto"), json!("default")])?;
    fields.allow("parallel_tool_calls", &[json!(true)])?;
    fields.allow("modalities", &[json!(["text"])])
}

#[derive(Default)]
struct Choice {
    thinking: Option<String>,
    content: Option<String>,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
    ids: Vec<u32>,
    end: Option<End>,
}

async fn whole(mut generation: Generation, form: &Form, count: usize) -> Result<Value> {
    let mut choices: Vec<Choice> = (0..count).map(|_| Choice::default()).collect();
    while let Some(step) = generation.next().await? {
        let choice = &mut choices[step.index];
        choice.ids.extend(step.draws.iter().map(|draw| draw.id));
        if form.logprobs {
            choice
                .logprobs
                .extend(logprobs_json(&form.model.tokenizer, &step.draws)?);
        }
        for delta in step.deltas {
            match delta {
                Delta::Thinking(text) => choice.thinking.get_or_insert_default().push_str(&text),
                Delta::Content(text) => choice.content.get_or_insert_default().push_str(&text),
                Delta::Call(call) => choice.calls.push(call_json(&call)),
            }
        }
        choice.end = step.end.or(choice.end.take());
    }
    let choices: Vec<Value> = choices
        .into_iter()
        .enumerate()
        .map(|(index, choice)| choice_json(index, choice, form))
        .collect();
    let mut json = json!({
        "id": form.id,
        "object": "chat.completion",
        "created": form.created,
        "model": form.model.name,
        "choices": choices,
        "usage": generation.usage().json(),
    });
    if form.ids {
        json["prompt_token_ids"] = json!(generation.prompt_ids());
    }
    Ok(json)
}

fn choice_json(index: usize, choice: Choice, form: &Form) -> Value {
    let mut message =
        json!({"role": "assistant", "content": choice.content, "refusal": null, "annotations": []});
    if let Some(thinking) = choice.thinking {
        // Some clients look for one name, some for the other.
        message["reasoning_content"] = json!(thinking);
        message["reasoning"] = json!(thinking);
    }
    if !choice.calls.is_empty() {
        message["tool_calls"] = choice.calls.into();
    }
    let mut json = json!({
        "index": index,
        "message": message,
        "logprobs": form.logprobs.then(|| json!({"content": choice.logprobs, "refusal": null})),
    });
    if form.ids {
        json["token_ids"] = json!(choice.ids);
    }
    end_json(choice.end.as_ref(), &mut json);
    json
}

/// Puts `finish_reason` and, where there is a guard, `safety` into a choice.
pub(crate) fn end_json(end: Option<&End>, choice: &mut Value) {
    choice["finish_reason"] = json!(end.map(|end| end.reason));
    if let Some(safety) = end.and_then(|end| end.safety.clone()) {
        choice["safety"] = safety;
    }
}

fn call_json(call: &Call) -> Value {
    json!({
        "id": name("call_"),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    })
}

/// Writes `chat.completion.chunk`s.
struct Chunks {
    form: Form,
    usage: bool,
    /// How many calls each choice has had.
    calls: Vec<usize>,
}

impl Chunks {
    fn chunk(&self, choices: Vec<Value>, usage: Option<Value>) -> Event {
        let mut chunk = json!({
            "id": self.form.id,
            "object": "chat.completion.chunk",
            "created": self.form.created,
            "model": self.form.model.name,
            "choices": choices,
        });
        if self.usage {
            chunk["usage"] = json!(usage);
        }
        data(&chunk)
    }

    /// One delta as the chunks' `delta` objects: a call's name comes first, its arguments next.
    fn deltas(&mut self, index: usize, delta: Delta) -> Vec<Value> {
        match delta {
            Delta::Thinking(text) => vec![json!({"reasoning_content": text, "reasoning": text})],
            Delta::Content(text) => vec![json!({"content": text})],
            Delta::Call(call) => {
                let number = self.calls[index];
                self.calls[index] += 1;
                let mut first = call_json(&call);
                first["index"] = json!(number);
                let arguments = first["function"]["arguments"].take();
                first["function"]["arguments"] = json!("");
                let rest = json!({"index": number, "function": {"arguments": arguments}});
                vec![json!({"tool_calls": [first]}), json!({"tool_calls": [rest]})]
            }
        }
    }
}

impl Writer for Chunks {
    fn begin(&mut self) -> Vec<Event> {
        let delta = json!({"role": "assistant", "content": ""});
        let choice = |index| json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
        (0..self.calls.len())
            .map(|index| self.chunk(vec![choice(index)], None))
            .collect()
    }

    fn step(&mut self, step: Step, _: &Generation) -> Result<Vec<Event>> {
        let mut logprobs = None;
        if self.form.logprobs && !step.draws.is_empty() {
            let content = logprobs_json(&self.form.model.tokenizer, &step.draws)?;
            logprobs = Some(json!({"content": content, "refusal": null}));
        }
        let mut deltas: Vec<Value> = step
            .deltas
            .into_iter()
            .flat_map(|delta| self.deltas(step.index, delta))
            .collect();
        if deltas.is_empty() && logprobs.is_some() {
            deltas.push(json!({}));
        }
        let mut choices: Vec<Value> = deltas
            .into_iter()
            .map(|delta| {
                let logprobs = logprobs.take();
                json!({"index": step.index, "delta": delta, "logprobs": logprobs, "finish_reason": null})
            })
            .collect();
        if step.end.is_some() {
            let mut last = json!({"index": step.index, "delta": {}, "logprobs": null});
            end_json(step.end.as_ref(), &mut last);
            choices.push(last);
        }
        Ok(choices
            .into_iter()
            .map(|choice| self.chunk(vec![choice], None))
            .collect())
    }

    fn end(&mut self, generation: &Generation) -> Vec<Event> {
        let usage = self
            .usage
            .then(|| self.chunk(vec![], Some(generation.usage().json())));
        usage
            .into_iter()
            .chain([Event::default().data("[DONE]")])
            .collect()
    }
}
