//! A reply's text as its tokens arrive: whole characters, thinking apart from content, nothing past a stop text.

use std::sync::Arc;

use crate::Result;
use crate::text::Text;
use crate::thinking;
use crate::tokenizer::Tokenizer;

/// Text that was added to a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Of the thinking.
    Thinking(String),
    /// Of the answer.
    Content(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Thinking,
    Content,
}

/// Decodes one reply token by token.
///
/// The pieces put together are what [`thinking::split`] says of the whole, with one exception that no stream can
/// avoid: after a second `</think>` the content shown so far turns out to have been thinking. Stop texts are looked
/// for in the content only, so that none ends a thought; the content ends before the first one, and text that may
/// yet become one is held back.
#[derive(Debug)]
pub(crate) struct Reply {
    tokenizer: Arc<Tokenizer>,
    stop: Vec<String>,
    opened: bool,
    open: Option<u32>,
    close: Option<u32>,
    ids: Vec<u32>,
    text: Text,
    section: Section,
    /// Whether newlines at the head of the section are still to be dropped.
    trimming: bool,
    /// Text of the section that is not shown yet.
    held: String,
    /// Content shown so far.
    content: String,
    stopped: bool,
}

impl Reply {
    /// An empty reply to a prompt.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, prompt_ids: &[u32], stop: &[String]) -> Self {
        let (open, close) = (tokenizer.id("<think>"), tokenizer.id("</think>"));
        let last = prompt_ids
            .iter()
            .rev()
            .map(|&id| Some(id))
            .find(|&id| id == open || id == close);
        let opened = open.is_some() && last == Some(open);
        Self {
            text: Text::new(Arc::clone(&tokenizer)),
            tokenizer,
            stop: stop.to_vec(),
            opened,
            open,
            close,
            ids: Vec::new(),
            section: if opened {
                Section::Thinking
            } else {
                Section::Content
            },
            trimming: opened,
            held: String::new(),
            content: String::new(),
            stopped: false,
        }
    }

    /// Whether a stop text has come up; nothing is to be added after it.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Adds a token (not one that ends the turn) and returns the text that can be shown because of it.
    pub(crate) fn push(&mut self, id: u32) -> Result<Option<Piece>> {
        self.ids.push(id);
        if Some(id) == self.open && self.ids.len() == 1 {
            self.enter(Section::Thinking);
            return Ok(None);
        }
        if Some(id) == self.close {
            self.held += &self.text.finish()?;
            let piece = self.show(true);
            self.content.clear();
            self.enter(Section::Content);
            return Ok(piece);
        }
        self.held += &self.text.push(id)?;
        Ok(self.show(false))
    }

    /// Shows what was held back, at the end of the reply.
    pub(crate) fn finish(&mut self) -> Result<Option<Piece>> {
        if self.stopped {
            return Ok(None);
        }
        self.held += &self.text.finish()?;
        Ok(self.show(true))
    }

    /// Thinking and content of the whole.
    pub(crate) fn split(&self) -> Result<(Option<String>, String)> {
        let (thinking, content) = thinking::split(&self.tokenizer, &self.ids, self.opened)?;
        Ok((
            thinking,
            if self.stopped {
                self.content.clone()
            } else {
                content
            },
        ))
    }

    fn enter(&mut self, section: Section) {
        self.section = section;
        self.trimming = true;
        self.held.clear();
    }

    /// Takes what can be shown out of the held text; all of it at the section's end.
    fn show(&mut self, last: bool) -> Option<Piece> {
        if self.trimming {
            let kept = self.held.trim_start_matches('\n').len();
            self.held.drain(..self.held.len() - kept);
            self.trimming = self.held.is_empty();
        }
        let found = match self.section {
            Section::Thinking => None,
            Section::Content => self
                .stop
                .iter()
                .filter_map(|stop| self.held.find(stop.as_str()))
                .min(),
        };
        let shown = match (self.section, found) {
            (Section::Thinking, _) => self.held.trim_end_matches('\n').len(),
            (Section::Content, Some(cut)) => cut,
            (Section::Content, None) if last => self.held.len(),
            (Section::Content, None) => self.held.len() - self.undecided(),
        };
        let text: String = self.held.drain(..shown).collect();
        if found.is_some() {
            self.stopped = true;
            self.held.clear();
        }
        if self.section == Section::Content {
            self.content.push_str(&text);
        }
        if text.is_empty() {
            return None;
        }
        Some(match self.section {
            Section::Thinking => Piece::Thinking(text),
            Section::Content => Piece::Content(text),
        })
    }

    /// Length of the longest end of the held text that a stop text starts with.
    fn undecided(&self) -> usize {
        let starts = self.held.char_indices().map(|(start, _)| &self.held[start..]);
        let longest = starts
            .filter(|end| self.stop.iter().any(|stop| stop.starts_with(end)))
            .map(str::len)
            .max();
        longest.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::small;

    /// Feeds text and returns the thinking and the content that were shown, and the reply.
    fn feed(prompt: &str, text: &str, stop: &[&str]) -> (String, String, Reply) {
        let tokenizer = Arc::new(small());
        let prompt = tokenizer.encode_control(prompt).unwrap();
        let ids = tokenizer.encode_control(text).unwrap();
        let stop: Vec<String> = stop.iter().map(|&stop| stop.to_owned()).collect();
        let mut reply = Reply::new(tokenizer, &prompt, &stop);
        let (mut thinking, mut content) = (String::new(), String::new());
        let mut keep = |piece| match piece {
            Some(Piece::Thinking(text)) => thinking.push_str(&text),
            Some(Piece::Content(text)) => content.push_str(&text),
            None => {}
        };
        for id in ids {
            keep(reply.push(id).unwrap());
            if reply.stopped() {
                break;
            }
        }
        keep(reply.finish().unwrap());
        (thinking, content, reply)
    }

    #[test]
    fn shown_text_is_the_split_of_the_whole() {
        for (prompt, text) in [
            ("", "plain text\n"),
            ("", "größer 😀 than"),
            ("", "\n\nleading lines stay"),
            ("", "<think>\n\n</think>\n\nyes"),
            ("", "<think>\nhm\n\nwell\n</think>\n\nyes\n"),
            ("<think>\n", "hm\n</think>\n\nyes"),
            ("<think>\n", "cut off while thin\n"),
            ("<think>\n\n</think>\n\n", "not a thought"),
            ("", ""),
        ] {
            let (thinking, content, reply) = feed(prompt, text, &[]);
            let whole = reply.split().unwrap();
            assert_eq!(
                (thinking.as_str(), content.as_str()),
                (whole.0.as_deref().unwrap_or(""), whole.1.as_str())
            );
        }
        assert_eq!(feed("", "größer 😀", &[]).1, "größer 😀");
    }

    #[test]
    fn characters_are_shown_whole() {
        let tokenizer = Arc::new(small());
        let ids = tokenizer.encode_plain("a😀").unwrap();
        assert_eq!(ids.len(), 5);
        let mut reply = Reply::new(tokenizer, &[], &[]);
        assert_eq!(reply.push(ids[0]).unwrap(), Some(Piece::Content("a".into())));
        for &id in &ids[1..4] {
            assert_eq!(reply.push(id).unwrap(), None);
        }
        assert_eq!(reply.push(ids[4]).unwrap(), Some(Piece::Content("😀".into())));
    }

    #[test]
    fn a_reply_cut_within_a_character_shows_what_the_whole_has() {
        let tokenizer = Arc::new(small());
        let ids = tokenizer.encode_plain("a😀").unwrap();
        let mut reply = Reply::new(tokenizer, &[], &[]);
        let mut content = String::new();
        for piece in [reply.push(ids[0]), reply.push(ids[1]), reply.finish()] {
            if let Some(Piece::Content(text)) = piece.unwrap() {
                content.push_str(&text);
            }
        }
        assert_eq!(content, reply.split().unwrap().1);
    }

    #[test]
    fn the_stop_text_is_cut_off() {
        let (_, content, reply) = feed("", "one END two END", &["END"]);
        assert!(reply.stopped());
        assert_eq!(
            (content.as_str(), reply.split().unwrap().1.as_str()),
            ("one ", "one ")
        );
        let (_, content, reply) = feed("", "one EN two", &["END"]);
        assert!(!reply.stopped());
        assert_eq!(content, "one EN two");
        assert_eq!(feed("", "abcd", &["cd", "bcd"]).1, "a");
        assert_eq!(feed("", "ends in EN", &["END"]).1, "ends in EN");
        assert_eq!(feed("", "ENEND", &["END"]).1, "EN");
        assert_eq!(feed("", "größer", &["öß"]).1, "gr");
    }

    #[test]
    fn text_that_may_become_a_stop_is_held_back() {
        let tokenizer = Arc::new(small());
        let ids = tokenizer.encode_plain("xEN").unwrap();
        let mut reply = Reply::new(tokenizer, &[], &["END".into()]);
        assert_eq!(reply.push(ids[0]).unwrap(), Some(Piece::Content("x".into())));
        assert_eq!(reply.push(ids[1]).unwrap(), None);
        assert_eq!(reply.push(ids[2]).unwrap(), None);
        assert_eq!(reply.push(ids[0]).unwrap(), Some(Piece::Content("ENx".into())));
    }

    #[test]
    fn no_stop_text_ends_a_thought() {
        let (thinking, content, reply) = feed("", "<think>\nEND of\n</think>\n\nyes END", &["END"]);
        assert_eq!((thinking.as_str(), content.as_str()), ("END of", "yes "));
        assert_eq!(reply.split().unwrap(), (Some("END of".into()), "yes ".into()));
    }

    #[test]
    fn a_second_close_makes_thinking_of_what_came_before() {
        let (_, _, reply) = feed("", "<think>a</think>b</think>c END", &[" END"]);
        assert_eq!(reply.split().unwrap(), (Some("a</think>b".into()), "c".into()));
    }
}
