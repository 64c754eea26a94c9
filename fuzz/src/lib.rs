//! What reads files and requests of strangers, each as a function of their bytes.
//!
//! ```text
//! cargo +nightly fuzz run gguf FOUND fuzz/corpus/gguf      # FOUND: a folder for what it finds
//! ```
//!
//! The attacks in `corpus/` are made by `attacks.py`, but for those that a fuzzer found. `cargo test` runs them all
//! without a fuzzer: crates/cli/tests/attacks.rs, which includes this file and also says what each may allocate.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use candle_core::{DType, Device};
use judge::data::formats::{Format, load};
use judge::{Controversial, Conversation, Guard, Helpfulness, Moderation, Panel, Safety, Scored, score_rows};
use kernels::Segment;
use model::chat::{Message, Mode};
use model::config::{Config, Family};
use model::decoder::Decoder;
use model::engine::Engine;
use model::seeded;
use model::source::{Source, WeightsFormat};
use model::template::RenderOptions;
use model::tokenizer::Tokenizer;
use model::weights::{Weights, safetensors};
use serde_json::json;
use serve::reward::Settings;
use serve::{Action, Door, Grammars, Guardrail, Limits, Metrics, Model, Parser, Router, Scheduler, Service};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// Ok, or the error's message, in which the folder of the attack is left out.
pub type Outcome = Result<(), String>;

/// Reads bytes of a stranger.
pub type Reader = fn(&[u8]) -> Outcome;

/// Every target by its name.
pub const TARGETS: [(&str, Reader); 7] = [
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("config", config),
    ("tokenizer", tokenizer),
    ("rows", rows),
    ("template", template),
    ("request", request),
];

/// A folder for one attack; errors are told without its name.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    }

    fn tell<T>(&self, result: Result<T, impl std::fmt::Display>) -> Result<T, String> {
        let folder = format!("{}/", self.0.path().display());
        result.map_err(|error| error.to_string().replace(&folder, ""))
    }
}

/// A GGUF file: its weights, a pass through them, its tokenizer.
pub fn gguf(bytes: &[u8]) -> Outcome {
    let place = Place::new();
    let source = Source {
        weights: WeightsFormat::Gguf(place.write("model.gguf", bytes)),
        folder: None,
        name: "model".into(),
    };
    let run = || -> model::Result<()> {
        let decoder = Decoder::load_for_inference(&source, DType::F32, &Device::Cpu)?;
        let whole = [Segment {
            start: 0,
            len: 1,
            prefix: None,
        }];
        let hidden = decoder.hidden(&[0], &whole)?;
        decoder.logits(&hidden)?;
        Ok(())
    };
    let weights = place.tell(run());
    let tokenizer = place
        .tell(Tokenizer::load(&source))
        .and_then(|tokenizer| read(&tokenizer));
    weights.and(tokenizer)
}

/// A safetensors file.
pub fn safetensors(bytes: &[u8]) -> Outcome {
    let read = safetensors::read_bytes(bytes, Path::new("model.safetensors"));
    read.map(|_| ()).map_err(|error| error.to_string())
}

/// A `config.json`, and a model of that shape without any weights.
pub fn config(bytes: &[u8]) -> Outcome {
    let place = Place::new();
    let config = place.tell(Config::read(&place.write("config.json", bytes)))?;
    let model = Decoder::from_weights(&config, &mut Weights::default(), true, DType::F32, &Device::Cpu);
    assert!(model.is_err(), "a model without weights");
    Ok(())
}

/// A `tokenizer.json`, and a text through it.
pub fn tokenizer(bytes: &[u8]) -> Outcome {
    let place = Place::new();
    place.write("tokenizer.json", bytes);
    read(&place.tell(Tokenizer::load(&folder(&place)))?)
}

fn folder(place: &Place) -> Source {
    Source {
        weights: WeightsFormat::None,
        folder: Some(place.0.path().into()),
        name: "model".into(),
    }
}

fn read(tokenizer: &Tokenizer) -> Outcome {
    let run = || -> model::Result<()> {
        let ids = tokenizer
            .encode_plain("Hello <|im_end|> world, aaaaaaaaaaaaaaaaaaaaaaaaaaaa 1234567 \u{1F600}\n\n")?;
        tokenizer.decode(&ids, true)?;
        tokenizer.decode(&[0, 1, u32::MAX], false)?;
        tokenizer.vocabulary();
        // Not every tokenizer has bytes.
        let _ = tokenizer.token_bytes();
        if tokenizer.chat().is_some() {
            tokenizer.prompt(&[Message::user("Hello")], Mode::NoThink)?;
        }
        Ok(())
    };
    run().map_err(|error| error.to_string())
}

/// Rows of JSONL: labelled data, prompts to train on, exchanges to judge.
pub fn rows(bytes: &[u8]) -> Outcome {
    let place = Place::new();
    let path = place.write("rows.jsonl", bytes);
    let labelled = place.tell(load(Format::Own, "attack", &path, None));
    let recipe = train::recipe::Prompts {
        source: path.display().to_string(),
        ..train::recipe::Prompts::default()
    };
    let prompts = place.tell(train::prompts::load(&recipe));
    let judged = place.tell(score_rows(
        &mut Calm,
        bytes,
        Path::new("rows.jsonl"),
        std::io::sink(),
    ));
    let labelled = labelled.map(|_| ()).map_err(|error| format!("labelled: {error}"));
    let prompts = prompts.map(|_| ()).map_err(|error| format!("prompts: {error}"));
    let judged = judged.map(|_| ()).map_err(|error| format!("judged: {error}"));
    labelled.and(prompts).and(judged)
}

/// A chat template, over conversations of several forms.
pub fn template(bytes: &[u8]) -> Outcome {
    let place = Place::new();
    place.tell(seeded::write_tokenizer(place.0.path()))?;
    place.write("chat_template.jinja", bytes);
    let tokenizer = place.tell(Tokenizer::load(&folder(&place)))?;
    let messages = [
        Message::user("Hello <|im_end|>"),
        Message::assistant("<think>\nso\n</think>\n\nYes."),
        Message::user("And now?"),
    ];
    let tools = RenderOptions {
        enable_thinking: Some(true),
        tools: Some(json!([{"type": "function", "function": {"name": "look_up", "parameters": {}}}])),
        ..RenderOptions::from(Mode::Think)
    };
    for (messages, options) in [
        (&messages[..1], RenderOptions::from(Mode::NoThink)),
        (&messages[..], RenderOptions::from(Mode::Think)),
        (&messages[..], tools),
    ] {
        place.tell(tokenizer.render(messages, &options))?;
    }
    Ok(())
}

/// A guard and a helpfulness score that find everything fine.
struct Calm;

impl Guard for Calm {
    fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
        let calm = Moderation {
            safety: Safety::Safe,
            categories: Vec::new(),
            refusal: None,
            score: 0.0,
        };
        vec![Scored::Scored(calm); conversations.len()]
    }
}

impl Helpfulness for Calm {
    fn score(&mut self, conversations: &[Conversation]) -> Vec<Scored<f32>> {
        vec![Scored::Scored(0.0); conversations.len()]
    }
}

/// Where bodies are posted to.
const PATHS: [&str; 16] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/moderations",
    "/tokenize",
    "/detokenize",
    "/v1/reward",
    "/get_reward",
    "/slime",
    "/slime/parts",
    "/verify",
    "/seed_session",
    "/aggregate_metrics",
    "/classify",
    "/pooling",
    "/v1/embeddings",
];

/// Tokens that the engine behind the requests has room for.
const ROOM: usize = 256;

/// A request's body, to every path that takes one. An answer of 500 and more is the server's fault.
pub fn request(bytes: &[u8]) -> Outcome {
    static APP: OnceLock<(Runtime, Router)> = OnceLock::new();
    let (runtime, app) = APP.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        (runtime.expect("a runtime"), app())
    });
    let mut outcome = Ok(());
    for path in PATHS {
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(bytes.to_vec()))
            .expect("a request");
        let (status, text) = runtime.block_on(async {
            let response = app.clone().oneshot(request).await.expect("never fails");
            let status = response.status();
            let body = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
            (status, String::from_utf8_lossy(&body).into_owned())
        });
        // By 503 the reward's protocols say that something cannot be scored.
        let fault = status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE;
        assert!(!fault, "{path}: {status}: {text}");
        if !status.is_success() && outcome.is_ok() {
            outcome = Err(format!("{path}: {status}: {text}"));
        }
    }
    outcome
}

fn app() -> Router {
    let tokenizer = Arc::new(seeded::tokenizer().expect("a tokenizer"));
    let decoder = seeded::tiny_decoder(Family::Qwen3, true).expect("a decoder");
    let vocabulary = decoder.config.vocabulary;
    let engine = Engine::new(decoder, Arc::clone(&tokenizer), ROOM).expect("an engine");
    let metrics = Arc::new(Metrics::default());
    let scheduler = Scheduler::start(engine, "tiny", Limits::default(), Arc::clone(&metrics));
    let model = Model {
        name: "tiny".into(),
        tokenizer,
        scheduler: scheduler.expect("a scheduler"),
        adapted: None,
        grammars: Grammars::default(),
        parser: Parser::Qwen3,
        context: ROOM - 16,
        vocabulary,
    };
    let guardrail = Guardrail::new(Box::new(Calm), "calm", Action::Annotate, Controversial::Unsafe);
    let openai = serve::openai::router(Service::new(vec![model], Some(guardrail.expect("a guardrail"))));
    let panel = Panel {
        guard: Box::new(Calm),
        helpfulness: Box::new(Calm),
    };
    let names = [("guard".to_owned(), "calm".to_owned())].into();
    let settings = Settings {
        batch_wait: Duration::ZERO,
        ..Settings::default()
    };
    let rewards = serve::reward::Service::start(vec![panel], names, settings, Arc::clone(&metrics));
    let rewards = serve::reward::router(Arc::new(rewards.expect("a reward service")));
    serve::close(openai.merge(rewards), &Door::default(), metrics)
}
