//! Intervals for shares and means, and how alike replies begin.

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
