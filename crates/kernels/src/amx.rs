//! Products of bf16 pairs by AMX: one instruction multiplies a tile of up to sixteen rows by one of sixteen columns, over
//! sixteen pairs of the inner size.
//!
//! A tile of the right operand is sixteen [`Pairs`] of a panel as they lie, one of the left operand sixteen pairs of each of
//! its rows. Two by two tiles are multiplied at a time: four are read for four instructions. What a block of the inner size
//! has beyond whole tiles is copied to tiles with zeros behind it.
//!
//! The order in which an output is summed depends on the inner size alone, so a row's result is the same to the last bit
//! whatever other rows the call has; it is another order than that of `avx512bf16.rs`. Numbers below the smallest normal one
//! are taken for zero. (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18; volume 2,
//! `TDPBF16PS`.)

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _mm512_add_ps};
use std::ops::Range;
use std::sync::OnceLock;

use crate::avx512::{load, store};
use crate::packed::{WIDTH, blocks, neighbours, parts};
use crate::pairs::{Pairs, Strip};

/// Rows of a tile, and its pairs.
const SIDE: usize = 16;
/// From one line of a tile to the next, where tiles lie close.
const LINE: usize = size_of::<Pairs>();
/// From one tile to the next.
const TILE: usize = SIDE * LINE;

/// Whether the machine has the instructions and the system lets this process use them.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_tiles() && is_x86_feature_detected!("avx512f") && permitted())
}

/// Whether the processor has tiles and multiplies bf16 by them.
fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    let features = if __cpuid(0).eax >= 7 {
        __cpuid_count(7, 0).edx
    } else {
        0
    };
    features & (BF16 | TILES) == BF16 | TILES
}

/// Asks the system for the tiles' state, which it holds for processes that want it alone (Linux 5.16,
/// Documentation/arch/x86/xstate.rst). Threads that are started later have it too, and so have those that run already.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const REQUEST_PERMISSION: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and changes what this process may do alone; a system that does not know it refuses.
    #[allow(unsafe_code)]
    let refused = unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) };
    refused == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Multiplies a strip.
///
/// # Panics
/// Where the machine lacks the instructions, or the sizes do not fit: a mistake in this crate.
pub(crate) fn multiply(strip: Strip) {
    assert!(available(), "a product by tiles on a machine without them");
    // SAFETY: the assertion above: the machine has every feature that the function is compiled for, and tiles.
    #[allow(unsafe_code)]
    unsafe {
        multiply_here(strip);
    }
}

/// # Safety
/// The machine has tiles.
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code)]
unsafe fn multiply_here(strip: Strip) {
    let Strip {
        left,
        right,
        out,
        room,
        ..
    } = strip;
    let panels = out.first().map_or(0, |row| row.len().div_ceil(WIDTH));
    let mut tiles = Tiles::default();
    for block in blocks(strip.inner.clone()) {
        let goes_on = strip.accumulate || block.start > strip.inner.start;
        for (panel, count) in neighbours(panels, 2) {
            let numbers = right.panels(strip.panel + panel, count, block.clone(), room);
            let depth = numbers.len() / count;
            // A panel that has no neighbour is its own.
            let pair = [&numbers[..depth], &numbers[numbers.len() - depth..]];
            for rows in parts(out.len(), 2 * SIDE) {
                let (left, stride) = left.from(strip.row + rows.start, (block.start - strip.inner.start) / 2);
                // SAFETY: the machine has tiles.
                unsafe { tiles.multiply(left, stride, rows.len(), pair) };
                tiles.put(&mut out[rows], panel * WIDTH..(panel + count) * WIDTH, goes_on);
            }
        }
    }
    // SAFETY: the machine has tiles. Released, they are nothing that the system has to keep for this thread.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

/// The tiles' shapes, as the instruction `ldtilecfg` reads them.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 8],
    reserved_too: [u8; 16],
    rows: [u8; 8],
    reserved_as_well: [u8; 8],
}

/// What tiles are read from and written to, and how they are divided.
#[derive(Default)]
#[repr(align(64))]
struct Tiles {
    /// The four products: the upper rows with either panel, then the lower rows.
    sums: [[[f32; WIDTH]; SIDE]; 4],
    /// What is beyond whole tiles, zeros behind it: of the upper rows and the lower rows.
    left: [[[u32; SIDE]; SIDE]; 2],
    /// The same of both panels.
    right: [[Pairs; SIDE]; 2],
    /// How many upper and lower rows the tiles are shaped for; none at first.
    shaped: [usize; 2],
}

impl Tiles {
    /// Multiplies `rows` rows, one every `stride` pairs of `left`, with two panels.
    ///
    /// # Safety
    /// The machine has tiles.
    #[allow(unsafe_code)]
    unsafe fn multiply(&mut self, left: &[u32], stride: usize, rows: usize, panels: [&[Pairs]; 2]) {
        let depth = panels[0].len();
        // So few rows as fit one tile are multiplied as the lower ones too, which costs next to nothing: the instruction waits
        // longer for its own result than for another one.
        let (upper, first_lower) = if rows > SIDE {
            (rows.div_ceil(2), rows.div_ceil(2))
        } else {
            (rows, 0)
        };
        let lower = rows - first_lower;
        assert!(
            rows > 0
                && upper <= SIDE
                && depth > 0
                && panels[1].len() == depth
                && left.len() >= (rows - 1) * stride + depth,
            "tiles beyond their operands"
        );
        // SAFETY: the machine has tiles.
        unsafe { self.shape([upper, lower]) };

        let (whole, rest) = (depth / SIDE, depth % SIDE);
        if rest > 0 {
            let parts = [(left, upper), (&left[first_lower * stride..], lower)];
            self.copy_rest(parts, stride, panels);
        }
        // SAFETY: the machine has tiles, shaped for so many rows. What is read lies in `left` and the panels, which the assertion
        // above holds to `whole` tiles of pairs, and in `self.left` and `self.right`; what is written is `self.sums`.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "test {whole}, {whole}",
                "jz 3f",
                "2:",
                "tileloadd tmm6, [{first} + {line}*1]",
                "tileloadd tmm4, [{upper} + {stride}*1]",
                "tileloadd tmm7, [{second} + {line}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lower} + {stride}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {upper}, {line}",
                "add {lower}, {line}",
                "add {first}, {tile}",
                "add {second}, {tile}",
                "dec {whole}",
                "jnz 2b",
                "3:",
                "test {rest}, {rest}",
                "jz 4f",
                "tileloadd tmm6, [{rest_right} + {line}*1]",
                "tileloadd tmm4, [{rest_left} + {line}*1]",
                "tileloadd tmm7, [{rest_right} + {line}*1 + {tile}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{rest_left} + {line}*1 + {tile}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "4:",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + {tile}], tmm1",
                "tilestored [{sums} + {line}*1 + 2*{tile}], tmm2",
                "tilestored [{sums} + {line}*1 + 3*{tile}], tmm3",
                tile = const TILE,
                line = in(reg) LINE,
                stride = in(reg) stride * size_of::<u32>(),
                upper = inout(reg) left.as_ptr() => _,
                lower = inout(reg) left[first_lower * stride..].as_ptr() => _,
                first = inout(reg) panels[0].as_ptr() => _,
                second = inout(reg) panels[1].as_ptr() => _,
                whole = inout(reg) whole => _,
                rest = in(reg) rest,
                rest_left = in(reg) self.left.as_ptr(),
                rest_right = in(reg) self.right.as_ptr(),
                sums = in(reg) self.sums.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Copies what is beyond whole tiles, of so many upper and lower rows and of both panels.
    fn copy_rest(&mut self, parts: [(&[u32], usize); 2], stride: usize, panels: [&[Pairs]; 2]) {
        let depth = panels[0].len();
        let (start, rest) = (depth - depth % SIDE, depth % SIDE);
        for (tile, (left, rows)) in self.left.iter_mut().zip(parts) {
            for (line, row) in tile[..rows].iter_mut().zip(left.chunks(stride)) {
                line[..rest].copy_from_slice(&row[start..depth]);
                line[rest..].fill(0);
            }
        }
        for (tile, panel) in self.right.iter_mut().zip(panels) {
            tile[..rest].copy_from_slice(&panel[start..]);
            tile[rest..].fill(Pairs::default());
        }
    }

    /// Shapes the tiles for so many upper and lower rows.
    ///
    /// # Safety
    /// The machine has tiles.
    #[allow(unsafe_code)]
    unsafe fn shape(&mut self, rows: [usize; 2]) {
        if self.shaped == rows {
            return;
        }
        self.shaped = rows;
        let [upper, lower] = rows.map(|rows| rows as u8);
        let shapes = Shapes {
            palette: 1,
            bytes: [LINE as u16; 8],
            rows: [upper, upper, lower, lower, upper, lower, SIDE as u8, SIDE as u8],
            ..Shapes::default()
        };
        // SAFETY: the machine has tiles; the shapes are 64 bytes, each of one to sixteen rows of 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                shapes = in(reg) &raw const shapes,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    /// Puts the products where they belong: `columns`, one panel or two, of some rows of the result.
    #[target_feature(enable = "avx512f")]
    fn put(&self, out: &mut [&mut [f32]], columns: Range<usize>, goes_on: bool) {
        let upper = self.shaped[0];
        for (index, row) in out.iter_mut().enumerate() {
            let (first, line) = if index < upper {
                (0, index)
            } else {
                (2, index - upper)
            };
            for (panel, column) in columns.clone().step_by(WIDTH).enumerate() {
                let mut sums = load(&self.sums[first + panel][line]);
                if goes_on {
                    sums = _mm512_add_ps(load(&row[column..]), sums);
                }
                store(sums, &mut row[column..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::{Left, Right, rounded};

    /// Numbers between -1 and 1.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 23) - 1.0
        };
        (0..count).map(|_| next() as f32).collect()
    }

    /// The last rows from `from` on times all columns, by tiles, added to ones.
    fn by_tiles(sizes: [usize; 3], numbers: [&[f32]; 2], from: usize, accumulate: bool) -> Vec<f32> {
        let [rows, columns, inner] = sizes;
        let mut out = vec![1.0; (rows - from) * columns];
        let mut parts: Vec<&mut [f32]> = out.chunks_exact_mut(columns).collect();
        multiply(Strip {
            left: &Left::of_rows(numbers[0], inner),
            right: Right::rows(numbers[1], (columns, inner)),
            inner: 0..inner,
            row: from,
            panel: 0,
            accumulate,
            out: &mut parts,
            room: &mut Vec::new(),
        });
        out
    }

    fn expected(row: &[f32], column: &[f32]) -> f64 {
        let wide = |number: f32| f64::from(f32::from_bits(u32::from(rounded(number)) << 16));
        row.iter().zip(column).map(|(&a, &b)| wide(a) * wide(b)).sum()
    }

    #[test]
    fn tiles_multiply_and_rows_stand_alone() {
        if !available() {
            println!("left out: products by tiles, which this machine has not");
            return;
        }
        let sides = [1, 2, 15, 16, 17, 31, 32, 33, 47, 70];
        for (index, &rows) in sides.iter().enumerate() {
            for inner in [1, 2, 31, 32, 33, 64, 95, 1024, 1025, 2100] {
                let columns = sides[(index * 3 + inner) % sides.len()];
                let (a, b) = (numbers(rows * inner, 1), numbers(columns * inner, 2));
                for accumulate in [false, true] {
                    let what = format!("{rows} x {columns} x {inner}, {accumulate}");
                    let found = by_tiles([rows, columns, inner], [&a, &b], 0, accumulate);
                    for (found, a) in found.chunks_exact(columns).zip(a.chunks_exact(inner)) {
                        for (&found, b) in found.iter().zip(b.chunks_exact(inner)) {
                            let expected = expected(a, b) + f64::from(u8::from(accumulate));
                            // No partial sum is above the inner size, and each is rounded once.
                            let bound = f64::from(f32::EPSILON) / 2.0 * (inner * inner + 1) as f64;
                            assert!(
                                (f64::from(found) - expected).abs() <= bound,
                                "{what}: {found} {expected}"
                            );
                        }
                    }
                    let last = by_tiles([rows, columns, inner], [&a, &b], rows - 1, accumulate);
                    assert_eq!(last, found[(rows - 1) * columns..], "{what}");
                }
            }
        }
        println!("products by tiles: tested");
    }
}
