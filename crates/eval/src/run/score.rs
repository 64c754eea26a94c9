//! Scoring replies by rule, those with code in the sandbox.

use super::{Cell, Event, Host, mode_name};
use crate::error::Result;
use crate::extract::{boxed_integer, letter};
use crate::log::{Key, Score};
use crate::program::test_reply;
use crate::recipe::Recipe;
use crate::respondent::in_parallel;
use crate::sandbox::Sandbox;
use crate::tasks::Target;

/// Scores replies by rule, those with code in the sandbox.
pub(super) fn score<H: Host>(
    recipe: &Recipe,
    sandbox: Option<&Sandbox>,
    cell: &mut Cell,
    host: &mut H,
) -> Result<()> {
    let mut code = Vec::new();
    let mut scores = Vec::new();
    for (item, key) in cell.keys().filter(|(_, key)| !cell.log.scores.contains_key(key)) {
        let Some(reply) = cell.log.replies.get(&key) else {
            continue;
        };
        match &item.target {
            Target::Code(program) => code.push((key, program.clone(), reply.reply.clone())),
            target => scores.extend(by_rule(target, &reply.reply).map(|score| (key, score))),
        }
    }
    for (key, score) in scores {
        cell.log.add_score(key, score)?;
    }
    let Some(sandbox) = sandbox.filter(|_| !code.is_empty()) else {
        return Ok(());
    };
    let what = format!(
        "{} {} {}: tests",
        cell.model.name,
        mode_name(cell.mode),
        cell.task.name
    );
    host.hear(Event::Begin {
        what: &what,
        total: code.len(),
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let run = |(_, program, reply): &(Key, _, String)| test_reply(sandbox, &recipe.sandbox, program, reply);
    let log = &mut cell.log;
    let outcome = in_parallel(&code, threads, run, &mut |index, (tested, _)| {
        host.hear(Event::Step);
        let tested = tested?;
        let score = Score {
            passed: tested.passed,
            extracted: Some(tested.code),
            detail: tested.detail,
        };
        log.add_score(code[index].0.clone(), score)
    });
    host.hear(Event::End);
    outcome
}

/// A score that needs nothing but the reply; `None` where judges have the word.
fn by_rule(target: &Target, reply: &str) -> Option<Score> {
    let compared = |expected: String, found: Option<String>| Score {
        passed: found.as_ref() == Some(&expected),
        detail: if found.is_some() {
            String::new()
        } else {
            "no answer found".into()
        },
        extracted: found,
    };
    match target {
        Target::Integer(answer) => Some(compared(
            answer.to_string(),
            boxed_integer(reply).map(|number| number.to_string()),
        )),
        Target::Letter { answer, options } => Some(compared(
            answer.to_string(),
            letter(reply, *options).map(|letter| letter.to_string()),
        )),
        Target::Check(check) => Some(Score {
            passed: check.passes(reply),
            extracted: None,
            detail: String::new(),
        }),
        Target::Code(_) | Target::Harmful | Target::Benign | Target::Battle { .. } => None,
    }
}
