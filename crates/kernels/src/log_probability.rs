//! The language-model head fused with the log-softmax: log-probabilities of chosen tokens.
//!
//! The logits of all rows over the whole vocabulary never exist. The vocabulary is cut into stripes, one task
//! each (`scan.rs`); a task walks its stripe in tiles (`tile.rs`) of some tokens by some rows that stay in the cache, and keeps for
//! each row the running maximum, the sum of exponentials and what else is asked for (an online softmax, Milakov and
//! Gimelshein 2018, arXiv 1805.02867). The stripes are then merged in order.
//!
//! The gradient for the hidden rows is `slope * gradient` with `slope = (weight[target] - sum_v p_v weight[v]) /
//! temperature`. The slope does not depend on the gradient, so the forward pass collects it while it has the
//! exponentials, and the backward pass costs nothing more. The gradient for the weight, wanted only where the head is
//! trained, needs the logits once more and recomputes them tile by tile.

mod scan;
mod tile;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};

use self::scan::{Wanted, scan};
use crate::bf16::{self, rounded_pair};
use crate::packed::Packed;
use crate::slices::fusible;

/// The log-probability of `targets[n]` under `softmax(hidden[n] @ weight^T / temperature)`, one f32 a row.
///
/// Gradients for `hidden_t_d`, and for `weight_v_d` where it is a variable or depends on one.
///
/// # Errors
/// When the shapes do not fit, a target is outside the vocabulary or the temperature is not above zero.
pub fn log_probability(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    check_targets(hidden_t_d, weight_v_d, targets)?;
    if fusible(&[hidden_t_d, weight_v_d]) {
        Ok(log_probability_and_entropy(hidden_t_d, weight_v_d, targets, temperature)?.0)
    } else {
        log_probability_composed(hidden_t_d, weight_v_d, targets, temperature)
    }
}

/// [`log_probability`] and [`entropy`] for the price of the first.
///
/// # Errors
/// As [`log_probability`].
pub fn log_probability_and_entropy(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<(Tensor, Vec<f32>)> {
    check(hidden_t_d, weight_v_d, temperature)?;
    check_targets(hidden_t_d, weight_v_d, targets)?;
    if !fusible(&[hidden_t_d, weight_v_d]) {
        let log_probability = log_probability_composed(hidden_t_d, weight_v_d, targets, temperature)?;
        return Ok((
            log_probability,
            entropy_composed(hidden_t_d, weight_v_d, temperature)?,
        ));
    }
    fused(hidden_t_d, weight_v_d, targets, temperature, None)
}

/// [`log_probability`] of hidden rows and a weight rounded to bf16 ([`crate::product_bf16`]); so are exponentials and
/// gradients where they are multiplied. Sums stay f32. `packed` is the weight packed as bf16, where the caller has it.
///
/// # Errors
/// As [`log_probability`].
pub fn log_probability_bf16(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    packed: Option<&Packed>,
    targets: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    if !bf16::available() || !fusible(&[hidden_t_d, weight_v_d]) {
        let (hidden_t_d, weight_v_d) = rounded_pair(hidden_t_d, weight_v_d)?;
        return log_probability(&hidden_t_d, &weight_v_d, targets, temperature);
    }
    check(hidden_t_d, weight_v_d, temperature)?;
    check_targets(hidden_t_d, weight_v_d, targets)?;
    let packed = match packed.filter(|packed| packed.pairs().is_some()) {
        Some(packed) => packed.clone(),
        None => Packed::new(weight_v_d, DType::BF16)?,
    };
    Ok(fused(hidden_t_d, weight_v_d, targets, temperature, Some(packed))?.0)
}

/// [`log_probability_bf16`] in plain candle operations; the whole logits exist.
pub fn log_probability_bf16_composed(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    let (hidden_t_d, weight_v_d) = rounded_pair(hidden_t_d, weight_v_d)?;
    log_probability_composed(&hidden_t_d, &weight_v_d, targets, temperature)
}

/// Log-probabilities and entropies, multiplied as bf16 where the weight is there as such too.
fn fused(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
    packed: Option<Packed>,
) -> Result<(Tensor, Vec<f32>)> {
    let weight_v_d = weight_v_d.contiguous()?;
    let wanted = Wanted {
        targets: Some(targets),
        slopes: hidden_t_d.track_op(),
    };
    let scan = scan(hidden_t_d, &weight_v_d, packed.as_ref(), temperature, wanted)?;
    let (device, rows) = (hidden_t_d.device(), targets.len());
    let head = Head {
        log_probability_t: scan
            .target_t
            .iter()
            .zip(&scan.log_sum_t)
            .map(|(target, sum)| target - sum)
            .collect(),
        log_sum_t: scan.log_sum_t,
        slope_t_d: Tensor::from_vec(
            scan.slope_t_d,
            (if wanted.slopes { rows } else { 0 }, hidden_t_d.dim(1)?),
            device,
        )?,
        targets: targets.into(),
        temperature: temperature as f32,
        packed,
    };
    Ok((hidden_t_d.apply_op2(&weight_v_d, head)?, scan.entropy_t))
}

/// [`log_probability`] in plain candle operations; the whole logits exist.
pub fn log_probability_composed(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    check(hidden_t_d, weight_v_d, temperature)?;
    check_targets(hidden_t_d, weight_v_d, targets)?;
    let targets_t_1 = Tensor::new(targets, hidden_t_d.device())?.reshape((targets.len(), 1))?;
    log_softmax(hidden_t_d, weight_v_d, temperature)?
        .gather(&targets_t_1, 1)?
        .squeeze(1)
}

/// The entropy, in nats, of each row's distribution over the vocabulary; no gradient.
///
/// # Errors
/// As [`log_probability`].
pub fn entropy(hidden_t_d: &Tensor, weight_v_d: &Tensor, temperature: f64) -> Result<Vec<f32>> {
    check(hidden_t_d, weight_v_d, temperature)?;
    if !fusible(&[hidden_t_d, weight_v_d]) {
        return entropy_composed(hidden_t_d, weight_v_d, temperature);
    }
    let wanted = Wanted {
        targets: None,
        slopes: false,
    };
    Ok(scan(hidden_t_d, weight_v_d, None, temperature, wanted)?.entropy_t)
}

/// [`entropy`] in plain candle operations; the whole logits exist.
pub fn entropy_composed(hidden_t_d: &Tensor, weight_v_d: &Tensor, temperature: f64) -> Result<Vec<f32>> {
    check(hidden_t_d, weight_v_d, temperature)?;
    let log_probability_t_v = log_softmax(&hidden_t_d.detach(), &weight_v_d.detach(), temperature)?;
    let entropy_t = (log_probability_t_v.exp()? * &log_probability_t_v)?
        .sum(D::Minus1)?
        .neg()?;
    entropy_t.to_dtype(DType::F32)?.to_vec1()
}

fn log_softmax(hidden_t_d: &Tensor, weight_v_d: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits_t_v = hidden_t_d
        .matmul(&weight_v_d.t()?)?
        .to_dtype(crate::accumulator(hidden_t_d.dtype()))?;
    let logits_t_v = (logits_t_v / temperature)?;
    let centred_t_v = logits_t_v.broadcast_sub(&logits_t_v.max_keepdim(D::Minus1)?.detach())?;
    centred_t_v.broadcast_sub(&centred_t_v.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

fn check(hidden_t_d: &Tensor, weight_v_d: &Tensor, temperature: f64) -> Result<()> {
    let (_, width) = hidden_t_d.dims2()?;
    let (vocabulary, weight_width) = weight_v_d.dims2()?;
    if width != weight_width || width == 0 || vocabulary == 0 {
        bail!(
            "log_probability: expected weight [v, {width}], found {:?}",
            weight_v_d.dims()
        )
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        bail!("log_probability: expected a temperature above zero, found {temperature}")
    }
    Ok(())
}

fn check_targets(hidden_t_d: &Tensor, weight_v_d: &Tensor, targets: &[u32]) -> Result<()> {
    let (rows, vocabulary) = (hidden_t_d.dim(0)?, weight_v_d.dim(0)?);
    if targets.len() != rows {
        bail!(
            "log_probability: expected a target for each of {rows} rows, found {}",
            targets.len()
        )
    }
    if let Some(row) = targets.iter().position(|&target| target as usize >= vocabulary) {
        bail!(
            "log_probability: the target {} of row {row} is outside a vocabulary of {vocabulary}",
            targets[row]
        )
    }
    Ok(())
}

/// The finished forward pass as a node of candle's graph.
struct Head {
    log_probability_t: Vec<f32>,
    log_sum_t: Vec<f32>,
    /// Without rows where the hidden rows need no gradient.
    slope_t_d: Tensor,
    targets: Arc<[u32]>,
    temperature: f32,
    /// The weight as bf16, where products are those of bf16.
    packed: Option<Packed>,
}

impl CustomOp2 for Head {
    fn name(&self) -> &'static str {
        "log_probability"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((
            CpuStorage::F32(self.log_probability_t.clone()),
            self.targets.len().into(),
        ))
    }

    fn bwd(
        &self,
        hidden_t_d: &Tensor,
        weight_v_d: &Tensor,
        _: &Tensor,
        gradient_t: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let hidden_gradient = hidden_t_d
            .track_op()
            .then(|| self.slope_t_d.broadcast_mul(&gradient_t.unsqueeze(1)?))
            .transpose()?;
        let weight_gradient = || scan::weight_gradient(self, hidden_t_d, weight_v_d, gradient_t);
        Ok((
            hidden_gradient,
            weight_v_d.track_op().then(weight_gradient).transpose()?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::fixtures::{assert_close, assert_differences, assert_twins, noise};

    fn inputs(rows: usize, vocabulary: usize, width: usize) -> Result<(Var, Var, Vec<u32>)> {
        let (hidden, weight) = (noise(1, &[rows, width]), noise(2, &[vocabulary, width]));
        // Logits of some size, so that the running maximum moves.
        hidden.set(&(hidden.as_tensor() * 5.0)?.detach())?;
        let targets = (0..rows).map(|row| (row * 31 % vocabulary) as u32).collect();
        Ok((hidden, weight, targets))
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        // The last two cross a tile, a block of rows, and a pass.
        for (rows, vocabulary, width) in [(1, 1, 1), (5, 7, 3), (130, 40, 8), (3, 9000, 16), (515, 33, 5)] {
            let (hidden, weight, targets) = inputs(rows, vocabulary, width)?;
            for temperature in [1.0, 0.6] {
                assert_twins(
                    [&hidden, &weight],
                    || log_probability(&hidden, &weight, &targets, temperature),
                    || log_probability_composed(&hidden, &weight, &targets, temperature),
                    5e-6,
                );
                let found = entropy(&hidden, &weight, temperature)?;
                let expected = entropy_composed(&hidden, &weight, temperature)?;
                let device = hidden.device();
                assert_close(
                    &Tensor::new(found, device)?,
                    &Tensor::new(expected, device)?,
                    5e-6,
                );
            }
        }
        Ok(())
    }

    #[test]
    fn as_bf16_it_is_near_its_twin() -> Result<()> {
        for (rows, vocabulary, width) in [(1, 1, 1), (5, 7, 3), (130, 40, 8), (3, 9000, 17), (515, 33, 300)] {
            let (hidden, weight, targets) = inputs(rows, vocabulary, width)?;
            let found = log_probability_bf16(&hidden, &weight, None, &targets, 0.6)?;
            let expected = log_probability_bf16_composed(&hidden, &weight, &targets, 0.6)?;
            assert_close(&found, &expected, 5e-6);
            let packed = Packed::new(&weight, DType::BF16)?;
            let with_packed = log_probability_bf16(&hidden, &weight, Some(&packed), &targets, 0.6)?;
            assert_eq!(with_packed.to_vec1::<f32>()?, found.to_vec1::<f32>()?);
            // Probabilities are rounded before they are multiplied, here; and gradients after it, there.
            assert_twins(
                [&hidden, &weight],
                || log_probability_bf16(&hidden, &weight, None, &targets, 0.6),
                || log_probability_bf16_composed(&hidden, &weight, &targets, 0.6),
                2f64.powi(-7),
            );
        }
        Ok(())
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient_and_frozen_rows_still_give_values() -> Result<()> {
        let (hidden, weight, targets) = inputs(4, 11, 6)?;
        let frozen = weight.as_detached_tensor();
        let gradients = log_probability(&hidden, &frozen, &targets, 1.0)?
            .sum_all()?
            .backward()?;
        let expected = log_probability_composed(&hidden, &weight, &targets, 1.0)?
            .sum_all()?
            .backward()?;
        assert_close(
            gradients.get(&hidden).unwrap(),
            expected.get(&hidden).unwrap(),
            2e-6,
        );
        assert!(gradients.get(&frozen).is_none());

        let rows = hidden.as_detached_tensor();
        let gradients = log_probability(&rows, &weight, &targets, 1.0)?
            .sum_all()?
            .backward()?;
        assert_close(
            gradients.get(&weight).unwrap(),
            expected.get(&weight).unwrap(),
            2e-6,
        );
        assert!(!log_probability(&rows, &frozen, &targets, 1.0)?.track_op());
        Ok(())
    }

    #[test]
    fn log_probabilities_of_all_tokens_sum_to_one_and_both_at_once_agree() -> Result<()> {
        let (hidden, weight, _) = inputs(1, 23, 4)?;
        let rows = hidden.broadcast_as((23, 4))?;
        let targets: Vec<u32> = (0..23).collect();
        let (log_probability, entropies) = log_probability_and_entropy(&rows, &weight, &targets, 0.7)?;
        let log_probability: Vec<f32> = log_probability.to_vec1()?;
        let total: f32 = log_probability.iter().map(|x| x.exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
        let expected: f32 = log_probability.iter().map(|x| -x * x.exp()).sum();
        assert!(
            (entropies[0] - expected).abs() < 1e-5,
            "{} is not {expected}",
            entropies[0]
        );
        Ok(())
    }

    #[test]
    fn composed_gradients_equal_differences() {
        assert_differences([&noise(1, &[3, 4]), &noise(2, &[5, 4])], |x| {
            log_probability_composed(&x[0], &x[1], &[4, 0, 2], 0.8)
        });
    }

    #[test]
    fn not_a_number_in_a_row_stays_in_that_row() -> Result<()> {
        let (hidden, weight, targets) = inputs(2, 40, 4)?;
        let broken = Tensor::cat(
            &[&hidden.narrow(0, 0, 1)?, &(hidden.narrow(0, 1, 1)? * f64::NAN)?],
            0,
        )?;
        let values: Vec<f32> = log_probability(&broken, &weight, &targets, 1.0)?.to_vec1()?;
        assert!(values[0].is_finite() && values[1].is_nan(), "{values:?}");
        Ok(())
    }

    #[test]
    fn what_a_user_can_get_wrong_is_refused() -> Result<()> {
        let (hidden, weight, _) = inputs(2, 5, 4)?;
        let message = |targets: &[u32], temperature| {
            log_probability(&hidden, &weight, targets, temperature)
                .unwrap_err()
                .to_string()
        };
        assert!(message(&[1, 5], 1.0).contains("target 5 of row 1 is outside a vocabulary of 5"));
        assert!(message(&[1], 1.0).contains("a target for each of 2 rows, found 1"));
        assert!(message(&[1, 2], 0.0).contains("above zero"));
        Ok(())
    }
}
