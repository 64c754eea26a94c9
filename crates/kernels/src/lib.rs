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
//! | `product.rs` | [`product`], [`product_packed`]: the matrix product of a linear layer |
//! | `bf16.rs` | [`product_bf16`]: the same of numbers rounded to bf16 |
//! | `packed.rs` | [`Packed`]: a weight in the order in which the product reads it |
//! | `quantized.rs`, `int8.rs` | [`Packed::quantized`]: the same in the blocks of a GGUF file; their products of integers |
//! | `rotary.rs` | [`rotate`] |
//! | `swiglu.rs` | [`swiglu`] |
//! | `attention.rs` | [`attend`]: causal attention over packed sequences that may share a prompt |
//! | `paged.rs` | [`attend_paged`], [`write_slots`]: attention over the KV pool while generating |
//! | `log_probability.rs` | [`log_probability`], [`log_probability_bf16`], [`entropy`]: the head without whole logits |
//! | `adamw.rs` | [`AdamW`], [`gradient_norm`] |
//!
//! Where a fused form's gradient has a name of its own ([`rms_norm_gradients`], [`attend_gradients`], [`product_gradient`], ...),
//! a backward pass can do without candle's record of operations.
//!
//! `ceiling.rs` measures what the machine gives. `process.rs` has [`in_pool`], in which a pass of many operations belongs, and
//! [`keep_memory`] for programs that train; `device.rs` has [`Place`], a device by name, and [`fuses`], which says where the
//! fused forms run. Ten more files serve them: `rows.rs` (attention of neighbouring rows), `single_row.rs` (of one alone), `lanes.rs`
//! (loops for vector instructions), `matmul.rs` (products inside a task), `pairs.rs`, `amx.rs` and `avx512bf16.rs` (bf16
//! numbers two by two, and the instructions that multiply them), `avx512vnni.rs` (that for integers), `avx512.rs` (what these
//! share) and `slices.rs` (tensors as slices, work over threads). Results are the same bits on any number of threads.
//! `SAFERL_KERNELS` in the environment keeps to less than the machine has: `vectors` leaves out AMX's tiles, `widened` the
//! instructions for bf16 and integers too, `portable` all but the baseline instruction set. `composed` runs the composed twins
//! on the CPU as another device would, where a call of anything that only the CPU has is an error.
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
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        unused_imports,
        reason = "some of it serves instructions that x86-64 alone has"
    )
)]

mod adamw;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
mod bf16;
mod ceiling;
mod device;
#[cfg(test)]
mod fixtures;
mod int8;
mod lanes;
mod log_probability;
mod matmul;
mod norm;
mod packed;
mod paged;
mod pairs;
mod process;
mod product;
mod quantized;
mod rotary;
mod rows;
mod single_row;
mod slices;
mod swiglu;

pub use adamw::{AdamW, gradient_norm, gradient_norm_composed};
pub use attention::{Segment, attend, attend_composed, attend_gradients, positions};
pub use bf16::{product_bf16, product_bf16_composed};
pub use ceiling::{copy_ceiling, product_ceiling};
pub use device::{Place, fuses};
pub use log_probability::{
    entropy, entropy_composed, log_probability, log_probability_and_entropy, log_probability_bf16,
    log_probability_bf16_composed, log_probability_composed,
};
pub use norm::{rms_norm, rms_norm_composed, rms_norm_gradients};
pub use packed::Packed;
pub use paged::{Context, attend_paged, attend_paged_composed, write_slots, write_slots_composed};
pub use process::{in_pool, keep_memory, threads};
pub use product::{
    product, product_composed, product_gradient, product_packed, product_packed_composed,
    product_packed_gradient, product_weight_gradient,
};
pub use rotary::{rotate, rotate_composed, rotate_gradient};
pub use slices::{add_rows, add_to};
pub use swiglu::{swiglu, swiglu_composed, swiglu_gradients};

use candle_core::DType;

/// The type sums are taken in: f64 stays f64, everything narrower is f32.
fn accumulator(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use candle_core::quantized::GgmlDType;
    use candle_core::{Result, Tensor};

    use super::*;
    use crate::fixtures::noise;

    /// Set in the processes that tests start.
    const CHILD: &str = "SAFERL_KERNELS_TEST_CHILD";

    /// The bits of every operation's values and gradients, folded into one number.
    fn digest() -> Result<u64> {
        let (q, k, v) = (
            noise(1, &[150, 4, 32]),
            noise(2, &[150, 2, 32]),
            noise(3, &[150, 2, 32]),
        );
        let (cos, sin, norm, head) = (
            noise(4, &[150, 16]),
            noise(5, &[150, 16]),
            noise(6, &[128]),
            noise(7, &[700, 128]),
        );
        let segments = [(0, 50, None), (50, 70, Some(0)), (120, 30, Some(0))]
            .map(|(start, len, prefix)| Segment { start, len, prefix });
        let mixed = attend(&rotate(&q, &cos, &sin)?, &k, &v, &segments)?.reshape((150, 128))?;
        let hidden = rms_norm(&swiglu(&mixed, &q.reshape((150, 128))?)?, &norm, 1e-6)?;
        let targets: Vec<u32> = (0..150).map(|n| n * 4).collect();
        let (values, entropies) = log_probability_and_entropy(&hidden, &head, &targets, 0.8)?;
        let gradients = values.sum_all()?.backward()?;

        let slots: Arc<[u32]> = (0..150).rev().collect();
        let rows: Vec<Context> = (1..=150)
            .map(|len| Context {
                slots: slots.clone(),
                len,
            })
            .collect();
        let narrow = log_probability_bf16(&hidden, &head, None, &targets, 0.8)?;
        let narrow_gradients = narrow.sum_all()?.backward()?;
        let mut tensors = vec![
            narrow_gradients.get(&q).expect("a gradient").clone(),
            narrow_gradients.get(&head).expect("a gradient").clone(),
            narrow,
            values,
            Tensor::new(entropies, q.device())?,
            attend_paged(&q, &k, &v, &rows)?,
        ];
        for variable in [&q, &k, &v, &norm, &head] {
            tensors.push(
                gradients
                    .get(variable)
                    .expect("a gradient for every variable")
                    .clone(),
            );
        }
        let (first, second) = (noise(8, &[700, 128]), noise(9, &[700, 128]));
        let second = candle_core::Var::from_tensor(&second.sqr()?.detach())?;
        let adamw = AdamW {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.1,
        };
        adamw.update(&head, &tensors[tensors.len() - 1], &first, &second, 3, 0.5)?;
        tensors.push(head.as_detached_tensor());
        let packed = Packed::new(&noise(10, &[70, 128]), DType::BF16)?;
        let out = product_packed(&product_bf16(&hidden, &head)?.narrow(1, 0, 128)?, &packed)?;
        let gradients = out.sqr()?.sum_all()?.backward()?;
        for variable in [&q, &head] {
            tensors.push(gradients.get(variable).expect("a gradient").clone());
        }
        tensors.push(out);
        for dtype in [DType::F32, DType::U8] {
            let quantized = fixtures::quantized(11, &[70, 128], GgmlDType::Q4_1, dtype)?.0;
            tensors.push(product_packed(&hidden.detach(), &quantized)?);
        }

        let mut digest = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a
        for value in tensors
            .iter()
            .map(|tensor| tensor.flatten_all()?.to_vec1::<f32>())
            .collect::<Result<Vec<_>>>()?
        {
            for value in value {
                assert!(value.is_finite());
                digest = (digest ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
            }
        }
        let norm = gradient_norm(&tensors.iter().collect::<Vec<_>>())?;
        Ok((digest ^ norm.to_bits()).wrapping_mul(0x0100_0000_01b3))
    }

    /// This test program again, in a process of its own: threads and instruction set are settled once a process.
    fn again(arguments: &[&str], variables: &[(&str, &str)]) -> (bool, String) {
        let program = std::env::current_exe().expect("the path of the tests");
        let output = Command::new(program)
            .args(arguments)
            .env(CHILD, "1")
            .envs(variables.iter().copied())
            .output()
            .expect("the tests as a process");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    #[test]
    fn bits_do_not_depend_on_threads() -> Result<()> {
        if std::env::var_os(CHILD).is_some() {
            println!("digest {:016x}", digest()?);
            return Ok(());
        }
        let digest = |threads| {
            let arguments = ["tests::bits_do_not_depend_on_threads", "--exact", "--nocapture"];
            let (_, output) = again(&arguments, &[("RAYON_NUM_THREADS", threads)]);
            let line = output
                .lines()
                .find_map(|line| Some(line.split_once("digest ")?.1.to_owned()));
            line.unwrap_or_else(|| panic!("no digest in {output}"))
        };
        assert_eq!(digest("1"), digest("3"));
        Ok(())
    }

    #[test]
    fn everything_holds_without_what_only_some_machines_have() {
        if std::env::var_os(CHILD).is_none() {
            for setting in ["portable", "widened", "vectors"] {
                let (success, output) = again(&[], &[("SAFERL_KERNELS", setting)]);
                assert!(success, "{setting}: {output}");
            }
        }
    }
}
