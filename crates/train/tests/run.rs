//! Whole runs on the tiny seeded Qwen3: end to end, killed and resumed, and stopped by what can go wrong.

use std::fs;
use std::path::Path;

use candle_core::Device;
use judge::{Exchange, Judge, Verdict};
use model::source::{Source, resolve};
use train::checkpoint;
use train::metrics::Metrics;
use train::recipe::Recipe;
use train::run::{Event, Trainer};
use train::{Error, Result, toy};

const SMOKE: &str = include_str!("../../../recipes/smoke.toml");

fn tiny(folder: &Path) -> Source {
    let path = folder.join("tiny-qwen3");
    model::seeded::write_tiny(&path, model::config::Family::Qwen3).unwrap();
    resolve(&path.display().to_string(), &mut |_| ()).unwrap()
}

fn recipe(folder: &Path, run: &str, overrides: &[&str]) -> Recipe {
    let runs_dir = format!("runs_dir={}", folder.join("runs").display());
    let name = format!("run={run}");
    let small = ["rollout.prompts=2", "rollout.max_new_tokens=12", "steps=4"];
    let overrides = [runs_dir.as_str(), name.as_str()]
        .into_iter()
        .chain(small)
        .chain(overrides.iter().copied());
    Recipe::parse(
        SMOKE,
        "smoke.toml",
        &overrides.map(String::from).collect::<Vec<_>>(),
    )
    .unwrap()
}

/// Runs to the end or to the first error.
fn run(source: &Source, recipe: &Recipe, resume: bool, judge: &mut dyn Judge) -> (Result<()>, Vec<String>) {
    let mut events = Vec::new();
    let mut watch = |event: Event<'_>| {
        if !matches!(event, Event::Step(_)) {
            events.push(format!("{event:?}"));
        }
    };
    let outcome = Trainer::new(recipe, source, &Device::Cpu, resume, &mut watch)
        .and_then(|mut trainer| trainer.run(judge, &mut watch));
    (outcome, events)
}

fn read(recipe: &Recipe, name: &str) -> String {
    fs::read_to_string(recipe.folder().join(name)).unwrap()
}

/// The metrics without what a clock or the system measured, as text: equal text is equal bits.
fn metrics(recipe: &Recipe) -> Vec<String> {
    let timeless = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        let keys = value.as_object_mut().unwrap();
        keys.retain(|key, _| !key.ends_with("_s") && key != "rss_mb");
        value.to_string()
    };
    read(recipe, "metrics.jsonl").lines().map(timeless).collect()
}

fn last(recipe: &Recipe) -> Vec<u8> {
    let (path, _) = checkpoint::latest(&recipe.folder().join("checkpoints"), &mut |_| ())
        .unwrap()
        .unwrap();
    let name = if recipe.lora.is_some() {
        "adapter_model.safetensors"
    } else {
        "model.safetensors"
    };
    fs::read(path.join(name)).unwrap()
}

/// The toy judge until a number of calls is over; then it dies as a killed process does.
struct Dying(usize);

impl Judge for Dying {
    fn judge(&mut self, exchanges: &[Exchange]) -> Vec<Verdict> {
        assert!(self.0 > 0, "killed");
        self.0 -= 1;
        toy::panel().judge(exchanges)
    }
}

#[test]
fn the_loop_runs_end_to_end_and_fills_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path());
    let recipe = recipe(folder.path(), "whole", &[]);
    let (outcome, events) = run(&source, &recipe, false, &mut toy::panel());
    outcome.unwrap();
    assert_eq!(
        events.iter().filter(|event| event.starts_with("Saved")).count(),
        2,
        "{events:?}"
    );
    assert_eq!(
        Recipe::parse(&read(&recipe, "recipe.toml"), "recipe.toml", &[]).unwrap(),
        recipe
    );
    let manifest: serde_json::Value = serde_json::from_str(&read(&recipe, "manifest.json")).unwrap();
    assert_eq!(
        manifest["model"]["sha256"]["model.safetensors"]
            .as_str()
            .unwrap()
            .len(),
        64
    );

    let lines = read(&recipe, "metrics.jsonl");
    let steps: Vec<Metrics> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        steps.iter().map(|metrics| metrics.step).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    for metrics in &steps {
        assert_eq!(metrics.modes.len(), 2);
        assert!(metrics.kl.unwrap() >= 0.0 && metrics.grad_norm.unwrap() > 0.0);
        assert!(metrics.sampler_gap.unwrap() < 1e-4, "{metrics:?}");
    }
    // 4 steps of 2 prompts in 2 modes, 4 answers each.
    assert_eq!(read(&recipe, "samples.jsonl").lines().count(), 64);
    assert_eq!(read(&recipe, "verdicts.jsonl").lines().count(), 64);
    assert!(last(&recipe).len() > 1000);
}

#[test]
fn on_policy_every_ratio_is_exactly_one() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path());
    for kind in ["gspo", "grpo", "gspo-token"] {
        let overrides = ["steps=1", "update.minibatches=1", &format!("loss.kind={kind}")];
        let recipe = recipe(folder.path(), kind, &overrides);
        run(&source, &recipe, false, &mut toy::panel()).0.unwrap();
        let metrics: Metrics = serde_json::from_str(&read(&recipe, "metrics.jsonl")).unwrap();
        assert_eq!(
            (metrics.ratio_mean, metrics.ratio_max, metrics.clip_fraction),
            (Some(1.0), Some(1.0), Some(0.0))
        );
    }
}

/// A killed run, resumed, writes what the uninterrupted one writes, and has its weights.
fn resumes_bit_for_bit(overrides: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path());
    let whole = recipe(folder.path(), "whole", overrides);
    run(&source, &whole, false, &mut toy::panel()).0.unwrap();
    let killed = recipe(folder.path(), "killed", overrides);
    // Dies in its first step, before any checkpoint; then in step 4, behind the checkpoint of step 2.
    for (resume, calls) in [(false, 0), (true, 3)] {
        let run = std::panic::AssertUnwindSafe(|| run(&source, &killed, resume, &mut Dying(calls)).0);
        assert!(std::panic::catch_unwind(run).is_err());
    }
    assert_eq!(metrics(&killed).len(), 3);
    let (outcome, events) = run(&source, &killed, true, &mut toy::panel());
    outcome.unwrap();
    assert!(events.contains(&"Resumed(2)".to_string()), "{events:?}");
    assert_eq!(metrics(&killed), metrics(&whole));
    for name in ["samples.jsonl", "verdicts.jsonl", "alarms.jsonl"] {
        assert_eq!(read(&killed, name), read(&whole, name), "{name}");
    }
    assert!(last(&killed) == last(&whole), "the weights differ");
    // A finished run resumes to nothing.
    run(&source, &killed, true, &mut Dying(0)).0.unwrap();
    assert_eq!(metrics(&killed), metrics(&whole));
}

#[test]
fn a_full_run_resumes_bit_for_bit() {
    resumes_bit_for_bit(&[]);
}

#[test]
fn a_lora_run_resumes_bit_for_bit() {
    resumes_bit_for_bit(&["lora.rank=4", "update.gradient_checkpointing=true"]);
}

#[test]
fn a_run_out_of_time_is_saved_and_goes_on_as_if_it_had_not_been() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path());
    let whole = recipe(folder.path(), "whole", &[]);
    run(&source, &whole, false, &mut toy::panel()).0.unwrap();
    let hasty = recipe(folder.path(), "hasty", &["time_limit_s=1e-9"]);
    for (resume, steps) in [(false, 1), (true, 2)] {
        run(&source, &hasty, resume, &mut toy::panel()).0.unwrap();
        assert_eq!(metrics(&hasty).len(), steps);
        assert!(hasty.folder().join(format!("checkpoints/step-{steps}")).exists());
    }
    let patient = recipe(folder.path(), "hasty", &[]);
    run(&source, &patient, true, &mut toy::panel()).0.unwrap();
    assert_eq!(metrics(&patient), metrics(&whole));
    assert!(last(&patient) == last(&whole), "the weights differ");
}

#[test]
fn a_torn_checkpoint_is_skipped_and_the_run_still_ends_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path());
    let whole = recipe(folder.path(), "whole", &[]);
    run(&source, &whole, false, &mut toy::panel()).0.unwrap();
    let (expected, weights) = (metrics(&whole), last(&whole));
    let model = whole.folder().join("checkpoints/step-4/model.safetensors");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let (outcome, events) = run(&source, &whole, true, &mut toy::panel());
    outcome.unwrap();
    assert!(
        events
            .iter()
            .any(|event| event.contains("step-4") && event.contains("skipped")),
        "{events:?}"
    );
    assert_eq!(metrics(&whole), expected);
    assert!(last(&whole) == weights);
}

#[test]
fn a_run_is_not_overwritten_nor_resumed_with_another_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path());
    let first = recipe(folder.path(), "one", &["steps=2"]);
    run(&source, &first, false, &mut toy::panel()).0.unwrap();
    let error = run(&source, &first, false, &mut toy::panel()).0.unwrap_err();
    assert!(error.hint().unwrap().contains("--resume"));
    let other = recipe(folder.path(), "one", &["steps=2", "loss.kl=0.5"]);
    let error = run(&source, &other, true, &mut toy::panel())
        .0
        .unwrap_err()
        .to_string();
    assert!(error.contains("loss.kl is 0.5, was 0.01"), "{error}");
    // More steps are no other run.
    let longer = recipe(folder.path(), "one", &["steps=3"]);
    run(&source, &longer, true, &mut toy::panel()).0.unwrap();
    assert_eq!(metrics(&longer).len(), 3);
}

#[test]
fn the_report_of_a_run_whose_alarm_sounded_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(
        folder.path(),
        "loud",
        &["steps=1", "alarm.length_growth=0.1", "alarm.patience=1"],
    );
    run(&tiny(folder.path()), &recipe, false, &mut toy::panel())
        .0
        .unwrap();
    let alarm: train::alarm::AlarmLine = serde_json::from_str(&read(&recipe, "alarms.jsonl")).unwrap();
    let page = fs::read_to_string(train::report::write(&recipe.folder()).unwrap()).unwrap();
    assert!(
        page.contains(&format!("Step 1: {}", alarm.text)),
        "{}",
        alarm.text
    );
}

#[test]
fn a_dead_judge_stops_the_run_and_the_checkpoint_stays() {
    struct Dead(usize);
    impl Judge for Dead {
        fn judge(&mut self, exchanges: &[Exchange]) -> Vec<Verdict> {
            self.0 += 1;
            let mut verdicts = toy::panel().judge(exchanges);
            if self.0 > 2 {
                for verdict in &mut verdicts {
                    verdict.content = judge::Scored::Unscorable("connection refused".into());
                }
            }
            verdicts
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path());
    let recipe = recipe(folder.path(), "dead", &["judge.wait_s=0", "judge.attempts=2"]);
    let error = run(&source, &recipe, false, &mut Dead(0)).0.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unscorable {
                step: 3,
                attempts: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("connection refused"));
    assert_eq!(metrics(&recipe).len(), 2);
    // It comes back, and the run goes on as if nothing had been.
    run(&source, &recipe, true, &mut toy::panel()).0.unwrap();
    assert_eq!(metrics(&recipe).len(), 4);
}

#[test]
fn a_learning_rate_that_explodes_stops_with_the_step_and_keeps_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path());
    let calm = recipe(folder.path(), "wild", &["steps=2"]);
    run(&source, &calm, false, &mut toy::panel()).0.unwrap();
    // The recipe as it was started, but for the rate, written by hand: no run would be resumed so.
    let text = read(&calm, "recipe.toml").replace("learning_rate = 0.001", "learning_rate = 1e30");
    fs::write(calm.folder().join("recipe.toml"), &text).unwrap();
    let wild = recipe(
        folder.path(),
        "wild",
        &["optimizer.learning_rate=1e30", "steps=4"],
    );
    let error = run(&source, &wild, true, &mut toy::panel()).0.unwrap_err();
    assert!(
        matches!(error, Error::NotFinite { .. } | Error::Model(_)),
        "{error}"
    );
    let saved = checkpoint::latest(&wild.folder().join("checkpoints"), &mut |warning| {
        panic!("{warning}")
    })
    .unwrap();
    assert_eq!(saved.unwrap().1.step, 2);
}
