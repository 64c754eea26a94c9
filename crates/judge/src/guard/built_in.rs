//! The built-in guard: trained heads on a frozen base model's hidden states, in this process.

use std::sync::{Arc, PoisonError};

use candle_core::Tensor;

use crate::Result;
use crate::features::{Feature, SharedFeatures};
use crate::heads::{
    Decision, GuardCard, Heads, Inputs, RISK_CLASSES, Tensors, query_logits, reply_logits, standardise,
};
use crate::judge::{Conversation, Guard};
use crate::verdict::{Category, Moderation, Safety, Scored};
use crate::{Error, error};

/// By how much the log-odds of harm must be higher in a further piece of a long text than in the one that the heads have
/// learned, a reply's beginning or a prompt's end. They are quicker to alarm at what stands in the middle: with less, F1
/// on the validation prompts falls below that of reading the one piece alone (docs/results/heads.md).
const LATER: f32 = 1.5;

/// A guard that needs no second model: it reads what the base model makes of a conversation, a long text in pieces.
///
/// `score` is the calibrated probability that the text is not safe; the level follows from it by the card's threshold.
pub struct BuiltInGuard {
    features: SharedFeatures,
    heads: Arc<Heads>,
    card: GuardCard,
}

/// A piece of a reply or of a prompt.
#[derive(Clone, Copy)]
struct Piece<'a> {
    feature: &'a Feature,
    /// Whether it is another than the one that the heads have learned.
    later: bool,
}

fn in_order(pieces: &[Arc<Feature>]) -> impl Iterator<Item = Piece<'_>> {
    pieces.iter().enumerate().map(|(index, feature)| Piece {
        feature,
        later: index > 0,
    })
}

impl BuiltInGuard {
    /// The guard of `heads` on `features`; see [`Heads::check`] for whether the two fit.
    ///
    /// # Errors
    /// When the heads hold no guard.
    pub fn new(features: SharedFeatures, heads: Arc<Heads>) -> Result<Self> {
        let card = heads.card.guard.clone().ok_or_else(|| Error::Heads {
            what: "they hold no guard".into(),
            hint: "train one with `saferl guard train`".into(),
        })?;
        Ok(Self {
            features,
            heads,
            card,
        })
    }

    /// One moderation for each piece, of a reply or of a prompt.
    fn judge(&self, pieces: &[Piece<'_>]) -> Vec<Scored<Moderation>> {
        let mut scored = vec![nothing(); pieces.len()];
        for replies in [true, false] {
            let (indices, rows): (Vec<_>, Vec<_>) = pieces
                .iter()
                .copied()
                .enumerate()
                .filter(|(_, piece)| piece.feature.reply.is_some() == replies)
                .unzip();
            if rows.is_empty() {
                continue;
            }
            let judged = if replies {
                self.judge_replies(&rows)
            } else {
                self.judge_prompts(&rows)
            };
            let judged = match judged {
                Ok(judged) => judged.into_iter().map(checked).collect(),
                Err(error) => vec![Scored::Unscorable(format!("built-in guard: {error}")); rows.len()],
            };
            for (index, moderation) in indices.into_iter().zip(judged) {
                scored[index] = moderation;
            }
        }
        scored
    }

    fn judge_replies(&self, pieces: &[Piece<'_>]) -> error::Result<Vec<Moderation>> {
        let features: Vec<&Feature> = pieces.iter().map(|piece| piece.feature).collect();
        let reply_n_r = standardise(
            &self.heads.tensors,
            "guard.reply",
            &Inputs::replies(&features)?.reply_n_r,
        )?;
        let logits = reply_logits(&self.heads.tensors, &reply_n_r)?;
        let refusal_n_2 = probabilities(&logits.refusal_n_2, self.card.refusal)?;
        let log_odds_n = prompt_log_odds(&self.heads.tensors, &features, self.card.query)?;
        let risk_n_3 = shift_odds(&logits.risk_n_3, &log_odds_n, self.card.risk.prompt_weight)?;
        let risk_n_3 = spare_later(&risk_n_3, pieces, self.card.risk)?;
        let moderations = moderations(&risk_n_3, &logits.category_n_8, self.card.risk)?;
        let refusals = refusal_n_2
            .iter()
            .map(|refusal_2| refusal_2[1] >= self.card.refusal.threshold);
        Ok(moderations
            .into_iter()
            .zip(refusals)
            .map(|(moderation, refusal)| Moderation {
                refusal: Some(refusal),
                ..moderation
            })
            .collect())
    }

    fn judge_prompts(&self, pieces: &[Piece<'_>]) -> error::Result<Vec<Moderation>> {
        let features: Vec<&Feature> = pieces.iter().map(|piece| piece.feature).collect();
        let prompt_n_f = standardise(&self.heads.tensors, "guard.prompt", &Inputs::prompts(&features)?)?;
        let (risk_n_3, category_n_9) = query_logits(&self.heads.tensors, &prompt_n_f)?;
        let risk_n_3 = spare_later(&risk_n_3, pieces, self.card.query)?;
        moderations(&risk_n_3, &category_n_9, self.card.query)
    }
}

impl Guard for BuiltInGuard {
    fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
        let pieces = self
            .features
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .of_pieces(conversations);
        let all: Vec<Piece<'_>> = pieces
            .iter()
            .flatten()
            .flat_map(|pieces| in_order(pieces))
            .collect();
        let mut judged = self.judge(&all).into_iter();
        pieces
            .iter()
            .map(|pieces| match pieces {
                Ok(pieces) => judged
                    .by_ref()
                    .take(pieces.len())
                    .reduce(worse)
                    .unwrap_or_else(nothing),
                Err(cause) => Scored::Unscorable(cause.clone()),
            })
            .collect()
    }
}

/// The verdict on a text of which a further piece was read: the likelier harm counts, and whether the first piece refuses.
fn worse(so_far: Scored<Moderation>, piece: Scored<Moderation>) -> Scored<Moderation> {
    match (so_far, piece) {
        (Scored::Scored(so_far), Scored::Scored(piece)) if piece.score > so_far.score => {
            Scored::Scored(Moderation {
                refusal: so_far.refusal,
                ..piece
            })
        }
        (Scored::Scored(_), Scored::Unscorable(cause)) => Scored::Unscorable(cause),
        (so_far, _) => so_far,
    }
}

fn nothing() -> Scored<Moderation> {
    Scored::Unscorable("built-in guard: nothing was read".into())
}

/// A moderation whose score is a number.
fn checked(moderation: Moderation) -> Scored<Moderation> {
    if moderation.score.is_finite() {
        Scored::Scored(moderation)
    } else {
        Scored::Unscorable(format!("built-in guard: the score is {}", moderation.score))
    }
}

fn moderations(
    risk_n_3: &Tensor,
    category_n_c: &Tensor,
    decision: Decision,
) -> error::Result<Vec<Moderation>> {
    let risk_n_3 = probabilities(risk_n_3, decision)?;
    let category_n = category_n_c.argmax(1)?.to_vec1::<u32>()?;
    let moderation = |(risk_3, category): (&Vec<f32>, u32)| {
        let (safety, score) = level(risk_3, decision.threshold);
        let categories = if safety == Safety::Safe {
            vec![]
        } else {
            vec![Category::ALL[category as usize]]
        };
        Moderation {
            safety,
            categories,
            refusal: None,
            score,
        }
    };
    Ok(risk_n_3.iter().zip(category_n).map(moderation).collect())
}

/// The level and the probability of harm: from the threshold on it is the likelier of the two harmful classes.
fn level(risk_3: &[f32], threshold: f32) -> (Safety, f32) {
    let score = risk_3[1] + risk_3[2];
    let harmful = if risk_3[1] >= risk_3[2] {
        RISK_CLASSES[1]
    } else {
        RISK_CLASSES[2]
    };
    (
        if score >= threshold {
            harmful
        } else {
            RISK_CLASSES[0]
        },
        score,
    )
}

/// The log-odds that each conversation's prompt is harmful, by the prompts' head.
pub(crate) fn prompt_log_odds(
    tensors: &Tensors,
    features: &[&Feature],
    query: Decision,
) -> error::Result<Vec<f32>> {
    let prompt_n_f = standardise(tensors, "guard.prompt", &Inputs::prompts(features)?)?;
    let risk_n_3 = probabilities(&query_logits(tensors, &prompt_n_f)?.0, query)?;
    let log_odds = |risk_3: Vec<f32>| {
        let harm = (risk_3[1] + risk_3[2]).clamp(1e-4, 1.0 - 1e-4);
        (harm / (1.0 - harm)).ln()
    };
    Ok(risk_n_3.into_iter().map(log_odds).collect())
}

/// Risk logits of replies with a number of each, times a weight, on the two harmful classes.
pub(crate) fn shift_odds(risk_n_3: &Tensor, by_n: &[f32], weight: f32) -> error::Result<Tensor> {
    let shifts: Vec<f32> = by_n
        .iter()
        .flat_map(|by| [0.0, weight * by, weight * by])
        .collect();
    Ok((risk_n_3 + Tensor::from_vec(shifts, risk_n_3.shape(), risk_n_3.device())?)?)
}

/// Risk logits of which those of later pieces are lower by [`LATER`].
fn spare_later(risk_n_3: &Tensor, pieces: &[Piece<'_>], decision: Decision) -> error::Result<Tensor> {
    let later_n: Vec<f32> = pieces
        .iter()
        .map(|piece| f32::from(u8::from(piece.later)))
        .collect();
    shift_odds(risk_n_3, &later_n, -LATER * decision.temperature)
}

/// Softmax of the logits, biased, over the decision's temperature.
pub(crate) fn probabilities(logits_n_c: &Tensor, decision: Decision) -> error::Result<Vec<Vec<f32>>> {
    let logits_n_c = logits_n_c.to_vec2::<f32>()?;
    let softmax = |mut logits_c: Vec<f32>| {
        logits_c
            .iter_mut()
            .skip(1)
            .for_each(|logit| *logit += decision.bias);
        let highest = logits_c.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights_c: Vec<_> = logits_c
            .iter()
            .map(|logit| ((logit - highest) / decision.temperature).exp())
            .collect();
        let sum: f32 = weights_c.iter().sum();
        weights_c.into_iter().map(|weight| weight / sum).collect()
    };
    Ok(logits_n_c.into_iter().map(softmax).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_follows_the_threshold_and_the_likelier_class() {
        assert_eq!(level(&[0.6, 0.3, 0.1], 0.5).0, Safety::Safe);
        assert_eq!(level(&[0.6, 0.3, 0.1], 0.4).0, Safety::Unsafe);
        assert_eq!(level(&[0.2, 0.3, 0.5], 0.5).0, Safety::Controversial);
        let nothing = level(&[f32::NAN, f32::NAN, f32::NAN], 0.5);
        assert!(nothing.1.is_nan());
    }

    #[test]
    fn the_worst_piece_counts_and_the_beginning_says_whether_it_refuses() {
        let piece = |score, refusal| {
            Scored::Scored(Moderation {
                safety: if score > 0.5 { Safety::Unsafe } else { Safety::Safe },
                categories: vec![],
                refusal: Some(refusal),
                score,
            })
        };
        assert_eq!(worse(piece(0.2, true), piece(0.9, false)), piece(0.9, true));
        assert_eq!(worse(piece(0.9, false), piece(0.2, true)), piece(0.9, false));
        // What could not be read may have been the worst.
        let unread = || Scored::Unscorable("x".into());
        assert_eq!(worse(piece(0.2, true), unread()), unread());
        assert_eq!(worse(unread(), piece(0.2, true)), unread());
    }

    #[test]
    fn temperature_flattens() {
        let logits = Tensor::new(&[[0.0_f32, 2.0]], &candle_core::Device::Cpu).unwrap();
        let sharp = probabilities(
            &logits,
            Decision {
                temperature: 1.0,
                ..Decision::default()
            },
        )
        .unwrap();
        let flat = probabilities(
            &logits,
            Decision {
                temperature: 4.0,
                ..Decision::default()
            },
        )
        .unwrap();
        assert!((sharp[0][1] - 0.880_797).abs() < 1e-5 && (flat[0][1] - 0.622_459).abs() < 1e-5);
    }

    #[test]
    fn a_prompt_moves_the_odds_of_both_harmful_classes_alike() {
        let risk = Tensor::new(&[[1.0_f32, 0.5, 0.2]], &candle_core::Device::Cpu).unwrap();
        let before = probabilities(&risk, Decision::default()).unwrap().remove(0);
        let moved = shift_odds(&risk, &[2.0], 0.5).unwrap();
        let after = probabilities(&moved, Decision::default()).unwrap().remove(0);
        let log_odds = |risk_3: &[f32]| ((risk_3[1] + risk_3[2]) / risk_3[0]).ln();
        assert!((log_odds(&after) - log_odds(&before) - 1.0).abs() < 1e-5);
        assert!((after[1] / after[2] - before[1] / before[2]).abs() < 1e-5);
    }
}
