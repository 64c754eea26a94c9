//! `saferl serve`: models, a guard and a reward recipe behind one HTTP server.
//!
//! Models that differ in LoRA adapters alone share their base's weights, and with them one engine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use judge::Controversial;
use judge::endpoint::is_address;
use model::config::Config;
use model::decoder::Decoder;
use model::engine::{Adapted, Engine};
use model::kv_pool::BLOCK_SLOTS;
use model::source::{Source, WeightsFormat};
use model::tokenizer::Tokenizer;
use serve::{Action, Door, Grammars, Guardrail, Limits, Metrics, Model, Parser, Router, Scheduler, Service};

use crate::arguments::{GuardAction, GuardChoice, HeadsFile, Precision, ReasoningParser, Serve};
use crate::commands::guard;
use crate::error::{Error, Result};
use crate::local::{check_precision, open_device, parts, resolve};
use crate::progress::{say, spinner};
use crate::reward_service;

/// Memory that keys and values may take where nothing else is said.
const POOL_BYTES: usize = 2 << 30;
/// Contexts of the model that this should hold at once; more is seldom used.
const CONTEXTS: usize = 4;

/// This part of it may hold what requests that are done have left for those that begin alike.
const MEMORY_SHARE: usize = 4;

/// Serves until the process is told to stop.
pub(crate) fn run(arguments: &Serve) -> Result<()> {
    let metrics = Arc::new(Metrics::default());
    let device = open_device(&arguments.on)?;
    check_precision(arguments.dtype, &device)?;
    let names = served_names(&arguments.models)?;
    let bases = load(arguments, &device)?;
    let guardrail = guardrail(arguments, &device, &bases)?;
    let mut parts = Router::new();
    let openai = !arguments.models.is_empty() || guardrail.is_some();
    if openai {
        let models = start(bases, &names, arguments, &metrics)?;
        parts = parts.merge(serve::openai::router(Service::new(models, guardrail)));
        parts = parts.merge(serve::page::router());
    }
    if let Some(recipe) = &arguments.reward {
        let service = reward_service::start(recipe, &[], &device, Arc::clone(&metrics))?;
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

/// A base model that is loaded, and what is served of it.
struct Base {
    /// Its files, by which it is known again.
    files: Vec<PathBuf>,
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    /// Places among the arguments, and the adapters there.
    served: Vec<(usize, Option<Adapted>)>,
}

impl Base {
    fn load(source: &Source, files: Vec<PathBuf>, arguments: &Serve, device: &Device) -> Result<Self> {
        let wait = spinner(&format!("loading {}", source.name));
        let tokenizer = Arc::new(Tokenizer::load(source)?);
        let decoder = Decoder::load_for_inference(source, arguments.dtype.into(), device)?.frozen()?;
        let room = arguments
            .cache_tokens
            .unwrap_or_else(|| pool_tokens(&decoder.config));
        let mut engine = Engine::new(decoder, Arc::clone(&tokenizer), room)?;
        engine.set_memory(room / MEMORY_SHARE);
        wait.finish_and_clear();
        Ok(Self {
            files,
            engine,
            tokenizer,
            served: Vec::new(),
        })
    }

    /// Starts the engine, and gives the models that share it, each with its place among the arguments.
    fn start(
        self,
        names: &[String],
        arguments: &Serve,
        metrics: &Arc<Metrics>,
    ) -> Result<Vec<(usize, Model)>> {
        let config = &self.engine.decoder().config;
        let room = arguments.cache_tokens.unwrap_or_else(|| pool_tokens(config));
        // A prompt and its reply each begin a block of their own.
        let context = config.max_positions.min(room.saturating_sub(2 * BLOCK_SLOTS));
        let vocabulary = config.vocabulary;
        let template = self.tokenizer.chat().map_or("", |chat| chat.source.as_str());
        let parser = match arguments.reasoning_parser {
            Some(ReasoningParser::Qwen3) => Parser::Qwen3,
            Some(ReasoningParser::DeepseekR1) => Parser::DeepseekR1,
            Some(ReasoningParser::None) => Parser::None,
            None => Parser::of_template(template),
        };
        let label = self
            .served
            .first()
            .map_or("", |&(place, _)| names[place].as_str());
        let scheduler = Scheduler::start(self.engine, label, Limits::default(), Arc::clone(metrics))?;
        let grammars = Grammars::default();
        let model = |(place, adapted): (usize, _)| {
            let model = Model {
                name: names[place].clone(),
                tokenizer: Arc::clone(&self.tokenizer),
                scheduler: scheduler.clone(),
                adapted,
                grammars: grammars.clone(),
                parser,
                context,
                vocabulary,
            };
            (place, model)
        };
        Ok(self.served.into_iter().map(model).collect())
    }
}

/// Loads the models, each base once.
fn load(arguments: &Serve, device: &Device) -> Result<Vec<Base>> {
    let mut bases: Vec<Base> = Vec::new();
    for (place, name) in arguments.models.iter().enumerate() {
        let (base, adapters) = parts(name)?;
        let source = resolve(&base)?;
        let files = files(&source);
        let known = bases.iter().position(|base| base.files == files);
        let at = known.unwrap_or(bases.len());
        if known.is_none() {
            bases.push(Base::load(&source, files, arguments, device)?);
        }
        let base = &mut bases[at];
        let adapted = adapters
            .map(|folder| base.engine.add_adapters(&folder))
            .transpose()?;
        base.served.push((place, adapted));
    }
    Ok(bases)
}

/// Starts the engines, and gives the models as they stand among the arguments.
fn start(
    bases: Vec<Base>,
    names: &[String],
    arguments: &Serve,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Model>> {
    let mut models = Vec::new();
    for base in bases {
        models.extend(base.start(names, arguments, metrics)?);
    }
    models.sort_by_key(|&(place, _)| place);
    Ok(models.into_iter().map(|(_, model)| model).collect())
}

/// A model's files of weights, the same however they were named.
fn files(source: &Source) -> Vec<PathBuf> {
    let named: &[PathBuf] = match &source.weights {
        WeightsFormat::Safetensors(files) => files,
        WeightsFormat::Gguf(file) => std::slice::from_ref(file),
        WeightsFormat::None => &[],
    };
    let whole = |file: &PathBuf| file.canonicalize().unwrap_or_else(|_| file.clone());
    named.iter().map(whole).collect()
}

/// The models' names in requests: as they were given, but a path by its last part, where that tells them apart.
fn served_names(given: &[String]) -> Result<Vec<String>> {
    let short: Vec<String> = given.iter().map(|name| served_name(name)).collect();
    let name = |(place, name): (usize, &String)| {
        let alone = short.iter().filter(|&other| *other == short[place]).count() == 1;
        if alone { short[place].clone() } else { name.clone() }
    };
    let names: Vec<String> = given.iter().enumerate().map(name).collect();
    match (1..names.len()).find(|&place| names[..place].contains(&names[place])) {
        None => Ok(names),
        Some(place) => Err(Error::Request {
            what: format!("models: `{}` is given twice", names[place]),
            hint: "name each model once".into(),
        }),
    }
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

/// The guard, which shares the weights of a base that it happens to read too.
fn guardrail(arguments: &Serve, device: &Device, bases: &[Base]) -> Result<Option<Guardrail>> {
    let Some(name) = &arguments.guard else {
        return Ok(None);
    };
    let choice = GuardChoice {
        guard: name.clone(),
        guard_model: arguments.guard_model.clone(),
        guard_kind: arguments.guard_kind,
        heads: HeadsFile { heads: None },
    };
    let guard = guard::open_on(&choice, device, |source| {
        let files = files(source);
        let base = bases.iter().find(|base| base.files == files)?;
        let shared = || (base.engine.decoder().clone(), Arc::clone(&base.tokenizer));
        matches!(arguments.dtype, Precision::F32).then(shared)
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
