//! Thinking apart from content, as text arrives piece by piece.
//!
//! Whether a reply thinks is decided by what the chat template appended for generation ([`Opening`]), never by what
//! the conversation says. Then the text alone decides, in whatever pieces it comes:
//!
//! | text | thinking / content |
//! |---|---|
//! | `r</think>c`, `<think>r</think>c` | r / c |
//! | `x` without tags, `<think>x` | x / nothing |
//! | `<think>r<tool_call>...` | r / `<tool_call>...` |
//! | `<think>a</think><think>b</think>c` | a / `<think>b</think>c` |
//! | anything, where the template switched thinking off | nothing / all of it |
//!
//! Newlines beside the tags belong to neither part.

use serde::{Deserialize, Serialize};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
const CALL: &str = "<tool_call>";

/// Which convention a model thinks by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parser {
    /// Qwen3's: the template can switch thinking off.
    Qwen3,
    /// DeepSeek-R1's: it always thinks, and an empty reply is an empty thought.
    DeepseekR1,
    /// The model does not think: all text is content.
    None,
}

impl Parser {
    /// The one that a chat template calls for.
    pub fn of_template(template: &str) -> Self {
        match (template.contains("enable_thinking"), template.contains(CLOSE)) {
            (true, _) => Self::Qwen3,
            (false, true) => Self::DeepseekR1,
            (false, false) => Self::None,
        }
    }

    /// Whether a reply thinks, given what the template appended to have the assistant speak.
    pub fn thinks(self, appended: &str) -> bool {
        match self {
            // An empty block is how the template says that there is nothing to think about.
            Self::Qwen3 => !appended.contains(CLOSE),
            Self::DeepseekR1 => true,
            Self::None => false,
        }
    }
}

/// Text that was told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Of the thinking.
    Thinking(String),
    /// Of the answer.
    Content(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first letter of the thinking, where `<think>` may stand.
    Opening,
    Thinking,
    /// After the thinking, before the first letter of the content.
    Closing,
    Content,
}

/// Tells the thinking of one reply from its content.
#[derive(Debug, Clone)]
pub struct Reasoning {
    state: State,
    /// Text that may yet be (part of) a tag, or newlines beside one.
    held: String,
    /// An empty reply has empty thinking, and not none.
    empty_thought: bool,
}

impl Reasoning {
    /// A reply that thinks, or one that does not.
    pub fn new(parser: Parser, thinks: bool) -> Self {
        Self {
            state: if thinks { State::Opening } else { State::Content },
            held: String::new(),
            empty_thought: parser == Parser::DeepseekR1,
        }
    }

    /// Whether the thinking goes on.
    pub fn thinking(&self) -> bool {
        matches!(self.state, State::Opening | State::Thinking)
    }

    /// Takes the next piece of text and returns what is certain by now.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// Returns what was held back, at the end of the reply.
    pub fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Opening => {
                let text = held.trim_start_matches('\n');
                let thinking = text.strip_prefix(OPEN).unwrap_or(text).trim_matches('\n');
                let told = self.empty_thought || !thinking.is_empty();
                told.then(|| Part::Thinking(thinking.to_owned()))
                    .into_iter()
                    .collect()
            }
            State::Thinking if !held.trim_end_matches('\n').is_empty() => {
                vec![Part::Thinking(held.trim_end_matches('\n').to_owned())]
            }
            State::Content if !held.is_empty() => vec![Part::Content(held)],
            _ => Vec::new(),
        }
    }

    /// Goes one state further, if the held text decides it.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Opening => {
                let text = self.held.trim_start_matches('\n');
                if OPEN.starts_with(text) && text != OPEN {
                    return false;
                }
                let rest = text.strip_prefix(OPEN);
                let kept = rest.unwrap_or(text).trim_start_matches('\n');
                if rest.is_some() && kept.is_empty() {
                    return false;
                }
                self.held = kept.to_owned();
                self.state = State::Thinking;
                true
            }
            State::Thinking => {
                let close = self.held.find(CLOSE);
                let call = self.held.find(CALL);
                let (end, next) = match (close, call) {
                    (Some(close), call) if call.is_none_or(|call| close < call) => {
                        (close, close + CLOSE.len())
                    }
                    (_, Some(call)) => (call, call),
                    _ => {
                        let undecided = partial(&self.held, CLOSE).max(partial(&self.held, CALL));
                        let decided = self.held[..self.held.len() - undecided]
                            .trim_end_matches('\n')
                            .len();
                        take(&mut self.held, decided, Part::Thinking, parts);
                        return false;
                    }
                };
                let thought = self.held[..end].trim_end_matches('\n').len();
                let rest = self.held.split_off(next);
                self.held.truncate(thought);
                take(&mut self.held, thought, Part::Thinking, parts);
                self.held = rest;
                self.state = State::Closing;
                true
            }
            State::Closing => {
                let start = self.held.len() - self.held.trim_start_matches('\n').len();
                self.held.drain(..start);
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Content;
                true
            }
            State::Content => {
                let all = self.held.len();
                take(&mut self.held, all, Part::Content, parts);
                false
            }
        }
    }
}

fn take(held: &mut String, end: usize, part: fn(String) -> Part, parts: &mut Vec<Part>) {
    let text: String = held.drain(..end).collect();
    if !text.is_empty() {
        parts.push(part(text));
    }
}

/// How many bytes at the end of `text` may be the beginning of `tag`.
pub(crate) fn partial(text: &str, tag: &str) -> usize {
    let longest = text.len().min(tag.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&length| {
            text.is_char_boundary(text.len() - length) && tag.starts_with(&text[text.len() - length..])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Split = (Option<String>, Option<String>);

    fn streamed<'a>(parser: Parser, thinks: bool, pieces: impl IntoIterator<Item = &'a str>) -> Split {
        let mut reasoning = Reasoning::new(parser, thinks);
        let mut parts: Vec<Part> = pieces
            .into_iter()
            .flat_map(|piece| reasoning.push(piece))
            .collect();
        parts.extend(reasoning.finish());
        let mut split = (None::<String>, None::<String>);
        for part in parts {
            match part {
                Part::Thinking(text) => {
                    assert!(split.1.is_none(), "thinking after content");
                    split.0.get_or_insert_default().push_str(&text);
                }
                Part::Content(text) => split.1.get_or_insert_default().push_str(&text),
            }
        }
        split
    }

    /// The whole text at once, told apart in another way than the stream's.
    fn whole(parser: Parser, thinks: bool, text: &str) -> Split {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        if !thinks {
            return (None, some(text));
        }
        let text = text.trim_start_matches('\n');
        let text = text.strip_prefix(OPEN).unwrap_or(text);
        let ends = [text.find(CLOSE), text.find(CALL)];
        let end = ends.into_iter().flatten().min();
        let thinking = text[..end.unwrap_or(text.len())].trim_matches('\n');
        let content = end.map_or("", |end| {
            let rest = &text[end..];
            rest.strip_prefix(CLOSE).unwrap_or(rest).trim_start_matches('\n')
        });
        let thinking = if parser == Parser::DeepseekR1 && text.trim_matches('\n').is_empty() {
            Some(String::new())
        } else {
            some(thinking)
        };
        (thinking, some(content))
    }

    fn check(text: &str, thinking: Option<&str>, content: Option<&str>) {
        let due = (thinking.map(str::to_owned), content.map(str::to_owned));
        assert_eq!(streamed(Parser::Qwen3, true, [text]), due, "{text:?}");
        assert_eq!(whole(Parser::Qwen3, true, text), due, "{text:?}");
    }

    #[test]
    fn the_table() {
        check("r</think>c", Some("r"), Some("c"));
        check("<think>r</think>c", Some("r"), Some("c"));
        check("r</think>", Some("r"), None);
        check("<think>r</think>", Some("r"), None);
        check("x", Some("x"), None);
        check("<think>x", Some("x"), None);
        check("<think>a\nb</think>c\nd", Some("a\nb"), Some("c\nd"));
        check("<think>\nr\n</think>\n\nc\n", Some("r"), Some("c\n"));
        check(
            "<think>a</think><think>b</think>c",
            Some("a"),
            Some("<think>b</think>c"),
        );
        check(
            "<think>r<tool_call>{}</tool_call>",
            Some("r"),
            Some("<tool_call>{}</tool_call>"),
        );
        check("<think>\n\n</think>\n\nc", None, Some("c"));
        check("", None, None);
        let off = "<think>r</think>c\n";
        assert_eq!(streamed(Parser::Qwen3, false, [off]), (None, Some(off.into())));
        assert_eq!(
            streamed(Parser::DeepseekR1, true, []),
            (Some(String::new()), None)
        );
    }

    #[test]
    fn tags_in_two_pieces() {
        let some = |text: &str| Some(text.to_owned());
        let pieces = ["<think>abc</th", "ink>def"];
        assert_eq!(streamed(Parser::Qwen3, true, pieces), (some("abc"), some("def")));
        let pieces = ["<think>abc</th", "ing>def"];
        assert_eq!(
            streamed(Parser::Qwen3, true, pieces),
            (some("abc</thing>def"), None)
        );
    }

    #[test]
    fn the_template_decides_what_a_reply_is() {
        let qwen3 = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}";
        assert_eq!(Parser::of_template(qwen3), Parser::Qwen3);
        assert_eq!(
            Parser::of_template("{{ content.split('</think>')[-1] }}"),
            Parser::DeepseekR1
        );
        assert_eq!(Parser::of_template("{{ message.content }}"), Parser::None);
        assert!(Parser::Qwen3.thinks("<|im_start|>assistant\n"));
        assert!(Parser::Qwen3.thinks("<|im_start|>assistant\n<think>\n"));
        assert!(!Parser::Qwen3.thinks("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
        assert!(Parser::DeepseekR1.thinks("<think>\n\n</think>"));
        assert!(!Parser::None.thinks(""));
    }

    proptest! {
        /// Pieces cut anywhere give what the whole gives.
        #[test]
        fn streamed_equals_whole(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "<think>", "</think>", "<tool_call>", "\n", "\n\n", "a", "é", " ", "<", "</", "</th", "think>", "<to",
                ]),
                0..10,
            ),
            cuts in prop::collection::vec(0..80_usize, 0..12),
            thinks in any::<bool>(),
            parser in prop::sample::select(vec![Parser::Qwen3, Parser::DeepseekR1]),
        ) {
            let text = parts.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut.min(text.len()))).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().map(|cut| cut.min(text.len())).chain([text.len()]) {
                pieces.push(&text[start..cut]);
                start = cut;
            }
            prop_assert_eq!(streamed(parser, thinks, pieces), whole(parser, thinks, &text), "{:?}", text);
        }
    }
}
