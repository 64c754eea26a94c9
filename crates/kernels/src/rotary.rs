//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split ("neox") convention.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};

use crate::lanes;
use crate::slices::{for_blocks, fusible, row_block, slice};

/// Rotates each head of each row by its position: the pair of elements `(j, j + d/2)` turns by angle `j` of the row.
///
/// `cos_t_r` and `sin_t_r` hold the angles' cosines and sines, `r = d/2` a row. The gradient is for `x_t_h_d` only.
///
/// # Errors
/// When the shapes do not fit.
pub fn rotate(x_t_h_d: &Tensor, cos_t_r: &Tensor, sin_t_r: &Tensor) -> Result<Tensor> {
    check(x_t_h_d, cos_t_r, sin_t_r)?;
    if fusible(&[x_t_h_d, cos_t_r, sin_t_r]) {
        x_t_h_d.contiguous()?.apply_op3(
            &cos_t_r.contiguous()?,
            &sin_t_r.contiguous()?,
            Rotate { direction: 1.0 },
        )
    } else {
        rotate_composed(x_t_h_d, cos_t_r, sin_t_r)
    }
}

/// [`rotate`] in plain candle operations.
pub fn rotate_composed(x_t_h_d: &Tensor, cos_t_r: &Tensor, sin_t_r: &Tensor) -> Result<Tensor> {
    check(x_t_h_d, cos_t_r, sin_t_r)?;
    let half = x_t_h_d.dim(D::Minus1)? / 2;
    let (cos_t_1_r, sin_t_1_r) = (cos_t_r.detach().unsqueeze(1)?, sin_t_r.detach().unsqueeze(1)?);
    let low_t_h_r = x_t_h_d.narrow(D::Minus1, 0, half)?;
    let high_t_h_r = x_t_h_d.narrow(D::Minus1, half, half)?;
    let turned_low_t_h_r = (low_t_h_r.broadcast_mul(&cos_t_1_r)? - high_t_h_r.broadcast_mul(&sin_t_1_r)?)?;
    let turned_high_t_h_r = (high_t_h_r.broadcast_mul(&cos_t_1_r)? + low_t_h_r.broadcast_mul(&sin_t_1_r)?)?;
    Tensor::cat(&[turned_low_t_h_r, turned_high_t_h_r], D::Minus1)
}

fn check(x_t_h_d: &Tensor, cos_t_r: &Tensor, sin_t_r: &Tensor) -> Result<()> {
    let (rows, _, width) = x_t_h_d.dims3()?;
    let angles = [rows, width / 2];
    if !width.is_multiple_of(2) || cos_t_r.dims() != angles || sin_t_r.dims() != angles {
        bail!(
            "rotate: expected x [t,h,d] with d even, cos and sin [t,d/2], found x {:?}, cos {:?}, sin {:?}",
            x_t_h_d.dims(),
            cos_t_r.dims(),
            sin_t_r.dims()
        )
    }
    Ok(())
}

struct Rotate {
    /// 1 turns forward; -1 turns back, which is the gradient.
    direction: f32,
}

impl CustomOp3 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, heads, width) = x_layout.shape().dims3()?;
        let (x, cos, sin) = (
            slice(x, x_layout)?,
            slice(cos, cos_layout)?,
            slice(sin, sin_layout)?,
        );
        let mut out = vec![0.0; x.len()];
        for_blocks(&mut out, row_block(heads * width), |first, out| {
            let x = &x[first..first + out.len()];
            let angles = first / (heads * width).max(1) * (width / 2);
            let (cos, sin) = (&cos[angles..], &sin[angles..]);
            lanes::run(Turn {
                x,
                cos,
                sin,
                heads,
                width,
                direction: self.direction,
                out,
            });
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = Rotate {
            direction: -self.direction,
        };
        Ok((
            Some(gradient.contiguous()?.apply_op3_no_bwd(cos, sin, &back)?),
            None,
            None,
        ))
    }
}

/// What [`rotate`]'s gradient for `x_t_h_d` is where that of its result is `gradient_t_h_d`: the turn back.
///
/// # Errors
/// When the shapes do not fit, or tensors are not f32 on the CPU.
pub fn rotate_gradient(gradient_t_h_d: &Tensor, cos_t_r: &Tensor, sin_t_r: &Tensor) -> Result<Tensor> {
    check(gradient_t_h_d, cos_t_r, sin_t_r)?;
    let back = Rotate { direction: -1.0 };
    gradient_t_h_d
        .contiguous()?
        .apply_op3_no_bwd(&cos_t_r.contiguous()?, &sin_t_r.contiguous()?, &back)
}

struct Turn<'a> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    heads: usize,
    width: usize,
    direction: f32,
    out: &'a mut [f32],
}

impl WithSimd for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let half = self.width / 2;
        if half == 0 || self.heads == 0 {
            return;
        }
        let angles = self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half));
        let rows = self.x.chunks_exact(self.heads * self.width);
        let out_rows = self.out.chunks_exact_mut(self.heads * self.width);
        for ((x, out), (cos, sin)) in rows.zip(out_rows).zip(angles) {
            for (x, out) in x.chunks_exact(self.width).zip(out.chunks_exact_mut(self.width)) {
                let (low, high) = x.split_at(half);
                let (out_low, out_high) = out.split_at_mut(half);
                for n in 0..half {
                    let sin = sin[n] * self.direction;
                    out_low[n] = low[n] * cos[n] - high[n] * sin;
                    out_high[n] = high[n] * cos[n] + low[n] * sin;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_close, assert_differences, assert_twins, noise};

    #[test]
    fn fused_equals_composed() {
        for (rows, heads, width) in [(1, 1, 2), (5, 3, 10), (70, 9, 64), (0, 2, 4)] {
            let x = noise(1, &[rows, heads, width]);
            let (cos, sin) = (noise(2, &[rows, width / 2]), noise(3, &[rows, width / 2]));
            assert_twins(
                [&x],
                || rotate(&x, &cos, &sin),
                || rotate_composed(&x, &cos, &sin),
                1e-6,
            );
        }
    }

    #[test]
    fn rows_cut_from_a_wider_tensor_are_taken() -> Result<()> {
        let (wide, cos, sin) = (noise(1, &[4, 5, 8]), noise(2, &[4, 4]), noise(3, &[4, 4]));
        let x = wide.narrow(1, 2, 3)?;
        assert_close(&rotate(&x, &cos, &sin)?, &rotate_composed(&x, &cos, &sin)?, 1e-6);
        Ok(())
    }

    #[test]
    fn composed_gradients_equal_differences() {
        let (cos, sin) = (noise(2, &[2, 3]), noise(3, &[2, 3]));
        assert_differences([&noise(1, &[2, 2, 6])], |x| {
            rotate_composed(&x[0], &cos.to_dtype(x[0].dtype())?, &sin.to_dtype(x[0].dtype())?)
        });
    }
}
