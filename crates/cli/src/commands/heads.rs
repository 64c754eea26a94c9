//! What the guard's and the helpfulness score's commands share: the base model beneath the heads, and files of rows.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::Device;
use indicatif::ProgressBar;
use judge::Heads;
use judge::features::{Features, Layout, SharedFeatures, fingerprint};
use judge::probe::{Progress, Recipe, Trained};
use model::decoder::Decoder;
use model::dtype::Dtype;
use model::source::{Source, cache_folder};
use model::tokenizer::Tokenizer;
use serde::Serialize;

use crate::arguments::{HeadsFile, HeadsTrain};
use crate::error::{Error, Result};
use crate::local::{Local, open_device, resolve};
use crate::output::{print_json, print_line};
use crate::progress::{bar, say};

/// The frozen model whose states the heads read.
pub(crate) struct Base {
    /// Features of conversations.
    pub(crate) features: SharedFeatures,
    /// By which heads know the model.
    pub(crate) sha256: String,
}

impl Base {
    /// Loads the model; with `cached`, features are kept on the disk for the next run.
    pub(crate) fn load(
        name: &str,
        dtype: Dtype,
        layout: Layout,
        cached: bool,
        device: &Device,
    ) -> Result<Self> {
        let sha256 = fingerprint(&resolve(name)?)?;
        let local = Local::load(name, dtype.into(), device)?;
        let mut features = Features::new(local.decoder, local.tokenizer, layout);
        if cached {
            features = features.with_cache(&cache_folder()?.join("features"), &sha256)?;
        }
        Ok(Self::new(features, sha256))
    }

    fn new(features: Features, sha256: String) -> Self {
        Self {
            features: Arc::new(Mutex::new(features)),
            sha256,
        }
    }
}

/// The heads of a file, or those that are part of the program, and the base that they fit.
pub(crate) fn open(file: &HeadsFile, device: &Device) -> Result<(Arc<Heads>, Base)> {
    open_on(file, device, |_| None)
}

/// The same; `loaded` says whether that base is there already, to be shared.
pub(crate) fn open_on(
    file: &HeadsFile,
    device: &Device,
    loaded: impl FnOnce(&Source) -> Option<(Decoder, Arc<Tokenizer>)>,
) -> Result<(Arc<Heads>, Base)> {
    let heads = match &file.heads {
        Some(path) => Heads::load(path)?,
        None => Heads::built_in()?,
    };
    let (name, dtype, layout) = (&heads.card.base, heads.card.dtype, heads.card.layout.clone());
    let source = resolve(name)?;
    let base = match loaded(&source).filter(|(decoder, _)| decoder.dtype() == dtype.into()) {
        Some((decoder, tokenizer)) => {
            Base::new(Features::new(decoder, tokenizer, layout), fingerprint(&source)?)
        }
        None => Base::load(name, dtype, layout, false, device)?,
    };
    {
        let features = base
            .features
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        heads.check(&features, &base.sha256)?;
    }
    Ok((Arc::new(heads), base))
}

/// Trains heads by the recipe with `fit`, saves them, and prints their figures on test prompts.
pub(crate) fn train<R: Display + Serialize>(
    arguments: &HeadsTrain,
    fit: impl FnOnce(
        &Recipe,
        &Path,
        &SharedFeatures,
        &mut Heads,
        &mut dyn FnMut(Progress),
    ) -> judge::Result<Trained<R>>,
) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe)?;
    let base = Base::load(
        &recipe.base,
        recipe.dtype,
        recipe.layout.clone(),
        true,
        &open_device(&arguments.on)?,
    )?;
    let mut heads = to_train(&arguments.output, &recipe, &base)?;
    let mut watch = Watch::default();
    let trained = fit(&recipe, &arguments.data, &base.features, &mut heads, &mut |p| {
        watch.update(p);
    })?;
    heads.save(&arguments.output)?;
    say(&format!("saved {}", arguments.output.display()));
    if arguments.json {
        return print_json(&trained);
    }
    print_line(&format!(
        "{} rows trained, {} validated, {} tested; on test prompts:\n{}",
        trained.train_rows, trained.validation_rows, trained.test_rows, trained.test
    ))
}

/// The heads in a file that training writes to, or none yet; the half that is not trained stays as it is.
fn to_train(path: &Path, recipe: &Recipe, base: &Base) -> Result<Heads> {
    let features = base
        .features
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if path.exists() {
        let heads = Heads::load(path)?;
        heads.check(&features, &base.sha256)?;
        return Ok(heads);
    }
    Ok(Heads::untrained(&recipe.base, &base.sha256, &features))
}

/// The rows of a file, or of standard input, and the name for errors.
pub(crate) fn rows(path: Option<&PathBuf>) -> Result<(Box<dyn BufRead>, PathBuf)> {
    match path.filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            let file = File::open(path).map_err(|source| Error::file(path, source))?;
            Ok((Box::new(BufReader::new(file)), path.clone()))
        }
        None => Ok((Box::new(std::io::stdin().lock()), "standard input".into())),
    }
}

/// Shows how training goes: a bar over the base model's pass, then a line for every fifth epoch.
#[derive(Default)]
struct Watch {
    bar: Option<ProgressBar>,
}

impl Watch {
    /// Shows a report of the trainer.
    fn update(&mut self, progress: Progress) {
        match progress {
            Progress::Loaded { conversations } => say(&format!("{conversations} conversations")),
            Progress::Features { done, total } => {
                let bar = self.bar.get_or_insert_with(|| bar("features, token rows", total));
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                if done == total {
                    bar.finish_and_clear();
                    self.bar = None;
                }
            }
            Progress::Epoch {
                head,
                epoch,
                loss,
                validation,
            } if epoch % 5 == 1 => {
                say(&format!(
                    "{head}: epoch {epoch}, loss {loss:.4}, on validation prompts {validation:.4}"
                ));
            }
            Progress::Epoch { .. } => {}
        }
    }
}
