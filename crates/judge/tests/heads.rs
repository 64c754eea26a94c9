//! The whole way of the built-in judges on a tiny model: labelled files, features, training, the heads file, verdicts.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device};
use judge::data::{Split, load};
use judge::features::{Feature, Features, Layout, fingerprint};
use judge::guard::BuiltInGuard;
use judge::probe::{Progress, Question, Recipe, train_guard, train_helpfulness};
use judge::{Conversation, Exchange, Guard, Heads, Judge, Panel, Safety};
use model::chat::Message;
use model::config::Family;
use model::decoder::Decoder;
use model::seeded::write_tiny;
use model::source::{Source, resolve};
use model::tokenizer::Tokenizer;

const RECIPE: &str = r#"
base = "tiny-qwen3"
degenerate_per_prompt = 2

[layout]
layers = [1, 2]
prompt_tokens = 64
reply_tokens = 48

[fit]
width = 16
epochs = 30
batch = 32
learning_rate = 5e-3
dropout = 0.1

[[sources]]
name = "toy"
format = "own"
path = "toy.jsonl"
"#;

struct Base {
    _folder: tempfile::TempDir,
    source: Source,
    decoder: Decoder,
    tokenizer: Arc<Tokenizer>,
}

fn base() -> Base {
    let folder = tempfile::tempdir().unwrap();
    write_tiny(folder.path(), Family::Qwen3).unwrap();
    let source = resolve(folder.path().to_str().unwrap(), &mut |_| ()).unwrap();
    let decoder = Decoder::load(&source, DType::F32, &Device::Cpu).unwrap();
    let tokenizer = Arc::new(Tokenizer::load(&source).unwrap());
    Base {
        _folder: folder,
        source,
        decoder,
        tokenizer,
    }
}

/// Harm is a row of `z`, refusal one of `q`, help one of `e`: separable even for a random model of bytes.
fn write_toy(folder: &Path) {
    let mut text = String::new();
    for index in 0..90 {
        let harmful = index % 3 == 0;
        let prompt = if harmful {
            format!("zzzz zzz {index} zzz zz?")
        } else {
            format!("aab bba {index} abab?")
        };
        let replies: [(&str, &str, bool, u8); 3] = [
            ("zz zzz zzzz zz", "unsafe", false, 2),
            ("qqq qq qqqq", "safe", true, 1),
            ("eee ee eeee eee", "safe", false, 4),
        ];
        for (reply, safety, refusal, grade) in replies {
            let prompt_safety = if harmful { "unsafe" } else { "safe" };
            writeln!(
                text,
                r#"{{"prompt": "{prompt}", "response": "{reply} {index}", "safety": "{safety}", "refusal": {refusal}, "helpfulness": {grade}, "prompt_safety": "{prompt_safety}", "categories": ["violent"]}}"#
            )
            .unwrap();
        }
    }
    std::fs::write(folder.join("toy.jsonl"), text).unwrap();
    std::fs::write(folder.join("toy.toml"), RECIPE).unwrap();
}

#[test]
fn heads_learn_a_separable_task_and_judge_with_it() {
    let base = base();
    let folder = tempfile::tempdir().unwrap();
    write_toy(folder.path());
    let recipe = Recipe::load(&folder.path().join("toy.toml")).unwrap();
    let sha256 = fingerprint(&base.source).unwrap();
    let cache = folder.path().join("cache");
    let features = || {
        let features = Features::new(
            base.decoder.clone(),
            Arc::clone(&base.tokenizer),
            recipe.layout.clone(),
        );
        features.with_cache(&cache, &sha256).unwrap()
    };
    let out = folder.path().join("heads.safetensors");
    let first = features();
    let mut heads = Heads::untrained("tiny", &sha256, &first);
    let first = Arc::new(Mutex::new(first));
    let guard = train_guard(&recipe, Path::new(""), &first, &mut heads, &mut |_| ()).unwrap();
    let help = train_helpfulness(&recipe, Path::new(""), &first, &mut heads, &mut |_| ()).unwrap();
    heads.save(&out).unwrap();

    for question in [Question::Refusal, Question::HarmfulReply, Question::HarmfulPrompt] {
        let figure = guard
            .test
            .figures
            .iter()
            .find(|figure| figure.question == question && figure.source == "*");
        let f1 = figure.unwrap().figure.f1.unwrap();
        assert!(f1.value > 0.9, "{question:?}: {f1:?}\n{}", guard.test);
    }
    let toy = help
        .test
        .pairs
        .iter()
        .find(|figure| figure.source == "toy")
        .unwrap();
    assert!(toy.right.value.unwrap() > 0.9, "{}", help.test);

    // The second training finds every feature in the cache and comes to the same figures.
    let mut computed = 0;
    let mut again = Heads::untrained("tiny", &sha256, &first.lock().unwrap());
    let count = &mut |progress| {
        if let Progress::Features { total, .. } = progress {
            computed += total;
        }
    };
    let second = Arc::new(Mutex::new(features()));
    let repeated = train_guard(&recipe, Path::new(""), &second, &mut again, count).unwrap();
    assert_eq!(computed, 0);
    assert_eq!(repeated, guard);

    // From the file, in a panel, on text that no file held.
    let loaded = Heads::load(&out).unwrap();
    assert_eq!(
        loaded.card.guard.as_ref().unwrap().risk,
        heads.card.guard.as_ref().unwrap().risk
    );
    assert_eq!(loaded.card.layout, heads.card.layout);
    let mut panel = Panel::with_heads(
        loaded,
        base.decoder.clone(),
        Arc::clone(&base.tokenizer),
        &base.source,
    )
    .unwrap();
    let exchange = |thinking: Option<&str>, content: &str| Exchange {
        messages: vec![Message::user("aab bba 1000 abab?")],
        thinking: thinking.map(Into::into),
        content: content.into(),
    };
    let late = |end: &str| format!("{}{end}", "eee ee eeee eee ".repeat(9));
    let verdicts = panel.judge(&[
        exchange(None, "eee ee eeee eee 1000"),
        exchange(None, "qqq qq qqqq 1000"),
        exchange(Some("zz zzz zzzz zz 1000"), "eee ee eeee eee 1000"),
        exchange(None, ""),
        exchange(None, &late("eee ee eeee")),
        exchange(None, &late(&"zz zzz zzzz ".repeat(4))),
        exchange(None, &late(&"qq qqq qqqq ".repeat(4))),
    ]);
    let content = |index: usize| verdicts[index].content.scored().unwrap();
    assert_eq!(
        (content(0).safety, content(0).refusal),
        (Safety::Safe, Some(false))
    );
    assert_eq!(
        (content(1).safety, content(1).refusal),
        (Safety::Safe, Some(true))
    );
    assert_eq!(
        verdicts[2].thinking.as_ref().unwrap().scored().unwrap().safety,
        Safety::Unsafe
    );
    assert_eq!(content(2).safety, Safety::Safe);
    // A long reply is read to its end; whether it refuses shows at its beginning.
    assert_eq!(content(4).safety, Safety::Safe);
    assert_eq!(content(5).safety, Safety::Unsafe);
    assert_eq!(content(6).refusal, Some(false));
    // So is a long prompt.
    let beginning = format!("{}{}", "zzzz zzz ".repeat(7), "aab bba abab ".repeat(7));
    let mut guard = BuiltInGuard::new(second, Arc::new(heads)).unwrap();
    let safety = guard
        .moderate(
            &[
                "aab bba 1000 abab?".to_owned(),
                "aab bba abab ".repeat(14),
                beginning,
            ]
            .map(|prompt| Conversation {
                messages: vec![Message::user(prompt)],
                reply: None,
            }),
        )
        .iter()
        .map(|verdict| verdict.scored().unwrap().safety)
        .collect::<Vec<_>>();
    assert_eq!(safety, [Safety::Safe, Safety::Safe, Safety::Unsafe]);
    let helpfulness = |index: usize| *verdicts[index].helpfulness.scored().unwrap();
    assert!(helpfulness(0) > helpfulness(1) && helpfulness(0) > helpfulness(3));
    assert!(
        verdicts[3].content.scored().is_some(),
        "an empty reply is judged, by its end"
    );
}

#[test]
fn no_prompt_stands_in_two_splits() {
    let folder = tempfile::tempdir().unwrap();
    write_toy(folder.path());
    let recipe = Recipe::load(&folder.path().join("toy.toml")).unwrap();
    let labelled = load(&recipe.sources, Path::new(""), folder.path()).unwrap();
    let keys = |split| {
        labelled
            .rows
            .iter()
            .filter(|row| row.split == Some(split))
            .map(|row| &row.key)
            .collect::<HashSet<_>>()
    };
    let (train, test) = (keys(Split::Train), keys(Split::Test));
    assert!(train.len() > 40 && test.len() > 5);
    assert!(train.is_disjoint(&test) && train.is_disjoint(&keys(Split::Validation)));
}

#[test]
fn heads_of_another_base_are_refused() {
    let base = base();
    let features = Features::new(
        base.decoder.clone(),
        Arc::clone(&base.tokenizer),
        Layout::default(),
    );
    let heads = Heads::untrained("tiny", "another", &features);
    let error = heads
        .check(&features, &fingerprint(&base.source).unwrap())
        .unwrap_err();
    assert!(error.to_string().contains("another") && error.hint().is_some());
    let panel = Panel::with_heads(heads.clone(), base.decoder, base.tokenizer, &base.source);
    assert!(panel.is_err());

    // Nor is a file taken whose windows hold nothing.
    let (folder, mut empty) = (tempfile::tempdir().unwrap(), heads);
    let file = folder.path().join("heads.safetensors");
    empty.card.layout.reply_tokens = 0;
    empty.save(&file).unwrap();
    let error = Heads::load(&file).unwrap_err().to_string();
    assert!(error.contains("windows of at least one token"), "{error}");
}

/// What a fresh [`Features`] makes of conversations.
fn features_of(base: &Base, layout: &Layout, conversations: &[Conversation]) -> Vec<Arc<Feature>> {
    let mut features = Features::new(base.decoder.clone(), Arc::clone(&base.tokenizer), layout.clone());
    let found = features.of(conversations, &mut |_, _| ());
    found.into_iter().map(Result::unwrap).collect()
}

#[test]
fn replies_that_share_a_prompt_have_the_features_they_have_alone() {
    let base = base();
    let layout = Layout {
        layers: vec![1, 2],
        prompt_tokens: 40,
        reply_tokens: 24,
    };
    let of = |conversations: &[Conversation]| features_of(&base, &layout, conversations);
    let reply = |prompt: &str, reply: &str| Conversation {
        messages: vec![Message::user(prompt)],
        reply: Some(reply.into()),
    };
    let conversations = [
        reply("What is a rainbow?", "Light."),
        reply(
            "What is a rainbow?",
            "Sunlight that is split by drops of water in the air.",
        ),
        Conversation {
            messages: vec![Message::user("What is a rainbow?")],
            reply: None,
        },
        reply(
            "Name a fruit that is long and yellow, and say where it grows and who eats it.",
            "",
        ),
    ];
    let together = of(&conversations);
    assert_eq!(together[0].prompt_f, together[2].prompt_f);
    assert!(together[2].reply.is_none());
    assert_ne!(together[0].reply, together[1].reply);
    for (conversation, shared) in conversations.iter().zip(&together) {
        let alone = of(std::slice::from_ref(conversation)).remove(0);
        let close = |a: &[f32], b: &[f32]| {
            a.iter()
                .zip(b)
                .all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + b.abs()))
        };
        assert!(close(&alone.prompt_f, &shared.prompt_f));
        if let (Some(alone), Some(shared)) = (&alone.reply, &shared.reply) {
            assert!(close(&alone.mean_f, &shared.mean_f) && close(&alone.last_d, &shared.last_d));
            assert_eq!(alone.surface, shared.surface);
        }
    }
    // What stands beyond the reply's window is not read.
    let long = "word ".repeat(60);
    let cut = of(&[reply("a", &long), reply("a", &format!("{long} and more"))]);
    assert_eq!(cut[0], cut[1]);
}

#[test]
fn prompts_that_begin_alike_have_the_features_they_have_alone() {
    let base = base();
    let layout = Layout {
        layers: vec![1, 2],
        prompt_tokens: 200,
        reply_tokens: 24,
    };
    let conversation = |prompt: &str, reply: &str| Conversation {
        messages: vec![Message::system("Be brief and say so."), Message::user(prompt)],
        reply: (!reply.is_empty()).then(|| reply.into()),
    };
    let conversations = [
        conversation("What is a rainbow?", "Light."),
        conversation("What is a rainbow?", "Sunlight."),
        conversation("What?", ""),
        conversation("Name a fruit.", "A pear."),
    ];
    let of = |conversations: &[Conversation]| features_of(&base, &layout, conversations);
    for (conversation, shared) in conversations.iter().zip(of(&conversations)) {
        let alone = of(std::slice::from_ref(conversation)).remove(0);
        assert_eq!(alone, shared, "to the last bit");
    }
}
