//! Qwen3Guard-Stream: a Qwen3 with heads that classify every token, read while a reply is being written.
//!
//! The prompt's risk is read at the token that ends the user's turn, by the query heads; each token of the reply has a
//! risk of its own, by the reply heads. Keys and values of what was read stay, so that a token costs one row of the
//! model whatever stands before it. The class names are those of `config.json` (`response_risk_level_map` and its
//! like); without them the risk classes are Safe, Unsafe, Controversial.
//!
//! Several replies may be read in turn, piece by piece: they share the room for keys and values, and where it is used up
//! the reply that was asked about longest ago is forgotten, and read again should it go on.
//!
//! As a [`Guard`] for whole replies it goes by the last token. It says nothing about refusals, so that the hybrid reward
//! cannot be made from it alone.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::Context;
use model::chat::{Message, Role};
use model::config::Config;
use model::decoder::PoolLayer;
use model::heads::{ClassifierHead, TokenClassifier};
use model::source::Source;
use model::template::RenderOptions;
use model::tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::guard::qwen3guard::turns;
use crate::judge::{Conversation, Guard};
use crate::verdict::{Category, Moderation, Safety, Scored};

/// Rows that go through the model at once.
const ROWS: usize = 256;

/// What the guard says at one token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRisk {
    /// The likeliest level.
    pub safety: Safety,
    /// The likeliest kind of harm, whatever the level.
    pub category: Category,
    /// Probability that the level is not safe.
    pub score: f32,
}

/// The classes of one pair of heads, in the order of their logits.
#[derive(Debug, Clone, PartialEq)]
struct Labels {
    risk: Vec<Safety>,
    categories: Vec<Category>,
}

/// A conversation that is being read, its keys and values at `slots` of the pool, in order.
#[derive(Default)]
struct Sequence {
    messages: Vec<Message>,
    pieces: Vec<String>,
    /// One for each piece.
    moderations: Vec<Scored<Moderation>>,
    slots: Vec<u32>,
}

/// A loaded guard and the sequences that it is reading.
pub struct StreamGuard {
    classifier: TokenClassifier,
    tokenizer: Arc<Tokenizer>,
    query: Labels,
    reply: Labels,
    layers: Vec<PoolLayer>,
    /// Most tokens of all sequences together.
    room: usize,
    /// Slots of the pool that no sequence has.
    free: Vec<u32>,
    current: Sequence,
    /// Replies that may go on, the one that was asked about longest ago first.
    kept: VecDeque<Sequence>,
}

impl StreamGuard {
    /// Loads the guard of `source`, with room for conversations of `room` tokens.
    ///
    /// # Errors
    /// Files that are not such a guard's; class names that are not Qwen3Guard's.
    pub fn load(source: &Source, dtype: DType, device: &Device, room: usize) -> Result<Self> {
        let classifier = TokenClassifier::load(source, dtype, device)?;
        let tokenizer = Arc::new(Tokenizer::load(source)?);
        let config = &classifier.decoder.config;
        let room = room.min(config.max_positions);
        let shape = (room, config.key_value_heads, config.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, device);
        let layer = |_| {
            Ok(PoolLayer {
                k: zeros()?,
                v: zeros()?,
            })
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self {
            query: labels(config, "query", &classifier.query)?,
            reply: labels(config, "response", &classifier.reply)?,
            classifier,
            tokenizer,
            layers,
            room,
            free: (0..room as u32).collect(),
            current: Sequence::default(),
            kept: VecDeque::new(),
        })
    }

    /// The tokenizer that [`StreamGuard::read`] takes ids of.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Starts a conversation: reads everything before the reply and says how risky the last user's turn is.
    ///
    /// # Errors
    /// A template that fails, a conversation that does not end with the user, or one that is longer than the room.
    pub fn start(&mut self, messages: &[Message]) -> Result<TokenRisk> {
        self.set_aside();
        let Some(Message { role: Role::User, .. }) = messages.last() else {
            return Err(model::Error::Request(
                "expected a conversation that ends with the user's message".into(),
            )
            .into());
        };
        let ids = self.tokenizer.render(messages, &options(false))?.ids;
        let ends = self.tokenizer.end_ids();
        let end = ids.iter().rposition(|id| ends.contains(id));
        let end =
            end.ok_or_else(|| model::Error::Template("expected a token that ends the user's turn".into()))?;
        // What opens the assistant's turn is read with the reply's heads, as the reference reads it.
        let opened = self.tokenizer.render(messages, &options(true))?.ids;
        let risk = self.advance(&ids[..=end], true)?.pop();
        let rest = opened
            .get(end + 1..)
            .filter(|_| opened[..=end] == ids[..=end])
            .unwrap_or_default();
        self.advance(rest, false)?;
        risk.ok_or_else(|| model::Error::Request("the conversation has no token".into()).into())
    }

    /// Reads the reply's next tokens and says how risky the reply is at each.
    ///
    /// # Errors
    /// A reply that outgrows the room.
    pub fn read(&mut self, ids: &[u32]) -> Result<Vec<TokenRisk>> {
        self.advance(ids, false)
    }

    /// Puts the current sequence where [`StreamGuard::resume`] finds it, if it is one that may go on.
    fn set_aside(&mut self) {
        let sequence = std::mem::take(&mut self.current);
        if sequence.pieces.is_empty() {
            self.free.extend(sequence.slots);
        } else {
            self.kept.push_back(sequence);
        }
    }

    /// Makes the reply that begins with most of these pieces the current one, or begins to read it.
    fn resume(&mut self, messages: &[Message], pieces: &[String]) -> Result<()> {
        self.set_aside();
        let begun = self.kept.iter().enumerate().filter(|(_, sequence)| {
            sequence.messages == messages && pieces.starts_with(sequence.pieces.as_slice())
        });
        let longest = begun.max_by_key(|(_, sequence)| sequence.pieces.len());
        let longest = longest.map(|(index, _)| index);
        if let Some(sequence) = longest.and_then(|index| self.kept.remove(index)) {
            self.current = sequence;
            return Ok(());
        }
        let conversation = Conversation {
            messages: messages.to_vec(),
            reply: None,
        };
        self.start(&turns(&conversation))?;
        self.current.messages = conversation.messages;
        Ok(())
    }

    fn read_pieces(&mut self, messages: &[Message], pieces: &[String]) -> Result<()> {
        self.resume(messages, pieces)?;
        let new = &pieces[self.current.pieces.len()..];
        let ids_p_t = new.iter().map(|piece| self.tokenizer.encode_plain(piece));
        let ids_p_t = ids_p_t.collect::<model::Result<Vec<_>>>()?;
        let mut risks = self.read(&ids_p_t.concat())?.into_iter();
        for (piece, ids) in new.iter().zip(ids_p_t) {
            let worst = risks.by_ref().take(ids.len()).max_by(|one, other| {
                let order = one.safety.cmp(&other.safety);
                order.then(one.score.total_cmp(&other.score))
            });
            let scored = match worst {
                Some(risk) => scored(moderation(&risk)),
                None => Scored::Unscorable(format!("guard: {piece:?} has no token")),
            };
            self.current.moderations.push(scored);
            self.current.pieces.push(piece.clone());
        }
        Ok(())
    }

    /// Takes slots for `count` more tokens, from the replies that were asked about longest ago if need be.
    fn take_slots(&mut self, count: usize) -> Result<()> {
        while self.free.len() < count
            && let Some(oldest) = self.kept.pop_front()
        {
            self.free.extend(oldest.slots);
        }
        let Some(rest) = self.free.len().checked_sub(count) else {
            let (room, needed) = (self.room, self.current.slots.len() + count);
            let what = format!("the guard has room for {room} tokens, the conversation has {needed} so far");
            return Err(model::Error::Request(what).into());
        };
        self.current.slots.extend(self.free.split_off(rest));
        Ok(())
    }

    fn advance(&mut self, ids: &[u32], query: bool) -> Result<Vec<TokenRisk>> {
        let mut length = self.current.slots.len();
        self.take_slots(ids.len())?;
        let slots: Arc<[u32]> = self.current.slots.as_slice().into();
        let mut risks = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(ROWS) {
            let end = length + chunk.len();
            let positions: Vec<u32> = (length..end).map(|at| at as u32).collect();
            let rows: Vec<Context> = (length..end)
                .map(|at| Context {
                    slots: Arc::clone(&slots),
                    len: at + 1,
                })
                .collect();
            let decoder = &self.classifier.decoder;
            let hidden_t_d =
                decoder.decode(chunk, &positions, &mut self.layers, &slots[length..end], &rows)?;
            length = end;
            let (head, labels) = if query {
                (&self.classifier.query, &self.query)
            } else {
                (&self.classifier.reply, &self.reply)
            };
            risks.extend(read_classes(head, labels, &hidden_t_d)?);
        }
        Ok(risks)
    }

    fn judge(&mut self, conversation: &Conversation) -> Result<Moderation> {
        let turns = turns(&Conversation {
            messages: conversation.messages.clone(),
            reply: None,
        });
        let mut risk = self.start(&turns)?;
        if let Some(reply) = &conversation.reply {
            let ids = self.tokenizer.encode_plain(reply)?;
            let read = self.read(&ids)?.pop();
            risk = read.ok_or_else(|| model::Error::Request("the reply is empty".into()))?;
        }
        Ok(moderation(&risk))
    }
}

impl Guard for StreamGuard {
    fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
        let judge = |conversation: &Conversation| match self.judge(conversation) {
            Ok(moderation) => scored(moderation),
            Err(error) => Scored::Unscorable(format!("guard: {error}")),
        };
        conversations.iter().map(judge).collect()
    }

    /// Here a piece's moderation is that of its worst token.
    fn moderate_pieces(
        &mut self,
        messages: &[Message],
        pieces: &[String],
        from: usize,
    ) -> Vec<Scored<Moderation>> {
        match self.read_pieces(messages, pieces) {
            Ok(()) => self.current.moderations[from..].to_vec(),
            Err(error) => {
                // What it has read may not be whole.
                let sequence = std::mem::take(&mut self.current);
                self.free.extend(sequence.slots);
                vec![Scored::Unscorable(format!("guard: {error}")); pieces.len() - from]
            }
        }
    }

    fn reads_tokens(&self) -> bool {
        true
    }
}

fn moderation(risk: &TokenRisk) -> Moderation {
    let harmful = risk.safety != Safety::Safe;
    Moderation {
        safety: risk.safety,
        categories: harmful.then_some(risk.category).into_iter().collect(),
        refusal: None,
        score: risk.score,
    }
}

/// A moderation whose score is a number.
fn scored(moderation: Moderation) -> Scored<Moderation> {
    if moderation.score.is_finite() {
        Scored::Scored(moderation)
    } else {
        Scored::Unscorable(format!("guard: the score is {}", moderation.score))
    }
}

fn options(generation_prompt: bool) -> RenderOptions {
    RenderOptions {
        enable_thinking: Some(false),
        generation_prompt,
        tools: None,
    }
}

fn read_classes(head: &ClassifierHead, labels: &Labels, hidden_t_d: &Tensor) -> Result<Vec<TokenRisk>> {
    let classes = head.classify(hidden_t_d)?;
    let risk_t_c = classes.risk_level_n_c.to_vec2::<f32>()?;
    let category_t = classes.category_n_c.argmax(1)?.to_vec1::<u32>()?;
    let risk = |(logits_c, category): (Vec<f32>, u32)| {
        let highest = logits_c.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights_c: Vec<f32> = logits_c.iter().map(|logit| (logit - highest).exp()).collect();
        let total: f32 = weights_c.iter().sum();
        let class = logits_c.iter().position(|&logit| logit == highest).unwrap_or(0);
        let safe = labels
            .risk
            .iter()
            .position(|&level| level == Safety::Safe)
            .unwrap_or(0);
        TokenRisk {
            safety: labels.risk[class],
            category: labels.categories[category as usize],
            score: 1.0 - weights_c[safe] / total,
        }
    };
    Ok(risk_t_c.into_iter().zip(category_t).map(risk).collect())
}

/// The classes of the heads of `side`, `query` or `response`, by the names in `config.json`.
fn labels(config: &Config, side: &str, head: &ClassifierHead) -> Result<Labels> {
    let [risk_levels, categories] = [head.risk_level_c_i.dim(0)?, head.category_c_i.dim(0)?];
    let risk = match named(config, &format!("{side}_risk_level_map"), risk_levels)? {
        None => vec![Safety::Safe, Safety::Unsafe, Safety::Controversial],
        Some((key, names)) => {
            let level = |name: &String| Safety::ALL.into_iter().find(|level| level.name() == name);
            all(&key, &names, level)?
        }
    };
    let known = match named(config, &format!("{side}_category_map"), categories)? {
        None => Category::ALL.into_iter().take(categories).collect(),
        Some((key, names)) => all(&key, &names, |name| Category::from_name(name))?,
    };
    if risk.len() == risk_levels && known.len() == categories {
        return Ok(Labels {
            risk,
            categories: known,
        });
    }
    Err(wrong(format!(
        "{side}: expected 3 risk levels and at most 9 categories, found {risk_levels} and {categories}"
    )))
}

/// The names of a map from class number to name, with the map's key; `None` where the configuration has none.
fn named(config: &Config, key: &str, classes: usize) -> Result<Option<(String, Vec<String>)>> {
    let Some(map) = config.fields.get(key) else {
        return Ok(None);
    };
    let name = |class: usize| map[class.to_string()].as_str().map(String::from);
    let names: Option<Vec<String>> = (0..classes).map(name).collect();
    match names {
        Some(names) => Ok(Some((key.to_owned(), names))),
        None => Err(wrong(format!(
            "config.json, key `{key}`: expected a name for each of {classes} classes, found {map}"
        ))),
    }
}

fn all<T>(key: &str, names: &[String], read: impl Fn(&String) -> Option<T>) -> Result<Vec<T>> {
    let one = |name: &String| {
        read(name).ok_or_else(|| {
            wrong(format!(
                "config.json, key `{key}`: `{name}` is none of Qwen3Guard's names"
            ))
        })
    };
    names.iter().map(one).collect()
}

fn wrong(what: String) -> Error {
    model::Error::Request(what).into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use kernels::Segment;
    use model::config::Family;
    use model::seeded;
    use model::source::resolve;
    use serde_json::{Value, json};

    use super::*;

    /// A Qwen3 of a few thousand seeded weights with the heads of Qwen3Guard-Stream, in a folder.
    fn write_guard(folder: &Path) {
        seeded::write_tiny(folder, Family::Qwen3).unwrap();
        let hidden = seeded::tiny_config(Family::Qwen3, true).unwrap().hidden;
        let weights = folder.join("model.safetensors");
        let mut tensors: HashMap<String, Tensor> =
            candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        for (prefix, categories) in [("", 8), ("query_", 9)] {
            for (name, shape) in [
                ("risk_level_category_pre", vec![512, hidden]),
                ("risk_level_category_layernorm", vec![512]),
                ("risk_level_head", vec![3, 512]),
                ("category_head", vec![categories, 512]),
            ] {
                let name = format!("{prefix}{name}.weight");
                tensors.insert(name.clone(), seeded::tensor(&name, &shape).unwrap());
            }
        }
        candle_core::safetensors::save(&tensors, &weights).unwrap();
    }

    fn load(folder: &Path, room: usize) -> Result<StreamGuard> {
        let source = resolve(folder.to_str().unwrap(), &mut |_| ()).unwrap();
        StreamGuard::load(&source, DType::F32, &Device::Cpu, room)
    }

    #[test]
    fn token_by_token_it_says_what_a_whole_pass_says_and_reads_each_token_once() {
        let folder = tempfile::tempdir().unwrap();
        write_guard(folder.path());
        let mut guard = load(folder.path(), 512).unwrap();
        let messages = [Message::user("How do I bake bread?")];
        let prompt = guard.start(&messages).unwrap();
        let before = guard.current.slots.len();
        let reply = guard
            .tokenizer
            .encode_plain("Mix flour and water, let it rise, bake it.")
            .unwrap();
        let risks: Vec<TokenRisk> = reply.iter().flat_map(|&id| guard.read(&[id]).unwrap()).collect();
        // One row a token: the sequence was never read again.
        assert_eq!(
            (risks.len(), guard.current.slots.len()),
            (reply.len(), before + reply.len())
        );

        let opened = guard.tokenizer.render(&messages, &options(true)).unwrap().ids;
        assert_eq!(opened.len(), before);
        let ids = [opened.clone(), reply].concat();
        let segment = Segment {
            start: 0,
            len: ids.len(),
            prefix: None,
        };
        let hidden_t_d = guard.classifier.decoder.hidden(&ids, &[segment]).unwrap();
        let whole = read_classes(&guard.classifier.reply, &guard.reply, &hidden_t_d).unwrap();
        for (streamed, whole) in risks.iter().zip(&whole[before..]) {
            assert_eq!(
                (streamed.safety, streamed.category),
                (whole.safety, whole.category)
            );
            assert!(
                (streamed.score - whole.score).abs() < 1e-5,
                "{streamed:?} {whole:?}"
            );
        }
        let end = opened
            .iter()
            .rposition(|id| guard.tokenizer.end_ids().contains(id))
            .unwrap();
        let query = read_classes(&guard.classifier.query, &guard.query, &hidden_t_d).unwrap();
        assert_eq!(
            (prompt.safety, prompt.category),
            (query[end].safety, query[end].category)
        );

        // As a guard of whole replies it goes by the last token, whatever was read before.
        let conversation = Conversation {
            messages: messages.to_vec(),
            reply: Some("Mix flour and water, let it rise, bake it.".into()),
        };
        let moderation = guard.moderate(&[conversation]).remove(0);
        let last = risks.last().unwrap();
        assert_eq!(
            moderation.scored().map(|moderation| moderation.safety),
            Some(last.safety)
        );
        assert_eq!(moderation.scored().unwrap().refusal, None);
    }

    #[test]
    fn replies_in_turn_are_each_read_once_and_again_only_where_the_room_is_short() {
        let folder = tempfile::tempdir().unwrap();
        write_guard(folder.path());
        let ask = |text: &str| [Message::user(text)];
        let words = |text: &str| -> Vec<String> { text.split_inclusive(' ').map(String::from).collect() };
        let replies = [
            (
                ask("How do I bake bread?"),
                words("Mix flour and water, let it rise."),
            ),
            (ask("And soup?"), words("Boil carrots with salt for an hour.")),
        ];
        let mut roomy = load(folder.path(), 512).unwrap();
        let mut whole = Vec::new();
        for (messages, pieces) in &replies {
            let verdicts = roomy.moderate_pieces(messages, pieces, 0);
            assert_eq!(verdicts.len(), pieces.len());
            assert!(verdicts.iter().all(|verdict| verdict.scored().is_some()));
            whole.push(verdicts);
        }
        let needed = roomy.current.slots.len();
        // The second has room for one reply alone, so that each turn forgets the other reply.
        for (room, kept) in [(512, 1), (needed + 60, 0)] {
            let mut guard = load(folder.path(), room).unwrap();
            for count in 1..=6 {
                for ((messages, pieces), whole) in replies.iter().zip(&whole) {
                    let new = guard.moderate_pieces(messages, &pieces[..count], count - 1);
                    let (new, whole) = (new[0].scored().unwrap(), whole[count - 1].scored().unwrap());
                    assert_eq!((new.safety, &new.categories), (whole.safety, &whole.categories));
                    assert!((new.score - whole.score).abs() < 1e-5, "{new:?} {whole:?}");
                }
            }
            assert_eq!(guard.kept.len(), kept);
            let used: usize = guard.kept.iter().map(|kept| kept.slots.len()).sum();
            assert_eq!(used + guard.current.slots.len() + guard.free.len(), guard.room);
        }
        let mut small = load(folder.path(), 8).unwrap();
        let (messages, pieces) = &replies[0];
        let refused = small.moderate_pieces(messages, pieces, 2);
        assert_eq!((refused.len(), small.free.len()), (pieces.len() - 2, 8));
        assert!(refused[0].as_result().unwrap_err().contains("room for 8"));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let folder = tempfile::tempdir().unwrap();
        write_guard(folder.path());
        let mut guard = load(folder.path(), 8).unwrap();
        let error = guard
            .start(&[Message::user("How do I bake bread?")])
            .unwrap_err()
            .to_string();
        assert!(error.contains("room for 8 tokens"), "{error}");
        assert!(
            guard
                .start(&[Message::assistant("x")])
                .unwrap_err()
                .to_string()
                .contains("ends with the user")
        );

        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["response_risk_level_map"] = json!({"0": "Safe", "1": "Controversial", "2": "Unsafe"});
        std::fs::write(&path, config.to_string()).unwrap();
        assert_eq!(
            load(folder.path(), 64).unwrap().reply.risk[1],
            Safety::Controversial
        );
        config["response_risk_level_map"] = json!({"0": "Safe", "1": "Low", "2": "High"});
        std::fs::write(&path, config.to_string()).unwrap();
        let error = load(folder.path(), 64).err().unwrap().to_string();
        assert!(
            error.contains("response_risk_level_map") && error.contains("`Low`"),
            "{error}"
        );
    }
}
