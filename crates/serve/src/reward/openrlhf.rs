//! OpenRLHF's remote reward model (`--remote_rm_url http://HOST:PORT/get_reward`).
//!
//! It posts what the model read and wrote as one text, `query`, beside the part that it read, `prompts`; older versions
//! send `query` alone. Labels are not needed and not looked at. `scores` is 1 for a safe, helpful answer and 0 for the
//! rest, which is what its dynamic filtering asks for; `extra_logs` are the parts of the reward.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use judge::{Branch, Exchange};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Judged, all_rewards};
use super::service::Service;
use super::template::{prompt_and_reply, whole, whole_after};
use crate::{Body, Error, Result};

/// `POST /get_reward`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    query: Vec<String>,
    #[serde(default)]
    prompts: Vec<String>,
    #[serde(default)]
    labels: Vec<Value>,
}

/// Answers `{"rewards", "scores", "extra_logs"}`, lists as long as `query`.
pub(crate) async fn answer(
    State(service): State<Arc<Service>>,
    Body(request): Body<Request>,
) -> Result<Json<Value>> {
    let count = request.query.len();
    for (field, found) in [
        ("prompts", request.prompts.len()),
        ("labels", request.labels.len()),
    ] {
        if found != 0 && found != count {
            let what = format!("expected as many as `query` has, {count}, found {found}");
            return Err(Error::field(field, what));
        }
    }
    let exchange = |(index, query): (usize, &String)| exchange(query, request.prompts.get(index));
    let exchanges = request.query.iter().enumerate().map(exchange).collect();
    let judged = service.rewards("openrlhf", exchanges).await?;
    let rewards = all_rewards(&judged)?;
    let scores: Vec<f32> = rewards
        .iter()
        .map(|reward| f32::from(u8::from(reward.branch == Branch::Safe)))
        .collect();
    let rewards: Vec<f32> = rewards.iter().map(|reward| reward.value).collect();
    Ok(Json(
        json!({ "rewards": rewards, "scores": scores, "extra_logs": logs(&judged) }),
    ))
}

fn exchange(query: &str, prompt: Option<&String>) -> std::result::Result<Exchange, String> {
    let Some(prompt) = prompt else {
        return whole(query);
    };
    match query.strip_prefix(prompt.as_str()) {
        Some(reply) => prompt_and_reply(prompt, reply),
        // Decoding need not give the prompt back to the letter.
        None => whole_after(prompt, query),
    }
}

/// The parts that every item has, a list each.
fn logs(judged: &[Judged]) -> BTreeMap<&'static str, Vec<f32>> {
    let mut logs: BTreeMap<&'static str, Vec<f32>> = BTreeMap::new();
    for (name, value) in judged.iter().flat_map(Judged::numbers) {
        logs.entry(name).or_default().push(value);
    }
    logs.retain(|_, values| values.len() == judged.len());
    logs
}
