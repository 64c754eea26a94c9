//! Signs that a run goes wrong although its reward rises: refusals, one opening for all, runaway length.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::metrics::Replies;
use crate::recipe::AlarmRecipe;
use crate::rollout::Group;

/// Words of a reply that make its opening.
const OPENING_WORDS: usize = 5;
/// Steps at the start whose mean length is the measure.
const FIRST_STEPS: usize = 3;

/// What the alarm watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// Too many replies refuse.
    Refusal,
    /// Too many replies start with the same words.
    SharedOpening,
    /// Replies grow too long.
    Length,
}

/// An alarm that sounded: a line of `alarms.jsonl`, which the report reads again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlarmLine {
    /// The step after which it sounded.
    pub step: usize,
    /// What it is about.
    pub sign: Sign,
    /// The same in words.
    pub text: String,
}

/// The alarm's memory; part of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// Mean lengths of the first steps.
    first_lengths: Vec<f64>,
    /// Steps in a row that showed each sign.
    in_a_row: BTreeMap<Sign, usize>,
}

impl Alarm {
    /// Looks at a step; says what has gone on for `patience` steps, each sign once until it goes away.
    pub fn watch(
        &mut self,
        recipe: &AlarmRecipe,
        replies: &Replies,
        groups: &[Group],
    ) -> Vec<(Sign, String)> {
        let length = replies.mean_length.unwrap_or_default();
        if self.first_lengths.len() < FIRST_STEPS {
            self.first_lengths.push(length);
        }
        let usual = crate::advantage::mean(&self.first_lengths);
        let refusal = replies.refusal_rate.unwrap_or_default();
        let (opening, share) = shared_opening(groups);
        let signs = [
            (
                Sign::Refusal,
                refusal > recipe.refusal,
                format!("{:.0}% of the replies refuse", refusal * 100.0),
            ),
            (
                Sign::SharedOpening,
                share > recipe.shared_opening,
                format!("{:.0}% of the replies start with `{opening}`", share * 100.0),
            ),
            (
                Sign::Length,
                usual > 0.0 && length > recipe.length_growth * usual,
                format!("replies have {length:.0} tokens; they had {usual:.0} at the start"),
            ),
        ];
        let mut sounding = Vec::new();
        for (sign, shown, text) in signs {
            let count = self.in_a_row.entry(sign).or_default();
            *count = if shown { *count + 1 } else { 0 };
            if *count == recipe.patience {
                sounding.push((sign, text));
            }
        }
        sounding
    }
}

/// The opening that the most replies share across different prompts, and their share; replies of one prompt may well
/// start alike, so an opening counts only where at least two prompts have it.
pub fn shared_opening(groups: &[Group]) -> (String, f64) {
    let mut openings: BTreeMap<String, (usize, BTreeSet<&str>)> = BTreeMap::new();
    let mut total = 0;
    for group in groups {
        for answer in &group.answers {
            let words: Vec<&str> = answer
                .completion
                .content
                .split_whitespace()
                .take(OPENING_WORDS)
                .collect();
            let entry = openings.entry(words.join(" ")).or_default();
            entry.0 += 1;
            entry.1.insert(&group.row.id);
            total += 1;
        }
    }
    let shared = openings.into_iter().filter(|(_, (_, prompts))| prompts.len() > 1);
    let largest = shared.max_by_key(|(_, (count, _))| *count);
    largest.map_or_else(Default::default, |(opening, (count, _))| {
        (opening, count as f64 / f64::from(total))
    })
}

#[cfg(test)]
mod tests {
    use model::chat::Mode;

    use super::*;
    use crate::rollout::tests::group;

    fn named(id: &str, contents: &[&str]) -> Group {
        let mut group = group(Mode::NoThink, &vec![Some(1.0); contents.len()]);
        group.row.id = id.into();
        for (answer, content) in group.answers.iter_mut().zip(contents) {
            answer.completion.content = (*content).into();
        }
        group
    }

    #[test]
    fn an_opening_counts_over_prompts_not_within_one() {
        let alike = named(
            "a",
            &[
                "Baking bread is a complex topic x",
                "Baking bread is a complex topic y",
            ],
        );
        assert_eq!(shared_opening(&[alike]).1, 0.0);
        let both = [
            named("a", &["It is a complex topic that", "No"]),
            named("b", &["It is a complex topic", "Yes"]),
        ];
        assert_eq!(shared_opening(&both), ("It is a complex topic".into(), 0.5));
    }

    #[test]
    fn it_sounds_after_patience_and_once() {
        let recipe = AlarmRecipe {
            refusal: 0.5,
            patience: 2,
            ..AlarmRecipe::default()
        };
        let replies = |rate| Replies {
            refusal_rate: Some(rate),
            mean_length: Some(10.0),
            ..Replies::default()
        };
        let mut alarm = Alarm::default();
        let mut sounds = |rate| alarm.watch(&recipe, &replies(rate), &[]).len();
        let heard: Vec<usize> = [0.6, 0.4, 0.6, 0.6, 0.6, 0.1, 0.9, 0.9]
            .into_iter()
            .map(&mut sounds)
            .collect();
        assert_eq!(heard, [0, 0, 0, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn length_is_held_against_the_first_steps() {
        let recipe = AlarmRecipe {
            length_growth: 2.0,
            patience: 1,
            ..AlarmRecipe::default()
        };
        let mut alarm = Alarm::default();
        let mut sounds = |length| {
            let replies = Replies {
                mean_length: Some(length),
                ..Replies::default()
            };
            alarm
                .watch(&recipe, &replies, &[])
                .iter()
                .map(|(sign, _)| *sign)
                .collect::<Vec<_>>()
        };
        assert!(
            [10.0, 11.0, 12.0, 20.0]
                .into_iter()
                .all(|length| sounds(length).is_empty())
        );
        assert_eq!(sounds(23.0), [Sign::Length]);
    }
}
