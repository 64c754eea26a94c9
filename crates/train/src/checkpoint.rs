//! Checkpoints: folders that other programs load, with what the run needs to continue beside.
//!
//! `checkpoints/step-N/` is a Hugging Face folder (full fine-tuning) or a PEFT folder (LoRA). Its `trainer/` holds
//! `optimizer.safetensors` and `state.json` with step, cursor and the sha256 of every file. A checkpoint is written
//! under another name, flushed to the disk and renamed; what was cut off by a crash or damaged later is detected by its
//! hashes and skipped.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::alarm::Alarm;
use crate::error::{Error, Result};
use crate::optimizer::Optimizer;
use crate::prompts::Cursor;

/// The trainer's folder within a checkpoint.
const TRAINER: &str = "trainer";
const STATE: &str = "trainer/state.json";
const OPTIMIZER: &str = "trainer/optimizer.safetensors";

/// What a run needs to continue, beside weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: usize,
    /// The run's seed: with the step it gives the random state, since every step draws from a generator of its own.
    pub seed: u64,
    /// Optimiser updates done.
    pub updates: usize,
    /// Where the data stands.
    pub cursor: Cursor,
    /// What the alarm remembers.
    pub alarm: Alarm,
}

/// `state.json`: the state and what the files must hash to.
#[derive(Serialize, Deserialize)]
struct Sealed {
    state: State,
    sha256: BTreeMap<String, String>,
}

/// Writes a checkpoint and gives its folder.
///
/// `save_weights` writes the weights' own files into the folder that it is given; `folder` is the run's
/// `checkpoints`. Only after the new one is whole, older ones than the `keep` newest are removed.
///
/// # Errors
/// A full disk or any other failure of the file system; earlier checkpoints are untouched then.
pub fn save(
    folder: &Path,
    keep: usize,
    state: &State,
    optimizer: &Optimizer,
    save_weights: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let whole = folder.join(format!("step-{}", state.step));
    let partial = folder.join(format!(".step-{}.partial", state.step));
    remove(&partial)?;
    let written = write(&partial, state, optimizer, save_weights);
    if let Err(error) = written {
        // A full disk should at least get back what this attempt took.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    remove(&whole)?;
    fs::rename(&partial, &whole).map_err(|source| Error::file(&whole, source))?;
    synchronize(folder)?;
    let older = steps(folder)?
        .into_iter()
        .rev()
        .filter(|(step, _)| *step < state.step)
        .skip(keep.saturating_sub(1));
    for (_, old) in older {
        remove(&old)?;
    }
    Ok(whole)
}

fn write(
    partial: &Path,
    state: &State,
    optimizer: &Optimizer,
    save_weights: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let trainer = partial.join(TRAINER);
    fs::create_dir_all(&trainer).map_err(|source| Error::file(&trainer, source))?;
    save_weights(partial)?;
    let path = partial.join(OPTIMIZER);
    candle_core::safetensors::save(&optimizer.state(), &path)
        .map_err(|error| Error::file(&path, io::Error::other(error)))?;
    let mut sha256 = BTreeMap::new();
    for path in files(partial)? {
        synchronize(&path)?;
        let name = path
            .strip_prefix(partial)
            .unwrap_or(&path)
            .to_string_lossy()
            .replace('\\', "/");
        sha256.insert(name, hash_file(&path)?);
    }
    let path = partial.join(STATE);
    let sealed = serde_json::to_vec_pretty(&Sealed {
        state: state.clone(),
        sha256,
    })
    .map_err(|error| Error::file(&path, error.into()))?;
    fs::write(&path, sealed).map_err(|source| Error::file(&path, source))?;
    for path in [&path, &trainer, partial] {
        synchronize(path)?;
    }
    Ok(())
}

/// The newest whole checkpoint. Torn ones are skipped, each with a line to `warn`.
pub fn latest(folder: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<(PathBuf, State)>> {
    for (_, path) in steps(folder)?.into_iter().rev() {
        match verify(&path) {
            Ok(state) => return Ok(Some((path, state))),
            Err(error) => warn(format!("{error}; skipped")),
        }
    }
    Ok(None)
}

/// Checks every file of a checkpoint against its hash.
///
/// # Errors
/// [`Error::Checkpoint`] with the first file that is missing or different.
pub fn verify(checkpoint: &Path) -> Result<State> {
    let torn = |what: String| Error::Checkpoint {
        path: checkpoint.into(),
        what,
    };
    let text =
        fs::read_to_string(checkpoint.join(STATE)).map_err(|error| torn(format!("{STATE}: {error}")))?;
    let sealed: Sealed = serde_json::from_str(&text).map_err(|error| torn(format!("{STATE}: {error}")))?;
    for (name, expected) in &sealed.sha256 {
        let found = hash_file(&checkpoint.join(name)).map_err(|error| torn(error.to_string()))?;
        if found != *expected {
            return Err(torn(format!("{name}: expected sha256 {expected}, found {found}")));
        }
    }
    Ok(sealed.state)
}

/// Puts a checkpoint's weights and moments into the parameters and the optimiser.
///
/// # Errors
/// A tensor that is missing or misshapen: the checkpoint belongs to another recipe.
pub fn restore(checkpoint: &Path, state: &State, optimizer: &mut Optimizer, device: &Device) -> Result<()> {
    let broken = |what: String| Error::Checkpoint {
        path: checkpoint.into(),
        what,
    };
    let mut weights = HashMap::new();
    for path in files(checkpoint)?
        .iter()
        .filter(|path| path.parent() == Some(checkpoint))
    {
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            weights.extend(candle_core::safetensors::load(path, device)?);
        }
    }
    for (name, parameter) in optimizer.parameters() {
        set(parameter, name, &weights).map_err(broken)?;
    }
    let moments = candle_core::safetensors::load(checkpoint.join(OPTIMIZER), device)?;
    optimizer.restore(&moments, state.updates).map_err(broken)
}

fn set(parameter: &Var, name: &str, weights: &HashMap<String, Tensor>) -> std::result::Result<(), String> {
    let weight = weights
        .get(name)
        .ok_or_else(|| format!("tensor {name}: expected it, found none"))?;
    if weight.shape() != parameter.shape() || weight.dtype() != parameter.dtype() {
        let (shape, dtype) = (parameter.shape(), parameter.dtype());
        return Err(format!(
            "tensor {name}: expected {dtype:?} {shape:?}, found {:?} {:?}",
            weight.dtype(),
            weight.shape()
        ));
    }
    parameter
        .set(weight)
        .map_err(|error| format!("tensor {name}: {error}"))
}

/// The checkpoints in a folder with their steps, oldest first.
fn steps(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(Error::file(folder, error)),
    };
    let mut steps = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| Error::file(folder, source))?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            steps.push((step, path));
        }
    }
    steps.sort();
    Ok(steps)
}

/// Every file under a folder, in order of path.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| Error::file(folder, source))? {
        let path = entry.map_err(|source| Error::file(folder, source))?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The sha256 of a file, in hexadecimal.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|source| Error::file(path, source))?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).map_err(|source| Error::file(path, source))?;
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Waits until a file or folder is on the disk.
fn synchronize(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| Error::file(path, source))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file(folder, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optimizer(values: &[f32]) -> Optimizer {
        let var = Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
        Optimizer::new(vec![("w".into(), var)]).unwrap()
    }

    fn state(step: usize) -> State {
        State {
            step,
            seed: 1,
            updates: step * 4,
            cursor: Cursor::default(),
            alarm: Alarm::default(),
        }
    }

    fn save_at(folder: &Path, step: usize, values: &[f32]) -> Result<PathBuf> {
        let optimizer = optimizer(values);
        let weights = HashMap::from([("w".to_string(), optimizer.parameters()[0].1.as_detached_tensor())]);
        save(folder, 2, &state(step), &optimizer, |folder| {
            Ok(candle_core::safetensors::save(
                &weights,
                folder.join("model.safetensors"),
            )?)
        })
    }

    fn newest(folder: &Path) -> (Option<usize>, Vec<String>) {
        let mut warnings = Vec::new();
        let found = latest(folder, &mut |warning| warnings.push(warning)).unwrap();
        (found.map(|(_, state)| state.step), warnings)
    }

    #[test]
    fn what_is_saved_comes_back_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest(&folder.path().join("none")).0, None);
        for step in [2, 10, 4] {
            save_at(folder.path(), step, &[step as f32, 1.0]).unwrap();
        }
        save_at(folder.path(), 12, &[12.0, 1.0]).unwrap();
        let names: Vec<usize> = steps(folder.path())
            .unwrap()
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(names, [10, 12]);
        let (path, state) = latest(folder.path(), &mut |warning| panic!("{warning}"))
            .unwrap()
            .unwrap();
        let mut restored = optimizer(&[0.0, 0.0]);
        restore(&path, &state, &mut restored, &Device::Cpu).unwrap();
        assert_eq!(restored.parameters()[0].1.to_vec1::<f32>().unwrap(), [12.0, 1.0]);
        assert_eq!((restored.updates, state.step), (48, 12));
    }

    #[test]
    fn torn_checkpoints_are_skipped_with_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        save_at(folder.path(), 1, &[1.0]).unwrap();
        let torn = save_at(folder.path(), 2, &[2.0]).unwrap();
        let model = torn.join("model.safetensors");
        let whole = fs::read(&model).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bytes in [&whole[..whole.len() - 1], &flipped] {
            fs::write(&model, bytes).unwrap();
            let (step, warnings) = newest(folder.path());
            assert_eq!(step, Some(1));
            assert!(
                warnings[0].contains("step-2") && warnings[0].contains("model.safetensors"),
                "{warnings:?}"
            );
        }
        fs::write(&model, &whole).unwrap();
        assert_eq!(newest(folder.path()), (Some(2), vec![]));
        fs::remove_file(torn.join(STATE)).unwrap();
        assert_eq!(newest(folder.path()).0, Some(1));
    }

    #[test]
    fn a_failed_save_leaves_the_last_one_whole() {
        let folder = tempfile::tempdir().unwrap();
        save_at(folder.path(), 1, &[1.0]).unwrap();
        let full = |path: &Path| Err(Error::file(path, io::ErrorKind::StorageFull.into()));
        let error = save(folder.path(), 1, &state(2), &optimizer(&[2.0]), full).unwrap_err();
        assert!(error.hint().unwrap().contains("space"));
        assert_eq!(newest(folder.path()), (Some(1), vec![]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_checkpoint_of_another_model_names_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = save_at(folder.path(), 1, &[1.0]).unwrap();
        let error = restore(&path, &state(1), &mut optimizer(&[1.0, 2.0]), &Device::Cpu)
            .unwrap_err()
            .to_string();
        assert!(error.contains("tensor w") && error.contains("[2]"), "{error}");
    }
}
