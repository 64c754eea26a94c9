//! The product of every linear layer: rows of activations by rows of a weight.
//!
//! Each output is one sum over the inputs, from the first to the last, in a lane of its own. So a row's result is the
//! same to the last bit whatever other rows the call has and however the weight is laid out: generation in batches,
//! scoring and training agree.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};

use crate::bf16::{self, product_bf16_composed};
use crate::int8;
use crate::lanes;
use crate::packed::{self, Operand, Packed, WIDTH, Weights, blocks, in_strips, parts};
use crate::quantized::Quantized;
use crate::slices::{added, fusible, slice};

/// Rows of activations that meet a panel of the weight at once: with AVX2 that is 12 sums, 2 vectors of weights and a
/// number of an activation, of 16 registers.
const ROWS: usize = 6;
/// So few rows take two panels at once, or the sums would wait for each other.
const FEW: usize = 3;

/// `x W^T`, differentiable in both; a weight that does not train costs no gradient.
///
/// `x_t_k` has a row a token, `weight_n_k` a row an output. The weight is brought into the order of [`Packed`] on the
/// way, which a few rows notice: pack one that stays as it is.
///
/// # Errors
/// When the shapes do not fit.
pub fn product(x_t_k: &Tensor, weight_n_k: &Tensor) -> Result<Tensor> {
    match operands("product", x_t_k, weight_n_k)? {
        Some((x_t_k, weight_n_k)) => x_t_k.apply_op2(&weight_n_k, Product),
        None => product_composed(x_t_k, weight_n_k),
    }
}

/// The operands of a fused product, contiguous; nothing where the composed twin is to do it, on another device or where
/// there is nothing to multiply.
///
/// # Errors
/// When the shapes do not fit.
pub(crate) fn operands(name: &str, x_t_k: &Tensor, weight_n_k: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
    if !fusible(&[x_t_k, weight_n_k]) {
        return Ok(None);
    }
    let ((rows, inner), (outputs, weight_inner)) = (x_t_k.dims2()?, weight_n_k.dims2()?);
    if inner != weight_inner {
        bail!(
            "{name}: expected x [t,k] and weight [n,k], found {:?} and {:?}",
            x_t_k.dims(),
            weight_n_k.dims()
        )
    }
    if rows == 0 || inner == 0 || outputs == 0 {
        return Ok(None);
    }
    Ok(Some((x_t_k.contiguous()?, weight_n_k.contiguous()?)))
}

/// [`product`] in plain candle operations.
pub fn product_composed(x_t_k: &Tensor, weight_n_k: &Tensor) -> Result<Tensor> {
    x_t_k.matmul(&weight_n_k.t()?)
}

/// [`product`] with a packed weight: the same bits, without the way there. Differentiable in `x_t_k`. With one packed as
/// bf16 it is [`crate::product_bf16`]; one in blocks ([`Packed::quantized`]) counts as what it dequantizes to, and so do the
/// gradients of one that is multiplied in integers.
///
/// # Errors
/// When the shapes do not fit, or `x_t_k` is not f32 on the CPU.
pub fn product_packed(x_t_k: &Tensor, weight_n_k: &Packed) -> Result<Tensor> {
    let ((rows, inner), (outputs, inputs)) = (x_t_k.dims2()?, weight_n_k.dims());
    if inner != inputs || !fusible(&[x_t_k]) {
        bail!(
            "product_packed: expected x [t,{inputs}] of f32 on the CPU, found {:?} of {:?}",
            x_t_k.dims(),
            x_t_k.dtype()
        )
    }
    if rows == 0 || inner == 0 || outputs == 0 {
        return product_packed_composed(x_t_k, weight_n_k);
    }
    x_t_k.contiguous()?.apply_op1(ProductPacked(weight_n_k.clone()))
}

/// [`product_packed`] in plain candle operations.
pub fn product_packed_composed(x_t_k: &Tensor, weight_n_k: &Packed) -> Result<Tensor> {
    let tensor_n_k = weight_n_k.tensor()?;
    match weight_n_k.operand() {
        Operand::F32(_) => product_composed(x_t_k, &tensor_n_k),
        Operand::Pairs(_) => product_bf16_composed(x_t_k, &tensor_n_k),
        Operand::Integers(_) => product_composed(&int8::rounded(x_t_k)?, &tensor_n_k),
    }
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
        let (rows, inputs) = x_layout.shape().dims2()?;
        let outputs = weight_layout.shape().dims2()?.0;
        let out = multiply_rows(slice(x, x_layout)?, slice(weight, weight_layout)?, inputs);
        Ok((CpuStorage::F32(out), (rows, outputs).into()))
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

struct ProductPacked(Packed);

impl CustomOp1 for ProductPacked {
    fn name(&self) -> &'static str {
        "product_packed"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, outputs) = (layout.shape().dims2()?.0, self.0.dims().0);
        let x = slice(x, layout)?;
        let out = match self.0.operand() {
            Operand::F32(weights) => multiply(x, weights),
            Operand::Pairs(right) => bf16::multiply_packed(x, &self.0, right),
            Operand::Integers(quantized) => int8::multiply(x, quantized, self.0.dims()),
        };
        Ok((CpuStorage::F32(out), (rows, outputs).into()))
    }

    fn bwd(&self, _x_t_k: &Tensor, _out_t_n: &Tensor, gradient_t_n: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(product_packed_gradient(gradient_t_n, &self.0, None)?))
    }
}

/// What the gradient for `x` of [`product`], or with `DType::BF16` of [`crate::product_bf16`], is where that of its result is
/// `gradient_t_n`: `gradient W`. Where `onto_t_k` is given it is added to that, in its memory.
///
/// # Errors
/// When the shapes do not fit, or tensors are not f32 on the CPU.
pub fn product_gradient(
    gradient_t_n: &Tensor,
    weight_n_k: &Tensor,
    dtype: DType,
    onto_t_k: Option<Tensor>,
) -> Result<Tensor> {
    let (outputs, inputs) = weight_n_k.dims2()?;
    check_gradient(gradient_t_n, (outputs, inputs), onto_t_k.as_ref())?;
    let weight_n_k = weight_n_k.detach();
    let for_x_t_k = match dtype {
        DType::BF16 => bf16::times(gradient_t_n, &weight_n_k)?,
        _ => gradient_t_n.matmul(&weight_n_k)?,
    };
    added(for_x_t_k, onto_t_k)
}

/// [`product_gradient`] of [`product_packed`].
///
/// # Errors
/// As [`product_gradient`].
pub fn product_packed_gradient(
    gradient_t_n: &Tensor,
    weight_n_k: &Packed,
    onto_t_k: Option<Tensor>,
) -> Result<Tensor> {
    check_gradient(gradient_t_n, weight_n_k.dims(), onto_t_k.as_ref())?;
    let for_x_t_k = match weight_n_k.operand() {
        Operand::Pairs(_) => bf16::multiply_turned(gradient_t_n, weight_n_k)?,
        Operand::F32(_) | Operand::Integers(_) => gradient_t_n.matmul(&weight_n_k.tensor()?)?,
    };
    added(for_x_t_k, onto_t_k)
}

/// What the gradient for the weight of [`product`], or with `DType::BF16` of [`crate::product_bf16`], is where that of its
/// result is `gradient_t_n`: `gradient^T x`.
///
/// # Errors
/// When the shapes do not fit, or tensors are not f32 on the CPU.
pub fn product_weight_gradient(gradient_t_n: &Tensor, x_t_k: &Tensor, dtype: DType) -> Result<Tensor> {
    let ((rows, outputs), (x_rows, inputs)) = (gradient_t_n.dims2()?, x_t_k.dims2()?);
    if rows != x_rows || !fusible(&[gradient_t_n, x_t_k]) {
        bail!(
            "product_weight_gradient: expected gradient [t,n] and x [t,k] of f32 on the CPU, found {:?} and {:?}",
            gradient_t_n.dims(),
            x_t_k.dims()
        )
    }
    if dtype == DType::BF16 && rows * outputs * inputs > 0 {
        return bf16::transposed_times(gradient_t_n, x_t_k);
    }
    gradient_t_n.t()?.matmul(x_t_k)
}

/// Holds a gradient to the outputs of a weight, and what it is added to, to its inputs.
fn check_gradient(
    gradient_t_n: &Tensor,
    (outputs, inputs): (usize, usize),
    onto_t_k: Option<&Tensor>,
) -> Result<()> {
    let (rows, width) = gradient_t_n.dims2()?;
    let fits = onto_t_k.is_none_or(|onto_t_k| onto_t_k.dims() == [rows, inputs] && onto_t_k.is_contiguous());
    if rows == 0 || width != outputs || !fits || !fusible(&[gradient_t_n]) {
        bail!(
            "product_gradient: expected a gradient [t,{outputs}] of f32 on the CPU, and what it is added to of [t,{inputs}], \
             found {:?} and {:?}",
            gradient_t_n.dims(),
            onto_t_k.map(Tensor::dims)
        )
    }
    Ok(())
}

thread_local! {
    /// Where a thread expands panels: kept, since a product of one row takes no longer than making it would.
    static ROOMS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// `x W^T` of rows of `inputs` numbers each.
pub(crate) fn multiply_rows(x: &[f32], weight: &[f32], inputs: usize) -> Vec<f32> {
    let weights = Weights {
        outputs: weight.len() / inputs,
        inputs,
        numbers: packed::Layout::Rows(weight),
    };
    multiply(x, weights)
}

/// `x W^T`, in parallel over strips of columns.
pub(crate) fn multiply(x: &[f32], weights: Weights) -> Vec<f32> {
    let (rows, columns) = (x.len() / weights.inputs, weights.outputs);
    in_strips(rows, columns, |first, out| {
        ROOMS.with_borrow_mut(|rooms| {
            lanes::run(Strip {
                x,
                weights,
                first,
                rooms,
                out,
            });
        });
    })
}

/// The products of all rows with some panels of the weight, which are columns of the result.
struct Strip<'a> {
    x: &'a [f32],
    weights: Weights<'a>,
    /// The first panel.
    first: usize,
    /// Where panels are expanded.
    rooms: &'a mut [Vec<f32>; 2],
    /// Each row's part of the result.
    out: Vec<&'a mut [f32]>,
}

impl WithSimd for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 1>(simd),
            8 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, WIDTH>(simd),
        }
    }
}

impl Strip<'_> {
    /// With vectors of which `C` make a panel's width.
    #[inline(always)]
    fn run<S: Simd, const C: usize>(mut self, simd: S) {
        let panels = self.out[0].len().div_ceil(WIDTH);
        // Where a vector is one number there is no room for more sums than those of two rows.
        let most = if C == WIDTH { 2 } else { ROWS };
        let together = if self.out.len() <= FEW { 2 } else { 1 };
        for block in blocks(0..self.weights.inputs) {
            for panel in (0..panels).step_by(together) {
                let [room, other] = &mut *self.rooms;
                let mut tile = Tile {
                    x: &self.x[block.start..],
                    stride: self.weights.inputs,
                    depth: block.len(),
                    goes_on: block.start > 0,
                    column: panel * WIDTH,
                };
                if let (packed::Layout::Quantized(quantized), [row]) = (self.weights.numbers, &mut *self.out)
                    && panel + 1 < panels
                {
                    tile.add_quantized::<S, C>(simd, quantized, self.first + panel, block.clone(), row);
                    continue;
                }
                let numbers = self.weights.panel(self.first + panel, block.clone(), room);
                if together == 2 && panel + 1 < panels {
                    let others = self.weights.panel(self.first + panel + 1, block.clone(), other);
                    let numbers = [numbers, others];
                    match self.out.len() {
                        3 => tile.add::<S, 3, 2, C>(simd, numbers, &mut self.out),
                        2 => tile.add::<S, 2, 2, C>(simd, numbers, &mut self.out),
                        _ => tile.add::<S, 1, 2, C>(simd, numbers, &mut self.out),
                    }
                    continue;
                }
                for rows in parts(self.out.len(), most) {
                    tile.x = &self.x[rows.start * self.weights.inputs + block.start..];
                    let out = &mut self.out[rows];
                    match out.len() {
                        6 => tile.add::<S, 6, 1, C>(simd, [numbers], out),
                        5 => tile.add::<S, 5, 1, C>(simd, [numbers], out),
                        4 => tile.add::<S, 4, 1, C>(simd, [numbers], out),
                        3 => tile.add::<S, 3, 1, C>(simd, [numbers], out),
                        2 => tile.add::<S, 2, 1, C>(simd, [numbers], out),
                        _ => tile.add::<S, 1, 1, C>(simd, [numbers], out),
                    }
                }
            }
        }
    }
}

/// A few rows by a panel or two, over one block of inputs.
struct Tile<'a> {
    /// The first row's activations from the block on.
    x: &'a [f32],
    /// From one row of activations to the next.
    stride: usize,
    /// Inputs of the block.
    depth: usize,
    /// Whether the result holds sums over earlier blocks.
    goes_on: bool,
    /// Where in the rows of the result the first panel begins.
    column: usize,
}

impl Tile<'_> {
    /// Adds the products of `R` rows with `P` panels to the sums in `out`.
    #[inline(always)]
    fn add<S: Simd, const R: usize, const P: usize, const C: usize>(
        &self,
        simd: S,
        panels: [&[f32]; P],
        out: &mut [&mut [f32]],
    ) {
        let mut x: [&[f32]; R] = [&[]; R];
        for r in 0..R {
            x[r] = &self.x[r * self.stride..][..self.depth];
        }
        let mut weights: [&[[S::f32s; C]]; P] = [&[]; P];
        for p in 0..P {
            weights[p] = &S::as_simd_f32s(panels[p]).0.as_chunks().0[..self.depth];
        }
        let mut sums = [[[simd.splat_f32s(0.0); C]; P]; R];
        if self.goes_on {
            for r in 0..R {
                for p in 0..P {
                    sums[r][p] = load::<S, C>(&out[r][self.column + p * WIDTH..]);
                }
            }
        }
        // Fused where the instruction set fuses; elsewhere a call for each element would cost more than its rounding.
        for k in 0..self.depth {
            for r in 0..R {
                let number = simd.splat_f32s(x[r][k]);
                for p in 0..P {
                    for c in 0..C {
                        sums[r][p][c] = simd.mul_add_e_f32s(weights[p][k][c], number, sums[r][p][c]);
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                store::<S, C>(sums[r][p], &mut out[r][self.column + p * WIDTH..]);
            }
        }
    }

    /// Adds the products of one row with two panels of a weight in blocks.
    #[inline(always)]
    fn add_quantized<S: Simd, const C: usize>(
        &self,
        simd: S,
        quantized: &Quantized,
        panel: usize,
        block: Range<usize>,
        row: &mut [f32],
    ) {
        let mut sums = [[simd.splat_f32s(0.0); C]; 2];
        if self.goes_on {
            for p in 0..2 {
                sums[p] = load::<S, C>(&row[self.column + p * WIDTH..]);
            }
        }
        quantized.add_row(simd, &self.x[..self.depth], panel, block, &mut sums);
        for p in 0..2 {
            store::<S, C>(sums[p], &mut row[self.column + p * WIDTH..]);
        }
    }
}

/// A panel's sums of a row; where the row ends before the panel does, the rest is zero.
#[inline(always)]
fn load<S: Simd, const C: usize>(row: &[f32]) -> [S::f32s; C] {
    let mut edge = [0.0; WIDTH];
    let row = if let Some(whole) = row.first_chunk::<WIDTH>() {
        whole
    } else {
        edge[..row.len()].copy_from_slice(row);
        &edge
    };
    S::as_simd_f32s(row).0.as_chunks().0[0]
}

/// Puts a panel's sums where [`load`] finds them.
#[inline(always)]
fn store<S: Simd, const C: usize>(sums: [S::f32s; C], row: &mut [f32]) {
    if let Some(whole) = row.first_chunk_mut::<WIDTH>() {
        S::as_mut_simd_f32s(whole).0.copy_from_slice(&sums);
    } else {
        let mut edge = [0.0; WIDTH];
        S::as_mut_simd_f32s(&mut edge).0.copy_from_slice(&sums);
        row.copy_from_slice(&edge[..row.len()]);
    }
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
            (1, 40, 300),
            (3, 33, 520),
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
                largest_gap(&fused, &composed) < 1e-6 * inner.max(10) as f32,
                "{rows} x {columns} over {inner}"
            );
        }
    }

    #[test]
    fn a_rows_result_does_not_depend_on_the_others() {
        let (x_t_k, weight_n_k) = (numbers(101, 277, 3), numbers(45, 277, 9));
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
    fn a_packed_weight_gives_the_same_bits() {
        for (rows, columns, inner) in [
            (1, 1, 1),
            (1, 70, 300),
            (2, 33, 256),
            (3, 16, 9),
            (4, 50, 600),
            (40, 7, 257),
        ] {
            let (x_t_k, weight_n_k) = (numbers(rows, inner, 1), numbers(columns, inner, 50));
            let bits = |out: Tensor| out.to_vec2::<f32>().unwrap();
            let expected = bits(product(&x_t_k, &weight_n_k).unwrap());
            let packed = Packed::new(&weight_n_k, DType::F32).unwrap();
            assert_eq!(bits(product_packed(&x_t_k, &packed).unwrap()), expected);
        }
    }

    #[test]
    fn a_packed_weights_gradient_is_the_twins() {
        let x_t_k = Var::from_tensor(&numbers(5, 300, 1)).unwrap();
        let packed = Packed::new(&numbers(9, 300, 70), DType::F32).unwrap();
        let weigh = numbers(5, 9, 400);
        let gradient = |out: Tensor| {
            let gradients = (out * &weigh).unwrap().sum_all().unwrap().backward().unwrap();
            gradients.get(&x_t_k).unwrap().clone()
        };
        let fused = gradient(product_packed(&x_t_k, &packed).unwrap());
        let composed = gradient(product_packed_composed(&x_t_k, &packed).unwrap());
        assert!(largest_gap(&fused, &composed) < 1e-5);
        assert!(product_packed(&numbers(2, 299, 0), &packed).is_err());
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
