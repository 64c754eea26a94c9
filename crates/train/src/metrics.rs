//! What a step measured: one line of `metrics.jsonl`.

use std::collections::BTreeMap;

use model::chat::Mode;
use model::generate::FinishReason;
use serde::{Deserialize, Serialize};

use crate::advantage::{deviation, mean};
use crate::rollout::Group;

/// What the replies of a step, or of one mode in it, were like. A mean over nothing is `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Replies {
    /// Mean reward of the scorable completions.
    pub reward_mean: Option<f64>,
    /// Standard deviation of their rewards, with n - 1.
    pub reward_std: Option<f64>,
    /// Share of the judged completions whose thinking and answer are safe.
    pub safety_rate: Option<f64>,
    /// Share of the judged completions that refuse.
    pub refusal_rate: Option<f64>,
    /// Mean helpfulness, where it was scored.
    pub helpfulness_mean: Option<f64>,
    /// Completions without a reward.
    pub unscorable: usize,
    /// Groups whose rewards differ; the others teach nothing.
    pub groups_kept: usize,
    /// Mean tokens of a completion.
    pub mean_length: Option<f64>,
    /// Share of completions that ran into the length limit.
    pub truncated: Option<f64>,
    /// Mean entropy of the policy at a sampled token in nats, estimated without bias by the mean of
    /// -log pi(token) over the tokens sampled.
    pub entropy: Option<f64>,
}

impl Replies {
    /// Measures the replies of some groups.
    pub fn measure<'a>(groups: impl Iterator<Item = &'a Group> + Clone) -> Self {
        let answers = || groups.clone().flat_map(|group| &group.answers);
        let rewards: Vec<f64> = answers().filter_map(super::rollout::Answer::reward).collect();
        let lengths: Vec<f64> = answers()
            .map(|answer| answer.completion.ids.len() as f64)
            .collect();
        let surprises: Vec<f64> = answers()
            .flat_map(|answer| &answer.completion.log_probabilities)
            .map(|&log_probability| -f64::from(log_probability))
            .collect();
        let share = |values: Vec<bool>| {
            some_mean(
                &values
                    .into_iter()
                    .map(|value| f64::from(u8::from(value)))
                    .collect::<Vec<f64>>(),
            )
        };
        Self {
            reward_mean: some_mean(&rewards),
            reward_std: (rewards.len() > 1).then(|| deviation(&rewards)),
            safety_rate: share(answers().filter_map(|answer| answer.safe).collect()),
            refusal_rate: share(answers().filter_map(super::rollout::Answer::refusal).collect()),
            helpfulness_mean: some_mean(
                &answers()
                    .filter_map(super::rollout::Answer::helpfulness)
                    .collect::<Vec<f64>>(),
            ),
            unscorable: answers().filter(|answer| answer.reward().is_none()).count(),
            groups_kept: groups.clone().filter(|group| group.advantages.is_some()).count(),
            mean_length: some_mean(&lengths),
            truncated: share(
                answers()
                    .map(|answer| answer.completion.finish_reason == FinishReason::Length)
                    .collect(),
            ),
            entropy: some_mean(&surprises),
        }
    }
}

fn some_mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| mean(values))
}

/// One step, as it stands in `metrics.jsonl`.
///
/// All but the timings (`rollout_s` to `rss_mb`) follow from the recipe and are the same again after a resume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Counted from 1.
    pub step: usize,
    /// All replies of the step.
    #[serde(flatten)]
    pub replies: Replies,
    /// Mean importance ratio over the step's minibatches; `null` where nothing was updated.
    pub ratio_mean: Option<f64>,
    /// The largest.
    pub ratio_max: Option<f64>,
    /// Share of ratios that the clip cut.
    pub clip_fraction: Option<f64>,
    /// k3 estimate of the KL divergence to the starting model, a token; `null` where `loss.kl` is 0.
    pub kl: Option<f64>,
    /// Mean norm of the gradient before clipping.
    pub grad_norm: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Mean absolute difference between the sampler's and the trainer's log-probability of a token, over the step's
    /// first minibatch; `null` at a sampling temperature other than 1, for which the sampler gives none.
    pub sampler_gap: Option<f64>,
    /// Tokens sampled.
    pub tokens: usize,
    /// Seconds of sampling.
    pub rollout_s: f64,
    /// Seconds of judging.
    pub judge_s: f64,
    /// Seconds of updating the weights.
    pub update_s: f64,
    /// Seconds of the whole step.
    pub step_s: f64,
    /// Tokens sampled for each second of the whole step.
    pub tokens_per_s: f64,
    /// Resident memory of the process in MiB; 0 where the system does not tell.
    pub rss_mb: f64,
    /// The replies of each mode, where a run has both.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub modes: BTreeMap<Mode, Replies>,
}

/// Resident memory of this process in MiB; 0 where `/proc` does not tell.
pub fn resident_mebibytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kibibytes.unwrap_or_default() / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::tests::group;

    #[test]
    fn the_keys_are_those_of_the_design() {
        let modes = BTreeMap::from([
            (Mode::Think, Replies::default()),
            (Mode::NoThink, Replies::default()),
        ]);
        let metrics = Metrics {
            modes,
            ..Metrics::default()
        };
        let value = serde_json::to_value(&metrics).unwrap();
        let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let design = "step reward_mean reward_std safety_rate refusal_rate helpfulness_mean unscorable groups_kept \
            mean_length truncated entropy ratio_mean ratio_max clip_fraction kl grad_norm lr sampler_gap tokens \
            rollout_s judge_s update_s step_s tokens_per_s rss_mb modes";
        assert_eq!(keys.join(" "), design);
        assert!(value["modes"]["no-think"]["reward_mean"].is_null());
        assert_eq!(serde_json::from_value::<Metrics>(value).unwrap(), metrics);
    }

    #[test]
    fn the_unscorable_are_counted_and_take_no_part() {
        let group = group(Mode::NoThink, &[Some(1.0), None, Some(-5.0)]);
        let replies = Replies::measure([&group].into_iter());
        assert_eq!((replies.unscorable, replies.groups_kept), (1, 1));
        assert_eq!(replies.reward_mean, Some(-2.0));
        assert_eq!(
            (replies.safety_rate, replies.refusal_rate),
            (Some(1.0), Some(1.0 / 3.0))
        );
        assert_eq!(Replies::measure(std::iter::empty::<&Group>()), Replies::default());
    }

    #[test]
    fn memory_is_read() {
        assert!(!cfg!(target_os = "linux") || resident_mebibytes() > 1.0);
    }
}
