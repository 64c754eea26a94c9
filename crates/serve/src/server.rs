//! The door: one application of all parts, with the key checked, bodies limited and requests counted; run until told
//! to stop, and then only after what is under way is done.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// Most bytes of a request's body.
pub const BODY_LIMIT: usize = 8 << 20;

/// Paths that need no key: one says nothing, the pages ask for the key themselves.
const OPEN_PATHS: [&str; 3] = ["/health", "/", "/runs"];

/// Who may come in.
#[derive(Debug, Clone, Default)]
pub struct Door {
    /// The key that every request must bring as `Authorization: Bearer KEY`; none on a machine of one's own.
    pub key: Option<String>,
}

/// Puts the parts behind the door and adds `/health` and `/metrics`.
pub fn close(parts: Router, door: &Door, metrics: Arc<Metrics>) -> Router {
    let shown = Arc::clone(&metrics);
    let show = move || async move {
        let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
        (kind, shown.render()).into_response()
    };
    parts
        .route(
            "/health",
            get(|| async { axum::Json(serde_json::json!({"status": "ok"})) }),
        )
        .route("/metrics", get(show))
        .fallback(|request: Request| async move { Error::UnknownPath(request.uri().path().to_owned()) })
        .method_not_allowed_fallback(|request: Request| async move {
            Error::Method(format!("{} {}", request.method(), request.uri().path()))
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(from_fn_with_state(door.key.clone(), check_key))
        .layer(from_fn_with_state(metrics, count))
        .layer(from_fn(harden))
}

async fn check_key(State(key): State<Option<String>>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    let allowed = match &key {
        _ if OPEN_PATHS.contains(&request.uri().path()) => true,
        None => true,
        Some(key) => given.is_some_and(|given| same(given.as_bytes(), key.as_bytes())),
    };
    if allowed {
        next.run(request).await
    } else {
        Error::Key.into_response()
    }
}

/// Compares in a time that does not tell where the first difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    let difference = left
        .iter()
        .zip(right)
        .fold(0, |all, (left, right)| all | (left ^ right));
    left.len() == right.len() && std::hint::black_box(difference) == 0
}

async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    // The route and not the path: what people type must not make labels without end.
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("unknown", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics.count(
        "saferl_requests_total",
        &[("path", &path), ("status", &status)],
        1.0,
    );
    let seconds = started.elapsed().as_secs_f64();
    metrics.count("saferl_request_seconds_sum", &[("path", &path)], seconds);
    metrics.count("saferl_request_seconds_count", &[("path", &path)], 1.0);
    response
}

/// Browsers are to take a reply for what it says it is, and not to show it within another page.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        response
            .headers_mut()
            .insert(name, axum::http::HeaderValue::from_static(value));
    }
    response
}

/// Serves until the process is asked to stop (Ctrl-C, or SIGTERM), then takes nothing new and ends once what is under
/// way is done. `ready` is told the address, whose port is the one that was found where 0 was asked for.
///
/// # Errors
/// An address that cannot be taken, or that other machines reach while the door has no key.
pub fn run(app: Router, door: &Door, address: SocketAddr, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    if door.key.is_none() && !address.ip().is_loopback() {
        return Err(Error::Open(address));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::Server)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Address { address, source })?;
        ready(listener.local_addr().map_err(Error::Server)?);
        axum::serve(listener, app)
            .with_graceful_shutdown(stop())
            .await
            .map_err(Error::Server)
    })
}

/// Resolves when the process is asked to stop.
fn stop() -> impl Future<Output = ()> {
    let interrupt = async {
        // Where signals cannot be heard, the process still ends by them: without a drain.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    async {
        futures_util::future::select(Box::pin(interrupt), Box::pin(terminate)).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;
    use tower::ServiceExt;

    use super::*;

    async fn ask(app: &Router, request: Request) -> (StatusCode, String) {
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn get_with(path: &str, key: Option<&str>) -> Request {
        let request = Request::get(path);
        let request = match key {
            Some(key) => request.header(header::AUTHORIZATION, format!("Bearer {key}")),
            None => request,
        };
        request.body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn the_key_is_wanted_everywhere_but_at_the_open_paths() {
        let door = Door {
            key: Some("secret".into()),
        };
        let app = close(Router::new(), &door, Arc::default());
        assert_eq!(ask(&app, get_with("/health", None)).await.0, StatusCode::OK);
        for key in [None, Some(""), Some("secre"), Some("secret2"), Some("Secret")] {
            let (status, body) = ask(&app, get_with("/metrics", key)).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{key:?}");
            assert!(body.contains("invalid_api_key"), "{body}");
        }
        assert_eq!(
            ask(&app, get_with("/metrics", Some("secret"))).await.0,
            StatusCode::OK
        );
        assert_eq!(
            ask(&app, get_with("/nowhere", None)).await.0,
            StatusCode::UNAUTHORIZED
        );
    }

    #[tokio::test]
    async fn unknown_paths_and_methods_answer_in_json_and_are_counted_without_their_names() {
        let app = close(Router::new(), &Door::default(), Arc::default());
        let (status, body) = ask(&app, get_with("/v1/nothing", None)).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains("invalid_request_error"), "{body}");
        let post = Request::post("/health").body(Body::empty()).unwrap();
        assert_eq!(ask(&app, post).await.0, StatusCode::METHOD_NOT_ALLOWED);
        let (_, text) = ask(&app, get_with("/metrics", None)).await;
        assert!(
            text.contains("saferl_requests_total{path=\"unknown\",status=\"404\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("saferl_requests_total{path=\"/health\",status=\"405\"} 1"),
            "{text}"
        );
    }

    #[test]
    fn an_address_for_others_needs_a_key() {
        let address = "0.0.0.0:0".parse().unwrap();
        let error = run(Router::new(), &Door::default(), address, |_| ()).unwrap_err();
        assert!(error.to_string().contains("key") && error.hint().is_some());
    }
}
