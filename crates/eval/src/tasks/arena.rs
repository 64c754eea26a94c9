//! Arena-Hard v2: questions whose answers are compared with a baseline's, by category.

use std::collections::HashMap;
use std::path::Path;

use model::chat::Message;
use serde_json::Value;

use super::files::{Row, read_rows};
use super::places::{Places, TaskFile};
use super::{Item, Target};
use crate::error::{Error, Result};
use crate::recipe::{Recipe, TaskRecipe};

/// Questions (`uid`, `category`, `prompt`) joined with the answers of their category's baseline; `files` are those of
/// the baselines, in the order of their places.
pub(super) fn items(
    recipe: &Recipe,
    task: &TaskRecipe,
    rows: &[Row],
    files: &[TaskFile],
) -> Result<Vec<Item>> {
    let mut baselines: HashMap<String, HashMap<String, String>> = HashMap::new();
    for ((category, _), file) in Places::of(recipe, task).baselines.into_iter().zip(files) {
        baselines.insert(category, answers(&file.path)?);
    }
    let mut items = Vec::new();
    for row in rows {
        let (uid, category) = (row.text(&["uid"])?, row.text(&["category"])?);
        if !task.groups.is_empty() && !task.groups.iter().any(|group| group == category) {
            continue;
        }
        let wrong = |what: String, hint: String| Error::Task {
            task: task.name.clone(),
            what,
            hint,
        };
        let answers = baselines.get(category).ok_or_else(|| {
            wrong(
                format!("no baseline for category {category}"),
                format!("name the file of its answers as baselines.{category}, or leave it out with groups"),
            )
        })?;
        let baseline = answers.get(uid).ok_or_else(|| {
            wrong(
                format!("the baseline of {category} has no answer to question {uid}"),
                "questions and answers have to be of one release".into(),
            )
        })?;
        items.push(Item {
            id: uid.into(),
            group: category.into(),
            messages: vec![Message::user(row.text(&["prompt"])?)],
            target: Target::Battle {
                baseline: baseline.clone(),
            },
            behavior: None,
        });
    }
    Ok(items)
}

/// Answers by question: the last message's `content.answer`, or its content where that is text.
fn answers(path: &Path) -> Result<HashMap<String, String>> {
    let mut answers = HashMap::new();
    for row in read_rows(path)? {
        let content = row
            .value("messages")
            .and_then(Value::as_array)
            .and_then(|messages| messages.last())
            .and_then(|message| message.get("content"));
        let answer = match content {
            Some(Value::String(text)) => Some(text.as_str()),
            Some(content) => content.get("answer").and_then(Value::as_str),
            None => None,
        };
        let answer = answer.ok_or_else(|| row.wrong("expected text at messages[-1].content.answer"))?;
        answers.insert(row.text(&["uid"])?.to_owned(), answer.to_owned());
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load, recipe};
    use super::*;

    const TASK: &str = "[[judge]]\nname = \"p\"\nkind = \"pairwise\"\nurl = \"http://localhost:1\"\n\
        system = { hard_prompt = \"s\" }\n[[task]]\nname = \"arena\"\nkind = \"arena-hard\"\njudges = [\"p\"]\n\
        data = [\"q.jsonl\"]\nbaselines = { hard_prompt = \"a.jsonl\" }\n";

    #[test]
    fn questions_meet_their_categorys_baseline() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "q.jsonl",
            "{\"uid\": \"u1\", \"category\": \"hard_prompt\", \"prompt\": \"p1\"}\n\
             {\"uid\": \"u2\", \"category\": \"creative_writing\", \"prompt\": \"p2\"}\n",
        );
        write(
            "a.jsonl",
            "{\"uid\": \"u1\", \"messages\": [{\"role\": \"user\", \"content\": \"p1\"}, {\"role\": \"assistant\", \
             \"content\": {\"answer\": \"b1\"}}]}\n",
        );
        let whole = recipe(folder.path(), TASK);
        let error = load(&whole).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("no baseline for category creative_writing"),
            "{error}"
        );
        let part = recipe(folder.path(), &format!("{TASK}groups = [\"hard_prompt\"]\n"));
        let loaded = load(&part).unwrap();
        assert_eq!(loaded.items.len(), 1);
        assert_eq!(
            loaded.items[0].target,
            Target::Battle {
                baseline: "b1".into()
            }
        );
    }
}
