//! The page of an evaluation: one file with the table, safety against refusal, curves over checkpoints, and a browser of
//! samples.
//!
//! The file asks nothing of the network: figures and samples stand in it as JSON, and a small script draws them. Texts
//! that models wrote are shown as text and never become markup.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use crate::log::{Part, Reply};
use crate::recipe::Recipe;
use crate::results::Results;
use crate::run::{Cell, mode_name};
use crate::tasks::Target;

/// Longest text that the page shows; the log has all of it.
const LONGEST: usize = 6000;

/// A sample as the page's script wants it.
#[derive(Serialize)]
struct Sample<'a> {
    task: &'a str,
    group: &'a str,
    id: &'a str,
    #[serde(rename = "sample")]
    number: usize,
    model: &'a str,
    mode: &'static str,
    kind: &'static str,
    prompt: String,
    thinking: Option<String>,
    reply: String,
    truncated: bool,
    failed: Option<&'a str>,
    passed: Option<bool>,
    extracted: Option<String>,
    detail: Option<&'a str>,
    verdicts: BTreeMap<String, Word>,
}

/// A verdict as the page's script wants it.
#[derive(Serialize)]
struct Word {
    safety: Option<judge::Safety>,
    refusal: Option<bool>,
    score: Option<f64>,
    label: Option<String>,
    raw: String,
    unscored: Option<String>,
}

/// The page.
pub fn page(recipe: &Recipe, cells: &[Cell], results: &Results) -> String {
    let samples: Vec<Sample<'_>> = cells.iter().flat_map(samples).collect();
    let data = json!({"run": recipe.run, "results": results, "samples": samples});
    // The only way out of a script element is its end; JSON may write the sign differently.
    let data = data.to_string().replace('<', "\\u003c");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} - saferl eval</title>\n\
         <style>\n{style}</style>\n</head>\n<body>\n{body}\
         <script type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{script}</script>\n</body>\n</html>\n",
        title = recipe.run.replace('&', "&amp;").replace('<', "&lt;"),
        style = include_str!("page/style.css"),
        body = include_str!("page/body.html"),
        script = include_str!("page/script.js"),
    )
}

fn samples(cell: &Cell) -> Vec<Sample<'_>> {
    cell.items
        .iter()
        .flat_map(|item| (0..cell.task.samples).map(move |sample| (item, sample)))
        .filter_map(|(item, sample)| {
            let key = (item.id.clone(), sample);
            let reply = cell.log.replies.get(&key);
            let failed = cell.log.failed.get(&key).map(String::as_str);
            if reply.is_none() && failed.is_none() {
                return None;
            }
            let score = cell.log.scores.get(&key);
            Some(Sample {
                task: &cell.task.name,
                group: &item.group,
                id: &item.id,
                number: sample,
                model: &cell.model.name,
                mode: mode_name(cell.mode),
                kind: kind(&item.target),
                prompt: cut(item.prompt()),
                thinking: reply.and_then(|reply| reply.thinking.as_deref()).map(cut),
                reply: cut(reply.map_or("", |reply| reply.reply.as_str())),
                truncated: reply.is_some_and(is_truncated),
                failed,
                passed: score.map(|score| score.passed),
                extracted: score.and_then(|score| score.extracted.as_deref()).map(cut),
                detail: score
                    .map(|score| score.detail.as_str())
                    .filter(|detail| !detail.is_empty()),
                verdicts: words(cell, &key),
            })
        })
        .collect()
}

fn is_truncated(reply: &Reply) -> bool {
    reply.finish == model::generate::FinishReason::Length
}

fn kind(target: &Target) -> &'static str {
    match target {
        Target::Harmful => "harmful",
        Target::Benign => "benign",
        Target::Battle { .. } => "battle",
        _ => "checked",
    }
}

/// Verdicts by judge and, where there are several, by the text that they are on.
fn words(cell: &Cell, key: &(String, usize)) -> BTreeMap<String, Word> {
    let parts = [
        (Part::Answer, ""),
        (Part::Thinking, " on the thinking"),
        (Part::BaselineFirst, ", baseline first"),
        (Part::BaselineSecond, ", baseline second"),
    ];
    let mut words = BTreeMap::new();
    for judge in &cell.task.judges {
        for (part, name) in parts {
            if let Some(verdict) = cell.log.verdict(key, part, judge) {
                let word = Word {
                    safety: verdict.safety,
                    refusal: verdict.refusal,
                    score: verdict.score,
                    label: verdict.label.clone(),
                    raw: cut(&verdict.raw),
                    unscored: verdict.unscorable.clone(),
                };
                words.insert(format!("{judge}{name}"), word);
            }
        }
    }
    words
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} [cut here; the log has the rest]", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use model::chat::{Message, Mode};
    use model::generate::FinishReason;

    use super::*;
    use crate::judges::Verdict;
    use crate::log::Log;
    use crate::log::tests::spec;
    use crate::results::summarize;
    use crate::tasks::Item;

    #[test]
    fn a_reply_cannot_leave_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(&folder.path().join("t.jsonl"), &spec()).unwrap();
        let hostile = "</script><script>alert(1)</script><!--";
        let reply = Reply {
            messages: vec![],
            thinking: Some(hostile.into()),
            reply: hostile.repeat(300),
            finish: FinishReason::Length,
            tokens: None,
            seconds: 0.0,
        };
        log.add_reply(("a".into(), 0), reply).unwrap();
        let verdict = Verdict {
            raw: hostile.into(),
            safety: Some(judge::Safety::Safe),
            ..Verdict::default()
        };
        log.add_verdict(("a".into(), 0), Part::Answer, "g", "g", verdict, 0.0)
            .unwrap();
        let text = "[[model]]\nname = \"m\"\nsource = \"x\"\n[[judge]]\nname = \"g\"\nkind = \"built-in\"\n\
                    [[task]]\nname = \"t\"\nkind = \"xstest\"\njudges = [\"g\"]\n";
        let recipe = Recipe::parse(text, "test", &[]).unwrap();
        let cells = [Cell {
            task: recipe.tasks[0].clone(),
            model: recipe.models[0].clone(),
            mode: Mode::NoThink,
            items: Rc::new(vec![Item {
                id: "a".into(),
                group: "x".into(),
                messages: vec![Message::user(hostile)],
                target: Target::Harmful,
                behavior: None,
            }]),
            log,
            failure: None,
        }];
        let html = page(&recipe, &cells, &summarize(&recipe, &cells));
        assert_eq!(html.matches("</script>").count(), 2);
        assert_eq!(html.matches("<script").count(), 2);
        assert!(!html.contains("alert(1)</script>") && !html.contains("<!--"));
        assert!(html.contains("cut here") && html.contains("\"truncated\":true"));
        let start = html.find("id=\"data\">").unwrap() + 10;
        let data = &html[start..start + html[start..].find("</script>").unwrap()];
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["samples"][0]["prompt"], hostile);
        assert_eq!(data["samples"][0]["verdicts"]["g"]["safety"], "safe");
    }
}
