//! Weights in the order in which the product reads them.
//!
//! A panel is [`WIDTH`] rows of a weight, which are outputs of the product, and lies by its inputs: for each input the
//! panel's numbers side by side, so that a vector of them meets one number of an activation. Inputs are cut into blocks
//! of [`DEPTH`], within which panel follows panel: a product goes through memory from front to back. As bf16 the panel
//! holds the numbers of two inputs side by side for each output (`pairs.rs`). A weight in a GGUF file's blocks stays in
//! blocks (`quantized.rs`).

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::device::on_the_cpu_alone;
use crate::pairs::{Pairs, Right, apart};
use crate::quantized::{self, Quantized};
use crate::slices::read;

/// Outputs of a panel.
pub(crate) const WIDTH: usize = 16;
/// Inputs of a block: a panel's share of it, in f32, is a small part of a second cache. Smaller ones, which would leave it in
/// the first, write and read the sums more often, and cost a tenth.
pub(crate) const DEPTH: usize = 1024;

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
    Bf16(Vec<Pairs>),
    Quantized(Quantized),
}

impl Packed {
    /// Packs an f32 weight `[n,k]` on the CPU. As `DType::BF16` its numbers are rounded to bf16 and held in half the
    /// memory; a product then rounds its other numbers too, and sums in f32. As `DType::U8` they are put into blocks of Q8_0
    /// for products of integers ([`Packed::quantized`]), or stay f32 where rows do not fill such blocks.
    ///
    /// # Errors
    /// A tensor of another type or device, or another `dtype` than F32, BF16 and U8.
    pub fn new(weight_n_k: &Tensor, dtype: DType) -> Result<Self> {
        on_the_cpu_alone()?;
        let (outputs, inputs) = weight_n_k.dims2()?;
        if dtype == DType::U8 {
            if inputs == 0 || !inputs.is_multiple_of(GgmlDType::Q8_0.block_size()) {
                return Self::new(weight_n_k, DType::F32);
            }
            let blocks = QTensor::quantize(weight_n_k, GgmlDType::Q8_0)?;
            return Self::quantized(GgmlDType::Q8_0, &blocks.data()?, (outputs, inputs), dtype);
        }
        let numbers = read([weight_n_k], |[rows]| match dtype {
            DType::F32 => {
                let numbers = Layout::Rows(rows);
                let weights = Weights {
                    outputs,
                    inputs,
                    numbers,
                };
                let fill = |panel, block, target: &mut [f32]| {
                    target.copy_from_slice(weights.panel(panel, block, &mut Vec::new()));
                };
                Ok(Numbers::F32(pack((outputs, inputs), |depth| depth * WIDTH, fill)))
            }
            DType::BF16 => {
                let right = Right::rows(rows, (outputs, inputs));
                let fill = |panel, block, target: &mut [Pairs]| right.fill(panel, block, target);
                Ok(Numbers::Bf16(pack(
                    (outputs, inputs),
                    |depth| depth.div_ceil(2),
                    fill,
                )))
            }
            other => bail!("packed weights are f32, bf16 or integers, not {other:?}"),
        })?;
        Ok(Self {
            outputs,
            inputs,
            numbers: Arc::new(numbers),
        })
    }

    /// Whether [`Packed::quantized`] takes blocks of this type.
    pub fn keeps(kind: GgmlDType) -> bool {
        quantized::known(kind)
    }

    /// Keeps a weight `[n,k]` in the blocks of a GGUF file, `blocks` being its bytes row by row: Q8_0, Q4_0, Q4_1, Q5_0,
    /// Q5_1, Q4_K, Q5_K or Q6_K. As `DType::F32` a product has the bits of one with the dequantized weight. As
    /// `DType::U8` it is one of integers: it takes the other numbers in 8 bits, every 32 with a scale of their own.
    ///
    /// # Errors
    /// Another type, rows that do not fill blocks, another number of bytes, or another `dtype` than F32 and U8.
    pub fn quantized(
        kind: GgmlDType,
        blocks: &[u8],
        (outputs, inputs): (usize, usize),
        dtype: DType,
    ) -> Result<Self> {
        on_the_cpu_alone()?;
        if !matches!(dtype, DType::F32 | DType::U8) {
            bail!("weights in blocks are multiplied as f32 or as integers, not as {dtype:?}")
        }
        let numbers = Quantized::new(kind, blocks, (outputs, inputs), dtype == DType::U8)?;
        Ok(Self {
            outputs,
            inputs,
            numbers: Arc::new(Numbers::Quantized(numbers)),
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
            Numbers::Bf16(numbers) => size_of::<Pairs>() * numbers.len(),
            Numbers::Quantized(numbers) => numbers.bytes(),
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
                    for block in blocks(0..inputs) {
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

    /// The rows `ids` of the weight, outputs of the product, as f32 `[ids,k]`: what an embedding is asked for.
    ///
    /// # Errors
    /// A row that the weight does not have.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let (inputs, weights) = (self.inputs, self.weights());
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.outputs) {
            bail!("expected rows below {}, found {id}", self.outputs)
        }
        let mut rows = vec![0.0; ids.len() * inputs];
        if inputs > 0 {
            rows.par_chunks_exact_mut(inputs)
                .zip(ids)
                .for_each_init(Vec::new, |room, (row, &id)| {
                    let (panel, lane) = (id as usize / WIDTH, id as usize % WIDTH);
                    for block in blocks(0..inputs) {
                        let numbers = weights.panel(panel, block.clone(), room);
                        for (number, numbers) in row[block].iter_mut().zip(numbers.chunks_exact(WIDTH)) {
                            *number = numbers[lane];
                        }
                    }
                });
        }
        Tensor::from_vec(rows, (ids.len(), inputs), &Device::Cpu)
    }

    /// The numbers of a weight packed as bf16.
    pub(crate) fn pairs(&self) -> Option<&[Pairs]> {
        match &*self.numbers {
            Numbers::F32(_) | Numbers::Quantized(_) => None,
            Numbers::Bf16(pairs) => Some(pairs),
        }
    }

    /// The weight as a product multiplies it.
    pub(crate) fn operand(&self) -> Operand<'_> {
        match &*self.numbers {
            Numbers::Bf16(pairs) => Operand::Pairs(Right::packed(pairs, self.dims())),
            Numbers::Quantized(quantized) if quantized.integers => Operand::Integers(quantized),
            Numbers::F32(_) | Numbers::Quantized(_) => Operand::F32(self.weights()),
        }
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        Weights {
            outputs: self.outputs,
            inputs: self.inputs,
            numbers: match &*self.numbers {
                Numbers::F32(numbers) => Layout::F32(numbers),
                Numbers::Bf16(numbers) => Layout::Bf16(numbers),
                Numbers::Quantized(numbers) => Layout::Quantized(numbers),
            },
        }
    }
}

/// A packed weight as a product multiplies it.
pub(crate) enum Operand<'a> {
    F32(Weights<'a>),
    Pairs(Right<'a>),
    Integers(&'a Quantized),
}

/// The blocks that inputs are cut into.
pub(crate) fn blocks(inputs: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = inputs.end;
    inputs
        .step_by(DEPTH)
        .map(move |first| first..end.min(first + DEPTH))
}

/// Neighbouring panels that meet the same rows: the first and how many, `together` as long as there are so many left, then
/// two, then one.
#[inline]
pub(crate) fn neighbours(panels: usize, together: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let count = match panels - first {
            0 => return None,
            rest if rest >= together => together,
            rest if rest >= 2 => 2,
            _ => 1,
        };
        first += count;
        Some((first - count, count))
    })
}

/// Rows in parts of at most `most`, as even as can be.
#[inline]
pub(crate) fn parts(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(most);
    (0..count).map(move |index| rows * index / count..rows * (index + 1) / count)
}

/// Rows of a result, made in parallel over strips of columns: `work` gets a strip's first panel and each row's part.
pub(crate) fn in_strips(
    rows: usize,
    columns: usize,
    work: impl Fn(usize, Vec<&mut [f32]>) + Sync,
) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    let width = columns
        .div_ceil(4 * rayon::current_num_threads())
        .next_multiple_of(2 * WIDTH)
        .max(2 * WIDTH);
    let mut strips: Vec<Vec<&mut [f32]>> = vec![];
    strips.resize_with(columns.div_ceil(width), || Vec::with_capacity(rows));
    for row in out.chunks_exact_mut(columns.max(1)) {
        for (strip, piece) in strips.iter_mut().zip(row.chunks_mut(width)) {
            strip.push(piece);
        }
    }
    strips
        .into_par_iter()
        .enumerate()
        .for_each(|(strip, out)| work(strip * width / WIDTH, out));
    out
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
    Bf16(&'a [Pairs]),
    Quantized(&'a Quantized),
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
        let panels = self.outputs.div_ceil(WIDTH);
        match self.numbers {
            Layout::F32(numbers) => return &numbers[block.start * panels * WIDTH + panel * size..][..size],
            Layout::Bf16(numbers) => {
                room.resize(DEPTH * WIDTH, 0.0);
                let half = depth.div_ceil(2);
                let pairs = &numbers[block.start / 2 * panels + panel * half..][..half];
                for (numbers, Pairs(pairs)) in room.chunks_exact_mut(2 * WIDTH).zip(pairs) {
                    let (first, second) = numbers.split_at_mut(WIDTH);
                    for lane in 0..WIDTH {
                        (first[lane], second[lane]) = apart(pairs[lane]);
                    }
                }
            }
            Layout::Quantized(quantized) => {
                room.resize(DEPTH * WIDTH, 0.0);
                quantized.expand(panel, block, room);
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
}

/// A weight in the packed order: for a block of `depth` inputs each panel has `size(depth)` elements, which `fill` makes.
pub(crate) fn pack<T: Clone + Default + Send>(
    (outputs, inputs): (usize, usize),
    size: impl Fn(usize) -> usize,
    fill: impl Fn(usize, Range<usize>, &mut [T]) + Sync,
) -> Vec<T> {
    let panels = outputs.div_ceil(WIDTH);
    let total = blocks(0..inputs).map(|block| panels * size(block.len())).sum();
    let mut packed = vec![T::default(); total];
    let mut rest = packed.as_mut_slice();
    for block in blocks(0..inputs) {
        let size = size(block.len());
        let (here, behind) = rest.split_at_mut(panels * size);
        here.par_chunks_exact_mut(size)
            .enumerate()
            .for_each(|(panel, target)| fill(panel, block.clone(), target));
        rest = behind;
    }
    packed
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
            assert_eq!(
                2 * half.bytes(),
                packed
                    .bytes()
                    .max(4 * outputs.next_multiple_of(16) * inputs.next_multiple_of(2))
            );
            let expected = weight.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
            assert_close(&half.tensor()?, &expected, 0.0);
        }
        Ok(())
    }

    #[test]
    fn panels_and_rows_are_all_met_once() {
        let panels = |panels, together| neighbours(panels, together).collect::<Vec<_>>();
        assert_eq!(panels(7, 4), [(0, 4), (4, 2), (6, 1)]);
        assert_eq!(panels(5, 2), [(0, 2), (2, 2), (4, 1)]);
        assert_eq!(panels(0, 2), []);
        assert_eq!(parts(13, 6).collect::<Vec<_>>(), [0..4, 4..8, 8..13]);
        assert_eq!(parts(0, 6).count(), 0);
    }

    #[test]
    fn other_types_are_refused() {
        assert!(Packed::new(&noise(1, &[2, 2]), DType::F16).is_err());
        assert!(Packed::new(&noise(1, &[4]), DType::F32).is_err());
    }

    #[test]
    fn as_integers_a_weight_is_in_blocks_where_its_rows_fill_them() -> Result<()> {
        let weight = noise(1, &[20, 96]);
        let packed = Packed::new(&weight, DType::U8)?;
        assert!(matches!(packed.operand(), Operand::Integers(_)));
        assert_close(&packed.tensor()?, &weight, 0.5001 / 127.0 + 1e-3);
        let odd = Packed::new(&noise(1, &[20, 97]), DType::U8)?;
        assert!(matches!(odd.operand(), Operand::F32(_)));
        Ok(())
    }
}
