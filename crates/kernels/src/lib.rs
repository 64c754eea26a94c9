//! Numbers: fused CPU operations with gradients for candle, each beside its composed twin.
//!
//! Every operation here exists twice. The *composed twin* (`*_composed`) is written in plain candle operations and
//! is the definition; it runs on every device and in every floating-point type. The *fused* form runs on the CPU in
//! f32 as a candle custom operation with its own gradient. The plain name (`rms_norm`, `attend`, ...) picks: fused
//! where it can, else the twin. Tests hold the two equal, in values and in gradients.
//!
//! | file | operation |
//! |---|---|
//! | `norm.rs` | [`rms_norm`] |
//! | `product.rs` | [`product`]: the matrix product of a linear layer |
//! | `rotary.rs` | [`rotate`] |
//! | `swiglu.rs` | [`swiglu`] |
//! | `attention.rs` | [`attend`]: causal attention over packed sequences that may share a prompt |
//! | `paged.rs` | [`attend_paged`], [`write_slots`]: attention over the KV pool while generating |
//! | `log_probability.rs` | [`log_probability`], [`entropy`]: the language-model head without whole logits |
//! | `adamw.rs` | [`AdamW`], [`gradient_norm`] |
//!
//! Tensor names carry their shape: `hidden_t_d` has `t` rows (tokens) and `d` columns. The letters: `t` rows, `d`
//! width, `h` query heads, `g` key/value heads (groups), `s` slots of the pool, `v` vocabulary, `i` inner width of
//! the feed-forward block, `r` half a head.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use kernels::{attend, log_probability, rms_norm, Segment};
//!
//! # fn main() -> candle_core::Result<()> {
//! // Two sequences of 3 and 2 tokens packed into 5 rows, one head of width 4, a vocabulary of 6.
//! let x_t_d = Var::randn(0f32, 1., (5, 4), &Device::Cpu)?;
//! let norm_d = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu)?;
//! let head_v_d = Tensor::randn(0f32, 1., (6, 4), &Device::Cpu)?;
//!
//! let normed_t_d = rms_norm(&x_t_d, &norm_d, 1e-6)?;
//! let qkv_t_h_d = normed_t_d.reshape((5, 1, 4))?;
//! let segments = [Segment { start: 0, len: 3, prefix: None }, Segment { start: 3, len: 2, prefix: None }];
//! let mixed_t_d = attend(&qkv_t_h_d, &qkv_t_h_d, &qkv_t_h_d, &segments)?.reshape((5, 4))?;
//! let log_probability_t = log_probability(&mixed_t_d, &head_v_d, &[1, 5, 0, 2, 2], 1.0)?;
//!
//! let gradients = log_probability_t.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&x_t_d).map(Tensor::dims), Some(&[5, 4][..]));
//! # Ok(())
//! # }
//! ```

#![allow(
    clippy::inline_always,
    reason = "a vector kernel is compiled for its instruction set by inlining, see lanes.rs"
)]

mod adamw;
mod attention;
#[cfg(test)]
mod fixtures;
mod lanes;
mod log_probability;
mod matmul;
mod norm;
mod paged;
mod product;
mod rotary;
mod rows;
mod slices;
mod swiglu;

pub use adamw::{AdamW, gradient_norm, gradient_norm_composed};
pub use attention::{Segment, attend, attend_composed, positions};
pub use log_probability::{
    entropy, entropy_composed, log_probability, log_probability_and_entropy, log_probability_composed,
};
pub use norm::{rms_norm, rms_norm_composed};
pub use paged::{Context, attend_paged, attend_paged_composed, write_slots, write_slots_composed};
pub use product::{product, product_composed};
pub use rotary::{rotate, rotate_composed};
pub use swiglu::{swiglu, swiglu_composed};

use candle_core::DType;

/// The type sums are taken in: f64 stays f64, everything narrower is f32.
fn accumulator(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}
