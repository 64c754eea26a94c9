//! One block of the decoder, what its rows attend to, and how its weights come out of a checkpoint. What a block keeps for its
//! gradients, and how it makes them, is in `block_gradient.rs`.

use candle_core::{DType, Device, Tensor};
use kernels::{Context, Packed, Segment};

use crate::Result;
use crate::block_gradient::{Heads, Kept};
use crate::config::{Config, Family};
use crate::linear::{Linear, Weight, narrowed};
use crate::weights::Weights;

/// Keys and values of one layer for every slot of the pool: slots x key/value heads x head width, f32.
#[derive(Debug, Clone)]
pub struct PoolLayer {
    /// Keys, already rotated.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

/// Cosine and sine of each row's rotary angles, rows x half a head.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Cosines.
    pub cos_t_r: Tensor,
    /// Sines.
    pub sin_t_r: Tensor,
}

/// What the rows of a call attend to.
#[derive(Debug)]
pub enum Attention<'a> {
    /// Causally to their own segment and its shared prefix; differentiable.
    Packed {
        /// The segments that the rows consist of.
        segments: &'a [Segment],
        /// The rows' angles.
        rotation: Rotation,
    },
    /// To slots of the pool, after writing their own key and value there; no gradient.
    Paged {
        /// One entry a layer.
        pool: &'a mut [PoolLayer],
        /// The slot that each row's key and value go to.
        slots: &'a [u32],
        /// What each row attends to, its own slot included.
        rows: &'a [Context],
        /// The rows' angles.
        rotation: Rotation,
    },
}

/// One block: attention, then the feed-forward network, each behind a norm and added to the residual stream.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) input_norm_d: Tensor,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) query_norm_d: Option<Tensor>,
    pub(crate) key_norm_d: Option<Tensor>,
    pub(crate) output: Linear,
    pub(crate) inner_norm_d: Tensor,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// The norms of a block, then its linear layers, each by its name within the block.
pub(crate) type Parts<'a> = (
    Vec<(&'static str, &'a mut Tensor)>,
    [(&'static str, &'a mut Linear); 7],
);

impl Block {
    /// Takes the block `layer` out of a checkpoint.
    pub(crate) fn load(loader: &mut Loader<'_>, config: &Config, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (hidden, inner, width) = (config.hidden, config.intermediate, config.head_dim);
        let (heads, groups) = (config.heads * width, config.key_value_heads * width);
        let normed = config.family == Family::Qwen3;
        let mut head_norm = |part| normed.then(|| loader.vector(&name(part), width)).transpose();
        Ok(Self {
            query_norm_d: head_norm("self_attn.q_norm.weight")?,
            key_norm_d: head_norm("self_attn.k_norm.weight")?,
            input_norm_d: loader.vector(&name("input_layernorm.weight"), hidden)?,
            query: loader.linear(&name("self_attn.q_proj"), heads, hidden, config.attention_bias)?,
            key: loader.linear(&name("self_attn.k_proj"), groups, hidden, config.attention_bias)?,
            value: loader.linear(&name("self_attn.v_proj"), groups, hidden, config.attention_bias)?,
            output: loader.linear(&name("self_attn.o_proj"), hidden, heads, config.output_bias)?,
            inner_norm_d: loader.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate: loader.linear(&name("mlp.gate_proj"), inner, hidden, false)?,
            up: loader.linear(&name("mlp.up_proj"), inner, hidden, false)?,
            down: loader.linear(&name("mlp.down_proj"), hidden, inner, false)?,
        })
    }

    /// Runs the block, the `layer`th of a decoder of this configuration, over the residual stream; with what its gradients need
    /// of what came up on the way.
    pub(crate) fn apply(
        &self,
        config: &Config,
        dtype: DType,
        layer: usize,
        x_t_d: &Tensor,
        attention: &mut Attention<'_>,
    ) -> Result<(Tensor, Kept)> {
        let normed_t_d = kernels::rms_norm(x_t_d, &self.input_norm_d, config.norm_epsilon)?;
        let (mixed_t_a, heads) = self.attend(config, dtype, layer, &normed_t_d, attention)?;
        let middle_t_d = (x_t_d + self.output.apply(&mixed_t_a, dtype)?)?;
        let inner_normed_t_d = kernels::rms_norm(&middle_t_d, &self.inner_norm_d, config.norm_epsilon)?;
        let gate_t_i = self.gate.apply(&inner_normed_t_d, dtype)?;
        let up_t_i = self.up.apply(&inner_normed_t_d, dtype)?;
        let inner_t_i = kernels::swiglu(&gate_t_i, &up_t_i)?;
        let out_t_d = (&middle_t_d + self.down.apply(&inner_t_i, dtype)?)?;
        // Detached, lest candle's record of how they came about keep more.
        let kept = Kept {
            x_t_d: x_t_d.detach(),
            normed_t_d: normed_t_d.detach(),
            heads,
            middle_t_d: middle_t_d.detach(),
            inner_normed_t_d: inner_normed_t_d.detach(),
            gate_t_i: gate_t_i.detach(),
            up_t_i: up_t_i.detach(),
            inner_t_i: inner_t_i.detach(),
        };
        Ok((out_t_d, kept))
    }

    /// The heads' results side by side, rows x (heads times head width), and what they came from.
    fn attend(
        &self,
        config: &Config,
        dtype: DType,
        layer: usize,
        x_t_d: &Tensor,
        attention: &mut Attention<'_>,
    ) -> Result<(Tensor, Heads)> {
        let (rows, width) = (x_t_d.dim(0)?, config.head_dim);
        let heads = |linear: &Linear, count: usize| -> Result<Tensor> {
            Ok(linear.apply(x_t_d, dtype)?.reshape((rows, count, width))?)
        };
        let (Attention::Packed { rotation, .. } | Attention::Paged { rotation, .. }) = &*attention;
        let rotated = |x_t_h_d: &Tensor, norm_d: &Option<Tensor>| -> Result<Tensor> {
            let x_t_h_d = match norm_d {
                Some(norm_d) => kernels::rms_norm(x_t_h_d, norm_d, config.norm_epsilon)?,
                None => x_t_h_d.clone(),
            };
            Ok(kernels::rotate(&x_t_h_d, &rotation.cos_t_r, &rotation.sin_t_r)?)
        };
        let query_t_h_d = heads(&self.query, config.heads)?;
        let key_t_g_d = heads(&self.key, config.key_value_heads)?;
        let q_t_h_d = rotated(&query_t_h_d, &self.query_norm_d)?;
        let k_t_g_d = rotated(&key_t_g_d, &self.key_norm_d)?;
        let v_t_g_d = heads(&self.value, config.key_value_heads)?;
        let mixed_t_h_d = match attention {
            Attention::Packed { segments, .. } => kernels::attend(&q_t_h_d, &k_t_g_d, &v_t_g_d, segments)?,
            Attention::Paged {
                pool, slots, rows, ..
            } => {
                let PoolLayer { k, v } = &pool[layer];
                kernels::write_slots(k, &k_t_g_d, slots)?;
                kernels::write_slots(v, &v_t_g_d, slots)?;
                kernels::attend_paged(&q_t_h_d, k, v, rows)?
            }
        };
        let mixed_t_a = mixed_t_h_d.reshape((rows, config.heads * width))?;
        let heads = Heads {
            query_t_h_d: self.query_norm_d.as_ref().map(|_| query_t_h_d.detach()),
            key_t_g_d: self.key_norm_d.as_ref().map(|_| key_t_g_d.detach()),
            q_t_h_d: q_t_h_d.detach(),
            k_t_g_d: k_t_g_d.detach(),
            v_t_g_d: v_t_g_d.detach(),
            mixed_t_a: mixed_t_a.detach(),
        };
        Ok((mixed_t_a, heads))
    }

    /// Every weight, each by its name within the block.
    pub(crate) fn parts_mut(&mut self) -> Parts<'_> {
        let mut norms = vec![
            ("input_layernorm", &mut self.input_norm_d),
            ("post_attention_layernorm", &mut self.inner_norm_d),
        ];
        norms.extend(
            self.query_norm_d
                .as_mut()
                .map(|norm_d| ("self_attn.q_norm", norm_d)),
        );
        norms.extend(
            self.key_norm_d
                .as_mut()
                .map(|norm_d| ("self_attn.k_norm", norm_d)),
        );
        let linears = [
            ("self_attn.q_proj", &mut self.query),
            ("self_attn.k_proj", &mut self.key),
            ("self_attn.v_proj", &mut self.value),
            ("self_attn.o_proj", &mut self.output),
            ("mlp.gate_proj", &mut self.gate),
            ("mlp.up_proj", &mut self.up),
            ("mlp.down_proj", &mut self.down),
        ];
        (norms, linears)
    }
}

/// Takes tensors out of a checkpoint, checked, narrowed and on their device.
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a mut Weights,
    pub(crate) dtype: DType,
    pub(crate) device: &'a Device,
}

impl Loader<'_> {
    pub(crate) fn vector(&mut self, name: &str, width: usize) -> Result<Tensor> {
        Ok(self.weights.take(name, &[width])?.to_device(self.device)?)
    }

    /// A matrix whose rows are looked up.
    pub(crate) fn table(&mut self, name: &str, rows: usize, columns: usize) -> Result<Weight> {
        if let Some(packed) = self.blocks(name, rows, columns)? {
            return Ok(Weight::Packed(packed));
        }
        let tensor = self
            .weights
            .take(name, &[rows, columns])?
            .to_device(self.device)?;
        if self.dtype == DType::U8 {
            return Ok(Weight::frozen(&tensor, self.dtype)?);
        }
        Ok(Weight::Tensor(narrowed(&tensor, self.dtype)?))
    }

    /// A matrix that is only multiplied.
    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Weight> {
        if let Some(packed) = self.blocks(name, rows, columns)? {
            return Ok(Weight::Packed(packed));
        }
        let tensor = self
            .weights
            .take(name, &[rows, columns])?
            .to_device(self.device)?;
        Ok(Weight::frozen(&tensor, self.dtype)?)
    }

    /// A matrix in a GGUF file's blocks, where they are kept.
    fn blocks(&mut self, name: &str, rows: usize, columns: usize) -> Result<Option<Packed>> {
        if !kernels::fuses(self.device) || self.dtype == DType::BF16 {
            return Ok(None);
        }
        self.weights.take_blocks(name, &[rows, columns], self.dtype)
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"), outputs, inputs)?;
        let bias_o = bias
            .then(|| self.vector(&format!("{name}.bias"), outputs))
            .transpose()?;
        Ok(Linear {
            weight,
            bias_o,
            adapter: None,
            mixed: Vec::new(),
        })
    }
}
