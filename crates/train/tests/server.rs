//! A run whose answers come from a stand-in of vLLM: it samples by text, and takes the adapters after every step.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use candle_core::Device;
use serde_json::{Value, json};
use train::recipe::Recipe;
use train::run::Trainer;
use train::toy;

const SMOKE: &str = include_str!("../../../recipes/smoke.toml");

/// What was asked of the stand-in: paths and bodies.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

fn stand_in() -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || answer(stream.unwrap(), &seen));
        }
    });
    (url, asked)
}

fn answer(mut stream: TcpStream, seen: &Asked) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if path.is_empty() {
            line.split(' ').nth(1).unwrap().clone_into(&mut path);
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    seen.lock().unwrap().push((path.clone(), body.clone()));
    let text = if path.ends_with("/chat/completions") {
        let choice = |index: u64| {
            let content = [
                "Sure.",
                "I can't help with that.",
                "A long and patient answer to it.",
                "no",
            ];
            json!({"index": index, "finish_reason": "stop",
                   "message": {"role": "assistant", "content": content[(index % 4) as usize]}})
        };
        let choices: Vec<Value> = (0..body["n"].as_u64().unwrap()).map(choice).collect();
        json!({ "choices": choices }).to_string()
    } else {
        // vLLM answers these in plain words.
        "Success: LoRA adapter added or removed.".to_owned()
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    stream.write_all(format!("{head}{text}").as_bytes()).unwrap();
}

#[test]
fn a_server_samples_and_gets_the_adapters_after_every_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny-qwen3");
    model::seeded::write_tiny(&path, model::config::Family::Qwen3).unwrap();
    let source = model::source::resolve(path.to_str().unwrap(), &mut |_| ()).unwrap();
    let (url, asked) = stand_in();
    let overrides = [
        format!("runs_dir={}", folder.path().join("runs").display()),
        "run=away".into(),
        "steps=2".into(),
        "rollout.prompts=2".into(),
        format!("rollout.url={url}"),
        "rollout.url_model=base".into(),
        "rollout.push=vllm-lora".into(),
        "lora.rank=2".into(),
    ];
    let recipe = Recipe::parse(SMOKE, "smoke.toml", &overrides).unwrap();
    let mut trainer = Trainer::new(&recipe, &source, &Device::Cpu, false, &mut |_| ()).unwrap();
    trainer.run(&mut toy::panel(), &mut |_| ()).unwrap();

    let asked = asked.lock().unwrap();
    let of = |end: &str, key: &str| -> Vec<String> {
        let matching = asked.iter().filter(|(path, _)| path.ends_with(end));
        matching
            .map(|(_, body)| body[key].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        of("/v1/load_lora_adapter", "lora_name"),
        ["away-step-0", "away-step-1", "away-step-2"]
    );
    assert_eq!(
        of("/v1/unload_lora_adapter", "lora_name"),
        ["away-step-0", "away-step-1"]
    );
    let mut models = of("/v1/chat/completions", "model");
    models.dedup();
    assert_eq!(models, ["away-step-0", "away-step-1"]);
    // What was pushed is what peft loads.
    let last = of("/v1/load_lora_adapter", "lora_path").pop().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        assert!(std::path::Path::new(&last).join(file).is_file(), "{last}/{file}");
    }
    let lines = std::fs::read_to_string(recipe.folder().join("metrics.jsonl")).unwrap();
    for line in lines.lines() {
        let metrics: Value = serde_json::from_str(line).unwrap();
        assert!(
            metrics["grad_norm"].as_f64().unwrap() > 0.0 && metrics["tokens"].as_u64().unwrap() > 0,
            "{line}"
        );
        // The server's log-probabilities are not ours to compare.
        assert!(metrics["sampler_gap"].is_null(), "{line}");
    }
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    for (overrides, key) in [
        (vec!["rollout.url=localhost:8000"], "rollout.url"),
        (vec!["rollout.push=vllm-lora", "lora.rank=2"], "rollout.push"),
        (
            vec!["rollout.push=vllm-lora", "rollout.url=http://localhost:1"],
            "rollout.push",
        ),
    ] {
        let overrides: Vec<String> = overrides.into_iter().map(String::from).collect();
        let error = Recipe::parse(SMOKE, "smoke.toml", &overrides)
            .unwrap_err()
            .to_string();
        assert!(error.contains(key), "{error}");
    }
}
