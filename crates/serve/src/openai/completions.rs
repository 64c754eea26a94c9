//! `/v1/completions`: text that goes on, without a chat template.

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use model::chat::{Message, Mode, Prompt};
use model::engine::Draw;
use model::tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::body::{Body, Fields};
use crate::error::{Error, Result};
use crate::openai::chat::{end_json, take_include_usage};
use crate::openai::generation::{End, Generation, Order, Step, Usage};
use crate::openai::messages::Rendered;
use crate::openai::sampling::{Drawing, MOST_LIKELIEST};
use crate::openai::stream::{Writer, data, respond};
use crate::openai::{Model, Service, name, now};
use crate::reply::Delta;

/// Most prompts of a request.
const MOST_PROMPTS: usize = 64;

/// One prompt or several, each as text or as token ids.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Prompts {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    ManyIds(Vec<Vec<u32>>),
}

struct Form {
    id: String,
    created: u64,
    model: Model,
    /// Whether log-probabilities are told.
    logprobs: bool,
}

pub(crate) async fn complete(
    State(service): State<Service>,
    Body(mut fields): Body<Fields>,
) -> Result<Response> {
    let model = service.model(fields.take::<String>("model")?.as_deref())?;
    let prompts = read_prompts(model, fields.require("prompt")?)?;
    let streams = fields.take("stream")?.unwrap_or(false);
    let usage = take_include_usage(&mut fields, streams)?;
    let likeliest: Option<usize> = fields.take("logprobs")?;
    if likeliest > Some(MOST_LIKELIEST) {
        return Err(Error::field(
            "logprobs",
            format!("expected at most {MOST_LIKELIEST}"),
        ));
    }
    // What the API's own default is, where text simply goes on.
    let limit = fields.take("max_tokens")?.or(Some(16));
    fields.allow("echo", &[json!(false)])?;
    fields.allow("best_of", &[json!(1)])?;
    fields.allow("suffix", &[json!("")])?;
    fields.take::<String>("user")?;
    if streams && prompts.len() > 1 {
        return Err(Error::field(
            "prompt",
            "expected one prompt where `stream` is true, found several",
        ));
    }
    let mut orders = Vec::new();
    let mut drawing_fields = fields;
    for (index, prompt) in prompts.into_iter().enumerate() {
        let mut fields = drawing_fields.clone();
        let mut drawing = Drawing::take(&mut fields, model, false)?;
        drawing.limit("max_tokens", limit, prompt.ids.len(), model)?;
        if index == 0 {
            fields.finish()?;
            // Every prompt draws from the same seed, also where none was given.
            drawing_fields.put("seed", json!(drawing.sampling.seed as i64));
        }
        orders.push(Order {
            rendered: Rendered {
                prompt,
                thinks: false,
            },
            drawing,
            tools: false,
            likeliest: likeliest.unwrap_or(0),
            thinking_budget: None,
            grammar: None,
        });
    }
    let form = Form {
        id: name("cmpl-"),
        created: now(),
        model: model.clone(),
        logprobs: likeliest.is_some(),
    };
    let mut generations = Vec::new();
    for order in orders {
        let count = order.drawing.count;
        let generation = Generation::start(model, service.guardrail.as_ref(), order).await?;
        generations.push((generation, count));
    }
    if streams && let Some((generation, count)) = generations.pop() {
        let offsets = vec![0; count];
        return Ok(respond(generation, Chunks { form, usage, offsets }));
    }
    Ok(Json(whole(generations, &form).await?).into_response())
}

fn read_prompts(model: &Model, prompts: Value) -> Result<Vec<Prompt>> {
    let wrong = || Error::field("prompt", "expected a text, token ids, or a list of these");
    let prompts = serde_json::from_value(prompts).map_err(|_| wrong())?;
    let of_text = |text: String| {
        let ids = model.tokenizer.encode_plain(&text)?;
        Ok((ids, text))
    };
    let of_ids = |ids: Vec<u32>| {
        let text = model.tokenizer.decode(&ids, false)?;
        Ok((ids, text))
    };
    let pairs: Vec<(Vec<u32>, String)> = match prompts {
        Prompts::Text(text) => vec![of_text(text)?],
        Prompts::Ids(ids) => vec![of_ids(ids)?],
        Prompts::Texts(texts) => texts.into_iter().map(of_text).collect::<Result<_>>()?,
        Prompts::ManyIds(many) => many.into_iter().map(of_ids).collect::<Result<_>>()?,
    };
    if pairs.is_empty() || pairs.iter().any(|(ids, _)| ids.is_empty()) {
        return Err(Error::field("prompt", "expected at least one token, found none"));
    }
    if pairs.len() > MOST_PROMPTS {
        let what = format!("expected at most {MOST_PROMPTS} prompts, found {}", pairs.len());
        return Err(Error::field("prompt", what));
    }
    let prompt = |(ids, text)| Prompt {
        ids,
        // For the guard, which judges conversations.
        messages: vec![Message::user(text)],
        mode: Mode::NoThink,
    };
    Ok(pairs.into_iter().map(prompt).collect())
}

fn text_of(deltas: Vec<Delta>) -> String {
    let text = |delta| match delta {
        Delta::Thinking(text) | Delta::Content(text) => text,
        Delta::Call(call) => call.arguments,
    };
    deltas.into_iter().map(text).collect()
}

/// `logprobs` as plain completions have them; `offset` is where the tokens' text begins within the reply's.
fn logprobs_json(tokenizer: &Tokenizer, draws: &[Draw], offset: &mut usize) -> Result<Value> {
    let (mut tokens, mut logprobs, mut likeliest, mut offsets) = (vec![], vec![], vec![], vec![]);
    for draw in draws {
        let token = tokenizer.decode(&[draw.id], false)?;
        offsets.push(*offset);
        *offset += token.chars().count();
        tokens.push(token);
        logprobs.push(draw.log_probability);
        let named = draw
            .likeliest
            .iter()
            .map(|&(id, log_probability)| Ok((tokenizer.decode(&[id], false)?, json!(log_probability))));
        likeliest.push(named.collect::<Result<Map<String, Value>>>()?);
    }
    Ok(json!({
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": likeliest,
        "text_offset": offsets,
    }))
}

fn choice_json(index: usize, text: String, logprobs: Option<Value>, end: Option<&End>) -> Value {
    let mut choice = json!({"index": index, "text": text, "logprobs": logprobs});
    end_json(end, &mut choice);
    choice
}

fn completion_json(form: &Form, choices: Vec<Value>) -> Value {
    json!({
        "id": form.id,
        "object": "text_completion",
        "created": form.created,
        "model": form.model.name,
        "choices": choices,
    })
}

async fn whole(generations: Vec<(Generation, usize)>, form: &Form) -> Result<Value> {
    let mut choices = Vec::new();
    let mut usage = Usage::default();
    for (mut generation, count) in generations {
        let mut replies: Vec<(String, Vec<Draw>, Option<End>)> =
            (0..count).map(|_| (String::new(), Vec::new(), None)).collect();
        while let Some(step) = generation.next().await? {
            let (text, draws, end) = &mut replies[step.index];
            text.push_str(&text_of(step.deltas));
            draws.extend(step.draws);
            *end = step.end.or(end.take());
        }
        for (text, draws, end) in replies {
            let told = form
                .logprobs
                .then(|| logprobs_json(&form.model.tokenizer, &draws, &mut 0));
            choices.push(choice_json(choices.len(), text, told.transpose()?, end.as_ref()));
        }
        let used = generation.usage();
        usage.prompt += used.prompt;
        usage.completion += used.completion;
    }
    let mut completion = completion_json(form, choices);
    completion["usage"] = usage.json();
    Ok(completion)
}

struct Chunks {
    form: Form,
    usage: bool,
    offsets: Vec<usize>,
}

impl Writer for Chunks {
    fn begin(&mut self) -> Vec<Event> {
        Vec::new()
    }

    fn step(&mut self, step: Step, _: &Generation) -> Result<Vec<Event>> {
        let offset = &mut self.offsets[step.index];
        let told = self
            .form
            .logprobs
            .then(|| logprobs_json(&self.form.model.tokenizer, &step.draws, offset));
        let choice = choice_json(
            step.index,
            text_of(step.deltas),
            told.transpose()?,
            step.end.as_ref(),
        );
        Ok(vec![data(&completion_json(&self.form, vec![choice]))])
    }

    fn end(&mut self, generation: &Generation) -> Vec<Event> {
        let usage = self.usage.then(|| {
            let mut chunk = completion_json(&self.form, vec![]);
            chunk["usage"] = generation.usage().json();
            data(&chunk)
        });
        usage
            .into_iter()
            .chain([Event::default().data("[DONE]")])
            .collect()
    }
}
