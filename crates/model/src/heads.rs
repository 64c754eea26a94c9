//! Heads other than the language model's: a scalar reward, and the token classifier of Qwen3Guard-Stream.
//!
//! Both read hidden states after the final norm ([`Decoder::hidden`]) and are differentiable.

use candle_core::{DType, Device, Tensor};
use kernels::Segment;

use crate::config::Config;
use crate::decoder::Decoder;
use crate::linear::{Linear, Weight, product};
use crate::source::Source;
use crate::weights::Weights;
use crate::{Error, Result};

/// A reward model: a decoder whose head is linear, ReLU, linear to one number, read at a sequence's last token
/// (`Qwen2ForRewardModel`, tensors `score.0` and `score.2`).
#[derive(Debug, Clone)]
pub struct RewardModel {
    /// The decoder; its language-model head means nothing.
    pub decoder: Decoder,
    inner: Linear,
    score: Linear,
}

impl RewardModel {
    /// Loads the reward model of `source`; see [`Decoder::load`].
    pub fn load(source: &Source, dtype: DType, device: &Device) -> Result<Self> {
        let config = Config::load(source)?;
        let mut weights = Weights::load(source, &config)?;
        let model = Self::from_weights(&config, &mut weights, dtype, device)?;
        weights.finish(&config)?;
        Ok(model)
    }

    /// Builds the reward model out of `weights`.
    pub fn from_weights(
        config: &Config,
        weights: &mut Weights,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let decoder = Decoder::from_weights(config, weights, false, dtype, device)?;
        let mut linear = |name: &str, outputs: usize| -> Result<Linear> {
            let weight = weights
                .take(&format!("{name}.weight"), &[outputs, config.hidden])?
                .to_device(device)?;
            let bias_o = weights
                .take(&format!("{name}.bias"), &[outputs])?
                .to_device(device)?;
            Ok(Linear {
                weight: Weight::frozen(&weight, dtype)?,
                bias_o: Some(bias_o),
                adapter: None,
                mixed: Vec::new(),
            })
        };
        let inner = linear("score.0", config.hidden)?;
        let score = linear("score.2", 1)?;
        Ok(Self {
            decoder,
            inner,
            score,
        })
    }

    /// The reward of each row of hidden states; take the rows of the sequences' last tokens.
    pub fn reward(&self, hidden_n_d: &Tensor) -> Result<Tensor> {
        let dtype = self.decoder.dtype();
        let inner_n_d = self.inner.apply(hidden_n_d, dtype)?.relu()?;
        Ok(self.score.apply(&inner_n_d, dtype)?.squeeze(1)?)
    }

    /// The reward of each of `segments`, read at its last row.
    pub fn score(&self, ids: &[u32], segments: &[Segment]) -> Result<Vec<f32>> {
        let hidden_t_d = self.decoder.hidden(ids, segments)?;
        let last: Vec<u32> = segments
            .iter()
            .map(|segment| (segment.start + segment.len - 1) as u32)
            .collect();
        let last_n = Tensor::new(last, hidden_t_d.device())?;
        Ok(self.reward(&hidden_t_d.index_select(&last_n, 0)?)?.to_vec1()?)
    }
}

/// One half of a token classifier: a projection without bias, an RMSNorm, and two linear heads without bias.
#[derive(Debug, Clone)]
pub struct ClassifierHead {
    /// Inner width x hidden width.
    pub projection_i_d: Tensor,
    /// Inner width.
    pub norm_i: Tensor,
    /// Risk levels x inner width; the classes are Safe, Unsafe, Controversial, in this order.
    pub risk_level_c_i: Tensor,
    /// Categories x inner width.
    pub category_c_i: Tensor,
    /// Added to the mean square under the norm's root.
    pub norm_epsilon: f64,
}

/// Logits of a [`ClassifierHead`].
#[derive(Debug, Clone)]
pub struct Classes {
    /// Rows x risk levels.
    pub risk_level_n_c: Tensor,
    /// Rows x categories.
    pub category_n_c: Tensor,
}

impl ClassifierHead {
    /// Takes a head out of `weights`; every name starts with `prefix` (empty, or `query_`).
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn from_weights(
        weights: &mut Weights,
        prefix: &str,
        [hidden, inner, risk_levels, categories]: [usize; 4],
        norm_epsilon: f64,
        device: &Device,
    ) -> Result<Self> {
        let mut take = |name: &str, shape: &[usize]| -> Result<Tensor> {
            Ok(weights
                .take(&format!("{prefix}{name}.weight"), shape)?
                .to_device(device)?)
        };
        Ok(Self {
            projection_i_d: take("risk_level_category_pre", &[inner, hidden])?,
            norm_i: take("risk_level_category_layernorm", &[inner])?,
            risk_level_c_i: take("risk_level_head", &[risk_levels, inner])?,
            category_c_i: take("category_head", &[categories, inner])?,
            norm_epsilon,
        })
    }

    /// Logits for each row of hidden states.
    pub fn classify(&self, hidden_n_d: &Tensor) -> Result<Classes> {
        let projected_n_i = product(hidden_n_d, &self.projection_i_d, DType::F32)?;
        let inner_n_i = kernels::rms_norm(&projected_n_i, &self.norm_i, self.norm_epsilon)?;
        Ok(Classes {
            risk_level_n_c: product(&inner_n_i, &self.risk_level_c_i, DType::F32)?,
            category_n_c: product(&inner_n_i, &self.category_c_i, DType::F32)?,
        })
    }
}

/// Qwen3Guard-Stream: a decoder that classifies every token, with one head for replies and one for queries. The
/// heads compute in f32.
#[derive(Debug, Clone)]
pub struct TokenClassifier {
    /// The decoder; its language-model head means nothing.
    pub decoder: Decoder,
    /// For the tokens of a reply: 3 risk levels, 8 categories.
    pub reply: ClassifierHead,
    /// For the tokens of a query: 3 risk levels, 9 categories.
    pub query: ClassifierHead,
}

impl TokenClassifier {
    /// Loads the classifier of `source`; see [`Decoder::load`].
    pub fn load(source: &Source, dtype: DType, device: &Device) -> Result<Self> {
        let config = Config::load(source)?;
        let mut weights = Weights::load(source, &config)?;
        let model = Self::from_weights(&config, &mut weights, dtype, device)?;
        weights.finish(&config)?;
        Ok(model)
    }

    /// Builds the classifier out of `weights`. The heads' sizes are the config's `guard_inner_size` (512 if absent),
    /// `num_risk_level`, `num_category`, `num_query_risk_level` and `num_query_category` (3, 8, 3, 9).
    pub fn from_weights(
        config: &Config,
        weights: &mut Weights,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let decoder = Decoder::from_weights(config, weights, false, dtype, device)?;
        let size = |key: &str, default: usize| match config.fields.get(key) {
            None => Ok(default),
            Some(value) => value.as_u64().map(|size| size as usize).ok_or_else(|| {
                Error::Request(format!(
                    "config.json, key `{key}`: expected a whole number, found {value}"
                ))
            }),
        };
        let inner = size("guard_inner_size", 512)?;
        let mut head = |prefix: &str, categories: usize| {
            let risk_levels = size(&format!("num_{prefix}risk_level"), 3)?;
            let categories = size(&format!("num_{prefix}category"), categories)?;
            let sizes = [config.hidden, inner, risk_levels, categories];
            ClassifierHead::from_weights(weights, prefix, sizes, config.norm_epsilon, device)
        };
        let (reply, query) = (head("", 8)?, head("query_", 9)?);
        Ok(Self {
            decoder,
            reply,
            query,
        })
    }
}
