//! Attention of query rows to keys that lie anywhere, in an order that depends on nothing but the row.
//!
//! Training over packed sequences, reading a prompt in chunks and decoding a row at a time all come here, so that a
//! row's result is the same to the last bit in all three.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::attention::Heads;
use crate::lanes;

/// Queries that go over the keys together; also what three query heads to a key/value head make of one row.
pub(crate) const QUERIES: usize = 3;
/// Keys whose scores are taken together.
const KEYS: usize = 4;
/// Vectors of values that are summed together.
const VECTORS: usize = 4;

/// Neighbouring rows of one sequence with one key/value head.
pub(crate) struct Rows<'a> {
    pub(crate) heads: Heads,
    /// The key/value head.
    pub(crate) group: usize,
    /// The queries of the rows, all heads.
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// The row of `k` and `v` that each key lies in. The last query row sees all keys, each earlier one a key less.
    pub(crate) places: &'a [u32],
    /// Room for the weights of some queries.
    pub(crate) weights: &'a mut Vec<f32>,
    /// For each row the outputs of the query heads that share the key/value head; zeros at first.
    pub(crate) out: Vec<&'a mut [f32]>,
}

/// One head of one row.
pub(crate) struct Query<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) out: &'a mut [f32],
    /// How many keys it sees.
    pub(crate) seen: usize,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (width, shared) = (self.heads.width, self.heads.shared());
        let columns = self.group * width..(self.group + 1) * width;
        let keys = Picked::new(self.heads, columns.clone(), self.k, self.places);
        let values = Picked::new(self.heads, columns, self.v, self.places);
        let rows = self.out.len();
        if rows == 1 {
            // The list of places is not known to the processor, which would fetch by itself what lies in a row.
            for key in 0..self.places.len() {
                ask(keys.row(key));
                ask(values.row(key));
            }
        }
        let mut queries = Vec::with_capacity(rows * shared);
        for (row, out) in self.out.into_iter().enumerate() {
            let q = &self.q[row * self.heads.query_row() + self.group * shared * width..][..shared * width];
            for (q, out) in q.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                queries.push(Query {
                    q,
                    out,
                    seen: self.places.len() + row + 1 - rows,
                });
            }
        }
        for queries in queries.chunks_mut(QUERIES) {
            match queries.len() {
                3 => attend::<S, 3>(simd, [&keys, &values], queries, self.heads.scale(), self.weights),
                2 => attend::<S, 2>(simd, [&keys, &values], queries, self.heads.scale(), self.weights),
                _ => attend::<S, 1>(simd, [&keys, &values], queries, self.heads.scale(), self.weights),
            }
        }
    }
}

/// Some columns, such as those of one key/value head, of the keys or values that a list names.
pub(crate) struct Picked<'a> {
    numbers: &'a [f32],
    places: &'a [u32],
    stride: usize,
    offset: usize,
    width: usize,
}

impl<'a> Picked<'a> {
    /// Columns of a row of all key/value heads.
    #[inline(always)]
    pub(crate) fn new(heads: Heads, columns: Range<usize>, numbers: &'a [f32], places: &'a [u32]) -> Self {
        Self {
            numbers,
            places,
            stride: heads.key_row(),
            offset: columns.start,
            width: columns.len(),
        }
    }

    #[inline(always)]
    fn row(&self, key: usize) -> &[f32] {
        &self.numbers[self.places[key] as usize * self.stride + self.offset..][..self.width]
    }
}

#[inline(always)]
fn attend<S: Simd, const R: usize>(
    simd: S,
    [keys, values]: [&Picked; 2],
    queries: &mut [Query],
    scale: f32,
    weights: &mut Vec<f32>,
) {
    let count = queries[R - 1].seen;
    weights.resize(R * count, 0.0);
    let mut q: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        q[r] = queries[r].q;
    }
    scores(simd, keys, q, scale, weights, count);
    for (query, weights) in queries.iter().zip(weights.chunks_exact_mut(count)) {
        let (seen, unseen) = weights.split_at_mut(query.seen);
        soften(seen);
        // Adding nothing changes nothing, so the row does not notice keys that only its neighbours see.
        unseen.fill(0.0);
    }
    sum::<S, R>(simd, values, queries, weights, count);
}

/// Scores into weights.
#[inline(always)]
pub(crate) fn soften(scores: &mut [f32]) {
    let sum = lanes::exp_in_place(scores, lanes::max(scores));
    lanes::scale(scores, 1.0 / sum);
}

/// Adds the values, each by its weight, to the outputs.
#[inline(always)]
pub(crate) fn sum<S: Simd, const R: usize>(
    simd: S,
    values: &Picked,
    queries: &mut [Query],
    weights: &[f32],
    count: usize,
) {
    let vectors = values.width / S::F32_LANES;
    let mut vector = 0;
    while vector + VECTORS <= vectors {
        sum_values::<S, R, VECTORS>(simd, values, vector, queries, weights, count);
        vector += VECTORS;
    }
    while vector < vectors {
        sum_values::<S, R, 1>(simd, values, vector, queries, weights, count);
        vector += 1;
    }
    for column in vectors * S::F32_LANES..values.width {
        for (query, weights) in queries.iter_mut().zip(weights.chunks_exact(count)) {
            for (key, weight) in weights.iter().enumerate() {
                query.out[column] += weight * values.row(key)[column];
            }
        }
    }
}

/// The scores of `count` keys.
#[inline(always)]
pub(crate) fn scores<S: Simd, const R: usize>(
    simd: S,
    keys: &Picked,
    q: [&[f32]; R],
    scale: f32,
    weights: &mut [f32],
    count: usize,
) {
    let mut key = 0;
    while key + KEYS <= count {
        score::<S, R, KEYS>(simd, keys, key, q, scale, weights, count);
        key += KEYS;
    }
    while key < count {
        score::<S, R, 1>(simd, keys, key, q, scale, weights, count);
        key += 1;
    }
}

/// The scores of `C` keys from `key` on.
#[inline(always)]
fn score<S: Simd, const R: usize, const C: usize>(
    simd: S,
    keys: &Picked,
    key: usize,
    q: [&[f32]; R],
    scale: f32,
    weights: &mut [f32],
    count: usize,
) {
    let mut k: [&[f32]; C] = [&[]; C];
    for c in 0..C {
        k[c] = keys.row(key + c);
    }
    let scores = dots(simd, q, k);
    for r in 0..R {
        for c in 0..C {
            weights[r * count + key + c] = scores[r][c] * scale;
        }
    }
}

/// Adds values by weights, key after key, to `C` vectors of the outputs, from vector `vector` on.
#[inline(always)]
fn sum_values<S: Simd, const R: usize, const C: usize>(
    simd: S,
    values: &Picked,
    vector: usize,
    queries: &mut [Query],
    weights: &[f32],
    count: usize,
) {
    let columns = vector * S::F32_LANES..(vector + C) * S::F32_LANES;
    let mut rows: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        rows[r] = &weights[r * count..][..count];
    }
    let mut sums = [[simd.splat_f32s(0.0); C]; R];
    for r in 0..R {
        sums[r].copy_from_slice(&S::as_simd_f32s(&queries[r].out[columns.clone()]).0[..C]);
    }
    for key in 0..count {
        let row = &S::as_simd_f32s(&values.row(key)[columns.clone()]).0[..C];
        for r in 0..R {
            let weight = simd.splat_f32s(rows[r][key]);
            for c in 0..C {
                sums[r][c] = simd.mul_add_e_f32s(weight, row[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        let out = S::as_mut_simd_f32s(&mut queries[r].out[columns.clone()]).0;
        out[..C].copy_from_slice(&sums[r]);
    }
}

/// The products of `R` rows with `C` others, all of one length. The order of each sum depends on that length alone.
#[inline(always)]
fn dots<S: Simd, const R: usize, const C: usize>(
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

/// Numbers of a line of the caches.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 16;

/// Asks for numbers to be brought into the second cache.
#[inline(always)]
pub(crate) fn ask(numbers: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in numbers.chunks(LINE) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint; nothing is read, and the address is that of numbers that are there. Every x86-64 processor has it.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}
