//! What kernels for AVX-512 share: a panel's sums of a row, in one vector.

use std::arch::x86_64::{__m512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps};

use crate::packed::WIDTH;

/// Which of a panel's columns a row has that goes on for `rest` columns.
#[inline(always)]
fn mask(rest: usize) -> u16 {
    if rest >= WIDTH { u16::MAX } else { (1 << rest) - 1 }
}

/// A panel's sums of a row; where the row ends before the panel does, the rest is zero.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load(row: &[f32]) -> __m512 {
    // SAFETY: the mask keeps to the numbers that the row has; others are not touched.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_maskz_loadu_ps(mask(row.len()), row.as_ptr())
    }
}

/// Puts a panel's sums where [`load`] finds them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn store(sums: __m512, row: &mut [f32]) {
    // SAFETY: the mask keeps to the numbers that the row has; others are not touched.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_mask_storeu_ps(row.as_mut_ptr(), mask(row.len()), sums);
    }
}
