//! Tiny models with weights from integer hashes: the same numbers in Rust and in `goldens/logits/seeded.py`, on any
//! machine, without a download. They know nothing; they are for tests, smoke runs and continuous integration.
//!
//! Element `index` of the tensor `name` (row-major) comes from `mix(fnv1a(name) + index * 0x9e3779b9)`, all in 32-bit
//! wrapping arithmetic, with the 32-bit finaliser `mix` below. Its upper 24 bits as a fraction in [-1, 1) are scaled:
//! norms lie within 0.1 of 1, biases and the embedding within 0.1 of 0, every other matrix within the root of 3 / inputs,
//! which gives it a spread that keeps activations near one.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use crate::config::{Config, Family};
use crate::decoder::Decoder;
use crate::source::{Source, WeightsFormat};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::{Error, Result};

/// The tokens after the 256 bytes, and whether skipping special tokens skips them; ids count on from 256.
pub const ADDED_TOKENS: [(&str, bool); 5] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<think>", false),
    ("</think>", false),
];

/// A chat template in the manner of the family's: turns between marks, an empty think block where thinking is off,
/// earlier thinking dropped. It knows no tools.
pub const CHAT_TEMPLATE: &str = r#"{%- for message in messages -%}
{%- set content = message.content -%}
{%- if message.role == "assistant" -%}
{%- set content = content.split("</think>")[-1].lstrip("\n") -%}
{%- endif -%}
{{- "<|im_start|>" + message.role + "\n" + content + "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- "<|im_start|>assistant\n" -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- "<think>\n\n</think>\n\n" -}}
{%- endif -%}
{%- endif -%}
"#;

/// `config.json` of the tiny model of a family: two blocks of width 32, four heads over two key/value heads, and a
/// vocabulary padded to 320. Head width is apart from hidden / heads where the family allows it.
pub fn tiny_fields(family: Family, tied: bool) -> Map<String, Value> {
    let mut fields = Map::from_iter([
        ("architectures".to_owned(), json!([family.architecture()])),
        ("model_type".to_owned(), json!(family.model_type())),
        ("hidden_act".to_owned(), json!("silu")),
        ("hidden_size".to_owned(), json!(32)),
        ("intermediate_size".to_owned(), json!(48)),
        ("num_hidden_layers".to_owned(), json!(2)),
        ("num_attention_heads".to_owned(), json!(4)),
        ("num_key_value_heads".to_owned(), json!(2)),
        ("max_position_embeddings".to_owned(), json!(2048)),
        ("rms_norm_eps".to_owned(), json!(1e-6)),
        ("tie_word_embeddings".to_owned(), json!(tied)),
        ("vocab_size".to_owned(), json!(320)),
        ("bos_token_id".to_owned(), json!(256)),
        ("eos_token_id".to_owned(), json!(258)),
        ("pad_token_id".to_owned(), json!(256)),
    ]);
    // Both spellings of the rotary base occur in the world, so both occur here.
    match family {
        Family::Qwen3 | Family::Llama => {
            fields.insert(
                "rope_parameters".into(),
                json!({"rope_type": "default", "rope_theta": 50_000.0}),
            );
        }
        Family::Qwen2 | Family::Mistral => {
            fields.insert("rope_theta".into(), json!(50_000.0));
        }
    }
    if matches!(family, Family::Qwen3 | Family::Mistral) {
        fields.insert("head_dim".into(), json!(16));
    }
    if family == Family::Mistral {
        fields.insert("sliding_window".into(), Value::Null);
    }
    fields
}

/// The configuration of the tiny model of a family.
pub fn tiny_config(family: Family, tied: bool) -> Result<Config> {
    Config::from_fields(Path::new("config.json"), tiny_fields(family, tied))
}

/// The tiny model of a family, in f32 on the CPU.
pub fn tiny_decoder(family: Family, tied: bool) -> Result<Decoder> {
    decoder(&tiny_config(family, tied)?)
}

/// A decoder of any configuration with seeded weights, in f32 on the CPU.
pub fn decoder(config: &Config) -> Result<Decoder> {
    let mut weights: Weights = tensors(config)?.into_iter().collect();
    Decoder::from_weights(config, &mut weights, true, DType::F32, &Device::Cpu)
}

/// Writes the tiny model of a family, embeddings tied, as a Hugging Face folder: `config.json`,
/// `generation_config.json`, `model.safetensors`, and a byte-level tokenizer with its chat template.
pub fn write_tiny(folder: &Path, family: Family) -> Result<()> {
    tiny_decoder(family, true)?.save(folder, DType::F32)?;
    write_tokenizer(folder)
}

/// Writes the byte-level tokenizer of the tiny models: one token a byte with the byte as its id, then
/// [`ADDED_TOKENS`].
pub fn write_tokenizer(folder: &Path) -> Result<()> {
    let files = [
        ("tokenizer.json", format!("{:#}\n", tokenizer_json())),
        (
            "tokenizer_config.json",
            format!("{:#}\n", tokenizer_config_json()),
        ),
        (
            "generation_config.json",
            format!("{:#}\n", json!({"eos_token_id": [258, 256], "pad_token_id": 256})),
        ),
        ("chat_template.jinja", CHAT_TEMPLATE.to_owned()),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|source| Error::File { path, source })?;
    }
    Ok(())
}

/// The tokenizer of [`write_tokenizer`], by way of a folder that is gone afterwards.
pub fn tokenizer() -> Result<Tokenizer> {
    let folder = tempfile::tempdir().map_err(|source| Error::File {
        path: std::env::temp_dir(),
        source,
    })?;
    write_tokenizer(folder.path())?;
    Tokenizer::load(&Source {
        weights: WeightsFormat::None,
        folder: Some(folder.path().into()),
        name: "tiny".into(),
    })
}

fn tokenizer_json() -> Value {
    let vocabulary: Map<String, Value> = (0..=255u8)
        .map(|byte| (byte_character(byte).to_string(), json!(byte)))
        .collect();
    let added: Vec<Value> = (256..)
        .zip(ADDED_TOKENS)
        .map(|(id, (content, special))| {
            json!({
                "id": id, "content": content, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": null,
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

fn tokenizer_config_json() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": false,
    })
}

/// The character that stands for a byte in byte-level vocabularies: itself where it prints, else the next one from
/// U+0100 on.
pub(crate) fn byte_character(byte: u8) -> char {
    let prints = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if prints(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|&byte| !prints(byte)).count() as u32;
    char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Every tensor of a decoder of this configuration, seeded.
pub fn tensors(config: &Config) -> Result<Vec<(String, Tensor)>> {
    let (hidden, inner, width) = (config.hidden, config.intermediate, config.head_dim);
    let (heads, groups) = (config.heads * width, config.key_value_heads * width);
    let mut shapes = vec![(
        "model.embed_tokens.weight".to_owned(),
        vec![config.vocabulary, hidden],
    )];
    for layer in 0..config.layers {
        let mut add =
            |part: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{part}"), shape.into()));
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        if config.family == Family::Qwen3 {
            add("self_attn.q_norm.weight", &[width]);
            add("self_attn.k_norm.weight", &[width]);
        }
        for (part, outputs) in [("q_proj", heads), ("k_proj", groups), ("v_proj", groups)] {
            add(&format!("self_attn.{part}.weight"), &[outputs, hidden]);
            if config.attention_bias {
                add(&format!("self_attn.{part}.bias"), &[outputs]);
            }
        }
        add("self_attn.o_proj.weight", &[hidden, heads]);
        if config.output_bias {
            add("self_attn.o_proj.bias", &[hidden]);
        }
        add("mlp.gate_proj.weight", &[inner, hidden]);
        add("mlp.up_proj.weight", &[inner, hidden]);
        add("mlp.down_proj.weight", &[hidden, inner]);
    }
    shapes.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !config.tied {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocabulary, hidden]));
    }
    shapes
        .into_iter()
        .map(|(name, shape)| Ok((name.clone(), tensor(&name, &shape)?)))
        .collect()
}

/// One seeded tensor; its name decides its numbers and, with its shape, its scale (see the module's head).
pub fn tensor(name: &str, shape: &[usize]) -> Result<Tensor> {
    let (centre, scale) = match (name, shape) {
        (name, _) if name.ends_with("norm.weight") => (1.0, 0.1),
        (name, &[_, inputs]) if name != "model.embed_tokens.weight" => (0.0, (3.0 / inputs as f64).sqrt()),
        _ => (0.0, 0.1),
    };
    let start = fnv1a(name);
    let values = (0..shape.iter().product::<usize>() as u32)
        .map(|index| mix(start.wrapping_add(index.wrapping_mul(0x9e37_79b9))) >> 8)
        .map(|bits| (centre + scale * (f64::from(bits) / 8_388_608.0 - 1.0)) as f32)
        .collect();
    Ok(Tensor::from_vec::<_, f32>(values, shape, &Device::Cpu)?)
}

fn fnv1a(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

fn mix(mut hash: u32) -> u32 {
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x7feb_352d);
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x846c_a68b);
    hash ^ (hash >> 16)
}
