//! JSON over HTTP to a server that may be slow, busy or gone.

use std::time::Duration;

use serde_json::Value;
use ureq::tls::{RootCerts, TlsConfig};

use crate::{Error, Result};

/// Longest answer that is read.
const LONGEST_ANSWER: u64 = 1 << 30;
/// How much of an unexpected answer an error quotes.
const QUOTED: usize = 300;
/// The server has this long to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One server, and how patient to be with it.
///
/// TLS trusts the system's certificates and the usual proxy variables are honoured. Busy answers (408, 429, 500, 502,
/// 503, 504), refused connections, broken answers and timeouts are tried again, up to `attempts` times in all, with
/// waits that double from `backoff` and vary so that many clients do not come back at once. Whatever else goes wrong
/// is an error at once.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The address that paths are appended to, such as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// Sent as a bearer token.
    pub key: Option<String>,
    /// Longest wait for one whole answer.
    pub timeout: Duration,
    /// Attempts in all; at least one is made.
    pub attempts: u32,
    /// Wait before the second attempt.
    pub backoff: Duration,
}

/// What went wrong with one attempt, and whether another may help.
struct Failure {
    what: String,
    passing: bool,
}

impl Endpoint {
    /// A server with ten minutes for an answer and four attempts, the first wait being half a second.
    pub fn new(url: impl Into<String>) -> Self {
        let url = url.into().trim_end_matches('/').to_owned();
        Self {
            url,
            key: None,
            timeout: Duration::from_mins(10),
            attempts: 4,
            backoff: Duration::from_millis(500),
        }
    }

    /// Posts `body` to `path` (with its leading slash) and returns the answer's JSON.
    ///
    /// # Errors
    /// [`Error::Remote`] with the address, the number of attempts, and what the last one met.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let url = format!("{}{path}", self.url);
        let mut attempt = 1;
        loop {
            match self.attempt(&url, body) {
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.passing && attempt < self.attempts => {
                    tracing::warn!("{url}: {}; attempt {attempt} of {}", failure.what, self.attempts);
                    std::thread::sleep(self.wait(attempt));
                    attempt += 1;
                }
                Err(failure) => {
                    let attempts = if attempt > 1 {
                        format!(" (after {attempt} attempts)")
                    } else {
                        String::new()
                    };
                    return Err(Error::Remote {
                        url,
                        what: format!("{}{attempts}", failure.what),
                        passing: failure.passing,
                    });
                }
            }
        }
    }

    /// Half to one and a half of the doubled backoff.
    fn wait(&self, attempt: u32) -> Duration {
        let doubled = self.backoff * 2_u32.saturating_pow(attempt - 1).min(64);
        doubled.mul_f64(0.5 + rand::random::<f64>())
    }

    fn attempt(&self, url: &str, body: &Value) -> std::result::Result<Value, Failure> {
        // An agent an attempt: a connection that went wrong is never used again.
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(self.timeout))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(self.timeout)))
            .http_status_as_error(false)
            .tls_config(
                TlsConfig::builder()
                    .root_certs(RootCerts::PlatformVerifier)
                    .build(),
            )
            .build()
            .into();
        let mut request = agent.post(url).content_type("application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = request
            .send(body.to_string())
            .map_err(|error| self.failure(&error))?;
        let status = response.status().as_u16();
        let text = response
            .body_mut()
            .with_config()
            .limit(LONGEST_ANSWER)
            .read_to_string();
        let text = text.map_err(|error| self.failure(&error))?;
        if !(200..300).contains(&status) {
            let passing = matches!(status, 408 | 429 | 500 | 502 | 503 | 504);
            return Err(Failure {
                what: format!("status {status}: {}", quote(&text)),
                passing,
            });
        }
        serde_json::from_str(&text).map_err(|_| Failure {
            what: format!("expected JSON, found {}", quote(&text)),
            passing: true,
        })
    }

    fn failure(&self, error: &ureq::Error) -> Failure {
        let what = match error {
            ureq::Error::Timeout(_) => format!("no whole answer within {:?} ({error})", self.timeout),
            _ => error.to_string(),
        };
        let passing = matches!(
            error,
            ureq::Error::Timeout(_)
                | ureq::Error::Io(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::Protocol(_)
        );
        Failure { what, passing }
    }
}

fn quote(text: &str) -> String {
    let short: String = text.chars().take(QUOTED).collect();
    if short.is_empty() {
        "an empty body".to_owned()
    } else {
        format!("`{short}`")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What the stand-in does with one connection.
    pub(crate) enum Act {
        /// Answers with a status and a body.
        Answer(u16, String),
        /// Sends these bytes and closes.
        Raw(&'static str),
        /// Reads the request and keeps silent.
        Hang,
    }

    /// A server that plays the acts in order, one a connection, and keeps the requests' bodies.
    pub(crate) fn stand_in(acts: Vec<Act>) -> (Endpoint, Arc<Mutex<Vec<Value>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for act in acts {
                let (mut stream, _) = listener.accept().unwrap();
                kept.lock().unwrap().push(read_body(&mut stream));
                let text = match act {
                    Act::Answer(status, body) => format!(
                        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                         Connection: close\r\n\r\n{body}",
                        body.len()
                    ),
                    Act::Raw(text) => text.to_owned(),
                    Act::Hang => {
                        silent.push(stream);
                        continue;
                    }
                };
                stream.write_all(text.as_bytes()).unwrap();
            }
        });
        let endpoint = Endpoint {
            backoff: Duration::from_millis(1),
            ..Endpoint::new(url)
        };
        (endpoint, bodies)
    }

    fn read_body(stream: &mut impl Read) -> Value {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            bytes.push(byte[0]);
        }
        let head = String::from_utf8(bytes).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
        stream.read_exact(&mut body).unwrap();
        let mut value: Value = serde_json::from_slice(&body).unwrap();
        if let Some(line) = head.lines().find(|line| line.starts_with("authorization:")) {
            value["authorization"] = line.into();
        }
        value
    }

    fn body() -> Value {
        serde_json::json!({"question": 1})
    }

    #[test]
    fn busy_servers_are_tried_again() {
        let (mut endpoint, bodies) = stand_in(vec![
            Act::Answer(500, "busy".into()),
            Act::Raw("garbage\r\n\r\n"),
            Act::Answer(200, "not json".into()),
            Act::Answer(200, r#"{"answer": 2}"#.into()),
        ]);
        endpoint.key = Some("secret".into());
        assert_eq!(endpoint.post("/ask", &body()).unwrap()["answer"], 2);
        let bodies = bodies.lock().unwrap();
        assert_eq!(bodies.len(), 4);
        assert_eq!(bodies[3]["authorization"], "authorization: bearer secret");
    }

    #[test]
    fn attempts_are_bounded_and_the_last_failure_is_told() {
        let (mut endpoint, _) = stand_in(vec![
            Act::Answer(503, "a".into()),
            Act::Answer(503, "still loading".into()),
        ]);
        endpoint.attempts = 2;
        let error = endpoint.post("/ask", &body()).unwrap_err().to_string();
        assert!(
            error.contains("/v1/ask: status 503: `still loading` (after 2 attempts)"),
            "{error}"
        );
    }

    #[test]
    fn a_refused_request_is_not_repeated() {
        let (endpoint, bodies) = stand_in(vec![
            Act::Answer(404, r#"{"error":"no such model"}"#.into()),
            Act::Hang,
        ]);
        let error = endpoint.post("/ask", &body()).unwrap_err().to_string();
        assert!(
            error.contains("status 404") && error.contains("no such model"),
            "{error}"
        );
        assert_eq!(bodies.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_silent_server_times_out() {
        let (mut endpoint, _) = stand_in(vec![Act::Hang, Act::Hang, Act::Hang]);
        endpoint.attempts = 2;
        endpoint.timeout = Duration::from_millis(100);
        let started = std::time::Instant::now();
        let error = endpoint.post("/ask", &body()).unwrap_err().to_string();
        assert!(error.contains("no whole answer within 100ms"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_dead_server_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        drop(listener);
        let endpoint = Endpoint {
            attempts: 2,
            backoff: Duration::from_millis(1),
            ..Endpoint::new(&url)
        };
        let error = endpoint.post("/ask", &body()).unwrap_err().to_string();
        assert!(
            error.starts_with(&url) && error.contains("after 2 attempts"),
            "{error}"
        );
    }
}
