//! Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).

use candle_core::{D, Result, Tensor};

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension, with gradients for both tensors.
///
/// `x_t_d` may have any leading dimensions; `weight_d` has the width of the last one.
///
/// # Errors
/// When the shapes do not fit.
pub fn rms_norm(x_t_d: &Tensor, weight_d: &Tensor, epsilon: f64) -> Result<Tensor> {
    rms_norm_composed(x_t_d, weight_d, epsilon)
}

/// [`rms_norm`] in plain candle operations. The statistics are taken in f32 (f64 for f64 tensors).
pub fn rms_norm_composed(x_t_d: &Tensor, weight_d: &Tensor, epsilon: f64) -> Result<Tensor> {
    let wide_t_d = x_t_d.to_dtype(crate::accumulator(x_t_d.dtype()))?;
    let mean_square_t_1 = wide_t_d.sqr()?.mean_keepdim(D::Minus1)?;
    let normed_t_d = wide_t_d.broadcast_div(&(mean_square_t_1 + epsilon)?.sqrt()?)?;
    normed_t_d.to_dtype(x_t_d.dtype())?.broadcast_mul(weight_d)
}
