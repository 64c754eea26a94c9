//! Checkpoints in other programs: `goldens/checkpoint` holds one of full fine-tuning and one of LoRA, as this crate wrote
//! them, and the greedy tokens that transformers and peft generate from them.
//!
//! To make them anew: `cargo test -p train --test checkpoint -- --ignored`, then `goldens/checkpoint/checkpoint.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use model::chat::{Mode, Prompt};
use model::config::Family;
use model::decoder::Decoder;
use model::engine::Engine;
use model::generate::{Generate, Sampling};
use model::source::{Source, resolve};
use model::tokenizer::Tokenizer;
use serde::Deserialize;
use train::checkpoint::{latest, verify};
use train::recipe::Recipe;
use train::run::Trainer;
use train::toy;

const KINDS: [(&str, &[&str]); 2] = [("full", &[]), ("lora", &["lora.rank=2"])];

#[derive(Deserialize)]
struct Golden {
    prompt: Vec<u32>,
    full: Vec<u32>,
    lora: Vec<u32>,
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/checkpoint")
}

fn source(folder: &Path) -> Source {
    resolve(&folder.display().to_string(), &mut |_| ()).unwrap()
}

fn base(folder: &Path) -> Source {
    let path = folder.join("base");
    model::seeded::write_tiny(&path, Family::Qwen3).unwrap();
    source(&path)
}

/// Trains two steps of the smoke recipe with a rate that moves the greedy tokens; the checkpoint's folder.
fn train(folder: &Path, kind: &str, overrides: &[&str]) -> PathBuf {
    let fixed = [format!("runs_dir={}", folder.display()), format!("run={kind}")];
    let rest = ["steps=2", "rollout.prompts=2", "optimizer.learning_rate=0.02"];
    let overrides = rest.iter().chain(overrides).map(ToString::to_string);
    let overrides: Vec<String> = fixed.into_iter().chain(overrides).collect();
    let recipe = Recipe::parse(
        include_str!("../../../recipes/smoke.toml"),
        "smoke.toml",
        &overrides,
    )
    .unwrap();
    let mut trainer = Trainer::new(&recipe, &base(folder), &Device::Cpu, false, &mut |_| ()).unwrap();
    trainer.run(&mut toy::panel(), &mut |_| ()).unwrap();
    let mut torn = |warning: String| panic!("{warning}");
    let (path, state) = latest(&recipe.folder().join("checkpoints"), &mut torn)
        .unwrap()
        .unwrap();
    assert_eq!(state.step, 2);
    path
}

/// The model that a checkpoint's folder holds; adapters go onto `base`.
fn load(checkpoint: &Path, kind: &str, base: &Source) -> Engine {
    let source = if kind == "full" {
        source(checkpoint)
    } else {
        base.clone()
    };
    let mut decoder = Decoder::load(&source, DType::F32, &Device::Cpu).unwrap();
    if kind == "lora" {
        decoder.load_adapters(checkpoint).unwrap();
    }
    let tokenizer = Tokenizer::load(&source).unwrap();
    Engine::new(decoder.frozen().unwrap(), Arc::new(tokenizer), 512).unwrap()
}

fn greedy(engine: &mut Engine, prompt: &[u32]) -> Vec<u32> {
    let prompt = Prompt {
        ids: prompt.to_vec(),
        messages: vec![],
        mode: Mode::NoThink,
    };
    let sampling = Sampling {
        max_new_tokens: 24,
        temperature: 0.0,
        ..Sampling::default()
    };
    engine
        .generate(&[prompt], 1, &sampling)
        .unwrap()
        .remove(0)
        .remove(0)
        .ids
}

#[test]
fn transformers_and_peft_generate_the_same_from_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let text = fs::read_to_string(goldens().join("checkpoint.json")).unwrap();
    let cases: Vec<Golden> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 4);
    for (kind, _) in KINDS {
        let mut engine = load(&goldens().join(kind), kind, &base);
        let mut untrained = Engine::new(
            Decoder::load(&base, DType::F32, &Device::Cpu).unwrap(),
            Arc::new(Tokenizer::load(&base).unwrap()),
            512,
        );
        let mut moved = false;
        for case in &cases {
            let expected = if kind == "full" { &case.full } else { &case.lora };
            assert_eq!(
                &greedy(&mut engine, &case.prompt),
                expected,
                "{kind}, prompt {:?}",
                case.prompt
            );
            moved |= &greedy(untrained.as_mut().unwrap(), &case.prompt) != expected;
        }
        assert!(
            moved,
            "{kind}: training changed no greedy token, so the test could not fail"
        );
    }
}

/// Files that others read, with the names, types and shapes of their tensors.
fn contents(checkpoint: &Path) -> BTreeMap<String, Vec<String>> {
    let files = fs::read_dir(checkpoint)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file());
    let describe = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".safetensors") {
            return (name, vec![]);
        }
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let mut tensors: Vec<String> = tensors
            .iter()
            .map(|(name, tensor)| format!("{name} {:?} {:?}", tensor.dtype(), tensor.dims()))
            .collect();
        tensors.sort();
        (name, tensors)
    };
    files.map(describe).collect()
}

#[test]
fn a_checkpoint_has_the_files_and_tensors_that_they_loaded() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, overrides) in KINDS {
        let path = train(folder.path(), kind, overrides);
        assert_eq!(contents(&path), contents(&goldens().join(kind)), "{kind}");
        assert_eq!(verify(&path).unwrap().updates, 4);
        let base = base(folder.path());
        let mut engine = load(&path, kind, &base);
        assert!(
            !greedy(&mut engine, &[65, 66, 67]).is_empty(),
            "{kind}: the folder generates"
        );
    }
}

#[test]
#[ignore = "writes goldens/checkpoint; checkpoint.py then runs transformers and peft on it"]
fn write_goldens() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, overrides) in KINDS {
        let path = train(folder.path(), kind, overrides);
        let target = goldens().join(kind);
        fs::create_dir_all(&target).unwrap();
        for name in contents(&path).into_keys() {
            fs::copy(path.join(&name), target.join(&name)).unwrap();
        }
    }
    let base = base(folder.path()).folder.unwrap();
    let kept = goldens().join("base");
    fs::create_dir_all(&kept).unwrap();
    for name in contents(&base).into_keys() {
        fs::copy(base.join(&name), kept.join(&name)).unwrap();
    }
}
