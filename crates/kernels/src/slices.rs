//! Tensors as slices of f32, and the split of work over threads.
//!
//! Work is split into blocks whose size does not depend on the number of threads, and each block is reduced by one
//! thread in a fixed order, so results are the same bits on any number of threads.

use std::sync::Mutex;

use candle_core::{CpuStorage, DType, Error, InplaceOp1, InplaceOp2, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::device::{fuses, on_the_cpu_alone};
use crate::lanes;

/// How many elements one thread takes at a time in element-wise work.
pub(crate) const BLOCK: usize = 1 << 14;

/// Whether the fused forms can take these tensors: all where they run ([`fuses`]), all f32.
pub(crate) fn fusible(tensors: &[&Tensor]) -> bool {
    tensors
        .iter()
        .all(|tensor| fuses(tensor.device()) && tensor.dtype() == DType::F32)
}

/// The elements of a contiguous f32 CPU storage.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    on_the_cpu_alone()?;
    let (start, end) = contiguous(layout)?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `body` with the elements of f32 CPU tensors, copied first where they are not contiguous.
pub(crate) fn read<T, const N: usize>(
    tensors: [&Tensor; N],
    body: impl FnOnce([&[f32]; N]) -> Result<T>,
) -> Result<T> {
    let contiguous: Vec<Tensor> = tensors
        .iter()
        .map(|tensor| tensor.detach().contiguous())
        .collect::<Result<_>>()?;
    let guards: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (elements, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage) = &**storage else {
            bail!("expected a tensor on the CPU")
        };
        *elements = slice(storage, layout)?;
    }
    body(slices)
}

/// Calls `body` with the elements of a contiguous f32 CPU tensor, to change them in place.
///
/// `body` must not touch the tensor by another way; see [`distinct`].
pub(crate) fn write(tensor: &Tensor, body: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    tensor.inplace_op1(&Write(Mutex::new(Some(body))))
}

/// `tensor`; or `onto`, to which it was added.
pub(crate) fn added(tensor: Tensor, onto: Option<Tensor>) -> Result<Tensor> {
    let Some(onto) = onto else {
        return Ok(tensor);
    };
    add_to(&onto, &tensor)?;
    Ok(onto)
}

/// Adds `addend` to `sum` in place.
///
/// # Errors
/// When the shapes differ, the two share storage, `sum` is not contiguous, or one is not f32 on the CPU.
pub fn add_to(sum: &Tensor, addend: &Tensor) -> Result<()> {
    if sum.dims() != addend.dims() {
        bail!(
            "add_to: expected {:?} to be added, found {:?}",
            sum.dims(),
            addend.dims()
        )
    }
    distinct(&[sum, addend])?;
    read([addend], |[addend]| {
        write(sum, |sum| {
            for_blocks(sum, BLOCK, |first, sum| {
                lanes::add_scaled(sum, &addend[first..first + sum.len()], 1.0);
            });
            Ok(())
        })
    })
}

/// Adds row `n` of `rows_t_d` to row `ids[n]` of `sum_v_d`, in place.
///
/// # Errors
/// When the shapes do not fit, a row is not there, the two share storage, or one is not f32 on the CPU.
pub fn add_rows(sum_v_d: &Tensor, rows_t_d: &Tensor, ids: &[u32]) -> Result<()> {
    let ((rows, width), (count, row_width)) = (sum_v_d.dims2()?, rows_t_d.dims2()?);
    if width != row_width || count != ids.len() || ids.iter().any(|&id| id as usize >= rows) {
        bail!(
            "add_rows: expected {} rows of {width} for rows below {rows}, found {:?}",
            ids.len(),
            rows_t_d.dims()
        )
    }
    distinct(&[sum_v_d, rows_t_d])?;
    read([rows_t_d], |[rows]| {
        write(sum_v_d, |sum| {
            for (row, &id) in rows.chunks_exact(width.max(1)).zip(ids) {
                lanes::add_scaled(&mut sum[id as usize * width..][..width], row, 1.0);
            }
            Ok(())
        })
    })
}

/// Refuses tensors of which two share storage.
pub(crate) fn distinct(tensors: &[&Tensor]) -> Result<()> {
    for (index, tensor) in tensors.iter().enumerate() {
        for other in &tensors[index + 1..] {
            tensor.inplace_op2(other, &Distinct)?;
        }
    }
    Ok(())
}

/// Calls `body(first_index, block)` for blocks of `block` elements of `out`, in parallel.
pub(crate) fn for_blocks(out: &mut [f32], block: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    let block = block.max(1);
    if out.len() <= block {
        body(0, out);
    } else {
        out.par_chunks_mut(block)
            .enumerate()
            .for_each(|(index, chunk)| body(index * block, chunk));
    }
}

/// How many elements make a block of whole rows.
pub(crate) fn row_block(width: usize) -> usize {
    (BLOCK / width.max(1)).max(1) * width
}

/// A closure as candle's in-place operation, which takes its operation by shared reference; hence the lock.
struct Write<F>(Mutex<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Write<F> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        on_the_cpu_alone()?;
        let (start, end) = contiguous(layout)?;
        let CpuStorage::F32(elements) = storage else {
            bail!("expected f32, found {:?}", storage_type(storage))
        };
        let body = self.0.lock().ok().and_then(|mut body| body.take());
        body.map_or(Ok(()), |body| body(&mut elements[start..end]))
    }
}

/// Does nothing: candle refuses aliased operands before it is called.
struct Distinct;

impl InplaceOp2 for Distinct {
    fn name(&self) -> &'static str {
        "distinct"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        Ok(())
    }
}

fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    layout
        .contiguous_offsets()
        .ok_or_else(|| Error::RequiresContiguous { op: "kernels" }.bt())
}

fn storage_type(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::noise;

    #[test]
    fn sums_are_added_to_in_place() -> Result<()> {
        let (sum, addend) = (noise(1, &[300, 70]), noise(2, &[300, 70]));
        let expected = (sum.as_tensor() + addend.as_tensor())?.to_vec2::<f32>()?;
        add_to(&sum, &addend)?;
        assert_eq!(sum.to_vec2::<f32>()?, expected);

        let (sum, rows) = (noise(3, &[5, 3]), noise(4, &[4, 3]));
        let ids = [4, 0, 4, 2];
        let expected = sum
            .index_add(&Tensor::new(&ids[..], sum.device())?, &rows, 0)?
            .to_vec2::<f32>()?;
        add_rows(&sum, &rows, &ids)?;
        assert_eq!(sum.to_vec2::<f32>()?, expected);
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_not_added() {
        let sum = noise(1, &[5, 3]);
        let before = sum.to_vec2::<f32>().unwrap();
        assert!(add_to(&sum, &noise(2, &[3, 5])).is_err());
        assert!(add_to(&sum, &sum).is_err());
        assert!(add_rows(&sum, &noise(2, &[1, 3]), &[5]).is_err());
        assert!(add_rows(&sum, &noise(2, &[2, 3]), &[1]).is_err());
        assert_eq!(sum.to_vec2::<f32>().unwrap(), before);
    }
}
