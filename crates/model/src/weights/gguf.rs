//! GGUF files: metadata and quantised tensors, under Hugging Face names and shapes.
//!
//! The reader is the program's own: every count, length and offset is held against the bytes that are left in the
//! file before anything is allocated, so a hostile header ends in an error. The format is described at
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Left out: version 1, big-endian files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use candle_core::{DType, Device, Tensor};
use kernels::Packed;
use serde_json::{Map, json};

use crate::config::{Config, Family};
use crate::weights::Stored;
use crate::{Error, Result};

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

/// Where a tensor lies in the file, and what it is.
#[derive(Debug, Clone)]
struct Entry {
    /// Outermost dimension first, as candle has it (the file has it last).
    shape: Vec<usize>,
    dtype: GgmlDType,
    /// Bytes from the start of the data.
    offset: u64,
}

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

/// The header of a GGUF file: its metadata and the list of its tensors.
#[derive(Debug)]
pub struct Header {
    path: PathBuf,
    /// The metadata by key, tokenizer and chat template included.
    pub metadata: HashMap<String, Value>,
    entries: HashMap<String, Entry>,
    data_start: u64,
    file_length: u64,
}

impl Header {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is not GGUF version 2 or 3, or ends before its header says; a tensor of a type
    /// other than F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::File {
            path: path.into(),
            source,
        })?;
        let file_length = file
            .metadata()
            .map_err(|source| Error::File {
                path: path.into(),
                source,
            })?
            .len();
        Bytes {
            path: path.into(),
            input: BufReader::new(file),
            position: 0,
            length: file_length,
        }
        .header()
    }

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

    /// First byte and length of a tensor's data, held against the file's length.
    fn extent(&self, name: &str, entry: &Entry) -> Result<(u64, u64)> {
        let block = entry.dtype.block_size();
        let elements = entry
            .shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size));
        let bytes = elements
            .filter(|_| entry.shape.last().unwrap_or(&1).is_multiple_of(block))
            .and_then(|elements| (elements / block).checked_mul(entry.dtype.type_size()));
        let start = self.data_start.checked_add(entry.offset);
        start
            .zip(bytes.map(|bytes| bytes as u64))
            .filter(|&(start, bytes)| {
                start
                    .checked_add(bytes)
                    .is_some_and(|end| end <= self.file_length)
            })
            .ok_or_else(|| Error::Tensor {
                name: name.into(),
                expected: format!(
                    "data that lies within the file's {} bytes, in rows of whole blocks of {block}",
                    self.file_length
                ),
                found: format!(
                    "shape {:?} of {:?} at offset {}",
                    entry.shape, entry.dtype, entry.offset
                ),
            })
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

    /// The text under a metadata key.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The whole number under a metadata key, of whatever width it was stored in.
    pub fn optional_count(&self, key: &str) -> Option<usize> {
        match *self.metadata.get(key)? {
            Value::U8(count) => Some(count.into()),
            Value::U16(count) => Some(count.into()),
            Value::U32(count) => usize::try_from(count).ok(),
            Value::U64(count) => usize::try_from(count).ok(),
            Value::I32(count) => usize::try_from(count).ok(),
            Value::I64(count) => usize::try_from(count).ok(),
            _ => None,
        }
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)
            .ok_or_else(|| self.wrong(key, "a whole number", None))
    }

    fn number(&self, key: &str) -> Option<f64> {
        match *self.metadata.get(key)? {
            Value::F32(number) => Some(number.into()),
            Value::F64(number) => Some(number),
            _ => None,
        }
    }

    fn wrong(&self, key: &str, expected: &str, found: Option<&str>) -> Error {
        let found = found.unwrap_or("nothing of that kind");
        Error::Format {
            path: self.path.clone(),
            what: format!("key `{key}`: expected {expected}, found {found}"),
        }
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

/// A file's bytes in order, counted against its length.
struct Bytes {
    path: PathBuf,
    input: BufReader<File>,
    position: u64,
    length: u64,
}

impl Bytes {
    fn error(&self, what: String) -> Error {
        Error::Format {
            path: self.path.clone(),
            what: format!("GGUF header, byte {}: {what}", self.position),
        }
    }

    /// Refuses a count of things, each at least `size` bytes, that the rest of the file cannot hold.
    fn fits(&self, count: u64, size: u64, thing: &str) -> Result<usize> {
        let left = self.length - self.position;
        match count.checked_mul(size) {
            Some(bytes) if bytes <= left => Ok(count as usize),
            _ => Err(self.error(format!(
                "{count} {thing} of at least {size} bytes do not fit in the {left} left"
            ))),
        }
    }

    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.fits(count, 1, "bytes")?];
        self.input.read_exact(&mut bytes).map_err(|source| Error::File {
            path: self.path.clone(),
            source,
        })?;
        self.position += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(&self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        // Some vocabularies hold pieces of characters; they must not make the file unreadable.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.take(1)? != [0]),
            8 => Value::String(self.string()?),
            9 => self.values(depth)?,
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(self.error(format!("expected a value type from 0 to 12, found {other}"))),
        })
    }

    fn values(&mut self, depth: usize) -> Result<Value> {
        // Arrays of arrays are legal; a chain of them would overflow the stack.
        if depth > 4 {
            return Err(self.error("arrays nest more than four deep".into()));
        }
        let kind = self.u32()?;
        let count = self.u64()?;
        let size = match kind {
            9 => 12,
            8 | 10..=12 => 8,
            4..=6 => 4,
            2 | 3 => 2,
            _ => 1,
        };
        let count = self.fits(count, size, "array elements")?;
        (0..count)
            .map(|_| self.value(kind, depth + 1))
            .collect::<Result<_>>()
            .map(Value::Array)
    }

    fn entry(&mut self) -> Result<(String, Entry)> {
        let name = self.string()?;
        let rank = self.u32()?;
        if rank > 4 {
            return Err(self.error(format!(
                "tensor {name}: expected at most 4 dimensions, found {rank}"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let size = self.u64()?;
            shape.push(
                usize::try_from(size).map_err(|_| self.error(format!("tensor {name}: dimension {size}")))?,
            );
        }
        shape.reverse();
        let dtype = match self.u32()? {
            0 => GgmlDType::F32,
            1 => GgmlDType::F16,
            2 => GgmlDType::Q4_0,
            3 => GgmlDType::Q4_1,
            6 => GgmlDType::Q5_0,
            7 => GgmlDType::Q5_1,
            8 => GgmlDType::Q8_0,
            12 => GgmlDType::Q4K,
            13 => GgmlDType::Q5K,
            14 => GgmlDType::Q6K,
            30 => GgmlDType::BF16,
            other => {
                let expected = "type F32 (0), F16 (1), Q4_0 (2), Q4_1 (3), Q5_0 (6), Q5_1 (7), Q8_0 (8), Q4_K (12), \
                                Q5_K (13), Q6_K (14) or BF16 (30)";
                return Err(Error::Tensor {
                    name,
                    expected: expected.into(),
                    found: format!("type {other}"),
                });
            }
        };
        let offset = self.u64()?;
        Ok((name, Entry { shape, dtype, offset }))
    }

    fn header(mut self) -> Result<Header> {
        if self.length < 24 || self.array()? != *b"GGUF" {
            return Err(self.error("expected the four letters GGUF".into()));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(self.error(format!("expected version 2 or 3, found {version}")));
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        // The least a pair can be: an empty key, a type, a byte; the least a tensor: an empty name, a rank, a type,
        // an offset.
        let pairs = self.fits(pairs, 13, "metadata pairs")?;
        let tensors = self.fits(tensors, 24, "tensors")?;
        let mut metadata = HashMap::new();
        for _ in 0..pairs {
            let key = self.string()?;
            let kind = self.u32()?;
            let value = self.value(kind, 0)?;
            metadata.insert(key, value);
        }
        let mut entries = HashMap::new();
        for _ in 0..tensors {
            let (name, entry) = self.entry()?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(self.error(format!("tensor {name} is there twice")));
            }
        }
        let mut header = Header {
            path: self.path.clone(),
            metadata,
            entries,
            data_start: 0,
            file_length: self.length,
        };
        let alignment = header.optional_count("general.alignment").unwrap_or(32) as u64;
        if !(1..=1 << 20).contains(&alignment) {
            return Err(self.error(format!(
                "key `general.alignment`: expected 1 to 2^20, found {alignment}"
            )));
        }
        header.data_start = self.position.next_multiple_of(alignment);
        Ok(header)
    }
}
