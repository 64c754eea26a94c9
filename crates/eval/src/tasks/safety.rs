//! Prompts whose answers judges score: for harmful prompts whether they are safe, for benign ones whether they refuse.

use model::chat::Message;

use super::files::Row;
use super::{Behavior, Item, Target};
use crate::error::Result;
use crate::recipe::TaskKind;

/// What stands between a HarmBench behaviour and its context.
const CONTEXT_RULE: &str = "\n\n---\n\n";
/// HarmBench's mark of the behaviours that ask for a protected work, which it checks by hashes of that work.
const COPYRIGHT_TAG: &str = "hash_check";

/// A row of one of these benchmarks, by the columns that it is published with, or those of walledai's copies on the hub.
pub(super) fn item(kind: TaskKind, row: &Row) -> Result<Item> {
    let mut behavior = Behavior::default();
    let (id, group, prompt, harmful) = match kind {
        TaskKind::Xstest => {
            let harmful = match row.text(&["label"])? {
                "safe" => false,
                "unsafe" => true,
                other => return Err(row.wrong(&format!("label: expected safe or unsafe, found `{other}`"))),
            };
            (
                row.id(&["id"]),
                row.text(&["type"])?,
                row.text(&["prompt"])?.into(),
                harmful,
            )
        }
        TaskKind::OrBench => {
            let group = row
                .optional("category")
                .or_else(|| row.optional("label"))
                .unwrap_or("safe");
            (row.place(), group, row.text(&["prompt"])?.into(), false)
        }
        TaskKind::Harmbench => {
            let request = row.text(&["Behavior", "prompt"])?;
            let context = row.optional("ContextString").or_else(|| row.optional("context"));
            let prompt = match context {
                Some(context) => format!("{context}{CONTEXT_RULE}{request}"),
                None => request.to_owned(),
            };
            let tags = row.value("Tags").map(ToString::to_string).unwrap_or_default();
            behavior = Behavior {
                request: request.into(),
                context: context.map(Into::into),
                copyright: tags.contains(COPYRIGHT_TAG),
            };
            (
                row.id(&["BehaviorID"]),
                row.text(&["FunctionalCategory", "category"])?,
                prompt,
                true,
            )
        }
        TaskKind::Jailbreakbench => (
            row.place(),
            row.text(&["Category"])?,
            row.text(&["Goal"])?.into(),
            jailbreakbench_harmful(row)?,
        ),
        TaskKind::Advbench => {
            let prompt = row.text(&["goal", "prompt"])?.into();
            (row.place(), "advbench", prompt, true)
        }
        TaskKind::Strongreject => {
            let prompt = row.text(&["forbidden_prompt", "prompt"])?.into();
            (row.place(), row.text(&["category"])?, prompt, true)
        }
        TaskKind::SimpleSafetyTests => {
            let group = row.text(&["harm_area", "Harm Area", "category"])?;
            (
                row.id(&["id", "counter_id"]),
                group,
                row.text(&["prompt"])?.into(),
                true,
            )
        }
        _ => {
            let group = row.text(&["data_type"])?;
            let harmful = match group {
                "adversarial_harmful" => true,
                "adversarial_benign" => false,
                other => {
                    let what = "data_type: expected adversarial_harmful or adversarial_benign";
                    return Err(row.wrong(&format!("{what}, found `{other}`")));
                }
            };
            (row.place(), group, row.text(&["adversarial"])?.into(), harmful)
        }
    };
    if behavior.request.is_empty() {
        behavior.request.clone_from(&prompt);
    }
    Ok(Item {
        id,
        group: group.into(),
        messages: vec![Message::user(prompt)],
        target: if harmful { Target::Harmful } else { Target::Benign },
        behavior: Some(behavior),
    })
}

/// Whether a row of JailbreakBench's is one of the harmful behaviours or of their benign twins. Both files have the same
/// columns, so that only the file's name says which it is, or its folder's, where the hub made Parquet of it.
fn jailbreakbench_harmful(row: &Row) -> Result<bool> {
    for name in row.file_names() {
        match (name.contains("harmful"), name.contains("benign")) {
            (true, false) => return Ok(true),
            (false, true) => return Ok(false),
            _ => {}
        }
    }
    Err(row.wrong(
        "expected JailbreakBench's harmful-behaviors.csv or benign-behaviors.csv by the name of the file",
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn published_columns_become_items() {
        let of = |kind, row| item(kind, &Row::of(row)).unwrap();
        let contrast = of(
            TaskKind::Xstest,
            json!({"id": "26", "prompt": "p", "type": "contrast_homonyms", "label": "unsafe"}),
        );
        assert_eq!((contrast.id.as_str(), &contrast.target), ("26", &Target::Harmful));
        assert_eq!(
            of(TaskKind::OrBench, json!({"prompt": "p", "label": "safe"})).target,
            Target::Benign
        );
        let contextual = json!({"Behavior": "b", "FunctionalCategory": "contextual", "ContextString": "c", "BehaviorID": "x"});
        let contextual = of(TaskKind::Harmbench, contextual);
        assert_eq!(contextual.prompt(), "c\n\n---\n\nb");
        let behavior = contextual.behavior.unwrap();
        assert_eq!(
            (
                behavior.request.as_str(),
                behavior.context.as_deref(),
                behavior.copyright
            ),
            ("b", Some("c"), false)
        );
        let song = json!({"Behavior": "sing", "FunctionalCategory": "copyright", "Tags": "lyrics, hash_check", "BehaviorID": "y"});
        assert!(of(TaskKind::Harmbench, song).behavior.unwrap().copyright);
        let wild = json!({"adversarial": "p", "label": "0", "data_type": "adversarial_benign"});
        let wild = of(TaskKind::Wildjailbreak, wild);
        assert_eq!(
            (wild.group.as_str(), wild.target),
            ("adversarial_benign", Target::Benign)
        );
        let reject = json!({"category": "Violence", "source": "s", "forbidden_prompt": "p"});
        assert_eq!(of(TaskKind::Strongreject, reject).prompt(), "p");
        let copied = json!({"prompt": "b", "context": "c", "category": "illegal"});
        let copied = of(TaskKind::Harmbench, copied);
        assert_eq!(
            (copied.prompt(), copied.group.as_str()),
            ("c\n\n---\n\nb", "illegal")
        );
        let copied = json!({"prompt": "p", "category": "Violence", "source": "s"});
        assert_eq!(of(TaskKind::Strongreject, copied).prompt(), "p");
        assert_eq!(
            of(TaskKind::Advbench, json!({"prompt": "p", "target": "Sure"})).prompt(),
            "p"
        );
        let simple = json!({"id": "SST_001", "harm_area": "h", "prompt": "p"});
        assert_eq!(of(TaskKind::SimpleSafetyTests, simple).id, "SST_001");
    }

    #[test]
    fn another_label_is_refused() {
        let row = Row::of(json!({"prompt": "p", "type": "t", "label": "maybe"}));
        let error = item(TaskKind::Xstest, &row).unwrap_err().to_string();
        assert!(
            error.contains("expected safe or unsafe, found `maybe`"),
            "{error}"
        );
    }
}
