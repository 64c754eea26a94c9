//! The product of every linear layer: rows of activations by rows of a weight.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::lanes;
use crate::slices::{fusible, slice};

/// Rows of the weight and rows of activations whose products are summed at once: 12 sums, 3 + 1 operands, which is all
/// of AVX2's 16 registers.
const COLUMNS: usize = 4;
const ROWS: usize = 3;
/// Rows of activations that go by each strip of weights, few enough to stay in the second cache.
const ROW_BLOCK: usize = 48;

/// `x W^T`, differentiable in both; a weight that does not train costs no gradient.
///
/// `x_t_k` has a row a token, `weight_n_k` a row an output. Fused, each output is one sum over `k` in one fixed order:
/// a row's result is the same to the last bit whatever other rows the call has, so that generation in batches, scoring
/// and training agree. Nothing is packed first, which is what a few rows need.
///
/// # Errors
/// When the shapes do not fit.
pub fn product(x_t_k: &Tensor, weight_n_k: &Tensor) -> Result<Tensor> {
    if !fusible(&[x_t_k, weight_n_k]) {
        return product_composed(x_t_k, weight_n_k);
    }
    let ((rows, inner), (_, weight_inner)) = (x_t_k.dims2()?, weight_n_k.dims2()?);
    if inner != weight_inner {
        bail!(
            "product: expected x [t,k] and weight [n,k], found {:?} and {:?}",
            x_t_k.dims(),
            weight_n_k.dims()
        )
    }
    if rows == 0 || inner == 0 {
        return product_composed(x_t_k, weight_n_k);
    }
    x_t_k.contiguous()?.apply_op2(&weight_n_k.contiguous()?, Product)
}

/// [`product`] in plain candle operations.
pub fn product_composed(x_t_k: &Tensor, weight_n_k: &Tensor) -> Result<Tensor> {
    x_t_k.matmul(&weight_n_k.t()?)
}

struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inner) = x_layout.shape().dims2()?;
        let columns = weight_layout.shape().dims2()?.0;
        let mut out = vec![0.0; rows * columns];
        if columns > 0 {
            multiply(
                slice(x, x_layout)?,
                slice(weight, weight_layout)?,
                inner,
                &mut out,
            );
        }
        Ok((CpuStorage::F32(out), (rows, columns).into()))
    }

    fn bwd(
        &self,
        x_t_k: &Tensor,
        weight_n_k: &Tensor,
        _out_t_n: &Tensor,
        gradient_t_n: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let for_x = x_t_k
            .track_op()
            .then(|| gradient_t_n.matmul(weight_n_k))
            .transpose()?;
        let for_weight = weight_n_k
            .track_op()
            .then(|| gradient_t_n.t()?.matmul(x_t_k))
            .transpose()?;
        Ok((for_x, for_weight))
    }
}

/// `out = x W^T` for `x` with rows of `inner` elements, in parallel over panels of columns.
fn multiply(x: &[f32], weight: &[f32], inner: usize, out: &mut [f32]) {
    let (rows, columns) = (x.len() / inner, weight.len() / inner);
    let width = columns
        .div_ceil(4 * rayon::current_num_threads())
        .next_multiple_of(COLUMNS)
        .max(4 * COLUMNS);
    let mut panels: Vec<Vec<&mut [f32]>> = vec![];
    panels.resize_with(columns.div_ceil(width), || Vec::with_capacity(rows));
    for row in out.chunks_exact_mut(columns) {
        for (panel, piece) in panels.iter_mut().zip(row.chunks_mut(width)) {
            panel.push(piece);
        }
    }
    let weights = weight.par_chunks(width * inner);
    panels.into_par_iter().zip(weights).for_each(|(out, weight)| {
        lanes::run(Panel {
            x,
            weight,
            inner,
            out,
        });
    });
}

/// The products of all rows with some rows of the weight, which are columns of the result.
struct Panel<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    inner: usize,
    /// Each row's part of the result.
    out: Vec<&'a mut [f32]>,
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let inner = self.inner;
        for (x, out) in self
            .x
            .chunks(ROW_BLOCK * inner)
            .zip(self.out.chunks_mut(ROW_BLOCK))
        {
            let whole = self.weight.chunks_exact(COLUMNS * inner);
            let rest = whole.remainder();
            let mut column = 0;
            for weight in whole {
                strip::<S, COLUMNS>(simd, x, weight, inner, out, column);
                column += COLUMNS;
            }
            for weight in rest.chunks_exact(inner) {
                strip::<S, 1>(simd, x, weight, inner, out, column);
                column += 1;
            }
        }
    }
}

/// Some rows by `C` rows of the weight.
#[inline(always)]
fn strip<S: Simd, const C: usize>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    inner: usize,
    out: &mut [&mut [f32]],
    column: usize,
) {
    for (x, out) in x.chunks(ROWS * inner).zip(out.chunks_mut(ROWS)) {
        match out.len() {
            3 => tile::<S, 3, C>(simd, x, weight, inner, out, column),
            2 => tile::<S, 2, C>(simd, x, weight, inner, out, column),
            _ => tile::<S, 1, C>(simd, x, weight, inner, out, column),
        }
    }
}

/// `R` rows by `C` rows of the weight.
#[inline(always)]
fn tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    inner: usize,
    out: &mut [&mut [f32]],
    column: usize,
) {
    let mut x_rows: [&[f32]; R] = [&[]; R];
    let mut weight_rows: [&[f32]; C] = [&[]; C];
    for r in 0..R {
        x_rows[r] = &x[r * inner..][..inner];
    }
    for c in 0..C {
        weight_rows[c] = &weight[c * inner..][..inner];
    }
    let sums = dots(simd, x_rows, weight_rows);
    for r in 0..R {
        out[r][column..column + C].copy_from_slice(&sums[r]);
    }
}

/// The products of `R` rows with `C` others, all of one length. The order of each sum depends on that length alone.
#[inline(always)]
pub(crate) fn dots<S: Simd, const R: usize, const C: usize>(
    simd: S,
    left: [&[f32]; R],
    right: [&[f32]; C],
) -> [[f32; C]; R] {
    let inner = left[0].len();
    let vectors = inner / S::F32_LANES;
    let mut left_vectors: [&[S::f32s]; R] = [&[]; R];
    let mut right_vectors: [&[S::f32s]; C] = [&[]; C];
    for r in 0..R {
        left_vectors[r] = &S::as_simd_f32s(left[r]).0[..vectors];
    }
    for c in 0..C {
        right_vectors[c] = &S::as_simd_f32s(right[c]).0[..vectors];
    }
    // Fused where the instruction set fuses; elsewhere a call for each element would cost more than its rounding.
    let mut sums = [[simd.splat_f32s(0.0); C]; R];
    for k in 0..vectors {
        for c in 0..C {
            let vector = right_vectors[c][k];
            for r in 0..R {
                sums[r][c] = simd.mul_add_e_f32s(left_vectors[r][k], vector, sums[r][c]);
            }
        }
    }
    let mut totals = [[0.0; C]; R];
    for r in 0..R {
        for c in 0..C {
            totals[r][c] = simd.reduce_sum_f32s(sums[r][c]);
            for k in vectors * S::F32_LANES..inner {
                totals[r][c] += left[r][k] * right[c][k];
            }
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    /// Small numbers with a few decimals, all different.
    fn numbers(rows: usize, columns: usize, start: usize) -> Tensor {
        let values: Vec<f32> = (start..start + rows * columns)
            .map(|n| ((n * 7919) % 2003) as f32 / 1000.0 - 1.0)
            .collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn largest_gap(left: &Tensor, right: &Tensor) -> f32 {
        (left - right)
            .unwrap()
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar()
            .unwrap()
    }

    #[test]
    fn values_are_the_twins() {
        for (rows, columns, inner) in [
            (1, 1, 1),
            (2, 5, 7),
            (3, 4, 8),
            (5, 67, 40),
            (50, 18, 33),
            (100, 130, 64),
        ] {
            let (x_t_k, weight_n_k) = (numbers(rows, inner, 1), numbers(columns, inner, 50));
            let fused = product(&x_t_k, &weight_n_k).unwrap();
            let composed = product_composed(&x_t_k, &weight_n_k).unwrap();
            assert_eq!(fused.dims(), [rows, columns]);
            assert!(
                largest_gap(&fused, &composed) < 1e-5,
                "{rows} x {columns} over {inner}"
            );
        }
    }

    #[test]
    fn a_rows_result_does_not_depend_on_the_others() {
        let (x_t_k, weight_n_k) = (numbers(101, 77, 3), numbers(45, 77, 9));
        let whole = product(&x_t_k, &weight_n_k).unwrap().to_vec2::<f32>().unwrap();
        for start in [0, 1, 50, 100] {
            for length in [1, 2, 3, 7, 51] {
                let length = length.min(101 - start);
                let part = product(&x_t_k.narrow(0, start, length).unwrap(), &weight_n_k).unwrap();
                assert_eq!(part.to_vec2::<f32>().unwrap(), whole[start..start + length]);
            }
        }
    }

    #[test]
    fn gradients_are_the_twins() {
        let x_t_k = Var::from_tensor(&numbers(5, 12, 1)).unwrap();
        let weight_n_k = Var::from_tensor(&numbers(9, 12, 70)).unwrap();
        let weigh = numbers(5, 9, 400);
        let gradients = |out: Tensor| (out * &weigh).unwrap().sum_all().unwrap().backward().unwrap();
        let fused = gradients(product(&x_t_k, &weight_n_k).unwrap());
        let composed = gradients(product_composed(&x_t_k, &weight_n_k).unwrap());
        for variable in [&x_t_k, &weight_n_k] {
            let (fused, composed) = (fused.get(variable).unwrap(), composed.get(variable).unwrap());
            assert!(largest_gap(fused, composed) < 1e-5);
        }
        let frozen = gradients(product(&x_t_k, &weight_n_k.detach()).unwrap());
        assert!(largest_gap(frozen.get(&x_t_k).unwrap(), composed.get(&x_t_k).unwrap()) < 1e-5);
        assert!(frozen.get(&weight_n_k).is_none());
    }

    #[test]
    fn views_and_empty_tensors_are_taken() {
        let x_k_t = numbers(6, 4, 2);
        let weight_n_k = numbers(3, 6, 30);
        let view = x_k_t.t().unwrap();
        let fused = product(&view, &weight_n_k).unwrap();
        assert!(
            largest_gap(
                &fused,
                &product_composed(&view.contiguous().unwrap(), &weight_n_k).unwrap()
            ) < 1e-5
        );
        let none = Tensor::zeros((0, 6), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(product(&none, &weight_n_k).unwrap().dims(), [0, 3]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_told() {
        let error = product(&numbers(2, 3, 0), &numbers(2, 4, 0))
            .unwrap_err()
            .to_string();
        assert!(error.contains("[2, 3] and [2, 4]"), "{error}");
    }
}
