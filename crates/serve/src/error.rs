//! What can go wrong between a request and its reply, and the one place that knows the HTTP status of each.

use std::net::SocketAddr;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the serve crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server's address could not be taken.
    #[error("{address}: {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// An address that others reach, without a key.
    #[error("{0}: expected a key for an address that other machines can reach, found none")]
    Open(SocketAddr),
    /// The server could not start or go on.
    #[error("server: {0}")]
    Server(std::io::Error),
    /// A field of a request that is unknown, not supported, or out of its range.
    #[error("{field}: {what}")]
    Field {
        /// The field, as a path within the body.
        field: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A request that cannot be carried out, whichever its fields.
    #[error("{0}")]
    Request(String),
    /// The body is not JSON.
    #[error("body: expected JSON: {0}")]
    Json(String),
    /// The body does not say that it is JSON.
    #[error("content-type: expected application/json, found {0}")]
    MediaType(String),
    /// The body is larger than the server takes.
    #[error("body: expected at most {0} bytes")]
    BodyLimit(usize),
    /// The key is missing or wrong.
    #[error("expected the server's key as `Authorization: Bearer KEY`")]
    Key,
    /// No such model here.
    #[error("model: expected one of {}, found `{found}`", expected.join(", "))]
    UnknownModel {
        /// The models that are served.
        expected: Vec<String>,
        /// The one that was asked for.
        found: String,
    },
    /// No such path.
    #[error("nothing at {0}; /openapi.json lists what there is")]
    UnknownPath(String),
    /// The path does not take this method.
    #[error("{0}: this method is not for this path")]
    Method(String),
    /// Too many requests wait already.
    #[error("the server is busy; try again in {retry_after_s} s")]
    Busy {
        /// Seconds after which another try may help.
        retry_after_s: u64,
    },
    /// The request took longer than it may.
    #[error("the request took longer than {0} s")]
    Deadline(u64),
    /// What the request needs does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// Items that could not be scored, in a protocol without a place for an item's error: a cause for each item, `None`
    /// for those that were scored.
    #[error("{} of {} items could not be scored: {}", .0.iter().flatten().count(), .0.len(), first(.0))]
    Unscorable(Vec<Option<String>>),
    /// The server failed; the request was not at fault.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// A field that cannot be taken as it is.
    pub fn field(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            what: what.into(),
        }
    }

    /// The cure, where one is known; the program prints it after `hint:`.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Open(_) => Some("set SAFERL_API_KEY, or leave --host out to serve this machine alone"),
            Self::Address { .. } => Some("choose another port with --port, or stop what holds this one"),
            _ => None,
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Field { .. } | Self::Request(_) | Self::Json(_) => StatusCode::BAD_REQUEST,
            Self::Key => StatusCode::UNAUTHORIZED,
            Self::UnknownModel { .. } | Self::UnknownPath(_) => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyLimit(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable(_) | Self::Unscorable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Address { .. } | Self::Open(_) | Self::Server(_) | Self::Internal(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// `type` and `code` of OpenAI's error object.
    fn kind(&self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Key => ("authentication_error", Some("invalid_api_key")),
            Self::UnknownModel { .. } => ("invalid_request_error", Some("model_not_found")),
            Self::Busy { .. } => ("rate_limit_error", Some("rate_limit_exceeded")),
            Self::Unscorable(_) => ("server_error", Some("unscorable")),
            error if error.status().is_server_error() => ("server_error", None),
            _ => ("invalid_request_error", None),
        }
    }

    /// OpenAI's error object, as it stands in replies and in streams.
    pub fn body(&self) -> serde_json::Value {
        let (kind, code) = self.kind();
        let param = match self {
            Self::Field { field, .. } => Some(field.as_str()),
            Self::UnknownModel { .. } => Some("model"),
            _ => None,
        };
        let mut body =
            json!({"error": {"message": self.to_string(), "type": kind, "param": param, "code": code}});
        if let Self::Unscorable(causes) = self {
            body["error"]["items"] = causes.iter().map(|cause| json!({ "error": cause })).collect();
        }
        body
    }
}

fn first(causes: &[Option<String>]) -> &str {
    causes.iter().flatten().next().map_or("", String::as_str)
}

impl From<model::Error> for Error {
    /// What the model crate refuses is the request's fault; what fails within it is not.
    fn from(error: model::Error) -> Self {
        match error {
            model::Error::Request(what) => Self::Request(what),
            model::Error::Template(_) => Self::field("messages", error.to_string()),
            other => Self::Internal(other.to_string()),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!("{self}");
        }
        let mut response = (status, Json(self.body())).into_response();
        let retry_after_s = match self {
            Self::Busy { retry_after_s } => Some(retry_after_s),
            Self::Unscorable(_) => Some(1),
            _ => None,
        };
        if let Some(seconds) = retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::Key) {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_named_in_the_shape_of_openai() {
        let error = Error::field("n", "expected at least 1, found 0");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        assert_eq!(
            error.body(),
            json!({"error": {
                "message": "n: expected at least 1, found 0",
                "type": "invalid_request_error",
                "param": "n",
                "code": null,
            }})
        );
    }

    #[test]
    fn a_busy_server_says_when_to_come_back() {
        let response = Error::Busy { retry_after_s: 3 }.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
    }
}
