//! `saferl serve`: models, a guard and a reward recipe behind one HTTP server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use judge::Controversial;
use judge::endpoint::is_address;
use model::config::Config;
use model::engine::Engine;
use model::kv_pool::BLOCK_SLOTS;
use serve::{Action, Door, Grammars, Guardrail, Limits, Metrics, Model, Parser, Router, Scheduler, Service};

use crate::arguments::{GuardAction, GuardChoice, HeadsFile, ReasoningParser, Serve};
use crate::commands::guard;
use crate::error::Result;
use crate::local::Local;
use crate::progress::say;
use crate::reward_service;

/// Memory that keys and values may take where nothing else is said.
const POOL_BYTES: usize = 2 << 30;
/// Contexts of the model that this should hold at once; more is seldom used.
const CONTEXTS: usize = 4;

/// Serves until the process is told to stop.
pub(crate) fn run(arguments: &Serve) -> Result<()> {
    let metrics = Arc::new(Metrics::default());
    let guardrail = guardrail(arguments)?;
    let mut parts = Router::new();
    let openai = !arguments.models.is_empty() || guardrail.is_some();
    if openai {
        let models = arguments
            .models
            .iter()
            .map(|name| load(name, arguments, &metrics))
            .collect::<Result<_>>()?;
        parts = parts.merge(serve::openai::router(Service::new(models, guardrail)));
        parts = parts.merge(serve::page::router());
    }
    if let Some(recipe) = &arguments.reward {
        let service = reward_service::start(recipe, &[], Arc::clone(&metrics))?;
        // The guard answers chat completions under its own name, beside models or by itself.
        parts = if openai {
            serve::reward::with_guard(parts, Arc::clone(&service))
        } else {
            parts.merge(serve::reward::chat_router(Arc::clone(&service)))
        };
        parts = parts.merge(serve::reward::router(service));
    }
    if arguments.runs.is_dir() {
        parts = parts.merge(serve::runs::router(&arguments.runs));
    }
    let door = Door {
        key: reward_service::key(),
    };
    let app = serve::close(parts, &door, metrics);
    let address = SocketAddr::new(arguments.host, arguments.port);
    serve::run(app, &door, address, |address| {
        say(&format!("serving at http://{address} (Ctrl-C ends)"));
    })?;
    Ok(())
}

/// Loads a model and starts its engine.
fn load(name: &str, arguments: &Serve, metrics: &Arc<Metrics>) -> Result<Model> {
    let Local {
        decoder, tokenizer, ..
    } = Local::load(name, arguments.dtype.into())?;
    let config = &decoder.config;
    let room = arguments.cache_tokens.unwrap_or_else(|| pool_tokens(config));
    // A prompt and its reply each begin a block of their own.
    let context = config.max_positions.min(room.saturating_sub(2 * BLOCK_SLOTS));
    let vocabulary = config.vocabulary;
    let template = tokenizer.chat().map_or("", |chat| chat.source.as_str());
    let parser = match arguments.reasoning_parser {
        Some(ReasoningParser::Qwen3) => Parser::Qwen3,
        Some(ReasoningParser::DeepseekR1) => Parser::DeepseekR1,
        Some(ReasoningParser::None) => Parser::None,
        None => Parser::of_template(template),
    };
    let engine = Engine::new(decoder, Arc::clone(&tokenizer), room)?;
    let name = served_name(name);
    let scheduler = Scheduler::start(engine, &name, Limits::default(), Arc::clone(metrics))?;
    Ok(Model {
        name,
        tokenizer,
        scheduler,
        grammars: Grammars::default(),
        parser,
        context,
        vocabulary,
    })
}

/// A model's name in requests: as it was given, but a path by its last part.
fn served_name(name: &str) -> String {
    let path = Path::new(name);
    let last = path.file_name().and_then(|last| last.to_str());
    match last.filter(|_| path.exists()) {
        Some(last) => last.to_owned(),
        None => name.to_owned(),
    }
}

/// Room for some contexts, within the memory that is taken without being asked.
fn pool_tokens(config: &Config) -> usize {
    let bytes = 2 * config.layers * config.key_value_heads * config.head_dim * size_of::<f32>();
    let most = config.max_positions.saturating_mul(CONTEXTS);
    (POOL_BYTES / bytes.max(1)).min(most).max(4 * BLOCK_SLOTS)
}

fn guardrail(arguments: &Serve) -> Result<Option<Guardrail>> {
    let Some(name) = &arguments.guard else {
        return Ok(None);
    };
    let guard = guard::open(&GuardChoice {
        guard: name.clone(),
        guard_model: arguments.guard_model.clone(),
        guard_kind: arguments.guard_kind,
        heads: HeadsFile { heads: None },
    })?;
    let label = if is_address(name) {
        arguments.guard_model.clone()
    } else {
        served_name(name)
    };
    let action = match arguments.guard_action {
        GuardAction::Annotate => Action::Annotate,
        GuardAction::Block => Action::Block,
        GuardAction::Rewind => Action::Rewind,
    };
    let controversial = if arguments.guard_loose {
        Controversial::Safe
    } else {
        Controversial::Unsafe
    };
    Ok(Some(Guardrail::new(guard, &label, action, controversial)?))
}
