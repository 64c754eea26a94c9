//! The built-in helpfulness score: a trained scalar head on a frozen base model's hidden states, in this process.

use std::sync::{Arc, PoisonError};

use crate::error::{Error, Result};
use crate::features::{Feature, SharedFeatures};
use crate::heads::{Heads, Inputs, helpfulness, standardise};
use crate::judge::{Conversation, Helpfulness};
use crate::verdict::Scored;

/// A helpfulness score that needs no second model; about zero mean and a spread of 3 over its training replies, so that a
/// useless answer comes near to what the hybrid reward gives a refusal.
pub struct BuiltInHelpfulness {
    features: SharedFeatures,
    heads: Arc<Heads>,
}

impl BuiltInHelpfulness {
    /// The score of `heads` on `features`; see [`Heads::check`] for whether the two fit.
    ///
    /// # Errors
    /// When the heads hold no helpfulness.
    pub fn new(features: SharedFeatures, heads: Arc<Heads>) -> Result<Self> {
        if heads.card.helpfulness.is_none() {
            let hint = "train one with `saferl reward train`".into();
            return Err(Error::Heads {
                what: "they hold no helpfulness score".into(),
                hint,
            });
        }
        Ok(Self { features, heads })
    }
}

impl Helpfulness for BuiltInHelpfulness {
    fn score(&mut self, conversations: &[Conversation]) -> Vec<Scored<f32>> {
        let features = self
            .features
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .of(conversations, &mut |_, _| ());
        let replies: Vec<&Feature> = features
            .iter()
            .filter_map(|feature| Some(&**feature.as_ref().ok()?))
            .filter(|feature| feature.reply.is_some())
            .collect();
        let scores =
            score_replies(&self.heads, &replies).map_err(|error| format!("built-in helpfulness: {error}"));
        let mut scores = scores.map(Vec::into_iter);
        features
            .iter()
            .map(|feature| match (feature, &mut scores) {
                (Err(cause), _) => Scored::Unscorable(cause.clone()),
                (Ok(feature), _) if feature.reply.is_none() => {
                    Scored::Unscorable("a conversation without a reply has no helpfulness".into())
                }
                (Ok(_), Err(cause)) => Scored::Unscorable(cause.clone()),
                (Ok(_), Ok(scores)) => match scores.next() {
                    Some(score) if score.is_finite() => Scored::Scored(score),
                    other => Scored::Unscorable(format!("built-in helpfulness: the score is {other:?}")),
                },
            })
            .collect()
    }
}

/// The scores of features that all have a reply.
pub(crate) fn score_replies(heads: &Heads, replies: &[&Feature]) -> Result<Vec<f32>> {
    if replies.is_empty() {
        return Ok(Vec::new());
    }
    let raw = Inputs::replies(replies)?;
    let inputs = Inputs {
        prompt_n_f: standardise(&heads.tensors, "helpfulness.prompt", &raw.prompt_n_f)?,
        reply_n_r: standardise(&heads.tensors, "helpfulness.reply", &raw.reply_n_r)?,
        surface_n_s: standardise(&heads.tensors, "helpfulness.surface", &raw.surface_n_s)?,
    };
    Ok(helpfulness(&heads.tensors, &inputs)?.to_vec1()?)
}
