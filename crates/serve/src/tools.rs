//! Tool calls in a reply, in Qwen3's form: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

use serde::Deserialize;
use serde_json::Value;

use crate::reasoning::partial;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// What the content of a reply turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text for the reader.
    Text(String),
    /// A tool to call.
    Call(Call),
}

/// A tool call that the model asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The tool's name.
    pub name: String,
    /// Its arguments, as JSON text.
    pub arguments: String,
}

/// Finds the tool calls in content that arrives piece by piece.
///
/// What stands between the tags but is no call stays text, tags and all, so that nothing a model says is lost. Blank
/// lines beside a call belong to no text.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    held: String,
    called: bool,
    /// Whether blank space is dropped until there is text again.
    trimming: bool,
}

#[derive(Deserialize)]
struct Json {
    name: String,
    #[serde(default)]
    arguments: Value,
}

impl Calls {
    /// Whether there was a call.
    pub fn any(&self) -> bool {
        self.called
    }

    /// Takes the next piece of content and returns what is certain by now.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while let Some(start) = self.held.find(OPEN) {
            let Some(end) = self.held[start..].find(CLOSE).map(|end| start + end) else {
                self.show(start, &mut parts);
                return parts;
            };
            let after = end + CLOSE.len();
            if let Some(call) = read(&self.held[start + OPEN.len()..end]) {
                let rest = self.held.split_off(after);
                self.show(start, &mut parts);
                self.held = rest;
                (self.called, self.trimming) = (true, true);
                parts.push(Part::Call(call));
            } else {
                let text: String = self.held.drain(..after).collect();
                parts.push(Part::Text(self.trimmed(&text).to_owned()));
                self.trimming = false;
            }
        }
        self.show(self.held.len() - partial(&self.held, OPEN), &mut parts);
        parts
    }

    /// Returns what was held back, at the end of the reply; a call whose end tag is missing counts if it is whole.
    pub fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        if let Some(call) = held.trim_start().strip_prefix(OPEN).and_then(read) {
            self.called = true;
            return vec![Part::Call(call)];
        }
        let text = self.trimmed(&held);
        if text.is_empty() {
            return Vec::new();
        }
        vec![Part::Text(text.to_owned())]
    }

    /// Takes the text before `end` out, but for blank space at its end, which may stand beside a call.
    fn show(&mut self, end: usize, parts: &mut Vec<Part>) {
        let end = self.held[..end].trim_end().len();
        if end > 0 {
            let text: String = self.held.drain(..end).collect();
            parts.push(Part::Text(self.trimmed(&text).to_owned()));
            self.trimming = false;
        }
    }

    fn trimmed<'a>(&self, text: &'a str) -> &'a str {
        if self.trimming { text.trim_start() } else { text }
    }
}

fn read(text: &str) -> Option<Call> {
    let json: Json = serde_json::from_str(text.trim()).ok()?;
    let arguments = match json.arguments {
        // Some models write the arguments as a text that holds JSON.
        Value::String(text) => text,
        Value::Null => "{}".to_owned(),
        other => other.to_string(),
    };
    Some(Call {
        name: json.name,
        arguments,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn streamed<'a>(pieces: impl IntoIterator<Item = &'a str>) -> (String, Vec<Call>) {
        let mut calls = Calls::default();
        let mut parts: Vec<Part> = pieces.into_iter().flat_map(|piece| calls.push(piece)).collect();
        parts.extend(calls.finish());
        let (mut text, mut found) = (String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(more) => text.push_str(&more),
                Part::Call(call) => found.push(call),
            }
        }
        assert_eq!(calls.any(), !found.is_empty());
        (text, found)
    }

    fn call(name: &str, arguments: &str) -> Call {
        Call {
            name: name.into(),
            arguments: arguments.into(),
        }
    }

    #[test]
    fn calls_are_found_and_text_stays() {
        let two = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call>\n\
                   <tool_call>{\"name\": \"b\"}</tool_call>\n";
        let due = vec![call("a", "{\"x\":1}"), call("b", "{}")];
        assert_eq!(streamed([two]), ("Let me see.".into(), due));
        assert_eq!(streamed(["plain text \n"]), ("plain text \n".into(), vec![]));
        let broken = "<tool_call>not JSON</tool_call> so";
        assert_eq!(streamed([broken]), (broken.into(), vec![]));
        let open = "<tool_call>{\"name\": \"a\", \"arguments\": {}}";
        assert_eq!(streamed([open]), (String::new(), vec![call("a", "{}")]));
        assert_eq!(
            streamed(["<tool_call>{\"name\": \"a"]),
            ("<tool_call>{\"name\": \"a".into(), vec![])
        );
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(cuts in prop::collection::vec(0..120_usize, 0..10)) {
            let text = "Hé <b>\n\n<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"</tool\"}}</tool_call> and \
                        <tool_call>no</tool_call> more words <tool_ca";
            let mut cuts: Vec<usize> = cuts
                .into_iter()
                .map(|cut| cut.min(text.len()))
                .filter(|&cut| text.is_char_boundary(cut))
                .collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                pieces.push(&text[start..cut]);
                start = cut;
            }
            prop_assert_eq!(streamed(pieces), streamed([text]));
        }
    }
}
