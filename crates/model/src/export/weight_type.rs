//! What a weight becomes in a GGUF file.
//!
//! The mix is llama.cpp's, so that a file of a given name holds what people expect of that name. Facts taken from
//! `src/llama-quant.cpp` of llama.cpp as the Python package llama-cpp-python 0.3.36 carries it (functions
//! `llama_tensor_get_type_impl`, `tensor_type_fallback`, `tensor_allows_quantization`):
//! - vectors and norms stay f32;
//! - the head, and the embedding where it is the head, are Q6_K, but Q8_0 in a Q8_0 file;
//! - in Q4_K_M, `attn_v` and `ffn_down` are Q6_K in the first and the last eighth of the layers and in every third one
//!   between, the rest Q4_K; an `attn_v` that stays Q4_K in the 80-layer models with grouped queries is Q5_K;
//! - where a row does not fill whole blocks of 256: Q4_K becomes Q5_0, Q5_K Q5_1, Q6_K Q8_0; where it does not fill
//!   blocks of 32 either: F16.
//!
//! Left out: importance matrices, without which llama.cpp's own program quantises too.

use candle_core::quantized::GgmlDType;

use crate::config::{Config, Family};

/// The type of a GGUF file, by the type that most of its weights have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// Every weight in 32 bits.
    F32,
    /// Matrices in IEEE half precision.
    F16,
    /// Matrices in bfloat16.
    Bf16,
    /// Matrices in 8 bits, with a scale for every 32.
    Q8_0,
    /// Matrices in 4 bits, with a scale for every 32.
    Q4_0,
    /// Matrices in 4 bits and 6 bits, by llama.cpp's medium mix.
    Q4KM,
    /// Matrices in 6 bits.
    Q6K,
}

impl WeightType {
    /// All types, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4KM,
        Self::Q6K,
    ];

    /// `general.file_type`, as llama.cpp numbers it.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    /// Whether the file holds integers with scales.
    pub(super) fn quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    fn usual(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4KM => GgmlDType::Q4K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }

    /// The type of the tensor with this GGUF name and shape in a file of this type.
    pub(super) fn of_tensor(self, config: &Config, name: &str, shape: &[usize]) -> GgmlDType {
        let &[_, columns] = shape else {
            return GgmlDType::F32;
        };
        let usual = self.usual();
        if !self.quantized() {
            return usual;
        }
        let head = name == "output.weight" || (config.tied && name == "token_embd.weight");
        let wanted = if head && self != Self::Q8_0 {
            GgmlDType::Q6K
        } else if self == Self::Q4KM {
            medium_mix(config, name)
        } else {
            usual
        };
        fitting(wanted, columns)
    }
}

/// Q4_K_M's choice between Q4_K and more bits.
fn medium_mix(config: &Config, name: &str) -> GgmlDType {
    let mut parts = name.split('.').skip(1);
    let layer = parts.next().and_then(|layer| layer.parse::<usize>().ok());
    let (Some(layer), Some(part @ ("attn_v" | "ffn_down"))) = (layer, parts.next()) else {
        return GgmlDType::Q4K;
    };
    let eighth = config.layers / 8;
    let between = || (layer - eighth) % 3 == 2;
    if layer < eighth || layer >= 7 * config.layers / 8 || between() {
        return GgmlDType::Q6K;
    }
    let grouped = config.family == Family::Qwen2 || config.heads != config.key_value_heads;
    if part == "attn_v" && config.layers == 80 && config.family != Family::Qwen3 && grouped {
        return GgmlDType::Q5K;
    }
    GgmlDType::Q4K
}

/// The nearest type whose blocks a row of `columns` numbers fills.
fn fitting(wanted: GgmlDType, columns: usize) -> GgmlDType {
    if columns.is_multiple_of(wanted.block_size()) {
        return wanted;
    }
    let smaller = match wanted {
        GgmlDType::Q4K => GgmlDType::Q5_0,
        GgmlDType::Q5K => GgmlDType::Q5_1,
        GgmlDType::Q6K => GgmlDType::Q8_0,
        other => other,
    };
    if columns.is_multiple_of(smaller.block_size()) {
        smaller
    } else {
        GgmlDType::F16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;

    #[test]
    fn the_medium_mix_gives_more_bits_where_llama_cpp_does() {
        let mut config = seeded::tiny_config(Family::Qwen3, false).unwrap();
        config.layers = 16;
        let kind = |name: &str| WeightType::Q4KM.of_tensor(&config, name, &[512, 512]);
        let more: Vec<usize> = (0..16)
            .filter(|layer| kind(&format!("blk.{layer}.attn_v.weight")) == GgmlDType::Q6K)
            .collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(kind("blk.0.ffn_down.weight"), GgmlDType::Q6K);
        assert_eq!(kind("blk.0.attn_q.weight"), GgmlDType::Q4K);
        assert_eq!(kind("blk.2.ffn_down.weight"), GgmlDType::Q4K);
        assert_eq!(kind("output.weight"), GgmlDType::Q6K);
        assert_eq!(kind("token_embd.weight"), GgmlDType::Q4K);
        assert_eq!(
            WeightType::Q4KM.of_tensor(&config, "output_norm.weight", &[512]),
            GgmlDType::F32
        );
        config.tied = true;
        let kind = |kind: WeightType| kind.of_tensor(&config, "token_embd.weight", &[512, 512]);
        assert_eq!(kind(WeightType::Q4_0), GgmlDType::Q6K);
        assert_eq!(kind(WeightType::Q8_0), GgmlDType::Q8_0);
    }

    #[test]
    fn rows_that_do_not_fill_blocks_fall_back() {
        let config = seeded::tiny_config(Family::Qwen3, true).unwrap();
        for (wanted, columns, expected) in [
            (WeightType::Q4KM, 576, GgmlDType::Q5_0),
            (WeightType::Q6K, 576, GgmlDType::Q8_0),
            (WeightType::Q6K, 48, GgmlDType::F16),
            (WeightType::Q4_0, 48, GgmlDType::F16),
            (WeightType::Bf16, 48, GgmlDType::BF16),
        ] {
            let found = wanted.of_tensor(&config, "blk.0.attn_q.weight", &[64, columns]);
            assert_eq!(found, expected, "{wanted:?} {columns}");
        }
    }
}
