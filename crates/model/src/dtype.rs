//! The numbers that recipes let a model compute in.

use candle_core::DType;
use serde::{Deserialize, Serialize};

/// The type of a model's matrix products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits: equal to references.
    #[default]
    F32,
    /// bfloat16 inputs with f32 sums.
    Bf16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
        }
    }
}
