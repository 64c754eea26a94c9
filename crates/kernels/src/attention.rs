//! Causal grouped-query attention over packed sequences, without padding.

use candle_core::{D, DType, Result, Tensor, bail};

/// One sequence among the packed rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first row.
    pub start: usize,
    /// How many rows.
    pub len: usize,
    /// The index of an earlier segment, itself without a prefix, whose rows all come before this segment's own in
    /// the sequence: a prompt shared by the replies of its group.
    pub prefix: Option<usize>,
}

/// The position of each row in its sequence: the length of its prefix plus its offset in the segment.
///
/// A prefix that does not exist counts as empty here; [`attend`] refuses it.
pub fn positions(segments: &[Segment]) -> Vec<u32> {
    let prefix_len = |segment: &Segment| {
        segment
            .prefix
            .and_then(|p| segments.get(p))
            .map_or(0, |prefix| prefix.len)
    };
    segments
        .iter()
        .flat_map(|segment| {
            let first = prefix_len(segment);
            (first..first + segment.len).map(|position| position as u32)
        })
        .collect()
}

/// Causal attention of every row to its own segment, up to itself, and to the whole of its segment's prefix.
///
/// `q_t_h_d` has `h` heads, `k_t_g_d` and `v_t_g_d` have `g` heads, and `h` is a multiple of `g`: query heads
/// `n*h/g ..` share key/value head `n`. Scores are scaled by `1/sqrt(d)`. Segments must cover the rows in order,
/// without gaps. Gradients for all three; the rows of a prefix receive the sum over the segments that use it.
///
/// # Errors
/// When the shapes do not fit or the segments do not describe the rows.
pub fn attend(q_t_h_d: &Tensor, k_t_g_d: &Tensor, v_t_g_d: &Tensor, segments: &[Segment]) -> Result<Tensor> {
    attend_composed(q_t_h_d, k_t_g_d, v_t_g_d, segments)
}

/// [`attend`] in plain candle operations, a segment at a time.
pub fn attend_composed(
    q_t_h_d: &Tensor,
    k_t_g_d: &Tensor,
    v_t_g_d: &Tensor,
    segments: &[Segment],
) -> Result<Tensor> {
    check_shapes(q_t_h_d, k_t_g_d, v_t_g_d)?;
    check_segments(segments, q_t_h_d.dim(0)?)?;
    let with_prefix = |rows: &Tensor, segment: &Segment| {
        let own = rows.narrow(0, segment.start, segment.len)?;
        match segment.prefix.map(|p| &segments[p]) {
            Some(prefix) => Tensor::cat(&[&rows.narrow(0, prefix.start, prefix.len)?, &own], 0),
            None => Ok(own),
        }
    };
    let mut outputs = Vec::with_capacity(segments.len());
    for segment in segments.iter().filter(|segment| segment.len > 0) {
        let q_n_h_d = q_t_h_d.narrow(0, segment.start, segment.len)?;
        outputs.push(attend_dense(
            &q_n_h_d,
            &with_prefix(k_t_g_d, segment)?,
            &with_prefix(v_t_g_d, segment)?,
        )?);
    }
    if outputs.is_empty() {
        Ok(q_t_h_d.clone())
    } else {
        Tensor::cat(&outputs, 0)
    }
}

/// Attention of `n` rows to `m >= n` keys, where the last query row sees every key and each earlier one a key less.
pub(crate) fn attend_dense(q_n_h_d: &Tensor, k_m_g_d: &Tensor, v_m_g_d: &Tensor) -> Result<Tensor> {
    let (rows, heads, width) = q_n_h_d.dims3()?;
    let (keys, groups, _) = k_m_g_d.dims3()?;
    let q_g_q_d = q_n_h_d
        .transpose(0, 1)?
        .reshape((groups, heads / groups * rows, width))?;
    let k_g_d_m = k_m_g_d.permute((1, 2, 0))?.contiguous()?;
    let v_g_m_d = v_m_g_d.transpose(0, 1)?.contiguous()?;
    let scores_h_n_m =
        (q_g_q_d.matmul(&k_g_d_m)? * (1.0 / (width as f64).sqrt()))?.reshape((heads, rows, keys))?;
    let wide_h_n_m = scores_h_n_m.to_dtype(crate::accumulator(q_n_h_d.dtype()))?;
    let mask_n_m = causal_mask(rows, keys, &wide_h_n_m)?;
    let masked_h_n_m = wide_h_n_m.broadcast_add(&mask_n_m)?;
    let exponents_h_n_m = masked_h_n_m
        .broadcast_sub(&masked_h_n_m.max_keepdim(D::Minus1)?.detach())?
        .exp()?;
    let weights_h_n_m = exponents_h_n_m.broadcast_div(&exponents_h_n_m.sum_keepdim(D::Minus1)?)?;
    let weights_g_q_m =
        weights_h_n_m
            .to_dtype(q_n_h_d.dtype())?
            .reshape((groups, heads / groups * rows, keys))?;
    weights_g_q_m
        .matmul(&v_g_m_d)?
        .reshape((heads, rows, width))?
        .transpose(0, 1)?
        .contiguous()
}

fn causal_mask(rows: usize, keys: usize, like: &Tensor) -> Result<Tensor> {
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| {
            (0..keys).map(move |key| {
                if key + rows <= row + keys {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            })
        })
        .collect();
    Tensor::from_vec(mask, (rows, keys), like.device())?.to_dtype(match like.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    })
}

/// Holds the three shapes to `q[t,h,d] k[t,g,d] v[t,g,d]` with `h` a multiple of `g`.
fn check_shapes(q_t_h_d: &Tensor, k_t_g_d: &Tensor, v_t_g_d: &Tensor) -> Result<()> {
    let (rows, heads, width) = q_t_h_d.dims3()?;
    let (key_rows, groups, key_width) = k_t_g_d.dims3()?;
    let fits = key_rows == rows && key_width == width && groups > 0 && heads.is_multiple_of(groups);
    if !fits || v_t_g_d.dims() != k_t_g_d.dims() {
        bail!(
            "attend: expected q [t,h,d], k and v [t,g,d] with h a multiple of g, found q {:?}, k {:?}, v {:?}",
            q_t_h_d.dims(),
            k_t_g_d.dims(),
            v_t_g_d.dims()
        )
    }
    Ok(())
}

/// Holds the segments to the contract: they cover `rows` in order, and a prefix is an earlier one without a prefix.
fn check_segments(segments: &[Segment], rows: usize) -> Result<()> {
    let mut next = 0;
    for (index, segment) in segments.iter().enumerate() {
        if segment.start != next {
            bail!(
                "attend: segment {index} starts at row {}, expected row {next}",
                segment.start
            )
        }
        next += segment.len;
        if let Some(prefix) = segment.prefix
            && (prefix >= index || segments[prefix].prefix.is_some())
        {
            bail!(
                "attend: the prefix of segment {index} must be an earlier segment without a prefix, found {prefix}"
            )
        }
    }
    if next != rows {
        bail!("attend: the segments cover {next} rows, expected {rows}")
    }
    Ok(())
}
