//! Causal grouped-query attention over packed sequences, without padding.
//!
//! The fused form takes [`ROWS`] query rows of one key/value head at a time and goes through `rows.rs`, as decoding
//! does. Scores never exist for more than those rows. The backward pass recomputes them by matrix products (as in
//! FlashAttention, Dao et al. 2022, arXiv 2205.14135, without its tiling of the keys).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::lanes;
use crate::matmul::{View, multiply};
use crate::rows::Rows;
use crate::slices::{fusible, read, slice};

/// How many query rows of a head are taken at a time.
pub(crate) const ROWS: usize = 64;

/// One sequence among the packed rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first row.
    pub start: usize,
    /// How many rows.
    pub len: usize,
    /// The index of an earlier segment that this one continues: a prompt shared by the replies of its group. The
    /// prefix may continue another in turn, as prompts do that share their beginning.
    pub prefix: Option<usize>,
}

/// The position of each row in its sequence: the length of all that its segment continues plus its offset there.
///
/// A prefix that is not an earlier segment counts as empty here; [`attend`] refuses it.
pub fn positions(segments: &[Segment]) -> Vec<u32> {
    let mut ends = Vec::with_capacity(segments.len());
    let mut positions = Vec::new();
    for segment in segments {
        let first = segment
            .prefix
            .and_then(|prefix| ends.get(prefix).copied())
            .unwrap_or(0);
        let end = first + segment.len as u32;
        positions.extend(first..end);
        ends.push(end);
    }
    positions
}

/// Causal attention of every row to its own segment, up to itself, and to all that its segment continues.
///
/// `q_t_h_d` has `h` heads, `k_t_g_d` and `v_t_g_d` have `g` heads, and `h` is a multiple of `g`: query heads
/// `n*h/g ..` share key/value head `n`. Scores are scaled by `1/sqrt(d)`. Segments must cover the rows in order,
/// without gaps. Gradients for all three; the rows of a prefix receive the sum over the segments that use it.
///
/// # Errors
/// When the shapes do not fit or the segments do not describe the rows.
pub fn attend(q_t_h_d: &Tensor, k_t_g_d: &Tensor, v_t_g_d: &Tensor, segments: &[Segment]) -> Result<Tensor> {
    if !fusible(&[q_t_h_d, k_t_g_d, v_t_g_d]) {
        return attend_composed(q_t_h_d, k_t_g_d, v_t_g_d, segments);
    }
    let heads = check_shapes(q_t_h_d, k_t_g_d, v_t_g_d)?;
    check_segments(segments, q_t_h_d.dim(0)?)?;
    let attention = Attention {
        heads,
        segments: segments.into(),
    };
    q_t_h_d
        .contiguous()?
        .apply_op3(&k_t_g_d.contiguous()?, &v_t_g_d.contiguous()?, attention)
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
    let mut outputs = Vec::with_capacity(segments.len());
    for segment in segments.iter().filter(|segment| segment.len > 0) {
        let q_n_h_d = q_t_h_d.narrow(0, segment.start, segment.len)?;
        let sequence_m = Tensor::new(sequence(segments, segment), q_t_h_d.device())?;
        outputs.push(attend_dense(
            &q_n_h_d,
            &k_t_g_d.index_select(&sequence_m, 0)?,
            &v_t_g_d.index_select(&sequence_m, 0)?,
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
    let scores_g_q_m = (q_g_q_d.matmul(&k_g_d_m)? * (1.0 / (width as f64).sqrt()))?;
    let wide = crate::accumulator(q_n_h_d.dtype());
    let scores_h_n_m = scores_g_q_m.reshape((heads, rows, keys))?.to_dtype(wide)?;
    let masked_h_n_m = if rows == 1 {
        scores_h_n_m
    } else {
        scores_h_n_m.broadcast_add(&causal_mask(rows, keys, &scores_h_n_m)?)?
    };
    let top_h_n_1 = masked_h_n_m.max_keepdim(D::Minus1)?.detach();
    let exponents_h_n_m = masked_h_n_m.broadcast_sub(&top_h_n_1)?.exp()?;
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
    let sees = |row: usize, key: usize| key + rows <= row + keys;
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| (0..keys).map(move |key| if sees(row, key) { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    Tensor::from_vec(mask, (rows, keys), like.device())?.to_dtype(like.dtype())
}

/// Holds the three shapes to `q[t,h,d] k[t,g,d] v[t,g,d]` with `h` a multiple of `g`.
fn check_shapes(q_t_h_d: &Tensor, k_t_g_d: &Tensor, v_t_g_d: &Tensor) -> Result<Heads> {
    let (rows, query, width) = q_t_h_d.dims3()?;
    let (key_rows, groups, key_width) = k_t_g_d.dims3()?;
    let fits = key_rows == rows && key_width == width && v_t_g_d.dims() == k_t_g_d.dims();
    if !fits || query == 0 || groups == 0 || width == 0 || !query.is_multiple_of(groups) {
        bail!(
            "attend: expected q [t,h,d], k and v [t,g,d] with h a multiple of g, found q {:?}, k {:?}, v {:?}",
            q_t_h_d.dims(),
            k_t_g_d.dims(),
            v_t_g_d.dims()
        )
    }
    Ok(Heads { query, groups, width })
}

/// The rows of a segment's sequence, in order: those of all that it continues, then its own.
fn sequence(segments: &[Segment], segment: &Segment) -> Vec<u32> {
    let mut chain = vec![segment];
    let mut next = segment.prefix;
    while let Some(prefix) = next.map(|prefix| &segments[prefix]) {
        chain.push(prefix);
        next = prefix.prefix;
    }
    let rows = chain
        .into_iter()
        .rev()
        .flat_map(|segment| segment.start..segment.start + segment.len);
    rows.map(|row| row as u32).collect()
}

/// Holds the segments to the contract: they cover `rows` in order, and a prefix is an earlier one.
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
            && prefix >= index
        {
            bail!("attend: the prefix of segment {index} must be an earlier segment, found {prefix}")
        }
    }
    if next != rows {
        bail!("attend: the segments cover {next} rows, expected {rows}")
    }
    Ok(())
}

/// How rows of queries, keys and values divide into heads.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) query: usize,
    /// Key/value heads.
    pub(crate) groups: usize,
    /// Elements of a head.
    pub(crate) width: usize,
}

impl Heads {
    /// How many query heads share a key/value head.
    pub(crate) fn shared(self) -> usize {
        self.query / self.groups
    }

    /// Elements of a row of queries.
    pub(crate) fn query_row(self) -> usize {
        self.query * self.width
    }

    /// Elements of a row of keys or values.
    pub(crate) fn key_row(self) -> usize {
        self.groups * self.width
    }

    /// What scores are multiplied with.
    pub(crate) fn scale(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    /// Rows of queries taken apart: for each key/value head the parts of the rows that share it.
    pub(crate) fn by_group(self, rows: &mut [f32]) -> Vec<Vec<&mut [f32]>> {
        let count = rows.len() / self.query_row();
        let mut groups: Vec<Vec<&mut [f32]>> = vec![];
        groups.resize_with(self.groups, || Vec::with_capacity(count));
        for row in rows.chunks_exact_mut(self.query_row()) {
            for (group, part) in groups
                .iter_mut()
                .zip(row.chunks_exact_mut(self.shared() * self.width))
            {
                group.push(part);
            }
        }
        groups
    }

    /// Head `head` of rows of queries.
    fn queries(self, rows: &[f32], head: usize) -> View<'_> {
        View::new(
            &rows[head * self.width..],
            rows.len() / self.query_row(),
            self.width,
            self.query_row(),
        )
    }
}

/// One head's keys and values, copied together from wherever their rows lie.
#[derive(Default)]
pub(crate) struct Gathered {
    k_m_d: Vec<f32>,
    v_m_d: Vec<f32>,
    scores: Vec<f32>,
}

impl Gathered {
    /// Takes key/value head `group` of the rows that `rows` names.
    pub(crate) fn gather(&mut self, heads: Heads, group: usize, k: &[f32], v: &[f32], rows: &[u32]) {
        for (target, source) in [(&mut self.k_m_d, k), (&mut self.v_m_d, v)] {
            target.clear();
            for &row in rows {
                let first = row as usize * heads.key_row() + group * heads.width;
                target.extend_from_slice(&source[first..first + heads.width]);
            }
        }
    }

    /// Leaves in `scores` the weights of rows of one head over the first `keys` keys.
    fn weigh(&mut self, heads: Heads, head: usize, q: &[f32], keys: usize) {
        let q_n_d = heads.queries(q, head);
        self.scores.resize(q.len() / heads.query_row() * keys, 0.0);
        let k_d_m = View::new(&self.k_m_d, keys, heads.width, heads.width).transposed();
        multiply(&mut self.scores, keys, q_n_d, k_d_m, heads.scale(), false);
        lanes::run(CausalSoftmax {
            scores: &mut self.scores,
            keys,
        });
    }
}

struct Attention {
    heads: Heads,
    segments: Arc<[Segment]>,
}

impl Attention {
    /// The gradients of one segment and key/value head.
    fn backward(&self, segment: &Segment, group: usize, inputs: [&[f32]; 4]) -> Gradients {
        let [q, k, v, gradient] = inputs;
        let heads = self.heads;
        let (row, width) = (heads.query_row(), heads.width);
        let sequence = sequence(&self.segments, segment);
        let prefix = sequence.len() - segment.len;
        let mut gathered = Gathered::default();
        gathered.gather(heads, group, k, v, &sequence);
        let mut gradients = Gradients {
            q: vec![0.0; segment.len * heads.shared() * width],
            k: vec![0.0; gathered.k_m_d.len()],
            v: vec![0.0; gathered.v_m_d.len()],
        };
        let mut slopes = Vec::new();
        for first in (0..segment.len).step_by(ROWS) {
            let rows = ROWS.min(segment.len - first);
            let keys = prefix + first + rows;
            let range = (segment.start + first) * row..(segment.start + first + rows) * row;
            let (q, gradient) = (&q[range.clone()], &gradient[range]);
            for shared in 0..heads.shared() {
                let head = group * heads.shared() + shared;
                gathered.weigh(heads, head, q, keys);
                let gradient_n_d = heads.queries(gradient, head);
                let k_m_d = View::new(&gathered.k_m_d, keys, width, width);
                let v_m_d = View::new(&gathered.v_m_d, keys, width, width);
                let weights_n_m = View::new(&gathered.scores, rows, keys, keys);
                multiply(
                    &mut gradients.v,
                    width,
                    weights_n_m.transposed(),
                    gradient_n_d,
                    1.0,
                    true,
                );

                slopes.resize(rows * keys, 0.0);
                multiply(&mut slopes, keys, gradient_n_d, v_m_d.transposed(), 1.0, false);
                lanes::run(SoftmaxSlopes {
                    slopes: &mut slopes,
                    weights: &gathered.scores,
                    keys,
                });
                let slopes_n_m = View::new(&slopes, rows, keys, keys);
                let q_n_d = heads.queries(q, head);
                multiply(
                    &mut gradients.k,
                    width,
                    slopes_n_m.transposed(),
                    q_n_d,
                    heads.scale(),
                    true,
                );
                let stride = heads.shared() * width;
                let out = &mut gradients.q[first * stride + shared * width..];
                multiply(out, stride, slopes_n_m, k_m_d, heads.scale(), false);
            }
        }
        gradients
    }

    /// The gradients for queries, keys and values.
    fn differentiate(&self, [q, k, v]: [&Tensor; 3], gradient: &Tensor) -> Result<[Tensor; 3]> {
        let heads = self.heads;
        let tasks: Vec<(&Segment, usize)> = self
            .segments
            .iter()
            .flat_map(|segment| (0..heads.groups).map(move |group| (segment, group)))
            .collect();
        let parts: Vec<Gradients> = read([q, k, v, gradient], |inputs| {
            Ok(tasks
                .par_iter()
                .map(|&(segment, group)| self.backward(segment, group, inputs))
                .collect())
        })?;
        let mut sums = [q, k, v].map(|tensor| vec![0.0; tensor.elem_count()]);
        let [q_sum, k_sum, v_sum] = &mut sums;
        // In the order of the tasks, so that a shared prompt's sum does not depend on who finished first.
        for (&(segment, group), part) in tasks.iter().zip(&parts) {
            let shared = heads.shared() * heads.width;
            let sequence = sequence(&self.segments, segment);
            let own = &sequence[sequence.len() - segment.len..];
            scatter(q_sum, &part.q, shared, own, heads.query_row(), group * shared);
            for (sum, part) in [(&mut *k_sum, &part.k), (&mut *v_sum, &part.v)] {
                scatter(
                    sum,
                    part,
                    heads.width,
                    &sequence,
                    heads.key_row(),
                    group * heads.width,
                );
            }
        }
        let [q_sum, k_sum, v_sum] = sums;
        Ok([
            Tensor::from_vec(q_sum, q.shape(), q.device())?,
            Tensor::from_vec(k_sum, k.shape(), k.device())?,
            Tensor::from_vec(v_sum, v.shape(), v.device())?,
        ])
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attend"
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
        let mut out = vec![0.0; q.len()];
        let mut rest = out.as_mut_slice();
        let mut tasks = Vec::new();
        for segment in self.segments.iter() {
            let places: Arc<[u32]> = sequence(&self.segments, segment).into();
            for first in (0..segment.len).step_by(ROWS) {
                let rows = ROWS.min(segment.len - first);
                let (block, behind) = rest.split_at_mut(rows * heads.query_row());
                let start = (segment.start + first) * heads.query_row();
                let seen = places.len() - segment.len + first + rows;
                let outs = heads.by_group(block).into_iter().enumerate();
                tasks.extend(outs.map(|(group, out)| (places.clone(), seen, start, group, out)));
                rest = behind;
            }
        }
        tasks
            .into_par_iter()
            .for_each_init(Vec::new, |weights, (places, seen, start, group, out)| {
                lanes::run(Rows {
                    heads,
                    group,
                    q: &q[start..start + out.len() * heads.query_row()],
                    k,
                    v,
                    places: &places[..seen],
                    weights,
                    out,
                });
            });
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [q, k, v] = self.differentiate([q, k, v], gradient)?;
        Ok((Some(q), Some(k), Some(v)))
    }
}

/// What [`attend`]'s gradients for queries, keys and values are where that of its result is `gradient_t_h_d`.
///
/// # Errors
/// As [`attend`]; or tensors that are not f32 on the CPU.
pub fn attend_gradients(
    q_t_h_d: &Tensor,
    k_t_g_d: &Tensor,
    v_t_g_d: &Tensor,
    segments: &[Segment],
    gradient_t_h_d: &Tensor,
) -> Result<[Tensor; 3]> {
    let heads = check_shapes(q_t_h_d, k_t_g_d, v_t_g_d)?;
    check_segments(segments, q_t_h_d.dim(0)?)?;
    if gradient_t_h_d.dims() != q_t_h_d.dims() {
        bail!(
            "attend_gradients: expected a gradient of {:?}, found {:?}",
            q_t_h_d.dims(),
            gradient_t_h_d.dims()
        )
    }
    let attention = Attention {
        heads,
        segments: segments.into(),
    };
    attention.differentiate([q_t_h_d, k_t_g_d, v_t_g_d], gradient_t_h_d)
}

/// The gradients that one segment gives through one key/value head; `r` counts the query heads that share it.
struct Gradients {
    /// `[n,r,d]`
    q: Vec<f32>,
    /// `[m,d]`
    k: Vec<f32>,
    /// `[m,d]`
    v: Vec<f32>,
}

/// Adds piece `n` of `part` at `offset` in the `n`-th of `rows` of `sum`.
fn scatter(sum: &mut [f32], part: &[f32], piece: usize, rows: &[u32], row_len: usize, offset: usize) {
    for (&row, piece) in rows.iter().zip(part.chunks_exact(piece)) {
        let first = row as usize * row_len + offset;
        lanes::add_scaled(&mut sum[first..first + piece.len()], piece, 1.0);
    }
}

/// Softmax of each row over the keys it sees (the last row all, each earlier one a key less); zero for the others.
struct CausalSoftmax<'a> {
    scores: &'a mut [f32],
    keys: usize,
}

impl WithSimd for CausalSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.scores.len() / self.keys;
        for (index, scores) in self.scores.chunks_exact_mut(self.keys).enumerate() {
            let (seen, unseen) = scores.split_at_mut(self.keys + index + 1 - rows);
            let sum = lanes::exp_in_place(seen, lanes::max(seen));
            lanes::scale(seen, 1.0 / sum);
            unseen.fill(0.0);
        }
    }
}

/// Turns the gradients of softmax weights into those of its scores: `weight * (slope - sum weight * slope)`.
struct SoftmaxSlopes<'a> {
    slopes: &'a mut [f32],
    weights: &'a [f32],
    keys: usize,
}

impl WithSimd for SoftmaxSlopes<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self
            .slopes
            .chunks_exact_mut(self.keys)
            .zip(self.weights.chunks_exact(self.keys));
        for (slopes, weights) in rows {
            let mean = lanes::dot(slopes, weights);
            for (slope, weight) in slopes.iter_mut().zip(weights) {
                *slope = weight * (*slope - mean);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::fixtures::{assert_close, assert_differences, assert_twins, noise};

    fn pack(lens: &[(usize, Option<usize>)]) -> Vec<Segment> {
        let mut start = 0;
        lens.iter()
            .map(|&(len, prefix)| {
                start += len;
                Segment {
                    start: start - len,
                    len,
                    prefix,
                }
            })
            .collect()
    }

    fn inputs(rows: usize, heads: usize, groups: usize, width: usize) -> [Var; 3] {
        let q = noise(1, &[rows, heads, width]);
        // Larger than usual, so that the softmax is far from uniform.
        q.set(&(q.as_tensor() * 6.0).expect("product").detach())
            .expect("set");
        [
            q,
            noise(2, &[rows, groups, width]),
            noise(3, &[rows, groups, width]),
        ]
    }

    #[test]
    fn fused_equals_composed() {
        let packs = [
            (pack(&[(1, None)]), 1, 1, 2),
            (pack(&[(3, None), (5, None)]), 4, 2, 8),
            (
                pack(&[(7, None), (1, Some(0)), (9, Some(0)), (2, None), (3, Some(3))]),
                6,
                2,
                5,
            ),
            (
                pack(&[(70, None), (130, Some(0)), (65, None), (0, None)]),
                3,
                1,
                16,
            ),
            (pack(&[(0, None), (4, Some(0))]), 2, 2, 4),
            (
                pack(&[(6, None), (2, Some(0)), (5, Some(1)), (3, Some(1)), (4, Some(0))]),
                4,
                2,
                8,
            ),
        ];
        for (segments, heads, groups, width) in packs {
            let rows = segments.iter().map(|segment| segment.len).sum();
            let [q, k, v] = inputs(rows, heads, groups, width);
            assert_twins(
                [&q, &k, &v],
                || attend(&q, &k, &v, &segments),
                || attend_composed(&q, &k, &v, &segments),
                3e-6,
            );
        }
    }

    #[test]
    fn a_shared_prompt_is_the_prompt_repeated_before_each_reply() -> Result<()> {
        let (prompt, replies) = (5, [3, 70, 1]);
        let shared = pack(&[(prompt, None), (3, Some(0)), (70, Some(0)), (1, Some(0))]);
        let repeated = pack(&replies.map(|len| (prompt + len, None)));
        let [q, k, v] = inputs(prompt + replies.iter().sum::<usize>(), 4, 2, 8);
        // The rows of the repeated pack, in terms of those of the shared one.
        let rows: Vec<u32> = shared[1..]
            .iter()
            .flat_map(|reply| (0..prompt).chain(reply.start..reply.start + reply.len))
            .map(|row| row as u32)
            .collect();
        let rows = Tensor::new(rows, q.device())?;
        let found = attend(&q, &k, &v, &shared)?;
        let [q_rows, k_rows, v_rows] = [&q, &k, &v].map(|tensor| tensor.index_select(&rows, 0));
        let expected = attend(&q_rows?, &k_rows?, &v_rows?, &repeated)?;
        assert_close(&found.index_select(&rows, 0)?, &expected, 2e-6);

        let weights = noise(7, expected.dims());
        let found = (found.index_select(&rows, 0)? * weights.as_tensor())?
            .sum_all()?
            .backward()?;
        let expected = (expected * weights.as_tensor())?.sum_all()?.backward()?;
        for tensor in [&q, &k, &v] {
            assert_close(found.get(tensor).unwrap(), expected.get(tensor).unwrap(), 3e-6);
        }
        Ok(())
    }

    #[test]
    fn composed_gradients_equal_differences() {
        let segments = pack(&[(2, None), (3, Some(0)), (1, None)]);
        let [q, k, v] = inputs(6, 2, 1, 3);
        assert_differences([&q, &k, &v], |x| attend_composed(&x[0], &x[1], &x[2], &segments));
    }

    #[test]
    fn positions_continue_after_the_prefix() {
        let segments = pack(&[(3, None), (2, Some(0)), (1, Some(1)), (1, Some(0)), (2, None)]);
        assert_eq!(positions(&segments), [0, 1, 2, 3, 4, 5, 3, 0, 1]);
    }

    #[test]
    fn segments_that_do_not_describe_the_rows_are_refused() {
        let [q, k, v] = inputs(5, 2, 1, 4);
        let wrong = [
            (
                vec![Segment {
                    start: 1,
                    len: 4,
                    prefix: None,
                }],
                "expected row 0",
            ),
            (pack(&[(4, None)]), "cover 4 rows, expected 5"),
            (pack(&[(2, None), (3, Some(1))]), "must be an earlier segment"),
            (
                pack(&[(2, None), (1, Some(2)), (2, None)]),
                "must be an earlier segment",
            ),
        ];
        for (segments, message) in wrong {
            let error = attend(&q, &k, &v, &segments).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
