//! Tokens into text as they arrive, whole characters at a time.

use std::sync::Arc;

use crate::Result;
use crate::tokenizer::Tokenizer;

/// Most tokens at the end of a text that may be part of a character yet to end: it has four bytes at most, and a token
/// has one at least.
const PART_TOKENS: usize = 3;

/// Decodes one text token by token, in time and memory that do not grow with it.
#[derive(Debug, Clone)]
pub struct Text {
    tokenizer: Arc<Tokenizer>,
    /// The last tokens that became text, which the next ones are decoded together with, and those that are not text yet
    /// because they may be part of a character.
    ids: Vec<u32>,
    /// Where the latter start.
    unread: usize,
    /// What the former say by themselves.
    before: String,
}

impl Text {
    /// A text without tokens.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            ids: Vec::new(),
            unread: 0,
            before: String::new(),
        }
    }

    /// Adds a token and returns what can be read because of it. Special tokens have no text.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let all = self.tokenizer.decode(&self.ids, true)?;
        if !all.ends_with('\u{FFFD}') {
            return self.read(self.ids.len(), &all);
        }
        // One without text stands within no character, and would only be in the way.
        if self.tokenizer.decode(&[id], true)?.is_empty() {
            self.ids.pop();
            return Ok(String::new());
        }
        // More of them than a character has are read up to where none stands across: text that is no text, and the one
        // character that looks like it.
        let many = self.ids.len() - self.unread > PART_TOKENS;
        let ends = (self.unread + 1..self.ids.len()).rev().take(PART_TOKENS + 1);
        for end in ends.filter(|_| many) {
            let head = self.tokenizer.decode(&self.ids[..end], true)?;
            let tail = self.tokenizer.decode(&self.ids[end..], true)?;
            if all.strip_prefix(head.as_str()) == Some(tail.as_str()) {
                return self.read(end, &head);
            }
        }
        Ok(String::new())
    }

    /// What has not been read, whether its last character has ended or not; a new text begins.
    pub fn finish(&mut self) -> Result<String> {
        let all = self.tokenizer.decode(&self.ids, true)?;
        let rest = all
            .strip_prefix(self.before.as_str())
            .unwrap_or_default()
            .to_owned();
        self.ids.clear();
        self.unread = 0;
        self.before.clear();
        Ok(rest)
    }

    /// Takes the tokens up to `end`, which say `all`, as read.
    fn read(&mut self, end: usize, all: &str) -> Result<String> {
        let new = all
            .strip_prefix(self.before.as_str())
            .unwrap_or_default()
            .to_owned();
        self.ids.drain(..self.unread);
        self.unread = end - self.unread;
        self.before = self.tokenizer.decode(&self.ids[..self.unread], true)?;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeded;

    fn text() -> Text {
        Text::new(Arc::new(seeded::tokenizer().unwrap()))
    }

    #[test]
    fn a_character_is_read_when_its_last_byte_comes() {
        let mut text = text();
        let pieces: Vec<String> = "aé€😀"
            .bytes()
            .map(|byte| text.push(byte.into()).unwrap())
            .collect();
        assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "😀"]);
        assert_eq!(text.finish().unwrap(), "");
    }

    #[test]
    fn bytes_that_are_no_text_do_not_pile_up() {
        let mut text = text();
        let mut found = String::new();
        for _ in 0..1000 {
            found += &text.push(0xFF).unwrap();
            // One without text, and one that is no token.
            found += &text.push(258).unwrap();
            found += &text.push(300).unwrap();
            assert!(text.ids.len() <= 2 * (PART_TOKENS + 1));
        }
        assert!(found.chars().count() >= 997);
        found += &text.finish().unwrap();
        assert_eq!(found, "\u{FFFD}".repeat(1000));
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_whole(parts in proptest::collection::vec(prop_oneof![
            any::<char>().prop_map(|letter| letter.to_string().into_bytes()),
            proptest::collection::vec(any::<u8>(), 1..4),
            prop::sample::select(vec![0xE2, 0x82, 0xF0, 0x9F, 0xC3, 0xED, 0xA0]).prop_map(|byte| vec![byte]),
        ], 0..20)) {
            let bytes = parts.concat();
            let mut text = text();
            let mut found = String::new();
            for &byte in &bytes {
                found += &text.push(byte.into()).unwrap();
                // A token without text changes nothing.
                if byte % 3 == 0 {
                    found += &text.push(258).unwrap();
                }
            }
            found += &text.finish().unwrap();
            prop_assert_eq!(found, String::from_utf8_lossy(&bytes));
        }
    }
}
