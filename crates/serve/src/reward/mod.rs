//! The safety reward as a service: every protocol that trainers speak, on one queue of judges.
//!
//! ```text
//! protocol --conversation--> Service: cache -> bounded queue -> micro-batch -> judges --verdict--> protocol's answer
//! ```
//!
//! | path | who asks |
//! |---|---|
//! | `POST /v1/reward` | anyone: our own protocol, an `error` an item where it cannot be scored |
//! | `POST /get_reward` | OpenRLHF's `--remote_rm_url` |
//! | `POST /slime`, `/slime/parts` | slime's `--rm-type remote_rm` |
//! | `POST /verify`, `/seed_session`, `/close_session`, `/aggregate_metrics` | NeMo-Gym |
//! | `POST /classify`, `/pooling` | clients of vLLM's reward models (`/classify` with `text`: of SGLang's) |
//! | `POST /v1/embeddings` | clients of SGLang's reward models |
//! | `POST /v1/chat/completions` under the guard's name | clients of Qwen3Guard-Gen ([`chat_router`], [`with_guard`]) |
//!
//! What cannot be scored is never a number. A protocol that has no place for an item's error answers 503 with the
//! causes; what could be scored is in the cache by then, so that asking again is cheap.

mod answer;
mod audit;
mod cache;
mod conversation;
mod guard_chat;
mod nemo_gym;
mod openrlhf;
mod queue;
mod service;
mod sglang;
mod slime;
mod template;
mod v1_reward;
mod vllm;
mod worker;

use std::sync::Arc;

use axum::Router;
use axum::routing::post;

pub use guard_chat::{chat_router, with_guard};
pub use service::{Names, Service, Settings};

/// The routes of every protocol; the chat completions of the guard's name are [`chat_router`]'s and
/// [`with_guard`]'s.
pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/reward", post(v1_reward::answer))
        .route("/get_reward", post(openrlhf::answer))
        .route("/slime", post(slime::answer))
        .route("/slime/parts", post(slime::answer_parts))
        .route("/verify", post(nemo_gym::verify))
        .route("/seed_session", post(nemo_gym::session))
        .route("/close_session", post(nemo_gym::session))
        .route("/aggregate_metrics", post(nemo_gym::aggregate_metrics))
        .route("/classify", post(vllm::classify))
        .route("/pooling", post(vllm::pooling))
        .route("/v1/embeddings", post(sglang::embeddings))
        .with_state(service)
}

#[cfg(test)]
mod tests;
