//! Chat completions: thinking, streams, schemas, tools, and what is refused.

use super::*;

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
async fn adapters_are_chosen_by_the_models_name() {
    let models = with_adapters();
    let app = app_of(Service::new(models.to_vec(), None));
    let listed: Value = serde_json::from_str(&send(&app, "/v1/models", None).await.1).unwrap();
    let names = listed["data"].as_array().unwrap().iter().map(|card| &card["id"]);
    assert_eq!(names.collect::<Vec<_>>(), ["tiny", "adapted"]);

    let ask = |name: &str| post(&app, CHAT, chat(json!({"model": name})));
    let [tiny, other, again] = [ask("tiny").await, ask("adapted").await, ask("tiny").await];
    assert_ne!(other["choices"], tiny["choices"]);
    assert_eq!(again["choices"], tiny["choices"]);
    assert_eq!(
        post(&self::app(), CHAT, chat(json!({}))).await["choices"],
        tiny["choices"]
    );
    // Which of two is meant has to be said.
    assert_eq!(refused(&app, CHAT, chat(json!({"model": null}))).await, "model");
    // Side by side in one batch, as each by itself.
    let together = tokio::join!(ask("adapted"), ask("tiny"), ask("adapted"), ask("tiny"));
    assert_eq!(together.0["choices"], other["choices"]);
    assert_eq!(together.1["choices"], tiny["choices"]);
    assert_eq!(together.2["choices"], other["choices"]);
    assert_eq!(together.3["choices"], tiny["choices"]);
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
async fn token_ids_are_those_of_prompt_and_reply() {
    let app = app();
    let answer = post(&app, CHAT, chat(json!({"n": 2, "return_token_ids": true}))).await;
    let count = |ids: &Value| ids.as_array().unwrap().len() as u64;
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], count(&answer["prompt_token_ids"]));
    let choices = answer["choices"].as_array().unwrap();
    let written: u64 = choices.iter().map(|choice| count(&choice["token_ids"])).sum();
    assert_eq!(usage["completion_tokens"], written);
    for choice in choices {
        let body = json!({"model": "tiny", "tokens": choice["token_ids"]});
        let text = post(&app, "/detokenize", body).await["prompt"]
            .as_str()
            .unwrap()
            .to_owned();
        let message = &choice["message"];
        for key in ["reasoning_content", "content"] {
            let part = message[key].as_str().unwrap_or_default();
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
    }
    let without = post(&app, CHAT, chat(json!({}))).await;
    assert!(without.get("prompt_token_ids").is_none() && without["choices"][0].get("token_ids").is_none());
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
        (
            "return_token_ids",
            json!({"return_token_ids": true, "stream": true}),
        ),
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
        (
            "messages[0].tool_calls[0]",
            json!({"messages": [{"role": "assistant", "tool_calls": ["lamp"]}]}),
        ),
        (
            "messages[0].tool_calls[0].function.name",
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": "lamp"}]}]}),
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
async fn a_model_that_does_not_think_has_no_budget_for_it() {
    let parser = Parser::None;
    let model = Model {
        parser,
        ..model(Limits::default())
    };
    let app = app_of(Service::new(vec![model], None));
    let budget = json!({"thinking_budget": 5});
    let inner = json!({"chat_template_kwargs": budget});
    assert_eq!(refused(&app, CHAT, chat(budget)).await, "thinking_budget");
    assert_eq!(
        refused(&app, CHAT, chat(inner)).await,
        "chat_template_kwargs.thinking_budget"
    );
    post(&app, CHAT, chat(json!({}))).await;
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
