//! `saferl render`: messages into the chat template's text and token ids.

use std::path::Path;

use model::chat::Message;
use model::template::RenderOptions;
use model::tokenizer::Tokenizer;
use serde_json::json;

use crate::arguments::Render;
use crate::error::{Error, Result};
use crate::local;
use crate::output::{print_json, print_text};

/// Renders the messages of a file; the model's folder needs no weights.
pub(crate) fn run(arguments: &Render) -> Result<()> {
    let messages = read_messages(&arguments.messages)?;
    let tokenizer = Tokenizer::load(&local::resolve(&arguments.model)?)?;
    let options = RenderOptions {
        enable_thinking: arguments.no_think.then_some(false),
        generation_prompt: !arguments.no_generation_prompt,
        tools: None,
    };
    let rendered = tokenizer.render(&messages, &options)?;
    if arguments.json {
        print_json(&json!({ "text": rendered.text, "ids": rendered.ids }))
    } else {
        print_text(&rendered.text)
    }
}

fn read_messages(path: &Path) -> Result<Vec<Message>> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|source| Error::file(path, source))?;
    serde_json::from_str(&text).map_err(|error| Error::Format {
        path: path.to_path_buf(),
        line: Some(error.line()),
        what: format!("expected a JSON list of messages {{\"role\", \"content\"}}: {error}"),
    })
}
