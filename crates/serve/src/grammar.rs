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

/// What may stand between two parts of a JSON value.
const BLANK: &str = r"\x20|\x0D?\x0A[\x20\x09]{0,40}";

/// Makes grammars for one tokenizer. The tree of its tokens is built when the first is asked for.
#[derive(Clone, Default)]
pub struct Grammars(Arc<OnceLock<std::result::Result<ParserFactory, String>>>);

impl Grammars {
    /// What holds content to a JSON schema, given as `field` of a request.
    ///
    /// Small models seldom find an end to what has none: blank space is a space, or a line's end and its indent, and an
    /// object that lists its properties has no others unless the schema says so.
    ///
    /// # Errors
    /// A schema that cannot be followed, or a tokenizer whose tokens have no bytes of their own.
    pub fn json(&self, field: &str, mut schema: Value, tokenizer: &Tokenizer) -> Result<Box<dyn Constraint>> {
        let refuse = |what: String| Error::field(field, what);
        let factory = self
            .0
            .get_or_init(|| factory(tokenizer).map_err(|error| error.to_string()));
        let factory = factory
            .as_ref()
            .map_err(|what| refuse(format!("not supported: {what}")))?;
        if !combines(&schema) {
            close(&mut schema);
        }
        if let Value::Object(schema) = &mut schema {
            // llguidance's own word for its options.
            schema.insert("x-guidance".into(), json!({"whitespace_pattern": BLANK}));
        }
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

/// The words by which an object may ask for properties that it does not list.
const OPEN: [&str; 9] = [
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "anyOf",
    "oneOf",
    "dependentRequired",
    "dependentSchemas",
];

/// Takes from each object that lists its properties what it does not list.
fn close(schema: &mut Value) {
    let Value::Object(schema) = schema else {
        return;
    };
    let listed = schema.get("properties").and_then(Value::as_object);
    let mut required = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let lists = listed.is_some();
    let closes = listed.is_some_and(|listed| required.all(|name| listed.contains_key(name)))
        && !OPEN.iter().any(|&key| schema.contains_key(key));
    for (key, part) in schema.iter_mut() {
        match (key.as_str(), part) {
            ("properties" | "$defs" | "definitions", Value::Object(parts)) => {
                parts.values_mut().for_each(close);
            }
            ("anyOf" | "oneOf", Value::Array(parts)) if !lists => {
                parts.iter_mut().for_each(close);
            }
            ("items", part) => close(part),
            _ => {}
        }
    }
    if closes {
        schema.insert("additionalProperties".into(), Value::Bool(false));
    }
}

/// Whether an object anywhere is put together of several schemas, each of which would forbid the others' properties.
fn combines(schema: &Value) -> bool {
    match schema {
        Value::Object(schema) => {
            ["allOf", "if", "not"].iter().any(|&key| schema.contains_key(key))
                || (schema.contains_key("$ref") && schema.contains_key("properties"))
                || schema.values().any(combines)
        }
        Value::Array(parts) => parts.iter().any(combines),
        _ => false,
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
            // Anything but blank space.
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
    fn blank_space_ends() {
        let schema = || json!({"type": "object", "properties": {"safe": {"const": 1}}, "required": ["safe"]});
        let indented = "{\n    \"safe\": 1\n}";
        assert_eq!(write(schema(), indented), indented);
        for blank in [" ", "\n", "\n "] {
            let text = write(schema(), &format!("{{{}", blank.repeat(199)));
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(value == json!({"safe": 1}) && text.len() < 200, "{text:?}");
        }
    }

    #[test]
    fn an_object_has_what_its_schema_lists() {
        let place =
            || json!({"type": "object", "properties": {"city": {"const": "Rome"}}, "required": ["city"]});
        let closed = r#"{"city":"Rome"}"#;
        let more = r#"{"city":"Rome","more":{}}"#;
        assert_eq!(write(place(), more), closed);
        assert_eq!(write(json!({"anyOf": [place(), {"type": "null"}]}), more), closed);
        assert_eq!(
            write(
                json!({"$defs": {"place": place()}, "$ref": "#/$defs/place"}),
                more
            ),
            closed
        );
        assert_eq!(
            write(
                json!({"type": "array", "items": place(), "maxItems": 1}),
                &format!("[{more}]")
            ),
            format!("[{closed}]")
        );

        let mut open = place();
        open["additionalProperties"] = json!(true);
        assert_eq!(write(open, more), more);
        assert_eq!(write(json!({"type": "object"}), more), more);
        // Each of these asks for properties that one of its parts does not list.
        let named = json!({"type": "object", "properties": {"name": {"const": 1}}, "required": ["name"]});
        let both = r#"{"city":"Rome","name":1}"#;
        assert_eq!(write(json!({"allOf": [place(), named]}), both), both);
        let mut unlisted = place();
        unlisted["required"] = json!(["city", "name"]);
        assert_eq!(write(unlisted, both), both);
        let mut least = place();
        least["minProperties"] = json!(2);
        assert_eq!(write(least, more), more);
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
