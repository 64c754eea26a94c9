//! The page: a chat in one file, which asks nobody but this server.

use axum::Router;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::get;

/// What a page may do: run what it brings itself, and talk to this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page at `/`.
pub fn router() -> Router {
    Router::new().route("/", get(|| async { page(include_str!("chat.html")) }))
}

pub(crate) fn page(text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(text))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_asks_nobody_else() {
        let text = include_str!("chat.html");
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!text.contains(outside), "{outside}");
        }
        // Replies are text and never markup.
        for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"] {
            assert!(!text.contains(markup), "{markup}");
        }
    }
}
