//! The guard as a chat model: what Qwen3Guard-Gen answers, under the guard's name.

use std::sync::Arc;

use axum::body::{Body as RawBody, to_bytes};
use axum::extract::{Request as HttpRequest, State};
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use judge::guard::qwen3guard;
use judge::{Conversation, Scored};
use model::chat::{Message, Role};
use serde::Deserialize;
use serde_json::{Value, json};

use super::audit::now;
use super::conversation::{check_reply, messages};
use super::service::Service;
use crate::server::BODY_LIMIT;
use crate::{Body, Error, Result};

/// Where chat completions are.
const CHAT: &str = "/v1/chat/completions";

/// Puts the guard's chat completions before those of `parts`, which keep every other model's name.
pub fn with_guard(parts: Router, service: Arc<Service>) -> Router {
    parts.layer(from_fn_with_state(service, divert))
}

async fn divert(State(service): State<Arc<Service>>, request: HttpRequest, next: Next) -> Response {
    if request.uri().path() != CHAT || request.method() != Method::POST {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let Ok(bytes) = to_bytes(body, BODY_LIMIT).await else {
        return Error::BodyLimit(BODY_LIMIT).into_response();
    };
    let asked: Option<Value> = serde_json::from_slice(&bytes).ok();
    match asked.filter(|body| body["model"] == *service.settings().names.guard) {
        Some(body) => moderate_chat(&service, &body).await.map(Json).into_response(),
        None => {
            next.run(HttpRequest::from_parts(head, RawBody::from(bytes)))
                .await
        }
    }
}

/// The chat completions of the guard, and the list of models, for a server that serves no model beside.
pub fn chat_router(service: Arc<Service>) -> Router {
    Router::new()
        .route(CHAT, post(answer))
        .route("/v1/models", get(models))
        .with_state(service)
}

async fn answer(State(service): State<Arc<Service>>, Body(body): Body<Value>) -> Result<Json<Value>> {
    let name = &service.settings().names.guard;
    match body["model"].as_str() {
        Some(found) if found == name => moderate_chat(&service, &body).await.map(Json),
        found => Err(Error::UnknownModel {
            expected: vec![name.clone()],
            found: found.unwrap_or("none").to_owned(),
        }),
    }
}

async fn models(State(service): State<Arc<Service>>) -> Json<Value> {
    let names = &service.settings().names;
    let model = |id: &String| json!({ "id": id, "object": "model", "owned_by": "saferl" });
    let data: Vec<_> = [&names.guard, &names.reward, &names.helpfulness]
        .map(model)
        .into();
    Json(json!({ "object": "list", "data": data }))
}

/// What a chat request may hold. What would change the answer and is not there is refused; what only concerns sampling
/// has no meaning here.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    model: String,
    messages: Vec<Value>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    n: Option<u64>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default, rename = "temperature")]
    _temperature: Value,
    #[serde(default, rename = "top_p")]
    _top_p: Value,
    #[serde(default, rename = "top_k")]
    _top_k: Value,
    #[serde(default, rename = "seed")]
    _seed: Value,
    #[serde(default, rename = "max_tokens")]
    _max_tokens: Value,
    #[serde(default, rename = "max_completion_tokens")]
    _max_completion_tokens: Value,
    #[serde(default, rename = "chat_template_kwargs")]
    _chat_template_kwargs: Value,
    #[serde(default, rename = "user")]
    _user: Value,
}

/// Answers a chat request, given as its JSON body, with the guard's lines on its last message: the user's prompt, or the
/// assistant's reply.
///
/// # Errors
/// A request that the guard cannot answer; a verdict that could not be had, 503.
async fn moderate_chat(service: &Service, body: &Value) -> Result<Value> {
    let request: Request = crate::body::read(body.to_string().as_bytes())?;
    for (field, refused) in [
        ("stream", request.stream == Some(true)),
        ("logprobs", request.logprobs == Some(true)),
        ("n", request.n.is_some_and(|n| n != 1)),
    ] {
        if refused {
            return Err(Error::field(
                field,
                "the guard gives one whole answer of three lines",
            ));
        }
    }
    let mut turns = messages(&request.messages).map_err(Error::Request)?;
    let reply = match turns.last() {
        Some(Message { role: Role::User, .. }) => None,
        Some(Message {
            role: Role::Assistant,
            ..
        }) => {
            let reply = turns.pop();
            if let Some(reply) = &reply {
                check_reply(reply).map_err(|what| Error::field("messages", what))?;
            }
            reply.map(|reply| reply.content)
        }
        _ => {
            return Err(Error::field(
                "messages",
                "expected the last to be the user's or the assistant's",
            ));
        }
    };
    let conversation = Conversation {
        messages: turns,
        reply,
    };
    let moderation = match service.moderate("guard_chat", conversation).await? {
        Scored::Scored(moderation) => moderation,
        Scored::Unscorable(cause) => return Err(Error::Unscorable(vec![Some(cause)])),
    };
    let created = now() as u64;
    Ok(json!({
        "id": format!("chatcmpl-{created}"),
        "object": "chat.completion",
        "created": created,
        "model": request.model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": qwen3guard::format(&moderation) },
            "finish_reason": "stop",
        }],
    }))
}
