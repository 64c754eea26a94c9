//! Products of integers by the instruction `vpdpbusd`, which adds four products of an unsigned and a signed number of 8 bits
//! to each of sixteen sums.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m512, __m512i, _mm256_loadu_si256, _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi32_ps,
    _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_srli_epi16,
};

use crate::avx512::{load, store};
use crate::int8::{Part, Strip};
use crate::packed::{WIDTH, blocks, neighbours, parts};
use crate::quantized::{Form, GROUP, held};

/// Rows that meet two panels at once: 12 sums in f32 and as many of integers, and 2 vectors of weights, of 32 registers.
const ROWS: usize = 6;
/// So few rows take four panels at once, or the sums would wait for each other.
const FEW: usize = 3;

/// Whether the machine has the instruction.
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Multiplies a strip.
///
/// # Panics
/// Where the machine lacks the instruction: a mistake in this crate.
pub(crate) fn multiply(mut strip: Strip) {
    assert!(available(), "a product by vpdpbusd on a machine without it");
    let form = strip.weight.form();
    // SAFETY: the assertion above: the machine has every feature that the functions are compiled for.
    #[allow(unsafe_code)]
    unsafe {
        match (form.nibbles, form.least) {
            (false, false) => multiply_here::<false, false>(&mut strip),
            (false, true) => multiply_here::<false, true>(&mut strip),
            (true, false) => multiply_here::<true, false>(&mut strip),
            (true, true) => multiply_here::<true, true>(&mut strip),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_here<const NIBBLES: bool, const MINIMA: bool>(strip: &mut Strip) {
    let (form, out) = (strip.weight.form(), &mut strip.out);
    let rows = out.len();
    let panels = out.first().map_or(0, |row| row.len().div_ceil(WIDTH));
    let together = if rows <= FEW { 4 } else { 2 };
    let (row_words, row_parts) = strip.activations.sizes;
    for block in blocks(0..strip.inputs) {
        for (panel, count) in neighbours(panels, together) {
            for rows in parts(rows, ROWS) {
                let tile = Tile {
                    form,
                    words: &strip.activations.words[rows.start * row_words + block.start / 4..],
                    parts: &strip.activations.parts[rows.start * row_parts + block.start / form.inputs..],
                    sizes: strip.activations.sizes,
                    depth: block.len() / form.inputs,
                    records: strip.weight.panels(strip.panel + panel, count, block.clone()),
                    column: panel * WIDTH,
                };
                match count {
                    4 => tile.few::<NIBBLES, MINIMA>(&mut out[rows]),
                    2 => tile.rows::<2, NIBBLES, MINIMA>(&mut out[rows]),
                    _ => tile.rows::<1, NIBBLES, MINIMA>(&mut out[rows]),
                }
            }
        }
    }
}

/// Some rows by some panels, over one block of inputs.
struct Tile<'a> {
    form: Form,
    /// The first row's activations from the block on.
    words: &'a [u32],
    /// What goes with them.
    parts: &'a [Part],
    /// Words and parts from one row to the next.
    sizes: (usize, usize),
    /// Records of a panel.
    depth: usize,
    /// Panel after panel.
    records: &'a [u8],
    /// Where in the rows of the result the first panel begins.
    column: usize,
}

impl Tile<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn few<const NIBBLES: bool, const MINIMA: bool>(&self, out: &mut [&mut [f32]]) {
        match out.len() {
            3 => self.add::<3, 4, NIBBLES, MINIMA>(out),
            2 => self.add::<2, 4, NIBBLES, MINIMA>(out),
            _ => self.add::<1, 4, NIBBLES, MINIMA>(out),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn rows<const P: usize, const NIBBLES: bool, const MINIMA: bool>(&self, out: &mut [&mut [f32]]) {
        match out.len() {
            6 => self.add::<6, P, NIBBLES, MINIMA>(out),
            5 => self.add::<5, P, NIBBLES, MINIMA>(out),
            4 => self.add::<4, P, NIBBLES, MINIMA>(out),
            3 => self.add::<3, P, NIBBLES, MINIMA>(out),
            2 => self.add::<2, P, NIBBLES, MINIMA>(out),
            _ => self.add::<1, P, NIBBLES, MINIMA>(out),
        }
    }

    /// Adds the products of `R` rows with `P` panels to the sums in `out`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add<const R: usize, const P: usize, const NIBBLES: bool, const MINIMA: bool>(
        &self,
        out: &mut [&mut [f32]],
    ) {
        let (row_words, row_parts) = self.sizes;
        let each = self.form.inputs / 4;
        let mut words: [&[u32]; R] = [&[]; R];
        let mut parts: [&[Part]; R] = [&[]; R];
        let mut sums = [[_mm512_setzero_ps(); P]; R];
        for r in 0..R {
            words[r] = &self.words[r * row_words..][..self.depth * each];
            parts[r] = &self.parts[r * row_parts..][..self.depth];
            for p in 0..P {
                sums[r][p] = load(&out[r][self.column + p * WIDTH..]);
            }
        }
        let (bytes, head) = (self.form.bytes(), self.form.head());
        let mut panels: [&[u8]; P] = [&[]; P];
        for p in 0..P {
            panels[p] = &self.records[p * self.depth * bytes..][..self.depth * bytes];
        }
        for part in 0..self.depth {
            // Loops and no closures: what is inlined into a closure is not compiled for the instructions.
            let mut records: [&[u8]; P] = [&[]; P];
            let mut codes: [&[[u8; GROUP]]; P] = [&[]; P];
            for p in 0..P {
                records[p] = &panels[p][part * bytes..][..bytes];
                codes[p] = records[p][head..].as_chunks().0;
            }
            let mut row: [&[u32]; R] = [&[]; R];
            let mut totals = [[_mm512_setzero_si512(); P]; R];
            for r in 0..R {
                row[r] = &words[r][part * each..][..each];
                totals[r] = [_mm512_set1_epi32(parts[r][part].offset); P];
            }
            for group in 0..each * 4 / held(NIBBLES) {
                let mut weights = [_mm512_setzero_si512(); P];
                for p in 0..P {
                    weights[p] = integers(&codes[p][group]);
                }
                if NIBBLES {
                    let mut upper = weights;
                    for p in 0..P {
                        upper[p] = nibbles(_mm512_srli_epi16::<4>(weights[p]));
                        weights[p] = nibbles(weights[p]);
                    }
                    dot(&mut totals, weights, &row, 2 * group);
                    dot(&mut totals, upper, &row, 2 * group + 1);
                } else {
                    dot(&mut totals, weights, &row, group);
                }
            }
            for p in 0..P {
                let (scale, least) = self.scales::<MINIMA>(records[p]);
                for r in 0..R {
                    let part = parts[r][part];
                    let scale = _mm512_mul_ps(scale, _mm512_set1_ps(part.scale));
                    let product = _mm512_mul_ps(_mm512_cvtepi32_ps(totals[r][p]), scale);
                    sums[r][p] = _mm512_add_ps(sums[r][p], product);
                    if MINIMA {
                        let product = _mm512_mul_ps(least, _mm512_set1_ps(part.sum));
                        sums[r][p] = _mm512_add_ps(sums[r][p], product);
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                store(sums[r][p], &mut out[r][self.column + p * WIDTH..]);
            }
        }
    }

    /// The scales of a record, and its minima.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn scales<const MINIMA: bool>(&self, record: &[u8]) -> (__m512, __m512) {
        let behind = WIDTH * usize::from(MINIMA);
        if self.form.wide {
            (singles(record), singles(&record[4 * behind..]))
        } else {
            (halves(record), halves(&record[2 * behind..]))
        }
    }
}

/// Adds the products of each row's four activations with each panel's integers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot<const R: usize, const P: usize>(
    totals: &mut [[__m512i; P]; R],
    weights: [__m512i; P],
    rows: &[&[u32]; R],
    word: usize,
) {
    for r in 0..R {
        let row = _mm512_set1_epi32(rows[r][word].cast_signed());
        for p in 0..P {
            totals[r][p] = _mm512_dpbusd_epi32(totals[r][p], weights[p], row);
        }
    }
}

/// The lower halves of bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(bytes: __m512i) -> __m512i {
    _mm512_and_si512(bytes, _mm512_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn integers(group: &[u8; GROUP]) -> __m512i {
    // SAFETY: the group is the 64 bytes that are read; they may lie anywhere.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_loadu_si512(group.as_ptr().cast())
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves(bytes: &[u8]) -> __m512 {
    let bytes = &bytes[..2 * WIDTH];
    // SAFETY: the slice has the 32 bytes that are read; they may lie anywhere.
    #[allow(unsafe_code)]
    let halves = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
    _mm512_cvtph_ps(halves)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn singles(bytes: &[u8]) -> __m512 {
    let bytes = &bytes[..4 * WIDTH];
    // SAFETY: the slice has the 64 bytes that are read; they may lie anywhere.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_loadu_ps(bytes.as_ptr().cast())
    }
}
