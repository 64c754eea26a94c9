//! `/tokenize` and `/detokenize`: text and conversations into token ids, and back.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::body::{Body, Fields};
use crate::error::{Error, Result};
use crate::openai::Service;
use crate::openai::messages::{Thinking, read_messages, read_tools, render};

pub(crate) async fn tokenize(
    State(service): State<Service>,
    Body(mut fields): Body<Fields>,
) -> Result<Json<Value>> {
    let model = service.model(fields.take::<String>("model")?.as_deref())?;
    let ids = match (fields.take::<String>("prompt")?, fields.take("messages")?) {
        (Some(text), None) => model.tokenizer.encode_plain(&text)?,
        (None, Some(messages)) => {
            let messages = read_messages("messages", messages)?;
            let thinking = Thinking::take(&mut fields, model)?;
            let tools = read_tools(fields.take("tools")?)?;
            render(model, messages, thinking.enabled, tools)?.prompt.ids
        }
        _ => return Err(Error::field("prompt", "expected either `prompt` or `messages`")),
    };
    fields.finish()?;
    Ok(Json(
        json!({"count": ids.len(), "max_model_len": model.context, "tokens": ids}),
    ))
}

pub(crate) async fn detokenize(
    State(service): State<Service>,
    Body(mut fields): Body<Fields>,
) -> Result<Json<Value>> {
    let model = service.model(fields.take::<String>("model")?.as_deref())?;
    let ids: Vec<u32> = fields.require("tokens")?;
    fields.finish()?;
    Ok(Json(json!({"prompt": model.tokenizer.decode(&ids, false)?})))
}
