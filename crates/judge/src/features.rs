//! What the built-in heads see: hidden states of a frozen base model, averaged over the text under judgement.
//!
//! A conversation is rendered by the base model's own chat template. The prompt's features are the mean, over the
//! tokens of the user's last turn, of the residual stream after each of a few layers; the reply's are the mean over its
//! own tokens (which attend to the prompt), the last token's state, and a few figures about the token ids themselves
//! ([`SURFACE`]). A text that is longer than the [`Layout`]'s window is read in pieces, each as if it alone were the reply,
//! or the prompt; beside a reply stands the end of its prompt.
//!
//! Replies to one prompt share the prompt's rows in one packed pass, and prompts those of the beginning that they have in
//! common, as a system message is. Features are remembered by the token ids they came
//! from, so a guard and a helpfulness head on the same [`Features`] cost one pass, and with a cache file a training run
//! of heads costs one pass ever.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::DType;
use kernels::Segment;
use model::chat::{Message, Mode};
use model::decoder::Decoder;
use model::dtype::Dtype;
use model::source::{Source, WeightsFormat};
use model::template::RenderOptions;
use model::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::judge::Conversation;
use crate::packing::{Group, batches, common_beginning};
use crate::pieces::{Key, PromptTokens, Tokens};
use crate::{Error, Result};

/// Features remembered without a cache file before the memory is cleared.
const MEMORY: usize = 4096;

/// The figures about a reply's token ids: log of the length, share of distinct tokens, of distinct pairs, of pairs that
/// also stand in the prompt, share of the user's distinct tokens that the reply takes up, share of the commonest triple.
pub const SURFACE: usize = 6;

/// Which states are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Blocks after which the residual stream is read; ascending.
    pub layers: Vec<usize>,
    /// Most tokens of a prompt, its last ones.
    pub prompt_tokens: usize,
    /// Most tokens of a reply, its first ones.
    pub reply_tokens: usize,
}

impl Layout {
    /// Whether there is something to read: layers, and windows of at least one token.
    pub(crate) fn reads(&self) -> bool {
        !self.layers.is_empty() && self.prompt_tokens > 0 && self.reply_tokens > 0
    }
}

impl Default for Layout {
    /// For smollm2-135m, which has 30 layers.
    fn default() -> Self {
        Self {
            layers: vec![12, 20, 28],
            prompt_tokens: 256,
            reply_tokens: 128,
        }
    }
}

/// What the heads see of one conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Feature {
    /// Mean over the user's last turn, layer after layer: `layers * hidden` numbers.
    pub prompt_f: Vec<f32>,
    /// Of the reply, where there is one.
    pub reply: Option<ReplyFeature>,
}

/// What the heads see of a reply.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyFeature {
    /// Mean over the reply's tokens, layer after layer: `layers * hidden` numbers.
    pub mean_f: Vec<f32>,
    /// The last token's state at the highest layer: `hidden` numbers.
    pub last_d: Vec<f32>,
    /// Figures about the token ids.
    pub surface: [f32; SURFACE],
}

/// A frozen base model that turns conversations into features, and remembers them.
///
/// The decoder must not be one whose weights are being trained: the heads fit the base as it was.
pub struct Features {
    decoder: Decoder,
    tokenizer: Arc<Tokenizer>,
    layout: Layout,
    known: HashMap<Key, Arc<Feature>>,
    cache: Option<(PathBuf, File)>,
}

/// Features that a guard and a helpfulness head share.
pub type SharedFeatures = Arc<Mutex<Features>>;

impl Features {
    /// Features of `decoder` at the places that `layout` names.
    pub fn new(decoder: Decoder, tokenizer: Arc<Tokenizer>, layout: Layout) -> Self {
        Self {
            decoder,
            tokenizer,
            layout,
            known: HashMap::new(),
            cache: None,
        }
    }

    /// The same, with a cache file in `folder` that keeps every feature for the next run. `base` is the base model's
    /// [`fingerprint`]: features of other weights, another dtype or another layout go into another file.
    ///
    /// # Errors
    /// When the folder or the file cannot be made or read.
    pub fn with_cache(mut self, folder: &Path, base: &str) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|source| Error::File {
            path: folder.into(),
            source,
        })?;
        let dtype = match self.dtype() {
            Dtype::F32 => "",
            Dtype::Bf16 => " bf16",
        };
        let name = Sha256::digest(format!("{base}{dtype} {:?}", self.layout));
        let path = folder.join(format!("features-{}.f32", hex(&name[..8])));
        let at = |source| Error::File {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(at)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(at)?;
        let record = self.record_bytes();
        let whole = bytes.len() / record * record;
        // A run that was killed while it wrote leaves a torn record at the end.
        file.set_len(whole as u64).map_err(at)?;
        for record in bytes[..whole].chunks_exact(record) {
            let (key, feature) = self.read_record(record);
            self.known.insert(key, Arc::new(feature));
        }
        self.cache = Some((path, file));
        Ok(self)
    }

    /// Which states are read.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Width of the base model's residual stream.
    pub fn hidden(&self) -> usize {
        self.decoder.config.hidden
    }

    /// The numbers that the base model computes in.
    pub fn dtype(&self) -> Dtype {
        match self.decoder.dtype() {
            DType::BF16 => Dtype::Bf16,
            _ => Dtype::F32,
        }
    }

    /// The features of each conversation, of its reply's beginning and its prompt's end, or why there are none.
    /// `on_progress` hears how many token rows of how many have been computed.
    pub fn of(
        &mut self,
        conversations: &[Conversation],
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Vec<std::result::Result<Arc<Feature>, String>> {
        let usual = |tokens: Tokens| tokens.usual(&self.layout);
        let tokens = self.tokenize_all(conversations).into_iter();
        let tokens: Vec<_> = tokens.map(|tokens| tokens.map(usual)).collect();
        self.of_tokens(&tokens, on_progress)
    }

    /// The features of each conversation in pieces: those of [`Features::of`], then the further pieces of its reply, or of
    /// the prompt where there is no reply; or why there are none.
    pub fn of_pieces(
        &mut self,
        conversations: &[Conversation],
    ) -> Vec<std::result::Result<Vec<Arc<Feature>>, String>> {
        let pieces: Vec<Vec<_>> = self
            .tokenize_all(conversations)
            .into_iter()
            .map(|tokens| match tokens {
                Ok(tokens) => tokens.pieces(&self.layout).into_iter().map(Ok).collect(),
                Err(cause) => vec![Err(cause)],
            })
            .collect();
        let counts: Vec<_> = pieces.iter().map(Vec::len).collect();
        let tokens: Vec<_> = pieces.into_iter().flatten().collect();
        let mut features = self.of_tokens(&tokens, &mut |_, _| ()).into_iter();
        let of_one = |count| features.by_ref().take(count).collect();
        counts.into_iter().map(of_one).collect()
    }

    fn of_tokens(
        &mut self,
        tokens: &[std::result::Result<Tokens, String>],
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Vec<std::result::Result<Arc<Feature>, String>> {
        let keys: Vec<_> = tokens
            .iter()
            .map(|tokens| tokens.as_ref().map(Tokens::key))
            .collect();
        let new = keys.iter().flatten().any(|key| !self.known.contains_key(key));
        // Only when something new comes: the helpfulness head asks for what the guard has just had computed.
        if new && self.cache.is_none() && self.known.len() > MEMORY {
            self.known.clear();
        }
        let wanted = tokens
            .iter()
            .zip(&keys)
            .filter_map(|(tokens, key)| Some((tokens.as_ref().ok()?, *key.as_ref().ok()?)));
        let wanted: Vec<_> = wanted.filter(|(_, key)| !self.known.contains_key(key)).collect();
        let failed = self.compute_missing(&wanted, on_progress);
        keys.iter()
            .map(|key| match key {
                Err(cause) => Err((*cause).clone()),
                Ok(key) => match (self.known.get(key), failed.get(key)) {
                    (Some(feature), _) => Ok(Arc::clone(feature)),
                    (None, Some(cause)) => Err(cause.clone()),
                    (None, None) => Err("no features were computed".into()),
                },
            })
            .collect()
    }

    /// Runs the passes for what is not known yet; returns the causes of those that failed.
    fn compute_missing(
        &mut self,
        wanted: &[(&Tokens, Key)],
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> HashMap<Key, String> {
        let batches = batches(wanted);
        let total: usize = batches.iter().flatten().map(Group::rows).sum();
        let mut done = 0;
        let mut failed = HashMap::new();
        for batch in &batches {
            match self.compute(batch) {
                Ok(features) => {
                    if let Err(error) = self.keep(&features) {
                        tracing::warn!("features are not cached from here on: {error}");
                        self.cache = None;
                    }
                    self.known.extend(features);
                }
                Err(error) => {
                    let keys = batch.iter().flat_map(|group| &group.members).map(|(key, _)| *key);
                    failed.extend(keys.map(|key| (key, format!("base model: {error}"))));
                }
            }
            done += batch.iter().map(Group::rows).sum::<usize>();
            on_progress(done, total);
        }
        failed
    }

    /// One packed pass: the prompts' common beginning, then the rest of each prompt and its replies.
    fn compute(&self, batch: &[Group<'_>]) -> Result<Vec<(Key, Arc<Feature>)>> {
        let common = common_beginning(batch);
        let mut ids = common.to_vec();
        let mut segments = Vec::new();
        if !common.is_empty() {
            segments.push(Segment {
                start: 0,
                len: common.len(),
                prefix: None,
            });
        }
        for group in batch {
            let prefix = segments.len();
            segments.push(Segment {
                start: ids.len(),
                len: group.prompt.ids.len() - common.len(),
                prefix: (!common.is_empty()).then_some(0),
            });
            ids.extend(&group.prompt.ids[common.len()..]);
            for reply in group.members.iter().filter_map(|(_, reply)| *reply) {
                segments.push(Segment {
                    start: ids.len(),
                    len: reply.len(),
                    prefix: Some(prefix),
                });
                ids.extend(reply);
            }
        }
        let hidden = self.decoder.hidden_at(&ids, &segments, &self.layout.layers)?;
        let states: Vec<Vec<Vec<f32>>> = hidden
            .iter()
            .map(|hidden_t_d| hidden_t_d.to_dtype(DType::F32)?.to_vec2())
            .collect::<candle_core::Result<_>>()?;

        let mut segments = segments.iter().skip(usize::from(!common.is_empty()));
        let mut features = Vec::new();
        for group in batch {
            let Some(prompt) = segments.next() else { break };
            let row = |at: usize| prompt.start + at - common.len();
            let prompt_f = mean(&states, row(group.prompt.user.start)..row(group.prompt.user.end));
            for (key, reply) in &group.members {
                let reply = reply.and_then(|ids| {
                    let rows = segments
                        .next()
                        .map(|segment| segment.start..segment.start + segment.len)?;
                    Some(ReplyFeature {
                        last_d: states.last()?[rows.end - 1].clone(),
                        mean_f: mean(&states, rows),
                        surface: surface(group.prompt, ids),
                    })
                });
                features.push((
                    *key,
                    Arc::new(Feature {
                        prompt_f: prompt_f.clone(),
                        reply,
                    }),
                ));
            }
        }
        Ok(features)
    }

    fn tokenize_all(&self, conversations: &[Conversation]) -> Vec<std::result::Result<Tokens, String>> {
        // Replies to one prompt come one after another: their prompt is rendered once.
        let mut last: Option<(&[Message], Arc<PromptTokens>)> = None;
        let mut all = Vec::with_capacity(conversations.len());
        for conversation in conversations {
            let prompt = match &last {
                Some((messages, prompt)) if *messages == conversation.messages => Ok(Arc::clone(prompt)),
                _ => self.tokenize_prompt(&conversation.messages).map(Arc::new),
            };
            let tokens = prompt.and_then(|prompt| {
                last = Some((&conversation.messages, Arc::clone(&prompt)));
                let reply = conversation
                    .reply
                    .as_deref()
                    .map(|text| self.tokenize_reply(text))
                    .transpose()?;
                Ok(Tokens { prompt, reply })
            });
            all.push(tokens.map_err(|error| error.to_string()));
        }
        all
    }

    fn tokenize_prompt(&self, messages: &[Message]) -> Result<PromptTokens> {
        let options = RenderOptions::from(Mode::NoThink);
        let ids = self.tokenizer.render(messages, &options)?.ids;
        let mut without = messages.to_vec();
        if let Some(message) = without.last_mut() {
            message.content.clear();
        }
        let without = self.tokenizer.render(&without, &options)?.ids;
        if ids.is_empty() {
            return Err(model::Error::Template("expected tokens, found none".into()).into());
        }
        // The last turn's tokens are those between what the two renderings begin and end with alike.
        let start = ids.iter().zip(&without).take_while(|(a, b)| a == b).count();
        let alike = ids
            .iter()
            .rev()
            .zip(without.iter().rev())
            .take_while(|(a, b)| a == b)
            .count();
        let end = ids.len() - alike.min(without.len() - start);
        let user = if start < end {
            start..end
        } else {
            ids.len() - 1..ids.len()
        };
        Ok(PromptTokens { ids, user })
    }

    /// A reply's ids with the end of its turn, so that even an empty reply has a row.
    fn tokenize_reply(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode_plain(text)?;
        ids.extend(self.tokenizer.end_ids().last());
        if ids.is_empty() {
            return Err(
                model::Error::Tokenizer("an empty reply, and no token that ends a turn".into()).into(),
            );
        }
        Ok(ids)
    }

    fn record_bytes(&self) -> usize {
        let means = 2 * self.layout.layers.len() * self.hidden();
        32 + 4 * (1 + means + self.hidden() + SURFACE)
    }

    /// Appends features to the cache file, if there is one: the key, 1 for a reply, then the numbers (zeros for none).
    fn keep(&mut self, features: &[(Key, Arc<Feature>)]) -> std::io::Result<()> {
        let record = self.record_bytes();
        let Some((_, file)) = &mut self.cache else {
            return Ok(());
        };
        let mut bytes = Vec::with_capacity(features.len() * record);
        for (key, feature) in features {
            let end = bytes.len() + record;
            bytes.extend(key);
            let mut put =
                |numbers: &[f32]| bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            put(&[f32::from(u8::from(feature.reply.is_some()))]);
            put(&feature.prompt_f);
            if let Some(reply) = &feature.reply {
                put(&reply.mean_f);
                put(&reply.last_d);
                put(&reply.surface);
            }
            bytes.resize(end, 0);
        }
        file.write_all(&bytes)
    }

    fn read_record(&self, record: &[u8]) -> (Key, Feature) {
        let mut key = [0; 32];
        key.copy_from_slice(&record[..32]);
        let mut numbers = record[32..]
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let mut take = |count: usize| numbers.by_ref().take(count).collect::<Vec<f32>>();
        let means = self.layout.layers.len() * self.hidden();
        let has_reply = take(1) == [1.0];
        let prompt_f = take(means);
        let (mean_f, last_d, figures) = (take(means), take(self.hidden()), take(SURFACE));
        let mut surface = [0.0; SURFACE];
        surface.copy_from_slice(&figures);
        (
            key,
            Feature {
                prompt_f,
                reply: has_reply.then_some(ReplyFeature {
                    mean_f,
                    last_d,
                    surface,
                }),
            },
        )
    }
}

/// Mean over rows, layer after layer.
fn mean(states: &[Vec<Vec<f32>>], rows: Range<usize>) -> Vec<f32> {
    let count = rows.len() as f32;
    let layer_mean = |state_t_d: &Vec<Vec<f32>>| {
        let mut sum_d = vec![0.0; state_t_d[rows.start].len()];
        for row_d in &state_t_d[rows.clone()] {
            sum_d.iter_mut().zip(row_d).for_each(|(sum, value)| *sum += value);
        }
        sum_d.into_iter().map(move |sum| sum / count)
    };
    states.iter().flat_map(layer_mean).collect()
}

fn surface(prompt: &PromptTokens, reply: &[u32]) -> [f32; SURFACE] {
    let share = |part: usize, whole: usize| {
        if whole == 0 {
            0.0
        } else {
            part as f32 / whole as f32
        }
    };
    let pairs: Vec<_> = reply.windows(2).collect();
    let prompt_pairs: HashSet<_> = prompt.ids.windows(2).collect();
    let distinct: HashSet<_> = reply.iter().collect();
    let user: HashSet<_> = prompt.ids[prompt.user.clone()].iter().collect();
    let mut triples: HashMap<&[u32], usize> = HashMap::new();
    for triple in reply.windows(3) {
        *triples.entry(triple).or_default() += 1;
    }
    [
        (reply.len() as f32).ln_1p(),
        share(distinct.len(), reply.len()),
        share(pairs.iter().collect::<HashSet<_>>().len(), pairs.len()),
        share(
            pairs.iter().filter(|pair| prompt_pairs.contains(**pair)).count(),
            pairs.len(),
        ),
        share(user.intersection(&distinct).count(), user.len()),
        share(
            triples.values().max().copied().unwrap_or(0),
            reply.len().saturating_sub(2),
        ),
    ]
}

/// The sha256 of a model's weights, by which heads know their base.
///
/// # Errors
/// When a weight file cannot be read.
pub fn fingerprint(source: &Source) -> Result<String> {
    let files = match &source.weights {
        WeightsFormat::Safetensors(paths) => paths.clone(),
        WeightsFormat::Gguf(path) => vec![path.clone()],
        WeightsFormat::None => Vec::new(),
    };
    let mut hash = Sha256::new();
    for path in files {
        let mut file = File::open(&path).map_err(|source| Error::File {
            path: path.clone(),
            source,
        })?;
        std::io::copy(&mut file, &mut hash).map_err(|source| Error::File { path, source })?;
    }
    Ok(hex(&hash.finalize()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pieces::tests::prompt;

    #[test]
    fn surface_tells_loops_and_copies_from_fresh_text() {
        let prompt = prompt(&[1, 2, 3, 4, 5, 6], 1..5);
        let fresh = surface(&prompt, &[10, 11, 12, 13, 14, 15]);
        let looping = surface(&prompt, &[10, 11, 10, 11, 10, 11]);
        let copied = surface(&prompt, &[2, 3, 4, 5]);
        assert_eq!(fresh[1..], [1.0, 1.0, 0.0, 0.0, 0.25]);
        assert_eq!(looping[1..], [1.0 / 3.0, 0.4, 0.0, 0.0, 0.5]);
        assert_eq!(copied[1..], [1.0, 1.0, 1.0, 1.0, 0.5]);
        assert!(surface(&prompt, &[9]).iter().all(|figure| figure.is_finite()));
    }
}
