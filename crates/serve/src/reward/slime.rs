//! slime's remote reward (`--rm-type remote_rm --rm-url http://HOST:PORT/slime`).
//!
//! It posts one sample at a time. `/slime` answers with a number; `/slime/parts` with an object of named numbers, for
//! `--reward-key reward`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use judge::Exchange;
use model::chat::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Judged, all_rewards};
use super::conversation::{exchange_of, messages};
use super::service::Service;
use super::template::prompt_and_reply;
use crate::{Body, Result};

/// `POST /slime`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    prompt: Prompt,
    response: String,
    /// Not needed and not looked at.
    #[serde(default, rename = "label")]
    _label: Value,
}

/// The templated text, or the messages where slime leaves the template out.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Messages(Vec<Value>),
}

/// Answers with the reward, a number.
pub(crate) async fn answer(
    State(service): State<Arc<Service>>,
    Body(request): Body<Request>,
) -> Result<Json<Value>> {
    let judged = service.rewards("slime", vec![exchange(&request)]).await?;
    Ok(Json(
        all_rewards(&judged)?
            .first()
            .map_or(Value::Null, |reward| json!(reward.value)),
    ))
}

/// Answers with `{"reward", "safe", "refusal", "helpfulness"}`.
pub(crate) async fn answer_parts(
    State(service): State<Arc<Service>>,
    Body(request): Body<Request>,
) -> Result<Json<Value>> {
    let judged = service.rewards("slime", vec![exchange(&request)]).await?;
    let rewards = all_rewards(&judged)?;
    let mut parts = json!(judged.first().map(Judged::numbers).unwrap_or_default());
    parts["reward"] = json!(rewards.first().map(|reward| reward.value));
    Ok(Json(parts))
}

fn exchange(request: &Request) -> std::result::Result<Exchange, String> {
    match &request.prompt {
        Prompt::Text(prompt) => prompt_and_reply(prompt, &request.response),
        Prompt::Messages(values) => {
            let mut messages = messages(values)?;
            messages.push(Message::assistant(&request.response));
            exchange_of(messages)
        }
    }
}
