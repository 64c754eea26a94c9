//! Batched generation: sequences join and leave the batch at every step.
//!
//! A step runs one forward pass whose rows are the next token of every running sequence and the next tokens of
//! prompts that are being read. A prompt is read once for all its completions, which share its keys and values.
//! Where the pool runs out of room, the sequence that started last gives its room up and is read again later; its
//! tokens so far stand, and so do the ones to come, for a row's result does not depend on the other rows: the
//! kernels sum every row in an order of its own.
//!
//! Left out: keeping a prompt's keys and values beyond its request, speculative decoding.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use kernels::Context;

use crate::chat::Prompt;
use crate::decoder::{Decoder, PoolLayer};
use crate::generate::{Completion, FinishReason, Generate, Sampling};
use crate::kv_pool::{BLOCK_SLOTS, KvPool, Place};
use crate::reply::Reply;
use crate::sampler::{Draw, Sampler, draw_rows};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

pub use crate::reply::Piece;

/// Most sequences in a batch.
const MAX_SEQUENCES: usize = 64;
/// Most rows of a step that read prompts.
const READING_ROWS: usize = 256;

/// Names one call of [`Engine::submit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

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

/// Text, or the end.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// Text was added.
    Text(Piece),
    /// The completion is done.
    Finished(Completion),
}

/// What an engine has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Metrics {
    /// Rows that read prompts, or read again what was given up for want of room.
    pub read_tokens: usize,
    /// Tokens drawn.
    pub tokens: usize,
    /// Seconds spent in steps.
    pub seconds: f64,
    /// How often a sequence gave its room up.
    pub pauses: usize,
}

/// Generates with a decoder in this process.
#[derive(Debug)]
pub struct Engine {
    decoder: Decoder,
    tokenizer: Arc<Tokenizer>,
    layers: Vec<PoolLayer>,
    pool: KvPool,
    /// Requests with completions that have not started, first come first served.
    groups: VecDeque<Group>,
    /// In the order in which they started.
    running: Vec<Sequence>,
    /// Sequences that gave their room up, the first to go on first.
    paused: VecDeque<Sequence>,
    next_ticket: u64,
    metrics: Metrics,
}

/// A prompt and those of its completions that have not started.
#[derive(Debug)]
struct Group {
    ticket: Ticket,
    prompt_ids: Vec<u32>,
    sampling: Sampling,
    /// New tokens a completion may have.
    limit: usize,
    count: usize,
    started: usize,
    place: Place,
    /// How many of the prompt's tokens have keys and values in the pool.
    cached: usize,
    /// What follows the prompt; empty until all of it is read.
    logits_v: Vec<f32>,
}

/// One completion that has started.
#[derive(Debug)]
struct Sequence {
    ticket: Ticket,
    index: usize,
    /// The prompt's tokens and the reply's.
    ids: Vec<u32>,
    prompt_length: usize,
    limit: usize,
    log_probabilities: Vec<f32>,
    sampler: Sampler,
    reply: Reply,
    place: Place,
    /// How many of the tokens have keys and values in the pool.
    cached: usize,
}

/// The rows of one forward pass.
#[derive(Default)]
struct Batch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    contexts: Vec<Context>,
    /// Rows whose logits are wanted, and what for.
    ends: Vec<(usize, End)>,
}

/// Whose last token a row is.
#[derive(Clone, Copy)]
enum End {
    Sequence(usize),
    Group(usize),
}

impl Batch {
    /// Adds rows for the tokens `cached..end` of a sequence.
    fn push(&mut self, ids: &[u32], place: &Place, cached: usize, end: usize) {
        self.ids.extend_from_slice(&ids[cached..end]);
        self.positions.extend(cached as u32..end as u32);
        self.slots.extend_from_slice(&place.slots()[cached..end]);
        self.contexts.extend((cached..end).map(|at| Context { slots: Arc::clone(place.slots()), len: at + 1 }));
    }
}

impl Engine {
    /// An engine with room for the keys and values of `pool_tokens` tokens, prompts and replies together.
    ///
    /// Their memory is taken as it is first used: `2 x layers x key/value heads x head width` numbers a token.
    pub fn new(decoder: Decoder, tokenizer: Arc<Tokenizer>, pool_tokens: usize) -> Result<Self> {
        let pool = KvPool::new(pool_tokens);
        let config = &decoder.config;
        let shape = (pool.slots(), config.key_value_heads, config.head_dim);
        let zeros = || Tensor::zeros(shape, candle_core::DType::F32, decoder.device());
        let layers = (0..config.layers)
            .map(|_| Ok(PoolLayer { k: zeros()?, v: zeros()? }))
            .collect::<Result<Vec<PoolLayer>>>()?;
        Ok(Self {
            decoder,
            tokenizer,
            layers,
            pool,
            groups: VecDeque::new(),
            running: Vec::new(),
            paused: VecDeque::new(),
            next_ticket: 0,
            metrics: Metrics::default(),
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
        self.metrics
    }

    /// Goes on with other weights of the same shape. Refused while sequences run, whose keys and values are the old
    /// weights'.
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
        Ok(())
    }

    /// Queues `count` completions of a prompt; [`Engine::step`] makes them.
    ///
    /// A reply ends with [`FinishReason::Length`] also where the model's context ends.
    ///
    /// # Errors
    /// Sampling that means nothing, a prompt that is empty, has unknown ids or leaves no room in the context, or one
    /// that could never fit the pool together with its longest reply.
    pub fn submit(&mut self, prompt: &Prompt, count: usize, sampling: &Sampling) -> Result<Ticket> {
        sampling.check()?;
        let limit = self.limit(&prompt.ids, sampling.max_new_tokens)?;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        if count > 0 {
            self.groups.push_back(Group {
                ticket,
                prompt_ids: prompt.ids.clone(),
                sampling: sampling.clone(),
                limit,
                count,
                started: 0,
                place: Place::default(),
                cached: 0,
                logits_v: Vec::new(),
            });
        }
        Ok(ticket)
    }

    /// The new tokens a reply to a prompt may have.
    fn limit(&self, prompt_ids: &[u32], max_new_tokens: usize) -> Result<usize> {
        let (context, vocabulary) = (self.decoder.config.max_positions, self.decoder.config.vocabulary);
        let length = prompt_ids.len();
        if length == 0 {
            return Err(Error::Request("prompt: expected at least one token, found none".into()));
        }
        if length >= context {
            return Err(Error::Request(format!(
                "prompt: expected fewer tokens than the {context} of the model's context, found {length}"
            )));
        }
        if let Some(id) = prompt_ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::Request(format!("prompt: expected token ids below {vocabulary}, found {id}")));
        }
        let limit = max_new_tokens.min(context - length);
        let needed = (length.div_ceil(BLOCK_SLOTS) + limit.div_ceil(BLOCK_SLOTS)) * BLOCK_SLOTS;
        if needed > self.pool.slots() {
            return Err(Error::Request(format!(
                "a prompt of {length} tokens with up to {limit} new ones needs a pool of {needed} tokens, found {}",
                self.pool.slots()
            )));
        }
        Ok(limit)
    }

    /// Whether nothing is queued or running.
    pub fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.running.is_empty() && self.paused.is_empty()
    }

    /// Drops a request, whatever it has got so far.
    pub fn cancel(&mut self, ticket: Ticket) {
        for group in self.groups.iter_mut().filter(|group| group.ticket == ticket) {
            self.pool.release(&mut group.place);
        }
        for sequence in self.running.iter_mut().chain(&mut self.paused).filter(|one| one.ticket == ticket) {
            self.pool.release(&mut sequence.place);
        }
        self.groups.retain(|group| group.ticket != ticket);
        self.running.retain(|sequence| sequence.ticket != ticket);
        self.paused.retain(|sequence| sequence.ticket != ticket);
    }

    /// Runs one forward pass and returns what it brought. After an error every request is gone.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let started = Instant::now();
        let mut events = Vec::new();
        let result = self.advance(&mut events);
        if result.is_err() {
            self.clear();
        }
        self.metrics.seconds += started.elapsed().as_secs_f64();
        result.map(|()| events)
    }

    fn advance(&mut self, events: &mut Vec<Event>) -> Result<()> {
        self.resume();
        self.start_sequences(events)?;
        self.place_prompts();
        self.make_room();
        let batch = self.plan();
        if batch.ids.is_empty() {
            return Ok(());
        }
        let Batch { ids, positions, slots, contexts, ends } = batch;
        let hidden_t_d = self.decoder.decode(&ids, &positions, &mut self.layers, &slots, &contexts)?;
        if ends.is_empty() {
            return Ok(());
        }
        let hidden_n_d = if ends.len() == ids.len() {
            hidden_t_d
        } else {
            let rows: Vec<u32> = ends.iter().map(|&(row, _)| row as u32).collect();
            hidden_t_d.index_select(&Tensor::new(rows, hidden_t_d.device())?, 0)?
        };
        let logits_n_v = self.decoder.logits(&hidden_n_d)?.flatten_all()?.to_vec1::<f32>()?;
        self.settle(&ends, &logits_n_v, events)
    }

    /// Lets paused sequences go on, if there is room for all they have and a block for each that runs.
    fn resume(&mut self) {
        while self.running.len() < MAX_SEQUENCES
            && let Some(mut sequence) = self.paused.pop_front()
        {
            let needed = (sequence.ids.len() + 1).div_ceil(BLOCK_SLOTS);
            while self.running.is_empty() && self.pool.free_blocks() < needed && self.give_up_prompt() {}
            let spare = self.running.len();
            if self.pool.free_blocks() < needed + spare
                || !self.pool.grow(&mut sequence.place, sequence.ids.len())
            {
                self.paused.push_front(sequence);
                return;
            }
            self.running.push(sequence);
        }
    }

    /// Starts completions of prompts that have been read, and draws their first tokens.
    fn start_sequences(&mut self, events: &mut Vec<Event>) -> Result<()> {
        while self.paused.is_empty()
            && let Some(group) = self.groups.front_mut()
            && !group.logits_v.is_empty()
        {
            let mut sequences = Vec::new();
            while group.started < group.count && self.running.len() + sequences.len() < MAX_SEQUENCES {
                let length = group.prompt_ids.len();
                let mut place = self.pool.share(&group.place, length);
                if !self.pool.grow(&mut place, length + 1) {
                    self.pool.release(&mut place);
                    break;
                }
                sequences.push(group.sequence(&self.tokenizer, place)?);
                group.started += 1;
            }
            let rows = sequences.iter_mut().map(|sequence| (0, &mut sequence.sampler)).collect();
            let draws = draw_rows(&group.logits_v, group.logits_v.len(), rows)?;
            let all_started = group.started == group.count;
            if all_started && let Some(mut group) = self.groups.pop_front() {
                self.pool.release(&mut group.place);
            }
            let started_none = sequences.is_empty();
            for (mut sequence, draw) in sequences.into_iter().zip(draws) {
                match self.accept(&mut sequence, draw, events)? {
                    Some(reason) => self.finish(sequence, reason, events)?,
                    None => self.running.push(sequence),
                }
            }
            if !all_started {
                // Alone and still without room: prompts that wait behind this one hold it.
                if started_none && self.running.is_empty() && self.groups.len() > 1 && self.give_up_prompt() {
                    continue;
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// Gives room to prompts whose completions could start soon, in the order of the queue.
    fn place_prompts(&mut self) {
        if !self.paused.is_empty() {
            return;
        }
        let mut sequences = self.running.len();
        for group in &mut self.groups {
            if sequences >= MAX_SEQUENCES {
                return;
            }
            if group.place.slots().is_empty() {
                // A block each for what runs, and one for this prompt's first completion.
                let needed = group.prompt_ids.len().div_ceil(BLOCK_SLOTS) + self.running.len() + 1;
                if self.pool.free_blocks() < needed || !self.pool.grow(&mut group.place, group.prompt_ids.len()) {
                    return;
                }
            }
            sequences += group.count - group.started;
        }
    }

    /// Gives every running sequence a slot for its next token, at the cost of prompts that wait, then of the
    /// sequences that started last.
    fn make_room(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            if self.pool.grow(&mut sequence.place, sequence.ids.len()) {
                index += 1;
            } else if !self.give_up_prompt()
                && let Some(mut last) = self.running.pop()
            {
                self.pool.release(&mut last.place);
                last.cached = 0;
                self.paused.push_front(last);
                self.metrics.pauses += 1;
            }
        }
    }

    /// Takes the room of the last prompt in the queue that has any; it will be read again.
    fn give_up_prompt(&mut self) -> bool {
        let Some(group) = self.groups.iter_mut().rev().find(|group| !group.place.slots().is_empty()) else {
            return false;
        };
        self.pool.release(&mut group.place);
        group.cached = 0;
        group.logits_v.clear();
        true
    }

    /// The rows of the next forward pass; marks their tokens as cached.
    fn plan(&mut self) -> Batch {
        let mut batch = Batch::default();
        let mut budget = READING_ROWS;
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let length = sequence.ids.len();
            let reading = length - sequence.cached > 1;
            let end = if reading { length.min(sequence.cached + budget) } else { length };
            if reading {
                budget -= end - sequence.cached;
                self.metrics.read_tokens += end - sequence.cached;
            }
            batch.push(&sequence.ids, &sequence.place, sequence.cached, end);
            sequence.cached = end;
            if end == length {
                batch.ends.push((batch.ids.len() - 1, End::Sequence(index)));
            }
        }
        for (index, group) in self.groups.iter_mut().enumerate() {
            let length = group.prompt_ids.len();
            if group.place.slots().is_empty() || group.cached == length || budget == 0 {
                continue;
            }
            let end = length.min(group.cached + budget);
            budget -= end - group.cached;
            self.metrics.read_tokens += end - group.cached;
            batch.push(&group.prompt_ids, &group.place, group.cached, end);
            group.cached = end;
            if end == length {
                batch.ends.push((batch.ids.len() - 1, End::Group(index)));
            }
        }
        batch
    }

    /// Draws a token for every sequence whose logits have come, and keeps those that follow a prompt.
    fn settle(&mut self, ends: &[(usize, End)], logits_n_v: &[f32], events: &mut Vec<Event>) -> Result<()> {
        let vocabulary = logits_n_v.len() / ends.len();
        let mut sequence_rows = vec![None; self.running.len()];
        for (row, &(_, end)) in ends.iter().enumerate() {
            match end {
                End::Sequence(index) => sequence_rows[index] = Some(row),
                End::Group(index) => {
                    self.groups[index].logits_v = logits_n_v[row * vocabulary..(row + 1) * vocabulary].to_vec();
                }
            }
        }
        let samplers = self.running.iter_mut().map(|sequence| &mut sequence.sampler);
        let rows = samplers.zip(&sequence_rows).filter_map(|(sampler, row)| Some(((*row)?, sampler))).collect();
        let mut draws = draw_rows(logits_n_v, vocabulary, rows)?.into_iter();
        for (mut sequence, row) in std::mem::take(&mut self.running).into_iter().zip(sequence_rows) {
            let reason = match row.and_then(|_| draws.next()) {
                Some(draw) => self.accept(&mut sequence, draw, events)?,
                None => None,
            };
            match reason {
                Some(reason) => self.finish(sequence, reason, events)?,
                None => self.running.push(sequence),
            }
        }
        Ok(())
    }

    /// Adds a drawn token to a sequence and says whether the sequence ends with it.
    fn accept(&mut self, sequence: &mut Sequence, draw: Draw, events: &mut Vec<Event>) -> Result<Option<FinishReason>> {
        self.metrics.tokens += 1;
        sequence.ids.push(draw.id);
        sequence.log_probabilities.push(draw.log_probability);
        if self.tokenizer.end_ids().contains(&draw.id) {
            return Ok(Some(FinishReason::Stop));
        }
        let piece = sequence.reply.push(draw.id)?;
        events.extend(piece.map(|piece| sequence.event(News::Text(piece))));
        if sequence.reply.stopped() {
            return Ok(Some(FinishReason::Stop));
        }
        let length = sequence.ids.len() - sequence.prompt_length;
        Ok((length >= sequence.limit).then_some(FinishReason::Length))
    }

    fn finish(&mut self, mut sequence: Sequence, reason: FinishReason, events: &mut Vec<Event>) -> Result<()> {
        self.pool.release(&mut sequence.place);
        let piece = sequence.reply.finish()?;
        events.extend(piece.map(|piece| sequence.event(News::Text(piece))));
        let (thinking, content) = sequence.reply.split()?;
        let completion = Completion {
            ids: sequence.ids.split_off(sequence.prompt_length),
            log_probabilities: std::mem::take(&mut sequence.log_probabilities),
            thinking,
            content,
            finish_reason: reason,
        };
        events.push(sequence.event(News::Finished(completion)));
        Ok(())
    }

    /// Drops every request.
    fn clear(&mut self) {
        self.groups.clear();
        self.running.clear();
        self.paused.clear();
        self.pool = KvPool::new(self.pool.slots());
    }

    fn require_idle(&self) -> Result<()> {
        if self.is_idle() {
            return Ok(());
        }
        Err(Error::Request("the engine still has requests; step until it is idle, or cancel them".into()))
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
                    News::Text(piece) => on_text(piece),
                    News::Finished(completion) => return Ok(completion),
                }
            }
        }
    }
}

impl Generate for Engine {
    fn generate(&mut self, prompts: &[Prompt], count: usize, sampling: &Sampling) -> Result<Vec<Vec<Completion>>> {
        self.require_idle()?;
        let first = self.next_ticket;
        for (index, prompt) in prompts.iter().enumerate() {
            if let Err(error) = self.submit(prompt, count, sampling) {
                self.clear();
                return Err(match error {
                    Error::Request(what) => Error::Request(format!("prompt {index}: {what}")),
                    other => other,
                });
            }
        }
        let mut finished: Vec<Vec<(usize, Completion)>> = vec![Vec::with_capacity(count); prompts.len()];
        while !self.is_idle() {
            for event in self.step()? {
                if let News::Finished(completion) = event.news {
                    finished[(event.ticket.0 - first) as usize].push((event.index, completion));
                }
            }
        }
        Ok(finished
            .into_iter()
            .map(|mut group| {
                group.sort_unstable_by_key(|&(index, _)| index);
                group.into_iter().map(|(_, completion)| completion).collect()
            })
            .collect())
    }
}

impl Group {
    /// The group's next completion.
    fn sequence(&self, tokenizer: &Arc<Tokenizer>, place: Place) -> Result<Sequence> {
        Ok(Sequence {
            ticket: self.ticket,
            index: self.started,
            ids: self.prompt_ids.clone(),
            prompt_length: self.prompt_ids.len(),
            limit: self.limit,
            log_probabilities: Vec::new(),
            sampler: Sampler::new(&self.sampling, &self.prompt_ids, self.started)?,
            reply: Reply::new(Arc::clone(tokenizer), &self.prompt_ids, &self.sampling.stop),
            place,
            cached: self.prompt_ids.len(),
        })
    }
}

impl Sequence {
    fn event(&self, news: News) -> Event {
        Event { ticket: self.ticket, index: self.index, news }
    }
}
