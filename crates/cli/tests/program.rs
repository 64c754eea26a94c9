//! The program as a stranger meets it: help, errors and exit codes as snapshots, and commands on a tiny model.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn saferl(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_saferl"));
    command
        .args(arguments)
        .env_remove("SAFERL_LOG")
        .stdin(std::process::Stdio::null());
    command.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the program prints UTF-8")
}

/// Exit code, standard output and standard error in one text, with the temporary folder's name taken out.
fn seen(arguments: &[&str], folder: Option<&Path>) -> String {
    let output = saferl(arguments);
    let code = output.status.code().expect("no signal");
    let seen = format!(
        "exit {code}\n--- stdout\n{}--- stderr\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    folder.map_or(seen.clone(), |folder| {
        seen.replace(&folder.display().to_string(), "FOLDER")
    })
}

fn json(arguments: &[&str]) -> Value {
    let output = saferl(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn help() {
    insta::assert_snapshot!("help", seen(&["--help"], None));
    for command in [
        "quickstart",
        "generate",
        "render",
        "train",
        "guard",
        "guard score",
        "export hf",
    ] {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        insta::assert_snapshot!(
            format!("help_{}", command.replace(' ', "_")),
            seen(&arguments, None)
        );
    }
}

#[test]
fn errors() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path.display().to_string()
    };
    let broken = path("broken.toml", "steps = 3\nstep = 4\n");
    let fine = path("fine.toml", "model = \"tiny-qwen3\"\nsteps = 1\n");
    let messages = path("messages.json", "[{\"role\": \"pirate\", \"content\": \"Arr\"}]");
    let snapshot = |name: &str, arguments: &[&str]| {
        insta::assert_snapshot!(format!("error_{name}"), seen(arguments, Some(folder.path())));
    };
    snapshot("no_such_command", &["trian"]);
    snapshot("no_prompt", &["generate", "tiny-qwen3"]);
    snapshot("no_such_model", &["pull", "no-such-model"]);
    snapshot("no_such_recipe", &["train", "no-such-recipe.toml"]);
    snapshot("unknown_key", &["train", &broken]);
    snapshot(
        "value_that_cannot_be",
        &["train", &fine, "--set", "rollout.completions=1"],
    );
    snapshot("strange_role", &["render", "tiny-qwen3", "--messages", &messages]);
    snapshot(
        "token_out_of_range",
        &["generate", "tiny-qwen3", "--prompt-tokens", "1,999999999"],
    );
    snapshot("no_run", &["report", &path("not-a-run", "")]);
}

#[test]
fn render_shows_text_and_ids() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let messages = folder.path().join("messages.json");
    std::fs::write(&messages, r#"[{"role": "user", "content": "Hello <|im_end|>"}]"#).expect("a file");
    let messages = messages.display().to_string();
    let base = ["render", "tiny-qwen3", "--messages", &messages, "--json"];
    let full = json(&base);
    let ids = |value: &Value| value["ids"].as_array().expect("a list of ids").len();
    let whole = full["text"].as_str().expect("text");
    assert!(whole.contains("Hello <|im_end|>"), "{whole}");

    let bare = json(&[&base[..], &["--no-generation-prompt"]].concat());
    assert!(whole.starts_with(bare["text"].as_str().expect("text")) && ids(&bare) < ids(&full));
    let quiet = json(&[&base[..], &["--no-think"]].concat());
    assert!(quiet["text"].as_str().expect("text").contains("</think>") && ids(&quiet) > ids(&full));
}

#[test]
fn generate_is_the_same_for_the_same_seed() {
    let run = |seed: &str| {
        let arguments = [
            "generate",
            "tiny-qwen3",
            "--prompt",
            "Hi",
            "--max-tokens",
            "12",
            "--seed",
            seed,
            "--json",
        ];
        json(&arguments)
    };
    let (first, again, other) = (run("1"), run("1"), run("2"));
    assert_eq!(first, again);
    assert_ne!(first["token_ids"], other["token_ids"]);
    let keys: Vec<&str> = first
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "prompt_ids",
            "token_ids",
            "thinking",
            "content",
            "finish_reason",
            "usage"
        ]
    );
    let count = |value: &Value| value.as_array().expect("a list").len();
    assert_eq!(first["usage"]["prompt_tokens"], count(&first["prompt_ids"]));
    assert_eq!(first["usage"]["completion_tokens"], count(&first["token_ids"]));
    assert!(count(&first["token_ids"]) <= 12);
}

#[test]
fn prompt_tokens_are_taken_as_they_are() {
    let arguments = [
        "generate",
        "tiny-qwen3",
        "--prompt-tokens",
        "5,6,7",
        "--max-tokens",
        "4",
        "--temperature",
        "0",
    ];
    let value = json(&[&arguments[..], &["--json"]].concat());
    assert_eq!(value["prompt_ids"], serde_json::json!([5, 6, 7]));
    assert!(!value["token_ids"].as_array().expect("a list").is_empty());
}

/// The whole of quickstart, with a model and judges that need nothing from outside.
#[test]
fn quickstart_measures_before_and_after() {
    let runs = tempfile::tempdir().expect("a temporary folder");
    let runs_dir = format!("runs_dir={}", runs.path().display());
    let overrides = [
        "model=tiny-qwen3",
        "judge.guard=toy",
        "judge.helpfulness=toy",
        "steps=2",
        "rollout.prompts=4",
        "rollout.completions=4",
        "rollout.max_new_tokens=16",
        "lora.layers=[1]",
        &runs_dir,
    ];
    let set = overrides.iter().flat_map(|text| ["--set", text]);
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/quickstart-qwen.toml");
    let arguments: Vec<&str> = ["quickstart", recipe, "--json"].into_iter().chain(set).collect();
    let value = json(&arguments);
    assert_eq!(value["run"], format!("{}/quickstart-qwen", runs.path().display()));
    for phase in ["before", "after"] {
        for (table, key) in [
            ("harmful", "safety"),
            ("harmful", "refusal"),
            ("benign", "refusal"),
            ("benign", "ability"),
        ] {
            let share = value[phase][table][key].as_f64().expect("a share");
            let interval = &value[phase][table][format!("{key}_interval")];
            let [low, high] = [0, 1].map(|end| interval[end].as_f64().expect("an end"));
            assert!((low..=high).contains(&share), "{phase} {table} {key}");
        }
        assert!(value[phase]["helpfulness"].is_f64() && value[phase]["shared_opening"].is_f64());
    }
    assert!(value["seconds"].as_f64() > Some(0.0));

    let folder = Path::new(value["run"].as_str().expect("the run's folder"));
    let samples = std::fs::read_to_string(folder.join("samples.jsonl")).expect("samples.jsonl");
    let rows: Vec<Value> = samples
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect();
    let prompts = |phase: &str| -> Vec<&Value> {
        rows.iter()
            .filter(|row| row["phase"] == phase)
            .map(|row| &row["prompt"])
            .collect()
    };
    let count = |key: &str| value["before"][key]["n"].as_u64().expect("a count");
    assert_eq!(prompts("before").len() as u64, count("harmful") + count("benign"));
    assert_eq!(prompts("before"), prompts("after"));
    let page = std::fs::read_to_string(folder.join("report.html")).expect("report.html");
    assert!(page.contains("Held-out prompts"));

    // A second one does not write over the first.
    let again = json(&arguments);
    assert_ne!(again["run"], value["run"]);
}

#[test]
fn export_writes_a_folder_that_answers_alike() {
    let runs = tempfile::tempdir().expect("a temporary folder");
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../recipes/smoke.toml")
        .display()
        .to_string();
    let runs_dir = format!("runs_dir={}", runs.path().display());
    let trained = saferl(&[
        "train",
        &recipe,
        "--set",
        &runs_dir,
        "--set",
        "steps=2",
        "--set",
        "lora={rank=4}",
    ]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let run = text(&trained.stdout).trim().to_string();
    let path = |name: &str| runs.path().join(name).display().to_string();
    for (format, name) in [("hf", "merged"), ("peft", "adapters")] {
        let exported = saferl(&["export", format, &run, "--output", &path(name)]);
        assert!(exported.status.success(), "{format}: {}", text(&exported.stderr));
    }
    assert!(runs.path().join("merged/model.safetensors").exists());
    let card = std::fs::read_to_string(runs.path().join("merged/README.md")).expect("a model card");
    assert!(
        card.contains("base_model: tiny-qwen3") && card.contains("steps = 2"),
        "{card}"
    );
    assert!(runs.path().join("adapters/adapter_model.safetensors").exists());
    let reply = |model: &str| {
        let arguments = [
            "generate",
            model,
            "--prompt",
            "Hi",
            "--max-tokens",
            "8",
            "--temperature",
            "0",
            "--json",
        ];
        json(&arguments)["token_ids"].clone()
    };
    let checkpoint = format!("{run}/checkpoints/step-2");
    assert_eq!(reply(&path("merged")), reply(&checkpoint));
    assert_eq!(reply(&path("adapters")), reply(&checkpoint));
    let taken = saferl(&["export", "hf", &run, "--output", &path("merged")]);
    assert_eq!(taken.status.code(), Some(2));

    for (format, name) in [("gguf", "model.gguf"), ("ollama", "ollama")] {
        let exported = saferl(&["export", format, &run, &path(name), "--type", "f32"]);
        assert!(exported.status.success(), "{format}: {}", text(&exported.stderr));
    }
    assert_eq!(reply(&path("model.gguf")), reply(&checkpoint));
    assert_eq!(reply(&path("ollama/model.gguf")), reply(&checkpoint));
    let modelfile = std::fs::read_to_string(path("ollama/Modelfile")).expect("a Modelfile");
    assert!(
        modelfile.starts_with("FROM ./model.gguf\nTEMPLATE"),
        "{modelfile}"
    );
    let taken = saferl(&["export", "gguf", &run, &path("model.gguf")]);
    assert_eq!(taken.status.code(), Some(2));
    let unknown = saferl(&["export", "gguf", &run, &path("other.gguf"), "--type", "q3"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        text(&unknown.stderr).contains("q4_k_m"),
        "{}",
        text(&unknown.stderr)
    );
}

#[test]
fn dry_run_names_what_is_missing() {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../recipes/smoke.toml")
        .display()
        .to_string();
    let set = [
        "model=nobody/Missing-4B",
        "judge.guard=http://127.0.0.1:9/v1",
        "prompts.source=missing.jsonl",
    ];
    let set = set.iter().flat_map(|text| ["--set", text]);
    let arguments: Vec<&str> = ["train", &recipe, "--dry-run"].into_iter().chain(set).collect();
    let output = saferl(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let plan = text(&output.stdout);
    let parts = [
        "model nobody/Missing-4B: not",
        "judge.guard http://127.0.0.1:9/v1: cannot be reached",
        "missing.jsonl",
        "4000 million parameters, by its name",
        "memory: about",
    ];
    for part in parts {
        assert!(plan.contains(part), "{part} is not in\n{plan}");
    }
}

#[test]
fn heads_judge_on_the_base_they_were_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let recipe = format!(
        "base = \"tiny-qwen3\"\ndtype = \"bf16\"\n[layout]\nlayers = [1]\nprompt_tokens = 32\nreply_tokens = 32\n\
         [fit]\nepochs = 1\n[[sources]]\nname = \"rot\"\nformat = \"own\"\npath = \"{repository}/judge/data/rot.jsonl\"\n\
         prompts = \"{repository}/train/data/prompts.jsonl\"\n"
    );
    std::fs::write(at("guard.toml"), recipe).unwrap();
    std::fs::write(
        at("rows.jsonl"),
        "{\"prompt\": \"hello\", \"response\": \"hello\"}\n",
    )
    .unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_saferl"));
        command
            .args(arguments)
            .env("SAFERL_CACHE", folder.path().join("cache"));
        command.output().unwrap()
    };
    let trained = run(&["guard", "train", &at("guard.toml"), "--output", &at("heads")]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let score = run(&["guard", "score", &at("rows.jsonl"), "--heads", &at("heads")]);
    assert!(score.status.success(), "{}", text(&score.stderr));
    let row: Value = serde_json::from_slice(&score.stdout).expect("one row");
    assert!(row.to_string().contains("safety"), "{row}");
}
