//! A run that is killed at a random moment and resumed is the run that was not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// What may differ: how long things took, and how much memory the process had.
const TIMINGS: [&str; 6] = [
    "rollout_s",
    "judge_s",
    "update_s",
    "step_s",
    "tokens_per_s",
    "rss_mb",
];

fn recipe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/smoke.toml")
}

fn train(runs: &Path, name: &str, resume: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_saferl"));
    command.arg("train").arg(recipe());
    command.args([
        "--set",
        &format!("run={name}"),
        "--set",
        &format!("runs_dir={}", runs.display()),
    ]);
    if resume {
        command.arg("--resume");
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

fn finish(child: Child) {
    let output = child.wait_with_output().expect("the program ends");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The metrics, timings taken out; bytes otherwise, so that equal means bit for bit.
fn metrics(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics.jsonl");
    let lines = text.lines().map(|line| {
        let mut value: Value = serde_json::from_str(line).expect("a JSON line");
        let object = value.as_object_mut().expect("an object");
        for key in TIMINGS {
            assert!(object.remove(key).is_some(), "no `{key}` in {line}");
        }
        value.to_string()
    });
    lines.collect()
}

/// A moment in the first `span`, from the clock's lowest digits.
fn random_moment(span: Duration) -> Duration {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock")
        .subsec_nanos();
    span.mul_f64(f64::from(nanos % 9973) / 9973.0)
}

#[test]
fn kill_and_resume_gives_the_same_run() {
    let runs = tempfile::tempdir().expect("a temporary folder");
    let start = Instant::now();
    finish(train(runs.path(), "whole", false));
    let span = start.elapsed();
    let whole = metrics(&runs.path().join("whole"));
    assert!(whole.len() > 2, "the smoke recipe is too short to be interrupted");

    for round in 0..3 {
        let name = format!("killed-{round}");
        let moment = random_moment(span);
        let mut child = train(runs.path(), &name, false);
        std::thread::sleep(moment);
        // SIGKILL: the program cannot tidy up.
        child.kill().expect("kill");
        child.wait().expect("the program ends");
        finish(train(runs.path(), &name, true));
        let resumed = metrics(&runs.path().join(&name));
        assert_eq!(whole, resumed, "killed after {moment:?} of {span:?}");
        for file in ["samples.jsonl", "verdicts.jsonl"] {
            let read = |run: &str| fs::read_to_string(runs.path().join(run).join(file)).expect(file);
            assert!(
                read("whole") == read(&name),
                "{file} differs when killed after {moment:?} of {span:?}"
            );
        }
    }
}
