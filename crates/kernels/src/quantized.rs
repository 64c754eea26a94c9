//! Weights in the blocks of a GGUF file, in the order in which the product reads them.
//!
//! A block gives some neighbouring numbers of a row one scale and keeps each as an integer of a few bits. Here the blocks
//! of a panel's [`WIDTH`] outputs lie together as a record: their scales side by side, then their integers, four inputs of
//! an output side by side, so that for the panel they are [`GROUP`] bytes; where an integer is a nibble, four more inputs
//! lie in the upper halves. A product in f32 expands a panel's records, [`DEPTH`] inputs at a time, and multiplies from
//! there, or for one row in registers: it reads the records once, front to back, and its bits are those of the dequantized
//! weight. A product in integers (`int8.rs`) takes them as they are.
//!
//! | type | bits a number, in the file and here |
//! |---|---|
//! | Q8_0 | 8.5, 8.5 |
//! | Q4_0, Q4_1 | 4.5, 4.5 and 5, 5 |
//! | Q5_0, Q5_1 | 5.5, 8.5 and 6, 9: integers of 5 bits take a byte |
//! | Q4_K | 4.5, 6: scales and minima multiplied out, as f32 |
//! | Q5_K, Q6_K | 5.5, 10 and 6.6, 10: both of it |
//!
//! How the blocks lie in a file is described at <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.
//!
//! [`DEPTH`]: crate::packed::DEPTH

use std::ops::Range;

use candle_core::quantized::GgmlDType;
use candle_core::{Result, bail};
use pulp::Simd;

use crate::packed::{WIDTH, pack};

/// The most inputs of a record.
const INPUTS: usize = 32;
/// Bytes that hold a panel's integers of four inputs, or of eight where they are nibbles.
pub(crate) const GROUP: usize = 4 * WIDTH;

/// How the records of a weight are laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// Inputs of a record.
    pub(crate) inputs: usize,
    /// Whether an integer is 4 bits; else it is 8.
    pub(crate) nibbles: bool,
    /// Whether numbers are counted from a minimum of the block; else from zero.
    pub(crate) least: bool,
    /// Whether scales and minima are f32; else f16.
    pub(crate) wide: bool,
}

impl Form {
    fn of(kind: GgmlDType) -> Option<Self> {
        use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        matches!(kind, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4K | Q5K | Q6K).then(|| Self {
            inputs: if kind == Q6K { INPUTS / 2 } else { INPUTS },
            nibbles: matches!(kind, Q4_0 | Q4_1 | Q4K),
            least: matches!(kind, Q4_1 | Q5_1 | Q4K | Q5K),
            wide: matches!(kind, Q4K | Q5K | Q6K),
        })
    }

    /// What stands for zero: integers are unsigned.
    pub(crate) const fn zero(self) -> u8 {
        zero(self.nibbles, self.least)
    }

    /// Bytes of a scale.
    fn scale(self) -> usize {
        if self.wide { 4 } else { 2 }
    }

    /// Bytes of the scales and minima of a record.
    pub(crate) fn head(self) -> usize {
        WIDTH * self.scale() * (1 + usize::from(self.least))
    }

    /// Bytes of a record.
    pub(crate) fn bytes(self) -> usize {
        self.head() + self.inputs * WIDTH / (1 + usize::from(self.nibbles))
    }

    /// Puts what a block's part says of one output into its place in the record.
    fn put(self, part: &Part, lane: usize, record: &mut [u8]) {
        let (head, codes) = record.split_at_mut(self.head());
        let size = self.scale();
        head[lane * size..][..size].copy_from_slice(&part.scale[..size]);
        if self.least {
            head[(WIDTH + lane) * size..][..size].copy_from_slice(&part.least[..size]);
        }
        for (input, code) in part.codes[..self.inputs].iter().enumerate() {
            let (word, byte) = (input / 4, 4 * lane + input % 4);
            if self.nibbles {
                codes[word / 2 * GROUP + byte] |= code << (4 * (word % 2));
            } else {
                codes[word * GROUP + byte] = *code;
            }
        }
    }

    /// The numbers of a record, [`WIDTH`] for each input.
    #[inline(always)]
    fn expand(self, record: &[u8], numbers: &mut [f32]) {
        let (head, codes) = record.split_at(self.head());
        let scale = self.scales(head);
        if self.least {
            let least = self.scales(&head[head.len() / 2..]);
            if self.nibbles {
                fill::<true, true>(codes, scale, least, numbers);
            } else {
                fill::<false, true>(codes, scale, least, numbers);
            }
        } else if self.nibbles {
            fill::<true, false>(codes, scale, scale, numbers);
        } else {
            fill::<false, false>(codes, scale, scale, numbers);
        }
    }

    #[inline(always)]
    pub(crate) fn scales(self, head: &[u8]) -> [f32; WIDTH] {
        let mut scales = [0.0; WIDTH];
        if self.wide {
            for (scale, bytes) in scales.iter_mut().zip(head.as_chunks().0) {
                *scale = f32::from_le_bytes(*bytes);
            }
        } else {
            for (scale, bytes) in scales.iter_mut().zip(head.as_chunks().0) {
                *scale = widened(u16::from_le_bytes(*bytes));
            }
        }
        scales
    }
}

/// Puts a record's numbers where the product reads them.
#[inline(always)]
fn fill<const NIBBLES: bool, const LEAST: bool>(
    codes: &[u8],
    scale: [f32; WIDTH],
    least: [f32; WIDTH],
    numbers: &mut [f32],
) {
    let numbers = numbers.as_chunks_mut::<WIDTH>().0;
    let groups = numbers.chunks_exact_mut(held(NIBBLES)).zip(codes.as_chunks().0);
    for (numbers, group) in groups {
        let words = words(group);
        for (input, numbers) in numbers.iter_mut().enumerate() {
            *numbers = dequantized::<NIBBLES, LEAST>(&words, input, &scale, &least);
        }
    }
}

/// What stands for zero.
const fn zero(nibbles: bool, least: bool) -> u8 {
    match (least, nibbles) {
        (true, _) => 0,
        (false, true) => 8,
        (false, false) => 128,
    }
}

/// Inputs of which a group has the integers.
pub(crate) const fn held(nibbles: bool) -> usize {
    if nibbles { 8 } else { 4 }
}

/// Each output's bytes of a group.
#[inline(always)]
pub(crate) fn words(group: &[u8; GROUP]) -> [u32; WIDTH] {
    let mut words = [0; WIDTH];
    for (word, bytes) in words.iter_mut().zip(group.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// How far in its word the integer of an input of a group is, and how much of it.
#[inline(always)]
pub(crate) fn place(nibbles: bool, input: usize) -> (usize, u32) {
    (8 * (input % 4) + input / 4 * 4, if nibbles { 15 } else { 255 })
}

/// The numbers of one input of a group: `scale * integer`, or `scale * integer + least`, rounded twice as dequantizing does.
#[inline(always)]
fn dequantized<const NIBBLES: bool, const LEAST: bool>(
    words: &[u32; WIDTH],
    input: usize,
    scale: &[f32; WIDTH],
    least: &[f32; WIDTH],
) -> [f32; WIDTH] {
    let (shift, mask) = place(NIBBLES, input);
    let zero = i32::from(zero(NIBBLES, LEAST));
    let mut numbers = [0.0; WIDTH];
    for lane in 0..WIDTH {
        let integer = (words[lane] >> shift & mask).cast_signed() - zero;
        let number = integer as f32 * scale[lane];
        numbers[lane] = if LEAST { number + least[lane] } else { number };
    }
    numbers
}

/// The f16 number of these bits, exactly.
#[inline(always)]
fn widened(bits: u16) -> f32 {
    const MOVED: f32 = f32::from_bits((127 + 127 - 15) << 23); // by so much the two types' exponents differ
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff) << 13);
    let finite = (f32::from_bits(rest) * MOVED).to_bits();
    let magnitude = if bits & 0x7c00 == 0x7c00 {
        rest | 0x7f80_0000
    } else {
        finite
    };
    f32::from_bits(magnitude | sign)
}

/// What a record has of one output: scale and minimum in their first bytes, and an integer for each input.
#[derive(Default)]
struct Part {
    scale: [u8; 4],
    least: [u8; 4],
    codes: [u8; INPUTS],
}

impl Part {
    /// Takes part `index` out of a block of a file.
    fn read(kind: GgmlDType, block: &[u8], index: usize) -> Self {
        match kind {
            GgmlDType::Q4K | GgmlDType::Q5K => Self::read_k(kind, block, index),
            GgmlDType::Q6K => Self::read_q6_k(block, index),
            _ => Self::read_plain(kind, block),
        }
    }

    /// Blocks of 32 with a scale, perhaps a minimum and perhaps a fifth bit of each number apart.
    fn read_plain(kind: GgmlDType, block: &[u8]) -> Self {
        let mut part = Self::default();
        let (scale, rest) = block.split_at(2);
        part.scale[..2].copy_from_slice(scale);
        let (least, rest) = rest.split_at(if matches!(kind, GgmlDType::Q4_1 | GgmlDType::Q5_1) {
            2
        } else {
            0
        });
        part.least[..least.len()].copy_from_slice(least);
        if kind == GgmlDType::Q8_0 {
            part.codes = std::array::from_fn(|input| rest[input].wrapping_add(128));
            return part;
        }
        let (fifths, nibbles) = rest.split_at(rest.len() - INPUTS / 2);
        for (input, code) in part.codes.iter_mut().enumerate() {
            *code = nibbles[input % 16] >> (4 * (input / 16)) & 15;
            if !fifths.is_empty() {
                *code |= (fifths[input / 8] >> (input % 8) & 1) << 4;
            }
            if kind == GgmlDType::Q5_0 {
                *code += 128 - 16;
            }
        }
        part
    }

    /// One of the 8 parts of a block of 256, which have a scale and a minimum of 6 bits each.
    fn read_k(kind: GgmlDType, block: &[u8], index: usize) -> Self {
        let (head, rest) = block.split_at(16);
        let (scales, fifths) = (&head[4..], &rest[..INPUTS]);
        let (scale, least) = if index < 4 {
            (scales[index] & 63, scales[index + 4] & 63)
        } else {
            let (both, first, second) = (scales[index + 4], scales[index - 4], scales[index]);
            (both & 15 | first >> 6 << 4, both >> 4 | second >> 6 << 4)
        };
        let times = |at: usize, factor: u8| half(&head[at..]) * f32::from(factor);
        let nibbles = if kind == GgmlDType::Q5K {
            &rest[INPUTS..]
        } else {
            rest
        };
        let mut part = Self {
            scale: times(0, scale).to_le_bytes(),
            least: (-times(2, least)).to_le_bytes(),
            ..Self::default()
        };
        for (input, code) in part.codes.iter_mut().enumerate() {
            *code = nibbles[index / 2 * INPUTS + input] >> (4 * (index % 2)) & 15;
            if kind == GgmlDType::Q5K {
                *code |= (fifths[input] >> index & 1) << 4;
            }
        }
        part
    }

    /// One of the 16 parts of a block of 256 numbers of 6 bits, which have a scale of 8 bits.
    fn read_q6_k(block: &[u8], index: usize) -> Self {
        let (nibbles, rest) = block.split_at(128);
        let (uppers, rest) = rest.split_at(64);
        let scale = half(&rest[16..]) * f32::from(rest[index].cast_signed());
        let mut part = Self {
            scale: scale.to_le_bytes(),
            ..Self::default()
        };
        let (side, quarter) = (index / 8, index % 8 / 2);
        for input in 0..INPUTS / 2 {
            let at = index % 2 * 16 + input;
            let lower = nibbles[side * 64 + quarter % 2 * 32 + at] >> (4 * (quarter / 2)) & 15;
            let upper = uppers[side * 32 + at] >> (2 * quarter) & 3;
            part.codes[input] = (lower | upper << 4) + (128 - 32);
        }
        part
    }
}

/// The f16 number that bytes begin with.
fn half(bytes: &[u8]) -> f32 {
    widened(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Whether weights in blocks of this type are multiplied as they are.
pub(crate) fn known(kind: GgmlDType) -> bool {
    Form::of(kind).is_some()
}

/// A weight in records.
#[derive(Debug)]
pub(crate) struct Quantized {
    form: Form,
    outputs: usize,
    /// Whether a product is one of integers.
    pub(crate) integers: bool,
    records: Vec<u8>,
}

impl Quantized {
    /// Puts the blocks of a weight `[n,k]`, row by row as a file has them, in order.
    ///
    /// # Errors
    /// Another type, rows that do not fill blocks, or another number of bytes.
    pub(crate) fn new(
        kind: GgmlDType,
        blocks: &[u8],
        (outputs, inputs): (usize, usize),
        integers: bool,
    ) -> Result<Self> {
        let (numbers, bytes) = (kind.block_size(), kind.type_size());
        let Some(form) = Form::of(kind).filter(|_| inputs.is_multiple_of(numbers)) else {
            bail!(
                "rows of {inputs} numbers in blocks of {numbers} of {kind:?} are not multiplied as they are"
            )
        };
        let row = (inputs / numbers).saturating_mul(bytes);
        if outputs.saturating_mul(row) != blocks.len() {
            bail!(
                "expected {outputs} rows of {row} bytes of {kind:?}, found {} bytes",
                blocks.len()
            )
        }
        let parts = numbers / form.inputs;
        let fill = |panel: usize, range: Range<usize>, target: &mut [u8]| {
            let records = target.chunks_exact_mut(form.bytes());
            for (record, part) in records.zip(range.start / form.inputs..) {
                for lane in 0..WIDTH.min(outputs - panel * WIDTH) {
                    let start = (panel * WIDTH + lane) * row + part / parts * bytes;
                    let block = &blocks[start..start + bytes];
                    form.put(&Part::read(kind, block, part % parts), lane, record);
                }
            }
        };
        let size = |depth: usize| depth / form.inputs * form.bytes();
        Ok(Self {
            form,
            outputs,
            integers,
            records: pack((outputs, inputs), size, fill),
        })
    }

    /// Bytes that the records take.
    pub(crate) fn bytes(&self) -> usize {
        self.records.len()
    }

    /// The numbers of a panel for a block of inputs, [`WIDTH`] for each input, as they are multiplied.
    #[inline(always)]
    pub(crate) fn expand(&self, panel: usize, block: Range<usize>, numbers: &mut [f32]) {
        let steps = numbers.chunks_exact_mut(self.form.inputs * WIDTH);
        for (record, numbers) in self.records(panel, block).zip(steps) {
            self.form.expand(record, numbers);
        }
    }

    /// Adds the products of one row's inputs with two neighbouring panels to `sums`, in the order in which those of
    /// expanded numbers are added; `C` vectors make a panel's width. One row is too few to expand numbers for.
    #[inline(always)]
    pub(crate) fn add_row<S: Simd, const C: usize>(
        &self,
        simd: S,
        x: &[f32],
        panel: usize,
        block: Range<usize>,
        sums: &mut [[S::f32s; C]; 2],
    ) {
        match (self.form.nibbles, self.form.least) {
            (false, false) => self.add::<S, C, false, false>(simd, x, panel, block, sums),
            (false, true) => self.add::<S, C, false, true>(simd, x, panel, block, sums),
            (true, false) => self.add::<S, C, true, false>(simd, x, panel, block, sums),
            (true, true) => self.add::<S, C, true, true>(simd, x, panel, block, sums),
        }
    }

    #[inline(always)]
    fn add<S: Simd, const C: usize, const NIBBLES: bool, const LEAST: bool>(
        &self,
        simd: S,
        x: &[f32],
        panel: usize,
        block: Range<usize>,
        sums: &mut [[S::f32s; C]; 2],
    ) {
        let form = self.form;
        let records = self.records(panel, block.clone());
        let records = records.zip(self.records(panel + 1, block));
        for ((one, other), x) in records.zip(x.chunks_exact(form.inputs)) {
            let [one, other] = [one, other].map(|record| record.split_at(form.head()));
            let heads = [one.0, other.0];
            let scales = heads.map(|head| form.scales(head));
            let least = if LEAST {
                heads.map(|head| form.scales(&head[head.len() / 2..]))
            } else {
                scales
            };
            let groups = one.1.as_chunks().0.iter().zip(other.1.as_chunks().0);
            for ((one, other), x) in groups.zip(x.chunks_exact(held(NIBBLES))) {
                let words = [words(one), words(other)];
                for (input, &x) in x.iter().enumerate() {
                    let x = simd.splat_f32s(x);
                    for panel in 0..2 {
                        let numbers = dequantized::<NIBBLES, LEAST>(
                            &words[panel],
                            input,
                            &scales[panel],
                            &least[panel],
                        );
                        let weights: [S::f32s; C] = S::as_simd_f32s(&numbers).0.as_chunks().0[0];
                        for c in 0..C {
                            sums[panel][c] = simd.mul_add_e_f32s(weights[c], x, sums[panel][c]);
                        }
                    }
                }
            }
        }
    }

    /// How a record is laid out.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// The records of some neighbouring panels for a block of inputs, panel after panel.
    #[inline(always)]
    pub(crate) fn panels(&self, first: usize, count: usize, block: Range<usize>) -> &[u8] {
        let each = block.len() / self.form.inputs;
        let start = block.start / self.form.inputs * self.outputs.div_ceil(WIDTH) + first * each;
        let bytes = self.form.bytes();
        &self.records[start * bytes..(start + count * each) * bytes]
    }

    /// The records of a panel for a block of inputs.
    #[inline(always)]
    fn records(&self, panel: usize, block: Range<usize>) -> impl Iterator<Item = &[u8]> {
        self.panels(panel, 1, block).chunks_exact(self.form.bytes())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::ggml_file::qtensor_from_ggml;
    use candle_core::{DType, Device, Tensor, Var};

    use super::*;
    use crate::fixtures::{assert_close, noise, quantized};
    use crate::{Packed, product_packed, product_packed_composed};

    use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    const KINDS: [GgmlDType; 8] = [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K];

    /// Outputs and inputs with every kind of rest: of panels, of strips and of blocks of inputs.
    fn shapes(kind: GgmlDType) -> &'static [[usize; 2]] {
        if kind.block_size() == 256 {
            &[[1, 256], [50, 768]]
        } else {
            &[[1, 32], [16, 256], [17, 288], [70, 576]]
        }
    }

    fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
        let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
        // Which not-a-number it is may differ.
        Ok(numbers
            .iter()
            .map(|number| {
                if number.is_nan() {
                    u32::MAX
                } else {
                    number.to_bits()
                }
            })
            .collect())
    }

    #[test]
    fn every_half_is_widened_exactly() -> Result<()> {
        let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let expected = Tensor::from_raw_buffer(&halves, DType::F16, &[1 << 16], &Device::Cpu)?;
        let found: Vec<f32> = (0..=u16::MAX).map(widened).collect();
        let found = Tensor::new(found, &Device::Cpu)?;
        assert_eq!(bits(&found)?, bits(&expected.to_dtype(DType::F32)?)?);
        Ok(())
    }

    #[test]
    fn numbers_are_those_that_candle_dequantizes() -> Result<()> {
        for kind in KINDS {
            for shape in shapes(kind) {
                let (packed, expected) = quantized(1, shape, kind, DType::F32)?;
                assert_eq!(packed.dims(), (shape[0], shape[1]));
                assert_eq!(bits(&packed.tensor()?)?, bits(&expected)?, "{kind:?} {shape:?}");
                let (packed, _) = quantized(1, shape, kind, DType::U8)?;
                assert_eq!(bits(&packed.tensor()?)?, bits(&expected)?, "{kind:?} {shape:?}");
                let last = shape[0] - 1;
                let ids = [last as u32, 0, last as u32 / 2];
                let rows = expected.index_select(&Tensor::new(&ids, &Device::Cpu)?, 0)?;
                assert_eq!(bits(&packed.rows(&ids)?)?, bits(&rows)?);
                assert!(packed.rows(&[shape[0] as u32]).is_err());
            }
        }
        Ok(())
    }

    /// Bytes that no quantiser writes: scales that are infinite, not a number, negative or below the normal ones.
    #[test]
    fn any_bytes_are_numbers() -> Result<()> {
        for kind in KINDS {
            let [outputs, inputs] = [40, 512];
            let count = outputs * inputs / kind.block_size() * kind.type_size();
            let blocks: Vec<u8> = (0..count as u32)
                .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            let expected = qtensor_from_ggml(kind, &blocks, vec![outputs, inputs], &Device::Cpu)?;
            let packed = Packed::quantized(kind, &blocks, (outputs, inputs), DType::F32)?;
            let expected = expected.dequantize(&Device::Cpu)?;
            assert_eq!(bits(&packed.tensor()?)?, bits(&expected)?, "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn products_are_those_of_the_dequantized_weight() -> Result<()> {
        for kind in KINDS {
            for shape in shapes(kind) {
                let (packed, weight) = quantized(2, shape, kind, DType::F32)?;
                let plain = Packed::new(&weight, DType::F32)?;
                let integers = quantized(2, shape, kind, DType::U8)?.0;
                for rows in (1..10).chain([40]) {
                    let x = noise(3, &[rows, shape[1]]);
                    let found = product_packed(&x, &packed)?;
                    assert_close(&found, &product_packed_composed(&x, &packed)?, 1e-5);
                    let expected = product_packed(&x, &plain)?;
                    assert_eq!(bits(&found)?, bits(&expected)?, "{kind:?} {shape:?} {rows}");
                    let found = product_packed(&x, &integers)?;
                    assert_close(&found, &product_packed_composed(&x, &integers)?, 1e-5);
                    assert_close(&found, &expected, 0.02);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_the_dequantized_weight() -> Result<()> {
        for dtype in [DType::F32, DType::U8] {
            let (packed, weight) = quantized(4, &[37, 288], Q4_0, dtype)?;
            let (plain, weigh) = (Packed::new(&weight, DType::F32)?, noise(6, &[7, 37]).detach());
            let gradient = |weight: &Packed| -> Result<Tensor> {
                let x: Var = noise(5, &[7, 288]);
                let gradients = (product_packed(&x, weight)? * &weigh)?.sum_all()?.backward()?;
                Ok(gradients.get(&x).expect("a gradient").clone())
            };
            assert_close(&gradient(&packed)?, &gradient(&plain)?, 1e-5);
        }
        Ok(())
    }

    #[test]
    fn bytes_are_about_those_of_the_file() -> Result<()> {
        for (kind, expected) in KINDS.into_iter().zip([8.5, 4.5, 5.0, 8.5, 9.0, 6.0, 10.0, 10.0]) {
            let (packed, _) = quantized(6, &[32, 512], kind, DType::F32)?;
            assert_eq!(packed.bytes() as f64 * 8.0 / (32.0 * 512.0), expected, "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let message = |kind, bytes: usize, dims, dtype| {
            Packed::quantized(kind, &vec![0; bytes], dims, dtype)
                .map(drop)
                .unwrap_err()
                .to_string()
        };
        assert!(message(Q8_0, 33, (1, 32), DType::F32).contains("1 rows of 34 bytes of Q8_0, found 33"));
        assert!(message(Q8_0, 34, (1, 33), DType::F32).contains("rows of 33 numbers in blocks of 32"));
        assert!(message(Q4K, 18, (1, 32), DType::F32).contains("in blocks of 256"));
        assert!(message(GgmlDType::F16, 64, (1, 32), DType::F32).contains("F16"));
        assert!(message(Q8_0, 34, (1, 32), DType::F16).contains("not as F16"));
        assert!(message(Q8_0, 0, (usize::MAX, 1 << 40), DType::F32).contains("found 0 bytes"));
    }
}
