//! Matrix products inside a thread's task, by the `gemm` crate that candle uses too.

use gemm::Parallelism;

/// A matrix that is a strided view of a slice.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// `rows x columns`, a row every `row_stride` elements.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = factor * a b`, or `out += factor * a b` if `accumulate`; row `n` of `out` starts at `n * out_stride`.
///
/// # Panics
/// When the shapes do not fit each other or the slices: a mistake in this crate.
pub(crate) fn multiply(out: &mut [f32], out_stride: usize, a: View, b: View, factor: f32, accumulate: bool) {
    let (rows, columns, inner) = (a.rows, b.columns, a.columns);
    if rows == 0 || columns == 0 {
        return;
    }
    let last = |view: &View| (view.rows - 1) * view.row_stride + (view.columns - 1) * view.column_stride;
    assert!(
        b.rows == inner && inner > 0,
        "the inner sizes of a product differ: {inner} and {}",
        b.rows
    );
    assert!(
        last(&a) < a.data.len() && last(&b) < b.data.len(),
        "an operand reaches past its slice"
    );
    assert!(columns <= out_stride || rows == 1, "rows of the product overlap");
    assert!(
        (rows - 1) * out_stride + columns <= out.len(),
        "the product reaches past its slice"
    );
    // SAFETY: the assertions above hold every element that gemm touches inside its slice, `out` is borrowed mutably,
    // and its rows do not overlap. f32 is a type gemm supports.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_factor_and_accumulation_are_those_of_the_definition() {
        let a: Vec<f32> = (0..24).map(|n| n as f32).collect(); // 3 x 5, a row every 8
        let b: Vec<f32> = (0..20).map(|n| 1.0 - n as f32).collect(); // 4 x 5, transposed in the product
        let mut out = vec![1.0; 3 * 6];
        multiply(
            &mut out,
            6,
            View::new(&a, 3, 5, 8),
            View::new(&b, 4, 5, 5).transposed(),
            2.0,
            true,
        );
        for row in 0..3 {
            for column in 0..6 {
                let product: f32 = (0..5).map(|k| a[row * 8 + k] * b[(column % 4) * 5 + k]).sum();
                let expected = if column < 4 { 1.0 + 2.0 * product } else { 1.0 };
                assert_eq!(out[row * 6 + column], expected, "element {row}, {column}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "past its slice")]
    fn an_operand_that_is_too_short_is_refused() {
        multiply(
            &mut [0.0; 4],
            2,
            View::new(&[0.0; 3], 2, 2, 2),
            View::new(&[0.0; 4], 2, 2, 2),
            1.0,
            false,
        );
    }
}
