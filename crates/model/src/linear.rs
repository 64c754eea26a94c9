//! One linear layer: a matrix, perhaps a bias, perhaps low-rank adapters; and the matrix product all layers share.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use kernels::Packed;

/// The matrix of a linear layer, outputs x inputs.
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    /// A tensor: a weight that trains, or lies where the kernels of the CPU do not run ([`kernels::fuses`]).
    Tensor(Tensor),
    /// One that stays as it is, in the order in which the CPU multiplies it best; perhaps in a GGUF file's blocks.
    Packed(Packed),
}

impl Weight {
    /// A weight that stays as it is, for products of type `dtype`.
    pub(crate) fn frozen(weight_o_i: &Tensor, dtype: DType) -> Result<Self> {
        if kernels::fuses(weight_o_i.device()) {
            Ok(Self::Packed(Packed::new(weight_o_i, dtype)?))
        } else {
            Ok(Self::Tensor(narrowed(&weight_o_i.detach(), dtype)?))
        }
    }

    /// The numbers as a tensor.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Tensor(weight_o_i) => Ok(weight_o_i.clone()),
            Self::Packed(packed) => packed.tensor(),
        }
    }

    /// Outputs and inputs.
    pub(crate) fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Tensor(weight_o_i) => weight_o_i.dims2(),
            Self::Packed(packed) => Ok(packed.dims()),
        }
    }

    /// Bytes that a product of type `dtype` reads.
    pub(crate) fn bytes(&self, dtype: DType) -> usize {
        match self {
            Self::Tensor(weight_o_i) => weight_o_i.elem_count() * dtype.size_in_bytes(),
            Self::Packed(packed) => packed.bytes(),
        }
    }

    /// `x W^T` in f32; `dtype` is the type of the product's inputs.
    fn product(&self, x_t_i: &Tensor, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Tensor(weight_o_i) => product(x_t_i, weight_o_i, dtype),
            Self::Packed(packed) => kernels::product_packed(x_t_i, packed),
        }
    }
}

/// A low-rank addition to a [`Linear`]: `y += (x A^T) B^T * scale`.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    /// Projects down; rank x inputs.
    pub(crate) a_r_i: Weight,
    /// Projects up; outputs x rank.
    pub(crate) b_o_r: Weight,
    /// alpha / rank.
    pub(crate) scale: f64,
}

impl Adapter {
    /// What it adds to rows that came from `x_t_i`.
    fn apply(&self, x_t_i: &Tensor, dtype: DType) -> Result<Tensor> {
        self.b_o_r.product(&self.inner(x_t_i, dtype)?, dtype)
    }

    /// Rows projected down, and scaled where they are narrow.
    pub(crate) fn inner(&self, x_t_i: &Tensor, dtype: DType) -> Result<Tensor> {
        self.a_r_i.product(x_t_i, dtype)?.affine(self.scale, 0.0)
    }
}

/// `y = x W^T + b`, and the adapters' part where there are any.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// Outputs x inputs.
    pub(crate) weight: Weight,
    /// Outputs.
    pub(crate) bias_o: Option<Tensor>,
    /// The low-rank addition.
    pub(crate) adapter: Option<Adapter>,
    /// Low-rank additions to some rows only, in the order of the rows; used in place of `adapter` by a pass over the
    /// rows of several adapted models.
    pub(crate) mixed: Vec<(Range<usize>, Adapter)>,
}

impl Linear {
    /// Applies the layer to every row; `dtype` is the type of the matrix products' inputs.
    pub(crate) fn apply(&self, x_t_i: &Tensor, dtype: DType) -> Result<Tensor> {
        let mut y_t_o = self.weight.product(x_t_i, dtype)?;
        if let Some(adapter) = &self.adapter {
            y_t_o = (y_t_o + adapter.apply(x_t_i, dtype)?)?;
        }
        if !self.mixed.is_empty() {
            y_t_o = self.add_mixed(x_t_i, &y_t_o, dtype)?;
        }
        match &self.bias_o {
            Some(bias_o) => y_t_o.broadcast_add(bias_o),
            None => Ok(y_t_o),
        }
    }

    fn add_mixed(&self, x_t_i: &Tensor, y_t_o: &Tensor, dtype: DType) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(2 * self.mixed.len() + 1);
        let mut done = 0;
        for (rows, adapter) in &self.mixed {
            if done < rows.start {
                parts.push(y_t_o.narrow(0, done, rows.start - done)?);
            }
            let own = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
            parts.push((own(y_t_o)? + adapter.apply(&own(x_t_i)?, dtype)?)?);
            done = rows.end;
        }
        if done < y_t_o.dim(0)? {
            parts.push(y_t_o.narrow(0, done, y_t_o.dim(0)? - done)?);
        }
        Tensor::cat(&parts, 0)
    }
}

/// `tensor` rounded to `dtype`. For the CPU's kernels it stays held in f32, since their products of type BF16 round by
/// themselves.
pub(crate) fn narrowed(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    let narrow = tensor.to_dtype(dtype)?;
    if kernels::fuses(tensor.device()) {
        narrow.to_dtype(DType::F32)
    } else {
        Ok(narrow)
    }
}

/// `x W^T` of inputs of type `dtype`, summed and returned in f32; another device than the CPU may round a sum of bf16 numbers
/// to bf16 on the way. Weights that train are held unrounded: they are narrowed here, as `x` is.
pub(crate) fn product(x_t_i: &Tensor, weight_o_i: &Tensor, dtype: DType) -> Result<Tensor> {
    if kernels::fuses(x_t_i.device()) && dtype == DType::BF16 {
        return kernels::product_bf16(x_t_i, weight_o_i);
    }
    kernels::product(&x_t_i.to_dtype(dtype)?, &weight_o_i.to_dtype(dtype)?)?.to_dtype(DType::F32)
}
