//! The published files, each in its own format, and our own.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::record::{Record, read, read_all};
use super::{Labelled, Pair, Row, Split, normalise};
use crate::Result;
use crate::verdict::{Category, Safety};

/// How a source's files are written, named after the data set that publishes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Ours: JSONL of `prompt` (or `id` with the source's `prompts`), `response`, `safety`, `refusal`, `helpfulness`
    /// (0 to 4), `categories`, `split`, `prompt_safety`; all but the prompt may be absent.
    Own,
    /// Ours: JSONL of prompts with `kind` (ordinary, borderline, harmful, adversarial), `category`, `split`.
    OwnPrompts,
    /// XSTest's prompts: CSV of `prompt`, `label`.
    Xstest,
    /// XSTest's completions: CSV of `prompt`, `completion`, `type`, `final_label`.
    XstestCompletions,
    /// GPTFuzz's labelled replies: CSV of `question`, `Response`, `label`, with `question_list.csv` beside it.
    Gptfuzz,
    /// JailbreakBench's artifacts: JSON with `jailbreaks`.
    JailbreakbenchArtifacts,
    /// JailbreakBench's behaviours: CSV of `Goal`, `Category`.
    Jailbreakbench,
    /// The completions of "Refusal is mediated by a single direction": JSON with `completions`.
    RefusalDirection,
    /// PyRIT's human refusal scores: CSV of `objective`, `assistant_response`, `human_score`.
    PyritRefusal,
    /// PyRIT's human harm scores, one or several annotators.
    PyritHarm,
    /// OpenAI's moderation samples: JSONL of `prompt` and flags.
    OpenaiModeration,
    /// AdvBench: CSV of `goal`.
    Advbench,
    /// HarmBench: CSV of `Behavior`, `SemanticCategory`, `ContextString`.
    Harmbench,
    /// MLCommons AILuminate: CSV of `prompt_text`, `hazard`.
    Ailuminate,
    /// OR-Bench: JSON list of prompts, all safe.
    OrBench,
    /// Self-Instruct's predictions: a folder with those of text-davinci-003 (better) and davinci (worse).
    SelfInstruct,
    /// Dolly: JSONL of `instruction`, `context`, `response`.
    Dolly,
    /// MT-Bench: JSONL of `turns`.
    MtBench,
    /// PandaLM: JSON list of `instruction`, `input`, two responses, three annotators.
    Pandalm,
    /// LLMBar: JSON list of `input`, two outputs, `label`.
    Llmbar,
}

/// Loads one file or folder. `prompts` is the file that [`Format::Own`] rows name their prompts in.
///
/// # Errors
/// A file that is missing or not in its format, named with its line.
pub fn load(format: Format, source: &str, path: &Path, prompts: Option<&Path>) -> Result<Labelled> {
    let rows = |rows: Vec<Row>| Labelled {
        rows,
        pairs: Vec::new(),
    };
    let pairs = |pairs: Vec<Pair>| Labelled {
        rows: Vec::new(),
        pairs,
    };
    let each = |ending, list, row: &dyn Fn(&Record) -> Result<Option<Row>>| each_row(path, ending, list, row);
    Ok(match format {
        Format::Own => rows(own(source, path, prompts)?),
        Format::OwnPrompts => rows(each("jsonl", None, &|record| {
            own_prompt(source, record).map(Some)
        })?),
        Format::Xstest => rows(each("csv", None, &|record| xstest(source, record).map(Some))?),
        Format::XstestCompletions => rows(each("csv", None, &|record| {
            xstest_completion(source, record).map(Some)
        })?),
        Format::Gptfuzz => rows(gptfuzz(source, path)?),
        Format::JailbreakbenchArtifacts => rows(each("json", Some("jailbreaks"), &|record| {
            artifact(source, record)
        })?),
        Format::Jailbreakbench => rows(each("csv", None, &|record| {
            let goal = Row::new(source, &record.text("Goal")?);
            Ok(Some(harmful_prompt(
                goal,
                jailbreakbench_categories(&record.text("Category")?),
            )))
        })?),
        Format::RefusalDirection => rows(each("json", Some("completions"), &|record| {
            refusal_direction(source, record).map(Some)
        })?),
        Format::PyritRefusal => rows(each("csv", None, &|record| {
            pyrit_refusal(source, record).map(Some)
        })?),
        Format::PyritHarm => rows(each("csv", None, &|record| pyrit_harm(source, record))?),
        Format::OpenaiModeration => rows(each("jsonl", None, &|record| openai_moderation(source, record))?),
        Format::Advbench => rows(each("csv", None, &|record| {
            Ok(Some(harmful_prompt(
                Row::new(source, &record.text("goal")?),
                vec![],
            )))
        })?),
        Format::Harmbench => rows(each("csv", None, &|record| harmbench(source, record).map(Some))?),
        Format::Ailuminate => rows(each("csv", None, &|record| {
            let prompt = Row::new(source, &record.text("prompt_text")?);
            Ok(Some(harmful_prompt(
                prompt,
                ailuminate_categories(&record.text("hazard")?),
            )))
        })?),
        Format::OrBench => rows(each("json", None, &|record| {
            Ok(Some(benign(source, &record.text("prompt")?, None)))
        })?),
        Format::Dolly => rows(each("jsonl", None, &|record| {
            let prompt = with_input(&record.text("instruction")?, &record.text("context")?);
            Ok(Some(benign(source, &prompt, Some(record.text("response")?))))
        })?),
        Format::MtBench => rows(each("jsonl", None, &|record| {
            let turns: Vec<String> = record.value("turns")?.unwrap_or_default();
            Ok(turns.first().map(|turn| benign(source, turn, None)))
        })?),
        Format::SelfInstruct => self_instruct(source, path)?,
        Format::Pandalm => pairs(
            read(path, None)?
                .iter()
                .filter_map(|record| pandalm(source, record).transpose())
                .collect::<Result<_>>()?,
        ),
        Format::Llmbar => {
            let files = read_all(path, "json", None)?;
            let records = files.iter().flat_map(|(_, records)| records);
            pairs(
                records
                    .map(|record| llmbar(source, record))
                    .collect::<Result<_>>()?,
            )
        }
    })
}

fn each_row(
    path: &Path,
    ending: &str,
    list: Option<&str>,
    row: &dyn Fn(&Record) -> Result<Option<Row>>,
) -> Result<Vec<Row>> {
    let files = read_all(path, ending, list)?;
    files
        .iter()
        .flat_map(|(_, records)| records)
        .filter_map(|record| row(record).transpose())
        .collect()
}

fn harmful_prompt(row: Row, prompt_categories: Vec<Category>) -> Row {
    Row {
        prompt_safety: Some(Safety::Unsafe),
        prompt_categories,
        ..row
    }
}

/// A harmless prompt, and the ordinary helpful reply to it where there is one.
fn benign(source: &str, prompt: &str, response: Option<String>) -> Row {
    let answered = response.is_some();
    Row {
        response,
        prompt_safety: Some(Safety::Safe),
        safety: answered.then_some(Safety::Safe),
        refusal: answered.then_some(false),
        ..Row::new(source, prompt)
    }
}

fn with_input(instruction: &str, input: &str) -> String {
    let (instruction, input) = (instruction.trim(), input.trim());
    if input.is_empty() {
        instruction.to_owned()
    } else {
        format!("{instruction}\n\n{input}")
    }
}

fn own(source: &str, path: &Path, prompts: Option<&Path>) -> Result<Vec<Row>> {
    let mut by_id: HashMap<String, Row> = HashMap::new();
    if let Some(prompts) = prompts {
        for record in read(prompts, None)? {
            by_id.insert(record.text("id")?, own_prompt(source, &record)?);
        }
    }
    each_row(path, "jsonl", None, &|record| {
        let base = match (record.optional("prompt"), record.optional("id")) {
            (Some(prompt), _) => Row::new(source, &prompt),
            (None, Some(id)) => by_id
                .get(&id)
                .cloned()
                .ok_or_else(|| record.wrong(format!("no prompt has the id `{id}`")))?,
            (None, None) => return Err(record.wrong("expected a field `prompt` or `id`, found neither")),
        };
        let safety: Option<Safety> = record.value("safety")?;
        let categories: Vec<Category> = record.value("categories")?.unwrap_or_default();
        // A harmful reply to a prompt of one category is of that category unless its row says otherwise.
        let inherited = match safety {
            Some(Safety::Unsafe | Safety::Controversial) if categories.is_empty() => {
                base.prompt_categories.clone()
            }
            _ => categories,
        };
        Ok(Some(Row {
            response: record.optional("response"),
            safety,
            categories: inherited,
            refusal: record.value("refusal")?,
            helpfulness: record.value("helpfulness")?,
            split: record.value::<Split>("split")?.or(base.split),
            prompt_safety: record.value("prompt_safety")?.or(base.prompt_safety),
            ..base
        }))
    })
}

fn own_prompt(source: &str, record: &Record) -> Result<Row> {
    let harmful = match record.text("kind")?.as_str() {
        "ordinary" | "borderline" => false,
        "harmful" | "adversarial" => true,
        other => {
            return Err(record.wrong(format!(
                "`kind`: expected ordinary, borderline, harmful or adversarial, found `{other}`"
            )));
        }
    };
    Ok(Row {
        split: record.value("split")?,
        prompt_safety: Some(if harmful { Safety::Unsafe } else { Safety::Safe }),
        prompt_categories: record
            .value::<Category>("category")?
            .into_iter()
            .filter(|_| harmful)
            .collect(),
        ..Row::new(source, &record.text("prompt")?)
    })
}

fn xstest(source: &str, record: &Record) -> Result<Row> {
    let safety = match record.text("label")?.as_str() {
        "safe" => Safety::Safe,
        "unsafe" => Safety::Unsafe,
        other => return Err(record.wrong(format!("`label`: expected safe or unsafe, found `{other}`"))),
    };
    Ok(Row {
        prompt_safety: Some(safety),
        ..Row::new(source, &record.text("prompt")?)
    })
}

/// A full refusal is safe; so is full compliance with a safe prompt. Compliance with a contrast (unsafe) prompt and
/// partial refusals keep no label of harm, since the annotators gave none.
fn xstest_completion(source: &str, record: &Record) -> Result<Row> {
    let contrast = record.text("type")?.starts_with("contrast");
    let refusal = match record.text("final_label")?.as_str() {
        "1_full_compliance" => Some(false),
        "2_full_refusal" => Some(true),
        "3_partial_refusal" => None,
        other => return Err(record.wrong(format!("`final_label`: `{other}` is none of XSTest's"))),
    };
    let safe = refusal == Some(true) || !contrast;
    Ok(Row {
        response: Some(record.text("completion")?.trim().to_owned()),
        prompt_safety: Some(if contrast { Safety::Unsafe } else { Safety::Safe }),
        safety: safe.then_some(Safety::Safe),
        refusal,
        ..Row::new(source, &record.text("prompt")?)
    })
}

/// Label 1 is a jailbroken reply: harmful, not refusing. Label 0 is harmless; whether it refuses is not said.
fn gptfuzz(source: &str, path: &Path) -> Result<Vec<Row>> {
    let mut questions = HashMap::new();
    for record in read(&path.with_file_name("question_list.csv"), None)? {
        questions.insert(record.text("index")?, record.text("text")?);
    }
    each_row(path, "csv", None, &|record| {
        let index = record.text("question")?;
        let question = questions
            .get(&index)
            .ok_or_else(|| record.wrong(format!("no question has the index `{index}`")))?;
        let jailbroken = record.number("label")? == 1.0;
        Ok(Some(Row {
            response: Some(record.text("Response")?),
            safety: Some(if jailbroken { Safety::Unsafe } else { Safety::Safe }),
            refusal: jailbroken.then_some(false),
            ..harmful_prompt(Row::new(source, question), vec![])
        }))
    })
}

/// The adversarial prompt as it was sent, unless it is so long that a window of tokens would cut the goal out of it. The
/// split goes by the goal.
fn artifact(source: &str, record: &Record) -> Result<Option<Row>> {
    const LONGEST: usize = 900;
    let (goal, Some(response)) = (record.text("goal")?, record.optional("response")) else {
        return Ok(None);
    };
    let sent = record.optional("prompt").filter(|prompt| prompt.len() <= LONGEST);
    let mut categories = jailbreakbench_categories(&record.text("category")?);
    let jailbroken = record.value("jailbroken")? == Some(true);
    let reply_categories = if jailbroken { categories.clone() } else { vec![] };
    if sent.is_some() {
        categories.push(Category::Jailbreak);
    }
    let prompt = Row {
        key: normalise(&goal),
        ..Row::new(source, sent.as_deref().unwrap_or(&goal))
    };
    Ok(Some(Row {
        response: Some(response),
        safety: Some(if jailbroken { Safety::Unsafe } else { Safety::Safe }),
        categories: reply_categories,
        refusal: jailbroken.then_some(false),
        ..harmful_prompt(prompt, categories)
    }))
}

fn jailbreakbench_categories(name: &str) -> Vec<Category> {
    match name {
        "Harassment/Discrimination" | "Economic harm" => vec![Category::Unethical],
        "Malware/Hacking" | "Fraud/Deception" => vec![Category::NonViolentIllegal],
        "Physical harm" => vec![Category::Violent],
        "Sexual/Adult content" => vec![Category::Sexual],
        "Privacy" => vec![Category::Pii],
        "Disinformation" => vec![Category::Political, Category::Unethical],
        _ => vec![],
    }
}

/// Refusal by the authors' substring matching, harm by Llama Guard 2; the harmless prompts have a null category.
fn refusal_direction(source: &str, record: &Record) -> Result<Row> {
    let row = Row::new(source, &record.text("prompt")?);
    let refusal = Some(record.number("is_jailbreak_substring_matching")? == 0.0);
    let response = Some(record.text("response")?);
    let Some(category) = record.optional("category") else {
        let prompt_safety = Some(Safety::Safe);
        return Ok(Row {
            response,
            refusal,
            prompt_safety,
            safety: Some(Safety::Safe),
            ..row
        });
    };
    let categories = jailbreakbench_categories(&category);
    let harm = record
        .optional("is_jailbreak_llamaguard2")
        .map(|flag| flag == "1");
    Ok(Row {
        response,
        refusal,
        safety: harm.map(|harm| if harm { Safety::Unsafe } else { Safety::Safe }),
        categories: if harm == Some(true) {
            categories.clone()
        } else {
            vec![]
        },
        ..harmful_prompt(row, categories)
    })
}

fn pyrit_refusal(source: &str, record: &Record) -> Result<Row> {
    let refusal = record.number("human_score")? == 1.0;
    Ok(Row {
        response: Some(record.text("assistant_response")?),
        refusal: Some(refusal),
        safety: refusal.then_some(Safety::Safe),
        ..Row::new(source, &record.text("objective")?)
    })
}

/// Harm from 0 to 1, the mean of the annotators: safe below 0.4, unsafe above 0.6, controversial between.
fn pyrit_harm(source: &str, record: &Record) -> Result<Option<Row>> {
    let names = ["human_score", "human_score_1", "human_score_2", "human_score_3"];
    let present = names
        .into_iter()
        .filter(|name| record.optional(name).is_some_and(|text| !text.trim().is_empty()));
    let scores: Vec<f64> = present.map(|name| record.number(name)).collect::<Result<_>>()?;
    if scores.is_empty() {
        return Ok(None);
    }
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let safety = match mean {
        mean if mean < 0.4 => Safety::Safe,
        mean if mean > 0.6 => Safety::Unsafe,
        _ => Safety::Controversial,
    };
    let kind = record
        .optional("harm_category")
        .unwrap_or_default()
        .to_lowercase();
    let categories = match kind.as_str() {
        "sexual_content" | "sexual" => vec![Category::Sexual],
        "exploits" | "cyber" => vec![Category::NonViolentIllegal],
        "privacy" => vec![Category::Pii],
        "violence" => vec![Category::Violent],
        "self_harm" => vec![Category::SelfHarm],
        "hate_speech" | "representational" => vec![Category::Unethical],
        "information_integrity" => vec![Category::Political, Category::Unethical],
        _ => vec![],
    };
    Ok(Some(Row {
        response: Some(record.text("assistant_response")?),
        safety: Some(safety),
        categories: if safety == Safety::Safe {
            vec![]
        } else {
            categories
        },
        ..Row::new(source, &record.text("objective")?)
    }))
}

/// Any flag set is harm; none of all eight is none. Rows that leave some flags open and set none are left out.
fn openai_moderation(source: &str, record: &Record) -> Result<Option<Row>> {
    let flags = [
        ("S", Category::Sexual),
        ("S3", Category::Sexual),
        ("H", Category::Unethical),
        ("H2", Category::Unethical),
        ("HR", Category::Unethical),
        ("V", Category::Violent),
        ("V2", Category::Violent),
        ("SH", Category::SelfHarm),
    ];
    let row = Row::new(source, &record.text("prompt")?);
    let given = flags
        .iter()
        .filter(|(name, _)| record.optional(name).is_some())
        .count();
    let mut set: Vec<_> = flags
        .iter()
        .filter(|(name, _)| record.optional(name).as_deref() == Some("1"))
        .map(|flag| flag.1)
        .collect();
    set.dedup();
    Ok(match (set.is_empty(), given == flags.len()) {
        (false, _) => Some(harmful_prompt(row, set)),
        (true, true) => Some(Row {
            prompt_safety: Some(Safety::Safe),
            ..row
        }),
        (true, false) => None,
    })
}

fn harmbench(source: &str, record: &Record) -> Result<Row> {
    let categories = match record.text("SemanticCategory")?.as_str() {
        "chemical_biological" => vec![Category::Violent],
        "illegal" | "cybercrime_intrusion" => vec![Category::NonViolentIllegal],
        "misinformation_disinformation" => vec![Category::Political, Category::Unethical],
        "harassment_bullying" | "harmful" => vec![Category::Unethical],
        "copyright" => vec![Category::Copyright],
        _ => vec![],
    };
    let context = record.optional("ContextString").unwrap_or_default();
    Ok(harmful_prompt(
        Row::new(source, &with_input(&record.text("Behavior")?, &context)),
        categories,
    ))
}

fn ailuminate_categories(hazard: &str) -> Vec<Category> {
    match hazard {
        "cse" | "src" | "sxc_prn" => vec![Category::Sexual],
        "vcr" | "iwp" => vec![Category::Violent],
        "ncr" => vec![Category::NonViolentIllegal],
        "ssh" => vec![Category::SelfHarm],
        "prv" => vec![Category::Pii],
        "ipv" => vec![Category::Copyright],
        "hte" | "dfm" => vec![Category::Unethical],
        _ => vec![],
    }
}

/// text-davinci-003's reply is better than that of the davinci it was trained from; the first is also an ordinary
/// helpful reply. davinci runs on into further tasks, which are cut off.
fn self_instruct(source: &str, folder: &Path) -> Result<Labelled> {
    let mut weaker = HashMap::new();
    for record in read(&folder.join("davinci_predictions.jsonl"), None)? {
        let reply = record.text("response")?;
        let reply = reply
            .split("\n\nInput:")
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        weaker.insert(
            with_input(&record.text("instruction")?, &record.text("input")?),
            reply,
        );
    }
    let mut labelled = Labelled::default();
    for record in read(&folder.join("text-davinci-003_predictions.jsonl"), None)? {
        let prompt = with_input(&record.text("instruction")?, &record.text("input")?);
        let better = record.text("response")?.trim().to_owned();
        let row = benign(source, &prompt, Some(better.clone()));
        if let Some(worse) = weaker.get(&prompt).filter(|worse| **worse != better) {
            labelled.pairs.push(pair(source, &prompt, better, worse.clone()));
        }
        labelled.rows.push(row);
    }
    Ok(labelled)
}

fn pair(source: &str, prompt: &str, better: String, worse: String) -> Pair {
    let row = Row::new(source, prompt);
    Pair {
        source: row.source,
        key: row.key,
        split: None,
        weight: 1.0,
        messages: row.messages,
        better,
        worse,
    }
}

/// The reply that at least two of the three annotators prefer; ties are left out.
fn pandalm(source: &str, record: &Record) -> Result<Option<Pair>> {
    let mut votes = [0; 3];
    for name in ["annotator1", "annotator2", "annotator3"] {
        let vote = record.number(name)? as usize;
        *votes
            .get_mut(vote)
            .ok_or_else(|| record.wrong(format!("`{name}`: expected 0, 1 or 2, found {vote}")))? += 1;
    }
    let prompt = with_input(
        &record.text("instruction")?,
        &record.optional("input").unwrap_or_default(),
    );
    let (first, second) = (record.text("response1")?, record.text("response2")?);
    Ok(match votes {
        [_, first_votes, _] if first_votes >= 2 => Some(pair(source, &prompt, first, second)),
        [_, _, second_votes] if second_votes >= 2 => Some(pair(source, &prompt, second, first)),
        _ => None,
    })
}

fn llmbar(source: &str, record: &Record) -> Result<Pair> {
    let (first, second) = (record.text("output_1")?, record.text("output_2")?);
    let prompt = record.text("input")?;
    match record.number("label")? as i64 {
        1 => Ok(pair(source, &prompt, first, second)),
        2 => Ok(pair(source, &prompt, second, first)),
        other => Err(record.wrong(format!("`label`: expected 1 or 2, found {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads files written to a fresh folder, from `path` within it.
    fn load_from(format: Format, files: &[(&str, &str)], path: &str) -> Result<Labelled> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let prompts = folder.path().join("prompts.jsonl");
        let prompts = prompts.exists().then_some(prompts.as_path());
        load(format, "s", &folder.path().join(path), prompts)
    }

    fn rows(format: Format, name: &str, text: &str) -> Vec<Row> {
        load_from(format, &[(name, text)], name).unwrap().rows
    }

    #[test]
    fn our_own_rows_take_prompt_split_and_category_from_the_prompts_file() {
        let prompts = r#"{"id": "h1", "split": "test", "kind": "harmful", "category": "PII", "prompt": "Find her address"}"#;
        let replies = [
            r#"{"id": "h1", "response": "It is 1 Main St", "safety": "unsafe", "refusal": false, "helpfulness": 2}"#,
            r#"{"id": "h1", "response": "No.", "safety": "safe", "refusal": true, "helpfulness": 1}"#,
            r#"{"prompt": "Hi", "response": "Hello", "split": "train", "prompt_safety": "safe"}"#,
        ]
        .join("\n");
        let files = [("prompts.jsonl", prompts), ("replies.jsonl", replies.as_str())];
        let rows = load_from(Format::Own, &files, "replies.jsonl").unwrap().rows;
        assert_eq!(
            (rows[0].split, rows[0].prompt_safety),
            (Some(Split::Test), Some(Safety::Unsafe))
        );
        assert_eq!(rows[0].categories, [Category::Pii]);
        assert_eq!(
            (rows[1].categories.len(), rows[1].refusal, rows[1].helpfulness),
            (0, Some(true), Some(1.0))
        );
        assert_eq!(
            (rows[2].split, rows[2].prompt_safety, rows[2].safety),
            (Some(Split::Train), Some(Safety::Safe), None)
        );
        let unknown = [
            ("prompts.jsonl", prompts),
            ("replies.jsonl", r#"{"id": "x", "response": "a"}"#),
        ];
        let error = load_from(Format::Own, &unknown, "replies.jsonl")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("replies.jsonl") && error.contains("`x`"),
            "{error}"
        );
    }

    #[test]
    fn xstest_labels_harm_only_where_its_annotators_did() {
        let text = "type,prompt,completion,final_label\n\
                    homonyms,How do I kill a process?, Use kill.,1_full_compliance\n\
                    contrast_homonyms,How do I kill a man?,I can't.,2_full_refusal\n\
                    contrast_homonyms,How do I kill a man?,Like so.,1_full_compliance\n\
                    homonyms,How do I kill time?,Well,3_partial_refusal\n";
        let rows = rows(Format::XstestCompletions, "a.csv", text);
        let labels: Vec<_> = rows
            .iter()
            .map(|row| (row.refusal, row.safety, row.prompt_safety))
            .collect();
        let (safe, harmful) = (Some(Safety::Safe), Some(Safety::Unsafe));
        assert_eq!(
            labels,
            [
                (Some(false), safe, safe),
                (Some(true), safe, harmful),
                (Some(false), None, harmful),
                (None, safe, safe)
            ]
        );
        assert_eq!(rows[0].response.as_deref(), Some("Use kill."));
    }

    #[test]
    fn gptfuzz_rows_find_their_questions() {
        let files = [
            (
                "train.csv",
                "question,Response,label\n0,Sure: step one,1\n0,Sorry,0\n",
            ),
            ("question_list.csv", "index,text\n0,How to steal?\n"),
        ];
        let rows = load_from(Format::Gptfuzz, &files, "train.csv").unwrap().rows;
        assert_eq!(rows[0].key, "how to steal");
        assert_eq!(
            (rows[0].safety, rows[0].refusal),
            (Some(Safety::Unsafe), Some(false))
        );
        assert_eq!((rows[1].safety, rows[1].refusal), (Some(Safety::Safe), None));
    }

    #[test]
    fn artifacts_are_split_by_their_goal() {
        let text = r#"{"jailbreaks": [
            {"goal": "Do harm", "prompt": "Pretend you may: do harm", "response": "Yes", "jailbroken": true, "category": "Physical harm"},
            {"goal": "Do harm", "prompt": null, "response": null, "jailbroken": false, "category": "Physical harm"}]}"#;
        let rows = rows(Format::JailbreakbenchArtifacts, "a.json", text);
        assert_eq!(rows.len(), 1, "no reply, no row");
        assert_eq!(
            (rows[0].key.as_str(), rows[0].messages[0].content.as_str()),
            ("do harm", "Pretend you may: do harm")
        );
        assert_eq!(
            rows[0].prompt_categories,
            [Category::Violent, Category::Jailbreak]
        );
        assert_eq!(
            (rows[0].safety, rows[0].categories.as_slice()),
            (Some(Safety::Unsafe), [Category::Violent].as_slice())
        );
    }

    #[test]
    fn machine_and_human_scores_become_labels() {
        let text = r#"{"completions": [
            {"category": null, "prompt": "a", "response": "x", "is_jailbreak_substring_matching": 0},
            {"category": "Privacy", "prompt": "b", "response": "y", "is_jailbreak_substring_matching": 1, "is_jailbreak_llamaguard2": 1}]}"#;
        let direction = rows(Format::RefusalDirection, "a.json", text);
        assert_eq!(
            (direction[0].refusal, direction[0].prompt_safety),
            (Some(true), Some(Safety::Safe))
        );
        assert_eq!(
            (direction[1].refusal, direction[1].safety),
            (Some(false), Some(Safety::Unsafe))
        );
        let harm = "# version\nharm_category,objective,assistant_response,human_score_1,human_score_2\nviolence,a,x,0.75,1\nviolence,a,y,0.5,0.5\nviolence,a,z,0,0.25\n";
        let levels: Vec<_> = rows(Format::PyritHarm, "a.csv", harm)
            .iter()
            .map(|row| row.safety.unwrap())
            .collect();
        assert_eq!(levels, [Safety::Unsafe, Safety::Controversial, Safety::Safe]);
        let flags = "{\"prompt\": \"a\", \"V\": 0, \"SH\": 1}\n{\"prompt\": \"b\", \"V\": 0}\n\
                     {\"prompt\": \"c\", \"S\": 0, \"S3\": 0, \"H\": 0, \"H2\": 0, \"HR\": 0, \"V\": 0, \"V2\": 0, \"SH\": 0}\n";
        let moderation = rows(Format::OpenaiModeration, "a.jsonl", flags);
        assert_eq!(moderation.len(), 2, "flags left open and none set: no label");
        assert_eq!(moderation[0].prompt_categories, [Category::SelfHarm]);
        assert_eq!(moderation[1].prompt_safety, Some(Safety::Safe));
    }

    #[test]
    fn preferences_put_the_better_reply_first() {
        let votes = r#"[
            {"instruction": "i", "input": "in", "response1": "a", "response2": "b", "annotator1": 2, "annotator2": 2, "annotator3": 1},
            {"instruction": "i", "input": "", "response1": "a", "response2": "b", "annotator1": 0, "annotator2": 1, "annotator3": 2}]"#;
        let pairs = load_from(Format::Pandalm, &[("a.json", votes)], "a.json")
            .unwrap()
            .pairs;
        assert_eq!(pairs.len(), 1);
        assert_eq!(
            (
                pairs[0].better.as_str(),
                pairs[0].worse.as_str(),
                pairs[0].key.as_str()
            ),
            ("b", "a", "i in")
        );
        let bar = r#"[{"input": "i", "output_1": "a", "output_2": "b", "label": 2}]"#;
        let pairs = load_from(Format::Llmbar, &[("a.json", bar)], "a.json")
            .unwrap()
            .pairs;
        assert_eq!(pairs[0].better, "b");
        let bad = r#"[{"input": "i", "output_1": "a", "output_2": "b", "label": 3}]"#;
        assert!(load_from(Format::Llmbar, &[("a.json", bad)], "a.json").is_err());
        let files = [
            (
                "davinci_predictions.jsonl",
                r#"{"instruction": "Add", "input": "1+1", "response": " 3\n\nInput: 2\nOutput: 4"}"#,
            ),
            (
                "text-davinci-003_predictions.jsonl",
                r#"{"instruction": "Add", "input": "1+1", "response": "2"}"#,
            ),
        ];
        let labelled = load_from(Format::SelfInstruct, &files, "").unwrap();
        assert_eq!(
            (
                labelled.pairs[0].better.as_str(),
                labelled.pairs[0].worse.as_str()
            ),
            ("2", "3")
        );
        assert_eq!(labelled.rows[0].refusal, Some(false));
    }

    #[test]
    fn a_missing_column_is_named() {
        let error = load_from(Format::Advbench, &[("a.csv", "target\nx\n")], "a.csv")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("a.csv") && error.contains("row 2") && error.contains("`goal`"),
            "{error}"
        );
    }
}
