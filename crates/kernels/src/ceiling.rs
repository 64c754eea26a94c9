//! What the machine gives: the two figures that a speed is held against.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

/// Rows, columns and inner size of the product that is timed.
const SIZE: usize = 1024;
/// Numbers that are copied: more than any cache holds.
const COPIED: usize = 1 << 25;
/// The best of so many counts, since a ceiling is what nothing else disturbs.
const REPEATS: usize = 5;

/// Billions of operations a second of a square f32 product by candle, a multiplication and an addition being two.
///
/// # Errors
/// A failing tensor operation.
pub fn product_ceiling() -> Result<f64> {
    let a = Tensor::ones((SIZE, SIZE), DType::F32, &Device::Cpu)?;
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        a.matmul(&a)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIZE as f64).powi(3) / best / 1e9)
}

/// Gigabytes a second that all threads together move in a copy, read and written.
pub fn copy_ceiling() -> f64 {
    let from = vec![1.0f32; COPIED];
    let mut to = vec![0.0f32; COPIED];
    let chunk = COPIED.div_ceil(8 * rayon::current_num_threads());
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        to.par_chunks_mut(chunk)
            .zip(from.par_chunks(chunk))
            .for_each(|(to, from)| to.copy_from_slice(from));
        best = best.min(start.elapsed().as_secs_f64());
    }
    assert_eq!(to[COPIED - 1], 1.0, "a copy that nobody reads may never be made");
    2.0 * 4.0 * COPIED as f64 / best / 1e9
}
