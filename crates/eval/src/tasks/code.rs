//! Programming problems: HumanEval's functions and LiveCodeBench's contests.

use model::chat::Message;
use serde::Deserialize;
use serde_json::Value;

use super::files::Row;
use super::pickle::packed_text;
use super::{Item, Target};
use crate::error::Result;
use crate::recipe::TaskRecipe;

/// Our own instruction for a chat model; HumanEval as published is for completion.
const HUMANEVAL: &str =
    "Complete the following Python function. Answer with the whole function in one ```python block.";

/// What a reply's code is run against.
#[derive(Debug, Clone, PartialEq)]
pub enum Program {
    /// HumanEval: `test` defines `check`, which is called with the function `entry_point`.
    Function {
        /// The beginning of the program that the model was given.
        prompt: String,
        /// The tests.
        test: String,
        /// The function's name.
        entry_point: String,
    },
    /// LiveCodeBench: inputs and expected outputs.
    Contest {
        /// All tests, the public ones first.
        tests: Vec<CodeTest>,
        /// The method to call, for tests that call one; else tests read and write text.
        function: Option<String>,
    },
}

/// One input and what has to come out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct CodeTest {
    /// Standard input, or JSON arguments, one a line.
    pub input: String,
    /// Standard output, or the JSON result.
    pub output: String,
}

/// A HumanEval problem.
pub(super) fn humaneval(row: &Row) -> Result<Item> {
    let prompt = row.text(&["prompt"])?;
    Ok(Item {
        id: row.text(&["task_id"])?.into(),
        group: "humaneval".into(),
        messages: vec![Message::user(format!(
            "{HUMANEVAL}\n\n```python\n{}\n```",
            prompt.trim_end()
        ))],
        target: Target::Code(Program::Function {
            prompt: prompt.into(),
            test: row.text(&["test"])?.into(),
            entry_point: row.text(&["entry_point"])?.into(),
        }),
        behavior: None,
    })
}

/// LiveCodeBench problems of the recipe's dates, with the prompt of its own runner for chat models.
pub(super) fn livecodebench(task: &TaskRecipe, rows: &[Row]) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for row in rows {
        let date = row.text(&["contest_date"])?;
        let day = date.get(..10).unwrap_or(date);
        let early = task.from.as_deref().is_some_and(|from| day < from);
        let late = task.to.as_deref().is_some_and(|to| day > to);
        if !early && !late {
            items.push(contest(row)?);
        }
    }
    Ok(items)
}

fn contest(row: &Row) -> Result<Item> {
    let mut tests = tests(row, "public_test_cases")?;
    tests.extend(self::tests(row, "private_test_cases")?);
    if tests.is_empty() {
        return Err(row.wrong("expected at least one test, found none"));
    }
    let metadata = row.optional("metadata").unwrap_or("{}");
    let metadata: Value =
        serde_json::from_str(metadata).map_err(|error| row.wrong(&format!("metadata: {error}")))?;
    let function = metadata
        .get("func_name")
        .and_then(Value::as_str)
        .map(String::from);
    let prompt = contest_prompt(row.text(&["question_content"])?, row.optional("starter_code"));
    Ok(Item {
        id: row.text(&["question_id"])?.into(),
        group: row.text(&["difficulty"])?.into(),
        messages: vec![Message::system(CONTEST_SYSTEM), Message::user(prompt)],
        target: Target::Code(Program::Contest { tests, function }),
        behavior: None,
    })
}

/// LiveCodeBench's own instructions for chat models (lcb_runner/prompts/code_generation.py, MIT): part of the benchmark.
const CONTEST_SYSTEM: &str = "You are an expert Python programmer. You will be given a question (problem specification) \
    and will generate a correct Python program that matches the specification and passes all tests. You will NOT return \
    anything except for the program.";
const WITH_STARTER: &str = "You will use the following starter code to write the solution to the problem and enclose \
    your code within delimiters.";
const WITHOUT_STARTER: &str = "Read the inputs from stdin solve the problem and write the answer to stdout (do not \
    directly test on the sample inputs). Enclose your code within delimiters as follows.";

fn contest_prompt(question: &str, starter: Option<&str>) -> String {
    let (format, code) = match starter {
        Some(starter) => (WITH_STARTER, starter),
        None => (WITHOUT_STARTER, "# YOUR CODE HERE"),
    };
    format!(
        "### Question:\n{question}\n\n### Format: {format}\n```python\n{code}\n```\n\n\
         ### Answer: (use the provided format with backticks)\n\n"
    )
}

/// Tests as JSON, or as JSON that is pickled and packed.
fn tests(row: &Row, column: &str) -> Result<Vec<CodeTest>> {
    let Some(text) = row.optional(column) else {
        return Ok(Vec::new());
    };
    let wrong = |what: String| row.wrong(&format!("{column}: {what}"));
    let parse =
        |text: &str| serde_json::from_str(text).map_err(|error| wrong(format!("expected tests: {error}")));
    if text.trim_start().starts_with('[') {
        return parse(text);
    }
    parse(&packed_text(text).map_err(wrong)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pickle::tests::pack;
    use super::super::tests::recipe;
    use super::*;

    fn problem(date: &str, private: &str) -> Row {
        Row::of(json!({
            "question_title": "t", "question_content": "Add two numbers.", "platform": "atcoder", "question_id": date,
            "contest_id": "c", "contest_date": format!("{date}T00:00:00"), "starter_code": "", "difficulty": "easy",
            "public_test_cases": "[{\"input\": \"1 2\", \"output\": \"3\", \"testtype\": \"stdin\"}]",
            "private_test_cases": private, "metadata": "{}"
        }))
    }

    #[test]
    fn public_and_private_tests_come_together_and_dates_choose() {
        let task = "[[task]]\nname = \"lcb\"\nkind = \"livecodebench\"\nfrom = \"2024-08-01\"\nto = \"2025-05-01\"\n";
        let recipe = recipe(std::path::Path::new("x"), task);
        let private = pack("[{\"input\": \"5 6\", \"output\": \"11\", \"testtype\": \"stdin\"}]");
        let rows = [
            problem("2024-07-31", "[]"),
            problem("2024-08-01", &private),
            problem("2025-05-01", "[]"),
            problem("2025-05-02", "[]"),
        ];
        let items = livecodebench(&recipe.tasks[0], &rows).unwrap();
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, ["2024-08-01", "2025-05-01"]);
        let Target::Code(Program::Contest {
            tests,
            function: None,
        }) = &items[0].target
        else {
            panic!("{:?}", items[0].target)
        };
        assert_eq!((tests.len(), tests[1].output.as_str()), (2, "11"));
        assert!(items[0].prompt().contains("# YOUR CODE HERE") && items[0].messages.len() == 2);
    }

    #[test]
    fn a_broken_private_test_is_named() {
        let error = contest(&problem("2024-08-01", "rubbish"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("private_test_cases: expected"), "{error}");
    }

    #[test]
    fn functions_carry_their_tests() {
        let row = json!({"task_id": "HumanEval/0", "prompt": "def f(x):\n    \"\"\"d\"\"\"\n", "entry_point": "f",
            "canonical_solution": "    return x\n", "test": "def check(candidate):\n    assert candidate(1) == 1\n"});
        let item = humaneval(&Row::of(row)).unwrap();
        assert!(
            item.prompt().ends_with("def f(x):\n    \"\"\"d\"\"\"\n```"),
            "{}",
            item.prompt()
        );
        assert!(matches!(item.target, Target::Code(Program::Function { .. })));
    }
}
