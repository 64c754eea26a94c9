//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split ("neox") convention.

use candle_core::{D, Result, Tensor};

/// Rotates each head of each row by its position: the pair of elements `(j, j + d/2)` turns by angle `j` of the row.
///
/// `cos_t_r` and `sin_t_r` hold the angles' cosines and sines, `r = d/2` a row. The gradient is for `x_t_h_d` only.
///
/// # Errors
/// When the shapes do not fit.
pub fn rotate(x_t_h_d: &Tensor, cos_t_r: &Tensor, sin_t_r: &Tensor) -> Result<Tensor> {
    rotate_composed(x_t_h_d, cos_t_r, sin_t_r)
}

/// [`rotate`] in plain candle operations.
pub fn rotate_composed(x_t_h_d: &Tensor, cos_t_r: &Tensor, sin_t_r: &Tensor) -> Result<Tensor> {
    let half = x_t_h_d.dim(D::Minus1)? / 2;
    let (cos_t_1_r, sin_t_1_r) = (cos_t_r.unsqueeze(1)?, sin_t_r.unsqueeze(1)?);
    let low_t_h_r = x_t_h_d.narrow(D::Minus1, 0, half)?;
    let high_t_h_r = x_t_h_d.narrow(D::Minus1, half, half)?;
    let turned_low_t_h_r = (low_t_h_r.broadcast_mul(&cos_t_1_r)? - high_t_h_r.broadcast_mul(&sin_t_1_r)?)?;
    let turned_high_t_h_r = (high_t_h_r.broadcast_mul(&cos_t_1_r)? + low_t_h_r.broadcast_mul(&sin_t_1_r)?)?;
    Tensor::cat(&[turned_low_t_h_r, turned_high_t_h_r], D::Minus1)
}
