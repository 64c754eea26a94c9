//! A resources server of NeMo-Gym: `/verify` rewards a response, `/seed_session` and `/close_session` keep no state,
//! `/aggregate_metrics` sums verified responses up.
//!
//! NeMo-Gym's own servers give an unjudged response the reward 0 and a mark beside it. Here it is an error, 503, with
//! the cause in `error.items`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use judge::Exchange;
use model::chat::{Message, Role};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Judged, all_rewards};
use super::conversation::{exchange_of, messages, text_of};
use super::service::Service;
use crate::{Body, Error, Result};

/// The key by which NeMo-Gym tells a task's attempts from another's.
const TASK: &str = "_ng_task_index";
/// The key by which it counts a task's attempts.
const ROLLOUT: &str = "_ng_rollout_index";

/// `POST /verify`: what was asked of OpenAI's Responses API and what came back. Answers with the same object and
/// `reward`, `branch` and the parts as numbers beside.
pub(crate) async fn verify(
    State(service): State<Arc<Service>>,
    Body(mut request): Body<Map<String, Value>>,
) -> Result<Json<Value>> {
    for field in ["responses_create_params", "response"] {
        if !request.get(field).is_some_and(Value::is_object) {
            return Err(Error::field(field, "expected an object"));
        }
    }
    let judged = service.rewards("nemo_gym", vec![exchange(&request)]).await?;
    for reward in all_rewards(&judged)? {
        request.insert("reward".into(), json!(reward.value));
        request.insert("branch".into(), json!(reward.branch));
    }
    for (name, value) in judged.iter().flat_map(Judged::numbers) {
        request.insert(name.into(), json!(value));
    }
    Ok(Json(request.into()))
}

fn exchange(request: &Map<String, Value>) -> std::result::Result<Exchange, String> {
    let asked = &request["responses_create_params"];
    let mut turns = Vec::new();
    if let Some(instructions) = asked["instructions"].as_str() {
        turns.push(Message::system(instructions));
    }
    match &asked["input"] {
        Value::String(text) => turns.push(Message::user(text)),
        Value::Array(items) => {
            // `developer` is what the Responses API calls the system's role.
            let mut items = items.clone();
            for item in &mut items {
                if item["role"] == "developer" {
                    item["role"] = "system".into();
                }
                if item["type"] == "message" {
                    item.as_object_mut().map(|item| item.remove("type"));
                }
            }
            turns.extend(messages(&items).map_err(|what| format!("responses_create_params.input: {what}"))?);
        }
        found => {
            return Err(format!(
                "responses_create_params.input: expected text or a list, found {found}"
            ));
        }
    }
    let output = request["response"]["output"].as_array();
    turns.push(reply(
        output.ok_or("response.output: expected a list, found none")?,
    )?);
    exchange_of(turns)
}

/// The reply that output items make together.
fn reply(output: &[Value]) -> std::result::Result<Message, String> {
    let (mut thinking, mut content) = (String::new(), String::new());
    for (index, item) in output.iter().enumerate() {
        let at = |what: String| format!("response.output[{index}]: {what}");
        match item["type"].as_str().unwrap_or("message") {
            "reasoning" => {
                for part in ["summary", "content"]
                    .iter()
                    .filter_map(|key| item[*key].as_array())
                    .flatten()
                {
                    let text = part["text"].as_str();
                    thinking +=
                        text.ok_or_else(|| at(format!("expected text in reasoning, found {part}")))?;
                }
            }
            "message" => content += &text_of(&item["content"]).map_err(at)?,
            other => return Err(at(format!("expected messages and reasoning, found `{other}`"))),
        }
    }
    let mut message = Message::new(Role::Assistant, content);
    message.reasoning_content = (!thinking.is_empty()).then_some(thinking);
    Ok(message)
}

/// `POST /seed_session`, `POST /close_session`: there is no state; a session's name comes back.
pub(crate) async fn session(Body(request): Body<Map<String, Value>>) -> Json<Value> {
    let name = request.get("resources_session_id");
    Json(name.map_or_else(|| json!({}), |name| json!({ "resources_session_id": name })))
}

/// `POST /aggregate_metrics`
#[derive(Debug, Deserialize)]
pub(crate) struct Aggregate {
    verify_responses: Vec<Map<String, Value>>,
}

/// Answers with mean, max, min, median and standard deviation of every number in the responses, over all and by task.
pub(crate) async fn aggregate_metrics(Body(request): Body<Aggregate>) -> Json<Value> {
    let mut tasks: BTreeMap<u64, Vec<&Map<String, Value>>> = BTreeMap::new();
    for response in &request.verify_responses {
        let task = response.get(TASK).and_then(Value::as_u64).unwrap_or(0);
        tasks.entry(task).or_default().push(response);
    }
    let of_task = |(task, responses): (&u64, &Vec<&Map<String, Value>>)| {
        let mut metrics = describe(responses);
        metrics.insert(TASK.into(), json!(task));
        metrics
    };
    let by_task: Vec<_> = tasks.iter().map(of_task).collect();
    let all = describe(&request.verify_responses.iter().collect::<Vec<_>>());
    let means: Map<_, _> = all
        .clone()
        .into_iter()
        .filter(|(key, _)| key.starts_with("mean/"))
        .collect();
    Json(json!({ "group_level_metrics": by_task, "agent_metrics": all, "key_metrics": means }))
}

fn describe(responses: &[&Map<String, Value>]) -> Map<String, Value> {
    let mut columns: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (key, value) in responses.iter().flat_map(|response| response.iter()) {
        let number = value
            .as_f64()
            .or_else(|| value.as_bool().map(|yes| f64::from(u8::from(yes))));
        if let Some(number) = number.filter(|_| key != TASK && key != ROLLOUT) {
            columns.entry(key).or_default().push(number);
        }
    }
    let mut metrics = Map::new();
    for (name, mut values) in columns {
        values.sort_by(f64::total_cmp);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        let deviation = if values.len() > 1 {
            (squares / (count - 1.0)).sqrt()
        } else {
            0.0
        };
        for (statistic, value) in [
            ("mean", mean),
            ("max", values[values.len() - 1]),
            ("min", values[0]),
            ("median", median),
            ("std", deviation),
        ] {
            metrics.insert(format!("{statistic}/{name}"), json!(value));
        }
    }
    metrics
}
