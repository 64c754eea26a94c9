//! The one dense decoder: qwen3, qwen2, llama and mistral, told apart by their [`Config`].
//!
//! Rows are tokens: sequences lie packed one after another in a `t x d` tensor, without padding and without a batch
//! dimension, and [`Segment`]s say where each begins and which prompt it shares. Training, scoring and the first pass
//! over a prompt run packed ([`Decoder::hidden`]); generation runs over the key/value pool ([`Decoder::decode`]).
//! Both go through the same [`Decoder::block`]; only its [`Attention`] differs.
//!
//! Left out: a batch dimension, attention masks, windowed attention, dropout.

use std::sync::{Arc, OnceLock};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use kernels::{Context, Packed, Segment};

pub use crate::block::{Attention, PoolLayer, Rotation};
use crate::block::{Block, Loader};
pub use crate::block_gradient::Kept;
use crate::block_gradient::Pass;
use crate::config::Config;
use crate::linear::{Weight, product};
use crate::lora::Lora;
use crate::source::Source;
use crate::weights::Weights;
use crate::{Error, Result};

/// A dense decoder with its weights. A clone shares them: it costs a few pointers a tensor.
///
/// # Types
/// With `DType::F32` everything is f32. With `DType::BF16` matrices are rounded to bf16, and so are the inputs of
/// every matrix product, gradients among them; sums, norms, attention and the residual stream stay f32. Weights that
/// train are held unrounded and rounded in each product; an embedding that trains is used as it is held. On the CPU,
/// weights that do not train are packed for the product ([`Packed`]), as bf16 in half the memory, or in a GGUF file's
/// blocks in less ([`Decoder::load_for_inference`]). On another device they are tensors of `dtype`, and its products of
/// bf16 may round their sums to bf16, those with the head apart. With `DType::U8`, on the CPU alone, the products of such weights are of
/// integers, their inputs in 8 bits ([`Packed::quantized`]): the fastest there is here, and less exact than bf16.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Shape and constants.
    pub config: Config,
    pub(crate) adapters: Option<Lora>,
    pub(crate) dtype: DType,
    pub(crate) embedding_v_d: Weight,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm_d: Tensor,
    /// Absent where the head is tied to the embedding, or where the checkpoint has another head altogether.
    pub(crate) head_v_d: Option<Weight>,
    /// A head held as a tensor, as generation multiplies it: made when it is first wanted; absent while the head trains.
    pub(crate) packed_head: Arc<OnceLock<Packed>>,
    frequencies_r: Tensor,
}

impl Decoder {
    /// Loads the language model of `source`, computing as `dtype` (F32, BF16 or U8) on `device`.
    ///
    /// # Errors
    /// A configuration the decoder does not cover; files that cannot be read or are malformed; a tensor that is
    /// missing, left over or misshapen, named with both shapes.
    pub fn load(source: &Source, dtype: DType, device: &Device) -> Result<Self> {
        let config = Config::load(source)?;
        let weights = Weights::load(source, &config)?;
        Self::from_whole(&config, weights, dtype, device)
    }

    /// [`Decoder::load`] for a model that is not to be trained. On the CPU the matrices of a GGUF file stay in its blocks,
    /// embedding and head among them, and are multiplied there, save with `DType::BF16`. With F32 and BF16 results are the
    /// same, bit for bit.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_for_inference(source: &Source, dtype: DType, device: &Device) -> Result<Self> {
        let config = Config::load(source)?;
        let weights = Weights::load(source, &config)?.keep_blocks();
        Self::from_whole(&config, weights, dtype, device)
    }

    fn from_whole(config: &Config, mut weights: Weights, dtype: DType, device: &Device) -> Result<Self> {
        let decoder = Self::from_weights(config, &mut weights, true, dtype, device)?;
        weights.finish(config)?;
        Ok(decoder)
    }

    /// Builds a decoder out of `weights`, leaving there what it does not use (another head's tensors, say).
    /// `language_head` says whether an untied checkpoint holds `lm_head.weight`; without it, [`Decoder::logits`]
    /// falls back to the embedding and means nothing.
    pub fn from_weights(
        config: &Config,
        weights: &mut Weights,
        language_head: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let known =
            matches!(dtype, DType::F32 | DType::BF16) || (dtype == DType::U8 && kernels::fuses(device));
        if !known {
            return Err(Error::Request(format!(
                "a decoder computes in f32, bf16 or, on the CPU alone, in integers (int8), not in {dtype:?} on {:?}",
                device.location()
            )));
        }
        let mut loader = Loader {
            weights,
            dtype,
            device,
        };
        let (vocabulary, hidden) = (config.vocabulary, config.hidden);
        let embedding_v_d = loader.table("model.embed_tokens.weight", vocabulary, hidden)?;
        let blocks = (0..config.layers)
            .map(|layer| Block::load(&mut loader, config, layer))
            .collect::<Result<_>>()?;
        let norm_d = loader.vector("model.norm.weight", hidden)?;
        let untied = language_head && !config.tied;
        let head_v_d = untied
            .then(|| loader.table("lm_head.weight", vocabulary, hidden))
            .transpose()?;
        let frequencies_r = Tensor::new(config.frequencies(), device)?;
        let (config, adapters) = (config.clone(), None);
        Ok(Self {
            config,
            adapters,
            // What is not in blocks is f32.
            dtype: if dtype == DType::U8 { DType::F32 } else { dtype },
            embedding_v_d,
            blocks,
            norm_d,
            head_v_d,
            packed_head: Arc::default(),
            frequencies_r,
        })
    }

    /// The device that the weights are on.
    pub fn device(&self) -> &Device {
        self.norm_d.device()
    }

    /// The type of the matrix products' inputs, F32 or BF16.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The embeddings of `ids`, t x d in f32.
    ///
    /// # Errors
    /// No ids, or one outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        if ids.is_empty() {
            return Err(Error::Request("expected at least one token, found none".into()));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocabulary) {
            let vocabulary = self.config.vocabulary;
            return Err(Error::Request(format!(
                "token {id}: expected an id below the vocabulary of {vocabulary}"
            )));
        }
        match &self.embedding_v_d {
            Weight::Tensor(embedding_v_d) => {
                let ids_t = Tensor::new(ids, self.device())?;
                Ok(embedding_v_d.index_select(&ids_t, 0)?.to_dtype(DType::F32)?)
            }
            Weight::Packed(packed) => Ok(packed.rows(ids)?),
        }
    }

    /// The embedding where it trains.
    pub fn trained_embedding(&self) -> Option<&Tensor> {
        match &self.embedding_v_d {
            Weight::Tensor(embedding_v_d) => {
                Some(embedding_v_d).filter(|embedding_v_d| embedding_v_d.track_op())
            }
            Weight::Packed(_) => None,
        }
    }

    /// The rotary angles of rows at `positions`.
    ///
    /// # Errors
    /// A position beyond the model's sliding window, where it has one.
    pub fn rotation(&self, positions: &[u32]) -> Result<Rotation> {
        let longest = positions
            .iter()
            .max()
            .map_or(0, |&position| position as usize + 1);
        if let Some(window) = self.config.window.filter(|&window| longest > window) {
            let what =
                format!("a sequence of {longest} tokens: expected at most the sliding window of {window}");
            return Err(Error::Request(what));
        }
        let positions: Vec<f32> = positions.iter().map(|&position| position as f32).collect();
        let rows = positions.len();
        let angles_t_r = Tensor::from_vec(positions, (rows, 1), self.device())?
            .broadcast_mul(&self.frequencies_r.unsqueeze(0)?)?;
        Ok(Rotation {
            cos_t_r: angles_t_r.cos()?,
            sin_t_r: angles_t_r.sin()?,
        })
    }

    /// The attention of packed rows, for [`Decoder::block`].
    ///
    /// # Errors
    /// Segments that are not the rows `0..rows` in order, or a prefix that is not an earlier segment.
    pub fn packed<'a>(&self, rows: usize, segments: &'a [Segment]) -> Result<Attention<'a>> {
        let mut next = 0;
        for (index, segment) in segments.iter().enumerate() {
            let earlier = |prefix: usize| prefix < index;
            if segment.start != next || segment.len == 0 || !segment.prefix.is_none_or(earlier) {
                return Err(Error::Request(format!(
                    "segment {index}: expected rows from {next} on and a prefix that is an earlier segment, found \
                     {segment:?}"
                )));
            }
            next += segment.len;
        }
        if next != rows {
            return Err(Error::Request(format!(
                "segments: expected {rows} rows in all, found {next}"
            )));
        }
        let rotation = self.rotation(&kernels::positions(segments))?;
        Ok(Attention::Packed { segments, rotation })
    }

    /// Runs one block over the residual stream `x_t_d`. Blocks are public so that training can recompute them one by
    /// one instead of keeping every activation.
    ///
    /// # Errors
    /// A layer that the model does not have, or a failing tensor operation.
    pub fn block(&self, layer: usize, x_t_d: &Tensor, attention: &mut Attention<'_>) -> Result<Tensor> {
        let block = self.layer(layer)?;
        Ok(block.apply(&self.config, self.dtype, layer, x_t_d, attention)?.0)
    }

    /// [`Decoder::block`], and what [`Decoder::block_gradients`] needs of it; candle keeps no record.
    ///
    /// # Errors
    /// As [`Decoder::block`].
    pub fn block_keeping(
        &self,
        layer: usize,
        x_t_d: &Tensor,
        attention: &mut Attention<'_>,
    ) -> Result<(Tensor, Kept)> {
        let block = self.layer(layer)?;
        let (out_t_d, kept) = block.apply(&self.config, self.dtype, layer, &x_t_d.detach(), attention)?;
        Ok((out_t_d.detach(), kept))
    }

    /// The gradient of a block's input from `gradient_t_d`, that of its output; those of its weights that train go into
    /// `store`. The same as candle's `backward` finds, by the CPU's kernels: where they do not run ([`kernels::fuses`]) it is
    /// an error.
    ///
    /// # Errors
    /// A layer that the model does not have, attention to the pool, another device, or a failing tensor operation.
    pub fn block_gradients(
        &self,
        layer: usize,
        kept: &Kept,
        gradient_t_d: &Tensor,
        attention: &Attention<'_>,
        store: &mut GradStore,
    ) -> Result<Tensor> {
        let block = self.layer(layer)?;
        let Attention::Packed { segments, rotation } = attention else {
            return Err(Error::Request("attention to the pool has no gradients".into()));
        };
        let mut pass = Pass {
            config: &self.config,
            dtype: self.dtype,
            segments,
            rotation,
            store,
        };
        block.gradients(kept, &gradient_t_d.detach(), &mut pass)
    }

    fn layer(&self, layer: usize) -> Result<&Block> {
        self.blocks.get(layer).ok_or_else(|| {
            Error::Request(format!(
                "layer {layer}: the model has {} layers",
                self.config.layers
            ))
        })
    }

    /// The final norm; its result is what the heads read.
    pub fn finish(&self, x_t_d: &Tensor) -> Result<Tensor> {
        Ok(kernels::rms_norm(x_t_d, &self.norm_d, self.config.norm_epsilon)?)
    }

    /// Numbers in the matrices that a row is multiplied with, the head among them.
    pub fn matrix_numbers(&self) -> usize {
        let Config {
            hidden,
            intermediate,
            heads,
            key_value_heads,
            head_dim,
            ..
        } = self.config;
        let block = hidden * (2 * (heads + key_value_heads) * head_dim + 3 * intermediate);
        self.config.layers * block + self.config.vocabulary * hidden
    }

    /// Bytes of these matrices: what generating one token reads of them.
    pub fn matrix_bytes(&self) -> usize {
        let mut copy = self.clone();
        let blocks = copy.linears_mut();
        let linears = blocks.iter().map(|(_, linear)| &linear.weight);
        linears
            .chain([self.head()])
            .map(|weight| weight.bytes(self.dtype))
            .sum()
    }

    /// Hidden states after the final norm of packed sequences, t x d in f32; differentiable.
    pub fn hidden(&self, ids: &[u32], segments: &[Segment]) -> Result<Tensor> {
        kernels::in_pool(|| {
            let mut attention = self.packed(ids.len(), segments)?;
            let mut x_t_d = self.embed(ids)?;
            for layer in 0..self.config.layers {
                x_t_d = self.block(layer, &x_t_d, &mut attention)?;
            }
            self.finish(&x_t_d)
        })
    }

    /// The residual stream after each of `depths` blocks, in the order of `depths`: 0 is the embedding, and the
    /// number of layers is the last block's output after the final norm. Stops at the deepest.
    ///
    /// # Errors
    /// No depth, or one beyond the number of layers; otherwise as [`Decoder::hidden`].
    pub fn hidden_at(&self, ids: &[u32], segments: &[Segment], depths: &[usize]) -> Result<Vec<Tensor>> {
        let layers = self.config.layers;
        let deepest = match depths.iter().max() {
            Some(&deepest) if deepest <= layers => deepest,
            found => {
                return Err(Error::Request(format!(
                    "depths: expected 0 to {layers}, found {found:?}"
                )));
            }
        };
        kernels::in_pool(|| {
            let mut attention = self.packed(ids.len(), segments)?;
            let mut x_t_d = self.embed(ids)?;
            let mut found = vec![x_t_d.clone(); depths.len()];
            for layer in 0..deepest {
                x_t_d = self.block(layer, &x_t_d, &mut attention)?;
                let state_t_d = if layer + 1 == layers {
                    self.finish(&x_t_d)?
                } else {
                    x_t_d.clone()
                };
                for (slot, _) in found
                    .iter_mut()
                    .zip(depths)
                    .filter(|&(_, &depth)| depth == layer + 1)
                {
                    *slot = state_t_d.clone();
                }
            }
            Ok(found)
        })
    }

    /// Hidden states after the final norm of one row a token, each attending to the pool: writes the rows' keys and
    /// values to `slots`, then attends as `rows` says. Rows of one call may follow each other in one sequence. No
    /// gradient.
    ///
    /// # Errors
    /// Lists of different lengths, or a pool with another number of layers.
    pub fn decode(
        &self,
        ids: &[u32],
        positions: &[u32],
        pool: &mut [PoolLayer],
        slots: &[u32],
        rows: &[Context],
    ) -> Result<Tensor> {
        let lengths = [positions.len(), slots.len(), rows.len()];
        if lengths != [ids.len(); 3] || pool.len() != self.config.layers {
            return Err(Error::Request(format!(
                "decode: expected {} positions, slots and contexts and {} pool layers, found {lengths:?} and {}",
                ids.len(),
                self.config.layers,
                pool.len()
            )));
        }
        let mut attention = Attention::Paged {
            pool,
            slots,
            rows,
            rotation: self.rotation(positions)?,
        };
        let mut x_t_d = self.embed(ids)?;
        for layer in 0..self.config.layers {
            x_t_d = self.block(layer, &x_t_d, &mut attention)?.detach();
        }
        Ok(self.finish(&x_t_d)?.detach())
    }

    /// Logits over the vocabulary for each row of hidden states (after the final norm), n x v in f32.
    pub fn logits(&self, hidden_n_d: &Tensor) -> Result<Tensor> {
        if let Some(packed) = self.packed_head()? {
            return Ok(kernels::product_packed(hidden_n_d, packed)?);
        }
        let head_v_d = self.head_weight()?;
        Ok(match self.dtype {
            // Summed in f32 on every device, as `log_probability` does it: logits rounded to bf16 would be far from it.
            DType::BF16 => kernels::product_bf16(hidden_n_d, &head_v_d)?,
            dtype => product(hidden_n_d, &head_v_d, dtype)?,
        })
    }

    /// The head packed for the product, on the CPU and where it does not train.
    fn packed_head(&self) -> Result<Option<&Packed>> {
        let head_v_d = match self.head() {
            Weight::Tensor(head_v_d) => head_v_d,
            Weight::Packed(packed) => return Ok(Some(packed)),
        };
        if head_v_d.track_op() || !kernels::fuses(head_v_d.device()) {
            return Ok(None);
        }
        if self.packed_head.get().is_none() {
            // Where two come here at once, the second copy is dropped.
            let _ = self.packed_head.set(Packed::new(head_v_d, self.dtype)?);
        }
        Ok(self.packed_head.get())
    }

    /// The log-probability of `targets[n]` after row `n` of hidden states (after the final norm), at a temperature; `n`
    /// numbers of f32, differentiable, without the logits ever existing whole.
    ///
    /// # Errors
    /// Another number of targets than of rows, or one outside the vocabulary; a temperature that is not above zero.
    pub fn log_probability(&self, hidden_n_d: &Tensor, targets: &[u32], temperature: f64) -> Result<Tensor> {
        let head_v_d = self.head_weight()?;
        Ok(match self.dtype {
            DType::BF16 => {
                let packed = self.packed_head()?;
                kernels::log_probability_bf16(hidden_n_d, &head_v_d, packed, targets, temperature)?
            }
            _ => kernels::log_probability(hidden_n_d, &head_v_d, targets, temperature)?,
        })
    }

    /// The language-model head, v x d; the embedding where they are tied. One that lies in blocks is dequantized.
    pub fn head_weight(&self) -> Result<Tensor> {
        Ok(self.head().tensor()?)
    }

    pub(crate) fn head(&self) -> &Weight {
        self.head_v_d.as_ref().unwrap_or(&self.embedding_v_d)
    }
}
