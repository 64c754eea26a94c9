//! Letting judges see whatever they have not seen.

use super::{Bearable, Cell, Event, Host, mode_name, settle};
use crate::error::{Error, Result};
use crate::judges::{Case, Judge, Verdict, Versus, asked_sha256};
use crate::log::{Key, Part};
use crate::recipe::{JudgeKind, JudgeRecipe, ModelRecipe, Recipe};
use crate::tasks::{Target, draw};

/// Why an answer without text has no verdict: no judge is asked, and none is to blame.
const EMPTY: &str = "the answer is empty";

/// Which judge that is: whatever its verdicts depend on.
fn judge_identity<H: Host>(judge: &JudgeRecipe, host: &mut H) -> std::result::Result<String, H::Error> {
    let place = match judge.kind {
        JudgeKind::BuiltIn if judge.heads.is_none() => judge::Heads::built_in_sha256(),
        _ if judge.source.is_some() => host.identity(&judge.as_model())?,
        _ => match judge.heads.as_ref().or(judge.scripted.as_ref()) {
            // A file under an old name may say something new.
            Some(file) => host.identity(&ModelRecipe {
                source: None,
                scripted: Some(file.clone()),
                ..judge.as_model()
            })?,
            None => format!("{:?} {:?}", judge.url, judge.model),
        },
    };
    let asked = format!("{:?} {} {}", judge.kind, judge.max_tokens, asked_sha256(judge));
    Ok(format!("{:016x}", draw(&[&place, &asked])))
}

/// Lets a judge see whatever it has not seen of its tasks.
pub(super) fn judge_cells<H: Host>(
    recipe: &Recipe,
    judge: &JudgeRecipe,
    cells: &mut [Cell],
    host: &mut H,
) -> std::result::Result<(), H::Error> {
    let by = judge_identity(judge, host)?;
    let longest = longest_case(judge, &by, cells);
    let mut opened: Option<Judge> = None;
    for cell in cells
        .iter_mut()
        .filter(|cell| cell.task.judges.contains(&judge.name))
    {
        let cases = pending_cases(cell, judge, &by);
        let (empty, cases): (Vec<_>, Vec<_>) = cases
            .into_iter()
            .partition(|(_, _, case)| case.reply.trim().is_empty());
        for (key, part, _) in empty {
            let verdict = Verdict {
                unscorable: Some(EMPTY.into()),
                ..Verdict::default()
            };
            cell.log.add_verdict(key, part, &judge.name, &by, verdict, 0.0)?;
        }
        if cases.is_empty() {
            let outcome = check_scored(recipe, &judge.name, &by, cell);
            settle(cell, outcome, host)?;
            continue;
        }
        if opened.is_none() {
            opened = Some(match judge.kind {
                JudgeKind::BuiltIn => Judge::Guard(host.guard(judge)?),
                JudgeKind::Wildguard if judge.source.is_some() => {
                    Judge::wildguard(host.model(&judge.as_model(), &longest, judge.max_tokens)?)?
                }
                _ if judge.source.is_some() => Judge::Chat {
                    recipe: judge.clone(),
                    respondent: host.model(&judge.as_model(), &longest, judge.max_tokens)?,
                },
                _ => Judge::open(judge)?,
            });
        }
        if let Some(opened) = &mut opened {
            judge_cell(recipe, judge, &by, opened, cell, &cases, host)?;
        }
    }
    Ok(())
}

/// The longest text that a judge on this machine has to see.
fn longest_case(judge: &JudgeRecipe, by: &str, cells: &[Cell]) -> String {
    if judge.source.is_none() {
        return String::new();
    }
    let text = |case: &Case| {
        let asked: String = case
            .messages
            .iter()
            .map(|message| message.content.clone() + "\n")
            .collect();
        let baseline = case.versus.as_ref().map_or("", |versus| &versus.baseline);
        let system: String = judge.system.values().cloned().collect();
        asked + &case.reply + baseline + &system
    };
    let mine = cells.iter().filter(|cell| cell.task.judges.contains(&judge.name));
    let cases = mine.flat_map(|cell| pending_cases(cell, judge, by));
    let texts = cases.map(|(_, _, case)| text(&case));
    texts.max_by_key(String::len).unwrap_or_default()
}

fn judge_cell<H: Host>(
    recipe: &Recipe,
    judge: &JudgeRecipe,
    by: &str,
    opened: &mut Judge,
    cell: &mut Cell,
    cases: &[(Key, Part, Case)],
    host: &mut H,
) -> Result<()> {
    let what = format!(
        "{}: {} {} {}",
        judge.name,
        cell.model.name,
        mode_name(cell.mode),
        cell.task.name
    );
    host.hear(Event::Begin {
        what: &what,
        total: cases.len(),
    });
    let mut bearable = Bearable {
        total: cases.len(),
        ..Bearable::new(recipe, cell)
    };
    let texts: Vec<Case> = cases.iter().map(|(_, _, case)| case.clone()).collect();
    let log = &mut cell.log;
    let outcome = opened.judge(&texts, &mut |index, verdict, seconds| {
        host.hear(Event::Step);
        let (key, part, _) = &cases[index];
        let trouble = verdict.unscorable.clone();
        log.add_verdict(key.clone(), *part, &judge.name, by, verdict, seconds)?;
        trouble.map_or(Ok(()), |cause| bearable.note(&cause))
    });
    host.hear(Event::End);
    let outcome = outcome.and_then(|()| check_scored(recipe, &judge.name, by, cell));
    settle(cell, outcome, host)
}

/// Holds all that a judge said about a cell, in this run and in earlier ones, to the recipe's limit: an answer that could
/// not be read is not asked for again, so that running again must not make it bearable.
fn check_scored(recipe: &Recipe, judge: &str, by: &str, cell: &Cell) -> Result<()> {
    let (mut total, mut causes) = (0, Vec::new());
    for ((_, _, name), (who, verdict)) in &cell.log.verdicts {
        if name == judge && who == by && verdict.unscorable.as_deref() != Some(EMPTY) {
            total += 1;
            causes.extend(verdict.unscorable.as_deref());
        }
    }
    match causes.last() {
        Some(cause) if causes.len() as f64 > recipe.error_limit * f64::from(total) => Err(Error::Task {
            task: cell.task.name.clone(),
            what: format!(
                "{} of {total} verdicts of {judge} could not be read, more than the {:.0}% of error_limit; one of them: {cause}",
                causes.len(),
                recipe.error_limit * 100.0
            ),
            hint: "the log shows what the judge answered; ask another, or raise error_limit".into(),
        }),
        _ => Ok(()),
    }
}

/// What a judge has not said yet about a cell's replies. The thinking is apart from the answer that it sees.
fn pending_cases(cell: &Cell, judge: &JudgeRecipe, by: &str) -> Vec<(Key, Part, Case)> {
    let thinking_too = cell.task.judge_thinking && judge.kind.sees_thinking();
    let mut cases = Vec::new();
    for (item, key) in cell.keys().filter(|(item, _)| judge.kind.sees(item)) {
        let Some(reply) = cell.log.replies.get(&key) else {
            continue;
        };
        let case = |text: &str, versus: Option<Versus>| Case {
            messages: item.messages.clone(),
            behavior: item.behavior.clone().unwrap_or_default(),
            reply: text.into(),
            versus,
        };
        let mut texts = Vec::new();
        match &item.target {
            Target::Harmful | Target::Benign => {
                texts.push((Part::Answer, case(&reply.reply, None)));
                let thinking = reply.thinking.as_deref().filter(|_| thinking_too);
                texts.extend(thinking.map(|thinking| (Part::Thinking, case(thinking, None))));
            }
            Target::Battle { baseline } => {
                for (part, baseline_first) in [(Part::BaselineFirst, true), (Part::BaselineSecond, false)] {
                    let versus = Versus {
                        baseline: baseline.clone(),
                        baseline_first,
                        category: item.group.clone(),
                    };
                    texts.push((part, case(&reply.reply, Some(versus))));
                }
            }
            Target::Integer(_) | Target::Letter { .. } | Target::Code(_) | Target::Check(_) => {}
        }
        let fresh = texts
            .into_iter()
            .filter(|(part, _)| !cell.log.is_judged(&key, *part, &judge.name, by));
        cases.extend(fresh.map(|(part, case)| (key.clone(), part, case)));
    }
    cases
}
