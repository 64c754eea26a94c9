//! Attention while generating: each row reads its keys and values from a pool of slots. Inference only.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::attention::{Heads, ROWS, attend_dense};
use crate::lanes;
use crate::rows::Rows;
use crate::single_row;
use crate::slices::{distinct, fusible, read, slice, write};

/// What one query row attends to: the first `len` slots of a list.
///
/// The rows of one sequence share the list and differ in `len`, so a chunk of a prompt is causal by itself.
#[derive(Clone, Debug)]
pub struct Context {
    /// Slots of the pool, in order of position.
    pub slots: Arc<[u32]>,
    /// How many of them the row sees, itself included; at least one.
    pub len: usize,
}

/// Attention of row `n` of `q_t_h_d` to the slots in `rows[n]`, with scores scaled by `1/sqrt(d)`; no gradient.
///
/// `k_s_g_d` and `v_s_g_d` are the pools, `h` is a multiple of `g`. Neighbouring rows of one sequence (one list, each
/// row seeing one slot more) are taken together; a row's result is the same bits with or without them.
///
/// # Errors
/// When the shapes do not fit, a context is empty or longer than its list, or a slot is not in the pool.
pub fn attend_paged(
    q_t_h_d: &Tensor,
    k_s_g_d: &Tensor,
    v_s_g_d: &Tensor,
    rows: &[Context],
) -> Result<Tensor> {
    if !fusible(&[q_t_h_d, k_s_g_d, v_s_g_d]) {
        return attend_paged_composed(q_t_h_d, k_s_g_d, v_s_g_d, rows);
    }
    let heads = check(q_t_h_d, k_s_g_d, v_s_g_d, rows)?;
    q_t_h_d
        .contiguous()?
        .apply_op3_no_bwd(k_s_g_d, v_s_g_d, &Paged { heads, rows })
}

/// [`attend_paged`] in plain candle operations, a run of neighbouring rows of a sequence at a time.
pub fn attend_paged_composed(
    q_t_h_d: &Tensor,
    k_s_g_d: &Tensor,
    v_s_g_d: &Tensor,
    rows: &[Context],
) -> Result<Tensor> {
    check(q_t_h_d, k_s_g_d, v_s_g_d, rows)?;
    let q_t_h_d = q_t_h_d.detach();
    let mut outputs = Vec::new();
    for run in runs(rows) {
        let context = &rows[run.end - 1];
        let slots_m = Tensor::new(&context.slots[..context.len], q_t_h_d.device())?;
        let k_m_g_d = k_s_g_d.detach().index_select(&slots_m, 0)?;
        let v_m_g_d = v_s_g_d.detach().index_select(&slots_m, 0)?;
        let q_n_h_d = q_t_h_d.narrow(0, run.start, run.len())?;
        outputs.push(attend_dense(&q_n_h_d, &k_m_g_d, &v_m_g_d)?);
    }
    if outputs.is_empty() {
        Ok(q_t_h_d)
    } else {
        Tensor::cat(&outputs, 0)
    }
}

/// Copies row `n` of `rows_t_g_d` into slot `slots[n]` of the pool, in place. No slot should be named twice.
///
/// # Errors
/// When the shapes do not fit, a slot is not in the pool, or the rows share the pool's storage.
pub fn write_slots(pool_s_g_d: &Tensor, rows_t_g_d: &Tensor, slots: &[u32]) -> Result<()> {
    if !fusible(&[pool_s_g_d, rows_t_g_d]) {
        return write_slots_composed(pool_s_g_d, rows_t_g_d, slots);
    }
    check_slots(pool_s_g_d, rows_t_g_d, slots)?;
    distinct(&[pool_s_g_d, rows_t_g_d])?;
    let width = pool_s_g_d.elem_count() / pool_s_g_d.dim(0)?.max(1);
    read([rows_t_g_d], |[rows]| {
        write(pool_s_g_d, |pool| {
            for (row, &slot) in rows.chunks_exact(width.max(1)).zip(slots) {
                pool[slot as usize * width..][..width].copy_from_slice(row);
            }
            Ok(())
        })
    })
}

/// [`write_slots`] in plain candle operations.
pub fn write_slots_composed(pool_s_g_d: &Tensor, rows_t_g_d: &Tensor, slots: &[u32]) -> Result<()> {
    check_slots(pool_s_g_d, rows_t_g_d, slots)?;
    if slots.is_empty() {
        return Ok(());
    }
    let slots_t_g_d = Tensor::new(slots, pool_s_g_d.device())?
        .reshape((slots.len(), 1, 1))?
        .broadcast_as(rows_t_g_d.shape())?
        .contiguous()?;
    pool_s_g_d.scatter_set(&slots_t_g_d, &rows_t_g_d.contiguous()?, 0)
}

fn check(q_t_h_d: &Tensor, k_s_g_d: &Tensor, v_s_g_d: &Tensor, rows: &[Context]) -> Result<Heads> {
    let (count, query, width) = q_t_h_d.dims3()?;
    let (pool, groups, key_width) = k_s_g_d.dims3()?;
    let fits = key_width == width && v_s_g_d.dims() == k_s_g_d.dims();
    if !fits || query == 0 || groups == 0 || width == 0 || !query.is_multiple_of(groups) {
        bail!(
            "attend_paged: expected q [t,h,d], pools [s,g,d] with h a multiple of g, found q {:?}, k {:?}, v {:?}",
            q_t_h_d.dims(),
            k_s_g_d.dims(),
            v_s_g_d.dims()
        )
    }
    if rows.len() != count {
        bail!(
            "attend_paged: expected a context for each of {count} rows, found {}",
            rows.len()
        )
    }
    for (row, context) in rows.iter().enumerate() {
        if context.len == 0 || context.len > context.slots.len() {
            bail!(
                "attend_paged: row {row} sees {} of {} slots",
                context.len,
                context.slots.len()
            )
        }
    }
    for run in runs(rows) {
        let context = &rows[run.end - 1];
        if let Some(slot) = context.slots[..context.len]
            .iter()
            .find(|&&slot| slot as usize >= pool)
        {
            bail!(
                "attend_paged: row {} names slot {slot} of a pool of {pool}",
                run.end - 1
            )
        }
    }
    Ok(Heads { query, groups, width })
}

fn check_slots(pool_s_g_d: &Tensor, rows_t_g_d: &Tensor, slots: &[u32]) -> Result<()> {
    let (pool, groups, width) = pool_s_g_d.dims3()?;
    if rows_t_g_d.dims() != [slots.len(), groups, width] {
        bail!(
            "write_slots: expected rows [{}, {groups}, {width}], found {:?}",
            slots.len(),
            rows_t_g_d.dims()
        )
    }
    if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= pool) {
        bail!("write_slots: slot {slot} is not in a pool of {pool}")
    }
    Ok(())
}

/// Splits rows into runs of at most [`ROWS`] that share a list and see one slot more each.
fn runs(rows: &[Context]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, context) in rows.iter().enumerate() {
        let continues = |run: &Range<usize>| {
            let before = &rows[run.end - 1];
            run.len() < ROWS && Arc::ptr_eq(&before.slots, &context.slots) && before.len + 1 == context.len
        };
        match runs.last_mut() {
            Some(run) if continues(run) => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

/// What a task makes of the outputs of a run.
enum Part<'a> {
    /// All of its only row.
    Row(&'a mut [f32]),
    /// What one key/value head gives to each of its rows.
    Group(usize, Vec<&'a mut [f32]>),
}

struct Paged<'a> {
    heads: Heads,
    rows: &'a [Context],
}

impl CustomOp3 for Paged<'_> {
    fn name(&self) -> &'static str {
        "attend_paged"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (slice(q, q_layout)?, slice(k, k_layout)?, slice(v, v_layout)?);
        let heads = self.heads;
        let row = heads.query_row();
        let mut out = vec![0.0; q.len()];
        let mut rest = out.as_mut_slice();
        let mut tasks = Vec::new();
        let runs = runs(self.rows);
        // One row alone over few keys is the same work in fewer rounds where every key/value head is a task.
        let short = runs.len() == 1 && self.rows[0].len < single_row::MANY;
        for run in runs {
            let (block, behind) = rest.split_at_mut(run.len() * row);
            rest = behind;
            if run.len() == 1 && !short {
                tasks.push((run, Part::Row(block)));
            } else {
                let outs = heads.by_group(block).into_iter().enumerate();
                tasks.extend(outs.map(|(group, out)| (run.clone(), Part::Group(group, out))));
            }
        }
        tasks
            .into_par_iter()
            .for_each_init(Vec::new, |weights, (run, part)| {
                let last = &self.rows[run.end - 1];
                let (q, places) = (&q[run.start * row..run.end * row], &last.slots[..last.len]);
                match part {
                    Part::Row(out) => single_row::attend(heads, q, k, v, places, out),
                    Part::Group(group, out) => lanes::run(Rows {
                        heads,
                        group,
                        q,
                        k,
                        v,
                        places,
                        weights,
                        out,
                    }),
                }
            });
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Segment, attend};
    use crate::fixtures::{assert_close, noise};

    fn context(slots: &Arc<[u32]>, len: usize) -> Context {
        Context {
            slots: slots.clone(),
            len,
        }
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        let (long, short): (Arc<[u32]>, Arc<[u32]>) = (
            (0..90).map(|n| n * 37 % 101).collect(),
            [100, 3, 55, 8, 99].into(),
        );
        let mut rows = vec![context(&short, 3), context(&long, 90), context(&short, 5)];
        rows.extend((2..=81).map(|len| context(&long, len))); // longer than a block of rows
        rows.extend([1, 2, 3].map(|len| context(&short, len))); // too few for a chunk
        for (heads, groups, width) in [(1, 1, 1), (4, 2, 8), (9, 3, 64)] {
            let q = noise(1, &[rows.len(), heads, width]);
            let (k, v) = (noise(2, &[101, groups, width]), noise(3, &[101, groups, width]));
            let alone = |row| attend_paged_composed(&q.narrow(0, row, 1)?, &k, &v, &rows[row..=row]);
            let expected = Tensor::cat(&(0..rows.len()).map(alone).collect::<Result<Vec<_>>>()?, 0)?;
            assert_close(&attend_paged_composed(&q, &k, &v, &rows)?, &expected, 2e-6);
            assert_close(&attend_paged(&q, &k, &v, &rows)?, &expected, 2e-6);
        }
        Ok(())
    }

    #[test]
    fn a_rows_result_does_not_depend_on_the_others() -> Result<()> {
        let slots: Arc<[u32]> = (0..90).map(|n| n * 37 % 101).collect();
        let rows: Vec<Context> = (1..=90).map(|len| context(&slots, len)).collect();
        for (heads, groups, width) in [(2, 2, 5), (4, 2, 16), (9, 3, 64)] {
            let q = noise(1, &[rows.len(), heads, width]);
            let (k, v) = (noise(2, &[101, groups, width]), noise(3, &[101, groups, width]));
            let whole = attend_paged(&q, &k, &v, &rows)?;
            for (start, len) in [(0, 1), (89, 1), (40, 2), (3, 7), (20, 70)] {
                let part = attend_paged(&q.narrow(0, start, len)?, &k, &v, &rows[start..start + len])?;
                assert_close(&part, &whole.narrow(0, start, len)?, 0.0);
            }
            let in_order = |pool: &Tensor| pool.index_select(&Tensor::new(&slots[..], pool.device())?, 0);
            let segments = [Segment {
                start: 0,
                len: 90,
                prefix: None,
            }];
            assert_close(
                &attend(&q, &in_order(&k)?, &in_order(&v)?, &segments)?,
                &whole,
                0.0,
            );
        }
        Ok(())
    }

    #[test]
    fn a_single_row_alone_has_the_bits_that_it_has_beside_others() -> Result<()> {
        let slots: Arc<[u32]> = (0..1000).map(|n| n * 37 % 1001).collect();
        for (heads, groups, width) in [(2, 2, 5), (8, 2, 36), (9, 3, 64), (16, 8, 128)] {
            let (k, v) = (noise(2, &[1001, groups, width]), noise(3, &[1001, groups, width]));
            for len in [5, single_row::MANY, 769, 1000] {
                let rows = [context(&slots, len - 1), context(&slots, len)];
                let q = noise(1, &[2, heads, width]);
                let beside = attend_paged(&q, &k, &v, &rows)?.narrow(0, 1, 1)?;
                let q = q.narrow(0, 1, 1)?;
                assert_close(&attend_paged(&q, &k, &v, &rows[1..])?, &beside, 0.0);
                let composed = attend_paged_composed(&q, &k, &v, &rows[1..])?;
                assert_close(&composed, &beside, 2e-6);
                // Beside a row of another sequence.
                let other: Arc<[u32]> = [7, 3].into();
                let rows = [rows[1].clone(), context(&other, 2)];
                let both = attend_paged(&Tensor::cat(&[&q, &q], 0)?, &k, &v, &rows)?;
                assert_close(&both.narrow(0, 0, 1)?, &beside, 0.0);
            }
        }
        Ok(())
    }

    #[test]
    fn written_slots_are_attended_as_the_packed_sequence_is() -> Result<()> {
        let (rows, heads, groups, width) = (9, 4, 2, 8);
        let q = noise(1, &[rows, heads, width]);
        let (k, v) = (noise(2, &[rows, groups, width]), noise(3, &[rows, groups, width]));
        let slots: Arc<[u32]> = [11, 2, 7, 5, 0, 3, 8, 1, 12].into();
        let (k_pool, v_pool) = (noise(4, &[13, groups, width]), noise(5, &[13, groups, width]));
        write_slots(&k_pool, &k, &slots)?;
        write_slots(&v_pool, &v, &slots)?;
        let contexts: Vec<Context> = (1..=rows).map(|len| context(&slots, len)).collect();
        let expected = attend(
            &q,
            &k,
            &v,
            &[Segment {
                start: 0,
                len: rows,
                prefix: None,
            }],
        )?;
        assert_close(&attend_paged(&q, &k_pool, &v_pool, &contexts)?, &expected, 1e-6);
        Ok(())
    }

    #[test]
    fn writing_touches_the_named_slots_only() -> Result<()> {
        let (fused, composed) = (noise(4, &[6, 2, 3]), noise(4, &[6, 2, 3]));
        let before = composed.as_tensor().copy()?;
        let wide = noise(5, &[2, 4, 3]);
        let rows = wide.narrow(1, 1, 2)?; // not contiguous
        write_slots(&fused, &rows, &[5, 1])?;
        write_slots_composed(&composed, &rows, &[5, 1])?;
        assert_close(&fused, &composed, 0.0);
        assert_close(&fused.narrow(0, 2, 3)?, &before.narrow(0, 2, 3)?, 0.0);
        assert_close(&fused.get(1)?, &rows.get(1)?, 0.0);
        Ok(())
    }

    #[test]
    fn slots_outside_the_pool_and_shared_storage_are_refused() -> Result<()> {
        let pool = noise(4, &[6, 2, 3]);
        let slots: Arc<[u32]> = [0, 6].into();
        let q = noise(1, &[1, 2, 3]);
        let error = attend_paged(&q, &pool, &pool, &[context(&slots, 2)])
            .unwrap_err()
            .to_string();
        assert!(error.contains("slot 6 of a pool of 6"), "{error}");
        assert!(attend_paged(&q, &pool, &pool, &[context(&slots, 1)]).is_ok());
        let error = attend_paged(&q, &pool, &pool, &[context(&slots, 0)])
            .unwrap_err()
            .to_string();
        assert!(error.contains("sees 0 of 2 slots"), "{error}");
        let rows = noise(5, &[2, 2, 3]);
        let error = write_slots(&pool, &rows, &slots).unwrap_err().to_string();
        assert!(error.contains("slot 6 is not in a pool of 6"), "{error}");
        assert!(write_slots(&pool, &pool.narrow(0, 0, 2)?, &[3, 4]).is_err());
        Ok(())
    }
}
