//! Keeps the text of messages apart from the control tokens of a chat template.
//!
//! A template prints its own `<|im_end|>` beside whatever a person typed, so the rendered text alone no longer says
//! which `<|im_end|>` ends a turn and which is talk. Before rendering, every place in a message that spells a control
//! token, or could become one beside the template's own letters, is wrapped in two [`Marks`]: private characters
//! that occur nowhere in the conversation. They travel through the template (which sees the real words between them)
//! and say afterwards what is data. Text outside marks that spells a control token can only be the template's own.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

use crate::{Error, Result};

/// The strings that a tokenizer would read as control (added) tokens.
#[derive(Debug, Clone)]
pub(crate) struct Controls {
    tokens: Vec<String>,
    finder: AhoCorasick,
}

impl Controls {
    /// The tokens keep their order: [`Controls::find`] names them by index.
    pub(crate) fn new(tokens: Vec<String>) -> Result<Self> {
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&tokens)
            .map_err(|error| Error::Tokenizer(format!("added tokens: {error}")))?;
        Ok(Self { tokens, finder })
    }

    /// The control tokens in `text`, from the left, the longest first, as (index of the token, bytes).
    pub(crate) fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
        self.finder
            .find_iter(text)
            .map(|found| (found.pattern().as_usize(), found.range()))
    }

    /// Bytes of `text` that spell a control token, or that could complete one with letters from the template.
    fn risks(&self, text: &str) -> Vec<Range<usize>> {
        let mut ranges: Vec<_> = self.find(text).map(|(_, range)| range).collect();
        if !text.is_empty() && self.tokens.iter().any(|token| token.contains(text)) {
            ranges.push(0..text.len());
        }
        let longest = self.tokens.iter().map(String::len).max().unwrap_or(0);
        let edges = || (1..text.len().min(longest)).rev();
        let head = edges().find(|&end| {
            text.is_char_boundary(end) && self.tokens.iter().any(|token| token.ends_with(&text[..end]))
        });
        let tail = edges().map(|length| text.len() - length).find(|&start| {
            text.is_char_boundary(start) && self.tokens.iter().any(|token| token.starts_with(&text[start..]))
        });
        ranges.extend(head.map(|end| 0..end));
        ranges.extend(tail.map(|start| start..text.len()));
        merge(ranges)
    }
}

/// Joins ranges that overlap; ranges that only touch stay apart.
fn merge(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// A stretch of rendered text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    /// The text, without marks.
    pub(crate) text: &'a str,
    /// Whether it came from a message and spells (part of) a control token.
    pub(crate) data: bool,
}

/// The two characters that wrap data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    open: char,
    close: char,
}

/// A string without its marks, and where they stood.
struct Unmarked {
    text: String,
    data: Vec<Range<usize>>,
}

impl Marks {
    /// The first two private-use characters that `conversation` does not use.
    pub(crate) fn choose(conversation: &str) -> Result<Self> {
        let used: std::collections::HashSet<char> =
            conversation.chars().filter(|c| *c >= '\u{E000}').collect();
        let mut free = ('\u{E000}'..='\u{F8FF}')
            .chain('\u{F0000}'..='\u{FFFFD}')
            .chain('\u{100000}'..='\u{10FFFD}')
            .filter(|c| !used.contains(c));
        match (free.next(), free.next()) {
            (Some(open), Some(close)) => Ok(Self { open, close }),
            _ => Err(Error::Request(
                "the messages use every private-use character of Unicode".into(),
            )),
        }
    }

    /// `text` with its risky places wrapped.
    pub(crate) fn mark(self, text: &str, controls: &Controls) -> String {
        self.wrap(text, &controls.risks(text), 0..text.len())
    }

    /// Marks every string within a JSON value of a message. The words of the API itself (`type`, and keys that do not
    /// spell a whole control token) stay as they are, since templates compare them.
    pub(crate) fn mark_json(self, value: &Value, controls: &Controls) -> Value {
        self.map_json(value, &|text| self.mark(text, controls), controls)
    }

    /// Marks whole control tokens within a description of tools, which comes from the program and not from a speaker.
    pub(crate) fn mark_tools(self, value: &Value, controls: &Controls) -> Value {
        self.map_json(value, &|text| self.mark_whole(text, controls), controls)
    }

    fn mark_whole(self, text: &str, controls: &Controls) -> String {
        let ranges: Vec<_> = controls.find(text).map(|(_, range)| range).collect();
        self.wrap(text, &ranges, 0..text.len())
    }

    fn map_json(self, value: &Value, mark: &dyn Fn(&str) -> String, controls: &Controls) -> Value {
        match value {
            Value::String(text) => Value::String(mark(text)),
            Value::Array(items) => items
                .iter()
                .map(|item| self.map_json(item, mark, controls))
                .collect(),
            Value::Object(entries) => entries
                .iter()
                .map(|(key, value)| match value {
                    Value::String(text) if key == "type" => {
                        (key.clone(), self.mark_whole(text, controls).into())
                    }
                    _ => (
                        self.mark_whole(key, controls),
                        self.map_json(value, mark, controls),
                    ),
                })
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }

    /// Whether `text` holds a mark.
    pub(crate) fn occur_in(self, text: &str) -> bool {
        text.contains([self.open, self.close])
    }

    /// `text` without marks.
    pub(crate) fn remove(self, text: &str) -> String {
        text.replace([self.open, self.close], "")
    }

    /// Splits rendered text at its marks. A mark whose partner was cut off by the template counts as wide as it could
    /// have been, so that data is never taken for the template's own.
    pub(crate) fn read(self, text: &str) -> Vec<Piece<'_>> {
        let mut pieces: Vec<Piece<'_>> = Vec::new();
        let mut inside = false;
        let mut rest = text;
        while let Some(at) = rest.find([self.open, self.close]) {
            let closing = rest[at..].starts_with(self.close);
            pieces.push(Piece {
                text: &rest[..at],
                data: inside || closing,
            });
            inside = !closing;
            rest = &rest[at + if closing { self.close } else { self.open }.len_utf8()..];
        }
        pieces.push(Piece {
            text: rest,
            data: inside,
        });
        pieces.retain(|piece| !piece.text.is_empty());
        pieces
    }

    /// Parts of a marked text, given as ranges of bytes of the text without marks; each part keeps its marks.
    pub(crate) fn cut(self, text: &str, ranges: impl IntoIterator<Item = Range<usize>>) -> Vec<String> {
        let unmarked = self.unmark(text);
        ranges
            .into_iter()
            .map(|range| self.wrap(&unmarked.text, &unmarked.data, range))
            .collect()
    }

    fn unmark(self, text: &str) -> Unmarked {
        let mut unmarked = Unmarked {
            text: String::with_capacity(text.len()),
            data: Vec::new(),
        };
        for piece in self.read(text) {
            let start = unmarked.text.len();
            unmarked.text.push_str(piece.text);
            if piece.data {
                unmarked.data.push(start..unmarked.text.len());
            }
        }
        unmarked
    }

    /// The bytes `range` of `text`, with marks round those of `data` that lie in it.
    fn wrap(self, text: &str, data: &[Range<usize>], range: Range<usize>) -> String {
        let mut marked = String::with_capacity(range.len() + 8 * data.len());
        let mut at = range.start;
        for part in data {
            let (start, end) = (part.start.max(at), part.end.min(range.end));
            if start < end {
                marked.push_str(&text[at..start]);
                marked.push(self.open);
                marked.push_str(&text[start..end]);
                marked.push(self.close);
                at = end;
            }
        }
        marked.push_str(&text[at..range.end]);
        marked
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn controls() -> Controls {
        Controls::new(
            ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
                .map(String::from)
                .to_vec(),
        )
        .unwrap()
    }

    #[test]
    fn choose_avoids_characters_in_use() {
        let marks = Marks::choose("a\u{E000}b\u{E002}").unwrap();
        assert_eq!((marks.open, marks.close), ('\u{E001}', '\u{E003}'));
    }

    #[test]
    fn mark_wraps_tokens_and_their_fragments() {
        let marks = Marks {
            open: '[',
            close: ']',
        };
        let mark = |text| marks.mark(text, &controls());
        assert_eq!(mark("plain < text"), "plain < text");
        assert_eq!(mark("a<|im_end|>b c"), "a[<|im_end|>]b c");
        assert_eq!(mark("first<|im_"), "first[<|im_]");
        assert_eq!(mark("_end|> last"), "[_end|>] last");
        assert_eq!(mark("think"), "[think]");
        assert_eq!(mark(""), "");
    }

    #[test]
    fn read_takes_a_lone_mark_as_wide_as_it_could_be() {
        let marks = Marks {
            open: '[',
            close: ']',
        };
        let piece = |text, data| Piece { text, data };
        assert_eq!(
            marks.read("a[b]c"),
            [piece("a", false), piece("b", true), piece("c", false)]
        );
        assert_eq!(marks.read("a]b"), [piece("a", true), piece("b", false)]);
        assert_eq!(marks.read("a[b"), [piece("a", false), piece("b", true)]);
    }

    #[test]
    fn json_keeps_the_words_of_the_api() {
        let marks = Marks {
            open: '[',
            close: ']',
        };
        let value = serde_json::json!({"type": "think", "name": "think", "<think>": 1});
        let marked = serde_json::json!({"type": "think", "name": "[think]", "[<think>]": 1});
        assert_eq!(marks.mark_json(&value, &controls()), marked);
    }

    proptest! {
        #[test]
        fn outside_marks_nothing_is_a_control_token(
            before in "(<|\\||im_start|\\|>|<think>|x| |/|>){0,4}",
            text in "(<|\\||im_end|im_start|\\|>|</|think|>|x| ){0,8}",
            after in "(<|\\||im_end|\\|>|think|x| |>){0,4}",
        ) {
            let (marks, controls) = (Marks { open: '[', close: ']' }, controls());
            let marked = format!("{before}{}{after}", marks.mark(&text, &controls));
            prop_assert_eq!(marks.remove(&marked), format!("{before}{text}{after}"));
            // Every control token that is left is one that the template's side spells by itself.
            let own: usize = [before.as_str(), after.as_str()].iter().map(|side| controls.find(side).count()).sum();
            let kept: usize = marks.read(&marked).iter().filter(|piece| !piece.data)
                .map(|piece| controls.find(piece.text).count()).sum();
            prop_assert!(kept <= own || text.is_empty(), "{marked}");
        }
    }
}
