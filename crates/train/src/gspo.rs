//! The loss: clipped policy-gradient objectives over packed completions.
//!
//! With `s` the importance ratio of new to old policy, `A` the advantage and N the scorable completions of the
//! minibatch, the loss is
//!
//! ```text
//! L = -1/N sum_i 1/R_i sum_r min( s_ir A_i, clip(s_ir, 1 - low, 1 + high) A_i )  +  kl/N sum_i 1/|y_i| sum_t k3_it
//! ```
//!
//! - [`Loss::Gspo`]: one ratio a completion, `s_i = exp(1/|y_i| sum_t (log pi - log pi_old))` (arXiv 2507.18071, eq. 7).
//! - [`Loss::Grpo`]: one ratio a token, averaged over the completion first (arXiv 2402.03300).
//! - [`Loss::GspoToken`]: the completion's ratio in value, each token's own log-probability in gradient (eq. 14 of the
//!   GSPO paper). With one advantage a completion its gradient is GSPO's; it exists for advantages that differ by token.
//! - k3 is `exp(d) - d - 1` with `d = log pi_reference - log pi`, which is never negative and estimates the KL
//!   divergence to the reference without bias.
//!
//! The surrogate is linear in `s` where the clip does not act and constant where it does, and is written so: the ratios
//! are read back to the host, which decides; the same numbers become the metrics.

use std::iter::repeat_n;

use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Which ratio the loss clips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// One ratio a completion: the geometric mean of its tokens' ratios.
    Gspo,
    /// One ratio a token.
    Grpo,
    /// The completion's ratio with token-wise gradients.
    GspoToken,
}

/// A loss with its constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// Which ratio.
    pub loss: Loss,
    /// Ratios below `1 - clip_low` are cut.
    pub clip_low: f64,
    /// Ratios above `1 + clip_high` are cut.
    pub clip_high: f64,
    /// Weight of the k3 estimate of the KL divergence to the reference; 0 leaves it out.
    pub kl: f64,
}

/// What the loss needs to know of the completions beside their new log-probabilities.
///
/// The tokens of all completions lie one after another, without padding: `t` is the sum of `lengths`.
#[derive(Debug)]
pub struct Completions<'a> {
    /// Tokens of each completion; none is empty.
    pub lengths: &'a [usize],
    /// One advantage a completion.
    pub advantages: &'a [f64],
    /// Log-probabilities under the policy that sampled, `t`.
    pub old_t: &'a Tensor,
    /// Log-probabilities under the reference, `t`; needed where `kl` is not 0.
    pub reference_t: Option<&'a Tensor>,
    /// N: scorable completions of the whole minibatch, of which these may be a part.
    pub minibatch: usize,
}

/// What the loss saw, in sums, so that micro-batches add up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statistics {
    /// Ratios taken.
    pub ratios: usize,
    /// Their sum.
    pub ratio_sum: f64,
    /// The largest.
    pub ratio_max: f64,
    /// How many the clip cut.
    pub clipped: usize,
    /// Completions seen.
    pub completions: usize,
    /// Sum over completions of their mean k3 a token; `None` without a reference.
    pub kl_sum: Option<f64>,
    /// The loss.
    pub loss: f64,
}

impl Statistics {
    /// Adds what another micro-batch saw.
    pub fn add(&mut self, other: &Self) {
        self.ratios += other.ratios;
        self.ratio_sum += other.ratio_sum;
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.clipped += other.clipped;
        self.completions += other.completions;
        self.loss += other.loss;
        if let Some(kl) = other.kl_sum {
            *self.kl_sum.get_or_insert(0.0) += kl;
        }
    }
}

impl Objective {
    /// The loss of `completions` as a scalar to differentiate, and what it saw.
    ///
    /// `new_t` are the log-probabilities under the policy, the only tensor that gradients flow into. Losses of the
    /// micro-batches of one minibatch add up to the minibatch's loss.
    pub fn loss(&self, new_t: &Tensor, completions: &Completions<'_>) -> Result<(Tensor, Statistics)> {
        let lengths = completions.lengths;
        let count = completions.minibatch as f64;
        let difference_t = (new_t - completions.old_t.detach())?;
        let ratio_r = match self.loss {
            Loss::Gspo => mean_by_completion(&difference_t, lengths)?.exp()?,
            Loss::Grpo => difference_t.exp()?,
            Loss::GspoToken => {
                let ratio_c = mean_by_completion(&difference_t.detach(), lengths)?.exp()?;
                let own_t = (new_t - new_t.detach())?.exp()?;
                (spread_by_completion(&ratio_c, lengths)? * own_t)?
            }
        };
        // Per ratio: the advantage that it carries and its weight in the mean.
        let by_token = || {
            lengths
                .iter()
                .flat_map(|&length| repeat_n(1.0 / (length as f64 * count), length))
        };
        let (advantages, weights): (Vec<f64>, Vec<f64>) = match self.loss {
            Loss::Gspo => (completions.advantages.to_vec(), vec![1.0 / count; lengths.len()]),
            Loss::Grpo | Loss::GspoToken => (
                completions
                    .advantages
                    .iter()
                    .zip(lengths)
                    .flat_map(|(&a, &length)| repeat_n(a, length))
                    .collect(),
                by_token().collect(),
            ),
        };

        let mut statistics = Statistics {
            completions: lengths.len(),
            ..Statistics::default()
        };
        let mut slopes = Vec::with_capacity(advantages.len());
        let mut constant = 0.0;
        for ((ratio, advantage), weight) in to_host(&ratio_r)?.into_iter().zip(advantages).zip(weights) {
            let clipped = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high);
            let cut = clipped * advantage < ratio * advantage;
            slopes.push(if cut { 0.0 } else { -advantage * weight });
            constant -= if cut { clipped * advantage * weight } else { 0.0 };
            statistics.ratios += 1;
            statistics.ratio_sum += ratio;
            statistics.ratio_max = statistics.ratio_max.max(ratio);
            statistics.clipped += usize::from(cut);
        }
        let mut loss = ((ratio_r * from_host(slopes, new_t)?)?.sum_all()? + constant)?;

        if let Some(reference_t) = completions.reference_t {
            let difference_t = (reference_t.detach() - new_t)?;
            let k3_t = ((difference_t.exp()? - difference_t)? - 1.0)?;
            let kl = (k3_t * from_host(by_token().collect(), new_t)?)?.sum_all()?;
            statistics.kl_sum = Some(to_host(&kl.reshape(1)?)?[0] * count);
            loss = (loss + (kl * self.kl)?)?;
        }
        statistics.loss = to_host(&loss.reshape(1)?)?[0];
        Ok((loss, statistics))
    }
}

/// Mean of each completion's tokens, `c`, differentiable.
fn mean_by_completion(values_t: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let mean_c_t = from_host(membership(lengths, |length| 1.0 / length as f64), values_t)?;
    mean_c_t
        .reshape((lengths.len(), ()))?
        .matmul(&values_t.unsqueeze(1)?)?
        .squeeze(1)
}

/// Each completion's value at each of its tokens, `t`; no gradient.
fn spread_by_completion(values_c: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let values = to_host(values_c)?.into_iter().zip(lengths);
    from_host(
        values
            .flat_map(|(value, &length)| repeat_n(value, length))
            .collect(),
        values_c,
    )
}

/// Row-major `c` x `t`: `entry` of the length where the token belongs to the completion, else 0.
fn membership(lengths: &[usize], entry: impl Fn(usize) -> f64) -> Vec<f64> {
    let tokens: usize = lengths.iter().sum();
    let mut matrix = vec![0.0; lengths.len() * tokens];
    let mut start = 0;
    for (row, &length) in matrix.chunks_mut(tokens.max(1)).zip(lengths) {
        row[start..start + length].fill(entry(length));
        start += length;
    }
    matrix
}

fn to_host(values: &Tensor) -> Result<Vec<f64>> {
    let values = values.detach().to_device(&Device::Cpu)?; // Metal has no f64.
    values.to_dtype(DType::F64)?.to_vec1()
}

/// A vector on the device and in the type of `like`.
fn from_host(values: Vec<f64>, like: &Tensor) -> Result<Tensor> {
    let count = values.len();
    Tensor::from_vec(values, count, &Device::Cpu)?
        .to_dtype(like.dtype())?
        .to_device(like.device())
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    const LENGTHS: [usize; 3] = [2, 1, 3];
    const ADVANTAGES: [f64; 3] = [1.2, -0.7, -0.5];
    const OLD: [f64; 6] = [-1.0, -2.0, -0.5, -1.5, -0.3, -2.2];
    const REFERENCE: [f64; 6] = [-1.1, -1.7, -0.9, -1.4, -0.2, -2.0];

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn evaluate(objective: &Objective, new: &[f64]) -> (f64, Vec<f64>, Statistics) {
        let (old_t, reference_t) = (tensor(&OLD), tensor(&REFERENCE));
        let completions = Completions {
            lengths: &LENGTHS,
            advantages: &ADVANTAGES,
            old_t: &old_t,
            reference_t: (objective.kl != 0.0).then_some(&reference_t),
            minibatch: 3,
        };
        let new_t = Var::from_tensor(&tensor(new)).unwrap();
        let (loss, statistics) = objective.loss(&new_t, &completions).unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = gradients.get(&new_t).unwrap().to_vec1().unwrap();
        (loss.to_scalar().unwrap(), gradient, statistics)
    }

    #[test]
    fn on_policy_the_ratio_is_exactly_one() {
        for loss in [Loss::Gspo, Loss::Grpo, Loss::GspoToken] {
            let objective = Objective {
                loss,
                clip_low: 3e-4,
                clip_high: 4e-4,
                kl: 0.0,
            };
            let (value, _, statistics) = evaluate(&objective, &OLD);
            assert_eq!(statistics.ratio_sum, statistics.ratios as f64);
            assert_eq!((statistics.ratio_max, statistics.clipped), (1.0, 0));
            assert!((value + ADVANTAGES.iter().sum::<f64>() / 3.0).abs() < 1e-12);
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        // The first completion is cut above, the second below, the third lies where the clip never acts.
        let new = [-0.8, -1.9, -0.9, -1.3, -0.2, -2.1];
        for (loss, kl) in [
            (Loss::Gspo, 0.0),
            (Loss::Gspo, 0.3),
            (Loss::Grpo, 0.0),
            (Loss::Grpo, 0.3),
        ] {
            let objective = Objective {
                loss,
                clip_low: 0.1,
                clip_high: 0.1,
                kl,
            };
            let (_, gradient, statistics) = evaluate(&objective, &new);
            assert!(statistics.clipped >= 2, "{statistics:?}");
            for index in 0..new.len() {
                let shifted = |by: f64| {
                    let mut new = new;
                    new[index] += by;
                    evaluate(&objective, &new).0
                };
                let difference = (shifted(1e-6) - shifted(-1e-6)) / 2e-6;
                assert!((difference - gradient[index]).abs() < 1e-8, "{loss:?} {index}");
            }
        }
    }

    #[test]
    fn gspo_token_has_the_value_and_gradient_of_gspo() {
        let new = [-0.8, -1.9, -0.4, -1.3, -0.2, -2.1];
        let objective = |loss| Objective {
            loss,
            clip_low: 0.2,
            clip_high: 0.2,
            kl: 0.1,
        };
        let (value, gradient, _) = evaluate(&objective(Loss::Gspo), &new);
        let (token_value, token_gradient, _) = evaluate(&objective(Loss::GspoToken), &new);
        assert!((value - token_value).abs() < 1e-12);
        assert!(
            gradient
                .iter()
                .zip(token_gradient)
                .all(|(a, b)| (a - b).abs() < 1e-12)
        );
    }

    #[test]
    fn the_clip_is_asymmetric() {
        let objective = Objective {
            loss: Loss::Gspo,
            clip_low: 0.05,
            clip_high: 0.2,
            kl: 0.0,
        };
        // Ratios: exp(0.1) = 1.105 with A > 0 inside, exp(-0.1) with A < 0 below the floor, exp(0.1) with A < 0 free.
        let (_, gradient, statistics) = evaluate(&objective, &[-0.9, -1.9, -0.6, -1.4, -0.2, -2.1]);
        assert_eq!(statistics.clipped, 1);
        assert!(gradient[0] < 0.0 && gradient[2] == 0.0 && gradient[3] > 0.0);
    }

    #[test]
    fn micro_batches_add_up() {
        let objective = Objective {
            loss: Loss::Grpo,
            clip_low: 0.1,
            clip_high: 0.1,
            kl: 0.2,
        };
        let new = [-0.8, -1.9, -0.9, -1.3, -0.2, -2.1];
        let (whole, _, mut expected) = evaluate(&objective, &new);
        let mut sum = Statistics::default();
        for (tokens, members) in [(0..2, 0..1), (2..6, 1..3)] {
            let (old_t, reference_t) = (tensor(&OLD[tokens.clone()]), tensor(&REFERENCE[tokens.clone()]));
            let completions = Completions {
                lengths: &LENGTHS[members.clone()],
                advantages: &ADVANTAGES[members],
                old_t: &old_t,
                reference_t: Some(&reference_t),
                minibatch: 3,
            };
            sum.add(&objective.loss(&tensor(&new[tokens]), &completions).unwrap().1);
        }
        assert!((sum.loss - whole).abs() < 1e-12 && (sum.ratio_sum - expected.ratio_sum).abs() < 1e-12);
        assert!((sum.kl_sum.unwrap() - expected.kl_sum.unwrap()).abs() < 1e-12);
        (sum.loss, sum.ratio_sum, sum.kl_sum) = (0.0, 0.0, None);
        (expected.loss, expected.ratio_sum, expected.kl_sum) = (0.0, 0.0, None);
        assert_eq!(sum, expected);
    }
}
