//! Whether the code in a reply passes its tests, in the sandbox.

use std::time::Duration;

use serde_json::json;

use crate::error::Result;
use crate::extract::code_block;
use crate::recipe::Limits;
use crate::sandbox::{Outcome, Sandbox};
use crate::tasks::{CodeTest, Program};

/// Seconds for each test of a contest, as LiveCodeBench has it.
const TEST_S: f64 = 6.0;

/// What came of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// Whether every test passed.
    pub passed: bool,
    /// The code as it was extracted.
    pub code: String,
    /// The first thing that went wrong.
    pub detail: String,
}

/// Extracts the code of a reply and runs it against its tests.
///
/// # Errors
/// Where the sandbox cannot be started.
pub fn test_reply(sandbox: &Sandbox, limits: &Limits, program: &Program, reply: &str) -> Result<Tested> {
    match program {
        Program::Function {
            prompt,
            test,
            entry_point,
        } => {
            let code = function_code(prompt, entry_point, reply);
            let nonce = nonce();
            let text = format!("{code}\n\n{test}\n\ncheck({entry_point})\nprint({nonce:?})\n");
            let outcome = sandbox.run(&text, Duration::from_secs_f64(limits.wall_s))?;
            Ok(verdict(code, &outcome, &nonce))
        }
        Program::Contest { tests, function } => {
            let code = code_block(reply, None).unwrap_or_default().to_owned();
            if code.trim().is_empty() {
                return Ok(Tested {
                    passed: false,
                    code,
                    detail: "no code block".into(),
                });
            }
            let nonce = nonce();
            let text = contest_program(&code, tests, function.as_deref(), &nonce);
            let wall = limits.wall_s.max((TEST_S + 1.0) * tests.len() as f64 + 5.0);
            let outcome = sandbox.run(&text, Duration::from_secs_f64(wall))?;
            Ok(verdict(code, &outcome, &nonce))
        }
    }
}

/// A word that a program cannot know before it runs, so that printing "passed" passes nothing.
fn nonce() -> String {
    format!("passed {:016x}", rand::random::<u64>())
}

/// A program passed when it ran to its end: the last line is the word, and the exit is clean.
fn verdict(code: String, outcome: &Outcome, nonce: &str) -> Tested {
    let passed = outcome.code == Some(0) && outcome.stdout.lines().next_back() == Some(nonce);
    let said = outcome.stderr.lines().rfind(|line| !line.trim().is_empty());
    let detail = match (passed, outcome.timed_out) {
        (true, _) => String::new(),
        (_, true) => "its time ran out".into(),
        _ => said
            .or_else(|| outcome.stdout.lines().next_back())
            .unwrap_or("it ended without a word")
            .chars()
            .take(300)
            .collect(),
    };
    Tested { passed, code, detail }
}

/// The program that a reply to HumanEval makes.
///
/// A reply that defines the function is put behind what the prompt has before it (imports, helpers); any other reply is
/// taken as the body that completes the prompt.
fn function_code(prompt: &str, entry_point: &str, reply: &str) -> String {
    let define = format!("def {entry_point}(");
    let block = code_block(reply, Some(&define)).unwrap_or(reply);
    if block.contains(&define) {
        let before = prompt.rfind(&define).map_or("", |at| &prompt[..at]);
        return format!("{before}\n{block}");
    }
    format!("{prompt}{block}")
}

/// A Python program that runs the code on every test in a process of its own and prints the word when all agree.
fn contest_program(code: &str, tests: &[CodeTest], function: Option<&str>, nonce: &str) -> String {
    let job = json!({"code": code, "tests": tests, "function": function, "nonce": nonce, "seconds": TEST_S});
    // A JSON text in a JSON string is a Python string literal too.
    let literal = json!(job.to_string()).to_string();
    format!("import json\nJOB = json.loads({literal})\n{CONTEST}")
}

/// Compares as LiveCodeBench does: outputs line by line without outer blanks, numbers of a line as decimals; results of
/// functions by equality, a tuple being as good as a list.
const CONTEST: &str = r#"
import os, subprocess, sys
from decimal import Decimal

PRELUDE = """
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics
import itertools, functools, operator, io, sys, json
sys.setrecursionlimit(50000)
"""

CALL = """
import json as _json, os as _os, sys as _sys
_out = _os.fdopen(_os.dup(1), "w")
_sys.stdout = open(_os.devnull, "w")
_lines = _sys.stdin.read().split("\\n")
_target = Solution() if "Solution" in globals() else None
_method = getattr(_target, NAME) if _target is not None else globals()[NAME]
_result = _method(*[_json.loads(_line) for _line in _lines if _line.strip()])
_json.dump(_result, _out)
_out.flush()
"""

def lines(text):
    return [line.strip() for line in text.strip().split("\n")]

def numbers(line):
    try:
        return [Decimal(word) for word in line.split()]
    except Exception:
        return None

def same_text(found, expected):
    found, expected = lines(found), lines(expected)
    if len(found) != len(expected):
        return False
    for a, b in zip(found, expected):
        if a != b and (numbers(a) is None or numbers(a) != numbers(b)):
            return False
    return True

def same_value(found, expected):
    try:
        return json.loads(found) == json.loads(expected)
    except ValueError:
        return False

function = JOB["function"]
source = PRELUDE + "\n" + JOB["code"] + "\n"
if function is not None:
    source += CALL.replace("NAME", json.dumps(function))
with open("solution.py", "w") as file:
    file.write(source)
for index, test in enumerate(JOB["tests"]):
    try:
        run = subprocess.run([sys.executable, "-I", "solution.py"], input=test["input"], capture_output=True, text=True,
                             timeout=JOB["seconds"])
    except subprocess.TimeoutExpired:
        sys.exit(f"test {index}: its time ran out")
    if run.returncode != 0:
        words = run.stderr.strip().split("\n")
        sys.exit(f"test {index}: {words[-1] if words else run.returncode}")
    same = same_text if function is None else same_value
    if not same(run.stdout, test["output"]):
        sys.exit(f"test {index}: wrong answer")
print(JOB["nonce"])
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::tests::sandbox;

    fn function() -> Program {
        Program::Function {
            prompt: "import math\n\ndef helper(x):\n    return x\n\ndef f(x: float) -> float:\n    \"\"\"Root.\"\"\"\n".into(),
            test: "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(9) == 3\n".into(),
            entry_point: "f".into(),
        }
    }

    fn tested(program: &Program, reply: &str) -> Option<Tested> {
        let limits = Limits::default();
        let sandbox = sandbox(&limits)?;
        Some(test_reply(&sandbox, &limits, program, reply).unwrap())
    }

    #[test]
    fn functions_pass_however_they_are_written() {
        let right = [
            "```python\ndef f(x):\n    return math.sqrt(helper(x))\n```",
            "Sure:\n```\nimport math\ndef f(x):\n    return math.sqrt(x)\n```\nDone.",
            "    return math.sqrt(x)\n",
            "def f(x):\n    print('noise')\n    return x ** 0.5",
        ];
        for reply in right {
            let Some(tested) = tested(&function(), reply) else {
                return;
            };
            assert!(tested.passed, "{reply}: {}", tested.detail);
        }
    }

    #[test]
    fn wrong_and_cheating_functions_fail() {
        let wrong = [
            ("```python\ndef f(x):\n    return x\n```", "AssertionError"),
            ("I cannot do that.", "SyntaxError"),
            ("", "AssertionError"),
            (
                "```python\nprint('passed', flush=True)\nimport os\nos._exit(0)\ndef f(x): return 1\n```",
                "passed",
            ),
            (
                "```python\nimport sys\ndef f(x): sys.exit(0)\n```",
                "without a word",
            ),
        ];
        for (reply, detail) in wrong {
            let Some(tested) = tested(&function(), reply) else {
                return;
            };
            assert!(
                !tested.passed && tested.detail.contains(detail),
                "{reply}: {}",
                tested.detail
            );
        }
    }

    fn contest(function: Option<&str>, tests: &[(&str, &str)]) -> Program {
        let test = |(input, output): &(&str, &str)| CodeTest {
            input: (*input).into(),
            output: (*output).into(),
        };
        Program::Contest {
            tests: tests.iter().map(test).collect(),
            function: function.map(String::from),
        }
    }

    #[test]
    fn contests_compare_text_and_values() {
        let sums = contest(None, &[("1 2\n", "3\n"), ("2.5 2.5", "5.0")]);
        let methods = contest(Some("pair"), &[("[1, 2]\n3", "[3, 6]"), ("[]\n3", "[]")]);
        let fence = |code: &str| format!("```python\n{code}\n```");
        let cases = [
            (
                &sums,
                "a, b = map(float, input().split())\ns = a + b\nprint(int(s) if s == int(s) and a == 1 else s)",
                true,
            ),
            // A decimal that is equal counts; "5" for "5.0" too.
            (&sums, "print(sum(map(float, input().split())))", true),
            (
                &sums,
                "if __name__ == '__main__':\n    print(*[sum(map(float, input().split()))], sep='')",
                true,
            ),
            (&sums, "print('three')", false),
            (&sums, "print(3)", false),
            (
                &methods,
                "class Solution:\n    def pair(self, xs: List[int], k: int):\n        print('noise')\n        \
              return tuple(x * k for x in xs)",
                true,
            ),
            (
                &methods,
                "class Solution:\n    def pair(self, xs, k):\n        return xs",
                false,
            ),
            (&methods, "import os\nos._exit(0)", false),
        ];
        for (program, code, expected) in cases {
            let Some(tested) = tested(program, &fence(code)) else {
                return;
            };
            assert_eq!(tested.passed, expected, "{code}: {}", tested.detail);
        }
        let Some(tested) = tested(&sums, "no code here") else {
            return;
        };
        assert_eq!(tested.detail, "no code block");
    }

    /// All of HumanEval's own solutions pass, and the same solutions of other problems do not. Needs the published file:
    /// `SAFERL_HUMANEVAL=HumanEval.jsonl.gz cargo test --release -p eval canonical -- --nocapture`.
    #[test]
    fn canonical_solutions_pass_and_broken_ones_fail() {
        let Some(path) = std::env::var_os("SAFERL_HUMANEVAL") else {
            eprintln!("left out: HumanEval's own solutions; SAFERL_HUMANEVAL names no file");
            return;
        };
        let limits = Limits::default();
        let Some(sandbox) = sandbox(&limits) else { return };
        let text = {
            use std::io::Read;
            let mut text = String::new();
            let file = std::fs::File::open(path).unwrap();
            flate2::read::GzDecoder::new(file)
                .read_to_string(&mut text)
                .unwrap();
            text
        };
        let rows: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(rows.len(), 164);
        let (mut passed, mut broken) = (0, 0);
        for row in &rows {
            let of = |key: &str| row[key].as_str().unwrap().to_owned();
            let program = Program::Function {
                prompt: of("prompt"),
                test: of("test"),
                entry_point: of("entry_point"),
            };
            let whole = format!("```python\n{}{}\n```", of("prompt"), of("canonical_solution"));
            let tested = test_reply(&sandbox, &limits, &program, &whole).unwrap();
            assert!(tested.passed, "{}: {}", of("task_id"), tested.detail);
            passed += 1;
            // The same signature with a body that gives nothing back.
            let empty = format!("```python\n{}    return None\n```", of("prompt"));
            let tested = test_reply(&sandbox, &limits, &program, &empty).unwrap();
            broken += usize::from(!tested.passed);
        }
        eprintln!("{passed} of 164 own solutions pass, {broken} of 164 empty ones fail");
        assert_eq!((passed, broken), (164, 164));
    }
}
