//! One linear layer: a matrix, perhaps a bias, perhaps a low-rank adapter; and the matrix product all layers share.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, bail};

/// A low-rank addition to a [`Linear`]: `y += (x A^T) B^T * scale`.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    /// Projects down; rank x inputs.
    pub(crate) a_r_i: Tensor,
    /// Projects up; outputs x rank.
    pub(crate) b_o_r: Tensor,
    /// alpha / rank.
    pub(crate) scale: f64,
}

/// `y = x W^T + b`, and the adapter's part where there is one.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// Outputs x inputs.
    pub(crate) weight_o_i: Tensor,
    /// Outputs.
    pub(crate) bias_o: Option<Tensor>,
    /// The low-rank addition.
    pub(crate) adapter: Option<Adapter>,
}

impl Linear {
    /// Applies the layer to every row; `dtype` is the type of the matrix products' inputs.
    pub(crate) fn apply(&self, x_t_i: &Tensor, dtype: DType) -> Result<Tensor> {
        let x_t_i = &narrowed(x_t_i, dtype)?;
        let mut y_t_o = product(x_t_i, &narrowed_weight(&self.weight_o_i, dtype)?)?;
        if let Some(Adapter { a_r_i, b_o_r, scale }) = &self.adapter {
            let inner_t_r = product(x_t_i, &narrowed_weight(a_r_i, dtype)?)?;
            let added_t_o = product(&narrowed(&inner_t_r, dtype)?, &narrowed_weight(b_o_r, dtype)?)?;
            y_t_o = (y_t_o + added_t_o.affine(*scale, 0.0)?)?;
        }
        match &self.bias_o {
            Some(bias_o) => y_t_o.broadcast_add(bias_o),
            None => Ok(y_t_o),
        }
    }
}

/// `tensor` as an input of a product of type `dtype`.
///
/// BF16 on the CPU means rounded to bf16 and held in f32: the product of two bf16 numbers is exact in f32, so that
/// this is a bf16 product with f32 accumulation, at the speed of f32.
pub(crate) fn narrowed(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    let narrow = tensor.to_dtype(dtype)?;
    if tensor.device().is_cpu() { narrow.to_dtype(DType::F32) } else { Ok(narrow) }
}

/// `weight` as the second input of a product: one that does not train was narrowed when it was loaded; one that does
/// is held in f32 and narrowed here.
pub(crate) fn narrowed_weight(weight: &Tensor, dtype: DType) -> Result<Tensor> {
    if weight.track_op() { narrowed(weight, dtype) } else { Ok(weight.clone()) }
}

/// `x W^T`, multiplied in the weight's type and returned in f32.
pub(crate) fn product(x_t_i: &Tensor, weight_o_i: &Tensor) -> Result<Tensor> {
    let x_t_i = x_t_i.to_dtype(weight_o_i.dtype())?;
    if x_t_i.track_op() && !weight_o_i.track_op() && x_t_i.device().is_cpu() {
        let y_t_o = x_t_i.detach().matmul(&weight_o_i.t()?)?;
        return x_t_i.apply_op1(FrozenProduct { weight_o_i: weight_o_i.clone(), y_t_o });
    }
    x_t_i.matmul(&weight_o_i.t()?)?.to_dtype(DType::F32)
}

/// A product with a weight that does not train, whose result is already known. candle's own product would compute a
/// gradient for the weight too, and throw it away: a third of an adapter's training step.
struct FrozenProduct {
    weight_o_i: Tensor,
    y_t_o: Tensor,
}

impl CustomOp1 for FrozenProduct {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(&self, _x: &CpuStorage, _layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match &*self.y_t_o.storage_and_layout().0 {
            Storage::Cpu(storage) => Ok((storage.clone(), self.y_t_o.shape().clone())),
            _ => bail!("frozen-product runs on the CPU"),
        }
    }

    fn bwd(&self, _x_t_i: &Tensor, _y_t_o: &Tensor, gradient_t_o: &Tensor) -> Result<Option<Tensor>> {
        gradient_t_o.matmul(&self.weight_o_i).map(Some)
    }
}
