//! Rendered text and token ids against those of transformers (goldens/render).
//!
//! The real tokenizers are not part of the repository: `SAFERL_QWEN3_TOKENIZER` names a folder with Qwen3's
//! tokenizer.json and tokenizer_config.json, `SAFERL_SMOLLM2` the GGUF file of smollm2-135m (else the cached one is
//! taken). Without them the tests say that they were skipped.

use std::path::{Path, PathBuf};

use model::chat::Message;
use model::source::{cache_folder, resolve};
use model::template::RenderOptions;
use model::tokenizer::Tokenizer;
use serde_json::Value;

fn golden(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../goldens/render")
        .join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    value
        .get("conversations")
        .unwrap_or(&value)
        .as_array()
        .unwrap()
        .clone()
}

fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::load(&resolve(path.to_str().unwrap(), &mut |_| {}).unwrap()).unwrap()
}

/// Renders every conversation of the golden; returns how many there were.
fn compare(tokenizer: &Tokenizer, file: &str) -> usize {
    let conversations = golden("conversations.json");
    let expected = golden(file);
    for golden in &expected {
        let name = golden["name"].as_str().unwrap();
        let conversation = conversations
            .iter()
            .find(|conversation| conversation["name"] == name)
            .unwrap();
        let messages: Vec<Message> = serde_json::from_value(conversation["messages"].clone()).unwrap();
        let options = RenderOptions {
            enable_thinking: conversation["enable_thinking"].as_bool(),
            generation_prompt: conversation["add_generation_prompt"].as_bool().unwrap_or(true),
            tools: conversation.get("tools").cloned(),
        };
        let rendered = tokenizer.render(&messages, &options).unwrap();
        assert_eq!(rendered.text, golden["text"].as_str().unwrap(), "{name}");
        match golden.get("ids") {
            Some(ids) => assert_eq!(serde_json::json!(rendered.ids), *ids, "{name}"),
            None => only_the_template_controls(tokenizer, &conversation["messages"], &rendered.ids, name),
        }
    }
    expected.len()
}

/// Someone typed control tokens: the ids must hold fewer of them than the text spells, none of them end-of-text, and
/// as many ends as starts of turns.
fn only_the_template_controls(tokenizer: &Tokenizer, messages: &Value, ids: &[u32], name: &str) {
    let count = |token: &str| {
        let id = tokenizer.id(token).unwrap();
        ids.iter().filter(|other| **other == id).count()
    };
    let turns = count("<|im_start|>");
    assert!(messages.to_string().contains('<') && turns >= 2, "{name}");
    // The last turn is open: the generation prompt.
    assert_eq!(count("<|im_end|>"), turns - 1, "{name}");
    assert_eq!(count("<|endoftext|>"), 0, "{name}");
}

#[test]
fn qwen3_renders_as_transformers_does() {
    let Some(folder) = std::env::var_os("SAFERL_QWEN3_TOKENIZER") else {
        eprintln!("SKIPPED: set SAFERL_QWEN3_TOKENIZER to the folder of Qwen3's tokenizer");
        return;
    };
    let tokenizer = tokenizer(Path::new(&folder));
    assert!(compare(&tokenizer, "qwen3.json") >= 14);
    let [think, end, turn, text] =
        ["<think>", "</think>", "<|im_end|>", "<|endoftext|>"].map(|t| tokenizer.id(t).unwrap());
    assert_eq!([think, end], [151_667, 151_668]);
    assert_eq!(tokenizer.end_ids(), [text, turn]);
    assert_eq!(tokenizer.vocabulary(), 151_669);
    assert_eq!(
        tokenizer.decode(&[think, end, turn], true).unwrap(),
        "<think></think>"
    );
}

#[test]
fn smollm2_renders_as_transformers_does() {
    let cached = || {
        Some(
            cache_folder()
                .ok()?
                .join("smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"),
        )
    };
    let path = std::env::var_os("SAFERL_SMOLLM2")
        .map(PathBuf::from)
        .or_else(cached)
        .filter(|path| path.exists());
    let Some(path) = path else {
        eprintln!(
            "SKIPPED: set SAFERL_SMOLLM2 to the GGUF file of smollm2-135m, or run `saferl pull smollm2-135m`"
        );
        return;
    };
    let tokenizer = tokenizer(&path);
    assert!(compare(&tokenizer, "smollm2.json") >= 14);
    assert_eq!(tokenizer.end_ids(), [0, 2]);
    assert_eq!(tokenizer.vocabulary(), 49_152);
}
