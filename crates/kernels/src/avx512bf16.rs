//! Products of bf16 pairs by the instruction `vdpbf16ps`, which adds two products to each of sixteen f32 sums.
//!
//! The order in which an output is summed depends on the inner size alone, so a row's result is the same to the last
//! bit whatever other rows the call has. The instruction takes numbers below the smallest normal one for zero.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_set1_epi32, _mm512_setzero_ps,
};

use crate::avx512::{load, store};
use crate::packed::{WIDTH, blocks, neighbours, parts};
use crate::pairs::{Pairs, Strip};

/// Rows that meet two panels at once: 24 sums, 2 vectors of weights and a pair of an activation, of 32 registers.
const ROWS: usize = 12;
/// So few rows take four panels at once, or the sums would wait for each other.
const FEW: usize = 3;

/// Whether the machine has the instruction.
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// Multiplies a strip.
///
/// # Panics
/// Where the machine lacks the instruction, or the sizes do not fit: a mistake in this crate.
pub(crate) fn multiply(strip: Strip) {
    assert!(available(), "a product by vdpbf16ps on a machine without it");
    // SAFETY: the assertion above: the machine has every feature that the function is compiled for.
    #[allow(unsafe_code)]
    unsafe {
        multiply_here(strip);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn multiply_here(strip: Strip) {
    let Strip {
        left,
        right,
        out,
        room,
        ..
    } = strip;
    let rows = out.len();
    let panels = out.first().map_or(0, |row| row.len().div_ceil(WIDTH));
    let together = if rows <= FEW { 4 } else { 2 };
    for block in blocks(strip.inner.clone()) {
        for (panel, count) in neighbours(panels, together) {
            let numbers = right.panels(strip.panel + panel, count, block.clone(), room);
            for rows in parts(rows, ROWS) {
                let (left, stride) = left.from(strip.row + rows.start, (block.start - strip.inner.start) / 2);
                let tile = Tile {
                    left,
                    stride,
                    panels: numbers,
                    goes_on: strip.accumulate || block.start > strip.inner.start,
                    column: panel * WIDTH,
                };
                match count {
                    4 => tile.few(&mut out[rows]),
                    2 => tile.rows::<2>(&mut out[rows]),
                    _ => tile.rows::<1>(&mut out[rows]),
                }
            }
        }
    }
}

/// Some rows by some panels, over one block of the inner size.
struct Tile<'a> {
    /// The first row's pairs from the block on.
    left: &'a [u32],
    /// From one row to the next.
    stride: usize,
    /// Panel after panel.
    panels: &'a [Pairs],
    /// Whether the result holds sums already.
    goes_on: bool,
    /// Where in the rows of the result the first panel begins.
    column: usize,
}

impl Tile<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn few(&self, out: &mut [&mut [f32]]) {
        match out.len() {
            3 => self.add::<3, 4>(out),
            2 => self.add::<2, 4>(out),
            _ => self.add::<1, 4>(out),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn rows<const P: usize>(&self, out: &mut [&mut [f32]]) {
        match out.len() {
            12 => self.add::<12, P>(out),
            11 => self.add::<11, P>(out),
            10 => self.add::<10, P>(out),
            9 => self.add::<9, P>(out),
            8 => self.add::<8, P>(out),
            7 => self.add::<7, P>(out),
            6 => self.add::<6, P>(out),
            5 => self.add::<5, P>(out),
            4 => self.add::<4, P>(out),
            3 => self.add::<3, P>(out),
            2 => self.add::<2, P>(out),
            _ => self.add::<1, P>(out),
        }
    }

    /// Adds the products of `R` rows with `P` panels to the sums in `out`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn add<const R: usize, const P: usize>(&self, out: &mut [&mut [f32]]) {
        let depth = self.panels.len() / P;
        let mut left: [&[u32]; R] = [&[]; R];
        for r in 0..R {
            left[r] = &self.left[r * self.stride..][..depth];
        }
        let mut panels: [&[Pairs]; P] = [&[]; P];
        for p in 0..P {
            panels[p] = &self.panels[p * depth..][..depth];
        }
        let mut sums = [[_mm512_setzero_ps(); P]; R];
        if self.goes_on {
            for r in 0..R {
                for p in 0..P {
                    sums[r][p] = load(&out[r][self.column + p * WIDTH..]);
                }
            }
        }
        for k in 0..depth {
            let mut weights = [pairs(&Pairs::default()); P];
            for p in 0..P {
                weights[p] = pairs(&panels[p][k]);
            }
            for r in 0..R {
                let number = as_pairs(_mm512_set1_epi32(left[r][k].cast_signed()));
                for p in 0..P {
                    sums[r][p] = _mm512_dpbf16_ps(sums[r][p], number, weights[p]);
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                store(sums[r][p], &mut out[r][self.column + p * WIDTH..]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(pairs: &Pairs) -> __m512bh {
    // SAFETY: the type is 64 bytes that lie at a multiple of 64.
    #[allow(unsafe_code)]
    as_pairs(unsafe { _mm512_load_si512(std::ptr::from_ref(pairs).cast()) })
}

#[inline(always)]
fn as_pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes of which every pattern is a value.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute(bits)
    }
}
