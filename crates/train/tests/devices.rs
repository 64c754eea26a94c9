//! The whole tiny Qwen3 where the CPU's kernels do not run: its forward pass and gradients, generation over the pool, and a
//! training step, held to what the kernels give.
//!
//! `SAFERL_TEST_DEVICE=cuda:0` (or `metal`) in the environment names that place. Without it, the CPU takes it in a process
//! of its own under `SAFERL_KERNELS=composed`, where a call of anything that only the CPU has is an error.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor, safetensors};
use kernels::{Place, Segment};
use model::chat::{Mode, Prompt};
use model::decoder::Decoder;
use model::engine::Engine;
use model::export::{WeightType, write_gguf};
use model::generate::{Generate, Sampling};
use model::lora::Lora;
use model::source::resolve;
use model::tokenizer::Tokenizer;
use train::recipe::Recipe;
use train::run::Trainer;
use train::toy;

const SMOKE: &str = include_str!("../../../recipes/smoke.toml");
/// Names the folder with the models, where a process started by the test writes what it found.
const FOLDER: &str = "SAFERL_TEST_FOLDER";
const MODEL: &str = "tiny-qwen3";
const GGUF: &str = "tiny-q8_0.gguf";
const FOUND: &str = "found.safetensors";

type Results = HashMap<String, Tensor>;

fn add(results: &mut Results, name: &str, value: &Tensor) {
    let value = value.detach().to_device(&Device::Cpu).unwrap();
    let value = value.to_dtype(DType::F32).unwrap().contiguous().unwrap();
    results.insert(name.to_owned(), value);
}

fn load(path: &Path, dtype: DType, device: &Device) -> Decoder {
    let source = resolve(&path.display().to_string(), &mut |_| ()).unwrap();
    Decoder::load_for_inference(&source, dtype, device).unwrap()
}

/// Hidden states and log-probabilities of two sequences that share a beginning, and the gradients of every weight.
fn pass(results: &mut Results, name: &str, decoder: &mut Decoder, train: bool) {
    let parameters = if train {
        decoder.make_trainable().unwrap()
    } else {
        vec![]
    };
    let ids: Vec<u32> = (0..30).map(|n| n * 41 % 256).collect();
    let segments = [(0, 9, None), (9, 12, Some(0)), (21, 9, Some(0))].map(|(start, len, prefix)| Segment {
        start,
        len,
        prefix,
    });
    let hidden_t_d = decoder.hidden(&ids, &segments).unwrap();
    let targets: Vec<u32> = (0..30).map(|n| n * 31 % 256).collect();
    let chosen_t = decoder.log_probability(&hidden_t_d, &targets, 0.8).unwrap();
    add(results, &format!("{name}: hidden"), &hidden_t_d);
    add(results, &format!("{name}: log-probabilities"), &chosen_t);
    if train {
        let gradients = chosen_t.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for (parameter, variable) in parameters {
            add(
                results,
                &format!("{name}: gradient of {parameter}"),
                gradients.get(&variable).expect(&parameter),
            );
        }
    }
}

/// Greedy completions of two prompts at once, the tokens and what they are likely.
fn generate(results: &mut Results, name: &str, decoder: &Decoder, tokenizer: &Tokenizer) {
    let prompts = [(0..20).collect::<Vec<u32>>(), vec![70, 90, 30]].map(|ids| Prompt {
        ids,
        messages: vec![],
        mode: Mode::NoThink,
    });
    let sampling = Sampling {
        max_new_tokens: 16,
        temperature: 0.0,
        ..Sampling::default()
    };
    let mut engine = Engine::new(decoder.frozen().unwrap(), tokenizer.clone().into(), 256).unwrap();
    let completions = engine.generate(&prompts, 1, &sampling).unwrap();
    for (index, completion) in completions.iter().flatten().enumerate() {
        let ids: Vec<f32> = completion.ids.iter().map(|&id| id as f32).collect();
        let likely = completion.log_probabilities.as_slice();
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        add(results, &format!("{name}: tokens {index}"), &tensor(&ids));
        add(
            results,
            &format!("{name}: their log-probabilities {index}"),
            &tensor(likely),
        );
    }
}

/// A step of the smoke recipe, of every weight or of adapters: what it measured, and the weights after it.
fn step(results: &mut Results, name: &str, folder: &Path, device: &Device, overrides: &[&str]) {
    let source = resolve(&folder.join(MODEL).display().to_string(), &mut |_| ()).unwrap();
    let runs = tempfile::tempdir().unwrap();
    let runs_dir = format!("runs_dir={}", runs.path().display());
    let overrides: Vec<String> = [runs_dir.as_str(), "rollout.prompts=2", "optimizer.warmup_steps=0"]
        .iter()
        .chain(overrides)
        .map(ToString::to_string)
        .collect();
    let recipe = Recipe::parse(SMOKE, "smoke.toml", &overrides).unwrap();
    let mut trainer = Trainer::new(&recipe, &source, device, false, &mut |_| ()).unwrap();
    let (metrics, _) = trainer.take_step(&mut toy::panel()).unwrap();
    let measured = [
        metrics.tokens as f64,
        metrics.replies.reward_mean.unwrap(),
        metrics.replies.entropy.unwrap(),
        metrics.ratio_mean.unwrap(),
        metrics.kl.unwrap(),
        metrics.grad_norm.unwrap(),
    ];
    let measured = measured.map(|value| value as f32);
    add(
        results,
        &format!("{name}: metrics"),
        &Tensor::new(&measured, &Device::Cpu).unwrap(),
    );
    assert!(metrics.sampler_gap.unwrap() < 1e-4, "sampler and trainer differ");
    let merged = trainer.decoder().merge_adapters().unwrap();
    for (parameter, value) in merged.parameters().unwrap() {
        add(results, &format!("{name}: {parameter} after it"), &value);
    }
}

/// All of it on `device`, with the models in `folder`.
fn everything(folder: &Path, device: &Device) -> Results {
    let mut results = Results::new();
    let source = resolve(&folder.join(MODEL).display().to_string(), &mut |_| ()).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        let mut decoder = load(&folder.join(MODEL), dtype, device);
        generate(&mut results, name, &decoder, &tokenizer);
        pass(&mut results, name, &mut decoder.clone(), false);
        pass(&mut results, &format!("{name} trained"), &mut decoder, true);
    }
    let decoder = load(&folder.join(GGUF), DType::F32, device);
    generate(&mut results, "blocks", &decoder, &tokenizer);
    pass(&mut results, "blocks", &mut decoder.clone(), false);

    let mut adapted = load(&folder.join(MODEL), DType::F32, device);
    let lora = Lora {
        rank: 2,
        alpha: 4.0,
        targets: vec!["q_proj".into(), "down_proj".into()],
        layers: vec![],
    };
    for (name, parameter) in adapted.add_adapters(&lora, 1).unwrap() {
        if name.contains("lora_B") {
            let tenth = (parameter.ones_like().unwrap() * 0.1).unwrap();
            parameter.set(&tenth.detach()).unwrap();
        }
    }
    generate(&mut results, "adapted", &adapted, &tokenizer);
    step(&mut results, "step", folder, device, &[]);
    let lora = [
        "lora.rank=4",
        "lora.alpha=8.0",
        "update.gradient_checkpointing=true",
    ];
    step(&mut results, "step of adapters", folder, device, &lora);
    results
}

/// The same in a process that does without the CPU's kernels.
fn composed(folder: &Path) -> Results {
    let test = "a_model_on_another_device_is_that_of_the_cpu";
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("SAFERL_KERNELS", "composed")
        .env(FOLDER, folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    safetensors::load(folder.join(FOUND), &Device::Cpu).unwrap()
}

/// Fails where two tensors of a name are further apart than they may be.
fn compare(name: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let gaps = (found - expected).unwrap().abs().unwrap().flatten_all().unwrap();
    if name.ends_with("after it") {
        // AdamW's first steps move a weight by the learning rate, 1e-3, in the direction of its gradient, be that ever so
        // small: where one is nearly zero the two may part.
        let mean: f32 = gaps.mean_all().unwrap().to_scalar().unwrap();
        return assert!(mean <= 2e-5, "{name}: off by {mean:e} in the mean");
    }
    // Sums of bf16 products stay f32 on the CPU and are rounded elsewhere.
    let tolerance = if name.starts_with("bf16") { 0.05 } else { 1e-4 };
    let scale: f32 = expected.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
    let gap = gaps.max(0).unwrap().to_scalar::<f32>().unwrap() / scale;
    assert!(gap <= tolerance, "{name}: off by {gap:e} of the largest value");
}

#[test]
fn a_model_on_another_device_is_that_of_the_cpu() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let folder = Path::new(&folder);
        let source = resolve(&folder.join(MODEL).display().to_string(), &mut |_| ()).unwrap();
        let integers = Decoder::load(&source, DType::U8, &Device::Cpu);
        assert!(integers.unwrap_err().to_string().contains("on the CPU alone"));
        let found = everything(folder, &Device::Cpu);
        return safetensors::save(&found, folder.join(FOUND)).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    model::seeded::write_tiny(&folder.join(MODEL), model::config::Family::Qwen3).unwrap();
    let source = resolve(&folder.join(MODEL).display().to_string(), &mut |_| ()).unwrap();
    let (decoder, tokenizer) = (
        Decoder::load(&source, DType::F32, &Device::Cpu).unwrap(),
        Tokenizer::load(&source).unwrap(),
    );
    let kind = WeightType::Q8_0;
    write_gguf(
        &folder.join(GGUF),
        MODEL,
        &decoder,
        &tokenizer,
        kind,
        &mut |_, _| (),
    )
    .unwrap();
    let found = match std::env::var("SAFERL_TEST_DEVICE") {
        Ok(name) => everything(folder, &name.parse::<Place>().unwrap().open().unwrap()),
        Err(_) => composed(folder),
    };
    let expected = everything(folder, &Device::Cpu);
    assert_eq!(found.len(), expected.len());
    for (name, expected) in &expected {
        // Greedy tokens may part where sums are rounded to bf16.
        if !name.starts_with("bf16: tokens") && !name.starts_with("bf16: their") {
            compare(name, &found[name], expected);
        }
    }
}
