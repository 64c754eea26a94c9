//! Attention while generating: each row reads its keys and values from a pool of slots. Inference only.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::attention::attend_dense;

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
/// `k_s_g_d` and `v_s_g_d` are the pools, `h` is a multiple of `g`.
///
/// # Errors
/// When the shapes do not fit, a context is empty or longer than its list, or a slot is not in the pool.
pub fn attend_paged(
    q_t_h_d: &Tensor,
    k_s_g_d: &Tensor,
    v_s_g_d: &Tensor,
    rows: &[Context],
) -> Result<Tensor> {
    attend_paged_composed(q_t_h_d, k_s_g_d, v_s_g_d, rows)
}

/// [`attend_paged`] in plain candle operations, a row at a time.
pub fn attend_paged_composed(
    q_t_h_d: &Tensor,
    k_s_g_d: &Tensor,
    v_s_g_d: &Tensor,
    rows: &[Context],
) -> Result<Tensor> {
    check(q_t_h_d, k_s_g_d, v_s_g_d, rows)?;
    let mut outputs = Vec::with_capacity(rows.len());
    for (row, context) in rows.iter().enumerate() {
        let slots_m = Tensor::new(&context.slots[..context.len], q_t_h_d.device())?;
        let k_m_g_d = k_s_g_d.index_select(&slots_m, 0)?;
        let v_m_g_d = v_s_g_d.index_select(&slots_m, 0)?;
        outputs.push(attend_dense(&q_t_h_d.narrow(0, row, 1)?, &k_m_g_d, &v_m_g_d)?);
    }
    if outputs.is_empty() {
        Ok(q_t_h_d.clone())
    } else {
        Tensor::cat(&outputs, 0)
    }
}

/// Copies row `n` of `rows_t_g_d` into slot `slots[n]` of the pool, in place. No slot may be named twice.
///
/// # Errors
/// When the shapes do not fit or a slot is not in the pool.
pub fn write_slots(pool_s_g_d: &Tensor, rows_t_g_d: &Tensor, slots: &[u32]) -> Result<()> {
    write_slots_composed(pool_s_g_d, rows_t_g_d, slots)
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

fn check(q_t_h_d: &Tensor, k_s_g_d: &Tensor, v_s_g_d: &Tensor, rows: &[Context]) -> Result<()> {
    let (count, heads, width) = q_t_h_d.dims3()?;
    let (pool, groups, key_width) = k_s_g_d.dims3()?;
    if key_width != width || groups == 0 || !heads.is_multiple_of(groups) || v_s_g_d.dims() != k_s_g_d.dims()
    {
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
        if let Some(slot) = context.slots[..context.len]
            .iter()
            .find(|&&slot| slot as usize >= pool)
        {
            bail!("attend_paged: row {row} names slot {slot} of a pool of {pool}")
        }
    }
    Ok(())
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
