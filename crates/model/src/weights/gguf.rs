//! GGUF files: metadata and quantised tensors, under Hugging Face names and shapes.
//!
//! The reader is the program's own; what it reads first is the header (`header.rs`). The format is described at
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Left out: version 1, big-endian files.

mod header;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use candle_core::{DType, Device, Tensor};
use kernels::Packed;
use serde_json::{Map, json};

use crate::config::{Config, Family};
use crate::weights::Stored;
use crate::{Error, Result};
use header::Entry;
pub use header::Header;

/// The tensor of factors that divide the rotary frequencies, as llama.cpp has Llama 3's scaling.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The scaling's own numbers, under keys of this program, beside their names in `config.json`.
pub(crate) const ROPE_KEYS: [(&str, &str); 4] = [
    ("saferl.rope.factor", "factor"),
    ("saferl.rope.low_freq_factor", "low_freq_factor"),
    ("saferl.rope.high_freq_factor", "high_freq_factor"),
    (
        "saferl.rope.original_context_length",
        "original_max_position_embeddings",
    ),
];

/// A tensor as the file has it.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Outermost dimension first.
    pub(crate) shape: Vec<usize>,
    dtype: GgmlDType,
    bytes: Vec<u8>,
}

impl Blocks {
    pub(crate) fn dequantize(&self) -> Result<Tensor> {
        let quantized = qtensor_from_ggml(self.dtype, &self.bytes, self.shape.clone(), &Device::Cpu)?;
        Ok(quantized.dequantize(&Device::Cpu)?)
    }

    /// The matrix in its blocks, for products of type `dtype`.
    pub(crate) fn packed(&self, dtype: DType) -> Result<Packed> {
        let &[rows, columns] = self.shape.as_slice() else {
            return Err(Error::Request(format!(
                "expected a matrix, found shape {:?}",
                self.shape
            )));
        };
        Ok(Packed::quantized(
            self.dtype,
            &self.bytes,
            (rows, columns),
            dtype,
        )?)
    }

    /// Whether [`Blocks::packed`] can be: a matrix of integers whose rows fill blocks.
    pub(crate) fn is_packable(&self) -> bool {
        Packed::keeps(self.dtype) && self.has_whole_rows()
    }

    fn has_whole_rows(&self) -> bool {
        matches!(self.shape.as_slice(), [_, columns] if columns.is_multiple_of(self.dtype.block_size()))
    }

    /// [`half_split`], without a change of type where rows are apart from each other.
    fn half_split(mut self, heads: usize, head_dim: usize) -> Result<Stored> {
        if !self.has_whole_rows() {
            return Ok(Stored::Tensor(half_split(&self.dequantize()?, heads, head_dim)?));
        }
        if self.shape[0] == heads * head_dim {
            let size = self.bytes.len() / self.shape[0];
            let mut bytes = Vec::with_capacity(self.bytes.len());
            for row in 0..self.shape[0] {
                let (head, row) = (row / head_dim, row % head_dim);
                let (half, index) = (row / (head_dim / 2), row % (head_dim / 2));
                let from = head * head_dim + 2 * index + half;
                bytes.extend(&self.bytes[from * size..][..size]);
            }
            self.bytes = bytes;
        }
        Ok(Stored::Blocks(self))
    }
}

impl Header {
    /// Reads and dequantizes every tensor to f32, renamed as Hugging Face names it, with llama's query and key rows
    /// in Hugging Face's order.
    pub fn tensors(&self, config: &Config) -> Result<Vec<(String, Tensor)>> {
        let stored = self.stored(config)?.into_iter();
        stored
            .map(|(name, stored)| Ok((name, stored.tensor()?)))
            .collect()
    }

    /// Reads every tensor as it is, under the names and in the order of [`Header::tensors`].
    pub(crate) fn stored(&self, config: &Config) -> Result<Vec<(String, Stored)>> {
        let permuted = self.text("general.architecture") == Some("llama");
        let mut file = File::open(&self.path).map_err(|source| Error::File {
            path: self.path.clone(),
            source,
        })?;
        // Tensors that share their bytes would let a small file fill the memory.
        let mut total = 0u64;
        for (name, entry) in &self.entries {
            total = total.saturating_add(self.extent(name, entry)?.1);
        }
        if total > self.file_length {
            let what = format!(
                "expected tensors apart from each other, found {total} bytes of them in a smaller file"
            );
            return Err(Error::Format {
                path: self.path.clone(),
                what,
            });
        }
        let mut tensors = Vec::with_capacity(self.entries.len());
        // The rotary factors are computed from the scaling's own numbers, see `rope_fields`.
        for (name, entry) in self.entries.iter().filter(|(name, _)| *name != ROPE_FACTORS) {
            let blocks = self.read_blocks(&mut file, name, entry)?;
            let name = hugging_face_name(name);
            let stored = match name.rsplit('.').nth(1) {
                Some("q_proj") if permuted => blocks.half_split(config.heads, config.head_dim)?,
                Some("k_proj") if permuted => blocks.half_split(config.key_value_heads, config.head_dim)?,
                _ => Stored::Blocks(blocks),
            };
            tensors.push((name, stored));
        }
        Ok(tensors)
    }

    fn read_blocks(&self, file: &mut File, name: &str, entry: &Entry) -> Result<Blocks> {
        let (start, length) = self.extent(name, entry)?;
        let mut bytes = vec![0u8; length as usize];
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| Error::File {
                path: self.path.clone(),
                source,
            })?;
        Ok(Blocks {
            shape: entry.shape.clone(),
            dtype: entry.dtype,
            bytes,
        })
    }

    /// The `config.json` that this file's metadata stands for.
    ///
    /// # Errors
    /// An architecture other than qwen3, qwen2 and llama (which mistral goes by too), rotary scaling, or a missing
    /// key.
    pub fn config_fields(&self) -> Result<Map<String, serde_json::Value>> {
        let family = match self.text("general.architecture") {
            Some("qwen3") => Family::Qwen3,
            Some("qwen2") => Family::Qwen2,
            Some("llama") => Family::Llama,
            other => return Err(self.wrong("general.architecture", "qwen3, qwen2 or llama", other)),
        };
        let key = |name: &str| format!("{}.{name}", family.model_type());
        let heads = self.count(&key("attention.head_count"))?;
        let hidden = self.count(&key("embedding_length"))?;
        if heads == 0 {
            return Err(self.wrong(&key("attention.head_count"), "at least 1", Some("0")));
        }
        let head_dim = self
            .optional_count(&key("attention.key_length"))
            .unwrap_or(hidden / heads);
        if let Some(kind) = self
            .text(&key("rope.scaling.type"))
            .filter(|kind| *kind != "none")
        {
            return Err(self.wrong(&key("rope.scaling.type"), "none", Some(kind)));
        }
        if let Some(rotated) = self
            .optional_count(&key("rope.dimension_count"))
            .filter(|&count| count != head_dim)
        {
            let expected = format!("all {head_dim} dimensions of a head");
            return Err(self.wrong(
                &key("rope.dimension_count"),
                &expected,
                Some(&rotated.to_string()),
            ));
        }
        let embedding = self.entries.get("token_embd.weight");
        let Some(&[vocabulary, _]) = embedding.map(|entry| entry.shape.as_slice()) else {
            return Err(self.wrong("token_embd.weight", "a tensor of vocabulary x width", None));
        };
        let mut fields = json!({
            "architectures": [family.architecture()],
            "model_type": family.model_type(),
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": self.count(&key("feed_forward_length"))?,
            "num_hidden_layers": self.count(&key("block_count"))?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.optional_count(&key("attention.head_count_kv")).unwrap_or(heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.count(&key("context_length"))?,
            "rms_norm_eps": self.number(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-6),
            "rope_parameters": self.rope_fields(self.number(&key("rope.freq_base")).unwrap_or(10_000.0))?,
            "attention_bias": self.entries.contains_key("blk.0.attn_output.bias"),
            "tie_word_embeddings": !self.entries.contains_key("output.weight"),
            "vocab_size": vocabulary,
        });
        for (field, key) in [
            ("bos_token_id", "bos"),
            ("eos_token_id", "eos"),
            ("pad_token_id", "padding"),
        ] {
            if let Some(id) = self.optional_count(&format!("tokenizer.ggml.{key}_token_id")) {
                fields[field] = json!(id);
            }
        }
        match fields {
            serde_json::Value::Object(fields) => Ok(fields),
            _ => Ok(Map::new()),
        }
    }

    /// `rope_parameters`: base and, where the file has factors for the frequencies, Llama 3's scaling. The factors
    /// alone do not tell its numbers, so a file that has them needs our own keys too ([`ROPE_KEYS`]).
    fn rope_fields(&self, theta: f64) -> Result<serde_json::Value> {
        if !self.entries.contains_key(ROPE_FACTORS) {
            return Ok(json!({"rope_type": "default", "rope_theta": theta}));
        }
        let mut fields = Map::from_iter([
            ("rope_type".to_owned(), json!("llama3")),
            ("rope_theta".to_owned(), json!(theta)),
        ]);
        for (key, field) in ROPE_KEYS {
            let number = self.number(key).ok_or_else(|| {
                let expected =
                    format!("a number, since tensor {ROPE_FACTORS} is there (or the model's HF folder)");
                self.wrong(key, &expected, None)
            })?;
            fields.insert(field.into(), json!(number));
        }
        Ok(fields.into())
    }
}

/// Names outside the blocks: GGUF's, Hugging Face's.
const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Names of a block's parts: GGUF's, Hugging Face's.
const PARTS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The Hugging Face name of a GGUF tensor; a name that has none stays, and ends as a tensor left over.
fn hugging_face_name(name: &str) -> String {
    if let Some((_, other)) = OUTER.iter().find(|(ours, _)| *ours == name) {
        return (*other).into();
    }
    let parts: Vec<&str> = name.split('.').collect();
    let &["blk", layer, part, kind] = parts.as_slice() else {
        return name.into();
    };
    match PARTS.iter().find(|(ours, _)| *ours == part) {
        Some((_, other)) => format!("model.layers.{layer}.{other}.{kind}"),
        None => name.into(),
    }
}

/// The GGUF name of a Hugging Face tensor, where there is one.
pub(crate) fn gguf_name(name: &str) -> Option<String> {
    if let Some((other, _)) = OUTER.iter().find(|(_, ours)| *ours == name) {
        return Some((*other).into());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (other, _) = PARTS.iter().find(|(_, ours)| *ours == part)?;
    Some(format!("blk.{layer}.{other}.{kind}"))
}

/// Rows of each head from interleaved pairs (0, h/2, 1, h/2 + 1, ...), as llama's GGUF files have them for their own
/// rotary convention, back to first half, second half. A tensor of another height is left to the shape check.
fn half_split(tensor: &Tensor, heads: usize, head_dim: usize) -> Result<Tensor> {
    let rows = tensor.dim(0)?;
    if rows != heads * head_dim {
        return Ok(tensor.clone());
    }
    let columns = tensor.elem_count() / rows;
    let pairs = tensor.reshape((heads, head_dim / 2, 2, columns))?;
    Ok(pairs.transpose(1, 2)?.contiguous()?.reshape(tensor.dims())?)
}

/// The inverse of [`half_split`]: rows of each head as interleaved pairs.
pub(crate) fn interleaved(tensor: &Tensor, heads: usize, head_dim: usize) -> Result<Tensor> {
    let columns = tensor.elem_count() / (heads * head_dim);
    let halves = tensor.reshape((heads, 2, head_dim / 2, columns))?;
    Ok(halves.transpose(1, 2)?.contiguous()?.reshape(tensor.dims())?)
}
