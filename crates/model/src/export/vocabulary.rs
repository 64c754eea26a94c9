//! A tokenizer as the metadata of a GGUF file: `tokenizer.ggml.*` and the chat template.
//!
//! GGUF names a way of splitting text instead of describing it, so only tokenizers whose way has a name that this
//! program reads back can be written. Left out: what the format has no place for (an added token that takes the spaces
//! beside it), and more end tokens than two, though llama.cpp knows the usual ones by their names.

use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, Value as Json};

use crate::config::Config;
use crate::tokenizer::Tokenizer;
use crate::tokenizer_gguf::{CONTROL, Style, USER_DEFINED};
use crate::{Error, Result};

/// `tokenizer.ggml.token_type` of an ordinary token, and of a row of the embedding that no token uses.
const NORMAL: i64 = 1;
const UNUSED: i64 = 5;
/// Names of ways to split text, each of which the reader knows.
const STYLES: [&str; 4] = ["gpt-2", "smollm", "qwen2", "llama-bpe"];

/// The pairs of metadata; `name` is the model's, for errors.
pub(super) fn metadata(name: &str, tokenizer: &Tokenizer, config: &Config) -> Result<Vec<(String, Value)>> {
    let described = describe(tokenizer)?;
    let style = style(&described).map_err(|what| Error::Source {
        name: name.into(),
        what,
        hint: Some("`saferl export hf` writes this model as a folder, tokenizer included".into()),
    })?;
    let (tokens, kinds) = tokens(tokenizer, config.vocabulary)?;
    let mut pairs = vec![
        ("model", Value::String("gpt2".into())),
        ("pre", Value::String(style.into())),
        ("tokens", texts(tokens)),
        ("token_type", Value::Array(kinds)),
        ("merges", texts(merges(&described)?)),
    ];
    for (key, id) in special_ids(tokenizer, config) {
        pairs.push((key, Value::U32(id)));
    }
    pairs.push(("add_bos_token", Value::Bool(begins(tokenizer, config)?)));
    let mut pairs: Vec<_> = pairs
        .into_iter()
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
        .collect();
    if let Some(chat) = tokenizer.chat() {
        let template = |key: &str, source: &str| (key.to_owned(), Value::String(source.into()));
        pairs.push(template("tokenizer.chat_template", &chat.source));
        if let Some(source) = &chat.tool_source {
            pairs.push(("tokenizer.chat_templates".into(), texts(vec!["tool_use".into()])));
            pairs.push(template("tokenizer.chat_template.tool_use", source));
        }
    }
    Ok(pairs)
}

/// Whether the tokenizer puts the start token before a text, where special tokens are asked for.
pub(super) fn begins(tokenizer: &Tokenizer, config: &Config) -> Result<bool> {
    let encoding = tokenizer
        .full()
        .encode("a", true)
        .map_err(|error| Error::Tokenizer(error.to_string()))?;
    let begin = named_id(tokenizer, config, "bos");
    Ok(begin.is_some() && encoding.get_ids().first().copied() == begin)
}

fn texts(list: Vec<String>) -> Value {
    Value::Array(list.into_iter().map(Value::String).collect())
}

/// The tokenizer as its own JSON: the library tells merges and splitting in no other way.
fn describe(tokenizer: &Tokenizer) -> Result<Json> {
    let text = tokenizer
        .full()
        .to_string(false)
        .map_err(|error| Error::Tokenizer(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| Error::Tokenizer(error.to_string()))
}

/// GGUF's name of the way this tokenizer splits text, or what was expected and found instead.
fn style(described: &Json) -> std::result::Result<&'static str, String> {
    let model = &described["model"];
    if model["type"] != "BPE" || described["decoder"]["type"] != "ByteLevel" {
        return Err(format!(
            "tokenizer: expected byte-level BPE, which GGUF calls gpt2; found model {} with decoder {}",
            model["type"], described["decoder"]["type"]
        ));
    }
    let normalizer = &described["normalizer"];
    if model["merges"].as_array().is_some_and(Vec::is_empty) && normalizer.is_null() {
        // Tokens of one byte come out the same, however a text is split.
        return Ok(STYLES[0]);
    }
    let found = comparable(&described["pre_tokenizer"]);
    let composes = normalizer["type"] == "NFC";
    for name in STYLES {
        let Some(style) = Style::of(name).map_err(|error| error.to_string())? else {
            continue;
        };
        let splitting = serde_json::to_value(&style.pre_tokenizer).map_err(|error| error.to_string())?;
        let normalizes = normalizer.is_null() || (composes && style.compose);
        let whole = model["ignore_merges"].as_bool().unwrap_or(false);
        if comparable(&splitting) == found && normalizes && whole == style.ignore_merges {
            return Ok(name);
        }
    }
    Err(format!(
        "tokenizer: expected to split text as one of {}, found pre_tokenizer {found}, normalizer {normalizer} and \
         ignore_merges {}",
        STYLES.join(", "),
        model["ignore_merges"]
    ))
}

/// A pre-tokenizer without what changes no token: offsets, and a list around one alone.
fn comparable(splitting: &Json) -> Json {
    let list = splitting["pretokenizers"].as_array();
    match (list.map(Vec::as_slice), splitting) {
        (Some([alone]), _) => comparable(alone),
        (Some(list), _) => list.iter().map(comparable).collect(),
        (None, Json::Object(fields)) => {
            let kept = fields.iter().filter(|(key, _)| *key != "trim_offsets");
            Json::Object(
                kept.map(|(key, value)| (key.clone(), value.clone()))
                    .collect::<Map<_, _>>(),
            )
        }
        (None, other) => other.clone(),
    }
}

/// A text and a kind for every row of the embedding.
fn tokens(tokenizer: &Tokenizer, rows: usize) -> Result<(Vec<String>, Vec<Value>)> {
    if tokenizer.vocabulary() > rows {
        return Err(Error::Tokenizer(format!(
            "expected at most {rows} tokens, the rows of the embedding, found {}",
            tokenizer.vocabulary()
        )));
    }
    let full = tokenizer.full();
    let mut tokens: Vec<(String, i64)> = (0..rows).map(|id| (format!("[PAD{id}]"), UNUSED)).collect();
    for (token, id) in full.get_vocab(false) {
        tokens[id as usize] = (token, NORMAL);
    }
    for (id, token) in full.get_added_tokens_decoder() {
        let kind = if token.special { CONTROL } else { USER_DEFINED };
        tokens[id as usize] = (token.content, kind);
    }
    let kind = |kind: i64| Value::I32(kind as i32);
    Ok(tokens
        .into_iter()
        .map(|(token, number)| (token, kind(number)))
        .unzip())
}

/// The merges in their order, each as two tokens with a space between.
fn merges(described: &Json) -> Result<Vec<String>> {
    let merge = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        pair => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
    };
    described["model"]["merges"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|found| {
            merge(found)
                .filter(|text| text.matches(' ').count() == 1)
                .ok_or_else(|| {
                    Error::Tokenizer(format!(
                        "merges: expected two tokens without spaces, found {found}"
                    ))
                })
        })
        .collect()
}

/// The id of `bos`, `eos`, `unk` or `pad`: what the chat template calls so, else what `config.json` says.
fn named_id(tokenizer: &Tokenizer, config: &Config, short: &str) -> Option<u32> {
    let named = tokenizer
        .chat()
        .and_then(|chat| chat.special_tokens.get(&format!("{short}_token")))
        .and_then(|token| tokenizer.id(crate::template::token_text(Some(token))?));
    let listed = || match config.fields.get(&format!("{short}_token_id"))? {
        Json::Array(list) => list.first()?.as_u64(),
        id => id.as_u64(),
    };
    named
        .or_else(|| u32::try_from(listed()?).ok())
        .filter(|&id| (id as usize) < tokenizer.vocabulary())
}

/// GGUF's keys of special tokens, with their ids. Of the tokens that end a turn the first is `eos`; of the others, `eot`
/// is one that the chat template prints, if it prints one.
fn special_ids(tokenizer: &Tokenizer, config: &Config) -> Vec<(&'static str, u32)> {
    let ends = tokenizer.end_ids();
    let end = named_id(tokenizer, config, "eos").or(ends.first().copied());
    let printed = |id: &u32| {
        let token = tokenizer.full().id_to_token(*id).unwrap_or_default();
        tokenizer.chat().is_some_and(|chat| chat.source.contains(&token))
    };
    let turn = ends
        .iter()
        .copied()
        .filter(|&id| Some(id) != end)
        .max_by_key(printed);
    [
        ("bos_token_id", named_id(tokenizer, config, "bos")),
        ("eos_token_id", end),
        ("eot_token_id", turn),
        ("unknown_token_id", named_id(tokenizer, config, "unk")),
        ("padding_token_id", named_id(tokenizer, config, "pad")),
    ]
    .into_iter()
    .filter_map(|(key, id)| Some((key, id?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn described(pre_tokenizer: &Json, normalizer: &Json, whole: bool) -> Json {
        json!({
            "model": {"type": "BPE", "merges": [["a", "b"]], "ignore_merges": whole},
            "decoder": {"type": "ByteLevel"},
            "pre_tokenizer": pre_tokenizer,
            "normalizer": normalizer,
        })
    }

    fn bytes(splits: bool) -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": splits})
    }

    #[test]
    fn the_way_of_splitting_gets_its_name() {
        let digits = json!({"type": "Digits", "individual_digits": true});
        let sequence = |list: &[Json]| json!({"type": "Sequence", "pretokenizers": list});
        // As the tokenizer.json of Qwen3 and of Llama 3 spell them.
        let words = |number: &str| {
            let pattern = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            sequence(&[split, bytes(false)])
        };
        let (null, composed) = (Json::Null, json!({"type": "NFC"}));
        for (splitting, normalizer, whole, expected) in [
            (bytes(true), &null, false, "gpt-2"),
            (sequence(&[bytes(true)]), &null, false, "gpt-2"),
            (sequence(&[digits, bytes(true)]), &null, false, "smollm"),
            (words(r"\p{N}"), &composed, false, "qwen2"),
            (words(r"\p{N}{1,3}"), &null, true, "llama-bpe"),
        ] {
            assert_eq!(
                style(&described(&splitting, normalizer, whole)).unwrap(),
                expected
            );
        }
        for (splitting, normalizer, whole) in [
            (bytes(false), &null, false),
            (bytes(true), &composed, false),
            (words(r"\p{N}{1,3}"), &null, false),
            (words(r"\p{N}+"), &null, false),
        ] {
            let error = style(&described(&splitting, normalizer, whole)).unwrap_err();
            assert!(error.contains("gpt-2, smollm, qwen2, llama-bpe"), "{error}");
        }
        let error = style(&json!({"model": {"type": "Unigram"}})).unwrap_err();
        assert!(error.contains("found model \"Unigram\""), "{error}");
    }
}
