//! Attention of a single row, all heads: what decoding does for every sequence.
//!
//! `rows.rs` gives a task to every key/value head, which goes through memory in steps of a row of all heads, and leaves threads
//! idle where there is one row and few heads. Here the keys are shared out for the scores, the heads for their weights, and the
//! columns for the sums of values, and what lies side by side is read side by side. Every number is summed in the order in
//! which `rows.rs` sums it, so the bits are the same.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::attention::Heads;
use crate::lanes;
use crate::rows::{Picked, QUERIES, Query, ask, scores, soften, sum};

/// Keys from which on a row that is alone is worth three rounds of tasks instead of one.
pub(crate) const MANY: usize = 384;
/// Keys whose scores are a task.
const RANGE: usize = 256;
/// Keys that are gone through together, so that what is read of them stays in the first cache.
const CLOSE: usize = 16;
/// How many times that a thread is ahead with asking for what it will read: the list of places is not known to the processor,
/// which would fetch by itself what lies in a row.
const AHEAD: usize = 2;
/// Columns that are summed together.
const COLUMNS: usize = 32;

/// Adds the attention of the one row `q`, all heads, to the rows `places` of `k` and `v` to `out`, which is zeros.
pub(crate) fn attend(heads: Heads, q: &[f32], k: &[f32], v: &[f32], places: &[u32], out: &mut [f32]) {
    let count = places.len();
    let scores_of = |places: &[u32]| {
        let mut scores = vec![0.0; heads.query * places.len()];
        lanes::run(Scores {
            heads,
            q,
            k,
            places,
            out: &mut scores,
        });
        scores
    };
    let ranges: Vec<Vec<f32>> = places.par_chunks(RANGE).map(scores_of).collect();

    let mut weights = vec![0.0; heads.query * count];
    let of_heads = weights.par_chunks_exact_mut(count).enumerate();
    of_heads.for_each(|(head, weights)| {
        for (weights, scores) in weights.chunks_mut(RANGE).zip(&ranges) {
            for (weights, scores) in weights.chunks_mut(CLOSE).zip(scores.chunks(CLOSE * heads.query)) {
                weights.copy_from_slice(&scores[head * weights.len()..][..weights.len()]);
            }
        }
        lanes::run(Softmax(weights));
    });

    let mut parts = parts(heads, out);
    let share = parts.len().div_ceil(rayon::current_num_threads());
    parts.par_chunks_mut(share).for_each(|parts| {
        lanes::run(Sums {
            heads,
            v,
            places,
            weights: &weights,
            parts,
        });
    });
}

/// What some columns of a row of values add to.
struct Part<'a> {
    columns: Range<usize>,
    /// Of the heads that share the key/value head, one after the other.
    out: Vec<&'a mut [f32]>,
}

/// The outputs of a row in parts, in the order of their columns.
fn parts(heads: Heads, out: &mut [f32]) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    for (group, out) in out.chunks_exact_mut(heads.shared() * heads.width).enumerate() {
        let (start, end) = (parts.len(), (group + 1) * heads.width);
        let columns = (end - heads.width..end).step_by(COLUMNS);
        parts.extend(columns.map(|first| Part {
            columns: first..end.min(first + COLUMNS),
            out: Vec::with_capacity(heads.shared()),
        }));
        for out in out.chunks_exact_mut(heads.width) {
            for (part, out) in parts[start..].iter_mut().zip(out.chunks_mut(COLUMNS)) {
                part.out.push(out);
            }
        }
    }
    parts
}

/// The scores of a range of keys: for every few keys ([`CLOSE`]) those with every head, head after head.
struct Scores<'a> {
    heads: Heads,
    q: &'a [f32],
    k: &'a [f32],
    places: &'a [u32],
    out: &'a mut [f32],
}

impl WithSimd for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (width, shared, scale) = (self.heads.width, self.heads.shared(), self.heads.scale());
        let close = self.out.chunks_mut(CLOSE * self.heads.query);
        for (chunk, (places, out)) in self.places.chunks(CLOSE).zip(close).enumerate() {
            let count = places.len();
            ask_ahead(self.heads, self.k, self.places, chunk, 0..self.heads.key_row());
            let of_groups = self.q.chunks(shared * width).zip(out.chunks_mut(shared * count));
            for (group, (q, out)) in of_groups.enumerate() {
                let columns = group * width..(group + 1) * width;
                let keys = Picked::new(self.heads, columns, self.k, places);
                for (q, out) in q.chunks(QUERIES * width).zip(out.chunks_mut(QUERIES * count)) {
                    let part = |r: usize| &q[r * width..][..width];
                    match q.len() / width {
                        3 => scores(simd, &keys, [part(0), part(1), part(2)], scale, out, count),
                        2 => scores(simd, &keys, [part(0), part(1)], scale, out, count),
                        _ => scores(simd, &keys, [part(0)], scale, out, count),
                    }
                }
            }
        }
    }
}

/// One head's scores into weights.
struct Softmax<'a>(&'a mut [f32]);

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        soften(self.0);
    }
}

/// Adds the values by their weights to some parts of the outputs.
struct Sums<'a, 'b> {
    heads: Heads,
    v: &'a [f32],
    places: &'a [u32],
    /// Head after head.
    weights: &'a [f32],
    parts: &'a mut [Part<'b>],
}

impl WithSimd for Sums<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (shared, all) = (self.heads.shared(), self.places.len());
        let mut close = Vec::with_capacity(shared * CLOSE);
        let read = match (self.parts.first(), self.parts.last()) {
            (Some(first), Some(last)) => first.columns.start..last.columns.end,
            _ => return,
        };
        for (chunk, places) in self.places.chunks(CLOSE).enumerate() {
            let count = places.len();
            ask_ahead(self.heads, self.v, self.places, chunk, read.clone());
            for Part { columns, out } in &mut *self.parts {
                let first = columns.start / self.heads.width * shared;
                let values = Picked::new(self.heads, columns.clone(), self.v, places);
                close.clear();
                for weights in self.weights.chunks_exact(all).skip(first).take(shared) {
                    close.extend_from_slice(&weights[chunk * CLOSE..][..count]);
                }
                let query = |out| Query {
                    q: &[],
                    out,
                    seen: count,
                };
                let mut queries: Vec<_> = out.iter_mut().map(|out| query(&mut **out)).collect();
                for (queries, weights) in queries.chunks_mut(QUERIES).zip(close.chunks(QUERIES * count)) {
                    match queries.len() {
                        3 => sum::<S, 3>(simd, &values, queries, weights, count),
                        2 => sum::<S, 2>(simd, &values, queries, weights, count),
                        _ => sum::<S, 1>(simd, &values, queries, weights, count),
                    }
                }
            }
        }
    }
}

/// Asks for columns of the rows that come [`AHEAD`] chunks after this one.
#[inline(always)]
fn ask_ahead(heads: Heads, rows: &[f32], places: &[u32], chunk: usize, columns: Range<usize>) {
    for &place in places.iter().skip((chunk + AHEAD) * CLOSE).take(CLOSE) {
        ask(&rows[place as usize * heads.key_row()..][columns.clone()]);
    }
}
