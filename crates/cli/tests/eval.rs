//! `saferl eval` as a stranger meets it: a table, gates, a plan, errors, and an evaluation that was killed.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_saferl"));
    command
        .arg("eval")
        .args(arguments)
        .env_remove("SAFERL_LOG")
        .stdin(Stdio::null());
    command
}

fn eval(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A recipe on the ability set, which needs no files and no judge.
fn recipe(folder: &Path, model: &str) -> PathBuf {
    let path = folder.join("recipe.toml");
    let text = format!(
        "run = \"r\"\nruns_dir = {:?}\n[sampling.no-think]\nmax_new_tokens = 48\n[[model]]\nname = \"m\"\n{model}\n\
         [[task]]\nname = \"ability\"\nkind = \"ability\"\n",
        folder.join("evals").display().to_string()
    );
    std::fs::write(&path, text).expect("a recipe");
    path
}

fn scripted(folder: &Path) -> PathBuf {
    let script = folder.join("script.jsonl");
    std::fs::write(&script, "{\"reply\": \"The capital of France is Paris.\"}\n").expect("a script");
    recipe(folder, &format!("scripted = {:?}", script.display().to_string()))
}

#[test]
fn a_table_a_page_and_gates() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = scripted(folder.path());
    let recipe = recipe.to_str().expect("a path");
    let output = eval(&[recipe, "--limit", "10"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(
        table.contains("m (no-think)") && table.contains("ability pass@1") && table.contains("n=10"),
        "{table}"
    );
    for file in ["page.html", "table.md", "table.csv", "table.tex", "results.json"] {
        assert!(folder.path().join("evals/r").join(file).is_file(), "{file}");
    }
    let gate = eval(&[recipe, "--limit", "10", "--fail-if", "pass@1 < 0.99"]);
    assert_eq!(gate.status.code(), Some(1));
    assert!(
        text(&gate.stderr).contains("gate not met: ability pass@1 of m"),
        "{}",
        text(&gate.stderr)
    );
    let held = eval(&[
        recipe,
        "--limit",
        "10",
        "--fail-if",
        "pass@1 < 0",
        "--format",
        "csv",
    ]);
    assert_eq!(held.status.code(), Some(0));
    assert!(
        text(&held.stdout).starts_with("task,metric,judge"),
        "{}",
        text(&held.stdout)
    );
    let odd = eval(&[recipe, "--limit", "10", "--fail-if", "safty < 0.9"]);
    assert_eq!(odd.status.code(), Some(2));
}

#[test]
fn a_plan_and_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = scripted(folder.path());
    let recipe = recipe.to_str().expect("a path");
    let plan = eval(&[recipe, "--limit", "10", "--dry-run"]);
    assert!(plan.status.success());
    let plan = text(&plan.stdout);
    assert!(
        plan.contains("- nothing") && plan.contains("m (no-think): ability: 10 requests"),
        "{plan}"
    );
    assert!(!folder.path().join("evals").exists(), "a plan writes nothing");
    // What is not asked for is not missed.
    let mut more = std::fs::read_to_string(recipe).expect("the recipe");
    more += "[[model]]\nname = \"absent\"\nsource = \"/nowhere\"\n";
    let both = folder.path().join("both.toml");
    std::fs::write(&both, more).expect("a recipe");
    let both = both.to_str().expect("a path");
    let plan = text(&eval(&[both, "--dry-run"]).stdout);
    assert!(
        plan.contains("model absent") && plan.contains("absent (no-think)"),
        "{plan}"
    );
    let plan = text(&eval(&[both, "--dry-run", "--task", "ability", "--model", "m"]).stdout);
    assert!(plan.contains("- nothing") && !plan.contains("absent"), "{plan}");
    let odd = eval(&[recipe, "--task", "abilities"]);
    assert_eq!(odd.status.code(), Some(2));
    assert!(
        text(&odd.stderr).contains("there is no task `abilities`"),
        "{}",
        text(&odd.stderr)
    );
    let first = eval(&[recipe, "--limit", "3"]);
    assert!(first.status.success());
    let other = eval(&[recipe, "--limit", "3", "--set", "seed=9"]);
    assert_eq!(other.status.code(), Some(2));
    let said = text(&other.stderr);
    assert!(
        said.contains("seed: expected 9, found 1") && said.contains("hint: "),
        "{said}"
    );
}

/// Ids of the replies in a log, in its order.
fn replies(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let rows = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    rows.filter(|row| row["event"] == "reply")
        .map(|row| row["id"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn a_killed_evaluation_asks_nothing_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(folder.path(), "source = \"tiny-qwen3\"");
    let recipe = recipe.to_str().expect("a path");
    let log = folder.path().join("evals/r/logs/ability/m.no-think.jsonl");
    let mut child = command(&[recipe])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let start = Instant::now();
    while replies(&log).len() < 5 && start.elapsed() < Duration::from_mins(1) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let before = replies(&log);
    assert!(before.len() >= 5, "{} replies", before.len());
    let output = eval(&[recipe]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let after = replies(&log);
    assert_eq!(after[..before.len()], before);
    let different: HashSet<&String> = after.iter().collect();
    assert_eq!((after.len(), after.len() >= 100), (different.len(), true));
}

/// A stand-in for the hub: a status and a body by path, and the paths that were asked for.
fn hub(answers: HashMap<&'static str, (u16, String)>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
            let head = lines.by_ref().map_while(Result::ok);
            let head: Vec<String> = head.take_while(|line| !line.is_empty()).collect();
            let path = head
                .first()
                .and_then(|line| line.split(' ').nth(1))
                .unwrap_or_default();
            let absent = (404, String::new());
            let (status, body) = answers.get(path).unwrap_or(&absent);
            seen.lock().expect("no panic").push(path.to_owned());
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        }
    });
    (endpoint, asked)
}

#[test]
fn data_of_the_hub_are_planned_fetched_once_and_explained_where_they_are_gated() {
    let rows = "{\"prompt\": \"1 + 1\", \"answer\": 2}\n{\"prompt\": \"2 + 2\", \"answer\": 4}\n";
    let listing = format!(
        "{{\"sha\": \"abc123\", \"siblings\": [{{\"rfilename\": \"a/rows.jsonl\", \"size\": {}}}]}}",
        rows.len()
    );
    let (endpoint, asked) = hub(HashMap::from([
        ("/api/datasets/org/name/revision/main?blobs=true", (200, listing)),
        (
            "/datasets/org/name/resolve/abc123/a/rows.jsonl",
            (200, rows.to_owned()),
        ),
        (
            "/api/datasets/Idavidrein/gpqa/revision/main?blobs=true",
            (401, String::new()),
        ),
    ]));
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = scripted(folder.path());
    let mut tasks = std::fs::read_to_string(&recipe).expect("the recipe");
    tasks += "[[task]]\nname = \"sums\"\nkind = \"custom\"\nscorer = \"integer\"\n\
              data = [\"hf://datasets/org/name/a/rows.jsonl\"]\n[[task]]\nname = \"gpqa\"\nkind = \"gpqa\"\n";
    std::fs::write(&recipe, tasks).expect("the recipe");
    let recipe = recipe.to_str().expect("a path");
    let eval = |arguments: &[&str]| {
        let mut command = command(arguments);
        for variable in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"] {
            command.env_remove(variable);
        }
        command
            .env("HF_ENDPOINT", &endpoint)
            .env("HF_HOME", folder.path().join("hf"))
            .env("NO_PROXY", "127.0.0.1");
        command.output().expect("the program starts")
    };
    let count = || asked.lock().expect("no panic").len();

    let plan = text(&eval(&[recipe, "--dry-run"]).stdout);
    let line = format!(
        "- sums: hf://datasets/org/name/a/rows.jsonl, to be fetched from {endpoint}/datasets/org/name"
    );
    assert!(plan.contains(&line), "{plan}");
    let terms = format!(
        "task gpqa: the environment variable HF_TOKEN, of an account that accepted the terms at {endpoint}"
    );
    assert!(plan.contains(&terms), "{plan}");
    assert_eq!(count(), 0, "a plan asks nothing");

    let output = eval(&[recipe, "--task", "sums"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains("sums pass@1"),
        "{}",
        text(&output.stdout)
    );
    assert_eq!(count(), 2);
    assert!(eval(&[recipe, "--task", "sums"]).status.success());
    assert_eq!(count(), 2, "what is in the cache is not asked after");
    let plan = text(&eval(&[recipe, "--dry-run", "--task", "sums"]).stdout);
    assert!(
        plan.contains("rows.jsonl, fetched before: ") && plan.contains("sums: 2 requests"),
        "{plan}"
    );

    let gated = eval(&[recipe, "--task", "gpqa"]);
    assert_eq!(gated.status.code(), Some(2));
    let said = text(&gated.stderr);
    let hint = format!("hint: accept its terms at {endpoint}/datasets/Idavidrein/gpqa, and set HF_TOKEN");
    assert!(said.contains("task gpqa: ") && said.contains(&hint), "{said}");
}
