//! Content held to a JSON schema, by llguidance: for each token, the mask of what the schema lets come next.

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use model::constraint::Constraint;
use model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::thinking::{ToolCall, only};

/// Makes grammars for one tokenizer. The tree of its tokens is built when the first is asked for.
#[derive(Clone, Default)]
pub struct Grammars(Arc<OnceLock<std::result::Result<ParserFactory, String>>>);

impl Grammars {
    /// What holds content to a JSON schema, given as `field` of a request.
    ///
    /// # Errors
    /// A schema that cannot be followed, or a tokenizer whose tokens have no bytes of their own.
    pub fn json(&self, field: &str, schema: Value, tokenizer: &Tokenizer) -> Result<Box<dyn Constraint>> {
        let refuse = |what: String| Error::field(field, what);
        let factory = self
            .0
            .get_or_init(|| factory(tokenizer).map_err(|error| error.to_string()));
        let factory = factory
            .as_ref()
            .map_err(|what| refuse(format!("not supported: {what}")))?;
        let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let parser = parser.map_err(|error| refuse(first_line(&error.to_string())))?;
        let end = tokenizer.end_ids().last().copied().unwrap_or_default();
        Ok(Box::new(Grammar {
            matcher: Matcher::new(Ok(parser)),
            end,
        }))
    }

    /// What has the model call one of `tools`, each as the API describes it.
    ///
    /// # Errors
    /// Parameters whose schema cannot be followed, or a tokenizer whose tokens have no bytes of their own.
    pub fn call(&self, tools: &[&Value], tokenizer: &Tokenizer) -> Result<Box<dyn Constraint>> {
        let call = |tool: &&Value| {
            let parameters = tool["function"]
                .get("parameters")
                .filter(|schema| !schema.is_null());
            json!({
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": parameters.cloned().unwrap_or_else(|| json!({"type": "object"})),
                },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        let calls: Vec<Value> = tools.iter().map(call).collect();
        let grammar = self.json("tools", json!({"anyOf": calls}), tokenizer)?;
        let end = tokenizer.end_ids().last().copied().unwrap_or_default();
        let opening = tokenizer.encode_control("<tool_call>\n")?;
        let closing = tokenizer.encode_control("\n</tool_call>")?;
        Ok(Box::new(ToolCall::new(opening, grammar, closing, end)))
    }
}

fn factory(tokenizer: &Tokenizer) -> std::result::Result<ParserFactory, Box<dyn std::error::Error>> {
    let end = *tokenizer.end_ids().last().ok_or("no token ends a turn")?;
    let words: Vec<Vec<u8>> = tokenizer
        .token_bytes()?
        .into_iter()
        .enumerate()
        .map(|(id, bytes)| match bytes {
            Some(bytes) => bytes,
            // A control token: it is no text, whatever its name spells.
            None => [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<{id}>").as_bytes()].concat(),
        })
        .collect();
    let info = TokRxInfo::new(words.len() as u32, end);
    let environment = ApproximateTokEnv::new(TokTrie::from(&info, &words));
    let mut factory = ParserFactory::new_simple(&(Arc::new(environment) as _))?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// One reply's place in a grammar.
#[derive(Clone)]
struct Grammar {
    matcher: Matcher,
    end: u32,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Grammar")
    }
}

impl Constraint for Grammar {
    fn mask(&mut self) -> Option<Vec<u32>> {
        let mask = self
            .matcher
            .compute_mask_or_eos()
            .map(|mask| mask.as_slice().to_vec());
        Some(mask.unwrap_or_else(|error| {
            // It gave up on its own limits. What was written so far cannot go on under the schema, so it ends.
            tracing::warn!("grammar: {error}");
            only(self.end)
        }))
    }

    fn accept(&mut self, id: u32) {
        if let Err(error) = self.matcher.consume_token(id) {
            tracing::debug!("grammar: {error}");
        }
    }

    fn fork(&self) -> Box<dyn Constraint> {
        // Not the shallow clone, whose lexer several completions would take turns at.
        Box::new(Self {
            matcher: self.matcher.deep_clone(),
            end: self.end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::tiny_tokenizer;

    /// What the grammar lets a writer say who would write `wish` and elsewhere takes the lowest allowed letter.
    fn write(schema: Value, wish: &str) -> String {
        let tokenizer = tiny_tokenizer();
        let mut grammar = Grammars::default()
            .json("response_format", schema, &tokenizer)
            .unwrap();
        let mut text = Vec::new();
        let mut wish = wish.bytes();
        for _ in 0..200 {
            let mask = grammar.mask().unwrap();
            let allows = |id: u32| {
                mask.get(id as usize / 32)
                    .is_some_and(|word| word >> (id % 32) & 1 == 1)
            };
            let wished = wish.next().map(u32::from).filter(|&id| allows(id));
            // Anything but blank space, which a schema lets go on for ever.
            let other = || (33..320).chain(0..33).find(|&id| allows(id));
            let id = wished.or_else(other).unwrap();
            if tokenizer.end_ids().contains(&id) {
                break;
            }
            grammar.accept(id);
            text.push(id as u8);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_is_written_follows_the_schema() {
        let schema = json!({
            "type": "object",
            "properties": {"safe": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
            "required": ["safe", "kind"],
            "additionalProperties": false,
        });
        let value: Value = serde_json::from_str(&write(schema.clone(), "Sure! Here it is: {")).unwrap();
        assert!(
            value["safe"].is_boolean() && (value["kind"] == "a" || value["kind"] == "b"),
            "{value}"
        );
        assert_eq!(
            write(schema, r#"{"safe": true, "kind": "b"}"#),
            r#"{"safe": true, "kind": "b"}"#
        );
    }

    #[test]
    fn a_schema_that_cannot_be_followed_is_named() {
        let refused = Grammars::default().json(
            "response_format",
            json!({"type": "number", "minimum": "x"}),
            &tiny_tokenizer(),
        );
        assert!(refused.unwrap_err().to_string().starts_with("response_format: "));
    }
}
