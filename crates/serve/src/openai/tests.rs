//! The endpoint over the tiny seeded model: requests in, JSON and events out.

mod chat;
mod moderation;
mod text;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use judge::{Category, Controversial, Conversation, Guard, Moderation, Safety, Scored};
use tower::ServiceExt;

use super::*;
use crate::fixtures::{ROOM, adapted_engine, tiny_engine, tiny_tokenizer};
use crate::guardrail::Action;
use crate::scheduler::Limits;
use crate::server::{Door, close};

type Says = Box<dyn FnMut(&Conversation) -> Scored<Moderation> + Send>;

/// Says what a closure says, of whole texts or of every token.
struct Told {
    says: Says,
    reads_tokens: bool,
}

impl Guard for Told {
    fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
        conversations.iter().map(&mut self.says).collect()
    }

    fn reads_tokens(&self) -> bool {
        self.reads_tokens
    }
}

fn moderation(harmful: bool) -> Scored<Moderation> {
    Scored::Scored(Moderation {
        safety: if harmful { Safety::Unsafe } else { Safety::Safe },
        categories: if harmful { vec![Category::Violent] } else { vec![] },
        refusal: Some(false),
        score: if harmful { 0.9 } else { 0.1 },
    })
}

fn guardrail(
    action: Action,
    says: impl FnMut(&Conversation) -> Scored<Moderation> + Send + 'static,
) -> Guardrail {
    let guard = Told {
        says: Box::new(says),
        reads_tokens: false,
    };
    Guardrail::new(Box::new(guard), "told", action, Controversial::Unsafe).unwrap()
}

/// One that finds unsafe what a closure says.
fn strict(action: Action, harmful: fn(&Conversation) -> bool) -> Guardrail {
    guardrail(action, move |conversation| moderation(harmful(conversation)))
}

fn model(limits: Limits) -> Model {
    Model {
        name: "tiny".into(),
        tokenizer: tiny_tokenizer(),
        scheduler: Scheduler::start(tiny_engine(), "tiny", limits, Arc::default()).unwrap(),
        adapted: None,
        grammars: Grammars::default(),
        parser: Parser::Qwen3,
        context: ROOM.min(2048) - 64,
        vocabulary: 320,
    }
}

/// The tiny model, and it with adapters as `adapted`, in one engine.
fn with_adapters() -> [Model; 2] {
    let (engine, adapted) = adapted_engine();
    let tiny = Model {
        scheduler: Scheduler::start(engine, "tiny", Limits::default(), Arc::default()).unwrap(),
        ..model(Limits::default())
    };
    let other = Model {
        name: "adapted".into(),
        adapted: Some(adapted),
        ..tiny.clone()
    };
    [tiny, other]
}

fn app_of(service: Service) -> Router {
    close(router(service), &Door::default(), Arc::default())
}

fn app() -> Router {
    app_of(Service::new(vec![model(Limits::default())], None))
}

fn guarded(action: Action, harmful: fn(&Conversation) -> bool) -> Router {
    guarded_by(strict(action, harmful))
}

fn guarded_by(guardrail: Guardrail) -> Router {
    app_of(Service::new(vec![model(Limits::default())], Some(guardrail)))
}

async fn send(app: &Router, path: &str, body: Option<&Value>) -> (StatusCode, String) {
    let request = match body {
        Some(body) => Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string())),
        None => Request::get(path).body(Body::empty()),
    };
    let response = app.clone().oneshot(request.unwrap()).await.unwrap();
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn post(app: &Router, path: &str, body: Value) -> Value {
    let (status, text) = send(app, path, Some(&body)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The data of every event, and its name where it has one.
async fn stream(app: &Router, path: &str, body: Value) -> Vec<(String, Value)> {
    let (status, text) = send(app, path, Some(&body)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    let parse = |event: &str| {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let data = field("data: ").unwrap();
        let data = if data == "[DONE]" {
            json!(data)
        } else {
            serde_json::from_str(data).unwrap()
        };
        (field("event: ").unwrap_or_default().to_owned(), data)
    };
    events.map(parse).collect()
}

/// The field that a refused request is refused for.
async fn refused(app: &Router, path: &str, body: Value) -> String {
    let (status, text) = send(app, path, Some(&body)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {text}");
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(error["error"]["type"], "invalid_request_error");
    error["error"]["param"].as_str().unwrap_or_default().to_owned()
}

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "seed": 7,
        "max_tokens": 40,
        // The tiny model's end tokens, so that it always writes all that it may.
        "logit_bias": {"256": -100, "258": -100},
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn the_description_and_the_router_agree() {
    let app = app();
    let description: Value = serde_json::from_str(&send(&app, "/openapi.json", None).await.1).unwrap();
    let paths = description["paths"].as_object().unwrap();
    assert!(paths.len() >= 11);
    for (path, methods) in paths {
        let path = path.replace("{name}", "tiny");
        let body = methods.get("post").map(|_| json!({"no_such_field": 1}));
        let (status, text) = send(&app, &path, body.as_ref()).await;
        let due = if body.is_some() {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::OK
        };
        assert_eq!(status, due, "{path}: {text}");
    }
    // Every field of a chat request that the description names is known, and the other way round.
    let fields = description["components"]["schemas"]["Chat"]["properties"]
        .as_object()
        .unwrap();
    let all = fields.keys().map(|field| (field.clone(), Value::Null)).collect();
    post(&app, CHAT, {
        let mut body = Value::Object(all);
        for (name, value) in chat(json!({})).as_object().unwrap() {
            assert!(fields.contains_key(name), "{name}");
            body[name] = value.clone();
        }
        body
    })
    .await;
}

#[tokio::test]
async fn a_body_must_say_that_it_is_json() {
    let request = Request::post(CHAT).body(Body::from("{}")).unwrap();
    let response = app().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}
