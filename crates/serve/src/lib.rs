//! HTTP: OpenAI-compatible generation, moderation, the reward service, the web page.
//!
//! Each part is a router of its own; [`server`] puts them behind one door that checks the key, limits bodies, counts
//! requests and drains before it stops. Errors leave in OpenAI's shape, and only [`error`] knows their HTTP status.
//!
//! ```
//! use std::sync::Arc;
//!
//! use axum::Router;
//! use axum::body::Body;
//! use axum::http::{Request, StatusCode};
//! use serve::{Door, Metrics, close};
//! use tower::ServiceExt;
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let door = Door { key: Some("secret".into()), ..Door::default() };
//! let app = close(Router::new(), &door, Arc::new(Metrics::default()));
//!
//! let ask = |path: &str| Request::get(path).body(Body::empty());
//! assert_eq!(app.clone().oneshot(ask("/health")?).await?.status(), StatusCode::OK);
//! assert_eq!(app.oneshot(ask("/metrics")?).await?.status(), StatusCode::UNAUTHORIZED);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod body;
mod draft;
pub mod error;
#[cfg(test)]
mod fixtures;
pub mod grammar;
pub mod guardrail;
pub mod metrics;
pub mod openai;
pub mod page;
pub mod reasoning;
pub mod reply;
pub mod reward;
pub mod runs;
pub mod scheduler;
pub mod server;
pub mod thinking;
pub mod tools;

pub use axum::Router;
pub use body::Body;
pub use error::{Error, Result};
pub use grammar::Grammars;
pub use guardrail::{Action, Guardrail};
pub use metrics::Metrics;
pub use openai::{Model, Service};
pub use reasoning::Parser;
pub use scheduler::{Limits, Scheduler};
pub use server::{Door, close, run};
