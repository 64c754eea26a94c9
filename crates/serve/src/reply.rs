//! One reply as its tokens arrive: text, thinking apart from content, nothing past a stop text, tool calls found.

use std::sync::Arc;

use model::text::Text;
use model::tokenizer::Tokenizer;

use crate::error::Result;
use crate::reasoning::{self, Parser, Reasoning, partial};
use crate::tools::{self, Call, Calls};

/// What a token added to a reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// Thinking.
    Thinking(String),
    /// Content.
    Content(String),
    /// A tool call.
    Call(Call),
}

/// How a reply is to be read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Which convention the model thinks by.
    pub parser: Parser,
    /// Whether this reply thinks.
    pub thinks: bool,
    /// Texts that end the content; they are not part of it and do not act inside the thinking.
    pub stop: Vec<String>,
    /// Whether tool calls are looked for.
    pub tools: bool,
}

/// Reads one reply. A clone is the reply as far as it has come, from where it may go on otherwise.
#[derive(Clone)]
pub struct Reply {
    text: Text,
    reasoning: Reasoning,
    stop: Vec<String>,
    /// Content that may yet be the beginning of a stop text.
    held: String,
    stopped: bool,
    calls: Option<Calls>,
    tokens: usize,
    thinking_tokens: usize,
}

impl Reply {
    /// A reply of which nothing is known yet.
    pub fn new(tokenizer: Arc<Tokenizer>, reading: &Reading) -> Self {
        Self {
            text: Text::new(tokenizer),
            reasoning: Reasoning::new(reading.parser, reading.thinks),
            stop: reading.stop.clone(),
            held: String::new(),
            stopped: false,
            calls: reading.tools.then(Calls::default),
            tokens: 0,
            thinking_tokens: 0,
        }
    }

    /// Whether a stop text has come up; nothing is to be added after it.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Whether a tool call was found.
    pub fn called(&self) -> bool {
        self.calls.as_ref().is_some_and(Calls::any)
    }

    /// How many tokens it has, one that ended it included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// How many of them were thinking, its tags included.
    pub fn thinking_tokens(&self) -> usize {
        self.thinking_tokens
    }

    /// Adds a token; `ends` says that it ends the turn and has no text.
    pub fn push(&mut self, id: u32, ends: bool) -> Result<Vec<Delta>> {
        self.tokens += 1;
        self.thinking_tokens += usize::from(self.reasoning.thinking() && !ends);
        if ends {
            return Ok(Vec::new());
        }
        let text = self.text.push(id)?;
        let parts = self.reasoning.push(&text);
        Ok(self.read(parts, false))
    }

    /// What was held back, at the end of the reply.
    pub fn finish(&mut self) -> Result<Vec<Delta>> {
        if self.stopped {
            return Ok(self.finish_calls());
        }
        let text = self.text.finish()?;
        let mut parts = self.reasoning.push(&text);
        parts.extend(self.reasoning.finish());
        let mut deltas = self.read(parts, true);
        deltas.extend(self.finish_calls());
        Ok(deltas)
    }

    fn read(&mut self, parts: Vec<reasoning::Part>, last: bool) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for part in parts {
            match part {
                reasoning::Part::Thinking(text) => deltas.push(Delta::Thinking(text)),
                reasoning::Part::Content(text) => self.held.push_str(&text),
            }
        }
        let content = self.before_stop(last);
        match &mut self.calls {
            Some(calls) => deltas.extend(calls.push(&content).into_iter().map(delta)),
            None if content.is_empty() => {}
            None => deltas.push(Delta::Content(content)),
        }
        deltas
    }

    /// Takes the content that stands before any stop text, or before what may become one.
    fn before_stop(&mut self, last: bool) -> String {
        if self.stopped {
            self.held.clear();
        }
        let found = self
            .stop
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        let undecided = self
            .stop
            .iter()
            .map(|stop| partial(&self.held, stop))
            .max()
            .unwrap_or(0);
        let end = match found {
            Some(cut) => cut,
            None if last => self.held.len(),
            None => self.held.len() - undecided,
        };
        let text = self.held.drain(..end).collect();
        if found.is_some() {
            self.stopped = true;
            self.held.clear();
        }
        text
    }

    fn finish_calls(&mut self) -> Vec<Delta> {
        let parts = self.calls.as_mut().map(Calls::finish).unwrap_or_default();
        parts.into_iter().map(delta).collect()
    }
}

fn delta(part: tools::Part) -> Delta {
    match part {
        tools::Part::Text(text) => Delta::Content(text),
        tools::Part::Call(call) => Delta::Call(call),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::tiny_tokenizer;

    fn read(text: &str, reading: &Reading) -> (Vec<Delta>, Reply) {
        let tokenizer = tiny_tokenizer();
        let mut reply = Reply::new(Arc::clone(&tokenizer), reading);
        let mut deltas = Vec::new();
        for id in tokenizer.encode_control(text).unwrap() {
            deltas.extend(reply.push(id, false).unwrap());
            if reply.stopped() {
                break;
            }
        }
        deltas.extend(reply.finish().unwrap());
        (deltas, reply)
    }

    fn joined(deltas: &[Delta]) -> (String, String, usize) {
        let mut all = (String::new(), String::new(), 0);
        for delta in deltas {
            match delta {
                Delta::Thinking(text) => all.0.push_str(text),
                Delta::Content(text) => all.1.push_str(text),
                Delta::Call(_) => all.2 += 1,
            }
        }
        all
    }

    fn reading(stop: &[&str]) -> Reading {
        Reading {
            parser: Parser::Qwen3,
            thinks: true,
            stop: stop.iter().map(|&stop| stop.to_owned()).collect(),
            tools: true,
        }
    }

    #[test]
    fn a_stop_text_acts_in_the_content_alone() {
        let (deltas, reply) = read(
            "<think>\nEND of it\n</think>\n\nso é ENough ENDless",
            &reading(&["END", "zzz"]),
        );
        assert_eq!(joined(&deltas), ("END of it".into(), "so é ENough ".into(), 0));
        assert!(reply.stopped());
        // The opening tag, "\nEND of it\n" byte by byte, and the closing tag.
        assert_eq!(reply.thinking_tokens(), 13);
        assert_eq!(reply.tokens(), 13 + "\n\nso é ENough END".len());
    }

    #[test]
    fn a_call_may_follow_the_thinking_at_once() {
        let (deltas, reply) = read("<think>r<tool_call>{\"name\": \"f\"}</tool_call>", &reading(&[]));
        assert_eq!(joined(&deltas), ("r".into(), String::new(), 1));
        assert!(reply.called() && !reply.stopped());
    }

    #[test]
    fn a_character_in_several_tokens_is_shown_whole() {
        let plain = Reading {
            thinks: false,
            tools: false,
            ..reading(&[])
        };
        let (deltas, _) = read("aé€", &plain);
        let text = |text: &str| Delta::Content(text.into());
        assert_eq!(deltas, [text("a"), text("é"), text("€")]);
    }
}
