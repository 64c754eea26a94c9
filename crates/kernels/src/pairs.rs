//! Numbers rounded to bf16, two and two, as an instruction that multiplies pairs takes them.
//!
//! A product of pairs sums over its inner size two steps at a time. Its left operand is [`Left`]: rows of pairs. Its
//! right operand, [`Right`], is read in panels of [`WIDTH`] columns, each a list of [`Pairs`]; [`Right::panels`] makes
//! them out of whatever lies there: a packed weight, the same seen from its outputs, or plain rows of f32. A part of a product is
//! a [`Strip`].

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::lanes;
use crate::packed::{DEPTH, WIDTH};
use crate::slices::BLOCK;

/// Numbers of two steps for each column of a panel: the first in the lower halves, the second in the upper ones.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub(crate) struct Pairs(pub(crate) [u32; WIDTH]);

/// The bits of the bf16 number next to `number`, ties to even. NaN stays NaN.
#[inline(always)]
pub(crate) fn rounded(number: f32) -> u16 {
    let bits = number.to_bits();
    let next = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if number.is_nan() { bits >> 16 | 0x40 } else { next }) as u16
}

/// Two numbers as a pair.
#[inline(always)]
pub(crate) fn pair(first: f32, second: f32) -> u32 {
    u32::from(rounded(first)) | u32::from(rounded(second)) << 16
}

/// The numbers of a pair.
#[inline(always)]
pub(crate) fn apart(pair: u32) -> (f32, f32) {
    (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
}

/// The numbers rounded to bf16, held in f32.
pub(crate) fn round(numbers: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; numbers.len()];
    out.par_chunks_mut(BLOCK)
        .zip(numbers.par_chunks(BLOCK))
        .for_each(|(out, numbers)| lanes::run(Round { numbers, out }));
    out
}

struct Round<'a> {
    numbers: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (out, &number) in self.out.iter_mut().zip(self.numbers) {
            *out = f32::from_bits(u32::from(rounded(number)) << 16);
        }
    }
}

/// The left operand of a product.
#[derive(Default)]
pub(crate) struct Left {
    pairs: Vec<u32>,
    /// From one row to the next: an odd number of cache lines, so that neighbouring rows do not fight for one place.
    stride: usize,
}

/// Pairs of a cache line.
const LINE: usize = 16;
/// Columns that become rows together.
const TURNED: usize = 32;

impl Left {
    /// The rows of a matrix with `inner` columns.
    pub(crate) fn of_rows(numbers: &[f32], inner: usize) -> Self {
        let mut left = Self::default();
        left.reshape(numbers.len() / inner, inner);
        let (rows, stride) = ((BLOCK / inner).max(1), left.stride);
        left.pairs
            .par_chunks_mut(rows * stride)
            .zip(numbers.par_chunks(rows * inner))
            .for_each(|(pairs, numbers)| {
                lanes::run(PairRows {
                    numbers,
                    inner,
                    pairs,
                    stride,
                });
            });
        left
    }

    /// The columns of a matrix with `columns` of them.
    pub(crate) fn of_columns(numbers: &[f32], columns: usize) -> Self {
        let mut left = Self::default();
        left.reshape(columns, numbers.len() / columns);
        let stride = left.stride;
        left.pairs
            .par_chunks_mut(TURNED * stride)
            .enumerate()
            .for_each(|(index, pairs)| {
                lanes::run(PairColumns {
                    numbers,
                    columns,
                    first: index * TURNED,
                    pairs,
                    stride,
                });
            });
        left
    }

    /// [`Left::of_rows`] in the same memory and by this thread alone.
    pub(crate) fn take_rows(&mut self, numbers: &[f32], inner: usize) {
        self.reshape(numbers.len() / inner, inner);
        lanes::run(PairRows {
            numbers,
            inner,
            pairs: &mut self.pairs,
            stride: self.stride,
        });
    }

    /// [`Left::of_columns`] in the same memory and by this thread alone.
    pub(crate) fn take_columns(&mut self, numbers: &[f32], columns: usize) {
        self.reshape(columns, numbers.len() / columns);
        for (index, pairs) in self.pairs.chunks_mut(TURNED * self.stride).enumerate() {
            lanes::run(PairColumns {
                numbers,
                columns,
                first: index * TURNED,
                pairs,
                stride: self.stride,
            });
        }
    }

    fn reshape(&mut self, rows: usize, inner: usize) {
        let lines = inner.div_ceil(2).div_ceil(LINE);
        self.stride = (lines + usize::from(lines.is_multiple_of(2))) * LINE;
        self.pairs.resize(rows * self.stride, 0);
    }

    /// The pairs from row `row` and pair `pair` on, and the distance of neighbouring rows.
    pub(crate) fn from(&self, row: usize, pair: usize) -> (&[u32], usize) {
        (&self.pairs[row * self.stride + pair..], self.stride)
    }
}

struct PairRows<'a> {
    numbers: &'a [f32],
    inner: usize,
    pairs: &'a mut [u32],
    stride: usize,
}

impl WithSimd for PairRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.numbers.chunks_exact(self.inner);
        for (numbers, pairs) in rows.zip(self.pairs.chunks_exact_mut(self.stride)) {
            pair_up(numbers, pairs);
        }
    }
}

/// Pairs of neighbours; the last number of an odd count is paired with zero.
#[inline(always)]
fn pair_up(numbers: &[f32], pairs: &mut [u32]) {
    let (neighbours, last) = numbers.as_chunks::<2>();
    for (pairs, &[first, second]) in pairs.iter_mut().zip(neighbours) {
        *pairs = pair(first, second);
    }
    if let &[last] = last {
        pairs[neighbours.len()] = pair(last, 0.0);
    }
}

struct PairColumns<'a> {
    numbers: &'a [f32],
    columns: usize,
    /// The column that is the first row of `pairs`.
    first: usize,
    pairs: &'a mut [u32],
    stride: usize,
}

impl WithSimd for PairColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let count = self.pairs.len() / self.stride;
        let mut line = [0; TURNED];
        for (index, numbers) in self.numbers.chunks(2 * self.columns).enumerate() {
            let first = &numbers[self.first..][..count];
            if numbers.len() > self.columns {
                let second = &numbers[self.columns + self.first..][..count];
                for ((line, &first), &second) in line.iter_mut().zip(first).zip(second) {
                    *line = pair(first, second);
                }
            } else {
                for (line, &first) in line.iter_mut().zip(first) {
                    *line = pair(first, 0.0);
                }
            }
            for (row, &line) in line[..count].iter().enumerate() {
                self.pairs[row * self.stride + index] = line;
            }
        }
    }
}

/// The right operand of a product: `inner x outputs`, however it lies.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) outputs: usize,
    pub(crate) inner: usize,
    numbers: Source<'a>,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    /// A packed weight of as many outputs and inputs.
    Packed(&'a [Pairs]),
    /// A packed weight whose inputs are the outputs here, and whose outputs are summed over.
    Turned(&'a [Pairs]),
    /// Rows `[outputs, inner]`.
    Rows(&'a [f32]),
    /// Rows `[inner, outputs]`.
    Columns(&'a [f32]),
}

impl<'a> Right<'a> {
    /// Rows of numbers, one an output, of so many outputs and inputs.
    pub(crate) fn rows(numbers: &'a [f32], (outputs, inner): (usize, usize)) -> Self {
        let numbers = Source::Rows(numbers);
        Self {
            outputs,
            inner,
            numbers,
        }
    }

    /// Rows of `outputs` numbers, one a step of the sum.
    pub(crate) fn columns(numbers: &'a [f32], outputs: usize) -> Self {
        Self {
            outputs,
            inner: numbers.len() / outputs,
            numbers: Source::Columns(numbers),
        }
    }

    /// A packed weight of so many outputs and inputs.
    pub(crate) fn packed(pairs: &'a [Pairs], (outputs, inner): (usize, usize)) -> Self {
        let numbers = Source::Packed(pairs);
        Self {
            outputs,
            inner,
            numbers,
        }
    }

    /// The same seen from its outputs.
    pub(crate) fn turned(pairs: &'a [Pairs], (inner, outputs): (usize, usize)) -> Self {
        let numbers = Source::Turned(pairs);
        Self {
            outputs,
            inner,
            numbers,
        }
    }

    /// The pairs of `count` panels from `first` on over one block of the inner size, panel after panel: where they lie,
    /// or made in `room`. Columns that there are not are zero.
    #[inline(always)]
    pub(crate) fn panels<'b>(
        &self,
        first: usize,
        count: usize,
        block: Range<usize>,
        room: &'b mut Vec<Pairs>,
    ) -> &'b [Pairs]
    where
        'a: 'b,
    {
        let size = block.len().div_ceil(2);
        if let Source::Packed(pairs) = self.numbers {
            let start = block.start / 2 * self.outputs.div_ceil(WIDTH) + first * size;
            return &pairs[start..start + count * size];
        }
        room.resize(2 * DEPTH, Pairs::default());
        for (panel, pairs) in room.chunks_exact_mut(size).take(count).enumerate() {
            self.fill(first + panel, block.clone(), pairs);
        }
        &room[..count * size]
    }

    /// Puts a panel's pairs of a block into `pairs`.
    #[inline(always)]
    pub(crate) fn fill(&self, panel: usize, block: Range<usize>, pairs: &mut [Pairs]) {
        let column = panel * WIDTH;
        match self.numbers {
            Source::Packed(_) => pairs.copy_from_slice(self.panels(panel, 1, block, &mut Vec::new())),
            Source::Turned(packed) => self.turn(packed, column, block, pairs),
            Source::Rows(rows) => self.gather(rows, column, block, pairs),
            Source::Columns(rows) => self.interleave(rows, column, block, pairs),
        }
    }

    /// A panel out of a weight that is packed the other way round: pairs of its inputs become pairs of its outputs.
    #[inline(always)]
    fn turn(&self, packed: &[Pairs], column: usize, block: Range<usize>, pairs: &mut [Pairs]) {
        let (panels, across) = (self.inner.div_ceil(WIDTH), column - column % DEPTH);
        let size = DEPTH.min(self.outputs - across).div_ceil(2);
        let start = across / 2 * panels + (column - across) / 2;
        let height = (WIDTH / 2).min(size - (column - across) / 2);
        for (panel, pairs) in pairs.chunks_mut(WIDTH / 2).enumerate() {
            let source = &packed[start + (block.start / WIDTH + panel) * size..][..height];
            pairs.fill(Pairs::default());
            for (index, Pairs(source)) in source.iter().enumerate() {
                for (Pairs(target), &[first, second]) in pairs.iter_mut().zip(source.as_chunks::<2>().0) {
                    target[2 * index] = first & 0xffff | second << 16;
                    target[2 * index + 1] = first >> 16 | second & 0xffff_0000;
                }
            }
        }
    }

    /// A panel out of rows of which each is a column of it.
    #[inline(always)]
    fn gather(&self, rows: &[f32], column: usize, block: Range<usize>, pairs: &mut [Pairs]) {
        let mut line = [0; DEPTH / 2];
        for lane in 0..WIDTH {
            let line = &mut line[..pairs.len()];
            if column + lane < self.outputs {
                pair_up(&rows[(column + lane) * self.inner..][block.clone()], line);
            } else {
                line.fill(0);
            }
            for (Pairs(pairs), &number) in pairs.iter_mut().zip(&*line) {
                pairs[lane] = number;
            }
        }
    }

    /// A panel out of rows that lie across it.
    #[inline(always)]
    fn interleave(&self, rows: &[f32], column: usize, block: Range<usize>, pairs: &mut [Pairs]) {
        for (Pairs(pairs), step) in pairs.iter_mut().zip(block.clone().step_by(2)) {
            let first = self.across(rows, column, step);
            let second = if step + 1 < block.end {
                self.across(rows, column, step + 1)
            } else {
                [0.0; WIDTH]
            };
            for lane in 0..WIDTH {
                pairs[lane] = pair(first[lane], second[lane]);
            }
        }
    }

    /// The part of row `step` in a panel.
    #[inline(always)]
    fn across(&self, rows: &[f32], column: usize, step: usize) -> [f32; WIDTH] {
        let row = &rows[step * self.outputs..][column..self.outputs];
        if let Some(whole) = row.first_chunk::<WIDTH>() {
            return *whole;
        }
        let mut edge = [0.0; WIDTH];
        edge[..row.len()].copy_from_slice(row);
        edge
    }
}

/// The products of some rows with some panels, which are columns of the result: what an instruction set is asked for.
pub(crate) struct Strip<'a, 'b> {
    pub(crate) left: &'a Left,
    pub(crate) right: Right<'a>,
    /// What of the inner size of `right` is summed over, from a multiple of [`WIDTH`] on: all that `left` has.
    pub(crate) inner: Range<usize>,
    /// The first row of `left`.
    pub(crate) row: usize,
    /// The first panel of `right`.
    pub(crate) panel: usize,
    /// Whether the products are added to what `out` holds.
    pub(crate) accumulate: bool,
    /// Each row's part of the result.
    pub(crate) out: &'a mut [&'b mut [f32]],
    /// Where panels are made.
    pub(crate) room: &'a mut Vec<Pairs>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_even() {
        let bits = |upper: u32, lower: u32| f32::from_bits(upper << 16 | lower);
        assert_eq!(rounded(bits(0x3f80, 0x8000)), 0x3f80);
        assert_eq!(rounded(bits(0x3f81, 0x8000)), 0x3f82);
        assert_eq!(rounded(bits(0x3f80, 0x8001)), 0x3f81);
        assert_eq!(rounded(-f32::INFINITY), 0xff80);
        assert!(f32::from_bits(u32::from(rounded(bits(0x7f80, 1))) << 16).is_nan());
    }
}
