//! Loops that the compiler turns into vector instructions, for the instruction set found at run time.
//!
//! A kernel is a struct that implements [`WithSimd`]; [`run`] compiles it once for every instruction set pulp knows
//! and calls the best one. Whatever a kernel calls must be `#[inline(always)]`, or it is compiled for the baseline
//! instruction set only. Sums here keep [`LANES`] partial sums and add them in a fixed order, and nothing here uses
//! fused multiply-add, so every instruction set gives the same bits; those of `product.rs` and `rows.rs` round by it.

use std::sync::OnceLock;

use pulp::{Arch, WithSimd};

/// How many partial sums a reduction keeps: two AVX2 registers, four SSE or NEON ones.
pub(crate) const LANES: usize = 16;

/// What `SAFERL_KERNELS` in the environment asks for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Setting {
    /// The best that the machine has.
    Best,
    /// Its best vectors, but no tiles.
    Vectors,
    /// Its best vectors, but bf16 numbers widened to f32, as on a machine without products of bf16 pairs.
    Widened,
    /// The baseline instruction set.
    Portable,
    /// No kernel of the CPU at all: the composed twins, as on another device.
    Composed,
}

/// `SAFERL_KERNELS`, read once.
pub(crate) fn setting() -> Setting {
    static SETTING: OnceLock<Setting> = OnceLock::new();
    *SETTING.get_or_init(|| match std::env::var("SAFERL_KERNELS").as_deref() {
        Ok("portable") => Setting::Portable,
        Ok("widened") => Setting::Widened,
        Ok("vectors") => Setting::Vectors,
        Ok("composed") => Setting::Composed,
        _ => Setting::Best,
    })
}

/// Runs a kernel on the best instruction set, or on the baseline if `SAFERL_KERNELS=portable`.
pub(crate) fn run<K: WithSimd>(kernel: K) -> K::Output {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    let arch = *ARCH.get_or_init(|| match setting() {
        Setting::Portable => Arch::Scalar,
        _ => Arch::new(),
    });
    arch.dispatch(kernel)
}

/// `e^x` to about one unit in the last place; NaN stays NaN, what over- or underflows is held at the finite ends.
///
/// Splits `x = n ln 2 + r` and takes a degree-6 polynomial in `r` (the coefficients of Cephes' `expf`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons in this form keep NaN, which `f32::clamp` by way of `min` and `max` would not when vectorised.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_6e-1;
    p = p * r + 0.5;
    let fraction = p * r * r + r + 1.0;
    // The low bits of `shifted` hold n; moved into the exponent they are 2^n.
    let power = f32::from_bits(shifted.to_bits().wrapping_shl(23).wrapping_add(127 << 23));
    fraction * power
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The sum of products.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    total(lanes) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// The largest value, skipping NaN; minus infinity for none.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = if block[lane] > lanes[lane] {
                block[lane]
            } else {
                lanes[lane]
            };
        }
    }
    lanes.iter().chain(rest).fold(
        f32::NEG_INFINITY,
        |max, &value| if value > max { value } else { max },
    )
}

/// Puts `e^(value - shift)` in place of each value and returns their sum.
#[inline(always)]
pub(crate) fn exp_in_place(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = values.as_chunks_mut::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            block[lane] = exp(block[lane] - shift);
            lanes[lane] += block[lane];
        }
    }
    let mut sum = total(lanes);
    for value in rest {
        *value = exp(*value - shift);
        sum += *value;
    }
    sum
}

/// `target += factor * source`.
#[inline(always)]
pub(crate) fn add_scaled(target: &mut [f32], source: &[f32], factor: f32) {
    for (target, source) in target.iter_mut().zip(source) {
        *target += factor * source;
    }
}

/// `values *= factor`.
#[inline(always)]
pub(crate) fn scale(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

/// Adds the lanes as a tree, in an order that does not depend on the instruction set.
#[inline(always)]
pub(crate) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(
                error < 2.0 * f64::from(f32::EPSILON),
                "exp({x}) is off by {error:e}"
            );
        }
    }

    #[test]
    fn exp_keeps_nan_and_holds_the_ends() {
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38);
        assert!(exp(f32::INFINITY) > 2e38 && exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn reductions_take_the_rest_after_whole_blocks_into_account() {
        for len in [0, 1, 15, 16, 17, 50] {
            let values: Vec<f32> = (0..len).map(|n| n as f32 - 20.0).collect();
            assert_eq!(dot(&values, &values), values.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(max(&values), values.last().copied().unwrap_or(f32::NEG_INFINITY));
            let mut exponents = values.clone();
            let sum = exp_in_place(&mut exponents, 3.0);
            let expected: f32 = values.iter().map(|x| (x - 3.0).exp()).sum();
            assert!(
                (sum - expected).abs() <= 1e-5 * expected,
                "{sum} is not {expected}"
            );
        }
    }
}
