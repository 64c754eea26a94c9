//! The answers of reward models on vLLM: `/classify` and `/pooling`.
//!
//! Scores are raw, never squashed: a client that asks for the activation is refused. `model` chooses between the reward
//! and the helpfulness alone; without it the reward is meant. `/classify` with `text` is SGLang's form.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use judge::{Exchange, Scored};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::all_scored;
use super::audit::now;
use super::conversation::{exchange_of, messages};
use super::service::Service;
use super::template::whole;
use crate::{Body, Error, Result};

/// `POST /classify`, `POST /pooling`, `POST /v1/embeddings`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Request {
    model: Option<String>,
    /// Templated text, prompt and reply together.
    input: Option<Texts>,
    /// SGLang's name for the same.
    text: Option<Texts>,
    messages: Option<Vec<Value>>,
    use_activation: Option<bool>,
    activation: Option<bool>,
    /// Lists of numbers are given whatever is asked for: OpenAI's client takes both.
    #[serde(rename = "encoding_format")]
    _encoding_format: Option<String>,
    #[serde(rename = "user")]
    _user: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

/// `POST /classify`
pub(crate) async fn classify(
    State(service): State<Arc<Service>>,
    Body(request): Body<Request>,
) -> Result<Json<Value>> {
    let sglang = request.text.is_some();
    let (model, scores) = score(&service, "classify", request).await?;
    if sglang {
        let answers: Vec<_> = scores
            .iter()
            .map(|score| json!({ "embedding": [score], "meta_info": {} }))
            .collect();
        return Ok(Json(answers.into()));
    }
    let class = |(index, score): (usize, &f32)| json!({ "index": index, "label": "LABEL_0", "probs": [score], "num_classes": 1 });
    Ok(Json(list(
        "classify",
        &model,
        scores.iter().enumerate().map(class).collect(),
    )))
}

/// `POST /pooling`
pub(crate) async fn pooling(
    State(service): State<Arc<Service>>,
    Body(request): Body<Request>,
) -> Result<Json<Value>> {
    let (model, scores) = score(&service, "pooling", request).await?;
    let pooled =
        |(index, score): (usize, &f32)| json!({ "index": index, "object": "pooling", "data": [score] });
    Ok(Json(list(
        "pool",
        &model,
        scores.iter().enumerate().map(pooled).collect(),
    )))
}

fn list(kind: &str, model: &str, data: Vec<Value>) -> Value {
    let created = now() as u64;
    json!({ "id": format!("{kind}-{created}"), "object": "list", "created": created, "model": model, "data": data })
}

/// The score of each of a request's conversations, and the name of what gave it.
///
/// # Errors
/// [`Error::Unscorable`] where one has none; a request that is not one of these protocols'.
pub(crate) async fn score(
    service: &Service,
    protocol: &'static str,
    request: Request,
) -> Result<(String, Vec<f32>)> {
    for (field, value) in [
        ("use_activation", request.use_activation),
        ("activation", request.activation),
    ] {
        if value == Some(true) {
            return Err(Error::field(
                field,
                "expected false: scores are raw here, found true",
            ));
        }
    }
    let names = &service.settings().names;
    let model = request.model.unwrap_or_else(|| names.reward.clone());
    let exchanges = match (request.input, request.text, request.messages) {
        (Some(texts), None, None) | (None, Some(texts), None) => {
            texts_of(texts).iter().map(|text| whole(text)).collect()
        }
        (None, None, Some(values)) => vec![messages(&values).and_then(exchange_of)],
        _ => {
            return Err(Error::field(
                "input",
                "expected exactly one of `input`, `text` and `messages`",
            ));
        }
    };
    let scores = scores(service, protocol, &model, exchanges).await?;
    Ok((model, all_scored(scores)?))
}

async fn scores(
    service: &Service,
    protocol: &'static str,
    model: &str,
    exchanges: Vec<std::result::Result<Exchange, String>>,
) -> Result<Vec<Scored<f32>>> {
    let names = &service.settings().names;
    if model == names.reward {
        let value = |judged: super::answer::Judged| match judged.reward {
            Scored::Scored(reward) => Scored::Scored(reward.value),
            Scored::Unscorable(cause) => Scored::Unscorable(cause),
        };
        let judged = service.rewards(protocol, exchanges).await?;
        return Ok(judged.into_iter().map(value).collect());
    }
    if model == names.helpfulness {
        return service.helpfulness(protocol, exchanges).await;
    }
    Err(Error::UnknownModel {
        expected: vec![names.reward.clone(), names.helpfulness.clone()],
        found: model.to_owned(),
    })
}

fn texts_of(texts: Texts) -> Vec<String> {
    match texts {
        Texts::One(text) => vec![text],
        Texts::Many(texts) => texts,
    }
}
