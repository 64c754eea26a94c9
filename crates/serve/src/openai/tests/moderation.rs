//! The guard before, during and after a reply, and `/v1/moderations`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model::chat::{Message, Mode, Prompt};
use model::constraint::Constraint;
use model::generate::Sampling;

use super::*;
use crate::openai::generation::{Generation, Order, Step};
use crate::openai::messages::Rendered;
use crate::openai::sampling::Drawing;
use crate::reply::Delta;
use crate::thinking::only;

const TEXT: &str = "First is fine. Second is fine. Third is bad. Fourth is fine.";

/// A request whose reply is [`TEXT`] in quotation marks.
fn recite(more: Value) -> Value {
    let schema = json!({"type": "json_schema", "json_schema": {"name": "text", "schema": {"const": TEXT}}});
    let mut body = chat(json!({
        "response_format": schema, "enable_thinking": false, "max_tokens": 200, "logit_bias": null,
    }));
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The content and the last choice of a reply, whole or put together from its stream.
async fn reply(app: &Router, mut body: Value, streams: bool) -> (String, Value) {
    if !streams {
        let choice = post(app, CHAT, body).await["choices"][0].clone();
        let content = choice["message"]["content"].as_str().unwrap_or_default();
        return (content.to_owned(), choice);
    }
    body["stream"] = json!(true);
    let events = stream(app, CHAT, body).await;
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last.1, "[DONE]", "{events:?}");
    let text = |(_, chunk): &(String, Value)| {
        let text = chunk["choices"][0]["delta"]["content"].as_str();
        text.unwrap_or_default().to_owned()
    };
    let content = chunks.iter().map(text).collect();
    (content, chunks.last().unwrap().1["choices"][0].clone())
}

fn says(conversation: &Conversation, word: &str) -> bool {
    let reply = conversation.reply.as_ref();
    reply.is_some_and(|reply| reply.contains(word))
}

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
    // Of the second, how much is drawn before the guard speaks is a matter of time.
    for (app, tokens) in [(&prompts, 0..=0), (&replies, 1..=40)] {
        let reply = post(app, CHAT, chat(json!({}))).await;
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "content_filter");
        assert_eq!(choice["message"]["content"], Value::Null);
        assert!(choice["message"].get("reasoning").is_none());
        let drawn = reply["usage"]["completion_tokens"].as_u64().unwrap();
        assert!(tokens.contains(&drawn), "{drawn}");
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
async fn what_a_guard_finds_safe_passes_unchanged() {
    for action in [Action::Annotate, Action::Block, Action::Rewind] {
        let app = guarded(action, |_| false);
        for streams in [false, true] {
            let (content, choice) = reply(&app, recite(json!({})), streams).await;
            assert_eq!(content, format!("\"{TEXT}\""));
            assert_eq!(choice["finish_reason"], "stop");
            let safety = &choice["safety"];
            assert_eq!(
                (&safety["rewinds"], &safety["thinking"]),
                (&json!(0), &Value::Null)
            );
            let line = safety["reply"]["risk_line"].as_array().unwrap();
            let ends = line.iter().map(|piece| piece["end"].as_u64().unwrap());
            assert_eq!(ends.collect::<Vec<_>>(), [15, 31, 45, 62]);
            let starts = line.iter().map(|piece| piece["start"].as_u64().unwrap());
            assert_eq!(starts.collect::<Vec<_>>(), [0, 15, 31, 45]);
        }
        // Any text, with thinking before it.
        let body = chat(json!({"thinking_budget": 9, "max_tokens": 300}));
        let plain = reply(&self::app(), body.clone(), false).await.0;
        for streams in [false, true] {
            let (content, choice) = reply(&app, body.clone(), streams).await;
            assert_eq!(content, plain);
            assert_eq!(choice["safety"]["reply"]["safety"], "safe");
        }
    }
}

#[tokio::test]
async fn an_unsafe_sentence_is_never_delivered() {
    for reads_tokens in [false, true] {
        let guard = Told {
            says: Box::new(|conversation| moderation(says(conversation, "bad"))),
            reads_tokens,
        };
        let guardrail =
            Guardrail::new(Box::new(guard), "told", Action::Block, Controversial::Unsafe).unwrap();
        let app = guarded_by(guardrail);
        for streams in [false, true] {
            let (content, choice) = reply(&app, recite(json!({})), streams).await;
            assert_eq!(content, "\"First is fine. Second is fine.");
            assert_eq!(choice["finish_reason"], "content_filter");
            let told = &choice["safety"]["reply"];
            assert_eq!(told["safety"], "unsafe");
            let line = told["risk_line"].as_array().unwrap();
            // The third sentence, or every token up to the end of the word.
            let (count, end) = if reads_tokens { (44, 44) } else { (3, 45) };
            assert_eq!((line.len(), &line[count - 1]["end"]), (count, &json!(end)));
        }
        let both = post(&app, CHAT, recite(json!({"n": 2}))).await;
        for choice in both["choices"].as_array().unwrap() {
            assert_eq!(choice["message"]["content"], "\"First is fine. Second is fine.");
        }
    }
    // Delivered with its verdict, though the fourth sentence alone would be safe.
    let app = guarded(Action::Annotate, |conversation| says(conversation, "bad"));
    let (content, choice) = reply(&app, recite(json!({})), true).await;
    assert_eq!(content, format!("\"{TEXT}\""));
    assert_eq!(
        (&choice["finish_reason"], &choice["safety"]["reply"]["safety"]),
        (&json!("stop"), &json!("unsafe"))
    );
}

#[tokio::test]
async fn a_rewound_reply_goes_on_from_its_last_safe_sentence_and_not_for_ever() {
    // Unsafe once: the grammar has the model say the same again.
    for streams in [false, true] {
        let mut objections = 1;
        let once = guardrail(Action::Rewind, move |conversation| {
            let harmful = says(conversation, "bad") && objections > 0;
            objections -= usize::from(harmful);
            moderation(harmful)
        });
        let (content, choice) = reply(&guarded_by(once), recite(json!({})), streams).await;
        assert_eq!(content, format!("\"{TEXT}\""));
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(
            (&choice["safety"]["rewinds"], &choice["safety"]["reply"]["safety"]),
            (&json!(1), &json!("safe"))
        );
    }
    let always = guarded(Action::Rewind, |conversation| says(conversation, "bad"));
    for streams in [false, true] {
        let (content, choice) = reply(&always, recite(json!({})), streams).await;
        assert_eq!(content, "\"First is fine. Second is fine.");
        assert_eq!(choice["finish_reason"], "content_filter");
        assert_eq!(
            (&choice["safety"]["rewinds"], &choice["safety"]["reply"]["safety"]),
            (&json!(2), &json!("unsafe"))
        );
    }
    // A prompt is no reason to say nothing.
    let prompts = guarded(Action::Rewind, |conversation| conversation.reply.is_none());
    let (content, choice) = reply(&prompts, recite(json!({})), false).await;
    assert_eq!(content, format!("\"{TEXT}\""));
    assert_eq!(choice["safety"]["prompt"]["safety"], "unsafe");
}

/// Has the model say one text, and another once the guard has objected.
#[derive(Debug, Clone)]
struct Script {
    texts: [&'static str; 2],
    objections: Arc<AtomicUsize>,
    written: usize,
}

impl Constraint for Script {
    fn mask(&mut self) -> Option<Vec<u32>> {
        let text = self.texts[self.objections.load(Ordering::SeqCst).min(1)];
        let end = tiny_tokenizer().end_ids()[0];
        Some(only(
            text.as_bytes().get(self.written).map_or(end, |&byte| byte.into()),
        ))
    }

    fn accept(&mut self, _: u32) {
        self.written += 1;
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

fn order(grammar: Option<Box<dyn Constraint>>, max_new_tokens: usize) -> Order {
    let prompt = Prompt {
        ids: tiny_tokenizer().encode_plain("Hello").unwrap(),
        messages: vec![Message::user("Hello")],
        mode: Mode::NoThink,
    };
    let sampling = Sampling {
        max_new_tokens,
        logit_bias: [(256, -100.0), (258, -100.0)].into(),
        ..Sampling::default()
    };
    Order {
        rendered: Rendered {
            prompt,
            thinks: false,
        },
        drawing: Drawing {
            sampling,
            count: 1,
            stop: vec![],
        },
        tools: false,
        likeliest: 0,
        thinking_budget: None,
        grammar,
    }
}

fn content(step: &Step) -> String {
    let text = |delta: &Delta| match delta {
        Delta::Content(text) => text.clone(),
        _ => String::new(),
    };
    step.deltas.iter().map(text).collect()
}

#[tokio::test]
async fn after_a_rewind_the_reply_says_something_else() {
    let objections = Arc::new(AtomicUsize::new(0));
    let script = Script {
        texts: [
            "First is fine. Second is bad. Third is worse.",
            "First is fine. I say no more.",
        ],
        objections: Arc::clone(&objections),
        written: 0,
    };
    let guardrail = guardrail(Action::Rewind, move |conversation| {
        let harmful = says(conversation, "bad");
        objections.fetch_add(usize::from(harmful), Ordering::SeqCst);
        moderation(harmful)
    });
    let order = order(Some(Box::new(script)), 200);
    let mut generation = Generation::start(&model(Limits::default()), Some(&guardrail), order)
        .await
        .unwrap();
    let mut all = String::new();
    let mut end = None;
    while let Some(step) = generation.next().await.unwrap() {
        all.push_str(&content(&step));
        end = step.end.or(end);
    }
    // The nudge is no part of it.
    assert_eq!(all, "First is fine. I say no more.");
    let end = end.unwrap();
    assert_eq!((end.reason, &end.safety.unwrap()["rewinds"]), ("stop", &json!(1)));
    // What was taken back was drawn all the same.
    assert!(generation.usage().completion > all.len() + 1);
}

#[tokio::test]
async fn what_a_guard_cannot_judge_is_held_back_or_marked() {
    let fails = |conversation: &Conversation| {
        if says(conversation, "Third") {
            return Scored::Unscorable("no verdict".into());
        }
        moderation(false)
    };
    let hangs = |conversation: &Conversation| {
        if says(conversation, "Third") {
            std::thread::sleep(Duration::from_secs(8));
        }
        moderation(false)
    };
    for action in [Action::Annotate, Action::Block, Action::Rewind] {
        let mut hanging = guardrail(action, hangs);
        hanging.patience = Duration::from_secs(2);
        for guardrail in [guardrail(action, fails), hanging] {
            let (content, choice) = reply(&guarded_by(guardrail), recite(json!({})), true).await;
            let told = &choice["safety"]["reply"];
            assert!(
                told["unscorable"].as_str().unwrap().contains("no verdict"),
                "{choice}"
            );
            assert_eq!(told["risk_line"][2]["risk"], Value::Null);
            assert_eq!(choice["safety"]["rewinds"], 0);
            if action == Action::Annotate {
                assert_eq!(content, format!("\"{TEXT}\""));
                assert_eq!(choice["finish_reason"], "stop");
            } else {
                assert_eq!(content, "\"First is fine. Second is fine.");
                assert_eq!(choice["finish_reason"], "content_filter");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_reply_along() {
    let metrics = Arc::new(crate::Metrics::default());
    let scheduler = Scheduler::start(tiny_engine(), "tiny", Limits::default(), Arc::clone(&metrics)).unwrap();
    let model = Model {
        scheduler,
        ..model(Limits::default())
    };
    let guardrail = strict(Action::Block, |_| false);
    let mut generation = Generation::start(&model, Some(&guardrail), order(None, 1500))
        .await
        .unwrap();
    assert!(generation.next().await.unwrap().unwrap().end.is_none());
    drop(generation);
    let cancelled = "saferl_cancelled_total{model=\"tiny\"} 1";
    for _ in 0..200 {
        if metrics.render().contains(cancelled) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{}", metrics.render());
}
