//! Who runs next, and where its tokens lie.
//!
//! Requests start in the order in which they came. Where the pool runs out of room, prompts that wait give theirs up,
//! then the sequence that started last does: it pauses, is read again once there is room, and goes before anything new.
//! As no request is taken that could not run alone, something always runs.
//!
//! Sequences that are done may leave their keys and values for prompts that begin as they did ([`Memory`]); these are the
//! first to go where room is short.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use kernels::Context;

use crate::Result;
use crate::engine::{Adapted, Extras, Ticket};
use crate::generate::Sampling;
use crate::kv_pool::{BLOCK_SLOTS, KvPool, Place};
use crate::memory::{Memory, common};
use crate::reply::Reply;
use crate::sampler::Sampler;
use crate::tokenizer::Tokenizer;

/// Most sequences in a batch.
const MAX_SEQUENCES: usize = 64;
/// Most rows of a batch that read prompts.
const READING_ROWS: usize = 256;

/// A prompt and those of its completions that have not started.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) ticket: Ticket,
    pub(crate) prompt_ids: Vec<u32>,
    pub(crate) sampling: Sampling,
    pub(crate) extras: Extras,
    /// New tokens a completion may have.
    pub(crate) limit: usize,
    pub(crate) count: usize,
    started: usize,
    place: Place,
    /// How many of the prompt's tokens have keys and values in the pool.
    cached: usize,
    /// What follows the prompt, once all of it is read.
    pub(crate) logits_v: Option<Arc<[f32]>>,
}

/// One completion that has started.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) ticket: Ticket,
    /// Which of its prompt's completions it is.
    pub(crate) index: usize,
    /// The prompt's tokens and the reply's.
    pub(crate) ids: Vec<u32>,
    pub(crate) prompt_length: usize,
    pub(crate) limit: usize,
    pub(crate) log_probabilities: Vec<f32>,
    pub(crate) sampler: Sampler,
    pub(crate) reply: Reply,
    adapted: Option<Adapted>,
    pub(crate) place: Place,
    /// How many of the tokens have keys and values in the pool.
    cached: usize,
}

/// Completions of one prompt that start.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) sequences: Vec<Sequence>,
    /// What their first tokens are drawn from.
    pub(crate) logits_v: Arc<[f32]>,
}

/// The rows of one forward pass.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) ids: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) slots: Vec<u32>,
    pub(crate) contexts: Vec<Context>,
    /// Rows whose logits are wanted, and what for.
    pub(crate) ends: Vec<(usize, End)>,
    /// Whose rows follow each other: adapters, and how many rows take them.
    pub(crate) runs: Vec<(Option<Adapted>, usize)>,
}

/// Tokens that the next forward pass reads.
struct Span {
    adapted: Option<Adapted>,
    tokens: Range<usize>,
    of: End,
    /// Whether they end what there is to read, so that their logits are wanted.
    ends: bool,
}

/// Whose last token a row is: by its position among those that run, or among the groups.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Sequence(usize),
    Group(usize),
}

/// Everything that was asked for and is not done.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) pool: KvPool,
    /// Requests with completions that have not started.
    pub(crate) groups: VecDeque<Group>,
    /// In the order in which they started.
    pub(crate) running: Vec<Sequence>,
    /// Sequences that gave their room up, the first to go on first.
    paused: VecDeque<Sequence>,
    /// What sequences that are done have left in the pool.
    pub(crate) memory: Memory,
    /// Rows that read prompts, or read again what was given up.
    pub(crate) read_tokens: usize,
    /// How often a sequence gave its room up.
    pub(crate) pauses: usize,
}

impl Group {
    pub(crate) fn new(
        ticket: Ticket,
        prompt_ids: &[u32],
        count: usize,
        limit: usize,
        sampling: &Sampling,
        extras: Extras,
    ) -> Self {
        Self {
            ticket,
            prompt_ids: prompt_ids.to_vec(),
            sampling: sampling.clone(),
            extras,
            limit,
            count,
            started: 0,
            place: Place::default(),
            cached: 0,
            logits_v: None,
        }
    }

    fn sequence(&self, index: usize, tokenizer: &Arc<Tokenizer>, place: Place) -> Result<Sequence> {
        Ok(Sequence {
            ticket: self.ticket,
            index,
            ids: self.prompt_ids.clone(),
            prompt_length: self.prompt_ids.len(),
            limit: self.limit,
            log_probabilities: Vec::new(),
            sampler: Sampler::new(&self.sampling, &self.prompt_ids, index)?
                .with_likeliest(self.extras.likeliest)
                .with_constraint(self.extras.constraint.clone()),
            reply: Reply::new(Arc::clone(tokenizer), &self.prompt_ids, &self.sampling.stop),
            adapted: self.extras.adapted,
            place,
            cached: self.prompt_ids.len(),
        })
    }
}

impl Batch {
    /// Adds rows for tokens of a sequence.
    fn push(&mut self, ids: &[u32], place: &Place, span: Span) {
        let Span {
            adapted,
            tokens,
            of,
            ends,
        } = span;
        self.ids.extend_from_slice(&ids[tokens.clone()]);
        self.positions.extend(tokens.start as u32..tokens.end as u32);
        self.slots.extend_from_slice(&place.slots()[tokens.clone()]);
        match self.runs.last_mut() {
            Some((last, rows)) if *last == adapted => *rows += tokens.len(),
            _ => self.runs.push((adapted, tokens.len())),
        }
        self.contexts.extend(tokens.map(|at| Context {
            slots: Arc::clone(place.slots()),
            len: at + 1,
        }));
        if ends {
            self.ends.push((self.ids.len() - 1, of));
        }
    }
}

impl Queue {
    pub(crate) fn new(pool_tokens: usize) -> Self {
        Self {
            pool: KvPool::new(pool_tokens),
            groups: VecDeque::new(),
            running: Vec::new(),
            paused: VecDeque::new(),
            memory: Memory::default(),
            read_tokens: 0,
            pauses: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.running.is_empty() && self.paused.is_empty()
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.groups.clear();
        self.running.clear();
        self.paused.clear();
        self.memory.clear();
        self.pool = KvPool::new(self.pool.slots());
    }

    /// Takes the room of a sequence that is done, and leaves it to others as far as memory goes.
    pub(crate) fn retire(&mut self, sequence: &mut Sequence) {
        let place = std::mem::take(&mut sequence.place);
        let ids = &sequence.ids[..sequence.cached];
        self.memory.keep(sequence.adapted, ids, place, &mut self.pool);
    }

    /// Drops one request.
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        for group in self.groups.iter_mut().filter(|group| group.ticket == ticket) {
            self.pool.release(&mut group.place);
        }
        for sequence in self
            .running
            .iter_mut()
            .filter(|sequence| sequence.ticket == ticket)
        {
            self.pool.release(&mut sequence.place);
        }
        self.groups.retain(|group| group.ticket != ticket);
        self.running.retain(|sequence| sequence.ticket != ticket);
        self.paused.retain(|sequence| sequence.ticket != ticket);
    }

    /// Drops one completion that has started.
    pub(crate) fn cancel_one(&mut self, ticket: Ticket, index: usize) {
        let other = |sequence: &Sequence| sequence.ticket != ticket || sequence.index != index;
        for sequence in self.running.iter_mut().filter(|sequence| !other(sequence)) {
            self.pool.release(&mut sequence.place);
        }
        self.running.retain(other);
        self.paused.retain(other);
    }

    /// Lets paused sequences go on, if there is room for all they have and a block for each that runs.
    pub(crate) fn resume(&mut self) {
        while self.running.len() < MAX_SEQUENCES
            && let Some(mut sequence) = self.paused.pop_front()
        {
            let needed = sequence.ids.len().div_ceil(BLOCK_SLOTS);
            self.memory.make_free(needed + self.running.len(), &mut self.pool);
            while self.running.is_empty() && self.pool.free_blocks() < needed && self.give_up_prompt() {}
            if self.pool.free_blocks() < needed + self.running.len()
                || !self.pool.grow(&mut sequence.place, sequence.ids.len())
            {
                self.paused.push_front(sequence);
                return;
            }
            self.running.push(sequence);
        }
    }

    /// Starts completions of the first prompt, if it has been read. None where nothing can start.
    pub(crate) fn start(&mut self, tokenizer: &Arc<Tokenizer>) -> Result<Option<Start>> {
        if !self.paused.is_empty() {
            return Ok(None);
        }
        loop {
            let Some(group) = self.groups.front_mut() else {
                return Ok(None);
            };
            let Some(logits_v) = group.logits_v.clone() else {
                return Ok(None);
            };
            let length = group.prompt_ids.len();
            let compact = group.place.blocks() == length.div_ceil(BLOCK_SLOTS);
            let mut sequences = Vec::new();
            while group.started < group.count && self.running.len() + sequences.len() < MAX_SEQUENCES {
                self.memory.make_free(1, &mut self.pool);
                let mut place = self.pool.share(&group.place, length);
                if !self.pool.grow(&mut place, length + 1) {
                    self.pool.release(&mut place);
                    break;
                }
                sequences.push(group.sequence(group.started, tokenizer, place)?);
                group.started += 1;
            }
            if group.started == group.count {
                self.pool.release(&mut group.place);
                self.groups.pop_front();
            }
            if !sequences.is_empty() {
                return Ok(Some(Start { sequences, logits_v }));
            }
            if !self.running.is_empty() {
                return Ok(None);
            }
            // Alone and still without room: prompts that wait behind this one hold it, or what it shares with one that is
            // gone lies in more blocks than its own would.
            let alone = self.groups.len() < 2;
            if alone && compact {
                return Ok(None);
            }
            let given_up = self.give_up_prompt();
            if alone || !given_up {
                return Ok(None);
            }
        }
    }

    /// Gives room to prompts whose completions could start soon.
    pub(crate) fn place_prompts(&mut self) {
        if !self.paused.is_empty() {
            return;
        }
        let mut sequences = self.running.len();
        for index in 0..self.groups.len() {
            if sequences >= MAX_SEQUENCES {
                return;
            }
            if self.groups[index].place.slots().is_empty() {
                let group = &mut self.groups[index];
                let recalled = self
                    .memory
                    .recall(group.extras.adapted, &group.prompt_ids, &mut self.pool);
                (group.place, group.cached) = recalled.unwrap_or_default();
                let missing = group.prompt_ids.len() - group.cached;
                // A block more for each that runs, and one for this prompt's first completion.
                let needed = missing.div_ceil(BLOCK_SLOTS) + self.running.len() + 1;
                self.memory.make_free(needed, &mut self.pool);
                if self.pool.free_blocks() < needed
                    || !self.pool.grow(&mut group.place, group.prompt_ids.len())
                {
                    self.pool.release(&mut group.place);
                    group.cached = 0;
                    return;
                }
            }
            let group = &self.groups[index];
            sequences += group.count - group.started;
        }
    }

    /// Gives every running sequence a slot for its next token, at the cost of prompts that wait, then of the
    /// sequences that started last.
    pub(crate) fn make_room(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            self.memory.make_free(1, &mut self.pool);
            let sequence = &mut self.running[index];
            if self.pool.grow(&mut sequence.place, sequence.ids.len()) {
                index += 1;
            } else if !self.give_up_prompt()
                && let Some(mut last) = self.running.pop()
            {
                self.pool.release(&mut last.place);
                last.cached = 0;
                self.paused.push_front(last);
                self.pauses += 1;
            }
        }
    }

    /// Takes the room of the last group that has any; its prompt will be read again.
    fn give_up_prompt(&mut self) -> bool {
        let Some(group) = self
            .groups
            .iter_mut()
            .rev()
            .find(|group| !group.place.slots().is_empty())
        else {
            return false;
        };
        self.pool.release(&mut group.place);
        group.cached = 0;
        group.logits_v = None;
        true
    }

    /// The rows of the next forward pass; marks their tokens as cached.
    pub(crate) fn plan(&mut self) -> Batch {
        let mut spans = Vec::with_capacity(self.running.len());
        let mut budget = READING_ROWS;
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let length = sequence.ids.len();
            let reading = length - sequence.cached > 1;
            let end = if reading {
                length.min(sequence.cached + budget)
            } else {
                length
            };
            if reading {
                budget -= end - sequence.cached;
                self.read_tokens += end - sequence.cached;
            }
            spans.push(Span {
                adapted: sequence.adapted,
                tokens: sequence.cached..end,
                of: End::Sequence(index),
                ends: end == length,
            });
            sequence.cached = end;
        }
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let length = group.prompt_ids.len();
            if group.place.slots().is_empty() || group.cached == length || budget == 0 {
                continue;
            }
            self.share_beginning(index);
            let group = &mut self.groups[index];
            let end = length.min(group.cached + budget);
            budget -= end - group.cached;
            self.read_tokens += end - group.cached;
            spans.push(Span {
                adapted: group.extras.adapted,
                tokens: group.cached..end,
                of: End::Group(index),
                ends: end == length,
            });
            group.cached = end;
        }
        // Rows that take the same adapters side by side.
        spans.sort_by_key(|span| span.adapted);
        let mut batch = Batch::default();
        for span in spans {
            match span.of {
                End::Sequence(index) => {
                    let Sequence { ids, place, .. } = &self.running[index];
                    batch.push(ids, place, span);
                }
                End::Group(index) => {
                    let Group {
                        prompt_ids, place, ..
                    } = &self.groups[index];
                    batch.push(prompt_ids, place, span);
                }
            }
        }
        batch
    }

    /// Lets a prompt of which nothing is read yet begin with whole blocks that another one for the same adapters has read,
    /// or reads in the same pass: a pass writes the keys and values of all its rows before any row attends to them.
    fn share_beginning(&mut self, index: usize) {
        let ids = &self.groups[index].prompt_ids;
        let adapted = self.groups[index].extras.adapted;
        if self.groups[index].cached > 0 {
            return;
        }
        let running = self
            .running
            .iter()
            .filter(|other| other.adapted == adapted)
            .map(|other| (&other.ids[..other.cached.min(other.prompt_length)], &other.place));
        let waiting = self
            .groups
            .iter()
            .filter(|other| other.extras.adapted == adapted)
            .map(|other| (&other.prompt_ids[..other.cached], &other.place));
        let longest = running
            .chain(waiting)
            .map(|(other_ids, place)| (common(other_ids, ids), place))
            .max_by_key(|&(length, _)| length);
        let Some((length, place)) = longest else { return };
        // The last token is read in any case, since its logits are wanted.
        let length = length.min(ids.len() - 1) / BLOCK_SLOTS * BLOCK_SLOTS;
        if length == 0 {
            return;
        }
        let mut shared = self.pool.share(place, length);
        let group = &mut self.groups[index];
        self.pool.release(&mut group.place);
        // There is room: what was given back is more than what is taken.
        if self.pool.grow(&mut shared, group.prompt_ids.len()) {
            (group.place, group.cached) = (shared, length);
        } else {
            self.pool.release(&mut shared);
        }
    }
}
