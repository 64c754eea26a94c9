//! Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::lanes;
use crate::slices::{for_blocks, fusible, read, row_block, slice};

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension, with gradients for both tensors.
///
/// `x_t_d` may have any leading dimensions; `weight_d` has the width of the last one.
///
/// # Errors
/// When the shapes do not fit.
pub fn rms_norm(x_t_d: &Tensor, weight_d: &Tensor, epsilon: f64) -> Result<Tensor> {
    check(x_t_d, weight_d)?;
    if fusible(&[x_t_d, weight_d]) {
        x_t_d.contiguous()?.apply_op2(
            &weight_d.contiguous()?,
            RmsNorm {
                epsilon: epsilon as f32,
            },
        )
    } else {
        rms_norm_composed(x_t_d, weight_d, epsilon)
    }
}

/// [`rms_norm`] in plain candle operations. The statistics are taken in f32 (f64 for f64 tensors).
pub fn rms_norm_composed(x_t_d: &Tensor, weight_d: &Tensor, epsilon: f64) -> Result<Tensor> {
    check(x_t_d, weight_d)?;
    let wide_t_d = x_t_d.to_dtype(crate::accumulator(x_t_d.dtype()))?;
    let mean_square_t_1 = wide_t_d.sqr()?.mean_keepdim(D::Minus1)?;
    let normed_t_d = wide_t_d.broadcast_div(&(mean_square_t_1 + epsilon)?.sqrt()?)?;
    normed_t_d.to_dtype(x_t_d.dtype())?.broadcast_mul(weight_d)
}

fn check(x_t_d: &Tensor, weight_d: &Tensor) -> Result<()> {
    let width = x_t_d.dim(D::Minus1)?;
    if width == 0 || weight_d.dims() != [width] {
        bail!(
            "rms_norm: expected a weight of [{width}] for x {:?}, found {:?}",
            x_t_d.dims(),
            weight_d.dims()
        )
    }
    Ok(())
}

struct RmsNorm {
    epsilon: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let mut out = vec![0.0; x.len()];
        for_blocks(&mut out, row_block(weight.len()), |first, out| {
            lanes::run(Forward {
                x: &x[first..first + out.len()],
                weight,
                epsilon: self.epsilon,
                out,
            });
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x_gradient, weight_gradient) = differentiate(x, weight, self.epsilon, gradient, None)?;
        Ok((Some(x_gradient), weight.track_op().then_some(weight_gradient)))
    }
}

/// What [`rms_norm`]'s gradients for `x_t_d` and its weight are where that of its result is `gradient_t_d`. To the first is
/// added `past_t_d`, the gradient that reaches `x_t_d` past the norm.
///
/// # Errors
/// When the shapes do not fit, or tensors are not f32 on the CPU.
pub fn rms_norm_gradients(
    x_t_d: &Tensor,
    weight_d: &Tensor,
    epsilon: f64,
    gradient_t_d: &Tensor,
    past_t_d: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    check(x_t_d, weight_d)?;
    let shapes = [Some(gradient_t_d), past_t_d];
    if shapes
        .into_iter()
        .flatten()
        .any(|gradient| gradient.dims() != x_t_d.dims())
    {
        bail!(
            "rms_norm_gradients: expected gradients of {:?}, found {:?}",
            x_t_d.dims(),
            shapes.map(|gradient| gradient.map(Tensor::dims))
        )
    }
    differentiate(x_t_d, weight_d, epsilon as f32, gradient_t_d, past_t_d)
}

fn differentiate(
    x: &Tensor,
    weight: &Tensor,
    epsilon: f32,
    gradient: &Tensor,
    past: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (x_gradient, weight_gradient) = read(
        [x, weight, gradient, past.unwrap_or(gradient)],
        |[x, weight, gradient, other]| {
            let block = row_block(weight.len());
            let mut x_gradient = vec![0.0; x.len()];
            // Each block sums its own share of the weight's gradient; the shares are added in order.
            let shares: Vec<Vec<f32>> = x_gradient
                .par_chunks_mut(block)
                .enumerate()
                .map(|(index, x_gradient)| {
                    let range = index * block..index * block + x_gradient.len();
                    let mut weight_gradient = vec![0.0; weight.len()];
                    lanes::run(Backward {
                        x: &x[range.clone()],
                        weight,
                        gradient: &gradient[range.clone()],
                        past: past.is_some().then_some(&other[range]),
                        epsilon,
                        x_gradient,
                        weight_gradient: &mut weight_gradient,
                    });
                    weight_gradient
                })
                .collect();
            let mut weight_gradient = vec![0.0; weight.len()];
            for share in &shares {
                lanes::add_scaled(&mut weight_gradient, share, 1.0);
            }
            Ok((x_gradient, weight_gradient))
        },
    )?;
    Ok((
        Tensor::from_vec(x_gradient, x.shape(), x.device())?,
        Tensor::from_vec(weight_gradient, weight.shape(), weight.device())?,
    ))
}

struct Forward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let inverse = inverse_root(x, self.epsilon);
            for ((out, x), weight) in out.iter_mut().zip(x).zip(self.weight) {
                *out = x * inverse * weight;
            }
        }
    }
}

struct Backward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    gradient: &'a [f32],
    past: Option<&'a [f32]>,
    epsilon: f32,
    x_gradient: &'a mut [f32],
    weight_gradient: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    /// With `n = x * inverse` and `s = gradient * weight`: `dx = inverse * (s - n * mean(s * n))`, `dw = sum gradient * n`.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.weight.len();
        let rows = self.x.chunks_exact(width).zip(self.gradient.chunks_exact(width));
        for (row, ((x, gradient), x_gradient)) in
            rows.zip(self.x_gradient.chunks_exact_mut(width)).enumerate()
        {
            let inverse = inverse_root(x, self.epsilon);
            let inputs = x.iter().zip(gradient).zip(self.weight);
            let outputs = x_gradient.iter_mut().zip(&mut *self.weight_gradient);
            for (((x, gradient), weight), (x_gradient, weight_gradient)) in inputs.zip(outputs) {
                *x_gradient = gradient * weight;
                *weight_gradient += gradient * x * inverse;
            }
            let pull = lanes::dot(x_gradient, x) * inverse * inverse / width as f32;
            for (x_gradient, x) in x_gradient.iter_mut().zip(x) {
                *x_gradient = inverse * (*x_gradient - x * pull);
            }
            if let Some(past) = self.past {
                lanes::add_scaled(x_gradient, &past[row * width..][..width], 1.0);
            }
        }
    }
}

#[inline(always)]
fn inverse_root(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (lanes::dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_differences, assert_twins, noise};

    #[test]
    fn fused_equals_composed() {
        for shape in [&[1, 1][..], &[3, 7], &[2, 5, 64], &[700, 33]] {
            let (x, weight) = (noise(1, shape), noise(2, &shape[shape.len() - 1..]));
            assert_twins(
                [&x, &weight],
                || rms_norm(&x, &weight, 1e-5),
                || rms_norm_composed(&x, &weight, 1e-5),
                2e-6,
            );
        }
    }

    #[test]
    fn composed_gradients_equal_differences() {
        assert_differences([&noise(3, &[3, 5]), &noise(4, &[5])], |x| {
            rms_norm_composed(&x[0], &x[1], 1e-5)
        });
    }

    #[test]
    fn a_weight_of_another_width_is_refused() {
        let error = rms_norm(&noise(1, &[2, 4]), &noise(2, &[5]), 1e-5)
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected a weight of [4]"), "{error}");
    }
}
