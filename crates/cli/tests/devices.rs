//! What is said of devices that are not there, and that no source takes the CPU for granted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The sources that name `Device::Cpu`, and why tensors lie there wherever a model computes.
const ON_THE_CPU: [(&str, &str); 18] = [
    ("kernels/src/adamw.rs", "a sum on its way to a number"),
    ("kernels/src/ceiling.rs", "what the CPU itself gives"),
    ("kernels/src/device.rs", "the name of it"),
    (
        "kernels/src/packed.rs",
        "the order in which the CPU reads a weight",
    ),
    ("model/src/export/mod.rs", "weights on their way into a file"),
    ("model/src/lora.rs", "adapters on their way into a file"),
    (
        "model/src/seeded.rs",
        "models made up, which are then written to files",
    ),
    ("model/src/weights/gguf.rs", "weights as they come out of a file"),
    (
        "model/src/weights/safetensors.rs",
        "the same, and on their way into one",
    ),
    ("judge/src/heads.rs", "small heads, whose inputs are numbers"),
    ("judge/src/probe/guard.rs", "the same while they are trained"),
    (
        "judge/src/probe/helpfulness.rs",
        "the same while they are trained",
    ),
    ("judge/src/probe/mod.rs", "the same while they are trained"),
    ("train/src/gspo.rs", "numbers of a few completions"),
    ("cli/src/commands/export.rs", "no model runs"),
    (
        "cli/src/commands/launch.rs",
        "judges beside another program, which has the device",
    ),
    ("cli/src/estimate.rs", "how fast this machine is"),
    ("serve/src/fixtures.rs", "of tests"),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_source_takes_the_cpu_for_granted() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = BTreeSet::new();
    for room in std::fs::read_dir(crates).unwrap() {
        let mut paths = Vec::new();
        sources(&room.unwrap().path().join("src"), &mut paths);
        for path in paths {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let names = |line: &str| line.contains("Device::Cpu") && !line.trim_start().starts_with("//");
            if code.lines().any(names) && !path.ends_with("kernels/src/fixtures.rs") {
                let name = path.strip_prefix(crates).unwrap().display().to_string();
                found.insert(name.replace('\\', "/"));
            }
            // Where kernels of the CPU run is for `kernels::fuses` to say, or SAFERL_KERNELS=composed finds nothing.
            let asks = code.contains(".is_cpu()");
            let may = ["kernels/src/device.rs", "cli/src/commands/bench.rs"];
            assert!(
                !asks || may.iter().any(|may| path.ends_with(may)),
                "{}: is_cpu",
                path.display()
            );
        }
    }
    let known: BTreeSet<String> = ON_THE_CPU.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, known, "sources that name Device::Cpu");
}

fn saferl(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_saferl"))
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_device_that_was_not_built_in_is_refused_before_anything_is_loaded() {
    let built = (cfg!(feature = "cuda"), cfg!(feature = "metal"));
    for (device, feature, built) in [("cuda:0", "cuda", built.0), ("metal", "metal", built.1)] {
        if built {
            continue;
        }
        for command in [
            &["generate", "no-such-model", "--prompt", "x"][..],
            &["chat", "no-such-model"],
            &["serve", "no-such-model"],
            &["bench", "decode", "--model", "no-such-model"],
            &["guard", "score"],
            &["reward", "score"],
            &["quickstart"],
        ] {
            let (code, said) = saferl(&[command, &["--device", device]].concat());
            assert_eq!(code, Some(2), "{command:?}: {said}");
            assert!(
                said.contains(&format!("--device {device}: this program was built without it"))
                    && said.contains(&format!(
                        "hint: build it with `cargo build --release --features {feature}`"
                    )),
                "{command:?}: {said}"
            );
        }
    }
}

#[test]
fn a_tiny_model_answers_alike_without_the_kernels_of_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny");
    model::seeded::write_tiny(&model, model::config::Family::Qwen3).unwrap();
    let answer = |kernels: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_saferl"))
            .args([
                "generate",
                &model.display().to_string(),
                "--prompt",
                "hello",
                "--json",
            ])
            .args(["--temperature", "0", "--max-tokens", "12"])
            .env("SAFERL_KERNELS", kernels)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(answer("composed"), answer(""));
    let output = Command::new(env!("CARGO_BIN_EXE_saferl"))
        .args(["generate", &model.display().to_string(), "--prompt", "hello"])
        .args(["--dtype", "int8"])
        .env("SAFERL_KERNELS", "composed")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("--dtype int8") && said.contains("hint: --dtype bf16"),
        "{said}"
    );
}
