//! Every operation where the fused forms do not run, held to what they compute on the CPU.
//!
//! `SAFERL_TEST_DEVICE=cuda:0` (or `metal`) in the environment names that place. Without it, the CPU takes it in a process
//! of its own under `SAFERL_KERNELS=composed`, where a call of anything that only the CPU has is an error.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var, safetensors};
use kernels::{
    AdamW, Context, Packed, Place, Segment, attend, attend_paged, entropy, gradient_norm, log_probability,
    log_probability_and_entropy, log_probability_bf16, product, product_bf16, rms_norm, rotate, swiglu,
    write_slots,
};

/// Names the file that a process started by the test writes.
const FILE: &str = "SAFERL_TEST_FILE";

/// A variable of numbers in -1..1, the same for the same seed.
fn noise(seed: u32, shape: &[usize], device: &Device) -> Result<Var> {
    let count = shape.iter().product::<usize>() as u32;
    let number = |n: u32| {
        let hash = n
            .wrapping_add(seed.wrapping_mul(7919))
            .wrapping_mul(2_654_435_761);
        let hash = (hash ^ (hash >> 15)).wrapping_mul(2_246_822_519);
        (hash ^ (hash >> 13)) as f32 / 2f32.powi(31) - 1.0
    };
    let numbers: Vec<f32> = (0..count).map(number).collect();
    Var::from_tensor(&Tensor::from_vec(numbers, shape, device)?)
}

/// Values by name, on the CPU.
#[derive(Default)]
struct Results(HashMap<String, Tensor>);

impl Results {
    fn add(&mut self, name: &str, value: &Tensor) -> Result<()> {
        let value = value.detach().to_device(&Device::Cpu)?;
        self.0
            .insert(name.to_owned(), value.to_dtype(DType::F32)?.contiguous()?);
        Ok(())
    }

    /// An operation's values, and the gradients of a weighted sum of them.
    fn add_with_gradients(&mut self, name: &str, value: &Tensor, variables: &[&Var]) -> Result<()> {
        self.add(name, value)?;
        let weights = noise(99, value.dims(), value.device())?;
        let gradients = (value * weights.as_tensor())?.sum_all()?.backward()?;
        for (index, variable) in variables.iter().enumerate() {
            let gradient = gradients.get(variable).expect("a gradient for every variable");
            self.add(&format!("{name}, gradient {index}"), gradient)?;
        }
        Ok(())
    }
}

/// What every operation that a model is made of gives on `device`.
fn operations(device: &Device) -> Result<HashMap<String, Tensor>> {
    let mut results = Results::default();
    let noise = |seed, shape: &[usize]| noise(seed, shape, device);

    let (x, weight) = (noise(1, &[7, 48])?, noise(2, &[48])?);
    results.add_with_gradients("rms_norm", &rms_norm(&x, &weight, 1e-6)?, &[&x, &weight])?;
    let up = noise(3, &[7, 48])?;
    results.add_with_gradients("swiglu", &swiglu(&x, &up)?, &[&x, &up])?;
    let (heads, cos, sin) = (noise(4, &[9, 4, 16])?, noise(5, &[9, 8])?, noise(6, &[9, 8])?);
    results.add_with_gradients("rotate", &rotate(&heads, &cos, &sin)?, &[&heads])?;

    let matrix = noise(7, &[20, 48])?;
    let held = matrix.as_detached_tensor().to_dtype(DType::BF16)?;
    results.add_with_gradients("product", &product(&x, &matrix)?, &[&x, &matrix])?;
    results.add_with_gradients("bf16 product", &product_bf16(&x, &matrix)?, &[&x, &matrix])?;
    results.add_with_gradients("bf16 product, weight held so", &product_bf16(&x, &held)?, &[&x])?;

    let targets = [3, 0, 19, 7, 7, 1, 12];
    let chosen = log_probability(&x, &matrix, &targets, 0.7)?;
    results.add_with_gradients("log_probability", &chosen, &[&x, &matrix])?;
    let chosen = log_probability_bf16(&x, &matrix, None, &targets, 0.7)?;
    results.add_with_gradients("bf16 log_probability", &chosen, &[&x, &matrix])?;
    let chosen = log_probability_bf16(&x, &held, None, &targets, 0.7)?;
    results.add_with_gradients("bf16 log_probability, weight held so", &chosen, &[&x])?;
    results.add("entropy", &Tensor::new(entropy(&x, &matrix, 0.7)?, device)?)?;
    let both = log_probability_and_entropy(&x, &matrix, &targets, 0.7)?;
    results.add("entropy beside", &Tensor::new(both.1, device)?)?;

    let (q, k, v) = (
        noise(8, &[40, 4, 16])?,
        noise(9, &[40, 2, 16])?,
        noise(10, &[40, 2, 16])?,
    );
    let segments = [(0, 11, None), (11, 8, Some(0)), (19, 20, Some(1)), (39, 1, None)]
        .map(|(start, len, prefix)| Segment { start, len, prefix });
    results.add_with_gradients("attend", &attend(&q, &k, &v, &segments)?, &[&q, &k, &v])?;

    let slots: Arc<[u32]> = (0..40).map(|n| n * 7 % 43).collect();
    let pools = (noise(11, &[43, 2, 16])?, noise(12, &[43, 2, 16])?);
    write_slots(&pools.0, &k, &slots)?;
    write_slots(&pools.1, &v, &slots)?;
    let row = |len| Context {
        slots: slots.clone(),
        len,
    };
    let rows: Vec<Context> = (1..=38).chain([40, 2]).map(row).collect();
    results.add("write_slots", &pools.0)?;
    results.add("attend_paged", &attend_paged(&q, &pools.0, &pools.1, &rows)?)?;

    let adamw = AdamW {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    let (first, second) = (noise(13, &[7, 48])?, noise(14, &[7, 48])?);
    second.set(&second.sqr()?.detach())?;
    adamw.update(&x, &up, &first, &second, 3, 0.5)?;
    for (name, value) in [("parameter", &x), ("first", &first), ("second", &second)] {
        results.add(&format!("adamw, {name}"), value)?;
    }
    let norm = gradient_norm(&[&x, &q])? as f32;
    results.add("gradient_norm", &Tensor::new(norm, device)?)?;
    Ok(results.0)
}

/// The same operations in a process that does without the CPU's kernels.
fn composed() -> Result<HashMap<String, Tensor>> {
    let file = std::env::temp_dir().join(format!("saferl-operations-{}", std::process::id()));
    let program = std::env::current_exe()?;
    let test = "operations_on_another_device_are_those_of_the_cpu";
    let output = Command::new(program)
        .args([test, "--exact", "--nocapture"])
        .env("SAFERL_KERNELS", "composed")
        .env(FILE, &file)
        .output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let found = safetensors::load(&file, &Device::Cpu);
    std::fs::remove_file(&file)?;
    found
}

#[test]
fn operations_on_another_device_are_those_of_the_cpu() -> Result<()> {
    if let Some(file) = std::env::var_os(FILE) {
        let weight = noise(1, &[4, 32], &Device::Cpu)?;
        for dtype in [DType::F32, DType::BF16, DType::U8] {
            let error = Packed::new(&weight, dtype).unwrap_err().to_string();
            assert!(error.contains("kernels::fuses"), "{dtype:?}: {error}");
        }
        return safetensors::save(&operations(&Device::Cpu)?, file);
    }
    let found = match std::env::var("SAFERL_TEST_DEVICE") {
        Ok(name) => operations(&name.parse::<Place>().expect("SAFERL_TEST_DEVICE").open()?)?,
        Err(_) => composed()?,
    };
    let expected = operations(&Device::Cpu)?;
    assert_eq!(found.len(), expected.len());
    for (name, expected) in &expected {
        // Gradients of bf16 products are rounded to it in one form and not in the other.
        let tolerance = if name.contains("bf16") { 1e-2 } else { 1e-5 };
        let largest = |tensor: &Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
        let gap = largest(&(&found[name] - expected)?)? / largest(expected)?.max(1.0);
        assert!(gap <= tolerance, "{name}: off by {gap:e} of the largest value");
    }
    Ok(())
}
