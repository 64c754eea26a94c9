//! `saferl eval` as a stranger meets it: a table, gates, a plan, errors, and an evaluation that was killed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
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
