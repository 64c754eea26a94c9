//! `/v1/moderations`: the guard's word on texts, in OpenAI's shape with the guard's own categories.

use axum::Json;
use axum::extract::State;
use judge::{Category, Conversation, Moderation, Scored};
use model::chat::Message;
use serde_json::{Map, Value, json};

use crate::body::{Body, Fields};
use crate::error::{Error, Result};
use crate::guardrail::Guardrail;
use crate::openai::messages::read_content;
use crate::openai::{Service, name};
use crate::scheduler::RETRY_AFTER_S;

/// Most texts of a request.
const MOST_TEXTS: usize = 256;
/// Most requests that the guard has or that wait for it at once.
pub(crate) const MOST_AT_ONCE: usize = 16;

pub(crate) async fn moderate(
    State(service): State<Service>,
    Body(mut fields): Body<Fields>,
) -> Result<Json<Value>> {
    let guardrail = service.guardrail.as_ref().ok_or_else(|| {
        Error::Request("this server has no guard; start it with `saferl serve --guard built-in`".into())
    })?;
    fields.take::<String>("model")?;
    let texts = read_input(fields.require("input")?)?;
    fields.finish()?;
    let busy = |_| Error::Busy {
        retry_after_s: RETRY_AFTER_S,
    };
    let _place = service.moderations.try_acquire().map_err(busy)?;
    let conversation = |text: String| Conversation {
        messages: vec![Message::user(text)],
        reply: None,
    };
    let verdicts = guardrail
        .moderate(texts.into_iter().map(conversation).collect())
        .await;
    let results: Result<Vec<Value>> = verdicts
        .iter()
        .map(|verdict| result(guardrail, verdict))
        .collect();
    Ok(Json(
        json!({"id": name("modr-"), "model": guardrail.name, "results": results?}),
    ))
}

/// A text, a list of texts, or a list of parts that make one text.
fn read_input(input: Value) -> Result<Vec<String>> {
    let texts = match input {
        Value::Array(items) if items.iter().all(Value::is_string) => items
            .into_iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect(),
        other => vec![read_content("input", other)?],
    };
    if !(1..=MOST_TEXTS).contains(&texts.len()) {
        let what = format!("expected 1 to {MOST_TEXTS} texts, found {}", texts.len());
        return Err(Error::field("input", what));
    }
    Ok(texts)
}

/// A verdict in OpenAI's shape. The guard gives one probability of harm, which stands at the categories that it named.
fn result(guardrail: &Guardrail, verdict: &Scored<Moderation>) -> Result<Value> {
    let moderation = verdict
        .as_result()
        .map_err(|cause| Error::Unavailable(format!("guard: {cause}")))?;
    let by_category = |value: &dyn Fn(bool) -> Value| -> Map<String, Value> {
        let named = |category: Category| value(moderation.categories.contains(&category));
        Category::ALL
            .into_iter()
            .map(|category| (category.name().to_owned(), named(category)))
            .collect()
    };
    Ok(json!({
        "flagged": guardrail.is_unsafe(moderation),
        "categories": by_category(&|named| json!(named)),
        "category_scores": by_category(&|named| json!(if named { moderation.score } else { 0.0 })),
        "safety": moderation.safety,
        "score": moderation.score,
    }))
}
