//! `saferl export`: a checkpoint in other programs' formats.

use std::path::{Path, PathBuf};

use candle_core::DType;

use crate::arguments::Export;
use crate::error::{Error, Result};
use crate::local::Local;
use crate::output::print_line;

/// Writes the folder and prints its path.
pub(crate) fn run(export: &Export) -> Result<()> {
    let (Export::Hf(target) | Export::Peft(target)) = export;
    let checkpoint = checkpoint(&target.checkpoint)?;
    refuse_taken(&target.output)?;
    let local = Local::load(&checkpoint, DType::F32)?;
    match export {
        Export::Hf(_) => {
            let merged = match local.decoder.adapters() {
                Some(_) => local.decoder.merge_adapters()?,
                None => local.decoder,
            };
            merged.save(&target.output, target.dtype.into())?;
        }
        Export::Peft(_) if local.decoder.adapters().is_none() => {
            return Err(Error::Request {
                what: format!("{checkpoint}: expected LoRA adapters, found a whole model"),
                hint: "`saferl export hf` writes whole models".into(),
            });
        }
        Export::Peft(_) => local.decoder.save_adapters(&target.output, &local.base)?,
    }
    local.tokenizer.save(&target.output)?;
    print_line(&target.output.display().to_string())
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
        hint: "name another folder with --output".into(),
    })
}
