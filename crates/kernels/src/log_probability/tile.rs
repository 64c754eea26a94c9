//! What happens to a tile of logits while it is in the cache.

use pulp::{Simd, WithSimd};

use crate::lanes;

/// Takes a tile of logits into the running sums of its rows, and leaves `e^(logit - top)` in it.
pub(super) struct Online<'a> {
    pub(super) tile: &'a mut [f32],
    pub(super) tokens: usize,
    pub(super) top_t: &'a mut [f32],
    pub(super) sum_t: &'a mut [f32],
    pub(super) moment_t: &'a mut [f32],
    /// Empty where slopes are not wanted.
    pub(super) mean_t_d: &'a mut [f32],
}

impl WithSimd for Online<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.mean_t_d.len() / self.top_t.len();
        for (row, logits) in self.tile.chunks_exact_mut(self.tokens).enumerate() {
            let (top, before) = (lanes::max(logits), self.top_t[row]);
            if top > before {
                // Minus infinity at first, where the sums are zero and the factor does not matter.
                let (fall, factor) = (before - top, lanes::exp(before - top));
                if before > f32::NEG_INFINITY {
                    self.moment_t[row] = factor * (self.moment_t[row] + fall * self.sum_t[row]);
                    self.sum_t[row] *= factor;
                    lanes::scale(&mut self.mean_t_d[row * width..(row + 1) * width], factor);
                }
                self.top_t[row] = top;
            }
            let (sum, moment) = exp_with_moment(logits, self.top_t[row]);
            self.sum_t[row] += sum;
            self.moment_t[row] += moment;
        }
    }
}

/// Puts `e^(x - shift)` in place of each `x`; gives the sums of that and of its product with `x - shift`.
#[inline(always)]
fn exp_with_moment(values: &mut [f32], shift: f32) -> (f32, f32) {
    let (mut sums, mut moments) = ([0.0; lanes::LANES], [0.0; lanes::LANES]);
    let (blocks, rest) = values.as_chunks_mut::<{ lanes::LANES }>();
    for block in blocks {
        for lane in 0..lanes::LANES {
            let centred = block[lane] - shift;
            block[lane] = lanes::exp(centred);
            sums[lane] += block[lane];
            moments[lane] += block[lane] * centred;
        }
    }
    let (mut sum, mut moment) = (lanes::total(sums), lanes::total(moments));
    for value in rest {
        let centred = *value - shift;
        *value = lanes::exp(centred);
        sum += *value;
        moment += *value * centred;
    }
    (sum, moment)
}

/// Multiplies all by one number.
pub(super) struct Scale<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) factor: f32,
}

impl WithSimd for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        lanes::scale(self.values, self.factor);
    }
}

/// Turns a tile of logits into `-p * gradient / temperature`.
pub(super) struct LogitGradients<'a> {
    pub(super) tile: &'a mut [f32],
    pub(super) tokens: usize,
    pub(super) log_sum_t: &'a [f32],
    pub(super) gradient_t: &'a [f32],
    pub(super) inverse: f32,
}

impl WithSimd for LogitGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.log_sum_t.iter().zip(self.gradient_t);
        for (logits, (log_sum, gradient)) in self.tile.chunks_exact_mut(self.tokens).zip(rows) {
            let factor = -gradient * self.inverse;
            for logit in logits {
                *logit = lanes::exp(*logit - log_sum) * factor;
            }
        }
    }
}
