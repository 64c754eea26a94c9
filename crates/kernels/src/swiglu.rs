//! The gated activation of the feed-forward block (Shazeer 2020, arXiv 2002.05202).

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::lanes;
use crate::slices::{BLOCK, for_blocks, fusible, read, slice};

/// `silu(gate) * up`, element by element, with gradients for both tensors.
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate_t_i: &Tensor, up_t_i: &Tensor) -> Result<Tensor> {
    check(gate_t_i, up_t_i)?;
    if fusible(&[gate_t_i, up_t_i]) {
        gate_t_i.contiguous()?.apply_op2(&up_t_i.contiguous()?, Swiglu)
    } else {
        swiglu_composed(gate_t_i, up_t_i)
    }
}

/// [`swiglu`] in plain candle operations.
pub fn swiglu_composed(gate_t_i: &Tensor, up_t_i: &Tensor) -> Result<Tensor> {
    check(gate_t_i, up_t_i)?;
    gate_t_i.silu()? * up_t_i
}

fn check(gate_t_i: &Tensor, up_t_i: &Tensor) -> Result<()> {
    if gate_t_i.dims() != up_t_i.dims() {
        bail!(
            "swiglu: expected gate and up of one shape, found {:?} and {:?}",
            gate_t_i.dims(),
            up_t_i.dims()
        )
    }
    Ok(())
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(gate, gate_layout)?, slice(up, up_layout)?);
        let mut out = vec![0.0; gate.len()];
        for_blocks(&mut out, BLOCK, |first, out| {
            let range = first..first + out.len();
            lanes::run(Forward {
                gate: &gate[range.clone()],
                up: &up[range],
                out,
            });
        });
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gate_gradient, up_gradient) = swiglu_gradients(gate, up, gradient)?;
        Ok((Some(gate_gradient), Some(up_gradient)))
    }
}

/// What [`swiglu`]'s gradients for both tensors are where that of its result is `gradient_t_i`.
///
/// # Errors
/// When the shapes differ, or tensors are not f32 on the CPU.
pub fn swiglu_gradients(
    gate_t_i: &Tensor,
    up_t_i: &Tensor,
    gradient_t_i: &Tensor,
) -> Result<(Tensor, Tensor)> {
    check(gate_t_i, up_t_i)?;
    check(gate_t_i, gradient_t_i)?;
    let (gate_gradient, up_gradient) = read([gate_t_i, up_t_i, gradient_t_i], |[gate, up, gradient]| {
        let (mut gate_gradient, mut up_gradient) = (vec![0.0; gate.len()], vec![0.0; up.len()]);
        gate_gradient
            .par_chunks_mut(BLOCK)
            .zip(up_gradient.par_chunks_mut(BLOCK))
            .enumerate()
            .for_each(|(block, (gate_gradient, up_gradient))| {
                let range = block * BLOCK..block * BLOCK + gate_gradient.len();
                lanes::run(Backward {
                    gate: &gate[range.clone()],
                    up: &up[range.clone()],
                    gradient: &gradient[range],
                    gate_gradient,
                    up_gradient,
                });
            });
        Ok((gate_gradient, up_gradient))
    })?;
    Ok((
        Tensor::from_vec(gate_gradient, gate_t_i.shape(), gate_t_i.device())?,
        Tensor::from_vec(up_gradient, up_t_i.shape(), up_t_i.device())?,
    ))
}

struct Forward<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate * lanes::sigmoid(*gate) * up;
        }
    }
}

struct Backward<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    gradient: &'a [f32],
    gate_gradient: &'a mut [f32],
    up_gradient: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    /// With `s = sigmoid(gate)`, the slope of `silu` is `s * (1 + gate * (1 - s))`.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let inputs = self.gate.iter().zip(self.up).zip(self.gradient);
        let outputs = self.gate_gradient.iter_mut().zip(self.up_gradient);
        for (((gate, up), gradient), (gate_gradient, up_gradient)) in inputs.zip(outputs) {
            let share = lanes::sigmoid(*gate);
            *gate_gradient = gradient * up * share * (1.0 + gate * (1.0 - share));
            *up_gradient = gradient * gate * share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_differences, assert_twins, noise};

    #[test]
    fn fused_equals_composed() -> Result<()> {
        for shape in [&[1, 1][..], &[3, 7], &[130, 257]] {
            let (gate, up) = (noise(1, shape), noise(2, shape));
            // From -40 to 40, so that the ends of the exponential are met.
            gate.set(&(gate.as_tensor() * 40.0)?.detach())?;
            assert_twins(
                [&gate, &up],
                || swiglu(&gate, &up),
                || swiglu_composed(&gate, &up),
                1e-6,
            );
        }
        Ok(())
    }

    #[test]
    fn composed_gradients_equal_differences() {
        assert_differences([&noise(1, &[3, 4]), &noise(2, &[3, 4])], |x| {
            swiglu_composed(&x[0], &x[1])
        });
    }
}
