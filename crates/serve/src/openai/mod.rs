//! The endpoint: OpenAI's API over local models, as far as it is supported. A field that is not is a 400 that names it.

mod chat;
mod completions;
mod generation;
mod messages;
mod moderations;
mod responses;
mod sampling;
mod stream;
#[cfg(test)]
mod tests;
mod tokenize;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use model::engine::Adapted;
use model::tokenizer::Tokenizer;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::error::{Error, Result};
use crate::grammar::Grammars;
use crate::guardrail::Guardrail;
use crate::reasoning::Parser;
use crate::scheduler::Scheduler;

/// The API's description; a test holds it and the router together.
pub const OPENAPI: &str = include_str!("openapi.json");

/// A model that is served.
#[derive(Clone)]
pub struct Model {
    /// The name that requests ask for it by.
    pub name: String,
    /// Its tokenizer and chat template.
    pub tokenizer: Arc<Tokenizer>,
    /// Its engine, which it may share with models that have the same weights.
    pub scheduler: Scheduler,
    /// The adapters that the engine makes its replies with, if any.
    pub adapted: Option<Adapted>,
    /// What holds its replies to JSON schemas.
    pub grammars: Grammars,
    /// Which convention it thinks by.
    pub parser: Parser,
    /// Most tokens of a prompt and its reply together: what both the model and the engine's room allow.
    pub context: usize,
    /// How many tokens its logits tell apart.
    pub vocabulary: usize,
}

/// What the endpoint serves.
#[derive(Clone)]
pub struct Service {
    models: Arc<[Model]>,
    guardrail: Option<Guardrail>,
    /// Places for requests of moderation, which wait for the guard one after another.
    moderations: Arc<Semaphore>,
    created: u64,
}

impl Service {
    /// A service of these models; where it is one alone, a request need not name it.
    pub fn new(models: Vec<Model>, guardrail: Option<Guardrail>) -> Self {
        Self {
            models: models.into(),
            guardrail,
            moderations: Arc::new(Semaphore::new(moderations::MOST_AT_ONCE)),
            created: now(),
        }
    }

    fn model(&self, name: Option<&str>) -> Result<&Model> {
        let found = match (name, &*self.models) {
            (Some(name), models) => models.iter().find(|model| model.name == name),
            (None, [alone]) => Some(alone),
            (None, _) => None,
        };
        found.ok_or_else(|| {
            let expected: Vec<String> = self.models.iter().map(|model| model.name.clone()).collect();
            let unnamed = || Error::field("model", format!("expected one of {}", expected.join(", ")));
            let unknown = |found: &str| Error::UnknownModel {
                expected: expected.clone(),
                found: found.to_owned(),
            };
            name.map_or_else(unnamed, unknown)
        })
    }
}

/// The endpoint's routes.
pub fn router(service: Service) -> Router {
    Router::new()
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*name}", get(show_model))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/responses", post(responses::respond))
        .route("/v1/moderations", post(moderations::moderate))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/openapi.json", get(describe))
        .with_state(service)
}

async fn describe() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

async fn list_models(State(service): State<Service>) -> Json<Value> {
    let models: Vec<Value> = service.models.iter().map(|model| card(&service, model)).collect();
    Json(json!({"object": "list", "data": models}))
}

async fn show_model(
    State(service): State<Service>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Json<Value>> {
    Ok(Json(card(&service, service.model(Some(&name))?)))
}

fn card(service: &Service, model: &Model) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": service.created,
        "owned_by": "saferl",
        "max_model_len": model.context,
        "reasoning_parser": model.parser,
        "guard": service.guardrail.as_ref().map(|guardrail| &guardrail.name),
    })
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A name for a reply or a call that no other has.
fn name(prefix: &str) -> String {
    format!("{prefix}{:032x}", rand::random::<u128>())
}
