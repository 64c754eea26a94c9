//! Our own protocol: conversations in, rewards with their parts out, an error for each item that has none.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use judge::Scored;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Judged;
use super::conversation::{exchange_of, messages};
use super::service::Service;
use crate::{Body, Result};

/// `POST /v1/reward`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    items: Vec<Item>,
}

/// A conversation whose last message is the reply under judgement.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    messages: Vec<Value>,
    /// Comes back with the item.
    #[serde(default)]
    id: Option<Value>,
}

/// Answers `{"items": [{"reward", "branch", "components"}]}`; an item without a reward has `error` in its place.
pub(crate) async fn answer(
    State(service): State<Arc<Service>>,
    Body(request): Body<Request>,
) -> Result<Json<Value>> {
    let (ids, exchanges) = request
        .items
        .into_iter()
        .map(|item| (item.id, messages(&item.messages).and_then(exchange_of)))
        .unzip::<_, _, Vec<_>, Vec<_>>();
    let judged = service.rewards("v1_reward", exchanges).await?;
    let items: Vec<Value> = ids
        .into_iter()
        .zip(&judged)
        .map(|(id, judged)| item(id, judged))
        .collect();
    Ok(Json(json!({ "items": items })))
}

fn item(id: Option<Value>, judged: &Judged) -> Value {
    let mut item = match &judged.reward {
        Scored::Scored(reward) => json!({ "reward": reward.value, "branch": reward.branch }),
        Scored::Unscorable(cause) => json!({ "error": cause }),
    };
    item["components"] = judged.components();
    if let Some(id) = id {
        item["id"] = id;
    }
    item
}
