//! The answers of reward models on SGLang: `/v1/embeddings`, an embedding of one number.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::service::Service;
use super::vllm::{Request, score};
use crate::{Body, Result};

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(
    State(service): State<Arc<Service>>,
    Body(request): Body<Request>,
) -> Result<Json<Value>> {
    let (model, scores) = score(&service, "embeddings", request).await?;
    let embedding = |(index, score): (usize, &f32)| json!({ "object": "embedding", "index": index, "embedding": [score] });
    let data: Vec<Value> = scores.iter().enumerate().map(embedding).collect();
    Ok(Json(json!({ "object": "list", "model": model, "data": data })))
}
