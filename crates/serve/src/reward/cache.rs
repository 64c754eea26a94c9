//! Verdicts by content, with a limit on their number.

use std::collections::HashMap;

/// The SHA-256 of a question.
pub(crate) type Key = [u8; 32];

/// A map that forgets: two generations, of which the older is dropped when the younger has half the limit. What is
/// asked for again moves to the younger one.
#[derive(Debug)]
pub(crate) struct Cache<T> {
    limit: usize,
    young: HashMap<Key, T>,
    old: HashMap<Key, T>,
}

impl<T: Clone> Cache<T> {
    /// Room for `limit` entries; with 0 nothing is kept.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    /// What is known of a key.
    pub(crate) fn get(&mut self, key: &Key) -> Option<T> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let value = self.old.remove(key)?;
        self.insert(*key, value.clone());
        Some(value)
    }

    /// Remembers a value.
    pub(crate) fn insert(&mut self, key: Key, value: T) {
        if self.limit == 0 {
            return;
        }
        if self.young.len() >= self.limit.div_ceil(2) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Entries held.
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        [number; 32]
    }

    #[test]
    fn it_never_grows_beyond_its_limit_and_keeps_what_is_used() {
        let mut cache = Cache::new(10);
        for number in 0..200 {
            cache.insert(key(number), number);
            assert_eq!(cache.get(&key(0)), Some(0), "after {number}");
            assert!(cache.len() <= 10, "{} entries", cache.len());
        }
        assert_eq!(cache.get(&key(1)), None);
        assert_eq!(cache.get(&key(199)), Some(199));
    }

    #[test]
    fn a_limit_of_zero_keeps_nothing() {
        let mut cache = Cache::new(0);
        cache.insert(key(1), ());
        assert_eq!((cache.get(&key(1)), cache.len()), (None, 0));
    }
}
