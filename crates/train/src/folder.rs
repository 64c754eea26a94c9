//! The run folder: recipe, manifest and journals.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use model::source::{Source, WeightsFormat};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::alarm::{AlarmLine, Sign};
use crate::checkpoint::hash_file;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::recipe::Recipe;
use crate::rollout::Group;

/// `runs/NAME/` and what is written there step by step.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    metrics: Journal,
    samples: Journal,
    verdicts: Journal,
    alarms: Journal,
}

/// `manifest.json`: what a run was made of.
#[derive(Debug, Serialize)]
struct Manifest {
    seed: u64,
    /// Version of the program.
    version: &'static str,
    /// Git revision of the working folder, where there is one.
    source_revision: Option<String>,
    model: Hashed,
    judge: BTreeMap<&'static str, String>,
    prompts: Hashed,
}

#[derive(Debug, Serialize)]
struct Hashed {
    name: String,
    sha256: BTreeMap<String, String>,
}

impl RunFolder {
    /// Makes a run folder, or opens the one that a killed run left, with its journals cut back to `step`.
    ///
    /// # Errors
    /// A folder that is in use while `resume` is false, or a recipe that differs from the one it was started with in
    /// a key that changes the numbers.
    pub fn open(recipe: &Recipe, source: &Source, resume: bool, step: usize) -> Result<Self> {
        let path = recipe.folder();
        let wrong = |what: String, hint: &str| Error::Run {
            path: path.clone(),
            what,
            hint: hint.into(),
        };
        let written = path.join("recipe.toml");
        if written.exists() {
            if !resume {
                let hint = "continue it with --resume, or name another with --set run=NAME";
                return Err(wrong("expected a new run, found one".into(), hint));
            }
            let started = Recipe::load(&written, &[])?;
            if let Some(difference) = recipe.difference(&started)? {
                let what = format!("the run was started with another recipe: {difference}");
                return Err(wrong(
                    what,
                    "resume with the recipe as it was, or name another run with --set run=NAME",
                ));
            }
        }
        let checkpoints = path.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(|error| Error::file(&checkpoints, error))?;
        write_whole(&path.join("manifest.json"), &manifest(recipe, source)?)?;
        write_whole(&written, &recipe.resolved()?)?;
        let journal = |name: &str| Journal::open(&path.join(name), step);
        Ok(Self {
            metrics: journal("metrics.jsonl")?,
            samples: journal("samples.jsonl")?,
            verdicts: journal("verdicts.jsonl")?,
            alarms: journal("alarms.jsonl")?,
            path,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Writes a step's lines.
    pub fn record(&mut self, metrics: &Metrics, groups: &[Group], alarms: &[(Sign, String)]) -> Result<()> {
        let step = metrics.step;
        for group in groups {
            group
                .samples(step)
                .try_for_each(|sample| self.samples.write(&sample))?;
            group
                .judgements(step)
                .try_for_each(|judgement| self.verdicts.write(&judgement))?;
        }
        for (sign, text) in alarms {
            self.alarms.write(&AlarmLine {
                step,
                sign: *sign,
                text: text.clone(),
            })?;
        }
        self.metrics.write(metrics)?;
        self.journals().into_iter().try_for_each(Journal::flush)
    }

    /// Waits until all lines are on the disk.
    pub fn synchronize(&mut self) -> Result<()> {
        self.journals().into_iter().try_for_each(Journal::synchronize)
    }

    fn journals(&mut self) -> [&mut Journal; 4] {
        [
            &mut self.samples,
            &mut self.verdicts,
            &mut self.alarms,
            &mut self.metrics,
        ]
    }
}

/// Writes beside and renames, so that the file is never half there.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("partial");
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| Error::file(path, error))
}

fn manifest(recipe: &Recipe, source: &Source) -> Result<String> {
    let weights = match &source.weights {
        WeightsFormat::Safetensors(files) => files.clone(),
        WeightsFormat::Gguf(file) => vec![file.clone()],
        WeightsFormat::None => vec![],
    };
    let model = Hashed {
        name: recipe.model.clone(),
        sha256: hash_files(&weights)?,
    };
    let built_in = recipe.prompts.source == crate::prompts::BUILT_IN_NAME;
    let sha256 = if built_in {
        BTreeMap::from([("prompts.jsonl".into(), hash(crate::prompts::BUILT_IN.as_bytes()))])
    } else {
        hash_files(&[PathBuf::from(&recipe.prompts.source)])?
    };
    let manifest = Manifest {
        seed: recipe.seed,
        version: env!("CARGO_PKG_VERSION"),
        source_revision: source_revision(),
        model,
        judge: crate::judges::fingerprint(&recipe.judge)?,
        prompts: Hashed {
            name: recipe.prompts.source.clone(),
            sha256,
        },
    };
    let path = recipe.folder().join("manifest.json");
    serde_json::to_string_pretty(&manifest).map_err(|error| Error::file(&path, error.into()))
}

fn hash_files(paths: &[PathBuf]) -> Result<BTreeMap<String, String>> {
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    paths
        .iter()
        .map(|path| Ok((name(path), hash_file(path)?)))
        .collect()
}

/// The sha256 of some bytes, in hexadecimal.
pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn source_revision() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let revision = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !revision.is_empty()).then_some(revision)
}
