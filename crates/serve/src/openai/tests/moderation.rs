//! The guard before and after a reply, and `/v1/moderations`.

use super::*;

#[tokio::test]
async fn a_busy_server_does_not_trouble_the_guard() {
    let none = Limits {
        requests: 0,
        ..Limits::default()
    };
    // Were it asked, it would block the prompt, with status 200.
    let guardrail = strict(Action::Block, |_| true);
    let service = Service::new(vec![model(none)], Some(guardrail));
    let app = app_of(service.clone());
    let (status, text) = send(&app, CHAT, Some(&chat(json!({})))).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{text}");

    let input = json!({"input": "a"});
    let places = service
        .moderations
        .try_acquire_many(moderations::MOST_AT_ONCE as u32)
        .unwrap();
    let (status, text) = send(&app, "/v1/moderations", Some(&input)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{text}");
    drop(places);
    post(&app, "/v1/moderations", input).await;
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
