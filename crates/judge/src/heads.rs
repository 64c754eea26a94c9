//! The built-in heads: small layers on a frozen base model's [`Features`](crate::features::Features), and their file.
//!
//! The guard's heads have the shape of Qwen3Guard-Stream (arXiv 2510.14276, section 4) and its tensor names: a
//! projection without bias, RMSNorm, then linear heads for the risk level (safe, unsafe, controversial: that order) and
//! the category (eight for replies, nine with the `query_` pair for prompts). A `refusal` head beside them has a
//! projection of its own. The helpfulness head is a scalar: projection, RMSNorm, SiLU, linear, plus a bilinear term of
//! reply and prompt by which a reply on another topic shows.
//!
//! Everything is one safetensors file (f16; means and scales f32) whose metadata hold a [`Card`] in JSON. The file that
//! is part of the program lies at `heads/smollm2-135m.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kernels::rms_norm;
use model::dtype::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::features::{Feature, Features, Layout, SURFACE, hex};
use crate::verdict::Safety;
use crate::{Error, Result};

/// The heads that are part of the program, for smollm2-135m; empty until they are trained.
static BUILT_IN: &[u8] = include_bytes!("../heads/smollm2-135m.safetensors");

const NORM_EPSILON: f64 = 1e-6;
/// Standardised features are held within this many standard deviations.
const CLAMP: f64 = 6.0;
/// The metadata key of the [`Card`].
const CARD: &str = "saferl.heads";

/// The classes of the risk heads, in Qwen3Guard-Stream's order.
pub const RISK_CLASSES: [Safety; 3] = [Safety::Safe, Safety::Unsafe, Safety::Controversial];

/// Tensors by name, trained or in training.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// What a heads file says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// The base model's name.
    #[serde(default = "small")]
    pub base: String,
    /// The numbers that the base computes in.
    #[serde(default)]
    pub dtype: Dtype,
    /// The sha256 of the base model's weights.
    pub base_sha256: String,
    /// Width of the base model's residual stream.
    pub hidden: usize,
    /// Which of its states the heads read.
    pub layout: Layout,
    /// The guard's decisions, if it is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardCard>,
    /// The helpfulness head's figures, if it is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helpfulness: Option<serde_json::Value>,
}

/// The base of heads that were trained when there was no other.
fn small() -> String {
    "smollm2-135m".into()
}

/// How the guard's logits become decisions, and how good these were on held-out rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardCard {
    /// Of replies.
    pub risk: Decision,
    /// Of prompts.
    pub query: Decision,
    /// Refusals.
    pub refusal: Decision,
    /// Held-out figures: a [`crate::probe::GuardReport`] in JSON.
    pub figures: serde_json::Value,
}

/// Set on validation rows after training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Divides the logits.
    pub temperature: f32,
    /// The probability from which the answer is yes.
    pub threshold: f32,
    /// Of a reply's risk: how much the log-odds that its prompt is harmful count beside the reply's own. The prompts'
    /// head has seen far more prompts than the replies' head has, and spares harmless answers to harmless prompts.
    #[serde(default)]
    pub prompt_weight: f32,
    /// Added to the logits of every class but the first.
    #[serde(default)]
    pub bias: f32,
}

impl Default for Decision {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            threshold: 0.5,
            prompt_weight: 0.0,
            bias: 0.0,
        }
    }
}

/// Trained heads and their card.
#[derive(Debug, Clone)]
pub struct Heads {
    /// What they fit.
    pub card: Card,
    pub(crate) tensors: Tensors,
}

/// Features of several conversations as matrices of n rows.
pub(crate) struct Inputs {
    /// `n x (layers * hidden)`.
    pub(crate) prompt_n_f: Tensor,
    /// Mean and last state of the reply: `n x ((layers + 1) * hidden)`.
    pub(crate) reply_n_r: Tensor,
    /// `n x SURFACE`.
    pub(crate) surface_n_s: Tensor,
}

/// Logits of the guard's heads on replies.
pub(crate) struct ReplyLogits {
    pub(crate) risk_n_3: Tensor,
    pub(crate) category_n_8: Tensor,
    pub(crate) refusal_n_2: Tensor,
}

impl Inputs {
    /// The prompts' features alone.
    pub(crate) fn prompts(features: &[&Feature]) -> Result<Tensor> {
        let rows = features.iter().map(|feature| feature.prompt_f.as_slice());
        stack(rows)
    }

    /// Features of replies; every feature must have one.
    pub(crate) fn replies(features: &[&Feature]) -> Result<Self> {
        let replies: Option<Vec<_>> = features.iter().map(|feature| feature.reply.as_ref()).collect();
        let replies =
            replies.ok_or_else(|| candle_core::Error::Msg("a conversation without a reply".into()))?;
        let mean_n_f = stack(replies.iter().map(|reply| reply.mean_f.as_slice()))?;
        let last_n_d = stack(replies.iter().map(|reply| reply.last_d.as_slice()))?;
        Ok(Self {
            prompt_n_f: Self::prompts(features)?,
            reply_n_r: Tensor::cat(&[mean_n_f, last_n_d], 1)?,
            surface_n_s: stack(replies.iter().map(|reply| reply.surface.as_slice()))?,
        })
    }
}

fn stack<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>) -> Result<Tensor> {
    let count = rows.len();
    let numbers = rows.flatten().copied().collect::<Vec<_>>();
    let width = numbers.len() / count.max(1);
    Ok(Tensor::from_vec(numbers, (count, width), &Device::Cpu)?)
}

/// Subtracts `name.mean`, divides by `name.scale`, and holds the result within a few standard deviations.
pub(crate) fn standardise(tensors: &Tensors, name: &str, x_n_f: &Tensor) -> Result<Tensor> {
    let centred_n_f = x_n_f.broadcast_sub(get(tensors, &format!("{name}.mean"))?)?;
    Ok(centred_n_f
        .broadcast_div(get(tensors, &format!("{name}.scale"))?)?
        .clamp(-CLAMP, CLAMP)?)
}

/// The guard's heads on standardised features of replies.
pub(crate) fn reply_logits(tensors: &Tensors, reply_n_r: &Tensor) -> Result<ReplyLogits> {
    let risk_n_p = projection(tensors, "risk_level_category", reply_n_r)?;
    let refusal_n_p = projection(tensors, "refusal", reply_n_r)?;
    Ok(ReplyLogits {
        risk_n_3: linear(tensors, "risk_level_head", &risk_n_p)?,
        category_n_8: linear(tensors, "category_head", &risk_n_p)?,
        refusal_n_2: linear(tensors, "refusal_head", &refusal_n_p)?,
    })
}

/// The guard's heads on standardised features of prompts: risk (3) and category (9).
pub(crate) fn query_logits(tensors: &Tensors, prompt_n_f: &Tensor) -> Result<(Tensor, Tensor)> {
    let query_n_p = projection(tensors, "query_risk_level_category", prompt_n_f)?;
    let risk_n_3 = linear(tensors, "query_risk_level_head", &query_n_p)?;
    Ok((risk_n_3, linear(tensors, "query_category_head", &query_n_p)?))
}

/// The helpfulness of replies from standardised features: n numbers.
pub(crate) fn helpfulness(tensors: &Tensors, inputs: &Inputs) -> Result<Tensor> {
    let all_n_a = Tensor::cat(&[&inputs.reply_n_r, &inputs.prompt_n_f, &inputs.surface_n_s], 1)?;
    let hidden_n_p = projection(tensors, "helpfulness", &all_n_a)?;
    let hidden_n_p = (&hidden_n_p / ((hidden_n_p.neg()?.exp()? + 1.0)?))?;
    let reply_n_k = projection(tensors, "topic_reply", &inputs.reply_n_r)?;
    let prompt_n_k = projection(tensors, "topic_prompt", &inputs.prompt_n_f)?;
    let both_n_h = Tensor::cat(&[hidden_n_p, (reply_n_k * prompt_n_k)?], 1)?;
    Ok(linear(tensors, "helpfulness_head", &both_n_h)?.squeeze(1)?)
}

fn projection(tensors: &Tensors, name: &str, x_n_f: &Tensor) -> Result<Tensor> {
    let pre_n_p = x_n_f.matmul(&get(tensors, &format!("{name}_pre.weight"))?.t()?)?;
    Ok(rms_norm(
        &pre_n_p,
        get(tensors, &format!("{name}_layernorm.weight"))?,
        NORM_EPSILON,
    )?)
}

fn linear(tensors: &Tensors, name: &str, x_n_p: &Tensor) -> Result<Tensor> {
    let product_n_c = x_n_p.matmul(&get(tensors, &format!("{name}.weight"))?.t()?)?;
    Ok(product_n_c.broadcast_add(get(tensors, &format!("{name}.bias"))?)?)
}

fn get<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors
        .get(name)
        .ok_or_else(|| wrong(format!("tensor {name} is missing")))
}

fn wrong(what: String) -> Error {
    Error::Heads {
        what,
        hint: "train them with `saferl guard train` and `saferl reward train`".into(),
    }
}

impl Heads {
    /// Heads without any tensor yet, for the base model with this name and [`fingerprint`](crate::features::fingerprint).
    pub fn untrained(base: impl Into<String>, base_sha256: impl Into<String>, features: &Features) -> Self {
        let card = Card {
            base: base.into(),
            dtype: features.dtype(),
            base_sha256: base_sha256.into(),
            hidden: features.hidden(),
            layout: features.layout().clone(),
            guard: None,
            helpfulness: None,
        };
        Self {
            card,
            tensors: Tensors::new(),
        }
    }

    /// The heads that are part of the program, for smollm2-135m.
    ///
    /// # Errors
    /// When this build holds none.
    pub fn built_in() -> Result<Self> {
        if BUILT_IN.is_empty() {
            return Err(wrong("this build holds no trained heads".into()));
        }
        Self::from_bytes(BUILT_IN, "built-in heads")
    }

    /// The sha256 of the heads that are part of the program, for a run's manifest.
    pub fn built_in_sha256() -> String {
        hex(&Sha256::digest(BUILT_IN))
    }

    /// Reads a heads file.
    ///
    /// # Errors
    /// When it cannot be read or is not one.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::File {
            path: path.into(),
            source,
        })?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    fn from_bytes(bytes: &[u8], name: &str) -> Result<Self> {
        let bad = |error: &dyn std::fmt::Display| wrong(format!("{name}: {error}"));
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| bad(&error))?;
        let card = metadata
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(CARD));
        let card = card.ok_or_else(|| bad(&format!("expected the metadata key {CARD}, found none")))?;
        let card: Card = serde_json::from_str(card).map_err(|error| bad(&format!("{CARD}: {error}")))?;
        if !card.layout.reads() {
            let found = format!("{:?}", card.layout);
            return Err(bad(&format!(
                "{CARD}: expected layers, and windows of at least one token, found {found}"
            )));
        }
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?;
        let widen = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_dtype(DType::F32)?));
        Ok(Self {
            card,
            tensors: tensors.into_iter().map(widen).collect::<Result<_>>()?,
        })
    }

    /// Writes the heads file whole: beside, then renamed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let at = |source| Error::File {
            path: path.into(),
            source,
        };
        let card = serde_json::to_string(&self.card).map_err(|error| at(error.into()))?;
        let mut parts = Vec::new();
        for (name, tensor) in &self.tensors {
            let flat = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            let exact = name.ends_with(".mean") || name.ends_with(".scale");
            let (dtype, bytes): (_, Vec<u8>) = if exact {
                (
                    safetensors::Dtype::F32,
                    flat.iter().flat_map(|value| value.to_le_bytes()).collect(),
                )
            } else {
                (
                    safetensors::Dtype::F16,
                    flat.iter()
                        .flat_map(|value| half::f16::from_f32(*value).to_le_bytes())
                        .collect(),
                )
            };
            parts.push((name, dtype, tensor.dims().to_vec(), bytes));
        }
        let views = parts.iter().map(|(name, dtype, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
        });
        let bytes = views
            .collect::<std::result::Result<Vec<_>, _>>()
            .and_then(|views| safetensors::serialize(views, Some(HashMap::from([(CARD.into(), card)]))))
            .map_err(|error: safetensors::SafeTensorError| at(std::io::Error::other(error)))?;
        let beside = path.with_extension("partial");
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(at)?;
        }
        std::fs::write(&beside, bytes).map_err(at)?;
        std::fs::rename(&beside, path).map_err(at)
    }

    /// The same heads as they are after a save: f16 and back.
    pub(crate) fn rounded(&self) -> Result<Self> {
        let round = |(name, tensor): (&String, &Tensor)| {
            let exact = name.ends_with(".mean") || name.ends_with(".scale");
            let tensor = if exact {
                tensor.clone()
            } else {
                tensor.to_dtype(DType::F16)?.to_dtype(DType::F32)?
            };
            Ok((name.clone(), tensor.detach()))
        };
        let tensors = self.tensors.iter().map(round).collect::<Result<_>>()?;
        Ok(Self {
            card: self.card.clone(),
            tensors,
        })
    }

    /// Fails unless the heads read what `features` gives, of the base with this [`fingerprint`](crate::features::fingerprint).
    ///
    /// # Errors
    /// Another base, width, dtype or layout.
    pub fn check(&self, features: &Features, base_sha256: &str) -> Result<()> {
        let (card, hidden) = (&self.card, features.hidden());
        if card.base_sha256 != base_sha256 {
            let what = format!(
                "they fit a base with sha256 {}, found {base_sha256}",
                card.base_sha256
            );
            return Err(Error::Heads {
                what,
                hint: "judge with the base they were trained on, or train others".into(),
            });
        }
        if card.hidden != hidden || card.dtype != features.dtype() || card.layout != *features.layout() {
            let found = format!("width {hidden}, {:?}, {:?}", features.dtype(), features.layout());
            return Err(wrong(format!(
                "expected width {}, {:?}, {:?}, found {found}",
                card.hidden, card.dtype, card.layout
            )));
        }
        Ok(())
    }

    /// Width of a reply's features in the heads: its mean and last states.
    pub(crate) fn reply_width(&self) -> usize {
        (self.card.layout.layers.len() + 1) * self.card.hidden
    }

    /// Width of a prompt's features in the heads.
    pub(crate) fn prompt_width(&self) -> usize {
        self.card.layout.layers.len() * self.card.hidden
    }

    /// Width of everything the helpfulness projection sees.
    pub(crate) fn helpfulness_width(&self) -> usize {
        self.reply_width() + self.prompt_width() + SURFACE
    }
}
