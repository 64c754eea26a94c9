//! The shape of a decoder, read from `config.json` or from a GGUF file's metadata.
//!
//! Both ways end in the same JSON fields, Hugging Face's own: a GGUF file's metadata is first written as the
//! `config.json` that it stands for (see [`crate::weights::gguf`]), so that a saved model always has one.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::source::{Source, WeightsFormat};
use crate::weights::gguf;
use crate::{Error, Result};

/// The model families that one decoder covers; they differ in biases, in norms of query and key, and in defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Norms of query and key per head; `head_dim` apart from hidden / heads.
    Qwen3,
    /// A bias on query, key and value.
    Qwen2,
    /// The plain decoder.
    Llama,
    /// As llama, with an optional sliding window.
    Mistral,
}

impl Family {
    /// The `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen3 => "qwen3",
            Self::Qwen2 => "qwen2",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
        }
    }

    /// The class that transformers loads a language model of this family with.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
        }
    }

    /// All families.
    pub const ALL: [Self; 4] = [Self::Qwen3, Self::Qwen2, Self::Llama, Self::Mistral];
}

/// Llama 3's stretching of the rotary frequencies: low ones divided by `factor`, high ones kept, a ramp between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// Divides the low frequencies.
    pub factor: f64,
    /// Wavelengths longer than the original context over this are low frequencies.
    pub low_frequency_factor: f64,
    /// Wavelengths shorter than the original context over this are high frequencies.
    pub high_frequency_factor: f64,
    /// The context length before stretching, in tokens.
    pub original_positions: f64,
}

/// The shape of a decoder and the constants of its arithmetic.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family.
    pub family: Family,
    /// Rows of the embedding; token ids are below it.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Inner width of the feed-forward block.
    pub intermediate: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square under the root of every RMSNorm.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the language-model head is the embedding.
    pub tied: bool,
    /// Whether query, key and value have a bias.
    pub attention_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Sequences must be shorter than this, where the model has a sliding window: within it, causal attention is
    /// exact; beyond it this decoder refuses, since it has no windowed attention.
    pub window: Option<usize>,
    /// `config.json` as it was read, so that a save keeps the fields this program does not use.
    pub fields: Map<String, Value>,
}

impl Config {
    /// Reads the configuration of `source`: the GGUF file's metadata, else `config.json` in its folder.
    ///
    /// # Errors
    /// A missing file, a family that the decoder does not cover, or a key whose value is missing or out of range;
    /// the error names the file and the key.
    pub fn load(source: &Source) -> Result<Self> {
        if let WeightsFormat::Gguf(path) = &source.weights {
            return Self::from_fields(path, gguf::Header::read(path)?.config_fields()?);
        }
        let Some(folder) = &source.folder else {
            return Err(Error::Source {
                name: source.name.clone(),
                what: "there is no folder that could hold config.json".into(),
                hint: None,
            });
        };
        Self::read(&folder.join("config.json"))
    }

    /// Reads one `config.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            path: path.into(),
            source,
        })?;
        let fields = serde_json::from_str(&text).map_err(|error| Error::Format {
            path: path.into(),
            what: format!("expected a JSON object: {error}"),
        })?;
        Self::from_fields(path, fields)
    }

    /// Interprets the fields of a `config.json`; `path` stands in the errors.
    pub fn from_fields(path: &Path, fields: Map<String, Value>) -> Result<Self> {
        let reader = Fields {
            path: path.into(),
            map: &fields,
        };
        let family = reader.family()?;
        reader.refuse_unknown_arithmetic()?;
        let hidden = reader.count("hidden_size")?;
        let heads = reader.count("num_attention_heads")?;
        let key_value_heads = reader.count_or("num_key_value_heads", heads)?;
        let head_dim = reader.count_or("head_dim", hidden / heads)?;
        if !heads.is_multiple_of(key_value_heads) {
            return Err(reader.wrong(
                "num_key_value_heads",
                &format!("a divisor of {heads} attention heads"),
            ));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(reader.wrong("head_dim", &format!("an even width, here {head_dim}")));
        }
        let bias = reader.flag_or("attention_bias", false)?;
        let windowed = reader.flag_or("use_sliding_window", family == Family::Mistral)?;
        let (rope_theta, rope_scaling) = reader.rope()?;
        let config = Self {
            family,
            vocabulary: reader.count("vocab_size")?,
            hidden,
            intermediate: reader.count("intermediate_size")?,
            layers: reader.count("num_hidden_layers")?,
            heads,
            key_value_heads,
            head_dim,
            norm_epsilon: reader.number_or("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            tied: reader.flag_or("tie_word_embeddings", false)?,
            attention_bias: bias || family == Family::Qwen2,
            output_bias: bias && family != Family::Qwen2,
            max_positions: reader.count_or("max_position_embeddings", usize::MAX)?,
            window: if windowed {
                reader.optional_count("sliding_window")?
            } else {
                None
            },
            fields: Map::new(),
        };
        Ok(Self { fields, ..config })
    }

    /// The fields to save: those that were read, with the type of the saved weights. Rotary settings that stand where
    /// transformers 5 has them are written where older readers look, too: MLX takes another base for granted without.
    pub(crate) fn fields_with_dtype(&self, dtype: &str) -> Map<String, Value> {
        let mut fields = self.fields.clone();
        fields.insert("dtype".into(), json!(dtype));
        if let Some(older) = fields.get_mut("torch_dtype") {
            *older = json!(dtype);
        }
        if let Some(rope) = fields.get("rope_parameters").cloned() {
            fields.insert("rope_theta".into(), json!(self.rope_theta));
            if self.rope_scaling.is_some() {
                fields.insert("rope_scaling".into(), rope);
            }
        }
        fields
    }

    /// The rotary frequencies, `head_dim / 2` of them, in radians a position.
    pub(crate) fn frequencies(&self) -> Vec<f32> {
        let base = self.rope_theta as f32;
        let width = self.head_dim as f32;
        (0..self.head_dim / 2)
            .map(|index| 1.0 / base.powf((2 * index) as f32 / width))
            .map(|frequency| {
                self.rope_scaling
                    .map_or(frequency, |scaling| scaling.stretch(frequency))
            })
            .collect()
    }
}

impl RopeScaling {
    fn stretch(&self, frequency: f32) -> f32 {
        let frequency = f64::from(frequency);
        let wavelengths = self.original_positions * frequency / std::f64::consts::TAU;
        let ramp = (wavelengths - self.low_frequency_factor)
            / (self.high_frequency_factor - self.low_frequency_factor);
        let kept = ramp.clamp(0.0, 1.0);
        (kept * frequency + (1.0 - kept) * frequency / self.factor) as f32
    }
}

/// Typed access to a JSON object whose errors name file and key. A null counts as absent, as in Python.
struct Fields<'a> {
    path: PathBuf,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.map.get(key).map_or("nothing".into(), ToString::to_string);
        Error::Format {
            path: self.path.clone(),
            what: format!("key `{key}`: expected {expected}, found {found}"),
        }
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        // Larger counts than a file could ever fill are refused here, so that products of two cannot overflow.
        match value.as_u64() {
            Some(count) if (1..=1 << 31).contains(&count) => Ok(Some(count as usize)),
            _ => Err(self.wrong(key, "a whole number from 1 to 2^31")),
        }
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?
            .ok_or_else(|| self.wrong(key, "a whole number from 1 to 2^31"))
    }

    fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_count(key)?.unwrap_or(default))
    }

    fn number(&self, key: &str) -> Result<f64> {
        match self.get(key).and_then(Value::as_f64) {
            Some(number) if number > 0.0 => Ok(number),
            _ => Err(self.wrong(key, "a positive number")),
        }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.get(key).is_some() {
            self.number(key)
        } else {
            Ok(default)
        }
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn family(&self) -> Result<Family> {
        let name = self.get("model_type").and_then(Value::as_str).unwrap_or_default();
        Family::ALL
            .into_iter()
            .find(|family| family.model_type() == name)
            .ok_or_else(|| self.wrong("model_type", "qwen3, qwen2, llama or mistral"))
    }

    /// Settings that would change the arithmetic in ways the decoder does not have.
    fn refuse_unknown_arithmetic(&self) -> Result<()> {
        if self.get("hidden_act").is_some_and(|name| name != "silu") {
            return Err(self.wrong("hidden_act", "\"silu\""));
        }
        if self.flag_or("mlp_bias", false)? {
            return Err(self.wrong("mlp_bias", "false"));
        }
        if self.get("quantization_config").is_some() {
            return Err(self.wrong("quantization_config", "unquantized safetensors (or a GGUF file)"));
        }
        Ok(())
    }

    /// Base and stretching of the rotary frequencies: from `rope_parameters` (transformers 5), else from
    /// `rope_theta` and `rope_scaling` (older).
    fn rope(&self) -> Result<(f64, Option<RopeScaling>)> {
        let outer = self.number_or("rope_theta", 10_000.0)?;
        let Some(key) = ["rope_parameters", "rope_scaling"]
            .into_iter()
            .find(|key| self.get(key).is_some())
        else {
            return Ok((outer, None));
        };
        let Some(map) = self.get(key).and_then(Value::as_object) else {
            return Err(self.wrong(key, "an object"));
        };
        let inner = Fields {
            path: self.path.clone(),
            map,
        };
        let theta = inner.number_or("rope_theta", outer)?;
        let kind = inner.get("rope_type").or_else(|| inner.get("type"));
        let scaling = match kind.and_then(Value::as_str) {
            None | Some("default") => None,
            Some("llama3") => Some(RopeScaling {
                factor: inner.number("factor")?,
                low_frequency_factor: inner.number("low_freq_factor")?,
                high_frequency_factor: inner.number("high_freq_factor")?,
                original_positions: inner.number("original_max_position_embeddings")?,
            }),
            Some(_) => return Err(self.wrong(key, "a rope_type of default or llama3")),
        };
        Ok((theta, scaling))
    }
}
