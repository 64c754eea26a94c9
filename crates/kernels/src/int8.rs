//! Products of weights in blocks by activations in 8 bits, which are products of integers.
//!
//! Every [`SHARED`] activations get a scale, the largest of them over 127, and are rounded to integers of it. Within a
//! block of the weight the products of integers are summed exactly; only then the two scales come in. llama.cpp multiplies
//! its types this way too, and it costs as much precision as there, which is more than bf16 does (docs/export.md has
//! figures). A row's result is the same bits whatever other rows the call has and whatever instructions the machine has.
//!
//! Where there are instructions for it, four products of 8 bits are added to a sum at once (`avx512vnni.rs`).

use candle_core::{D, DType, Result, Tensor};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::lanes::{self, Setting};
use crate::packed::{WIDTH, blocks, in_strips};
use crate::quantized::{Quantized, held, place, words};
use crate::slices::BLOCK;

/// Activations that share a scale.
const SHARED: usize = 32;
/// The largest integer.
const MOST: f32 = 127.0;
/// A block whose largest number is below it counts as zero, since the factor that makes integers of it would overflow.
const LEAST: f32 = 1e-36;

/// `x_t_k` as a product of integers sees it, in plain candle operations.
pub(crate) fn rounded(x_t_k: &Tensor) -> Result<Tensor> {
    let (rows, inputs) = x_t_k.dims2()?;
    let x_t_b_s = x_t_k.reshape((rows, inputs / SHARED, SHARED))?;
    let scale_t_b = (x_t_b_s.abs()?.max_keepdim(D::Minus1)? / f64::from(MOST))?;
    let zero_t_b = scale_t_b.lt(f64::from(LEAST / MOST))?.to_dtype(DType::F32)?;
    let codes_t_b_s = x_t_b_s.broadcast_div(&(&scale_t_b + zero_t_b)?)?.round()?;
    codes_t_b_s.broadcast_mul(&scale_t_b)?.reshape((rows, inputs))
}

/// What goes with the activations of one row that meet one record of a weight.
#[derive(Clone, Copy, Default)]
pub(crate) struct Part {
    pub(crate) scale: f32,
    /// What the sum of products with unsigned integers begins with, so that it ends as that of signed ones.
    pub(crate) offset: i32,
    /// The sum of the activations: what a minimum of the weight is multiplied by.
    pub(crate) sum: f32,
}

/// Rows of activations in 8 bits.
pub(crate) struct Activations {
    /// Four to a word, signed.
    pub(crate) words: Vec<u32>,
    pub(crate) parts: Vec<Part>,
    /// Words and parts of a row.
    pub(crate) sizes: (usize, usize),
}

impl Activations {
    fn new(x: &[f32], inputs: usize, weight: &Quantized) -> Self {
        let form = weight.form();
        let sizes = (inputs / 4, inputs / form.inputs);
        let rows = x.len() / inputs;
        let mut words = vec![0; rows * sizes.0];
        let mut parts = vec![Part::default(); rows * sizes.1];
        let together = (BLOCK / inputs).max(1);
        x.par_chunks(together * inputs)
            .zip(words.par_chunks_mut(together * sizes.0))
            .zip(parts.par_chunks_mut(together * sizes.1))
            .for_each(|((x, words), parts)| {
                lanes::run(Round {
                    x,
                    words,
                    parts,
                    inputs: form.inputs,
                    zero: form.zero(),
                });
            });
        Self { words, parts, sizes }
    }
}

/// Rounds some blocks of activations.
struct Round<'a> {
    x: &'a [f32],
    words: &'a mut [u32],
    parts: &'a mut [Part],
    /// Activations of a part.
    inputs: usize,
    /// What stands for zero in the weight.
    zero: u8,
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let words = self.words.as_chunks_mut::<{ SHARED / 4 }>().0;
        let parts = self.parts.chunks_exact_mut(SHARED / self.inputs);
        for ((x, words), parts) in self.x.as_chunks::<SHARED>().0.iter().zip(words).zip(parts) {
            let (scale, codes) = round(x);
            for (word, codes) in words.iter_mut().zip(codes.as_chunks().0) {
                *word = u32::from_le_bytes(codes.map(i8::cast_unsigned));
            }
            for (part, codes) in parts.iter_mut().zip(codes.chunks_exact(self.inputs)) {
                let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                *part = Part {
                    scale,
                    offset: -i32::from(self.zero) * sum,
                    sum: scale * sum as f32,
                };
            }
        }
    }
}

/// The scale of some activations and each as an integer of it. Where one is not finite the scale is not a number, so that
/// no such activation is lost.
#[inline(always)]
fn round(x: &[f32; SHARED]) -> (f32, [i8; SHARED]) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: a number added to it is rounded, and is its low bits
    let (mut most, mut nothing) = (0.0, 0.0);
    for x in x {
        most = if x.abs() > most { x.abs() } else { most };
        nothing += x * 0.0;
    }
    let (scale, factor) = if most < LEAST {
        (0.0, 0.0)
    } else {
        (most / MOST, MOST / most)
    };
    let codes = x.map(|x| (x * factor + ROUND).to_bits() as i8);
    (scale + nothing, codes)
}

/// `x W^T` by a weight of so many outputs and inputs, in parallel over strips of columns.
pub(crate) fn multiply(x: &[f32], weight: &Quantized, dims: (usize, usize)) -> Vec<f32> {
    multiply_by(x, weight, dims, |strip: Strip<'_>| strip.multiply())
}

fn multiply_by(
    x: &[f32],
    weight: &Quantized,
    (outputs, inputs): (usize, usize),
    work: impl Fn(Strip) + Sync,
) -> Vec<f32> {
    let activations = Activations::new(x, inputs, weight);
    in_strips(x.len() / inputs, outputs, |panel, out| {
        work(Strip {
            activations: &activations,
            weight,
            inputs,
            panel,
            out,
        });
    })
}

/// The products of all rows with some panels of the weight, which are columns of the result.
pub(crate) struct Strip<'a> {
    pub(crate) activations: &'a Activations,
    pub(crate) weight: &'a Quantized,
    /// Of the weight.
    pub(crate) inputs: usize,
    /// The first panel.
    pub(crate) panel: usize,
    /// Each row's part of the result, zeros.
    pub(crate) out: Vec<&'a mut [f32]>,
}

impl Strip<'_> {
    fn multiply(self) {
        #[cfg(target_arch = "x86_64")]
        if matches!(lanes::setting(), Setting::Best | Setting::Vectors) && crate::avx512vnni::available() {
            return crate::avx512vnni::multiply(self);
        }
        lanes::run(self);
    }
}

impl WithSimd for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        let form = self.weight.form();
        match (form.nibbles, form.least) {
            (false, false) => self.add::<false, false>(),
            (false, true) => self.add::<false, true>(),
            (true, false) => self.add::<true, false>(),
            (true, true) => self.add::<true, true>(),
        }
    }
}

impl Strip<'_> {
    /// Adds all products, one output of a row at a time in each lane.
    #[inline(always)]
    fn add<const NIBBLES: bool, const MINIMA: bool>(&mut self) {
        let form = self.weight.form();
        let (row_words, row_parts) = self.activations.sizes;
        let panels = self.out.first().map_or(0, |row| row.len().div_ceil(WIDTH));
        for panel in 0..panels {
            let records = blocks(0..self.inputs).flat_map(|block| {
                self.weight
                    .panels(self.panel + panel, 1, block)
                    .chunks_exact(form.bytes())
            });
            for (index, record) in records.enumerate() {
                let (head, codes) = record.split_at(form.head());
                let (scale, least) = (form.scales(head), form.scales(&head[head.len() / 2..]));
                for (row, out) in self.out.iter_mut().enumerate() {
                    let part = self.activations.parts[row * row_parts + index];
                    let words = &self.activations.words[row * row_words + index * form.inputs / 4..]
                        [..form.inputs / 4];
                    let sums = sum::<NIBBLES>(codes, words, part.offset);
                    let out = out[panel * WIDTH..].iter_mut().zip(sums);
                    for (lane, (out, sum)) in out.take(WIDTH).enumerate() {
                        *out += sum as f32 * (scale[lane] * part.scale);
                        if MINIMA {
                            *out += least[lane] * part.sum;
                        }
                    }
                }
            }
        }
    }
}

/// The sums of products of a record's integers with activations, for each output.
#[inline(always)]
fn sum<const NIBBLES: bool>(codes: &[u8], activations: &[u32], offset: i32) -> [i32; WIDTH] {
    let mut sums = [offset; WIDTH];
    let groups = codes.as_chunks().0.iter();
    for (group, activations) in groups.zip(activations.chunks_exact(held(NIBBLES) / 4)) {
        let words = words(group);
        for input in 0..held(NIBBLES) {
            let activation = i32::from((activations[input / 4] >> (8 * (input % 4))) as i8);
            let (shift, mask) = place(NIBBLES, input);
            for lane in 0..WIDTH {
                sums[lane] += (words[lane] >> shift & mask).cast_signed() * activation;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;
    use crate::fixtures::noise;

    #[test]
    fn instructions_and_loops_give_the_same_bits() -> Result<()> {
        use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        for kind in [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K] {
            let dims = (70, 1536);
            let blocks = QTensor::quantize(&noise(1, &[dims.0, dims.1]), kind)?;
            let weight = Quantized::new(kind, &blocks.data()?, dims, true)?;
            for rows in (1..=8).chain([20]) {
                let x = noise(2, &[rows, dims.1]).flatten_all()?.to_vec1::<f32>()?;
                let loops = multiply_by(&x, &weight, dims, |strip| lanes::run(strip));
                assert_eq!(multiply(&x, &weight, dims), loops, "{kind:?}, {rows} rows");
                let last = multiply(&x[(rows - 1) * dims.1..], &weight, dims);
                assert_eq!(
                    last,
                    loops[(rows - 1) * dims.0..],
                    "{kind:?}, the last of {rows} rows"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn activations_are_rounded_to_a_share_of_their_largest() {
        let x: [f32; SHARED] = std::array::from_fn(|n| n as f32 - 15.0);
        let (scale, codes) = round(&x);
        assert_eq!(scale, 16.0 / 127.0);
        assert_eq!((codes[0], codes[15], codes[16], codes[31]), (-119, 0, 8, 127));
        assert_eq!(round(&[0.0; SHARED]), (0.0, [0; SHARED]));
        assert_eq!(round(&[1e-40; SHARED]), (0.0, [0; SHARED]));
        assert_eq!(round(&[-3e38; SHARED]).1, [-127; SHARED]);
    }

    #[test]
    fn what_is_not_finite_is_not_lost() {
        for hostile in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; SHARED];
            x[7] = hostile;
            assert!(round(&x).0.is_nan());
        }
    }

    #[test]
    fn rounding_is_the_twins() -> Result<()> {
        let x = noise(1, &[3, 64]);
        let twin = rounded(&x)?.flatten_all()?.to_vec1::<f32>()?;
        let x = x.flatten_all()?.to_vec1::<f32>()?;
        let fused: Vec<f32> = x
            .as_chunks()
            .0
            .iter()
            .flat_map(|x| {
                let (scale, codes) = round(x);
                codes.map(|code| f32::from(code) * scale)
            })
            .collect();
        let apart = fused.iter().zip(&twin).filter(|(a, b)| (*a - *b).abs() > 1e-6);
        assert_eq!(apart.count(), 0);
        assert!(fused.iter().zip(&x).all(|(a, b)| (a - b).abs() <= 0.5001 / MOST));
        let zeros = Tensor::zeros((1, 32), DType::F32, &Device::Cpu)?;
        assert_eq!(rounded(&zeros)?.to_vec2::<f32>()?, [[0.0; 32]]);
        Ok(())
    }
}
