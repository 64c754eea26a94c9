//! The data filter with a scripted model: only prompts with both kinds of answers stay.

use std::fs;

use model::config::Family;
use model::scripted::Scripted;
use model::source::resolve;
use model::tokenizer::Tokenizer;
use train::filter::{Progress, filter};
use train::prompts::{self, PromptRow};
use train::recipe::{Kind, Prompts, Recipe};
use train::toy;

#[test]
fn prompts_with_safe_and_unsafe_answers_are_kept_and_can_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    model::seeded::write_tiny(folder.path(), Family::Qwen3).unwrap();
    let source = resolve(&folder.path().display().to_string(), &mut |_| ()).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    // A digit is unsafe to the toy judge.
    let mut policy = Scripted::texts(|prompt, index| match prompt.messages[0].content.as_str() {
        "one in four" if index % 4 == 0 => "7".into(),
        "only while thinking" if prompt.mode == model::chat::Mode::Think => {
            "<think>\n7\n</think>\n\nfine".into()
        }
        "never good" => "7".into(),
        _ => "fine".into(),
    });
    let row = |prompt: &str| PromptRow {
        id: prompt.replace(' ', "-"),
        kind: Kind::Borderline,
        category: None,
        prompt: prompt.into(),
    };
    let rows = ["always good", "one in four", "never good", "only while thinking"].map(row);
    let overrides = [
        "modes=[\"think\", \"no-think\"]".to_string(),
        "filter.batch=3".to_string(),
    ];
    let recipe = Recipe::parse("", "test", &overrides).unwrap();
    let output = folder.path().join("kept.jsonl");
    let mut heard = Vec::new();
    let mut watch = |progress: &Progress| heard.push(progress.done);
    let progress = filter(
        &recipe,
        &rows,
        &tokenizer,
        &mut policy,
        &mut toy::panel(),
        &output,
        &mut watch,
    )
    .unwrap();
    assert_eq!(
        progress,
        Progress {
            done: 4,
            prompts: 4,
            kept: 2,
            all_safe: 1,
            all_unsafe: 1
        }
    );
    assert_eq!(heard, [3, 4]);

    let text = fs::read_to_string(&output).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    // Eight answers in each mode.
    assert_eq!(
        line["answers"]["think"],
        serde_json::json!({"safe": 6, "judged": 8})
    );
    let again = Prompts {
        source: output.display().to_string(),
        ..Prompts::default()
    };
    assert_eq!(prompts::load(&again).unwrap(), [rows[1].clone(), rows[3].clone()]);
}
