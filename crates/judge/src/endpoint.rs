//! A judge behind HTTP: many JSON posts at once, with a limit on the whole.
//!
//! Whatever goes wrong with one request becomes [`Scored::Unscorable`] with its cause; nothing here fails a batch. Time
//! limits, attempts and the waits between them are [`model::endpoint::Endpoint`]'s. A server that fails several requests
//! in a row is left alone for a while: what would go to it is unscorable at once, then one request tries it again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use model::endpoint::Endpoint as Server;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::verdict::Scored;
use crate::{Error, Result};

/// Requests that fail in a row, each after all its attempts, before a server is left alone.
const FAILURES: u32 = 5;

/// Where a judge answers, and with how much patience it is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// For a guard the base of the OpenAI API, such as `http://localhost:8000/v1`; for a helpfulness score the whole
    /// address, such as `http://localhost:8001/classify`.
    pub url: String,
    /// The model's name on the server.
    pub model: String,
    /// The environment variable that holds the bearer token, if the server wants one.
    #[serde(default)]
    pub api_key_env: Option<String>,
    /// Requests in flight at once.
    #[serde(default = "default_parallel")]
    pub parallel: usize,
    /// Seconds an attempt may take.
    #[serde(default = "default_timeout")]
    pub timeout_s: f64,
    /// Attempts for each conversation, where another may help.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
    /// Seconds after which no more of a batch is asked: the rest is unscorable, so that a dead server does not hold a
    /// run for as long as all its requests together.
    #[serde(default = "default_deadline")]
    pub deadline_s: f64,
    /// Seconds for which a server is left alone that failed five requests in a row.
    #[serde(default = "default_rest")]
    pub rest_s: f64,
}

fn default_parallel() -> usize {
    16
}

fn default_timeout() -> f64 {
    60.0
}

fn default_attempts() -> u32 {
    4
}

fn default_deadline() -> f64 {
    600.0
}

fn default_rest() -> f64 {
    10.0
}

impl Endpoint {
    /// An endpoint with the default patience: 16 requests at once, four attempts of a minute each, ten minutes in all.
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            model: model.into(),
            api_key_env: None,
            parallel: default_parallel(),
            timeout_s: default_timeout(),
            attempts: default_attempts(),
            deadline_s: default_deadline(),
            rest_s: default_rest(),
        }
    }
}

/// Whether a judge's name is the address of a server.
pub fn is_address(name: &str) -> bool {
    name.starts_with("http://") || name.starts_with("https://")
}

/// A connection to an [`Endpoint`].
#[derive(Debug)]
pub(crate) struct Client {
    endpoint: Endpoint,
    server: Server,
    path: &'static str,
    breaker: Mutex<Breaker>,
}

/// Whether a server is worth asking.
#[derive(Debug, Default)]
struct Breaker {
    /// Failures since the last success.
    failures: u32,
    /// Until when nothing is sent.
    until: Option<Instant>,
}

impl Breaker {
    /// Whether a request may go out now. After the rest one may, and the others wait for what becomes of it.
    fn admits(&mut self, now: Instant, rest: Duration) -> bool {
        match self.until {
            Some(until) if now < until => false,
            Some(_) => {
                self.until = Some(now + rest);
                true
            }
            None => true,
        }
    }

    fn succeeded(&mut self) {
        *self = Self::default();
    }

    fn failed(&mut self, now: Instant, rest: Duration) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.until = Some(now + rest);
        }
    }
}

impl Client {
    /// A client that posts to `endpoint.url` followed by `path`.
    pub(crate) fn new(endpoint: Endpoint, path: &'static str) -> Result<Self> {
        let wrong = |what: String| Error::Endpoint {
            url: endpoint.url.clone(),
            what,
        };
        if !is_address(&endpoint.url) {
            return Err(wrong(
                "expected an address that starts with http:// or https://".into(),
            ));
        }
        for (name, seconds) in [
            ("timeout_s", endpoint.timeout_s),
            ("deadline_s", endpoint.deadline_s),
            ("rest_s", endpoint.rest_s),
        ] {
            if Duration::try_from_secs_f64(seconds).is_err() || seconds == 0.0 {
                return Err(wrong(format!(
                    "{name}: expected seconds above 0, found {seconds}"
                )));
            }
        }
        if endpoint.parallel == 0 || endpoint.attempts == 0 {
            return Err(wrong(
                "parallel and attempts: expected at least 1, found 0".into(),
            ));
        }
        let key = endpoint
            .api_key_env
            .as_ref()
            .map(|name| std::env::var(name).map_err(|error| wrong(format!("api_key_env `{name}`: {error}"))));
        let server = Server {
            key: key.transpose()?,
            timeout: Duration::from_secs_f64(endpoint.timeout_s),
            attempts: endpoint.attempts,
            ..Server::new(endpoint.url.as_str())
        };
        Ok(Self {
            endpoint,
            server,
            path,
            breaker: Mutex::default(),
        })
    }

    /// The model's name on the server.
    pub(crate) fn model(&self) -> &str {
        &self.endpoint.model
    }

    /// The address as it was set.
    pub(crate) fn url(&self) -> &str {
        &self.endpoint.url
    }

    /// Posts each body and reads each answer, in the order of the bodies.
    pub(crate) fn post_each<T: Send>(
        &self,
        bodies: &[Value],
        read: impl Fn(usize, &Value) -> std::result::Result<T, String> + Sync,
    ) -> Vec<Scored<T>> {
        let deadline = Instant::now() + Duration::from_secs_f64(self.endpoint.deadline_s);
        let next = AtomicUsize::new(0);
        let answers: Mutex<Vec<Option<Scored<T>>>> = Mutex::new(bodies.iter().map(|_| None).collect());
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(body) = bodies.get(index) else { return };
                let answer = self.post(body, deadline).and_then(|answer| {
                    read(index, &answer).map_err(|cause| format!("{}{}: {cause}", self.server.url, self.path))
                });
                answers.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(Scored::from(answer));
            }
        };
        thread::scope(|scope| {
            for _ in 0..self.endpoint.parallel.min(bodies.len()) {
                scope.spawn(work);
            }
        });
        let answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let missing = || Scored::Unscorable(format!("{}: no answer", self.server.url));
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(missing))
            .collect()
    }

    /// As [`Client::post_each`], where some conversations make no body: their causes come back and nothing is sent.
    pub(crate) fn post_good<T: Send>(
        &self,
        bodies: Vec<std::result::Result<Value, String>>,
        read: impl Fn(usize, &Value) -> std::result::Result<T, String> + Sync,
    ) -> Vec<Scored<T>> {
        let good: Vec<usize> = (0..bodies.len()).filter(|&index| bodies[index].is_ok()).collect();
        let sent: Vec<Value> = bodies.iter().flatten().cloned().collect();
        let mut answers = self
            .post_each(&sent, |row, answer| read(good[row], answer))
            .into_iter();
        let answer = |body| match body {
            Ok(_) => answers
                .next()
                .unwrap_or_else(|| Scored::Unscorable("no answer".into())),
            Err(cause) => Scored::Unscorable(cause),
        };
        bodies.into_iter().map(answer).collect()
    }

    fn post(&self, body: &Value, deadline: Instant) -> std::result::Result<Value, String> {
        if Instant::now() >= deadline {
            return Err(format!(
                "{}: the batch's {} s are over",
                self.server.url, self.endpoint.deadline_s
            ));
        }
        let rest = Duration::from_secs_f64(self.endpoint.rest_s);
        if !self.breaker().admits(Instant::now(), rest) {
            let failures = self.breaker().failures;
            return Err(format!(
                "{}: not asked, as it failed {failures} times in a row; it is tried again after {} s",
                self.server.url, self.endpoint.rest_s
            ));
        }
        let answer = self.server.post(self.path, body);
        match &answer {
            // A server that refuses one request is well.
            Ok(_) | Err(model::Error::Remote { passing: false, .. }) => self.breaker().succeeded(),
            Err(_) => self.breaker().failed(Instant::now(), rest),
        }
        answer.map_err(|error| error.to_string())
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of a chat completion.
pub(crate) fn chat_text(answer: &Value) -> std::result::Result<&str, String> {
    let content = answer.pointer("/choices/0/message/content");
    let text = content.and_then(Value::as_str);
    text.ok_or_else(|| "expected text at choices[0].message.content, found none".into())
}

/// The beginning of a text, on one line, for an error.
pub(crate) fn excerpt(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(160) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! Stand-ins for servers, and what the client makes of their faults.

    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    /// What a stand-in does with a request.
    #[derive(Clone)]
    pub(crate) enum Answer {
        /// Status and body.
        Body(u16, String),
        /// Closes the connection.
        Die,
        /// Says nothing for a while.
        Hang,
    }

    /// A chat completion of this text.
    pub(crate) fn chat(text: &str) -> Answer {
        let answer = json!({"choices": [{"message": {"content": text}}]});
        Answer::Body(200, answer.to_string())
    }

    /// A server on a free port that answers by the request's number, from 0, and its JSON body; returns its address.
    pub(crate) fn stand_in(answer: impl Fn(usize, &Value) -> Answer + Send + Sync + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(answer);
        let count = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
                thread::spawn(move || serve(stream.unwrap(), &*answer, &count));
            }
        });
        address
    }

    fn serve(
        mut stream: TcpStream,
        answer: &(dyn Fn(usize, &Value) -> Answer + Send + Sync),
        count: &AtomicUsize,
    ) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() == 0 {
                return;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let number = count.fetch_add(1, Ordering::SeqCst);
        match answer(number, &serde_json::from_slice(&body).unwrap()) {
            Answer::Die => {}
            Answer::Hang => thread::sleep(Duration::from_secs(5)),
            Answer::Body(status, body) => {
                let head = format!(
                    "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        }
    }

    pub(crate) fn impatient(url: String) -> Endpoint {
        Endpoint {
            timeout_s: 0.3,
            attempts: 2,
            parallel: 4,
            deadline_s: 20.0,
            ..Endpoint::new(url, "m")
        }
    }

    /// A client of a stand-in that tries twice, hardly waiting between.
    fn quick(endpoint: Endpoint, path: &'static str) -> Client {
        let mut client = Client::new(endpoint, path).unwrap();
        client.server.backoff = Duration::from_millis(1);
        client
    }

    fn post(answers: impl Fn(usize, &Value) -> Answer + Send + Sync + 'static) -> Scored<i64> {
        let client = quick(impatient(stand_in(answers)), "/x");
        let read = |_, answer: &Value| answer["n"].as_i64().ok_or_else(|| "no n".to_owned());
        client.post_each(&[json!({})], read).remove(0)
    }

    fn cause(scored: &Scored<i64>) -> String {
        scored.as_result().unwrap_err().to_owned()
    }

    #[test]
    fn a_server_that_stumbles_once_is_asked_again() {
        let good = Answer::Body(200, r#"{"n":7}"#.into());
        for bad in [
            Answer::Body(500, "oops".into()),
            Answer::Body(429, String::new()),
            Answer::Die,
            Answer::Hang,
        ] {
            let good = good.clone();
            let scored = post(move |number, _| if number == 0 { bad.clone() } else { good.clone() });
            assert_eq!(scored, Scored::Scored(7));
        }
    }

    #[test]
    fn faults_become_causes() {
        let status = cause(&post(|_, _| Answer::Body(404, "no such model".into())));
        assert!(
            status.contains("/x") && status.contains("no such model"),
            "{status}"
        );
        assert!(cause(&post(|_, _| Answer::Body(503, "busy".into()))).contains("busy"));
        assert!(cause(&post(|_, _| Answer::Body(200, "<html>".into()))).contains("<html>"));
        assert!(cause(&post(|_, _| Answer::Body(200, "{}".into()))).ends_with("/x: no n"));
        assert!(post(|_, _| Answer::Die).scored().is_none());
        assert!(post(|_, _| Answer::Hang).scored().is_none());
        let nobody = quick(impatient("http://127.0.0.1:9".into()), "");
        assert!(
            nobody
                .post_each(&[json!({})], |_, _| Ok(0))
                .remove(0)
                .scored()
                .is_none()
        );
    }

    #[test]
    fn answers_keep_the_order_of_the_bodies_and_the_deadline_ends_the_rest() {
        let url = stand_in(|_, body| Answer::Body(200, body.to_string()));
        let client = quick(impatient(url), "");
        let bodies: Vec<_> = (0..20).map(|n| json!({ "n": n })).collect();
        let scored = client.post_each(&bodies, |_, answer| Ok(answer["n"].as_i64().unwrap()));
        assert_eq!(scored, (0..20).map(Scored::Scored).collect::<Vec<_>>());

        let slow = Endpoint {
            deadline_s: 0.2,
            parallel: 1,
            ..impatient(stand_in(|_, _| Answer::Hang))
        };
        let start = Instant::now();
        let scored = quick(slow, "").post_each(&bodies, |_, _| Ok(0));
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "took {:?}",
            start.elapsed()
        );
        assert!(cause(scored.last().unwrap()).contains("are over"));
    }

    #[test]
    fn a_server_that_keeps_failing_is_left_alone() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let url = stand_in(move |number, _| {
            counted.store(number + 1, Ordering::SeqCst);
            Answer::Body(503, "busy".into())
        });
        let one_by_one = Endpoint {
            parallel: 1,
            attempts: 1,
            ..impatient(url)
        };
        let client = quick(one_by_one, "");
        let scored = client.post_each(&vec![json!({}); 20], |_, _| Ok(0));
        assert_eq!(asked.load(Ordering::SeqCst), FAILURES as usize);
        assert!(cause(&scored[4]).contains("503"), "{}", cause(&scored[4]));
        assert!(
            cause(&scored[19]).contains("failed 5 times in a row"),
            "{}",
            cause(&scored[19])
        );
    }

    #[test]
    fn after_its_rest_one_request_tries_a_server_again() {
        let (mut breaker, start, rest) = (Breaker::default(), Instant::now(), Duration::from_secs(9));
        for _ in 0..FAILURES {
            assert!(breaker.admits(start, rest));
            breaker.failed(start, rest);
        }
        assert!(!breaker.admits(start, rest));
        let later = start + rest;
        assert!(breaker.admits(later, rest) && !breaker.admits(later, rest));
        breaker.succeeded();
        assert!(breaker.admits(later, rest) && breaker.admits(later, rest));
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let good = Endpoint::new("http://localhost:1/v1/", "m");
        assert!(Client::new(good.clone(), "/chat").is_ok());
        for bad in [
            Endpoint {
                url: "localhost:8000".into(),
                ..good.clone()
            },
            Endpoint {
                timeout_s: f64::NAN,
                ..good.clone()
            },
            Endpoint {
                deadline_s: 0.0,
                ..good.clone()
            },
            Endpoint {
                attempts: 0,
                ..good.clone()
            },
            Endpoint {
                api_key_env: Some("NO_SUCH_VARIABLE_HERE".into()),
                ..good
            },
        ] {
            assert!(Client::new(bad, "").is_err());
        }
    }
}
