//! A model in the forms of other programs: a GGUF file, as llama.cpp and what builds on it read, and Ollama's Modelfile.
//!
//! Names and order of rows are the reader's ([`crate::weights::gguf`]), backwards. Left out: SentencePiece tokenizers,
//! importance matrices, files in several parts.

mod file;
mod ollama;
mod vocabulary;
mod weight_type;

use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use half::f16;
use rayon::prelude::*;

pub use ollama::modelfile;
pub use weight_type::WeightType;

use crate::config::{Config, Family};
use crate::decoder::Decoder;
use crate::tokenizer::Tokenizer;
use crate::weights::gguf::{ROPE_FACTORS, ROPE_KEYS, gguf_name, interleaved};
use crate::{Error, Result};

/// Rows that are encoded in one go.
const ROWS: usize = 64;

/// Writes `decoder` and `tokenizer` as one GGUF file at `path`, beside it first and renamed when whole. `name` is what
/// the file says the model is called; `progress` hears of tensors written, and of how many there are.
///
/// # Errors
/// Adapters that are not merged; a model or a tokenizer that llama.cpp has no form for; numbers that the type cannot
/// hold, with the tensor's name; a file that cannot be written.
pub fn write_gguf(
    path: &Path,
    name: &str,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    kind: WeightType,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    if decoder.adapters().is_some() {
        return Err(Error::Request("a model with adapters is exported merged".into()));
    }
    let config = &decoder.config;
    check(name, config)?;
    let mut metadata = architecture(name, config, kind)?;
    metadata.extend(vocabulary::metadata(name, tokenizer, config)?);
    let tensors = tensors(decoder)?;
    let entries: Vec<file::Entry> = tensors
        .iter()
        .map(|(name, tensor)| file::Entry {
            name: name.clone(),
            shape: tensor.dims().to_vec(),
            kind: kind.of_tensor(config, name, tensor.dims()),
        })
        .collect();
    file::write(path, &metadata, &entries, |index| {
        progress(index, entries.len());
        let (name, tensor) = &tensors[index];
        encode(name, tensor, entries[index].kind)
    })
}

/// Refuses what llama.cpp would compute otherwise.
fn check(name: &str, config: &Config) -> Result<()> {
    let llama = llama_architecture(config.family);
    let refuse = |what: &str| {
        Err(Error::Source {
            name: name.into(),
            what: format!(
                "{what}, which llama.cpp's {} does not have",
                architecture_name(config.family)
            ),
            hint: Some("`saferl export hf` writes this model as a folder".into()),
        })
    };
    if config.rope_scaling.is_some() && !llama {
        return refuse("its rotary frequencies are scaled as Llama 3's");
    }
    if config.output_bias && !llama {
        return refuse("its attention has a bias on the output");
    }
    Ok(())
}

fn llama_architecture(family: Family) -> bool {
    matches!(family, Family::Llama | Family::Mistral)
}

/// `general.architecture`: mistral goes by llama.
fn architecture_name(family: Family) -> &'static str {
    if llama_architecture(family) {
        Family::Llama.model_type()
    } else {
        family.model_type()
    }
}

fn architecture(name: &str, config: &Config, kind: WeightType) -> Result<Vec<(String, Value)>> {
    let text = |text: &str| Value::String(text.into());
    let mut pairs = vec![
        (
            "general.architecture".to_owned(),
            text(architecture_name(config.family)),
        ),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(name)),
        ("general.file_type".to_owned(), Value::U32(kind.file_type())),
    ];
    if kind.quantized() {
        pairs.push(("general.quantization_version".to_owned(), Value::U32(2)));
    }
    // Beyond a sliding window llama.cpp would attend to everything, which this model was not made for.
    let context = config
        .window
        .map_or(config.max_positions, |window| window.min(config.max_positions));
    let prefix = architecture_name(config.family);
    for (key, count) in [
        ("vocab_size", config.vocabulary),
        ("context_length", context),
        ("embedding_length", config.hidden),
        ("block_count", config.layers),
        ("feed_forward_length", config.intermediate),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        let count = u32::try_from(count).map_err(|_| Error::Source {
            name: name.into(),
            what: format!("{key}: expected a number below 2^32, found {count}"),
            hint: Some("`max_position_embeddings` in config.json is the context length".into()),
        })?;
        pairs.push((format!("{prefix}.{key}"), Value::U32(count)));
    }
    for (key, number) in [
        ("attention.layer_norm_rms_epsilon", config.norm_epsilon),
        ("rope.freq_base", config.rope_theta),
    ] {
        pairs.push((format!("{prefix}.{key}"), Value::F32(number as f32)));
    }
    if let Some(scaling) = &config.rope_scaling {
        let numbers = [
            scaling.factor,
            scaling.low_frequency_factor,
            scaling.high_frequency_factor,
            scaling.original_positions,
        ];
        let scaled = ROPE_KEYS.iter().zip(numbers);
        pairs.extend(scaled.map(|((key, _), number)| ((*key).to_owned(), Value::F64(number))));
    }
    Ok(pairs)
}

/// Every tensor by its GGUF name, rows in GGUF's order.
fn tensors(decoder: &Decoder) -> Result<Vec<(String, Tensor)>> {
    let config = &decoder.config;
    let permuted = llama_architecture(config.family);
    let mut list = Vec::new();
    for (name, tensor) in decoder.parameters()? {
        let tensor = match name.rsplit('.').nth(1) {
            Some("q_proj") if permuted => interleaved(&tensor, config.heads, config.head_dim)?,
            Some("k_proj") if permuted => interleaved(&tensor, config.key_value_heads, config.head_dim)?,
            _ => tensor,
        };
        let name = gguf_name(&name).ok_or_else(|| Error::Tensor {
            name,
            expected: "a tensor that GGUF has a name for".into(),
            found: "none".into(),
        })?;
        list.push((name, tensor));
    }
    if config.rope_scaling.is_some() {
        let plain = Config {
            rope_scaling: None,
            ..config.clone()
        };
        let frequencies = plain.frequencies().into_iter().zip(config.frequencies());
        let factors: Vec<f32> = frequencies.map(|(plain, scaled)| plain / scaled).collect();
        list.push((ROPE_FACTORS.to_owned(), Tensor::new(factors, decoder.device())?));
    }
    Ok(list)
}

/// The bytes of a tensor in a type; every core takes some of the rows, which share no block.
fn encode(name: &str, tensor: &Tensor, kind: GgmlDType) -> Result<Vec<u8>> {
    let tensor = tensor.to_device(&Device::Cpu)?;
    let rows = tensor.dim(0)?;
    let starts: Vec<usize> = (0..rows).step_by(ROWS).collect();
    let parts: Vec<Vec<u8>> = starts
        .into_par_iter()
        .map(|start| {
            let part = tensor.narrow(0, start, ROWS.min(rows - start))?;
            let numbers = part.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            check_range(name, &numbers, kind)?;
            // A copy: candle quantises the whole storage beneath a view.
            let part = Tensor::from_vec(numbers, part.shape(), &Device::Cpu)?;
            Ok(QTensor::quantize(&part, kind)?.data()?.into_owned())
        })
        .collect::<Result<_>>()?;
    Ok(parts.concat())
}

/// Refuses numbers that would become others without a word.
fn check_range(name: &str, numbers: &[f32], kind: GgmlDType) -> Result<()> {
    let largest = if kind == GgmlDType::F16 {
        f32::from(f16::MAX)
    } else {
        f32::MAX
    };
    let held = |number: &&f32| (-largest..=largest).contains(*number);
    match numbers.iter().find(|number| !held(number)) {
        None => Ok(()),
        Some(number) => Err(Error::Tensor {
            name: name.into(),
            expected: format!("numbers up to {largest:e}, which {kind:?} holds"),
            found: number.to_string(),
        }),
    }
}
