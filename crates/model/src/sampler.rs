//! Logits into tokens: penalties, temperature, filters and one draw a row.
//!
//! No path sorts the vocabulary: top-k and top-p select, and first throw away what cannot be in the answer.
//! A token is drawn by inverting the cumulative distribution in the order of ids at one uniform number, which is a pure
//! function of the seed, the prompt's ids, the completion's index and the position. So a sequence draws the same tokens
//! whatever else is in the batch, and after it was interrupted.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::constraint::{Constraint, allows};
use crate::generate::Sampling;
use crate::{Error, Result};

/// Below this temperature the likeliest token is all that is left.
const GREEDY: f64 = 1e-5;
/// Values whose sum is kept apart in f32 before it joins the f64 total.
const BLOCK: usize = 1024;
/// Independent sums, so that the compiler can keep them in one vector register.
const LANES: usize = 8;

/// One drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// The token.
    pub id: u32,
    /// Its log-probability under the model itself: temperature one, before penalties and filters.
    pub log_probability: f32,
    /// The likeliest tokens and their log-probabilities under the same, the likeliest first: as many as were asked for.
    pub likeliest: Vec<(u32, f32)>,
}

/// Draws the tokens of one completion.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    stream: u64,
    drawn: u64,
    /// Tokens of the prompt and the reply, for the repetition penalty; empty where it is off.
    seen: BTreeSet<u32>,
    /// How often each token of the reply came, for the presence and frequency penalties; empty where both are off.
    replied: BTreeMap<u32, u32>,
    likeliest: usize,
    constraint: Option<Box<dyn Constraint>>,
}

/// Buffers of one vocabulary, kept between draws.
#[derive(Debug, Default)]
pub struct Scratch {
    weights: Vec<f32>,
    penalised: Vec<f32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for completion number `index` of a prompt; refuses settings that mean nothing.
    pub fn new(sampling: &Sampling, prompt_ids: &[u32], index: usize) -> Result<Self> {
        sampling.check()?;
        let repeats = sampling.repetition_penalty != 1.0;
        Ok(Self {
            sampling: sampling.clone(),
            stream: stream(sampling.seed, prompt_ids, index),
            drawn: 0,
            seen: if repeats {
                prompt_ids.iter().copied().collect()
            } else {
                BTreeSet::new()
            },
            replied: BTreeMap::new(),
            likeliest: 0,
            constraint: None,
        })
    }

    /// Reports this many of the likeliest tokens with each draw.
    #[must_use]
    pub fn with_likeliest(mut self, count: usize) -> Self {
        self.likeliest = count;
        self
    }

    /// Draws only what the constraint allows.
    #[must_use]
    pub fn with_constraint(mut self, constraint: Option<Box<dyn Constraint>>) -> Self {
        self.constraint = constraint;
        self
    }

    /// Draws the next token from the logits of one row.
    ///
    /// In this order: repetition, presence and frequency penalty, logit bias, constraint, temperature, top-k, top-p over
    /// what top-k left, min-p.
    /// A logit that is not a finite number is an error.
    pub fn draw(&mut self, logits_v: &[f32], scratch: &mut Scratch) -> Result<Draw> {
        let model_peak = peak(logits_v)?;
        let model_total = exponentials(logits_v, model_peak, 1.0, &mut scratch.weights);
        let uniform = uniform(self.stream, self.drawn);
        let mask = self.constraint.as_mut().and_then(|constraint| constraint.mask());
        let id = self.choose(
            logits_v,
            mask.as_deref(),
            model_peak,
            model_total,
            uniform,
            scratch,
        );
        self.drawn += 1;
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.insert(id);
        }
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.replied.entry(id).or_default() += 1;
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id);
        }
        let log_total = f64::from(model_peak) + model_total.ln();
        let log_probability = |logit: f32| (f64::from(logit) - log_total) as f32;
        Ok(Draw {
            id,
            log_probability: log_probability(logits_v[id as usize]),
            likeliest: likeliest(logits_v, self.likeliest, &mut scratch.candidates)
                .into_iter()
                .map(|(logit, id)| (id, log_probability(logit)))
                .collect(),
        })
    }

    fn choose(
        &self,
        logits_v: &[f32],
        mask: Option<&[u32]>,
        model_peak: f32,
        model_total: f64,
        uniform: f64,
        scratch: &mut Scratch,
    ) -> u32 {
        let sampling = &self.sampling;
        let mask = mask.filter(|mask| (0..logits_v.len()).any(|id| allows(mask, id)));
        let penalised = !self.seen.is_empty()
            || !self.replied.is_empty()
            || !sampling.logit_bias.is_empty()
            || mask.is_some();
        if penalised {
            self.penalise(logits_v, mask, &mut scratch.penalised);
        }
        let logits_v = if penalised {
            &scratch.penalised[..]
        } else {
            logits_v
        };
        let peak = if penalised { highest(logits_v) } else { model_peak };
        if sampling.temperature < GREEDY {
            return logits_v.iter().position(|&logit| logit == peak).unwrap_or(0) as u32;
        }
        let total = if penalised || sampling.temperature != 1.0 {
            exponentials(
                logits_v,
                peak,
                (1.0 / sampling.temperature) as f32,
                &mut scratch.weights,
            )
        } else {
            model_total
        };
        let top_k = if sampling.top_k == 0 {
            logits_v.len()
        } else {
            sampling.top_k
        };
        // What is forbidden must weigh nothing at all, where the approximation of its exponential leaves a trace.
        let total = if mask.is_some() {
            for (weight, &logit) in scratch.weights.iter_mut().zip(logits_v) {
                if logit == f32::NEG_INFINITY {
                    *weight = 0.0;
                }
            }
            scratch.weights.chunks(BLOCK).map(sum).sum()
        } else {
            total
        };
        if top_k >= logits_v.len() && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
            return invert(&scratch.weights, total, uniform);
        }
        filter(&scratch.weights, total, top_k, sampling, &mut scratch.candidates);
        invert_candidates(&scratch.candidates, uniform)
    }

    fn penalise(&self, logits_v: &[f32], mask: Option<&[u32]>, penalised_v: &mut Vec<f32>) {
        penalised_v.clear();
        penalised_v.extend_from_slice(logits_v);
        let repetition = self.sampling.repetition_penalty as f32;
        for &id in &self.seen {
            if let Some(logit) = penalised_v.get_mut(id as usize) {
                *logit = if *logit > 0.0 {
                    *logit / repetition
                } else {
                    *logit * repetition
                };
            }
        }
        let (presence, frequency) = (self.sampling.presence_penalty, self.sampling.frequency_penalty);
        for (&id, &times) in &self.replied {
            if let Some(logit) = penalised_v.get_mut(id as usize) {
                *logit -= (presence + frequency * f64::from(times)) as f32;
            }
        }
        for (&id, bias) in &self.sampling.logit_bias {
            if let Some(logit) = penalised_v.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if let Some(mask) = mask {
            for (id, logit) in penalised_v.iter_mut().enumerate() {
                if !allows(mask, id) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Draws one token for each `(row, sampler)` from logits of shape n x v, rows in parallel.
pub fn draw_rows(
    logits_n_v: &[f32],
    vocabulary: usize,
    rows: Vec<(usize, &mut Sampler)>,
) -> Result<Vec<Draw>> {
    rows.into_par_iter()
        .map_init(Scratch::default, |scratch, (row, sampler)| {
            sampler.draw(&logits_n_v[row * vocabulary..(row + 1) * vocabulary], scratch)
        })
        .collect()
}

/// Leaves in `candidates` the weights and ids that top-k, top-p and min-p keep, in the order of ids.
fn filter(
    weights_v: &[f32],
    total: f64,
    top_k: usize,
    sampling: &Sampling,
    candidates: &mut Vec<(f32, u32)>,
) {
    // A lower bound of the answer's smallest weight. The k-th of the peaks of k or more pieces is at most the k-th of
    // all values; tokens each below a v-th of 1 - p cannot add up to 1 - p, so the nucleus needs none of them.
    let floor = if top_k < weights_v.len() {
        floor_of_top_k(weights_v, top_k)
    } else if sampling.top_p < 1.0 {
        ((1.0 - sampling.top_p) * total / weights_v.len() as f64 * (1.0 - 1e-6)) as f32
    } else {
        0.0
    };
    candidates.clear();
    let ids = 0..weights_v.len() as u32;
    candidates.extend(
        weights_v
            .iter()
            .copied()
            .zip(ids)
            .filter(|&(weight, _)| weight >= floor),
    );
    let mut total = total;
    if top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, |left, right| heavier_first(*left, *right));
        candidates.truncate(top_k);
    }
    if top_k < weights_v.len() {
        total = candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
    }
    if sampling.top_p < 1.0 {
        let kept = nucleus(candidates, sampling.top_p * total);
        candidates.truncate(kept);
    }
    // The likeliest token has weight one.
    candidates.retain(|&(weight, _)| weight > 0.0 && f64::from(weight) >= sampling.min_p);
    candidates.sort_unstable_by_key(|&(_, id)| id);
}

/// The `count` highest logits and their ids, the highest first; `candidates` is room to work in.
fn likeliest(logits_v: &[f32], count: usize, candidates: &mut Vec<(f32, u32)>) -> Vec<(f32, u32)> {
    let count = count.min(logits_v.len());
    if count == 0 {
        return Vec::new();
    }
    let floor = floor_of_top_k(logits_v, count);
    candidates.clear();
    candidates.extend(
        logits_v
            .iter()
            .copied()
            .zip(0..)
            .filter(|&(logit, _)| logit >= floor),
    );
    candidates.sort_unstable_by(|left, right| heavier_first(*left, *right));
    candidates[..count].to_vec()
}

/// Heavier weights first; of equal ones the lower id.
fn heavier_first(left: (f32, u32), right: (f32, u32)) -> std::cmp::Ordering {
    right.0.total_cmp(&left.0).then(left.1.cmp(&right.1))
}

fn floor_of_top_k(weights_v: &[f32], top_k: usize) -> f32 {
    let piece = (weights_v.len() / (top_k * 4)).clamp(1, BLOCK);
    let mut peaks: Vec<f32> = weights_v.chunks(piece).map(highest).collect();
    let kth = top_k.min(peaks.len()) - 1;
    *peaks
        .select_nth_unstable_by(kth, |left, right| right.total_cmp(left))
        .1
}

/// Brings the smallest set of heaviest candidates whose weight reaches `mass` to the front and returns its size.
fn nucleus(candidates: &mut [(f32, u32)], mass: f64) -> usize {
    // The answer lies in low + 1 ..= high; `kept` is the weight of the first `low`, which are the heaviest.
    let (mut low, mut high, mut kept) = (0, candidates.len(), 0.0);
    while low + 1 < high {
        let middle = usize::midpoint(low, high);
        candidates[low..high]
            .select_nth_unstable_by(middle - low, |left, right| heavier_first(*left, *right));
        let half: f64 = candidates[low..middle]
            .iter()
            .map(|&(weight, _)| f64::from(weight))
            .sum();
        if kept + half >= mass {
            high = middle;
        } else {
            kept += half;
            low = middle;
        }
    }
    high
}

/// The id at which the cumulative weight passes `uniform` of the total.
fn invert(weights_v: &[f32], total: f64, uniform: f64) -> u32 {
    let mut rest = uniform * total;
    let mut last = 0;
    for (block, weights) in weights_v.chunks(BLOCK).enumerate() {
        let sum = sum(weights);
        if rest < sum {
            for (offset, &weight) in weights.iter().enumerate() {
                if weight > 0.0 {
                    last = block * BLOCK + offset;
                }
                rest -= f64::from(weight);
                if rest < 0.0 {
                    return last as u32;
                }
            }
            // Rounding left a hair between the block's sum and its parts: the block's last token takes it.
            return last as u32;
        }
        rest -= sum;
        if let Some(offset) = weights.iter().rposition(|&weight| weight > 0.0) {
            last = block * BLOCK + offset;
        }
    }
    last as u32
}

fn invert_candidates(candidates: &[(f32, u32)], uniform: f64) -> u32 {
    let total: f64 = candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
    let mut rest = uniform * total;
    for &(weight, id) in candidates {
        rest -= f64::from(weight);
        if rest < 0.0 {
            return id;
        }
    }
    candidates.last().map_or(0, |&(_, id)| id)
}

/// The highest logit, or an error where one is not finite.
fn peak(logits_v: &[f32]) -> Result<f32> {
    // A finite number times zero is zero; the others leave NaN.
    let mut poison = [0.0_f32; LANES];
    let (chunks, tail) = logits_v.as_chunks::<LANES>();
    for chunk in chunks {
        for (poison, value) in poison.iter_mut().zip(chunk) {
            *poison += value * 0.0;
        }
    }
    let poisoned = poison.iter().sum::<f32>() + tail.iter().map(|value| value * 0.0).sum::<f32>();
    if logits_v.is_empty() || poisoned != 0.0 {
        let found = logits_v.iter().position(|value| !value.is_finite());
        let what = found.map_or("no logits".to_owned(), |id| {
            format!("{} for token {id}", logits_v[id])
        });
        return Err(Error::Request(format!(
            "the model's logits: expected finite numbers, found {what}"
        )));
    }
    Ok(highest(logits_v))
}

fn highest(values: &[f32]) -> f32 {
    let mut high = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (high, &value) in high.iter_mut().zip(chunk) {
            *high = if value > *high { value } else { *high };
        }
    }
    high.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Writes `exp((value - peak) * scale)` for every value and returns the sum.
fn exponentials(values: &[f32], peak: f32, scale: f32, weights: &mut Vec<f32>) -> f64 {
    weights.resize(values.len(), 0.0);
    for (weight, &value) in weights.iter_mut().zip(values) {
        *weight = exponential((value - peak) * scale);
    }
    weights.chunks(BLOCK).map(sum).sum()
}

/// `exp` of a number that is not positive, to two units in the last place, without branches so that it vectorises.
fn exponential(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = (x - whole * LN_2_HIGH) - whole * LN_2_LOW;
    // The Taylor polynomial of degree 7 on |rest| <= ln 2 / 2: its error is below one unit in the last place.
    let series = 1.0 / 5040.0;
    let series = series * rest + 1.0 / 720.0;
    let series = series * rest + 1.0 / 120.0;
    let series = series * rest + 1.0 / 24.0;
    let series = series * rest + 1.0 / 6.0;
    let series = series * rest + 0.5;
    let series = series * rest + 1.0;
    let series = series * rest + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    series * f32::from_bits(power)
}

fn sum(values: &[f32]) -> f64 {
    let mut sums = [0.0_f32; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value;
        }
    }
    sums.iter().chain(tail).map(|&value| f64::from(value)).sum()
}

/// Names the random stream of one completion.
fn stream(seed: u64, prompt_ids: &[u32], index: usize) -> u64 {
    let start = mix(mix(seed) ^ index as u64);
    prompt_ids
        .iter()
        .fold(start, |state, &id| mix(state ^ u64::from(id)))
}

/// A number in [0, 1): draw number `position` of a stream.
fn uniform(stream: u64, position: u64) -> f64 {
    (mix(stream ^ mix(position)) >> 11) as f64 * 2.0_f64.powi(-53)
}

/// A bijection of 64-bit words that scatters neighbours (the output function of SplitMix64).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits that look like a model's: most small, a few large, all from the hash.
    fn logits(vocabulary: usize, seed: u64) -> Vec<f32> {
        (0..vocabulary as u64)
            .map(|id| {
                let spread = uniform(seed, id) * 2.0 - 1.0;
                (spread.powi(5) * 14.0) as f32
            })
            .collect()
    }

    fn draw_one(sampling: &Sampling, logits_v: &[f32], index: usize) -> Draw {
        let mut sampler = Sampler::new(sampling, &[1, 2, 3], index).unwrap();
        sampler.draw(logits_v, &mut Scratch::default()).unwrap()
    }

    /// The distribution by its definition, with a full sort, in f64.
    fn reference(logits_v: &[f32], sampling: &Sampling) -> Vec<f64> {
        let peak = f64::from(highest(logits_v));
        let weights: Vec<f64> = logits_v
            .iter()
            .map(|&logit| ((f64::from(logit) - peak) / sampling.temperature).exp())
            .collect();
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|&left, &right| weights[right].total_cmp(&weights[left]).then(left.cmp(&right)));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k);
        }
        let total: f64 = order.iter().map(|&id| weights[id]).sum();
        let mut mass = 0.0;
        let kept = order.iter().take_while(|&&id| {
            let short = mass < sampling.top_p * total;
            mass += weights[id];
            short
        });
        let mut probabilities = vec![0.0; weights.len()];
        for &id in kept.filter(|&&id| weights[id] >= sampling.min_p) {
            probabilities[id] = weights[id];
        }
        let total: f64 = probabilities.iter().sum();
        for probability in &mut probabilities {
            *probability /= total;
        }
        probabilities
    }

    #[test]
    fn exponential_is_close() {
        for step in 0..87_000 {
            let x = -(step as f32) / 1000.0;
            let error = (f64::from(exponential(x)) / f64::from(x).exp() - 1.0).abs();
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
        assert!(exponential(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn filters_keep_what_a_full_sort_keeps() {
        let base = Sampling::default();
        let cases = [
            Sampling {
                top_k: 20,
                ..base.clone()
            },
            Sampling {
                top_k: 1,
                ..base.clone()
            },
            Sampling {
                top_k: 3000,
                top_p: 0.9,
                ..base.clone()
            },
            Sampling {
                top_p: 0.95,
                ..base.clone()
            },
            Sampling {
                top_p: 0.5,
                temperature: 0.7,
                ..base.clone()
            },
            Sampling {
                top_p: 0.999,
                temperature: 3.0,
                ..base.clone()
            },
            Sampling {
                min_p: 0.05,
                ..base.clone()
            },
            Sampling {
                top_k: 20,
                top_p: 0.8,
                min_p: 0.02,
                temperature: 0.6,
                ..base.clone()
            },
            Sampling { top_p: 1e-9, ..base },
        ];
        for (number, sampling) in cases.iter().enumerate() {
            let logits_v = logits(5003, number as u64);
            let expected = reference(&logits_v, sampling);
            let mut weights_v = Vec::new();
            let total = exponentials(
                &logits_v,
                highest(&logits_v),
                (1.0 / sampling.temperature) as f32,
                &mut weights_v,
            );
            let mut candidates = Vec::new();
            let top_k = if sampling.top_k == 0 {
                logits_v.len()
            } else {
                sampling.top_k
            };
            filter(&weights_v, total, top_k, sampling, &mut candidates);
            let kept: Vec<usize> = candidates.iter().map(|&(_, id)| id as usize).collect();
            let due: Vec<usize> = (0..expected.len()).filter(|&id| expected[id] > 0.0).collect();
            assert_eq!(kept, due, "{sampling:?}");
        }
    }

    #[test]
    fn equal_logits_are_cut_by_id() {
        let sampling = Sampling {
            top_k: 3,
            ..Sampling::default()
        };
        let drawn: BTreeSet<u32> = (0..200)
            .map(|index| draw_one(&sampling, &[1.0; 50], index).id)
            .collect();
        assert_eq!(drawn, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits_v = logits(40, 7);
        for sampling in [
            Sampling::default(),
            Sampling {
                temperature: 0.5,
                ..Sampling::default()
            },
            Sampling {
                top_p: 0.9,
                top_k: 30,
                ..Sampling::default()
            },
        ] {
            let expected = reference(&logits_v, &sampling);
            let draws = 40_000;
            let mut counts = vec![0_usize; logits_v.len()];
            let mut sampler = Sampler::new(&sampling, &[], 0).unwrap();
            let mut scratch = Scratch::default();
            for _ in 0..draws {
                counts[sampler.draw(&logits_v, &mut scratch).unwrap().id as usize] += 1;
            }
            for (count, probability) in counts.iter().zip(&expected) {
                let deviation = (probability * (1.0 - probability) / f64::from(draws)).sqrt();
                let off = (*count as f64 / f64::from(draws) - probability).abs();
                assert!(off <= 5.0 * deviation, "expected {probability}, off by {off}");
            }
        }
    }

    #[test]
    fn log_probability_is_the_models_own() {
        let logits_v = logits(49_152, 3);
        let expected = reference(&logits_v, &Sampling::default());
        let sampling = Sampling {
            temperature: 0.6,
            top_k: 20,
            top_p: 0.95,
            presence_penalty: 1.0,
            ..Sampling::default()
        };
        for index in 0..50 {
            let draw = draw_one(&sampling, &logits_v, index);
            let off = f64::from(draw.log_probability) - expected[draw.id as usize].ln();
            assert!(off.abs() < 2e-6, "off by {off}");
        }
    }

    #[test]
    fn streams_depend_on_seed_prompt_index_and_position_alone() {
        let logits_v = logits(1000, 1);
        let draw_many = |seed, ids: &[u32], index| -> Vec<u32> {
            let mut sampler = Sampler::new(
                &Sampling {
                    seed,
                    ..Sampling::default()
                },
                ids,
                index,
            )
            .unwrap();
            let mut scratch = Scratch::default();
            (0..20)
                .map(|_| sampler.draw(&logits_v, &mut scratch).unwrap().id)
                .collect()
        };
        let base = draw_many(5, &[1, 2], 0);
        assert_eq!(base, draw_many(5, &[1, 2], 0));
        assert_ne!(base, draw_many(6, &[1, 2], 0));
        assert_ne!(base, draw_many(5, &[2, 1], 0));
        assert_ne!(base, draw_many(5, &[1, 2], 1));
        assert!(base.iter().collect::<BTreeSet<_>>().len() > 5);
    }

    #[test]
    fn rows_draw_as_they_would_alone() {
        let logits_n_v: Vec<f32> = (0..7).flat_map(|row| logits(301, row)).collect();
        let sampling = Sampling {
            top_p: 0.9,
            ..Sampling::default()
        };
        let samplers: Vec<Sampler> = (0..7)
            .map(|index| Sampler::new(&sampling, &[9], index).unwrap())
            .collect();
        let mut together = samplers.clone();
        let rows = together.iter_mut().enumerate().collect();
        let drawn = draw_rows(&logits_n_v, 301, rows).unwrap();
        for (row, mut sampler) in samplers.into_iter().enumerate() {
            let alone = sampler
                .draw(&logits_n_v[row * 301..(row + 1) * 301], &mut Scratch::default())
                .unwrap();
            assert_eq!(alone, drawn[row]);
        }
    }

    #[test]
    fn penalties_act_on_seen_tokens() {
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let mut scratch = Scratch::default();
        // Prompt token 1 leads; a repetition penalty of two halves it.
        let repetition = Sampling {
            repetition_penalty: 2.0,
            ..greedy.clone()
        };
        let mut sampler = Sampler::new(&repetition, &[1], 0).unwrap();
        assert_eq!(sampler.draw(&[0.5, 3.0, 2.0, -1.0], &mut scratch).unwrap().id, 2);
        assert_eq!(sampler.draw(&[1.2, 3.0, 2.0, -1.0], &mut scratch).unwrap().id, 1);
        // A presence penalty leaves the prompt alone and strikes what was said.
        let presence = Sampling {
            presence_penalty: 1.5,
            ..greedy.clone()
        };
        let mut sampler = Sampler::new(&presence, &[1], 0).unwrap();
        assert_eq!(sampler.draw(&[0.5, 3.0, 2.0], &mut scratch).unwrap().id, 1);
        assert_eq!(sampler.draw(&[0.5, 3.0, 2.0], &mut scratch).unwrap().id, 2);
        assert_eq!(sampler.draw(&[0.5, 3.0, 2.0], &mut scratch).unwrap().id, 1);
        // A frequency penalty grows with each time.
        let frequency = Sampling {
            frequency_penalty: 0.6,
            ..greedy.clone()
        };
        let mut sampler = Sampler::new(&frequency, &[], 0).unwrap();
        let drawn: Vec<u32> = (0..4)
            .map(|_| sampler.draw(&[0.5, 3.0, 2.0], &mut scratch).unwrap().id)
            .collect();
        assert_eq!(drawn, [1, 1, 2, 1]);
        let biased = Sampling {
            logit_bias: BTreeMap::from([(0, 4.0), (1, -1.5)]),
            ..greedy
        };
        let mut sampler = Sampler::new(&biased, &[], 0).unwrap();
        assert_eq!(sampler.draw(&[0.5, 3.0, 2.0], &mut scratch).unwrap().id, 0);
    }

    /// Allows even tokens, then odd ones, and so on.
    #[derive(Debug)]
    struct Alternate(u32);

    impl Constraint for Alternate {
        fn mask(&mut self) -> Option<Vec<u32>> {
            Some(vec![0x5555_5555 << self.0; 10])
        }

        fn accept(&mut self, id: u32) {
            assert_eq!(id % 2, self.0);
            self.0 = 1 - self.0;
        }

        fn fork(&self) -> Box<dyn Constraint> {
            Box::new(Self(self.0))
        }
    }

    #[test]
    fn a_constraint_is_never_broken_whatever_the_filters() {
        let logits_v = logits(301, 4);
        let best = |odd: usize| {
            let ids = (odd..301).step_by(2);
            ids.max_by(|&left, &right| logits_v[left].total_cmp(&logits_v[right]))
        };
        for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 0, 1.0), (2.0, 50, 1.0), (1.0, 0, 0.9)] {
            let sampling = Sampling {
                temperature,
                top_p,
                top_k,
                ..Sampling::default()
            };
            let sampler = Sampler::new(&sampling, &[], 0).unwrap();
            let mut sampler = sampler.with_constraint(Some(Box::new(Alternate(0))));
            for step in 0..100 {
                let draw = sampler.draw(&logits_v, &mut Scratch::default()).unwrap();
                assert!(temperature > 0.0 || Some(draw.id as usize) == best(step % 2));
            }
        }
    }

    #[test]
    fn the_likeliest_tokens_come_with_the_models_own_log_probabilities() {
        let logits_v = logits(1000, 8);
        let expected = reference(&logits_v, &Sampling::default());
        let mut sampler = Sampler::new(&Sampling::default(), &[], 0)
            .unwrap()
            .with_likeliest(5);
        let likeliest = sampler
            .draw(&logits_v, &mut Scratch::default())
            .unwrap()
            .likeliest;
        let mut order: Vec<usize> = (0..1000).collect();
        order.sort_by(|&left, &right| expected[right].total_cmp(&expected[left]));
        assert_eq!(likeliest.len(), 5);
        for ((id, log_probability), due) in likeliest.into_iter().zip(order) {
            assert_eq!(id as usize, due);
            assert!((f64::from(log_probability) - expected[due].ln()).abs() < 2e-6);
        }
    }

    #[test]
    fn logits_that_are_not_numbers_are_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits_v = logits(100, 2);
            logits_v[37] = bad;
            let mut sampler = Sampler::new(&Sampling::default(), &[], 0).unwrap();
            let error = sampler
                .draw(&logits_v, &mut Scratch::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains("token 37"), "{error}");
        }
    }

    #[test]
    fn the_ends_of_the_uniform_are_covered() {
        let weights = vec![0.0, 1.0, 0.5, 0.0];
        assert_eq!(invert(&weights, 1.5, 0.0), 1);
        assert_eq!(invert(&weights, 1.5, 1.0), 2);
        assert_eq!(invert_candidates(&[(1.0, 4), (0.5, 9)], 1.0), 9);
    }
}
