//! Groups into micro-batches: packed rows without padding, each prompt once for all its completions.

use std::ops::Range;

use kernels::Segment;

use crate::rollout::Group;

/// One completion that is trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Example<'a> {
    /// Token ids; never empty.
    pub ids: &'a [u32],
    /// The sampler's log-probabilities of them; empty where a remote sampler gave none.
    pub sampler: &'a [f32],
    /// Its advantage.
    pub advantage: f64,
}

/// A prompt and the completions to it that are trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Family<'a> {
    /// Token ids of the prompt; never empty.
    pub prompt: &'a [u32],
    /// The completions.
    pub examples: Vec<Example<'a>>,
}

impl<'a> Family<'a> {
    /// What of a group is trained on: completions with an advantage, without those cut by the length limit where
    /// `mask_truncated` says so. `None` where nothing is left.
    pub fn of(group: &'a Group, mask_truncated: bool) -> Option<Self> {
        let advantages = group.advantages.as_ref()?;
        let examples = group
            .answers
            .iter()
            .zip(advantages)
            .filter_map(|(answer, advantage)| {
                let completion = &answer.completion;
                let cut = completion.finish_reason == model::generate::FinishReason::Length;
                if completion.ids.is_empty() || (mask_truncated && cut) {
                    return None;
                }
                Some(Example {
                    ids: &completion.ids,
                    sampler: &completion.log_probabilities,
                    advantage: (*advantage)?,
                })
            });
        let examples: Vec<Example<'_>> = examples.collect();
        (!examples.is_empty()).then_some(Self {
            prompt: &group.prompt.ids,
            examples,
        })
    }
}

/// A micro-batch: `t` packed rows, of which `n` predict the tokens of its completions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pack {
    /// Token ids of the rows.
    pub ids: Vec<u32>,
    /// Prompts, and completions that continue them.
    pub segments: Vec<Segment>,
    /// The row that predicts each completion token: the prompt's last row for the first.
    pub rows: Vec<u32>,
    /// The completion tokens, one completion after another.
    pub targets: Vec<u32>,
    /// Tokens of each completion.
    pub lengths: Vec<usize>,
    /// Advantage of each completion.
    pub advantages: Vec<f64>,
    /// The sampler's log-probabilities of `targets`; empty where a remote sampler gave none for one of them.
    pub sampler: Vec<f32>,
}

impl Pack {
    fn push(&mut self, prompt: &[u32], examples: &[Example<'_>]) {
        let complete = self.sampler.len() == self.targets.len()
            && examples
                .iter()
                .all(|example| example.sampler.len() == example.ids.len());
        let prompt_index = self.segments.len();
        self.segments.push(Segment {
            start: self.ids.len(),
            len: prompt.len(),
            prefix: None,
        });
        self.ids.extend(prompt);
        let prompt_end = self.ids.len() as u32 - 1;
        for Example {
            ids,
            sampler,
            advantage,
        } in examples
        {
            // The last token predicts nothing that is trained on, so it needs no row.
            let start = self.ids.len();
            let len = ids.len() - 1;
            if len > 0 {
                self.segments.push(Segment {
                    start,
                    len,
                    prefix: Some(prompt_index),
                });
                self.ids.extend(&ids[..len]);
            }
            self.rows.push(prompt_end);
            self.rows.extend((start..start + len).map(|row| row as u32));
            self.targets.extend(*ids);
            self.lengths.push(ids.len());
            self.advantages.push(*advantage);
            if complete {
                self.sampler.extend(*sampler);
            }
        }
        if !complete {
            self.sampler.clear();
        }
    }
}

/// Packs families into micro-batches of at most `budget` rows. Families stay whole where they fit; a longer one is cut
/// between completions and its prompt repeated; a single completion is never cut.
pub fn pack(families: &[Family<'_>], budget: usize) -> Vec<Pack> {
    let mut packs = vec![Pack::default()];
    for family in families {
        for part in parts(family, budget) {
            let examples = &family.examples[part];
            let rows = rows_of(family.prompt, examples);
            if packs
                .last()
                .is_some_and(|pack| !pack.ids.is_empty() && pack.ids.len() + rows > budget)
            {
                packs.push(Pack::default());
            }
            if let Some(pack) = packs.last_mut() {
                pack.push(family.prompt, examples);
            }
        }
    }
    packs.retain(|pack| !pack.ids.is_empty());
    packs
}

fn rows_of(prompt: &[u32], examples: &[Example<'_>]) -> usize {
    prompt.len()
        + examples
            .iter()
            .map(|example| example.ids.len() - 1)
            .sum::<usize>()
}

/// Cuts a family's completions into runs that fit the budget with their prompt.
fn parts(family: &Family<'_>, budget: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    for end in 1..=family.examples.len() {
        if end > start + 1 && rows_of(family.prompt, &family.examples[start..end]) > budget {
            parts.push(start..end - 1);
            start = end - 1;
        }
    }
    parts.push(start..family.examples.len());
    parts
}

/// Divides families into at most `count` minibatches of about equal size, in order; none is empty.
pub fn minibatches<'f, 'a>(families: &'f [Family<'a>], count: usize) -> Vec<&'f [Family<'a>]> {
    let count = count.min(families.len());
    (0..count)
        .map(|index| &families[families.len() * index / count..families.len() * (index + 1) / count])
        .collect()
}

#[cfg(test)]
mod tests {
    use model::chat::Mode;

    use super::*;
    use crate::rollout::tests::group;

    fn family<'a>(prompt: &'a [u32], completions: &[&'a [u32]]) -> Family<'a> {
        let example = |(index, ids): (usize, &&'a [u32])| Example {
            ids,
            sampler: &[],
            advantage: index as f64,
        };
        Family {
            prompt,
            examples: completions.iter().enumerate().map(example).collect(),
        }
    }

    #[test]
    fn the_prompt_stands_once_and_predicts_every_first_token() {
        let packs = pack(&[family(&[1, 2, 3], &[&[4, 5, 6], &[7], &[8, 9]])], 100);
        assert_eq!(packs.len(), 1);
        let pack = &packs[0];
        assert_eq!(pack.ids, [1, 2, 3, 4, 5, 8]);
        let segments: Vec<_> = pack.segments.iter().map(|s| (s.start, s.len, s.prefix)).collect();
        assert_eq!(segments, [(0, 3, None), (3, 2, Some(0)), (5, 1, Some(0))]);
        assert_eq!(pack.rows, [2, 3, 4, 2, 2, 5]);
        assert_eq!(pack.targets, [4, 5, 6, 7, 8, 9]);
        assert_eq!(pack.lengths, [3, 1, 2]);
    }

    #[test]
    fn the_budget_splits_between_families_first_and_completions_second() {
        let small = family(&[1, 2], &[&[3, 4], &[5, 6]]);
        let large = family(&[1, 2], &[&[3, 4, 5, 6, 7], &[3, 4, 5, 6, 7], &[3, 4, 5, 6, 7]]);
        let packs = pack(&[small.clone(), small.clone(), large], 8);
        let rows: Vec<usize> = packs.iter().map(|pack| pack.ids.len()).collect();
        assert_eq!(rows, [8, 6, 6, 6]);
        assert_eq!(packs[1].advantages, [0.0]);
        assert_eq!(packs.iter().map(|pack| pack.lengths.len()).sum::<usize>(), 7);
        assert_eq!(
            pack(&[small], 1)
                .iter()
                .map(|pack| pack.ids.len())
                .collect::<Vec<_>>(),
            [3, 3]
        );
    }

    #[test]
    fn minibatches_cover_every_family_once() {
        let families: Vec<Family<'_>> = (0..7).map(|_| family(&[1], &[&[2]])).collect();
        let sizes: Vec<usize> = minibatches(&families, 4).iter().map(|part| part.len()).collect();
        assert_eq!(sizes, [1, 2, 2, 2]);
        assert_eq!(minibatches(&families[..2], 4).len(), 2);
        assert!(minibatches(&[], 4).is_empty());
    }

    #[test]
    fn skipped_groups_unscorable_and_masked_completions_are_left_out() {
        assert_eq!(
            Family::of(&group(Mode::Think, &[Some(1.0), Some(1.0)]), false),
            None
        );
        let mut group = group(Mode::Think, &[Some(1.0), None, Some(2.0)]);
        assert_eq!(Family::of(&group, false).unwrap().examples.len(), 2);
        group.answers[0].completion.finish_reason = model::generate::FinishReason::Length;
        assert_eq!(Family::of(&group, false).unwrap().examples.len(), 2);
        assert_eq!(Family::of(&group, true).unwrap().examples.len(), 1);
    }
}
