//! Room for keys and values: blocks of slots, counted by their users.
//!
//! The pool keeps the books; the tensors of each layer (slots x key/value heads x head width) belong to the engine.
//! A [`Place`] lists the slot of every token of a sequence. The list need not fill a block before it goes on in the
//! next, so a group shares its prompt's slots, a half-filled last block included, and each completion goes on in
//! blocks of its own: nothing is ever copied. Prompts that begin alike share the whole blocks of that beginning.

use std::sync::Arc;

/// Slots in a block.
pub const BLOCK_SLOTS: usize = 8;

/// Free blocks and the number of users of each block.
#[derive(Debug)]
pub struct KvPool {
    /// Free blocks, the next one last.
    free: Vec<u32>,
    users: Vec<u32>,
}

/// Where the tokens of one sequence lie; give it back with [`KvPool::release`].
#[derive(Debug, Default)]
pub struct Place {
    blocks: Vec<u32>,
    slots: Arc<[u32]>,
}

impl Place {
    /// The slot of each token, and after them those that the next tokens will get.
    pub fn slots(&self) -> &Arc<[u32]> {
        &self.slots
    }

    /// How many blocks they lie in.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }
}

impl KvPool {
    /// A pool with room for at least `tokens` tokens.
    pub fn new(tokens: usize) -> Self {
        let blocks = tokens.div_ceil(BLOCK_SLOTS) as u32;
        // Low blocks first, so that a large pool touches only the memory it needs.
        Self {
            free: (0..blocks).rev().collect(),
            users: vec![0; blocks as usize],
        }
    }

    /// Slots in the pool.
    pub fn slots(&self) -> usize {
        self.users.len() * BLOCK_SLOTS
    }

    /// Blocks that nobody uses.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Gives the place slots for `length` tokens in all; false, and nothing changed, where the pool has not enough.
    pub fn grow(&mut self, place: &mut Place, length: usize) -> bool {
        let missing = length.saturating_sub(place.slots.len()).div_ceil(BLOCK_SLOTS);
        if missing == 0 {
            return true;
        }
        if missing > self.free.len() {
            return false;
        }
        let taken = self.free.split_off(self.free.len() - missing);
        let mut slots = place.slots.to_vec();
        for &block in taken.iter().rev() {
            self.users[block as usize] = 1;
            slots.extend((0..BLOCK_SLOTS as u32).map(|offset| block * BLOCK_SLOTS as u32 + offset));
            place.blocks.push(block);
        }
        place.slots = slots.into();
        true
    }

    /// A second user of the first `length` tokens of a place.
    pub fn share(&mut self, place: &Place, length: usize) -> Place {
        let slots = &place.slots[..length];
        let mut blocks: Vec<u32> = slots.iter().map(|slot| slot / BLOCK_SLOTS as u32).collect();
        blocks.dedup();
        for &block in &blocks {
            self.users[block as usize] += 1;
        }
        Place {
            blocks,
            slots: slots.into(),
        }
    }

    /// Gives the place up; its blocks are free once no other place uses them.
    pub fn release(&mut self, place: &mut Place) {
        for block in std::mem::take(place).blocks {
            let users = &mut self.users[block as usize];
            *users -= 1;
            if *users == 0 {
                self.free.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_place_grows_by_blocks_and_comes_back() {
        let mut pool = KvPool::new(3 * BLOCK_SLOTS + 2);
        assert_eq!((pool.free_blocks(), pool.slots()), (4, 4 * BLOCK_SLOTS));
        let mut place = Place::default();
        assert!(pool.grow(&mut place, BLOCK_SLOTS + 1));
        assert_eq!((place.slots().len(), pool.free_blocks()), (2 * BLOCK_SLOTS, 2));
        assert!(pool.grow(&mut place, 2 * BLOCK_SLOTS));
        assert_eq!(pool.free_blocks(), 2);
        assert!(!pool.grow(&mut place, 4 * BLOCK_SLOTS + 1));
        assert_eq!((place.slots().len(), pool.free_blocks()), (2 * BLOCK_SLOTS, 2));
        pool.release(&mut place);
        assert_eq!((place.slots().len(), pool.free_blocks()), (0, 4));
    }

    #[test]
    fn a_group_shares_its_prompt_and_owns_its_replies() {
        let mut pool = KvPool::new(8 * BLOCK_SLOTS);
        let length = BLOCK_SLOTS + 3;
        let mut prompt = Place::default();
        assert!(pool.grow(&mut prompt, length));
        let mut replies = [pool.share(&prompt, length), pool.share(&prompt, length)];
        for reply in &mut replies {
            assert!(pool.grow(reply, length + 1));
            assert_eq!(reply.slots()[..length], prompt.slots()[..length]);
            assert_eq!(reply.slots().len(), length + BLOCK_SLOTS);
        }
        let own: BTreeSet<u32> = replies
            .iter()
            .flat_map(|reply| reply.slots()[length..].to_vec())
            .collect();
        assert_eq!(own.len(), 2 * BLOCK_SLOTS, "two replies never write one slot");
        assert!(prompt.slots().iter().all(|slot| !own.contains(slot)));

        pool.release(&mut prompt);
        assert_eq!(pool.free_blocks(), 4, "the replies still read the prompt");
        let [mut first, mut second] = replies;
        pool.release(&mut first);
        assert_eq!(pool.free_blocks(), 5);
        pool.release(&mut second);
        assert_eq!(pool.free_blocks(), 8);
    }

    #[test]
    fn a_shared_beginning_holds_no_more_than_its_blocks() {
        let mut pool = KvPool::new(8 * BLOCK_SLOTS);
        let mut long = Place::default();
        assert!(pool.grow(&mut long, 4 * BLOCK_SLOTS));
        let mut beginning = pool.share(&long, BLOCK_SLOTS);
        assert!(pool.grow(&mut beginning, 2 * BLOCK_SLOTS));
        assert_eq!(pool.free_blocks(), 3);
        pool.release(&mut long);
        assert_eq!(pool.free_blocks(), 6);
        pool.release(&mut beginning);
        assert_eq!(pool.free_blocks(), 8);
    }
}
