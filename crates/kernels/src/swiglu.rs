//! The gated activation of the feed-forward block (Shazeer 2020, arXiv 2002.05202).

use candle_core::{Result, Tensor};

/// `silu(gate) * up`, element by element, with gradients for both tensors.
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate_t_i: &Tensor, up_t_i: &Tensor) -> Result<Tensor> {
    swiglu_composed(gate_t_i, up_t_i)
}

/// [`swiglu`] in plain candle operations.
pub fn swiglu_composed(gate_t_i: &Tensor, up_t_i: &Tensor) -> Result<Tensor> {
    gate_t_i.silu()? * up_t_i
}
