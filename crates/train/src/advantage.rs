//! A reward into an advantage: how much better a completion is than the others of its group.

use serde::{Deserialize, Serialize};

/// Added to the standard deviation, so that a group that hardly differs does not explode. Source: TRL's GRPO.
pub const EPSILON: f64 = 1e-4;

/// Whose standard deviation an advantage is measured in. Source: `scale_rewards` of TRL's GRPO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Its group's, as in the GSPO paper: every group pushes equally hard, be its answers far apart or nearly alike.
    #[default]
    Group,
    /// The whole batch's: a group of answers that are nearly alike hardly pushes.
    Batch,
}

/// The advantages of every group of a batch, by the scale; see [`advantages`] for one group.
pub fn batch_advantages(scale: Scale, rewards: &[Vec<Option<f64>>]) -> Vec<Option<Vec<Option<f64>>>> {
    match scale {
        Scale::Group => rewards.iter().map(|group| advantages(group)).collect(),
        Scale::Batch => {
            let scored: Vec<f64> = rewards.iter().flatten().flatten().copied().collect();
            let batch = deviation(&scored);
            rewards.iter().map(|group| compare(group, |_| batch)).collect()
        }
    }
}

/// Advantages of one group: `(reward - mean) / (standard deviation + 1e-4)` with n - 1 in the deviation.
///
/// `rewards` holds one entry a completion, `None` where it could not be scored. Such a completion takes no part in
/// the mean or the deviation and gets no advantage. Where fewer than two can be scored, or all rewards are equal,
/// the group teaches nothing and the answer is `None`: it is skipped.
///
/// ```
/// let advantages = train::advantage::advantages(&[Some(1.0), None, Some(0.0)]).unwrap();
/// assert!(advantages[0].unwrap() > 0.0 && advantages[1].is_none());
/// assert!(train::advantage::advantages(&[Some(2.0), Some(2.0)]).is_none());
/// ```
pub fn advantages(rewards: &[Option<f64>]) -> Option<Vec<Option<f64>>> {
    compare(rewards, deviation)
}

/// Each reward's distance from the group's mean, in the deviation that `spread` makes of the group's rewards.
fn compare(rewards: &[Option<f64>], spread: impl Fn(&[f64]) -> f64) -> Option<Vec<Option<f64>>> {
    let scored: Vec<f64> = rewards.iter().flatten().copied().collect();
    let first = *scored.first()?;
    if scored.iter().all(|&reward| reward == first) {
        return None;
    }
    let mean = mean(&scored);
    let deviation = spread(&scored);
    Some(
        rewards
            .iter()
            .map(|reward| reward.map(|reward| (reward - mean) / (deviation + EPSILON)))
            .collect(),
    )
}

/// The arithmetic mean; zero of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        0.0
    } else {
        values.iter().sum::<f64>() / values.len() as f64
    }
}

/// The standard deviation with n - 1; zero of fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_one_scale() {
        let groups = [
            vec![Some(-10.0), Some(2.0), None],
            vec![Some(1.0), Some(1.5)],
            vec![Some(1.0), Some(1.0)],
        ];
        let scored = [-10.0, 2.0, 1.0, 1.5, 1.0, 1.0];
        let scaled = batch_advantages(Scale::Batch, &groups);
        let first = scaled[0].as_ref().unwrap();
        assert!(
            (first[1].unwrap() - 6.0 / (deviation(&scored) + EPSILON)).abs() < 1e-12 && first[2].is_none()
        );
        let second = scaled[1].as_ref().unwrap();
        assert!(
            (first[1].unwrap() / second[1].unwrap() - 24.0).abs() < 1e-9,
            "the distances keep their ratio"
        );
        assert!(scaled[2].is_none(), "a group with one reward teaches nothing");
        assert_eq!(batch_advantages(Scale::Group, &groups)[1], advantages(&groups[1]));
    }

    #[test]
    fn advantages_sum_to_zero_and_keep_the_order() {
        let rewards = [3.0, -10.0, 0.5, 0.5, 7.0].map(Some);
        let advantages: Vec<f64> = advantages(&rewards).unwrap().into_iter().flatten().collect();
        assert!(advantages.iter().sum::<f64>().abs() < 1e-12);
        assert!(
            advantages[4] > advantages[0] && advantages[0] > advantages[2] && advantages[2] > advantages[1]
        );
        assert_eq!(advantages[2], advantages[3]);
    }

    #[test]
    fn the_deviation_has_n_minus_one() {
        let advantages = advantages(&[Some(0.0), Some(1.0)]).unwrap();
        assert!((advantages[1].unwrap() - 0.5 / (0.5_f64.sqrt() + 1e-4)).abs() < 1e-12);
    }

    #[test]
    fn the_unscorable_take_no_part() {
        let with = advantages(&[Some(1.0), None, Some(4.0), None]).unwrap();
        let without = advantages(&[Some(1.0), Some(4.0)]).unwrap();
        assert_eq!(with, [without[0], None, without[1], None]);
    }

    #[test]
    fn a_group_without_contrast_is_skipped() {
        assert!(advantages(&[]).is_none());
        assert!(advantages(&[None, None]).is_none());
        assert!(advantages(&[Some(1.0), None]).is_none());
        assert!(advantages(&[Some(-5.0), None, Some(-5.0)]).is_none());
    }
}
