//! Training the built-in heads: from a recipe of labelled sources to weights and held-out figures.
//!
//! Only the heads learn; the base model runs once over every conversation, and its features are cached, so that a
//! second training takes seconds. The fit stops at the epoch with the lowest loss on validation prompts. What is
//! published comes from test prompts, which no fit and no threshold has seen, and from the weights as the file holds
//! them (f16).

pub mod figures;
pub mod guard;
pub mod helpfulness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use kernels::AdamW;
use model::dtype::Dtype;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::data::{self, Labelled, Source};
use crate::features::{Feature, Features, Layout};
use crate::heads::Tensors;
use crate::judge::Conversation;
use crate::{Error, Result};
pub use figures::{GuardReport, HelpfulnessReport, Question};
pub use guard::{evaluate_guard, train_guard};
pub use helpfulness::{evaluate_helpfulness, train_helpfulness};

/// How heads are trained, as `recipes/guard.toml` and `recipes/helpfulness.toml` have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The base model's name.
    pub base: String,
    /// The numbers that it computes in.
    #[serde(default)]
    pub dtype: Dtype,
    /// Which of its states the heads read.
    #[serde(default)]
    pub layout: Layout,
    /// The fit.
    #[serde(default)]
    pub fit: Fit,
    /// Helpfulness: degenerate replies made for each prompt that has a good one.
    #[serde(default)]
    pub degenerate_per_prompt: usize,
    /// Helpfulness: how much the squared distance to a grade counts beside the preferences.
    #[serde(default = "half")]
    pub grade_weight: f64,
    /// The labelled data.
    pub sources: Vec<Source>,
    /// The folder that the recipe lies in.
    #[serde(skip)]
    pub folder: PathBuf,
}

fn half() -> f64 {
    0.5
}

/// Settings of a fit by AdamW, whose learning rate falls to zero in a straight line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fit {
    /// Width of the projections.
    pub width: usize,
    /// Most passes over the training rows.
    pub epochs: usize,
    /// Passes without a lower validation loss after which the fit ends.
    pub patience: usize,
    /// Rows or pairs of a step.
    pub batch: usize,
    /// The step size at the start.
    pub learning_rate: f64,
    /// The share of each weight, times the learning rate, that a step takes away.
    pub weight_decay: f64,
    /// The share of features left out at each step.
    pub dropout: f64,
    /// Seed of the initial weights, the order of rows and the features left out.
    pub seed: u64,
}

impl Default for Fit {
    fn default() -> Self {
        Self {
            width: 64,
            epochs: 40,
            patience: 8,
            batch: 128,
            learning_rate: 1e-3,
            weight_decay: 0.1,
            dropout: 0.3,
            seed: 1,
        }
    }
}

/// How far training has come.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// Conversations were loaded.
    Loaded {
        /// Their number.
        conversations: usize,
    },
    /// The base model has run over so many token rows.
    Features {
        /// Rows done.
        done: usize,
        /// Rows in all.
        total: usize,
    },
    /// A pass over the training rows.
    Epoch {
        /// What is fitted.
        head: &'static str,
        /// The pass, from 1.
        epoch: usize,
        /// Mean training loss.
        loss: f64,
        /// Validation loss.
        validation: f64,
    },
}

/// The figures of trained heads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trained<R> {
    /// Conversations to fit.
    pub train_rows: usize,
    /// Conversations to stop the fit and to set thresholds.
    pub validation_rows: usize,
    /// Conversations to measure.
    pub test_rows: usize,
    /// On validation prompts: these chose the epoch and the thresholds.
    pub validation: R,
    /// On test prompts: publish these.
    pub test: R,
}

impl Recipe {
    /// Reads a recipe; unknown keys are refused.
    ///
    /// # Errors
    /// A file that cannot be read, or a key that is wrong, named.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            path: path.into(),
            source,
        })?;
        let wrong = |what: String| Error::Recipe {
            path: path.into(),
            what,
        };
        let mut recipe: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        recipe.folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let Fit {
            width,
            epochs,
            batch,
            dropout,
            ..
        } = recipe.fit;
        if width == 0 || epochs == 0 || batch == 0 || !(0.0..1.0).contains(&dropout) {
            return Err(wrong(
                "fit: expected width, epochs and batch above 0 and dropout from 0 to below 1".into(),
            ));
        }
        if !recipe.layout.reads() {
            return Err(wrong(
                "layout: expected layers, and windows of at least one token".into(),
            ));
        }
        Ok(recipe)
    }

    /// Loads the recipe's sources; those with `data` lie below `data_folder`.
    ///
    /// # Errors
    /// A file that is missing or not in its format.
    pub fn load_data(&self, data_folder: &Path) -> Result<Labelled> {
        data::load(&self.sources, data_folder, &self.folder)
    }
}

/// Features of conversations, none where they could not be computed; the causes are logged.
pub(crate) fn compute(
    features: &mut Features,
    conversations: &[Conversation],
    on_progress: &mut dyn FnMut(Progress),
) -> Vec<Option<std::sync::Arc<Feature>>> {
    on_progress(Progress::Loaded {
        conversations: conversations.len(),
    });
    let computed = features.of(conversations, &mut |done, total| {
        on_progress(Progress::Features { done, total });
    });
    let warn = |cause: &String| tracing::warn!("a row is left out: {cause}");
    computed
        .into_iter()
        .map(|feature| feature.inspect_err(warn).ok())
        .collect()
}

/// Shapes of the weights to learn: a projection with its norm, and linear heads on it.
#[derive(Default)]
pub(crate) struct Shapes(Vec<(String, Vec<usize>)>);

impl Shapes {
    pub(crate) fn projection(mut self, name: &str, outputs: usize, inputs: usize) -> Self {
        self.0.push((format!("{name}_pre.weight"), vec![outputs, inputs]));
        self.0.push((format!("{name}_layernorm.weight"), vec![outputs]));
        self
    }

    pub(crate) fn linear(mut self, name: &str, outputs: usize, inputs: usize) -> Self {
        self.0.push((format!("{name}.weight"), vec![outputs, inputs]));
        self.0.push((format!("{name}.bias"), vec![outputs]));
        self
    }

    /// Normal weights of variance one over the inputs, norms of one, biases of zero.
    fn start(&self, random: &mut StdRng) -> Result<BTreeMap<String, Var>> {
        let var = |(name, shape): &(String, Vec<usize>)| {
            let count = shape.iter().product();
            let numbers: Vec<f32> = match shape[..] {
                [_, inputs] => (0..count)
                    .map(|_| normal(random) / (inputs as f32).sqrt())
                    .collect(),
                _ => vec![if name.ends_with(".bias") { 0.0 } else { 1.0 }; count],
            };
            Ok((
                name.clone(),
                Var::from_vec(numbers, shape.as_slice(), &Device::Cpu)?,
            ))
        };
        self.0.iter().map(var).collect()
    }
}

/// A normal number by Box and Muller.
fn normal(random: &mut StdRng) -> f32 {
    let (u, v): (f32, f32) = (1.0 - random.random::<f32>(), random.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

/// A batch in training: which examples, and how features are left out of it.
pub(crate) struct Batch<'a> {
    /// Indices of the examples.
    pub(crate) examples: &'a [usize],
    /// Random numbers and the share to leave out; none in validation.
    dropout: Option<(&'a mut StdRng, f64)>,
}

impl Batch<'_> {
    /// The features with some set to zero and the rest scaled up for it.
    pub(crate) fn drop_out(&mut self, x_n_f: &Tensor) -> Result<Tensor> {
        let Some((random, share)) = &mut self.dropout else {
            return Ok(x_n_f.clone());
        };
        let mut bytes = vec![0; x_n_f.elem_count()];
        random.fill_bytes(&mut bytes);
        let limit = (*share * 256.0) as u8;
        let kept = 256.0 / (256.0 - f32::from(limit));
        let mask: Vec<f32> = bytes
            .into_iter()
            .map(|byte| if byte < limit { 0.0 } else { kept })
            .collect();
        Ok((x_n_f * Tensor::from_vec(mask, x_n_f.shape(), x_n_f.device())?)?)
    }
}

/// Fits weights of `shapes` and adds them to `tensors`: those of the epoch with the lowest validation loss.
///
/// `loss` gives the mean loss of a batch of examples, numbered through training and then validation ones.
pub(crate) fn fit(
    head: &'static str,
    settings: &Fit,
    shapes: &Shapes,
    tensors: &mut Tensors,
    (training, validation): (usize, usize),
    loss: &dyn Fn(&Tensors, Batch<'_>) -> Result<Tensor>,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    if training == 0 || validation == 0 {
        return Err(Error::Heads {
            what: format!(
                "{head}: expected rows to train and to validate, found {training} and {validation}"
            ),
            hint: "add sources with that label to the recipe".into(),
        });
    }
    let mut random = StdRng::seed_from_u64(settings.seed);
    let variables = shapes.start(&mut random)?;
    let moments: Vec<(Var, Var)> = variables
        .values()
        .map(|variable| {
            Ok((
                Var::zeros(variable.shape(), DType::F32, &Device::Cpu)?,
                Var::zeros(variable.shape(), DType::F32, &Device::Cpu)?,
            ))
        })
        .collect::<Result<_>>()?;
    // A variable's tensor shares its storage, so these follow every step.
    tensors.extend(
        variables
            .iter()
            .map(|(name, variable)| (name.clone(), variable.as_tensor().clone())),
    );

    let mut order: Vec<usize> = (0..training).collect();
    let held_out: Vec<usize> = (training..training + validation).collect();
    let steps = settings.epochs * training.div_ceil(settings.batch);
    let (mut step, mut best, mut best_epoch) = (0, f64::INFINITY, 0);
    let mut kept: Vec<Tensor> = Vec::new();
    for epoch in 1..=settings.epochs {
        order.shuffle(&mut random);
        let mut total = 0.0;
        for examples in order.chunks(settings.batch) {
            let batch = Batch {
                examples,
                dropout: Some((&mut random, settings.dropout)),
            };
            let loss = loss(tensors, batch)?;
            total += f64::from(loss.to_scalar::<f32>()?) * examples.len() as f64;
            let gradients = loss.backward()?;
            let left = 1.0 - step as f64 / steps as f64;
            step += 1;
            for ((name, variable), (first, second)) in variables.iter().zip(&moments) {
                let Some(gradient) = gradients.get(variable) else {
                    continue;
                };
                let decays = name.ends_with("_pre.weight") || name.ends_with("_head.weight");
                let adamw = AdamW {
                    learning_rate: settings.learning_rate * left,
                    beta1: 0.9,
                    beta2: 0.999,
                    epsilon: 1e-8,
                    weight_decay: if decays { settings.weight_decay } else { 0.0 },
                };
                adamw.update(variable, gradient, first, second, step, 1.0)?;
            }
        }
        let held = f64::from(
            loss(
                tensors,
                Batch {
                    examples: &held_out,
                    dropout: None,
                },
            )?
            .to_scalar::<f32>()?,
        );
        on_progress(Progress::Epoch {
            head,
            epoch,
            loss: total / training as f64,
            validation: held,
        });
        if held < best {
            (best, best_epoch) = (held, epoch);
            kept = variables
                .values()
                .map(|variable| variable.as_tensor().copy())
                .collect::<candle_core::Result<_>>()?;
        } else if epoch - best_epoch >= settings.patience {
            break;
        }
    }
    if kept.is_empty() {
        let what = format!("{head}: the validation loss was never a number");
        return Err(Error::Heads {
            what,
            hint: "lower fit.learning_rate".into(),
        });
    }
    tensors.extend(
        variables
            .into_keys()
            .zip(kept.into_iter().map(|tensor| tensor.detach())),
    );
    Ok(())
}

/// Adds `name.mean` and `name.scale` of the first `rows` rows, by which features are standardised.
pub(crate) fn measure(tensors: &mut Tensors, name: &str, x_n_f: &Tensor, rows: usize) -> Result<()> {
    let x_n_f = x_n_f.narrow(0, 0, rows)?;
    let mean_1_f = x_n_f.mean_keepdim(0)?;
    let variance_f = x_n_f.broadcast_sub(&mean_1_f)?.sqr()?.mean(0)?;
    tensors.insert(format!("{name}.mean"), mean_1_f.squeeze(0)?);
    tensors.insert(
        format!("{name}.scale"),
        variance_f.sqrt()?.clamp(1e-4, f64::INFINITY)?,
    );
    Ok(())
}

/// Rows of a matrix by index.
pub(crate) fn select(x_n_f: &Tensor, indices: &[usize]) -> Result<Tensor> {
    let indices: Vec<u32> = indices.iter().map(|index| *index as u32).collect();
    Ok(x_n_f.index_select(&Tensor::new(indices, x_n_f.device())?, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_refuse_what_they_do_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.toml");
        let good = "base = \"b\"\n[[sources]]\nname = \"s\"\nformat = \"own\"\npath = \"s.jsonl\"\n";
        std::fs::write(&path, good).unwrap();
        let recipe = Recipe::load(&path).unwrap();
        assert_eq!(
            (recipe.layout, recipe.fit, recipe.folder.as_path()),
            (Layout::default(), Fit::default(), folder.path())
        );
        for bad in ["epoch = 3\n", "[fit]\nwidth = 0\n[x]\n"] {
            std::fs::write(&path, format!("{bad}{good}")).unwrap();
            let error = Recipe::load(&path).unwrap_err().to_string();
            assert!(error.contains("guard.toml"), "{error}");
        }
        std::fs::write(&path, format!("{good}[fit]\ndropout = 1.0\n")).unwrap();
        assert!(Recipe::load(&path).unwrap_err().to_string().contains("dropout"));
    }

    #[test]
    fn a_fit_learns_a_line_and_keeps_the_best_epoch() {
        let mut random = StdRng::seed_from_u64(3);
        let rows: Vec<f32> = (0..300 * 4).map(|_| normal(&mut random)).collect();
        let x_n_f = Tensor::from_vec(rows.clone(), (300, 4), &Device::Cpu).unwrap();
        let targets: Vec<f32> = rows.chunks(4).map(|row| 2.0 * row[0] - row[1] + 0.5).collect();
        let y_n = Tensor::new(targets, &Device::Cpu).unwrap();
        let shapes = Shapes::default().linear("line_head", 1, 4);
        let settings = Fit {
            learning_rate: 0.05,
            weight_decay: 0.0,
            dropout: 0.0,
            ..Fit::default()
        };
        let mut tensors = Tensors::new();
        let mut epochs = Vec::new();
        let loss = |tensors: &Tensors, batch: Batch<'_>| {
            let x = select(&x_n_f, batch.examples)?;
            let guess = x
                .matmul(&tensors["line_head.weight"].t()?)?
                .broadcast_add(&tensors["line_head.bias"])?;
            Ok((guess.squeeze(1)?
                - y_n.index_select(
                    &Tensor::new(
                        batch.examples.iter().map(|i| *i as u32).collect::<Vec<_>>(),
                        &Device::Cpu,
                    )?,
                    0,
                )?)?
            .sqr()?
            .mean_all()?)
        };
        fit(
            "line",
            &settings,
            &shapes,
            &mut tensors,
            (250, 50),
            &loss,
            &mut |progress| epochs.push(progress),
        )
        .unwrap();
        let weight = tensors["line_head.weight"]
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert!(
            (weight[0] - 2.0).abs() < 0.05 && (weight[1] + 1.0).abs() < 0.05,
            "{weight:?}"
        );
        assert!(!epochs.is_empty());
        assert!(
            fit(
                "line",
                &settings,
                &shapes,
                &mut tensors,
                (10, 0),
                &loss,
                &mut |_| ()
            )
            .is_err()
        );
    }

    #[test]
    fn dropout_keeps_the_mean_and_validation_keeps_all() {
        let x = Tensor::ones((50, 40), DType::F32, &Device::Cpu).unwrap();
        let mut random = StdRng::seed_from_u64(5);
        let mut batch = Batch {
            examples: &[],
            dropout: Some((&mut random, 0.25)),
        };
        let dropped = batch.drop_out(&x).unwrap();
        let mean = dropped.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        let zeros = dropped
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .filter(|v| **v == 0.0)
            .count();
        assert!((400..600).contains(&zeros), "{zeros}");
        let same = Batch {
            examples: &[],
            dropout: None,
        }
        .drop_out(&x)
        .unwrap();
        assert_eq!(same.mean_all().unwrap().to_scalar::<f32>().unwrap(), 1.0);
    }
}
