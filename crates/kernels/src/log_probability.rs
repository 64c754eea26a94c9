//! The language-model head fused with the log-softmax: log-probabilities of chosen tokens.

use candle_core::{D, Result, Tensor, bail};

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
    log_probability_composed(hidden_t_d, weight_v_d, targets, temperature)
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
    entropy_composed(hidden_t_d, weight_v_d, temperature)
}

/// [`entropy`] in plain candle operations; the whole logits exist.
pub fn entropy_composed(hidden_t_d: &Tensor, weight_v_d: &Tensor, temperature: f64) -> Result<Vec<f32>> {
    check(hidden_t_d, weight_v_d, temperature)?;
    let log_probability_t_v = log_softmax(&hidden_t_d.detach(), &weight_v_d.detach(), temperature)?;
    let entropy_t = (log_probability_t_v.exp()? * &log_probability_t_v)?
        .sum(D::Minus1)?
        .neg()?;
    entropy_t.to_dtype(candle_core::DType::F32)?.to_vec1()
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
    if width != weight_width || vocabulary == 0 {
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
