//! One linear layer: a matrix, perhaps a bias, perhaps a low-rank adapter; and the matrix product all layers share.

use candle_core::{DType, Result, Tensor};
use kernels::Packed;

/// The matrix of a linear layer, outputs x inputs.
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    /// A tensor: a weight that trains, or lies on another device than the CPU.
    Tensor(Tensor),
    /// One that stays as it is, in the order in which the CPU multiplies it best; perhaps in a GGUF file's blocks.
    Packed(Packed),
}

impl Weight {
    /// A weight that stays as it is, for products of type `dtype`.
    pub(crate) fn frozen(weight_o_i: &Tensor, dtype: DType) -> Result<Self> {
        if weight_o_i.device().is_cpu() {
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

/// `y = x W^T + b`, and the adapter's part where there is one.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// Outputs x inputs.
    pub(crate) weight: Weight,
    /// Outputs.
    pub(crate) bias_o: Option<Tensor>,
    /// The low-rank addition.
    pub(crate) adapter: Option<Adapter>,
}

impl Linear {
    /// Applies the layer to every row; `dtype` is the type of the matrix products' inputs.
    pub(crate) fn apply(&self, x_t_i: &Tensor, dtype: DType) -> Result<Tensor> {
        let mut y_t_o = self.weight.product(x_t_i, dtype)?;
        if let Some(Adapter { a_r_i, b_o_r, scale }) = &self.adapter {
            let added_t_o = b_o_r.product(&a_r_i.product(x_t_i, dtype)?, dtype)?;
            y_t_o = (y_t_o + added_t_o.affine(*scale, 0.0)?)?;
        }
        match &self.bias_o {
            Some(bias_o) => y_t_o.broadcast_add(bias_o),
            None => Ok(y_t_o),
        }
    }
}

/// `tensor` rounded to `dtype`. On the CPU it stays held in f32, since there products of type BF16 round by themselves.
pub(crate) fn narrowed(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    let narrow = tensor.to_dtype(dtype)?;
    if tensor.device().is_cpu() {
        narrow.to_dtype(DType::F32)
    } else {
        Ok(narrow)
    }
}

/// `x W^T` of inputs of type `dtype`, summed and returned in f32. Weights that train are held unrounded: they are narrowed
/// here, as `x` is.
pub(crate) fn product(x_t_i: &Tensor, weight_o_i: &Tensor, dtype: DType) -> Result<Tensor> {
    if x_t_i.device().is_cpu() && dtype == DType::BF16 {
        return kernels::product_bf16(x_t_i, weight_o_i);
    }
    kernels::product(&x_t_i.to_dtype(dtype)?, &weight_o_i.to_dtype(dtype)?)?.to_dtype(DType::F32)
}
