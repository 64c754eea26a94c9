//! Plain completions, responses, and text into tokens.

use super::*;

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
        "logit_bias": {"256": -100, "258": -100}, "metadata": {"a": "b"}, "prompt_cache_key": "k",
    });
    let whole = post(&app, path, body.clone()).await;
    assert_eq!(whole["status"], "incomplete");
    // Clients expect every field, null where it says nothing.
    for (field, told) in [
        ("completed_at", json!(null)),
        ("previous_response_id", json!(null)),
        ("truncation", json!("disabled")),
        ("service_tier", json!("default")),
        ("prompt_cache_key", json!("k")),
        ("metadata", json!({"a": "b"})),
        ("reasoning", json!({"effort": null, "summary": null})),
    ] {
        assert_eq!(whole.get(field), Some(&told), "{field}");
    }
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
    assert_eq!(refused(&app, path, reasoning).await, "reasoning.effort");
}

#[tokio::test]
async fn a_thought_belongs_to_the_message_after_it() {
    let app = app();
    let path = "/v1/responses";
    let thought = |more: Value| {
        let part = json!({"type": "reasoning_text", "text": "So it is."});
        let mut item = json!({"type": "reasoning", "id": "rs_1", "summary": [], "content": [part]});
        for (name, value) in more.as_object().unwrap() {
            item[name] = value.clone();
        }
        item
    };
    let refused_for = async |more: Value| refused(&app, path, json!({"input": [thought(more)]})).await;
    assert_eq!(refused_for(json!({"mood": 1})).await, "input[0].mood");
    assert_eq!(refused_for(json!({"summary": [1]})).await, "input[0].summary");
    let image = json!({"content": [{"type": "image"}]});
    assert_eq!(refused_for(image).await, "input[0].content[0].type");

    let thoughts = |items: Vec<Value>| {
        let read = responses::read_input(items.into()).unwrap();
        let thoughts = read.into_iter().map(|message| message.reasoning_content);
        thoughts.collect::<Vec<_>>()
    };
    let user = json!({"role": "user", "content": "a"});
    let assistant = json!({"role": "assistant", "content": "b"});
    let some = Some("So it is.".to_owned());
    let item = thought(json!({}));
    assert_eq!(
        thoughts(vec![
            user.clone(),
            item.clone(),
            assistant.clone(),
            assistant.clone()
        ]),
        [None, some, None]
    );
    assert_eq!(thoughts(vec![item, user, assistant]), [None, None]);
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
