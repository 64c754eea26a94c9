//! Questions with one right answer: AIME's integers, GPQA's and MMLU-Pro's options.
//!
//! The instructions are those that Qwen3's model card recommends for benchmarks ("Standardize Output Format").

use model::chat::Message;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::files::Row;
use super::{Item, Target, draw};
use crate::error::Result;

/// Qwen3's model card, for mathematics.
const BOXED: &str = "Please reason step by step, and put your final answer within \\boxed{}.";
/// Qwen3's model card, for multiple choice.
const CHOICE: &str =
    "Please show your choice in the `answer` field with only the choice letter, e.g., `\"answer\": \"C\"`.";

/// An AIME problem: `problem` (math-ai) or `question` (opencompass), and `answer`.
pub(super) fn aime(row: &Row) -> Result<Item> {
    let problem = row.text(&["problem", "question"])?;
    Ok(Item {
        id: row.id(&["id"]),
        group: "aime".into(),
        messages: vec![Message::user(format!("{problem}\n\n{BOXED}"))],
        target: Target::Integer(integer(row, "answer")?),
        behavior: None,
    })
}

/// A GPQA question with its options in an order that follows from the seed and the question.
pub(super) fn gpqa(row: &Row, seed: u64) -> Result<Item> {
    let question = row.text(&["Question"])?.trim();
    let columns = [
        "Correct Answer",
        "Incorrect Answer 1",
        "Incorrect Answer 2",
        "Incorrect Answer 3",
    ];
    let mut options = Vec::new();
    for (index, column) in columns.into_iter().enumerate() {
        options.push((index, row.text(&[column])?.trim()));
    }
    let id = row.id(&["Record ID"]);
    let mut random = ChaCha8Rng::seed_from_u64(draw(&[&seed.to_string(), "gpqa", &id]));
    options.shuffle(&mut random);
    let right = options
        .iter()
        .position(|(index, _)| *index == 0)
        .unwrap_or_default();
    let texts: Vec<&str> = options.iter().map(|(_, text)| *text).collect();
    Ok(Item {
        id,
        group: row.optional("High-level domain").unwrap_or("gpqa").into(),
        messages: vec![Message::user(with_options(question, &texts))],
        target: Target::Letter {
            answer: letter_of(right),
            options: texts.len(),
        },
        behavior: None,
    })
}

/// An MMLU-Pro question, its options in the published order.
pub(super) fn mmlu_pro(row: &Row) -> Result<Item> {
    let question = row.text(&["question"])?;
    let listed = row.value("options").and_then(Value::as_array);
    let texts: Option<Vec<&str>> = listed.map(|list| list.iter().filter_map(Value::as_str).collect());
    let texts = texts.filter(|texts| texts.len() >= 2 && texts.len() <= 26);
    let texts = texts.ok_or_else(|| row.wrong("options: expected a list of 2 to 26 texts"))?;
    let answer = letter(row, "answer")?;
    if answer as usize - 'A' as usize >= texts.len() {
        return Err(row.wrong(&format!(
            "answer: expected one of {} options, found `{answer}`",
            texts.len()
        )));
    }
    Ok(Item {
        id: row.id(&["question_id"]),
        group: row.optional("category").unwrap_or("mmlu-pro").into(),
        messages: vec![Message::user(with_options(question, &texts))],
        target: Target::Letter {
            answer,
            options: texts.len(),
        },
        behavior: None,
    })
}

/// A column that holds an integer as a number or as text.
pub(super) fn integer(row: &Row, column: &str) -> Result<i64> {
    let found = match row.value(column) {
        Some(Value::Number(number)) => number.as_i64(),
        Some(Value::String(text)) => text.trim().trim_end_matches("^\\circ").parse().ok(),
        _ => None,
    };
    found.ok_or_else(|| {
        row.wrong(&format!(
            "{column}: expected an integer, found {:?}",
            row.value(column)
        ))
    })
}

/// A column that holds one letter.
pub(super) fn letter(row: &Row, column: &str) -> Result<char> {
    let text = row.text(&[column])?.trim();
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some(letter), None) if letter.is_ascii_uppercase() => Ok(letter),
        _ => Err(row.wrong(&format!("{column}: expected one letter from A, found `{text}`"))),
    }
}

fn letter_of(index: usize) -> char {
    char::from(b'A' + index as u8)
}

fn with_options(question: &str, texts: &[&str]) -> String {
    let lines: Vec<String> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| format!("{}. {text}", letter_of(index)))
        .collect();
    format!("{question}\n\n{}\n\n{CHOICE}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(id: &str) -> Row {
        Row::of(json!({
            "Record ID": id, "Question": "Why?", "High-level domain": "Physics", "Correct Answer": "right",
            "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2", "Incorrect Answer 3": "w3"
        }))
    }

    #[test]
    fn shuffled_options_keep_the_right_one_and_follow_the_seed() {
        let mut places = std::collections::HashSet::new();
        for index in 0..40 {
            let row = question(&format!("rec{index}"));
            let item = gpqa(&row, 1).unwrap();
            let Target::Letter { answer, options: 4 } = item.target else {
                panic!("{:?}", item.target)
            };
            assert!(
                item.prompt().contains(&format!("\n{answer}. right\n")),
                "{}",
                item.prompt()
            );
            assert_eq!(item, gpqa(&row, 1).unwrap());
            places.insert(answer);
        }
        assert_eq!(places.len(), 4, "the right option lands everywhere");
        let orders = |seed| {
            (0..20)
                .map(|i| gpqa(&question(&i.to_string()), seed).unwrap().target)
                .collect::<Vec<_>>()
        };
        assert_ne!(orders(1), orders(2));
    }

    #[test]
    fn integers_come_as_text_or_number() {
        let of = |answer| aime(&Row::of(json!({"problem": "p", "answer": answer, "id": 3})));
        assert_eq!(of(json!(70)).unwrap().target, Target::Integer(70));
        assert_eq!(of(json!(" 588")).unwrap().target, Target::Integer(588));
        assert_eq!(of(json!("336^\\circ")).unwrap().target, Target::Integer(336));
        assert!(of(json!("x")).is_err() && of(json!(1.5)).is_err());
    }

    #[test]
    fn ten_options_and_their_letter() {
        let options: Vec<String> = (0..10).map(|i| format!("o{i}")).collect();
        let row =
            json!({"question_id": 70, "question": "q", "options": options, "answer": "J", "category": "law"});
        let item = mmlu_pro(&Row::of(row)).unwrap();
        assert_eq!(
            item.target,
            Target::Letter {
                answer: 'J',
                options: 10
            }
        );
        assert!(item.prompt().contains("\nJ. o9\n"));
        let row = json!({"question": "q", "options": ["a", "b"], "answer": "C"});
        assert!(mmlu_pro(&Row::of(row)).is_err());
    }
}
