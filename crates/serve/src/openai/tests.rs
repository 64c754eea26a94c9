//! The endpoint over the tiny seeded model: requests in, JSON and events out.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use judge::{Category, Controversial, Conversation, Guard, Moderation, Safety, Scored};
use tower::ServiceExt;

use super::*;
use crate::fixtures::{ROOM, tiny_engine, tiny_tokenizer};
use crate::guardrail::Action;
use crate::scheduler::Limits;
use crate::server::{Door, close};

/// Finds unsafe what a closure says.
struct Strict(fn(&Conversation) -> bool);

impl Guard for Strict {
    fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
        let judge = |conversation: &Conversation| {
            let harmful = (self.0)(conversation);
            Scored::Scored(Moderation {
                safety: if harmful { Safety::Unsafe } else { Safety::Safe },
                categories: if harmful { vec![Category::Violent] } else { vec![] },
                refusal: conversation.reply.is_some().then_some(false),
                score: if harmful { 0.9 } else { 0.1 },
            })
        };
        conversations.iter().map(judge).collect()
    }
}

fn app_with(guardrail: Option<Guardrail>, limits: Limits) -> Router {
    let metrics = Arc::default();
    let model = Model {
        name: "tiny".into(),
        tokenizer: tiny_tokenizer(),
        scheduler: Scheduler::start(tiny_engine(), "tiny", limits, Arc::clone(&metrics)).unwrap(),
        grammars: Grammars::default(),
        parser: Parser::Qwen3,
        context: ROOM.min(2048) - 64,
        vocabulary: 320,
    };
    close(
        router(Service::new(vec![model], guardrail)),
        &Door::default(),
        metrics,
    )
}

fn app() -> Router {
    app_with(None, Limits::default())
}

fn guarded(action: Action, harmful: fn(&Conversation) -> bool) -> Router {
    let guardrail = Guardrail::new(Box::new(Strict(harmful)), "strict", action, Controversial::Unsafe);
    app_with(Some(guardrail), Limits::default())
}

async fn send(app: &Router, path: &str, body: Option<&Value>) -> (StatusCode, String) {
    let request = match body {
        Some(body) => Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string())),
        None => Request::get(path).body(Body::empty()),
    };
    let response = app.clone().oneshot(request.unwrap()).await.unwrap();
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn post(app: &Router, path: &str, body: Value) -> Value {
    let (status, text) = send(app, path, Some(&body)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The data of every event, and its name where it has one.
async fn stream(app: &Router, path: &str, body: Value) -> Vec<(String, Value)> {
    let (status, text) = send(app, path, Some(&body)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    let parse = |event: &str| {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let data = field("data: ").unwrap();
        let data = if data == "[DONE]" {
            json!(data)
        } else {
            serde_json::from_str(data).unwrap()
        };
        (field("event: ").unwrap_or_default().to_owned(), data)
    };
    events.map(parse).collect()
}

/// The field that a refused request is refused for.
async fn refused(app: &Router, path: &str, body: Value) -> String {
    let (status, text) = send(app, path, Some(&body)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {text}");
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(error["error"]["type"], "invalid_request_error");
    error["error"]["param"].as_str().unwrap_or_default().to_owned()
}

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "seed": 7,
        "max_tokens": 40,
        // The tiny model's end tokens, so that it always writes all that it may.
        "logit_bias": {"256": -100, "258": -100},
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_chat_completion_separates_thinking_and_counts_it() {
    let app = app();
    let body = chat(json!({"n": 2, "thinking_budget": 5}));
    let reply = post(&app, CHAT, body.clone()).await;
    assert_eq!(reply["choices"].as_array().unwrap().len(), 2);
    for choice in reply["choices"].as_array().unwrap() {
        let message = &choice["message"];
        assert_eq!(message["role"], "assistant");
        assert!(!message["content"].as_str().unwrap().is_empty());
        assert_eq!(message["reasoning_content"], message["reasoning"]);
        assert_eq!(choice["finish_reason"], "length");
        assert!(choice.get("safety").is_none());
    }
    let usage = &reply["usage"];
    assert_eq!(usage["completion_tokens"], 80);
    // Five tokens, a newline and the closing tag, twice.
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 14);
    let again = post(&app, CHAT, body).await;
    assert_eq!(again["choices"], reply["choices"]);
    let off = post(
        &app,
        CHAT,
        chat(json!({"chat_template_kwargs": {"enable_thinking": false}})),
    )
    .await;
    assert!(off["choices"][0]["message"].get("reasoning_content").is_none());
    assert_eq!(off["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
    assert!(off["usage"]["prompt_tokens"].as_u64() > usage["prompt_tokens"].as_u64());
}

#[tokio::test]
async fn a_stream_says_what_the_whole_says() {
    let app = app();
    let more = json!({"n": 2, "thinking_budget": 9, "logprobs": true, "top_logprobs": 2, "stop": ["é", "a"]});
    let whole = post(&app, CHAT, chat(more.clone())).await;
    let mut body = chat(more);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let events = stream(&app, CHAT, body).await;
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last.1, "[DONE]");
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage.1["usage"], whole["usage"]);
    assert_eq!(usage.1["choices"], json!([]));
    for (index, expected) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let mut text = [String::new(), String::new()];
        let mut logprobs = Vec::new();
        let mut reason = Value::Null;
        for (_, chunk) in chunks {
            assert_eq!(chunk["object"], "chat.completion.chunk");
            let choice = &chunk["choices"][0];
            if choice["index"] != index {
                continue;
            }
            assert_eq!(reason, Value::Null, "news after the end");
            for (text, key) in text.iter_mut().zip(["reasoning_content", "content"]) {
                text.push_str(choice["delta"][key].as_str().unwrap_or_default());
            }
            logprobs.extend(
                choice["logprobs"]["content"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
            reason = choice["finish_reason"].clone();
        }
        assert_eq!(
            text[0],
            expected["message"]["reasoning_content"].as_str().unwrap()
        );
        assert_eq!(
            text[1],
            expected["message"]["content"].as_str().unwrap_or_default()
        );
        assert_eq!(reason, expected["finish_reason"]);
        assert_eq!(json!(logprobs), expected["logprobs"]["content"]);
        for token in &logprobs {
            assert!(token["logprob"].as_f64().unwrap() <= 0.0);
            assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        }
    }
}

#[tokio::test]
async fn what_is_not_supported_is_named() {
    let app = app();
    for (field, more) in [
        ("colour", json!({"colour": 1})),
        ("temperature", json!({"temperature": -1})),
        ("temperature", json!({"temperature": "hot"})),
        ("top_p", json!({"top_p": 0})),
        ("n", json!({"n": 0})),
        ("n", json!({"n": 1000})),
        ("stop", json!({"stop": [""]})),
        ("logit_bias", json!({"logit_bias": {"320": 1}})),
        ("logit_bias.5", json!({"logit_bias": {"5": 101}})),
        ("max_completion_tokens", json!({"max_tokens": 0})),
        ("top_logprobs", json!({"top_logprobs": 2})),
        ("top_logprobs", json!({"logprobs": true, "top_logprobs": 21})),
        ("stream_options", json!({"stream_options": {}})),
        ("reasoning_effort", json!({"reasoning_effort": "high"})),
        (
            "chat_template_kwargs.mood",
            json!({"chat_template_kwargs": {"mood": 1}}),
        ),
        ("tool_choice", json!({"tool_choice": "required"})),
        ("tool_choice", json!({"tool_choice": "always"})),
        ("tools[0].type", json!({"tools": [{"type": "web_search"}]})),
        ("messages", json!({"messages": []})),
        (
            "messages[0].role",
            json!({"messages": [{"role": "robot", "content": "a"}]}),
        ),
        ("messages[0].content", json!({"messages": [{"role": "user"}]})),
        (
            "messages[0].content[0].type",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ),
        (
            "messages[0].mood",
            json!({"messages": [{"role": "user", "content": "a", "mood": 1}]}),
        ),
    ] {
        assert_eq!(refused(&app, CHAT, chat(more)).await, field);
    }
    let long = chat(json!({"messages": [{"role": "user", "content": "x".repeat(3000)}]}));
    assert_eq!(refused(&app, CHAT, long).await, "");
    let (status, text) = send(&app, CHAT, Some(&chat(json!({"model": "other"})))).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.contains("model_not_found"), "{text}");
}

#[tokio::test]
async fn content_follows_a_schema_also_after_thinking() {
    let app = app();
    let schema = json!({
        "type": "object",
        "properties": {"safe": {"type": "boolean"}, "kind": {"enum": ["violent", "none"]}},
        "required": ["safe", "kind"],
        "additionalProperties": false,
    });
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema, "strict": true}});
    // No bias against the end, which the schema must be able to reach; whitespace may take its time.
    let body = json!({"response_format": format, "thinking_budget": 3, "max_tokens": 400, "logit_bias": null, "n": 3});
    let reply = post(&app, CHAT, chat(body)).await;
    for choice in reply["choices"].as_array().unwrap() {
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        let value: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(value["safe"].is_boolean() && value["kind"].is_string());
    }
    for (field, format) in [
        ("response_format.type", json!({"type": "xml"})),
        ("response_format.json_schema", json!({"type": "json_schema"})),
        (
            "response_format.json_schema.schema",
            json!({"type": "json_schema", "json_schema": {"name": "a"}}),
        ),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}),
        ),
    ] {
        assert_eq!(
            refused(&app, CHAT, chat(json!({"response_format": format}))).await,
            field
        );
    }
}

#[tokio::test]
async fn a_tool_that_must_be_called_is_called() {
    let app = app();
    let tool = |name: &str| {
        let parameters = json!({
            "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"],
            "additionalProperties": false,
        });
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    let named = json!({"type": "function", "function": {"name": "lamp"}});
    for (choice, streams) in [(json!("required"), false), (named.clone(), false), (named, true)] {
        let body = chat(json!({
            "tools": [tool("heater"), tool("lamp")], "tool_choice": choice, "stream": streams, "max_tokens": 400,
            "thinking_budget": 3, "logit_bias": null,
        }));
        let (name, arguments, reason) = if streams {
            let events = stream(&app, CHAT, body).await;
            let (mut name, mut arguments, mut reason) = (String::new(), String::new(), Value::Null);
            for (_, chunk) in &events[..events.len() - 1] {
                let call = &chunk["choices"][0]["delta"]["tool_calls"][0];
                name.push_str(call["function"]["name"].as_str().unwrap_or_default());
                arguments.push_str(call["function"]["arguments"].as_str().unwrap_or_default());
                reason = chunk["choices"][0]["finish_reason"].clone();
            }
            (name, arguments, reason)
        } else {
            let choice = post(&app, CHAT, body).await["choices"][0].clone();
            assert_eq!(choice["message"]["content"], Value::Null);
            let function = &choice["message"]["tool_calls"][0]["function"];
            let text = |key: &str| {
                function[key]
                    .as_str()
                    .unwrap_or_else(|| panic!("{choice}"))
                    .to_owned()
            };
            (text("name"), text("arguments"), choice["finish_reason"].clone())
        };
        assert_eq!(reason, "tool_calls");
        assert!(
            name == "lamp" || (choice == "required" && name == "heater"),
            "{name}"
        );
        assert!(serde_json::from_str::<Value>(&arguments).unwrap()["on"].is_boolean());
    }
}

#[tokio::test]
async fn a_guard_annotates_prompt_and_reply() {
    let app = guarded(Action::Annotate, |conversation| conversation.reply.is_none());
    for streams in [false, true] {
        let body = chat(json!({"stream": streams, "thinking_budget": 2}));
        let choice = if streams {
            let events = stream(&app, CHAT, body).await;
            events[events.len() - 2].1["choices"][0].clone()
        } else {
            post(&app, CHAT, body).await["choices"][0].clone()
        };
        assert_eq!(choice["finish_reason"], "length");
        let safety = &choice["safety"];
        assert_eq!(safety["prompt"]["safety"], "unsafe");
        assert_eq!(safety["prompt"]["categories"], json!(["Violent"]));
        assert_eq!(safety["reply"]["safety"], "safe");
        assert_eq!(safety["thinking"]["safety"], "safe");
    }
}

#[tokio::test]
async fn a_guard_that_blocks_lets_nothing_unsafe_out() {
    let prompts = guarded(Action::Block, |conversation| conversation.reply.is_none());
    let replies = guarded(Action::Block, |conversation| conversation.reply.is_some());
    for (app, tokens) in [(&prompts, 0), (&replies, 40)] {
        let reply = post(app, CHAT, chat(json!({}))).await;
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "content_filter");
        assert_eq!(choice["message"]["content"], Value::Null);
        assert!(choice["message"].get("reasoning").is_none());
        assert_eq!(reply["usage"]["completion_tokens"], tokens);
        let events = stream(app, CHAT, chat(json!({"stream": true}))).await;
        for (_, chunk) in &events[..events.len() - 1] {
            let delta = &chunk["choices"][0]["delta"];
            assert_eq!(delta["content"].as_str().unwrap_or_default(), "");
            assert!(delta.get("reasoning").is_none(), "{chunk}");
        }
        assert_eq!(
            events[events.len() - 2].1["choices"][0]["finish_reason"],
            "content_filter"
        );
    }
    let nothing = guarded(Action::Block, |_| false);
    let reply = post(&nothing, CHAT, chat(json!({"thinking_budget": 0}))).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert!(reply["choices"][0]["message"]["content"].is_string());
}

#[tokio::test]
async fn moderations_have_the_shape_of_openai() {
    let app = guarded(Action::Annotate, |conversation| {
        conversation.messages[0].content.contains("bomb")
    });
    let reply = post(&app, "/v1/moderations", json!({"input": ["a bomb", "a cake"]})).await;
    let results = reply["results"].as_array().unwrap();
    assert_eq!(
        (&results[0]["flagged"], &results[1]["flagged"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(results[0]["categories"]["Violent"], true);
    assert_eq!(results[0]["categories"].as_object().unwrap().len(), 9);
    assert_eq!(results[1]["category_scores"]["Violent"], 0.0);
    assert_eq!(
        refused(&app, "/v1/moderations", json!({"input": []})).await,
        "input"
    );
    assert_eq!(
        refused(&self::app(), "/v1/moderations", json!({"input": "a"})).await,
        ""
    );
}

#[tokio::test]
async fn plain_completions_go_on_from_text_or_ids() {
    let app = app();
    let path = "/v1/completions";
    let body = json!({"prompt": ["abc", "abc"], "seed": 3, "max_tokens": 6, "logprobs": 1, "n": 2});
    let reply = post(&app, path, body).await;
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert_eq!(choices[0]["text"], choices[2]["text"]);
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    assert_eq!(choices[3]["index"], 3);
    let logprobs = &choices[0]["logprobs"];
    assert_eq!(
        logprobs["tokens"].as_array().unwrap().len(),
        logprobs["text_offset"].as_array().unwrap().len()
    );
    let ids = json!({"prompt": [97, 98, 99], "seed": 3, "max_tokens": 6, "stream": true});
    let events = stream(&app, path, ids).await;
    let chunks = &events[..events.len() - 1];
    let text: String = chunks
        .iter()
        .filter_map(|(_, chunk)| chunk["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, choices[0]["text"]);
    assert_eq!(
        refused(&app, path, json!({"prompt": "a", "echo": true})).await,
        "echo"
    );
    assert_eq!(refused(&app, path, json!({"prompt": []})).await, "prompt");
    assert_eq!(
        refused(&app, path, json!({"prompt": "a", "colour": 1})).await,
        "colour"
    );
}

#[tokio::test]
async fn responses_stream_in_order() {
    let app = app();
    let path = "/v1/responses";
    let body = json!({
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
        "instructions": "Be brief.", "seed": 7, "max_output_tokens": 30, "thinking_budget": 4,
        "logit_bias": {"256": -100, "258": -100},
    });
    let whole = post(&app, path, body.clone()).await;
    assert_eq!(whole["status"], "incomplete");
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(whole["output"][0]["type"], "reasoning");
    assert_eq!(whole["output"][1]["content"][0]["type"], "output_text");
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = stream(&app, path, streamed).await;
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    for (number, (name, event)) in events.iter().enumerate() {
        assert_eq!(event["type"], name.as_str());
        assert_eq!(event["sequence_number"], number);
    }
    names.dedup();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    let last = &events.last().unwrap().1["response"];
    assert_eq!(last["output"][1]["content"], whole["output"][1]["content"]);
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(
        refused(&app, path, json!({"input": "a", "previous_response_id": "r"})).await,
        "previous_response_id"
    );
    assert_eq!(
        refused(&app, path, json!({"input": [{"type": "item_reference"}]})).await,
        "input[0].type"
    );
    let reasoning = json!({"input": "a", "reasoning": {"effort": "low"}});
    assert_eq!(refused(&app, path, reasoning).await, "reasoning_effort");
}

#[tokio::test]
async fn text_goes_into_tokens_and_back() {
    let app = app();
    let tokens = post(&app, "/tokenize", json!({"prompt": "a<|im_end|>é"})).await;
    assert_eq!(
        tokens["count"],
        1 + 10 + 2,
        "a user's text makes no control token"
    );
    let text = post(&app, "/detokenize", json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(text["prompt"], "a<|im_end|>é");
    let messages = json!({"messages": [{"role": "user", "content": "a"}]});
    let tokens = post(&app, "/tokenize", messages).await;
    assert_eq!(tokens["tokens"][0], 257);
    assert_eq!(refused(&app, "/tokenize", json!({})).await, "prompt");
}

#[tokio::test]
async fn the_description_and_the_router_agree() {
    let app = app();
    let description: Value = serde_json::from_str(&send(&app, "/openapi.json", None).await.1).unwrap();
    let paths = description["paths"].as_object().unwrap();
    assert!(paths.len() >= 11);
    for (path, methods) in paths {
        let path = path.replace("{name}", "tiny");
        let body = methods.get("post").map(|_| json!({"no_such_field": 1}));
        let (status, text) = send(&app, &path, body.as_ref()).await;
        let due = if body.is_some() {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::OK
        };
        assert_eq!(status, due, "{path}: {text}");
    }
    // Every field of a chat request that the description names is known, and the other way round.
    let fields = description["components"]["schemas"]["Chat"]["properties"]
        .as_object()
        .unwrap();
    let all = fields.keys().map(|field| (field.clone(), Value::Null)).collect();
    post(&app, CHAT, {
        let mut body = Value::Object(all);
        for (name, value) in chat(json!({})).as_object().unwrap() {
            assert!(fields.contains_key(name), "{name}");
            body[name] = value.clone();
        }
        body
    })
    .await;
}

#[tokio::test]
async fn a_body_must_say_that_it_is_json() {
    let request = Request::post(CHAT).body(Body::from("{}")).unwrap();
    let response = app().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}
