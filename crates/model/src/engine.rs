//! Batched generation: sequences join and leave the batch at every step.
//!
//! A step runs one forward pass whose rows are the next token of every running sequence and the next tokens of
//! prompts that are being read. A prompt is read once for all its completions, which share its keys and values; and
//! prompts that begin alike, with the same system message say, share those of their beginning.
//! LoRA adapters that were loaded beside the weights ([`Engine::add_adapters`]) are models of their own to those who ask:
//! the rows of all of them go through the shared weights together, and each adapter adds its part to its own rows.
//! On the CPU in f32 a row's result does not depend on the other rows, as the kernels sum each row in an order of its
//! own; so the same seed gives the same tokens whatever else is in the batch, and also where a sequence lost its room
//! in the pool for a while and had to be read again. Other devices may round by the size of a batch.
//!
//! Left out: speculative decoding.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Storage, Tensor};

use crate::chat::Prompt;
use crate::constraint::Constraint;
use crate::decoder::{Decoder, PoolLayer};
use crate::generate::{Completion, FinishReason, Generate, Sampling};
use crate::kv_pool::BLOCK_SLOTS;
use crate::linear::Adapter;
use crate::queue::{Batch, End, Group, Queue, Sequence, Start};
use crate::sampler::draw_rows;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

pub use crate::reply::Piece;
pub use crate::sampler::Draw;

/// Names one call of [`Engine::submit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Names adapters that an engine has loaded beside its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Adapted(usize);

/// What a step brought for one completion of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The request.
    pub ticket: Ticket,
    /// Which of its completions.
    pub index: usize,
    /// The news.
    pub news: News,
}

/// What a request wants beside its completions.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// How many of the likeliest tokens [`News::Token`] tells.
    pub likeliest: usize,
    /// What the tokens may be, for each completion from its start.
    pub constraint: Option<Box<dyn Constraint>>,
    /// The adapters that the reply is made with; none for the weights as the engine was given them.
    pub adapted: Option<Adapted>,
}

/// A token, the text that it added, or the end.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// A token was drawn; one that ends the turn is told as well.
    Token(Draw),
    /// Text was added.
    Text(Piece),
    /// The completion is done.
    Finished(Completion),
}

/// What an engine has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Metrics {
    /// Tokens read: those of prompts, and those that had to be read again for want of room.
    pub read_tokens: usize,
    /// Tokens drawn.
    pub tokens: usize,
    /// Seconds spent in steps.
    pub seconds: f64,
    /// How often a sequence lost its room.
    pub pauses: usize,
}

/// Generates with a decoder in this process.
#[derive(Debug)]
pub struct Engine {
    decoder: Decoder,
    /// By [`Adapted`], each a [`Decoder::adapter_list`].
    adapters: Vec<Vec<Option<Adapter>>>,
    tokenizer: Arc<Tokenizer>,
    layers: Vec<PoolLayer>,
    queue: Queue,
    next_ticket: u64,
    tokens: usize,
    seconds: f64,
}

impl Engine {
    /// An engine with room for the keys and values of `pool_tokens` tokens, prompts and replies together.
    ///
    /// Each takes `2 x layers x key/value heads x head width` f32 numbers, in memory that on the CPU is taken as it is
    /// first used.
    pub fn new(decoder: Decoder, tokenizer: Arc<Tokenizer>, pool_tokens: usize) -> Result<Self> {
        let queue = Queue::new(pool_tokens);
        let config = &decoder.config;
        let shape = (queue.pool.slots(), config.key_value_heads, config.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, decoder.device());
        let layers = (0..config.layers)
            .map(|_| {
                Ok(PoolLayer {
                    k: zeros()?,
                    v: zeros()?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            decoder,
            adapters: Vec::new(),
            tokenizer,
            layers,
            queue,
            next_ticket: 0,
            tokens: 0,
            seconds: 0.0,
        })
    }

    /// The weights that it generates with.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The tokenizer that its texts come from.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// What it has done so far.
    pub fn metrics(&self) -> Metrics {
        let Queue {
            read_tokens, pauses, ..
        } = self.queue;
        Metrics {
            read_tokens,
            tokens: self.tokens,
            seconds: self.seconds,
            pauses,
        }
    }

    /// Loads LoRA adapters beside the weights, from a folder as [`Decoder::load_adapters`] reads it, for requests that ask
    /// for them by [`Extras::adapted`]. The weights are held once, however many adapters there are.
    ///
    /// # Errors
    /// Those of [`Decoder::load_adapters`]: weights with adapters of their own take no others.
    pub fn add_adapters(&mut self, folder: &Path) -> Result<Adapted> {
        let mut decoder = self.decoder.clone();
        decoder.load_adapters(folder)?;
        self.adapters.push(decoder.frozen()?.adapter_list());
        Ok(Adapted(self.adapters.len() - 1))
    }

    /// Keeps keys and values of up to this many tokens of requests that are done, for prompts that begin alike, such as the
    /// next turn of a conversation. They give way wherever room is short. None are kept unless this is called.
    pub fn set_memory(&mut self, tokens: usize) {
        let Queue { memory, pool, .. } = &mut self.queue;
        memory.set_most(tokens, pool);
    }

    /// Goes on with other weights of the same shape; adapters that were added are gone.
    ///
    /// # Errors
    /// While requests are under way, whose keys and values are the old weights'; another shape.
    pub fn set_decoder(&mut self, decoder: Decoder) -> Result<()> {
        self.require_idle()?;
        let shape = |decoder: &Decoder| {
            let config = &decoder.config;
            (config.layers, config.key_value_heads, config.head_dim)
        };
        if shape(&decoder) != shape(&self.decoder) {
            return Err(Error::Request(format!(
                "new weights: expected layers, key/value heads and head width {:?}, found {:?}",
                shape(&self.decoder),
                shape(&decoder)
            )));
        }
        self.decoder = decoder;
        self.adapters.clear();
        self.queue.clear();
        Ok(())
    }

    /// Queues `count` completions of a prompt; [`Engine::step`] makes them.
    ///
    /// Where the model's context ends, a reply ends with [`FinishReason::Length`].
    ///
    /// # Errors
    /// Sampling that means nothing, a prompt that is empty, has unknown ids or fills the context, or one that could
    /// never fit the pool together with its longest reply.
    pub fn submit(&mut self, prompt: &Prompt, count: usize, sampling: &Sampling) -> Result<Ticket> {
        self.submit_with(prompt, count, sampling, Extras::default())
    }

    /// As [`Engine::submit`], with what else the request wants.
    pub fn submit_with(
        &mut self,
        prompt: &Prompt,
        count: usize,
        sampling: &Sampling,
        extras: Extras,
    ) -> Result<Ticket> {
        sampling.check()?;
        if let Some(Adapted(index)) = extras.adapted
            && index >= self.adapters.len()
        {
            let loaded = self.adapters.len();
            return Err(Error::Request(format!(
                "adapters {index}: this engine has loaded {loaded}"
            )));
        }
        let limit = self.limit(&prompt.ids, sampling.max_new_tokens)?;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        if count > 0 {
            self.queue
                .groups
                .push_back(Group::new(ticket, &prompt.ids, count, limit, sampling, extras));
        }
        Ok(ticket)
    }

    /// The new tokens that a reply to a prompt may have.
    fn limit(&self, prompt_ids: &[u32], max_new_tokens: usize) -> Result<usize> {
        let (context, vocabulary) = (self.decoder.config.max_positions, self.decoder.config.vocabulary);
        let length = prompt_ids.len();
        if length == 0 {
            return Err(Error::Request(
                "prompt: expected at least one token, found none".into(),
            ));
        }
        if length >= context {
            return Err(Error::Request(format!(
                "prompt: expected fewer tokens than the {context} of the model's context, found {length}"
            )));
        }
        if let Some(id) = prompt_ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::Request(format!(
                "prompt: expected token ids below {vocabulary}, found {id}"
            )));
        }
        let limit = max_new_tokens.min(context - length);
        let needed = (length.div_ceil(BLOCK_SLOTS) + limit.div_ceil(BLOCK_SLOTS)) * BLOCK_SLOTS;
        let room = self.queue.pool.slots();
        if needed > room {
            return Err(Error::Request(format!(
                "a prompt of {length} tokens with up to {limit} new ones: expected a pool of at least {needed} tokens, \
                 found {room}"
            )));
        }
        Ok(limit)
    }

    /// Whether every request is done.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Drops a request, whatever it has got so far.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.queue.cancel(ticket);
    }

    /// Drops one completion of a request, which must have started: of which there was news.
    pub fn cancel_one(&mut self, ticket: Ticket, index: usize) {
        self.queue.cancel_one(ticket, index);
    }

    /// Runs one forward pass and returns what it brought. After an error every request is gone.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let started = Instant::now();
        let mut events = Vec::new();
        let result = kernels::in_pool(|| self.advance(&mut events));
        if result.is_err() {
            self.queue.clear();
        }
        self.seconds += started.elapsed().as_secs_f64();
        result.map(|()| events)
    }

    fn advance(&mut self, events: &mut Vec<Event>) -> Result<()> {
        self.queue.resume();
        while let Some(Start {
            mut sequences,
            logits_v,
        }) = self.queue.start(&self.tokenizer)?
        {
            let rows = sequences
                .iter_mut()
                .map(|sequence| (0, &mut sequence.sampler))
                .collect();
            let draws = draw_rows(&logits_v, logits_v.len(), rows)?;
            for (sequence, draw) in sequences.into_iter().zip(draws) {
                self.accept(sequence, draw, events)?;
            }
        }
        self.queue.place_prompts();
        self.queue.make_room();
        let Batch {
            ids,
            positions,
            slots,
            contexts,
            ends,
            runs,
        } = self.queue.plan();
        if ids.is_empty() {
            return Ok(());
        }
        let mixed = self.mix(&runs);
        let hidden_t_d = mixed.as_ref().unwrap_or(&self.decoder).decode(
            &ids,
            &positions,
            &mut self.layers,
            &slots,
            &contexts,
        )?;
        if ends.is_empty() {
            return Ok(());
        }
        let hidden_n_d = if ends.len() == ids.len() {
            hidden_t_d
        } else {
            let rows: Vec<u32> = ends.iter().map(|&(row, _)| row as u32).collect();
            hidden_t_d.index_select(&Tensor::new(rows, hidden_t_d.device())?, 0)?
        };
        let logits_n_v = self.decoder.logits(&hidden_n_d)?.contiguous()?;
        let (storage, layout) = logits_n_v.storage_and_layout();
        if let Storage::Cpu(storage) = &*storage {
            // Some megabytes that need not be copied.
            let logits_n_v =
                &storage.as_slice::<f32>()?[layout.start_offset()..][..layout.shape().elem_count()];
            return self.settle(&ends, logits_n_v, events);
        }
        self.settle(&ends, &logits_n_v.flatten_all()?.to_vec1::<f32>()?, events)
    }

    /// What the rows of a pass go through, where any of them takes adapters that were added.
    fn mix(&self, runs: &[(Option<Adapted>, usize)]) -> Option<Decoder> {
        if runs.iter().all(|(adapted, _)| adapted.is_none()) {
            return None;
        }
        let adapters = |adapted: Adapted| self.adapters[adapted.0].as_slice();
        let runs: Vec<_> = runs
            .iter()
            .map(|&(adapted, rows)| (rows, adapted.map(adapters)))
            .collect();
        Some(self.decoder.mixed(&runs))
    }

    /// Draws a token for every sequence whose logits have come, and keeps those that follow a prompt.
    fn settle(&mut self, ends: &[(usize, End)], logits_n_v: &[f32], events: &mut Vec<Event>) -> Result<()> {
        let vocabulary = logits_n_v.len() / ends.len();
        let mut drawn = vec![None; self.queue.running.len()];
        for (row, &(_, end)) in ends.iter().enumerate() {
            match end {
                End::Sequence(index) => drawn[index] = Some(row),
                End::Group(index) => {
                    let logits_v = &logits_n_v[row * vocabulary..(row + 1) * vocabulary];
                    self.queue.groups[index].logits_v = Some(logits_v.into());
                }
            }
        }
        let samplers = self
            .queue
            .running
            .iter_mut()
            .map(|sequence| &mut sequence.sampler);
        let rows = drawn
            .iter()
            .zip(samplers)
            .filter_map(|(row, sampler)| Some(((*row)?, sampler)))
            .collect();
        let mut draws = draw_rows(logits_n_v, vocabulary, rows)?.into_iter();
        for (sequence, row) in std::mem::take(&mut self.queue.running).into_iter().zip(drawn) {
            match row.and_then(|_| draws.next()) {
                Some(draw) => self.accept(sequence, draw, events)?,
                None => self.queue.running.push(sequence),
            }
        }
        Ok(())
    }

    /// Adds a drawn token to a sequence, which goes on running or finishes.
    fn accept(&mut self, mut sequence: Sequence, draw: Draw, events: &mut Vec<Event>) -> Result<()> {
        self.tokens += 1;
        sequence.ids.push(draw.id);
        sequence.log_probabilities.push(draw.log_probability);
        let id = draw.id;
        events.push(event(&sequence, News::Token(draw)));
        if self.tokenizer.end_ids().contains(&id) {
            return self.finish(sequence, FinishReason::Stop, events);
        }
        let piece = sequence.reply.push(id)?;
        events.extend(piece.map(|piece| event(&sequence, News::Text(piece))));
        if sequence.reply.stopped() {
            return self.finish(sequence, FinishReason::Stop, events);
        }
        if sequence.ids.len() - sequence.prompt_length >= sequence.limit {
            return self.finish(sequence, FinishReason::Length, events);
        }
        self.queue.running.push(sequence);
        Ok(())
    }

    fn finish(
        &mut self,
        mut sequence: Sequence,
        reason: FinishReason,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        self.queue.retire(&mut sequence);
        let piece = sequence.reply.finish()?;
        events.extend(piece.map(|piece| event(&sequence, News::Text(piece))));
        let (thinking, content) = sequence.reply.split()?;
        let completion = Completion {
            ids: sequence.ids.split_off(sequence.prompt_length),
            log_probabilities: std::mem::take(&mut sequence.log_probabilities),
            thinking,
            content,
            finish_reason: reason,
        };
        events.push(event(&sequence, News::Finished(completion)));
        Ok(())
    }

    fn require_idle(&self) -> Result<()> {
        if self.is_idle() {
            return Ok(());
        }
        Err(Error::Request(
            "the engine still has requests: step until it is idle, or cancel them".into(),
        ))
    }

    /// One completion of one prompt, its text handed over as it comes.
    pub fn generate_streaming(
        &mut self,
        prompt: &Prompt,
        sampling: &Sampling,
        on_text: &mut dyn FnMut(Piece),
    ) -> Result<Completion> {
        self.require_idle()?;
        self.submit(prompt, 1, sampling)?;
        loop {
            for event in self.step()? {
                match event.news {
                    News::Token(_) => {}
                    News::Text(piece) => on_text(piece),
                    News::Finished(completion) => return Ok(completion),
                }
            }
        }
    }
}

fn event(sequence: &Sequence, news: News) -> Event {
    Event {
        ticket: sequence.ticket,
        index: sequence.index,
        news,
    }
}

impl Generate for Engine {
    fn generate(
        &mut self,
        prompts: &[Prompt],
        count: usize,
        sampling: &Sampling,
    ) -> Result<Vec<Vec<Completion>>> {
        self.require_idle()?;
        let first = self.next_ticket;
        for (index, prompt) in prompts.iter().enumerate() {
            if let Err(error) = self.submit(prompt, count, sampling) {
                self.queue.clear();
                return Err(match error {
                    Error::Request(what) => Error::Request(format!("prompt {index}: {what}")),
                    other => other,
                });
            }
        }
        let mut groups: Vec<Vec<(usize, Completion)>> = vec![Vec::with_capacity(count); prompts.len()];
        while !self.is_idle() {
            for event in self.step()? {
                if let News::Finished(completion) = event.news {
                    groups[(event.ticket.0 - first) as usize].push((event.index, completion));
                }
            }
        }
        let in_order = |mut group: Vec<(usize, Completion)>| {
            group.sort_unstable_by_key(|&(index, _)| index);
            group.into_iter().map(|(_, completion)| completion).collect()
        };
        Ok(groups.into_iter().map(in_order).collect())
    }
}

#[cfg(test)]
mod tests {
    use kernels::Segment;

    use super::*;
    use crate::chat::{Message, Mode};
    use crate::config::Family;
    use crate::seeded;

    fn tokenizer() -> Arc<Tokenizer> {
        Arc::new(seeded::tokenizer().unwrap())
    }

    fn engine(pool_tokens: usize) -> Engine {
        Engine::new(
            seeded::tiny_decoder(Family::Qwen3, true).unwrap(),
            tokenizer(),
            pool_tokens,
        )
        .unwrap()
    }

    fn prompts(engine: &Engine, texts: &[&str]) -> Vec<Prompt> {
        texts
            .iter()
            .map(|text| {
                engine
                    .tokenizer
                    .prompt(&[Message::user(*text)], Mode::NoThink)
                    .unwrap()
            })
            .collect()
    }

    const TEXTS: [&str; 5] = [
        "Hi",
        "Tell me about the sea, and do not leave out the fish.",
        "one two three",
        "A prompt that is a good deal longer than the others, so that it takes a chunk or two of its own to read it \
         through to its end, which comes only after a few more words than anybody would have thought it would need, \
         as it is meant to be longer than the rows that one step reads; and here, at last, it comes to that very end.",
        "x",
    ];

    /// Recomputes every step from scratch.
    fn greedy_by_hidden(decoder: &Decoder, prompt_ids: &[u32], count: usize) -> Vec<u32> {
        let mut ids = prompt_ids.to_vec();
        for _ in 0..count {
            let hidden_t_d = decoder
                .hidden(
                    &ids,
                    &[Segment {
                        start: 0,
                        len: ids.len(),
                        prefix: None,
                    }],
                )
                .unwrap();
            let last_1_d = hidden_t_d.narrow(0, ids.len() - 1, 1).unwrap();
            let logits_v = decoder
                .logits(&last_1_d)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            let best = (0..logits_v.len())
                .max_by(|&left, &right| logits_v[left].total_cmp(&logits_v[right]))
                .unwrap();
            ids.push(best as u32);
        }
        ids.split_off(prompt_ids.len())
    }

    #[test]
    fn greedy_tokens_are_those_of_the_packed_forward_pass() {
        let mut engine = engine(2048);
        let prompts = prompts(&engine, &TEXTS);
        let sampling = Sampling {
            temperature: 0.0,
            max_new_tokens: 24,
            ..Sampling::default()
        };
        let completions = engine.generate(&prompts, 1, &sampling).unwrap();
        for (prompt, group) in prompts.iter().zip(&completions) {
            let length = group[0].ids.len();
            assert_eq!(
                group[0].ids,
                greedy_by_hidden(&engine.decoder, &prompt.ids, length)
            );
            assert!(length == 24 || group[0].finish_reason == FinishReason::Stop);
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_packed_forward_pass() {
        let mut engine = engine(2048);
        let prompt = prompts(&engine, &TEXTS[1..2]).remove(0);
        let sampling = Sampling {
            temperature: 0.7,
            top_p: 0.9,
            max_new_tokens: 40,
            ..Sampling::default()
        };
        let completion = engine
            .generate(std::slice::from_ref(&prompt), 1, &sampling)
            .unwrap()
            .remove(0)
            .remove(0);
        let ids = [&prompt.ids[..], &completion.ids].concat();
        let hidden_t_d = engine
            .decoder
            .hidden(
                &ids,
                &[Segment {
                    start: 0,
                    len: ids.len(),
                    prefix: None,
                }],
            )
            .unwrap();
        let hidden_n_d = hidden_t_d
            .narrow(0, prompt.ids.len() - 1, completion.ids.len())
            .unwrap();
        let expected = engine
            .decoder
            .log_probability(&hidden_n_d, &completion.ids, 1.0)
            .unwrap();
        for (found, expected) in completion
            .log_probabilities
            .iter()
            .zip(expected.to_vec1::<f32>().unwrap())
        {
            assert!(
                (found - expected).abs() < 1e-4,
                "expected {expected}, found {found}"
            );
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_completions_whatever_else_is_in_the_batch() {
        let mut engine = engine(1 << 14);
        let prompts = prompts(&engine, &TEXTS);
        let sampling = Sampling {
            max_new_tokens: 30,
            seed: 11,
            ..Sampling::default()
        };
        let together = engine.generate(&prompts, 16, &sampling).unwrap();
        let backwards: Vec<Prompt> = prompts.iter().rev().cloned().collect();
        let backwards = engine.generate(&backwards, 3, &sampling).unwrap();
        for (index, prompt) in prompts.iter().enumerate() {
            let alone = engine
                .generate(std::slice::from_ref(prompt), 1, &sampling)
                .unwrap();
            assert!(alone[0][0] == together[index][0], "prompt {index} alone");
            assert!(
                backwards[prompts.len() - 1 - index][..] == together[index][..3],
                "prompt {index} in another order"
            );
        }
        assert_ne!(together[0][0].ids, together[0][1].ids);
        let other = engine
            .generate(&prompts[..1], 1, &Sampling { seed: 12, ..sampling })
            .unwrap();
        assert_ne!(other[0][0].ids, together[0][0].ids);
    }

    #[test]
    fn a_prompt_is_read_once_for_its_group() {
        let mut engine = engine(1 << 13);
        let prompts = prompts(&engine, &TEXTS[1..2]);
        let sampling = Sampling {
            max_new_tokens: 5,
            ..Sampling::default()
        };
        let all = engine.generate(&prompts, 8, &sampling).unwrap();
        let metrics = engine.metrics();
        assert_eq!(metrics.read_tokens, prompts[0].ids.len());
        assert_eq!(
            metrics.tokens,
            all.iter()
                .flatten()
                .map(|completion| completion.ids.len())
                .sum::<usize>()
        );
        assert!(metrics.seconds > 0.0 && metrics.pauses == 0);
    }

    #[test]
    fn prompts_that_begin_alike_are_read_alike_once() {
        let system =
            Message::system("You answer as briefly as you can, and you always tell what you do not know.");
        let mut engine = engine(1 << 13);
        let prompts: Vec<Prompt> = ["one", "two and a half", "three", "", "three"]
            .map(|text| {
                engine
                    .tokenizer
                    .prompt(&[system.clone(), Message::user(text)], Mode::NoThink)
                    .unwrap()
            })
            .into();
        let sampling = Sampling {
            max_new_tokens: 12,
            seed: 4,
            ..Sampling::default()
        };
        let apart: Vec<_> = prompts
            .iter()
            .map(|prompt| {
                engine
                    .generate(std::slice::from_ref(prompt), 2, &sampling)
                    .unwrap()
                    .remove(0)
            })
            .collect();
        let read_apart = engine.metrics().read_tokens;
        assert_eq!(
            read_apart,
            prompts.iter().map(|prompt| prompt.ids.len()).sum::<usize>()
        );
        assert!(engine.generate(&prompts, 2, &sampling).unwrap() == apart);
        let read_together = engine.metrics().read_tokens - read_apart;
        let common = |left: &Prompt, right: &Prompt| {
            let pairs = left.ids.iter().zip(&right.ids);
            pairs.take_while(|(left, right)| left == right).count()
        };
        // What each takes from one before it, in whole blocks and without its last token.
        let taken = |index: usize| {
            let alike = prompts[..index]
                .iter()
                .map(|other| common(other, &prompts[index]));
            let longest = alike.max().unwrap_or(0).min(prompts[index].ids.len() - 1);
            longest / BLOCK_SLOTS * BLOCK_SLOTS
        };
        let taken: Vec<usize> = (0..prompts.len()).map(taken).collect();
        assert!(taken[1] > 60 && taken[4] > taken[1], "{taken:?}");
        assert_eq!(read_together, read_apart - taken.iter().sum::<usize>());
        assert_eq!(
            engine.queue.pool.free_blocks() * BLOCK_SLOTS,
            engine.queue.pool.slots()
        );
    }

    #[test]
    fn a_pool_that_is_too_small_for_all_changes_nothing_but_time() {
        let sampling = Sampling {
            max_new_tokens: 60,
            seed: 3,
            ..Sampling::default()
        };
        let mut large = engine(1 << 14);
        let prompts = prompts(&large, &TEXTS);
        let expected = large.generate(&prompts, 6, &sampling).unwrap();
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap();
        for tokens in [longest.next_multiple_of(16) + 64, 640, 1024] {
            let mut small = engine(tokens);
            assert!(
                small.generate(&prompts, 6, &sampling).unwrap() == expected,
                "{tokens} tokens"
            );
            assert!(small.metrics().pauses > 0 || tokens > 640, "{tokens} tokens");
            assert_eq!(
                small.queue.pool.free_blocks() * BLOCK_SLOTS,
                small.queue.pool.slots(),
                "every block came back"
            );
        }
    }

    #[test]
    fn more_sequences_than_rows_take_turns() {
        let mut engine = engine(1 << 14);
        let prompts = prompts(&engine, &["a", "b"]);
        let sampling = Sampling {
            max_new_tokens: 4,
            ..Sampling::default()
        };
        let many = engine.generate(&prompts, 100, &sampling).unwrap();
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100]);
        assert_eq!(
            many[1][99],
            engine.generate(&prompts[1..], 100, &sampling).unwrap()[0][99]
        );
        assert_eq!(engine.generate(&prompts, 0, &sampling).unwrap(), [vec![], vec![]]);
    }

    #[test]
    fn streamed_text_is_the_completions() {
        let mut engine = engine(1024);
        let prompt = prompts(&engine, &["Go"]).remove(0);
        for seed in 0..20 {
            let sampling = Sampling {
                seed,
                max_new_tokens: 30,
                temperature: 0.8,
                ..Sampling::default()
            };
            let (mut thinking, mut content) = (String::new(), String::new());
            let mut show = |piece| match piece {
                Piece::Thinking(text) => thinking.push_str(&text),
                Piece::Content(text) => content.push_str(&text),
            };
            let completion = engine.generate_streaming(&prompt, &sampling, &mut show).unwrap();
            assert_eq!(
                completion,
                engine
                    .generate(std::slice::from_ref(&prompt), 1, &sampling)
                    .unwrap()[0][0]
            );
            if completion.thinking.is_none() {
                assert_eq!(content, completion.content);
            }
        }
    }

    #[test]
    fn a_stop_text_ends_the_completion() {
        let mut engine = engine(1024);
        let prompt = prompts(&engine, &["Go"]);
        let free = Sampling {
            max_new_tokens: 60,
            seed: 1,
            ..Sampling::default()
        };
        let whole = engine.generate(&prompt, 1, &free).unwrap()[0][0].clone();
        let start = whole.content.char_indices().nth(20).unwrap().0;
        let stop: String = whole.content[start..].chars().take(3).collect();
        let stopped = engine
            .generate(
                &prompt,
                1,
                &Sampling {
                    stop: vec![stop.clone()],
                    ..free
                },
            )
            .unwrap();
        let stopped = &stopped[0][0];
        assert_eq!(
            stopped.content,
            whole.content[..whole.content.find(&stop).unwrap()]
        );
        assert_eq!(stopped.finish_reason, FinishReason::Stop);
        assert!(whole.ids.starts_with(&stopped.ids) && stopped.ids.len() < whole.ids.len());
    }

    #[test]
    fn tokens_are_told_as_they_come_and_one_completion_can_be_dropped() {
        let mut engine = engine(1024);
        let prompt = prompts(&engine, &["Go"]).remove(0);
        let sampling = Sampling {
            max_new_tokens: 12,
            seed: 3,
            ..Sampling::default()
        };
        let extras = Extras {
            likeliest: 2,
            ..Extras::default()
        };
        let ticket = engine.submit_with(&prompt, 3, &sampling, extras).unwrap();
        let mut tokens = vec![Vec::new(); 3];
        let mut completions = vec![None; 3];
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                match event.news {
                    News::Token(draw) => {
                        assert!(draw.likeliest.len() == 2 && draw.likeliest[0].1 >= draw.log_probability);
                        tokens[event.index].push(draw.id);
                        if event.index == 1 && tokens[1].len() == 4 {
                            engine.cancel_one(ticket, 1);
                        }
                    }
                    News::Text(_) => {}
                    News::Finished(completion) => completions[event.index] = Some(completion),
                }
            }
        }
        assert_eq!(tokens[1].len(), 4);
        assert!(completions[1].is_none());
        for index in [0, 2] {
            assert_eq!(completions[index].as_ref().unwrap().ids, tokens[index]);
        }
        assert_eq!(
            engine.queue.pool.free_blocks() * BLOCK_SLOTS,
            engine.queue.pool.slots()
        );
    }

    #[test]
    fn requests_of_different_kinds_share_a_batch() {
        let mut engine = engine(4096);
        let prompts = prompts(&engine, &TEXTS[..3]);
        let sampling = Sampling {
            max_new_tokens: 20,
            seed: 5,
            ..Sampling::default()
        };
        let greedy = Sampling {
            temperature: 0.0,
            ..sampling.clone()
        };
        let alone = engine.generate(&prompts[1..2], 1, &sampling).unwrap()[0][0].clone();
        let dropped = engine.submit(&prompts[0], 4, &greedy).unwrap();
        let kept = engine.submit(&prompts[1], 1, &sampling).unwrap();
        let mut finished = Vec::new();
        for step in 0.. {
            if engine.is_idle() {
                break;
            }
            if step == 3 {
                engine.submit(&prompts[2], 2, &greedy).unwrap();
                engine.cancel(dropped);
            }
            finished.extend(engine.step().unwrap());
        }
        finished.retain(|event| matches!(event.news, News::Finished(_)));
        assert_eq!(finished.len(), 3);
        assert!(finished.contains(&Event {
            ticket: kept,
            index: 0,
            news: News::Finished(alone)
        }));
        assert_eq!(
            engine.queue.pool.free_blocks() * BLOCK_SLOTS,
            engine.queue.pool.slots()
        );
    }

    #[test]
    fn requests_that_cannot_be_met_are_told_why() {
        let mut engine = engine(256);
        let sampling = Sampling {
            max_new_tokens: 10,
            ..Sampling::default()
        };
        let prompt = |ids: Vec<u32>| Prompt {
            ids,
            messages: vec![],
            mode: Mode::NoThink,
        };
        let mut refuse = |prompt: Prompt, sampling: &Sampling| {
            let fine = self::prompts(&engine, &["fine"]).remove(0);
            let error = engine
                .generate(&[fine, prompt], 2, sampling)
                .unwrap_err()
                .to_string();
            assert!(engine.is_idle(), "{error}");
            error
        };
        assert!(refuse(prompt(vec![]), &sampling).contains("at least one token"));
        assert!(refuse(prompt(vec![5, 320]), &sampling).contains("below 320, found 320"));
        assert!(refuse(prompt(vec![5; 2048]), &sampling).contains("2048 of the model's context"));
        assert!(refuse(prompt(vec![5; 241]), &sampling).contains("at least 264 tokens, found 256"));
        assert!(
            refuse(
                prompt(vec![5]),
                &Sampling {
                    top_p: 2.0,
                    ..sampling.clone()
                }
            )
            .contains("top_p")
        );
    }
}
