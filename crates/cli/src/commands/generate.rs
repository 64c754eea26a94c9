//! `saferl generate`: one prompt, one reply.

use model::chat::{Message, Prompt};
use model::generate::Generate as _;
use serde_json::json;

use crate::arguments::Generate;
use crate::error::{Error, Result};
use crate::local::Local;
use crate::output::{print_json, print_line};
use crate::progress::spinner;

/// Answers a prompt, or continues token ids as they are.
pub(crate) fn run(arguments: &Generate) -> Result<()> {
    let local = Local::drawing(&arguments.model, &arguments.drawing)?;
    let prompt = prompt(arguments, &local)?;
    let sampling = arguments.drawing.sampling();
    let mut engine = local.engine_for(&prompt, sampling.max_new_tokens)?;
    let wait = spinner("generating");
    let completions = engine.generate(std::slice::from_ref(&prompt), 1, &sampling)?;
    wait.finish_and_clear();
    let completion = completions
        .into_iter()
        .flatten()
        .next()
        .ok_or_else(|| Error::Request {
            what: "the model returned no completion".into(),
            hint: "raise --max-tokens above 0".into(),
        })?;
    if !arguments.json {
        return print_line(&completion.content);
    }
    print_json(&json!({
        "prompt_ids": prompt.ids,
        "token_ids": completion.ids,
        "thinking": completion.thinking,
        "content": completion.content,
        "finish_reason": completion.finish_reason,
        "usage": {
            "prompt_tokens": prompt.ids.len(),
            "completion_tokens": completion.ids.len(),
            "total_tokens": prompt.ids.len() + completion.ids.len(),
        },
    }))
}

fn prompt(arguments: &Generate, local: &Local) -> Result<Prompt> {
    let mode = arguments.drawing.mode();
    let Some(text) = &arguments.prompt else {
        let vocabulary = local.decoder.config.vocabulary;
        if let Some(id) = arguments
            .prompt_tokens
            .iter()
            .find(|id| **id as usize >= vocabulary)
        {
            return Err(Error::Request {
                what: format!("--prompt-tokens: expected ids below {vocabulary}, found {id}"),
                hint: "`saferl render MODEL --messages FILE --json` shows a prompt's ids".into(),
            });
        }
        return Ok(Prompt {
            ids: arguments.prompt_tokens.clone(),
            messages: Vec::new(),
            mode,
        });
    };
    let system = arguments.system.iter().map(Message::system);
    let messages: Vec<Message> = system.chain([Message::user(text)]).collect();
    Ok(local.tokenizer.prompt(&messages, mode)?)
}
