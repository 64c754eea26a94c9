//! The tokenizer and chat template in the metadata of a GGUF file.
//!
//! Left out: SentencePiece vocabularies (`tokenizer.ggml.model` = `llama`) and pre-tokenizers other than those below;
//! such a checkpoint's HF folder has a tokenizer.json.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::template::ChatTemplate;
use crate::tokenizer::Parts;
use crate::weights::gguf::Header;
use crate::{Error, Result};

/// `tokenizer.ggml.token_type` of a control token, and of one that a user added.
pub(crate) const CONTROL: i64 = 3;
pub(crate) const USER_DEFINED: i64 = 4;

/// Reads the tokenizer, the ids that end a turn and the chat template.
pub(crate) fn load(path: &Path) -> Result<Parts> {
    let header = Header::read(path)?;
    parts(&Metadata {
        path,
        values: &header.metadata,
    })
}

/// Typed look-ups whose errors name the file and the key.
struct Metadata<'a> {
    path: &'a Path,
    values: &'a HashMap<String, Value>,
}

impl<'a> Metadata<'a> {
    fn error(&self, what: String) -> Error {
        Error::Format {
            path: self.path.into(),
            what,
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(format!(
                "{key}: expected a string, found {:?}",
                other.value_type()
            ))),
        }
    }

    fn list(&self, key: &str) -> Result<&'a [Value]> {
        match self.values.get(key) {
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(self.error(format!(
                "{key}: expected an array, found {:?}",
                other.value_type()
            ))),
            None => Err(self.error(format!("{key}: expected an array, found nothing"))),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>> {
        let text = |(index, value): (usize, &'a Value)| match value {
            Value::String(text) => Ok(text.as_str()),
            other => Err(self.error(format!(
                "{key}[{index}]: expected a string, found {:?}",
                other.value_type()
            ))),
        };
        self.list(key)?.iter().enumerate().map(text).collect()
    }

    /// A token id and the token's name.
    fn token(&self, key: &str, tokens: &[&'a str]) -> Result<Option<(u32, &'a str)>> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        let id = integer(value).and_then(|id| u32::try_from(id).ok());
        match id.and_then(|id| Some((id, *tokens.get(id as usize)?))) {
            Some(found) => Ok(Some(found)),
            None => Err(self.error(format!(
                "{key}: expected an id below {}, found {value:?}",
                tokens.len()
            ))),
        }
    }
}

fn integer(value: &Value) -> Option<i64> {
    value
        .to_i64()
        .ok()
        .or_else(|| value.to_u64().ok().and_then(|value| i64::try_from(value).ok()))
        .or(match value {
            Value::I8(value) => Some(i64::from(*value)),
            Value::I16(value) => Some(i64::from(*value)),
            Value::I32(value) => Some(i64::from(*value)),
            _ => None,
        })
}

fn parts(metadata: &Metadata<'_>) -> Result<Parts> {
    match metadata.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        found => {
            return Err(metadata.error(format!(
                "tokenizer.ggml.model: expected `gpt2` (byte-level BPE), found `{}`; use the model's HF folder",
                found.unwrap_or("nothing")
            )));
        }
    }
    let tokens = metadata.texts("tokenizer.ggml.tokens")?;
    let style = Style::named(metadata)?;
    let mut full = tokenizers::Tokenizer::new(model(metadata, &tokens, style.ignore_merges)?);
    full.with_pre_tokenizer(Some(style.pre_tokenizer));
    full.with_decoder(Some(ByteLevel::default()));
    if style.compose {
        full.with_normalizer(Some(NFC));
    }
    full.add_tokens(&added_tokens(metadata, &tokens)?);
    let begins = match metadata.values.get("tokenizer.ggml.add_bos_token") {
        Some(Value::Bool(begins)) => *begins,
        // What llama.cpp takes for granted with this name.
        _ => style.ignore_merges,
    };
    let begin = metadata.token("tokenizer.ggml.bos_token_id", &tokens)?;
    if let Some((id, token)) = begin.filter(|_| begins) {
        full.with_post_processor(Some(begin_token(metadata, id, token)?));
    }

    let mut chat = metadata.text("tokenizer.chat_template")?.map(ChatTemplate::new);
    if let Some(chat) = &mut chat {
        chat.tool_source = metadata
            .text("tokenizer.chat_template.tool_use")?
            .map(str::to_owned);
    }
    let mut end_ids = Vec::new();
    for (key, name) in [
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("eot", ""),
        ("unknown", "unk_token"),
        ("padding", "pad_token"),
    ] {
        let Some((id, token)) = metadata.token(&format!("tokenizer.ggml.{key}_token_id"), &tokens)? else {
            continue;
        };
        if matches!(key, "eos" | "eot") {
            end_ids.push(id);
        }
        if let (Some(chat), false) = (&mut chat, name.is_empty()) {
            chat.special_tokens.insert(name.into(), token.into());
        }
    }
    Ok(Parts { full, end_ids, chat })
}

/// Puts the start token before a text where special tokens are asked for. This program never asks; what reads a folder
/// that it saves may.
fn begin_token(metadata: &Metadata<'_>, id: u32, token: &str) -> Result<TemplateProcessing> {
    let wrong = |error: String| metadata.error(format!("tokenizer.ggml.bos_token_id: {error}"));
    TemplateProcessing::builder()
        .try_single(vec![token.to_owned(), "$A".to_owned()])
        .map_err(wrong)?
        .special_tokens(vec![(token.to_owned(), id)])
        .build()
        .map_err(|error| wrong(error.to_string()))
}

fn model(metadata: &Metadata<'_>, tokens: &[&str], ignore_merges: bool) -> Result<BPE> {
    let mut vocabulary = Vocab::with_capacity(tokens.len());
    for (id, token) in (0u32..).zip(tokens) {
        if let Some(other) = vocabulary.insert((*token).to_owned(), id) {
            return Err(metadata.error(format!(
                "tokenizer.ggml.tokens: {token:?} stands twice, at {other} and {id}"
            )));
        }
    }
    let key = "tokenizer.ggml.merges";
    let merge = |(index, merge): (usize, &str)| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(metadata.error(format!(
            "{key}[{index}]: expected two tokens and a space, found {merge:?}"
        ))),
    };
    let merges = metadata
        .texts(key)?
        .into_iter()
        .enumerate()
        .map(merge)
        .collect::<Result<Vec<_>>>()?;
    BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(|error| metadata.error(format!("{key}: expected tokens of the vocabulary: {error}")))
}

fn added_tokens(metadata: &Metadata<'_>, tokens: &[&str]) -> Result<Vec<AddedToken>> {
    let key = "tokenizer.ggml.token_type";
    if !metadata.values.contains_key(key) {
        return Ok(Vec::new());
    }
    let kinds = metadata.list(key)?;
    if kinds.len() != tokens.len() {
        return Err(metadata.error(format!(
            "{key}: expected {} entries, found {}",
            tokens.len(),
            kinds.len()
        )));
    }
    let added = kinds
        .iter()
        .zip(tokens)
        .filter(|(_, token)| !token.is_empty())
        .filter_map(|(kind, token)| {
            let kind = integer(kind).filter(|kind| [CONTROL, USER_DEFINED].contains(kind))?;
            Some(AddedToken::from(*token, kind == CONTROL).normalized(false))
        });
    Ok(added.collect())
}

/// What stands behind a name in `tokenizer.ggml.pre`.
pub(crate) struct Style {
    pub(crate) pre_tokenizer: PreTokenizerWrapper,
    /// Whether text is brought into Unicode's composed form first.
    pub(crate) compose: bool,
    /// Whether a word that is a token is taken whole, before merges.
    pub(crate) ignore_merges: bool,
}

impl Style {
    fn named(metadata: &Metadata<'_>) -> Result<Self> {
        let key = "tokenizer.ggml.pre";
        let name = metadata.text(key)?.unwrap_or("default");
        Self::of(name)?.ok_or_else(|| {
            metadata.error(format!(
                "{key}: expected default, gpt-2, smollm, qwen2 or llama-bpe, found `{name}`; use the model's HF folder"
            ))
        })
    }

    /// The style that goes by `name`; `None` where it is not known.
    pub(crate) fn of(name: &str) -> Result<Option<Self>> {
        let byte_level = || PreTokenizerWrapper::from(ByteLevel::new(false, true, true));
        let plain = |pre_tokenizer| Self {
            pre_tokenizer,
            compose: false,
            ignore_merges: false,
        };
        Ok(Some(match name {
            "default" | "gpt-2" => plain(byte_level()),
            "smollm" => plain(Sequence::new(vec![Digits::new(true).into(), byte_level()]).into()),
            "qwen2" | "deepseek-r1-qwen" => Self {
                compose: true,
                ..plain(by_words(r"\p{N}")?)
            },
            "llama-bpe" | "llama3" => Self {
                ignore_merges: true,
                ..plain(by_words(r"\p{N}{1,3}")?)
            },
            _ => return Ok(None),
        }))
    }
}

/// The split of GPT-4's family: contractions, words with one sign before them, numbers, signs, line ends, spaces.
fn by_words(number: &str) -> Result<PreTokenizerWrapper> {
    let pattern = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        number,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|");
    let split = Split::new(
        SplitPattern::Regex(pattern),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(|error| Error::Tokenizer(format!("tokenizer.ggml.pre: {error}")))?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, false, false).into()]).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    fn texts(list: &[&str]) -> Value {
        Value::Array(list.iter().map(|text| Value::String((*text).into())).collect())
    }

    fn metadata() -> HashMap<String, Value> {
        let mut letters: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        letters.sort();
        let mut tokens: Vec<&str> = letters.iter().map(String::as_str).collect();
        tokens.extend(["ab", "12", "34", "ĠĠ", "<|im_end|>", "<think>"]);
        let mut kinds = vec![Value::I32(1); tokens.len() - 2];
        kinds.extend([Value::I32(3), Value::I32(4)]);
        HashMap::from([
            ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
            ("tokenizer.ggml.pre".into(), Value::String("qwen2".into())),
            ("tokenizer.ggml.tokens".into(), texts(&tokens)),
            (
                "tokenizer.ggml.merges".into(),
                texts(&["a b", "1 2", "3 4", "Ġ Ġ"]),
            ),
            ("tokenizer.ggml.token_type".into(), Value::Array(kinds)),
            ("tokenizer.ggml.eos_token_id".into(), Value::U32(260)),
            (
                "tokenizer.chat_template".into(),
                Value::String("{{ messages[0].content }}{{ eos_token }}".into()),
            ),
        ])
    }

    fn tokenizer(values: &HashMap<String, Value>) -> Result<Tokenizer> {
        Tokenizer::from_parts(parts(&Metadata {
            path: Path::new("model.gguf"),
            values,
        })?)
    }

    #[test]
    fn metadata_becomes_a_tokenizer() {
        let tokenizer = tokenizer(&metadata()).unwrap();
        assert_eq!(
            tokenizer.encode_control("ab<think><|im_end|>").unwrap(),
            [256, 261, 260]
        );
        assert_eq!(tokenizer.decode(&[256, 261, 260], true).unwrap(), "ab<think>");
        assert_eq!(tokenizer.end_ids(), [260]);
        assert_eq!(tokenizer.vocabulary(), 262);
        let messages = [crate::chat::Message::user("ab<think>")];
        let rendered = tokenizer
            .render(&messages, &crate::template::RenderOptions::default())
            .unwrap();
        assert_eq!(rendered.text, "ab<think><|im_end|>");
        assert_eq!((rendered.ids[0], rendered.ids.len()), (256, 9));
    }

    #[test]
    fn every_style_splits_numbers_and_spaces_its_way() {
        for (pre, expected) in [
            ("default", "12 34 Ġ Ġ 5"),
            ("smollm", "1 2 3 4 ĠĠ 5"),
            ("qwen2", "1 2 3 4 Ġ Ġ 5"),
            ("llama-bpe", "12 3 4 Ġ Ġ 5"),
        ] {
            let mut values = metadata();
            values.insert("tokenizer.ggml.pre".into(), Value::String(pre.into()));
            let full = parts(&Metadata {
                path: Path::new("model.gguf"),
                values: &values,
            })
            .unwrap()
            .full;
            let encoding = full.encode("1234  5", false).unwrap();
            assert_eq!(encoding.get_tokens().join(" "), expected, "{pre}");
        }
    }

    #[test]
    fn an_error_names_the_key() {
        let broken = [
            (
                "tokenizer.ggml.model",
                Value::String("llama".into()),
                "found `llama`",
            ),
            (
                "tokenizer.ggml.pre",
                Value::String("bloom".into()),
                "found `bloom`",
            ),
            ("tokenizer.ggml.tokens", Value::U32(1), "expected an array"),
            ("tokenizer.ggml.tokens", texts(&["a", "a"]), "stands twice"),
            ("tokenizer.ggml.merges", texts(&["ab"]), "merges[0]"),
            (
                "tokenizer.ggml.merges",
                texts(&["a é"]),
                "tokens of the vocabulary",
            ),
            (
                "tokenizer.ggml.token_type",
                Value::Array(vec![]),
                "expected 262 entries, found 0",
            ),
            (
                "tokenizer.ggml.eos_token_id",
                Value::U32(262),
                "expected an id below 262",
            ),
            (
                "tokenizer.ggml.eos_token_id",
                Value::I32(-1),
                "expected an id below 262",
            ),
            ("tokenizer.chat_template", Value::Bool(true), "expected a string"),
        ];
        for (key, value, expected) in broken {
            let mut values = metadata();
            values.insert(key.into(), value);
            let error = tokenizer(&values).unwrap_err().to_string();
            assert!(
                error.contains(key) && error.contains(expected) && error.contains("model.gguf"),
                "{error}"
            );
        }
    }
}
