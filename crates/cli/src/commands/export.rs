//! `saferl export`: a checkpoint in other programs' formats.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use model::export::modelfile;
use model::generate::Sampling;

use crate::arguments::{Drawing, Export, ExportTarget, GgufTarget, Precision};
use crate::commands::card;
use crate::error::{Error, Result};
use crate::local::Local;
use crate::output::print_line;
use crate::progress::bar;

/// The GGUF file in a folder for Ollama.
const OLLAMA_WEIGHTS: &str = "model.gguf";

/// Writes the folder or file and prints its path.
pub(crate) fn run(export: &Export) -> Result<()> {
    match export {
        Export::Hf(target) => write_whole(target),
        Export::Peft(target) => write_adapters(target),
        Export::Gguf(target) => write_gguf(target),
        Export::Ollama(target) => write_ollama(target),
    }
}

fn write_whole(target: &ExportTarget) -> Result<()> {
    if target.dtype == Precision::Int8 {
        return Err(Error::Request {
            what: "--dtype int8: a folder for transformers holds f32 or bf16".into(),
            hint: "`saferl export gguf --type q8_0` writes integers".into(),
        });
    }
    let checkpoint = checkpoint(&target.checkpoint)?;
    refuse_taken(&target.output)?;
    let local = load_merged(&checkpoint)?;
    local.decoder.save(&target.output, target.dtype.into())?;
    local.tokenizer.save(&target.output)?;
    card::write(&target.output, Path::new(&checkpoint), &local.base)?;
    print_line(&target.output.display().to_string())
}

fn write_adapters(target: &ExportTarget) -> Result<()> {
    let checkpoint = checkpoint(&target.checkpoint)?;
    refuse_taken(&target.output)?;
    let local = Local::load(&checkpoint, DType::F32, &Device::Cpu)?;
    if local.decoder.adapters().is_none() {
        return Err(Error::Request {
            what: format!("{checkpoint}: expected LoRA adapters, found a whole model"),
            hint: "`saferl export hf` writes whole models".into(),
        });
    }
    local.decoder.save_adapters(&target.output, &local.base)?;
    local.tokenizer.save(&target.output)?;
    print_line(&target.output.display().to_string())
}

fn write_gguf(target: &GgufTarget) -> Result<()> {
    if target.output.exists() {
        return Err(Error::Request {
            what: format!("{}: expected a new file, found one", target.output.display()),
            hint: "name another file, or remove this one".into(),
        });
    }
    let local = load_merged(&checkpoint(&target.model)?)?;
    write_weights(&local, target, &target.output)?;
    print_line(&target.output.display().to_string())
}

fn write_ollama(target: &GgufTarget) -> Result<()> {
    refuse_taken(&target.output)?;
    let local = load_merged(&checkpoint(&target.model)?)?;
    let (temperature, top_p) = Drawing::USUAL;
    let sampling = Sampling {
        temperature,
        top_p,
        top_k: Drawing::TOP_K,
        ..Sampling::default()
    };
    // First, since it may not be possible and costs nothing.
    let text = modelfile(OLLAMA_WEIGHTS, &local.tokenizer, &local.decoder.config, &sampling)?;
    std::fs::create_dir_all(&target.output).map_err(|source| Error::file(&target.output, source))?;
    write_weights(&local, target, &target.output.join(OLLAMA_WEIGHTS))?;
    let path = target.output.join("Modelfile");
    std::fs::write(&path, text).map_err(|source| Error::file(&path, source))?;
    print_line(&path.display().to_string())
}

/// A model with its adapters, if it has any, merged into the weights.
fn load_merged(name: &str) -> Result<Local> {
    let mut local = Local::load(name, DType::F32, &Device::Cpu)?;
    if local.decoder.adapters().is_some() {
        local.decoder = local.decoder.merge_adapters()?;
    }
    Ok(local)
}

fn write_weights(local: &Local, target: &GgufTarget, path: &Path) -> Result<()> {
    let wait = bar("tensors", 0);
    let mut progress = |done: usize, all: usize| {
        wait.set_length(all as u64);
        wait.set_position(done as u64);
    };
    let kind = target.kind.into();
    // A path says where the model lay on this machine, its last part what it is called.
    let name = Path::new(&target.model).file_name().map_or_else(
        || target.model.clone(),
        |name| name.to_string_lossy().into_owned(),
    );
    model::export::write_gguf(path, &name, &local.decoder, &local.tokenizer, kind, &mut progress)?;
    wait.finish_and_clear();
    Ok(())
}

/// The newest whole checkpoint of a run's folder; any other name as it is.
pub(crate) fn checkpoint(name: &str) -> Result<String> {
    let checkpoints = Path::new(name).join("checkpoints");
    if !checkpoints.is_dir() {
        return Ok(name.to_string());
    }
    let latest = train::checkpoint::latest(&checkpoints, &mut |warning| tracing::warn!("{warning}"))?;
    let (path, _): (PathBuf, _) = latest.ok_or_else(|| Error::Request {
        what: format!("{}: holds no whole checkpoint", checkpoints.display()),
        hint: "continue the run with `saferl train RECIPE --resume`".into(),
    })?;
    Ok(path.display().to_string())
}

/// Nothing is written over what someone may want to keep.
fn refuse_taken(folder: &Path) -> Result<()> {
    let empty = !folder.exists()
        || folder
            .read_dir()
            .is_ok_and(|mut entries| entries.next().is_none());
    if empty {
        return Ok(());
    }
    Err(Error::Request {
        what: format!(
            "{}: expected a new or an empty folder, found files",
            folder.display()
        ),
        hint: "name another folder".into(),
    })
}
