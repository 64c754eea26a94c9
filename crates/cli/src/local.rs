//! A model on this machine: its files found, its weights and its tokenizer loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use model::chat::Prompt;
use model::decoder::Decoder;
use model::engine::Engine;
use model::source::{self, Source, WeightsFormat};
use model::tokenizer::Tokenizer;

use crate::arguments::{Drawing, On, Precision};
use crate::error::{Error, Result};
use crate::progress::{Transfer, spinner};

/// The file by which PEFT knows a folder of adapters.
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The file that holds them.
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Slots that an engine has beyond what a prompt and its reply need, so that blocks can be whole.
const SPARE_SLOTS: usize = 64;

/// Opens the device that was asked for; a command does so once.
pub(crate) fn open_device(on: &On) -> Result<Device> {
    let place = on.device;
    if let Some(feature) = place.missing_feature() {
        return Err(Error::Request {
            what: format!("--device {place}: this program was built without it"),
            hint: format!("build it with `cargo build --release --features {feature}`; see docs/devices.md"),
        });
    }
    place.open().map_err(|error| Error::Request {
        what: format!("--device {place}: {error}"),
        hint: "`nvidia-smi` lists what `cuda:N` counts from 0; `--device cpu` works everywhere".into(),
    })
}

/// Refuses a number type that `device` does not compute in.
pub(crate) fn check_precision(dtype: Precision, device: &Device) -> Result<()> {
    if dtype != Precision::Int8 || kernels::fuses(device) {
        return Ok(());
    }
    Err(Error::Request {
        what: "--dtype int8: products of integers are the CPU's alone".into(),
        hint: "--dtype bf16 takes half the memory of f32 on other devices".into(),
    })
}

/// Finds a model's files, fetching them with a bar where that is needed.
pub(crate) fn resolve(name: &str) -> Result<Source> {
    let mut transfer = Transfer::default();
    Ok(source::resolve(name, &mut |progress| transfer.update(progress))?)
}

/// A loaded model.
pub(crate) struct Local {
    /// The weights.
    pub(crate) decoder: Decoder,
    /// The tokenizer and the chat template.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// The model that the weights, or the adapters on them, belong to.
    pub(crate) base: String,
}

impl Local {
    /// Loads the model that `name` stands for; a folder of LoRA adapters brings its base model along.
    pub(crate) fn load(name: &str, dtype: DType, device: &Device) -> Result<Self> {
        let (base, adapters) = parts(name)?;
        let source = resolve(&base)?;
        let wait = spinner(&format!("loading {name}"));
        let tokenizer = Arc::new(Tokenizer::load(&source)?);
        let mut decoder = Decoder::load_for_inference(&source, dtype, device)?;
        if let Some(folder) = adapters {
            decoder.load_adapters(&folder)?;
        }
        wait.finish_and_clear();
        Ok(Self {
            decoder: decoder.frozen()?,
            tokenizer,
            base,
        })
    }

    /// Loads a model on the device and in the number type that it is to be drawn from in.
    pub(crate) fn drawing(name: &str, drawing: &Drawing) -> Result<Self> {
        let device = open_device(&drawing.on)?;
        check_precision(drawing.dtype, &device)?;
        Self::load(name, drawing.dtype.into(), &device)
    }

    /// The files of a model's weights, those of adapters and of the base model beneath them.
    pub(crate) fn weights(name: &str) -> Result<Vec<PathBuf>> {
        let (base, adapters) = parts(name)?;
        let mut files = match resolve(&base)?.weights {
            WeightsFormat::Safetensors(files) => files,
            WeightsFormat::Gguf(file) => vec![file],
            WeightsFormat::None => Vec::new(),
        };
        files.extend(adapters.map(|folder| folder.join(ADAPTER_WEIGHTS)));
        Ok(files)
    }

    /// An engine with room for `prompt` and a reply of `new_tokens`.
    pub(crate) fn engine_for(&self, prompt: &Prompt, new_tokens: usize) -> Result<Engine> {
        let room = prompt.ids.len() + new_tokens + SPARE_SLOTS;
        Ok(Engine::new(
            self.decoder.clone(),
            Arc::clone(&self.tokenizer),
            room,
        )?)
    }
}

/// The model that `name` stands for, or that the LoRA adapters in the folder `name` belong to; and that folder, then.
pub(crate) fn parts(name: &str) -> Result<(String, Option<PathBuf>)> {
    let adapters = adapters_in(name);
    let base = match &adapters {
        Some(folder) => base_of(folder)?,
        None => name.to_owned(),
    };
    Ok((base, adapters))
}

/// The folder that `name` is, if it holds LoRA adapters and no model of its own.
fn adapters_in(name: &str) -> Option<PathBuf> {
    let folder = Path::new(name);
    let alone = folder.join(ADAPTER_CONFIG).is_file() && !folder.join("config.json").is_file();
    alone.then(|| folder.to_path_buf())
}

/// The model that adapters were trained on, by what PEFT's own file says.
fn base_of(folder: &Path) -> Result<String> {
    let path = folder.join(ADAPTER_CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|source| Error::file(&path, source))?;
    let broken = |what: String| Error::Format {
        path: path.clone(),
        line: None,
        what,
    };
    let config: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| broken(format!("expected JSON: {error}")))?;
    let base = config
        .get("base_model_name_or_path")
        .and_then(serde_json::Value::as_str);
    base.map(String::from)
        .ok_or_else(|| broken("expected text at `base_model_name_or_path`, found none".into()))
}
