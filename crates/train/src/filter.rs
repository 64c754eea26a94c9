//! The report's data filter: keep prompts that a model answers sometimes safely and sometimes not.
//!
//! Every prompt is answered `filter.completions` times in every mode and judged; prompts whose answers are all safe or
//! all unsafe are dropped, for their groups would have nothing to compare. What is kept is a JSONL file that
//! `prompts.source` reads.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use judge::Judge;
use model::chat::Mode;
use model::generate::Generate;
use model::tokenizer::Tokenizer;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::prompts::PromptRow;
use crate::question::render;
use crate::recipe::Recipe;
use crate::rollout::{Group, judge_all, sample};

/// Safe answers, and answers that the guard could judge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Called safe.
    pub safe: usize,
    /// Judged at all.
    pub judged: usize,
}

/// A line of the filter's output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kept {
    /// The prompt.
    #[serde(flatten)]
    pub row: PromptRow,
    /// Its answers in each mode.
    pub answers: BTreeMap<Mode, Count>,
}

/// How far the filter is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Prompts done.
    pub done: usize,
    /// Of how many.
    pub prompts: usize,
    /// Kept so far.
    pub kept: usize,
    /// Dropped because all answers were safe.
    pub all_safe: usize,
    /// Dropped because all answers were unsafe, or none could be judged.
    pub all_unsafe: usize,
}

/// Filters `rows` into the file `output`; `watch` hears after every batch.
///
/// # Errors
/// A prompt that is too long, a model or judge that fails, a file that cannot be written.
pub fn filter(
    recipe: &Recipe,
    rows: &[PromptRow],
    tokenizer: &Tokenizer,
    policy: &mut dyn Generate,
    judge: &mut dyn Judge,
    output: &Path,
    watch: &mut dyn FnMut(&Progress),
) -> Result<Progress> {
    let failed = |source| Error::file(output, source);
    let mut file = BufWriter::new(File::create(output).map_err(failed)?);
    let mut progress = Progress {
        prompts: rows.len(),
        ..Progress::default()
    };
    for (batch, rows) in rows.chunks(recipe.filter.batch).enumerate() {
        let questions = render(recipe, tokenizer, &rows.iter().collect::<Vec<_>>())?;
        let sampling = recipe.rollout.sampling(recipe.seed);
        let completions = sample(policy, &questions, recipe.filter.completions, &sampling)?;
        let groups = judge_all(recipe, judge, batch + 1, questions, completions)?;
        for groups in groups.chunks(recipe.modes.len()) {
            let kept = Kept {
                row: groups[0].row.clone(),
                answers: count(groups),
            };
            let (safe, judged) = kept.answers.values().fold((0, 0), |(safe, judged), count| {
                (safe + count.safe, judged + count.judged)
            });
            progress.done += 1;
            match safe {
                0 => progress.all_unsafe += 1,
                _ if safe == judged => progress.all_safe += 1,
                _ => {
                    progress.kept += 1;
                    serde_json::to_writer(&mut file, &kept).map_err(|error| failed(error.into()))?;
                    file.write_all(b"\n").map_err(failed)?;
                }
            }
        }
        file.flush().map_err(failed)?;
        watch(&progress);
    }
    Ok(progress)
}

fn count(groups: &[Group]) -> BTreeMap<Mode, Count> {
    let mut counts: BTreeMap<Mode, Count> = BTreeMap::new();
    for group in groups {
        let count = counts.entry(group.prompt.mode).or_default();
        for safe in group.answers.iter().filter_map(|answer| answer.safe) {
            count.safe += usize::from(safe);
            count.judged += 1;
        }
    }
    counts
}
