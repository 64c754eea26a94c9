//! Weights in the order in which the product reads them.
//!
//! A panel is [`WIDTH`] rows of a weight, which are outputs of the product, and lies by its inputs: for each input the
//! panel's numbers side by side, so that a vector of them meets one number of an activation. Inputs are cut into blocks
//! of [`DEPTH`], within which panel follows panel: a product goes through memory from front to back.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::slices::read;

/// Outputs of a panel.
pub(crate) const WIDTH: usize = 16;
/// Inputs of a block: a panel's share of it, in f32, is half of a first cache.
pub(crate) const DEPTH: usize = 256;

/// A weight `[n,k]` that does not train, laid out for [`crate::product_packed`]; a clone shares its numbers.
#[derive(Clone, Debug)]
pub struct Packed {
    outputs: usize,
    inputs: usize,
    numbers: Arc<Numbers>,
}

#[derive(Debug)]
enum Numbers {
    F32(Vec<f32>),
    /// The upper halves of f32 numbers.
    Bf16(Vec<u16>),
}

impl Packed {
    /// Packs an f32 weight `[n,k]` on the CPU. As `DType::BF16` its numbers are rounded to bf16 and held in half the
    /// memory; a product is then that of the rounded numbers, in f32.
    ///
    /// # Errors
    /// A tensor of another type or device, or another `dtype` than F32 and BF16.
    pub fn new(weight_n_k: &Tensor, dtype: DType) -> Result<Self> {
        let (outputs, inputs) = weight_n_k.dims2()?;
        let numbers = read([weight_n_k], |[rows]| {
            let rows = Weights {
                outputs,
                inputs,
                numbers: Layout::Rows(rows),
            };
            match dtype {
                DType::F32 => Ok(Numbers::F32(rows.pack(|number| number))),
                DType::BF16 => Ok(Numbers::Bf16(rows.pack(rounded))),
                other => bail!("packed weights are f32 or bf16, not {other:?}"),
            }
        })?;
        Ok(Self {
            outputs,
            inputs,
            numbers: Arc::new(numbers),
        })
    }

    /// Outputs and inputs, `(n, k)`.
    pub fn dims(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    /// Bytes that the numbers take.
    pub fn bytes(&self) -> usize {
        match &*self.numbers {
            Numbers::F32(numbers) => 4 * numbers.len(),
            Numbers::Bf16(numbers) => 2 * numbers.len(),
        }
    }

    /// The weight as an f32 tensor `[n,k]` again.
    ///
    /// # Errors
    /// Those of making a tensor.
    pub fn tensor(&self) -> Result<Tensor> {
        let (inputs, weights) = (self.inputs, self.weights());
        let mut rows = vec![0.0; self.outputs * inputs];
        if inputs > 0 {
            rows.par_chunks_mut(WIDTH * inputs)
                .enumerate()
                .for_each_init(Vec::new, |room, (panel, rows)| {
                    for block in blocks(inputs) {
                        let numbers = weights.panel(panel, block.clone(), room);
                        for (lane, row) in rows.chunks_exact_mut(inputs).enumerate() {
                            for (input, number) in row[block.clone()].iter_mut().enumerate() {
                                *number = numbers[input * WIDTH + lane];
                            }
                        }
                    }
                });
        }
        Tensor::from_vec(rows, (self.outputs, inputs), &Device::Cpu)
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        Weights {
            outputs: self.outputs,
            inputs: self.inputs,
            numbers: match &*self.numbers {
                Numbers::F32(numbers) => Layout::F32(numbers),
                Numbers::Bf16(numbers) => Layout::Bf16(numbers),
            },
        }
    }
}

/// The upper half of the bf16 number next to `number`, ties to even. NaN stays NaN.
fn rounded(number: f32) -> u16 {
    let bits = number.to_bits();
    if number.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The blocks that inputs are cut into.
pub(crate) fn blocks(inputs: usize) -> impl Iterator<Item = Range<usize>> {
    (0..inputs)
        .step_by(DEPTH)
        .map(move |first| first..inputs.min(first + DEPTH))
}

/// A weight as a product reads it.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) numbers: Layout<'a>,
}

#[derive(Clone, Copy)]
pub(crate) enum Layout<'a> {
    /// As a tensor `[n,k]` has it.
    Rows(&'a [f32]),
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl<'a> Weights<'a> {
    /// One panel's numbers for a block of inputs, [`WIDTH`] for each input: where they lie, or expanded into `room`.
    /// Outputs that the weight does not have are zero.
    #[inline(always)]
    pub(crate) fn panel<'b>(&self, panel: usize, block: Range<usize>, room: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        let depth = block.len();
        let size = depth * WIDTH;
        let start = block.start * self.outputs.next_multiple_of(WIDTH) + panel * size;
        match self.numbers {
            Layout::F32(numbers) => return &numbers[start..start + size],
            Layout::Bf16(numbers) => {
                room.resize(DEPTH * WIDTH, 0.0);
                for (number, bits) in room.iter_mut().zip(&numbers[start..start + size]) {
                    *number = f32::from_bits(u32::from(*bits) << 16);
                }
            }
            Layout::Rows(rows) => {
                room.resize(DEPTH * WIDTH, 0.0);
                let first = panel * WIDTH;
                for lane in 0..WIDTH {
                    if first + lane < self.outputs {
                        let row = &rows[(first + lane) * self.inputs..][block.clone()];
                        for (input, &number) in row.iter().enumerate() {
                            room[input * WIDTH + lane] = number;
                        }
                    } else {
                        for input in 0..depth {
                            room[input * WIDTH + lane] = 0.0;
                        }
                    }
                }
            }
        }
        &room[..size]
    }

    /// Everything in the packed order, each number converted.
    fn pack<T: Copy + Default + Send>(self, convert: impl Fn(f32) -> T + Sync) -> Vec<T> {
        let panels = self.outputs.div_ceil(WIDTH);
        let mut packed = vec![T::default(); panels * WIDTH * self.inputs];
        let mut rest = packed.as_mut_slice();
        for block in blocks(self.inputs) {
            let size = block.len() * WIDTH;
            let (here, behind) = rest.split_at_mut(panels * size);
            here.par_chunks_exact_mut(size)
                .enumerate()
                .for_each_init(Vec::new, |room, (panel, target)| {
                    let source = self.panel(panel, block.clone(), room);
                    for (target, &number) in target.iter_mut().zip(source) {
                        *target = convert(number);
                    }
                });
            rest = behind;
        }
        packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_close, noise};

    #[test]
    fn what_was_packed_comes_back() -> Result<()> {
        for (outputs, inputs) in [(1, 1), (16, 256), (17, 300), (50, 257), (3, 600), (2, 0)] {
            let weight = noise(1, &[outputs, inputs]);
            let packed = Packed::new(&weight, DType::F32)?;
            assert_eq!(packed.dims(), (outputs, inputs));
            assert_close(&packed.tensor()?, &weight, 0.0);
            let half = Packed::new(&weight, DType::BF16)?;
            assert_eq!(2 * half.bytes(), packed.bytes());
            let expected = weight.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
            assert_close(&half.tensor()?, &expected, 0.0);
        }
        Ok(())
    }

    #[test]
    fn rounding_is_to_the_nearest_even() {
        let bits = |upper: u32, lower: u32| f32::from_bits(upper << 16 | lower);
        assert_eq!(rounded(bits(0x3f80, 0x8000)), 0x3f80);
        assert_eq!(rounded(bits(0x3f81, 0x8000)), 0x3f82);
        assert_eq!(rounded(bits(0x3f80, 0x8001)), 0x3f81);
        assert_eq!(rounded(-f32::INFINITY), 0xff80);
        assert!(f32::from_bits(u32::from(rounded(bits(0x7f80, 1))) << 16).is_nan());
    }

    #[test]
    fn other_types_are_refused() {
        assert!(Packed::new(&noise(1, &[2, 2]), DType::F16).is_err());
        assert!(Packed::new(&noise(1, &[4]), DType::F32).is_err());
    }
}
