//! Keys and values of sequences that are done, for prompts that begin as they did: the next turn of a conversation.

use std::collections::VecDeque;

use crate::engine::Adapted;
use crate::kv_pool::{BLOCK_SLOTS, KvPool, Place};

/// What is remembered lies in the pool, and gives way wherever room there is short.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The one that was of use last at the end.
    sequences: VecDeque<Remembered>,
    /// Most slots that these may have; none are kept at first.
    most: usize,
}

#[derive(Debug)]
struct Remembered {
    adapted: Option<Adapted>,
    /// The tokens that have keys and values.
    ids: Vec<u32>,
    place: Place,
}

impl Memory {
    /// Remembers up to this many slots from now on.
    pub(crate) fn set_most(&mut self, slots: usize, pool: &mut KvPool) {
        self.most = slots;
        while self.slots() > slots && self.forget(pool) {}
    }

    fn slots(&self) -> usize {
        let sequences = self.sequences.iter();
        sequences.map(|sequence| sequence.place.slots().len()).sum()
    }

    /// Takes what a sequence that is done has in the pool: `ids`, made with these adapters.
    pub(crate) fn keep(
        &mut self,
        adapted: Option<Adapted>,
        ids: &[u32],
        mut place: Place,
        pool: &mut KvPool,
    ) {
        if self.most == 0 {
            pool.release(&mut place);
            return;
        }
        // Of a conversation, the last turn has all that the turns before it had.
        self.sequences.retain_mut(|other| {
            let contained = other.adapted == adapted && ids.starts_with(&other.ids);
            if contained {
                pool.release(&mut other.place);
            }
            !contained
        });
        self.sequences.push_back(Remembered {
            adapted,
            ids: ids.to_vec(),
            place,
        });
        self.set_most(self.most, pool);
    }

    /// A place that has the keys and values of a prompt's first tokens, and how many these are; not of its last token,
    /// whose logits are wanted in any case.
    pub(crate) fn recall(
        &mut self,
        adapted: Option<Adapted>,
        prompt_ids: &[u32],
        pool: &mut KvPool,
    ) -> Option<(Place, usize)> {
        let alike = self.sequences.iter().enumerate();
        let alike = alike.filter(|(_, sequence)| sequence.adapted == adapted);
        let (length, at) = alike
            .map(|(at, sequence)| (common(&sequence.ids, prompt_ids), at))
            .max()?;
        let length = length.min(prompt_ids.len().saturating_sub(1));
        if length < BLOCK_SLOTS {
            return None;
        }
        let found = self.sequences.remove(at)?;
        let place = pool.share(&found.place, length);
        self.sequences.push_back(found);
        Some((place, length))
    }

    /// Has this many blocks of the pool free, as far as forgetting helps.
    pub(crate) fn make_free(&mut self, blocks: usize, pool: &mut KvPool) {
        while pool.free_blocks() < blocks && self.forget(pool) {}
    }

    /// Gives up what was of no use for the longest; false where nothing is left.
    fn forget(&mut self, pool: &mut KvPool) -> bool {
        let oldest = self.sequences.pop_front();
        let forgets = oldest.is_some();
        if let Some(mut oldest) = oldest {
            pool.release(&mut oldest.place);
        }
        forgets
    }

    /// Forgets everything, of a pool that is gone.
    pub(crate) fn clear(&mut self) {
        self.sequences.clear();
    }
}

/// How many tokens two sequences begin with in common.
pub(crate) fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter()
        .zip(other)
        .take_while(|(one, other)| one == other)
        .count()
}
