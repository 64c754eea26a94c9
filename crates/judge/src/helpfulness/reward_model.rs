//! A reward model run in this process: Qwen2ForRewardModel (WorldPM-72B-HelpSteer2, Qwen2.5-Math-RM and the like).
//!
//! The conversation is rendered by the checkpoint's own template, without an opening of a next turn. A conversation
//! without a system message gets an explicit empty one, as the model card of WorldPM has it: left out, Qwen2's template
//! would put in a default one. The score is read at one token, by [`ReadAt`].

use std::sync::Arc;

use candle_core::{DType, Device};
use kernels::Segment;
use model::chat::{Message, Role};
use model::heads::RewardModel;
use model::source::Source;
use model::template::RenderOptions;
use model::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::judge::{Conversation, Helpfulness};
use crate::verdict::Scored;

/// The token at which a reward model's score is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadAt {
    /// The last token of the rendered text, which in ChatML is the line break behind `<|im_end|>`: what the reference
    /// code of these models reads, as it takes the last token that is not padding.
    #[default]
    Last,
    /// The last token that ends a turn.
    EndOfTurn,
}

/// A helpfulness score from a reward model's weights.
pub struct LocalReward {
    model: RewardModel,
    tokenizer: Arc<Tokenizer>,
    read_at: ReadAt,
}

impl LocalReward {
    /// Loads the model of `source`.
    ///
    /// # Errors
    /// Files that are not a reward model's, named.
    pub fn load(source: &Source, dtype: DType, device: &Device, read_at: ReadAt) -> Result<Self> {
        Ok(Self {
            model: RewardModel::load(source, dtype, device)?,
            tokenizer: Arc::new(Tokenizer::load(source)?),
            read_at,
        })
    }

    fn score_one(&self, conversation: &Conversation) -> std::result::Result<f32, String> {
        let messages = graded(conversation)?;
        let rendered = self.tokenizer.render(&messages, &RenderOptions::default());
        let mut ids = rendered.map_err(|error| error.to_string())?.ids;
        if self.read_at == ReadAt::EndOfTurn {
            let ends = self.tokenizer.end_ids();
            let end = ids.iter().rposition(|id| ends.contains(id));
            ids.truncate(end.ok_or("the rendered text has no token that ends a turn")? + 1);
        }
        let limit = self.model.decoder.config.max_positions;
        if ids.len() > limit {
            return Err(format!(
                "expected at most the {limit} tokens of the model's context, found {}",
                ids.len()
            ));
        }
        let segment = Segment {
            start: 0,
            len: ids.len(),
            prefix: None,
        };
        let scores = self
            .model
            .score(&ids, &[segment])
            .map_err(|error| error.to_string())?;
        match scores.first() {
            Some(score) if score.is_finite() => Ok(*score),
            other => Err(format!("the score is {other:?}")),
        }
    }
}

/// The messages that a reward model grades, the reply as the last and a system message as the first.
///
/// # Errors
/// A conversation without a reply.
pub(crate) fn graded(conversation: &Conversation) -> std::result::Result<Vec<Message>, String> {
    let reply = conversation.reply.as_ref();
    let reply = reply.ok_or("a conversation without a reply has no helpfulness")?;
    let mut messages = conversation.messages.clone();
    if !messages.iter().any(|message| message.role == Role::System) {
        messages.insert(0, Message::system(""));
    }
    messages.push(Message::assistant(reply));
    Ok(messages)
}

impl Helpfulness for LocalReward {
    fn score(&mut self, conversations: &[Conversation]) -> Vec<Scored<f32>> {
        let score = |conversation| {
            Scored::from(
                self.score_one(conversation)
                    .map_err(|what| format!("reward model: {what}")),
            )
        };
        conversations.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use model::config::Family;
    use model::seeded;
    use model::source::resolve;

    use super::*;

    /// A Qwen2 of a few thousand seeded weights with the head of a reward model, in a folder.
    fn write_reward_model(folder: &std::path::Path) {
        seeded::write_tiny(folder, Family::Qwen2).unwrap();
        let config = seeded::tiny_config(Family::Qwen2, true).unwrap();
        let source = resolve(folder.to_str().unwrap(), &mut |_| ()).unwrap();
        let mut tensors: std::collections::HashMap<_, _> =
            candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
        drop(source);
        let hidden = config.hidden;
        for (name, shape) in [
            ("score.0.weight", vec![hidden, hidden]),
            ("score.0.bias", vec![hidden]),
            ("score.2.weight", vec![1, hidden]),
            ("score.2.bias", vec![1]),
        ] {
            tensors.insert(name.into(), seeded::tensor(name, &shape).unwrap());
        }
        tensors.remove("lm_head.weight");
        candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    }

    #[test]
    fn the_score_is_that_of_the_token_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        write_reward_model(folder.path());
        let source = resolve(folder.path().to_str().unwrap(), &mut |_| ()).unwrap();
        let load = |read_at| LocalReward::load(&source, DType::F32, &Device::Cpu, read_at).unwrap();
        let conversation = Conversation {
            messages: vec![Message::user("Hello")],
            reply: Some("Hi".into()),
        };
        let mut last = load(ReadAt::Last);
        let scores = last.score(&[
            conversation.clone(),
            Conversation {
                reply: None,
                ..conversation.clone()
            },
        ]);
        assert!(scores[1].as_result().unwrap_err().contains("without a reply"));
        // By hand: the rendered ids through the decoder, the head at the token's row.
        let messages = graded(&conversation).unwrap();
        assert_eq!(
            (messages[0].role, messages[0].content.as_str()),
            (Role::System, "")
        );
        let ids = last
            .tokenizer
            .render(&messages, &RenderOptions::default())
            .unwrap()
            .ids;
        let end = ids
            .iter()
            .rposition(|id| last.tokenizer.end_ids().contains(id))
            .unwrap();
        let by_hand = |count: usize| {
            let segment = Segment {
                start: 0,
                len: count,
                prefix: None,
            };
            let hidden_t_d = last.model.decoder.hidden(&ids[..count], &[segment]).unwrap();
            let row_1_d = hidden_t_d.narrow(0, count - 1, 1).unwrap();
            last.model.reward(&row_1_d).unwrap().to_vec1::<f32>().unwrap()[0]
        };
        assert_eq!(scores[0], Scored::Scored(by_hand(ids.len())));
        let at_end = load(ReadAt::EndOfTurn)
            .score(std::slice::from_ref(&conversation))
            .remove(0);
        assert_eq!(at_end, Scored::Scored(by_hand(end + 1)));
    }
}
