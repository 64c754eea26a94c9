//! Products of numbers rounded to bf16, summed in f32: what a decoder in `DType::BF16` computes with on the CPU.
//!
//! Where the machine has instructions for it, a tile of sums (`amx.rs`) or two steps of sixteen sums (`avx512bf16.rs`) are one
//! instruction, for the product and for both its gradients. Elsewhere, or with `SAFERL_KERNELS=widened` in the environment,
//! the rounded numbers are held in f32 and multiplied as such: the product of two bf16 numbers is exact in f32, so that the
//! ways differ by the rounding of sums alone.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::lanes::{self, Setting};
use crate::packed::{Packed, WIDTH};
use crate::pairs::{Left, Right, Strip, round};
use crate::product::{self, product_composed};
use crate::slices::{read, slice};

/// So many rows at least make a task of their own.
const GROUP: usize = 48;

/// `x W^T` of numbers rounded to bf16, summed in f32; differentiable in both, and the gradients are such products too. A
/// weight that does not train costs no gradient.
///
/// `x_t_k` has a row a token, `weight_n_k` a row an output; both are held unrounded.
///
/// # Errors
/// When the shapes do not fit.
pub fn product_bf16(x_t_k: &Tensor, weight_n_k: &Tensor) -> Result<Tensor> {
    match product::operands("product_bf16", x_t_k, weight_n_k)? {
        Some((x_t_k, weight_n_k)) => x_t_k.apply_op2(&weight_n_k, ProductBf16),
        None => product_bf16_composed(x_t_k, weight_n_k),
    }
}

/// [`product_bf16`] in plain candle operations.
pub fn product_bf16_composed(x_t_k: &Tensor, weight_n_k: &Tensor) -> Result<Tensor> {
    let (x_t_k, weight_n_k) = rounded_pair(x_t_k, weight_n_k)?;
    product_composed(&x_t_k, &weight_n_k)
}

/// `tensor` rounded to bf16, in its own type.
pub(crate) fn rounded(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::BF16)?.to_dtype(tensor.dtype())
}

/// Rows and a weight rounded to bf16, in the type of the rows: on another device than the CPU a weight is held as bf16.
pub(crate) fn rounded_pair(x_t_k: &Tensor, weight_n_k: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok((rounded(x_t_k)?, rounded(weight_n_k)?.to_dtype(x_t_k.dtype())?))
}

struct ProductBf16;

impl CustomOp2 for ProductBf16 {
    fn name(&self) -> &'static str {
        "product_bf16"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, inner), outputs) = (x_layout.shape().dims2()?, weight_layout.shape().dims2()?.0);
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let out = if available() {
            multiply(
                &Left::of_rows(x, inner),
                rows,
                Right::rows(weight, (outputs, inner)),
            )
        } else {
            product::multiply_rows(&round(x), &round(weight), inner)
        };
        Ok((CpuStorage::F32(out), (rows, outputs).into()))
    }

    fn bwd(
        &self,
        x_t_k: &Tensor,
        weight_n_k: &Tensor,
        _out_t_n: &Tensor,
        gradient_t_n: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let for_x = || times(gradient_t_n, weight_n_k);
        let for_weight = || transposed_times(gradient_t_n, x_t_k);
        Ok((
            x_t_k.track_op().then(for_x).transpose()?,
            weight_n_k.track_op().then(for_weight).transpose()?,
        ))
    }
}

/// `a b` of numbers rounded to bf16.
pub(crate) fn times(a_t_n: &Tensor, b_n_k: &Tensor) -> Result<Tensor> {
    if !available() {
        return rounded(a_t_n)?.matmul(&rounded(b_n_k)?);
    }
    let ((rows, inner), outputs) = (a_t_n.dims2()?, b_n_k.dim(1)?);
    let out = read([a_t_n, b_n_k], |[a, b]| {
        Ok(multiply(
            &Left::of_rows(a, inner),
            rows,
            Right::columns(b, outputs),
        ))
    })?;
    Tensor::from_vec(out, (rows, outputs), a_t_n.device())
}

/// `a^T b` of numbers rounded to bf16.
pub(crate) fn transposed_times(a_t_n: &Tensor, b_t_k: &Tensor) -> Result<Tensor> {
    if !available() {
        return rounded(a_t_n)?.t()?.matmul(&rounded(b_t_k)?);
    }
    let (rows, outputs) = (a_t_n.dim(1)?, b_t_k.dim(1)?);
    let out = read([a_t_n, b_t_k], |[a, b]| {
        Ok(multiply(
            &Left::of_columns(a, rows),
            rows,
            Right::columns(b, outputs),
        ))
    })?;
    Tensor::from_vec(out, (rows, outputs), a_t_n.device())
}

/// `x W^T` by a weight that is multiplied as bf16, `[n,k]`; `right` is that weight too.
pub(crate) fn multiply_packed(x: &[f32], weight: &Packed, right: Right) -> Vec<f32> {
    if !available() {
        return product::multiply(&round(x), weight.weights());
    }
    let inner = weight.dims().1;
    multiply(&Left::of_rows(x, inner), x.len() / inner, right)
}

/// The gradient of [`multiply_packed`] for `x`, from that of its result: `gradient W`.
pub(crate) fn multiply_turned(gradient_t_n: &Tensor, weight: &Packed) -> Result<Tensor> {
    let Some(pairs) = weight.pairs().filter(|_| available()) else {
        return times(gradient_t_n, &weight.tensor()?);
    };
    let ((inner, outputs), rows) = (weight.dims(), gradient_t_n.dim(0)?);
    let out = read([gradient_t_n], |[gradient]| {
        Ok(multiply(
            &Left::of_rows(gradient, inner),
            rows,
            Right::turned(pairs, weight.dims()),
        ))
    })?;
    Tensor::from_vec(out, (rows, outputs), gradient_t_n.device())
}

/// Whether products of pairs are made here.
pub(crate) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // Whatever has tiles has these vectors too.
        matches!(lanes::setting(), Setting::Best | Setting::Vectors) && crate::avx512bf16::available()
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The product of `rows` rows with all columns, in parallel over strips of columns, and over rows where columns are few.
fn multiply(left: &Left, rows: usize, right: Right) -> Vec<f32> {
    let (columns, threads) = (right.outputs, rayon::current_num_threads());
    let mut out = vec![0.0; rows * columns];
    let width = columns.div_ceil(4 * threads).next_multiple_of(2 * WIDTH);
    let strips = columns.div_ceil(width);
    let height = rows.div_ceil((2 * threads).div_ceil(strips)).max(GROUP);
    let mut tasks: Vec<Vec<&mut [f32]>> = vec![];
    tasks.resize_with(strips * rows.div_ceil(height), Vec::new);
    for (row, numbers) in out.chunks_exact_mut(columns).enumerate() {
        let group = &mut tasks[row / height * strips..][..strips];
        for (task, piece) in group.iter_mut().zip(numbers.chunks_mut(width)) {
            task.push(piece);
        }
    }
    tasks
        .into_par_iter()
        .enumerate()
        .for_each_init(Vec::new, |room, (task, mut out)| {
            Strip {
                left,
                right,
                inner: 0..right.inner,
                row: task / strips * height,
                panel: task % strips * width / WIDTH,
                accumulate: false,
                out: &mut out,
                room,
            }
            .multiply();
        });
    out
}

impl Strip<'_, '_> {
    /// Multiplies, where [`available`] says so.
    pub(crate) fn multiply(self) {
        #[cfg(target_arch = "x86_64")]
        if lanes::setting() == Setting::Best && crate::amx::available() {
            crate::amx::multiply(self);
        } else {
            crate::avx512bf16::multiply(self);
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("no machine but x86-64 has products of pairs here");
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::fixtures::noise;

    /// Rows, columns and inner sizes with every kind of rest: of tiles, panels, pairs and blocks.
    const SHAPES: [[usize; 3]; 14] = [
        [1, 1, 1],
        [1, 70, 300],
        [2, 33, 256],
        [3, 130, 513],
        [4, 16, 9],
        [5, 67, 40],
        [12, 32, 2],
        [13, 48, 257],
        [25, 17, 31],
        [100, 130, 64],
        [61, 5, 700],
        [200, 16, 90],
        [5, 20, 1100],
        [37, 40, 2113],
    ];

    /// Holds `found` to `a b`, `a` and `b` rounded to bf16. A sum of k products, each of which is exact, is off by no more
    /// than k roundings of the sum of their sizes, in whatever order it is taken.
    fn assert_product(found: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
        let wide = |tensor: &Tensor| rounded(tensor)?.detach().to_dtype(DType::F64);
        let (a, b, inner) = (wide(a)?, wide(b)?, a.dim(1)?);
        let expected = a.matmul(&b)?.flatten_all()?.to_vec1::<f64>()?;
        let sizes = a.abs()?.matmul(&b.abs()?)?.flatten_all()?.to_vec1::<f64>()?;
        let found = found.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(found.len(), expected.len());
        for ((found, expected), size) in found.iter().zip(expected).zip(sizes) {
            let error = (f64::from(*found) - expected).abs();
            let bound = (inner + 1) as f64 * f64::from(f32::EPSILON) / 2.0 * size;
            assert!(
                error <= bound,
                "{found} is not {expected}: off by {error:e}, bound {bound:e}"
            );
        }
        Ok(())
    }

    #[test]
    fn values_and_gradients_are_products_of_rounded_numbers() -> Result<()> {
        for [rows, columns, inner] in SHAPES {
            let (x, weight) = (noise(1, &[rows, inner]), noise(2, &[columns, inner]));
            let gradient = noise(3, &[rows, columns]);
            let weight_t = weight.t()?.contiguous()?;
            let gradient_t = gradient.t()?.contiguous()?;
            let packed = Packed::new(&weight, DType::BF16)?;
            for out in [product_bf16(&x, &weight)?, product::product_packed(&x, &packed)?] {
                assert_eq!(out.dims(), [rows, columns]);
                assert_product(&out, &x, &weight_t)?;
                let gradients = (out * gradient.as_tensor())?.sum_all()?.backward()?;
                assert_product(gradients.get(&x).unwrap(), &gradient, &weight)?;
                if let Some(for_weight) = gradients.get(&weight) {
                    assert_product(for_weight, &gradient_t, &x)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn packed_or_not_the_bits_are_the_same() -> Result<()> {
        for [rows, columns, inner] in SHAPES {
            let (x, weight) = (noise(1, &[rows, inner]), noise(2, &[columns, inner]));
            let packed = Packed::new(&weight, DType::BF16)?;
            let (plain, packed) = (product_bf16(&x, &weight)?, product::product_packed(&x, &packed)?);
            assert_eq!(plain.to_vec2::<f32>()?, packed.to_vec2::<f32>()?);
        }
        Ok(())
    }

    #[test]
    fn a_rows_result_and_gradient_do_not_depend_on_the_others() -> Result<()> {
        let (x, weight) = (noise(1, &[101, 277]), noise(2, &[45, 277]));
        let packed = Packed::new(&weight, DType::BF16)?;
        let gradient = noise(3, &[101, 45]);
        let both = |start, length| -> Result<[Vec<Vec<f32>>; 2]> {
            let x = Var::from_tensor(&x.narrow(0, start, length)?)?;
            let out = product::product_packed(&x, &packed)?;
            let weighed = (&out * gradient.narrow(0, start, length)?)?.sum_all()?;
            let gradients = weighed.backward()?;
            Ok([out.to_vec2()?, gradients.get(&x).unwrap().to_vec2()?])
        };
        let whole = both(0, 101)?;
        for start in [0, 1, 50, 100] {
            for length in [1, 2, 3, 7, 51] {
                let length = length.min(101 - start);
                let part = both(start, length)?;
                assert_eq!(part[0], whole[0][start..start + length]);
                // Elsewhere candle multiplies, whose order depends on the shape.
                if available() {
                    assert_eq!(part[1], whole[1][start..start + length]);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn not_a_number_and_infinity_stay_in_their_row() -> Result<()> {
        let mut values = vec![0.5f32; 3 * 40];
        values[45] = f32::NAN;
        values[85] = f32::INFINITY;
        let x = Tensor::from_vec(values, (3, 40), &Device::Cpu)?;
        let weight = Tensor::full(0.25f32, (21, 40), &Device::Cpu)?;
        let packed = Packed::new(&weight, DType::BF16)?;
        for out in [product_bf16(&x, &weight)?, product::product_packed(&x, &packed)?] {
            let out = out.to_vec2::<f32>()?;
            assert!(out[0].iter().all(|&number| number == 5.0));
            assert!(out[1].iter().all(|number| number.is_nan()));
            assert!(out[2].iter().all(|&number| number == f32::INFINITY));
        }
        Ok(())
    }

    #[test]
    fn views_and_empty_tensors_are_taken_and_others_told() -> Result<()> {
        let (x_k_t, weight) = (noise(1, &[6, 4]), noise(2, &[3, 6]));
        let view = x_k_t.t()?;
        assert_product(
            &product_bf16(&view, &weight)?,
            &view.contiguous()?,
            &weight.t()?.contiguous()?,
        )?;
        let none = Tensor::zeros((0, 6), DType::F32, &Device::Cpu)?;
        assert_eq!(product_bf16(&none, &weight)?.dims(), [0, 3]);
        let error = product_bf16(&none, &noise(2, &[3, 5])).unwrap_err().to_string();
        assert!(error.contains("[0, 6] and [3, 5]"), "{error}");
        Ok(())
    }
}
