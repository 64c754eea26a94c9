//! Prompts into judged groups: sample, judge, reward, compare.

use std::thread::sleep;
use std::time::Duration;

use judge::{Controversial, Exchange, Judge, Safety, Scored, Verdict, reward};
use model::chat::{Mode, Prompt};
use model::generate::{Completion, Generate, Sampling};
use serde::Serialize;

use crate::advantage::batch_advantages;
use crate::error::{Error, Result};
use crate::prompts::PromptRow;
use crate::question::Question;
use crate::recipe::Recipe;

/// One completion and what it earned.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What the model wrote.
    pub completion: Completion,
    /// What the judge says of it.
    pub verdict: Verdict,
    /// What that is worth.
    pub reward: Scored<judge::Reward>,
    /// Whether thinking and answer are safe; `None` where the guard could not tell.
    pub safe: Option<bool>,
}

impl Answer {
    fn new(recipe: &Recipe, completion: Completion, verdict: Verdict) -> Self {
        let reward = reward(recipe.reward.kind, recipe.reward.controversial, &verdict);
        let safe = is_safe(&verdict, recipe.reward.controversial);
        Self {
            completion,
            verdict,
            reward,
            safe,
        }
    }

    /// The reward, where there is one.
    pub fn reward(&self) -> Option<f64> {
        self.reward.scored().map(|reward| f64::from(reward.value))
    }

    /// Whether the answer refuses, where the guard could tell.
    pub fn refusal(&self) -> Option<bool> {
        self.verdict
            .content
            .scored()
            .and_then(|moderation| moderation.refusal)
    }

    /// How helpful the answer is, where that was scored.
    pub fn helpfulness(&self) -> Option<f64> {
        self.verdict
            .helpfulness
            .scored()
            .map(|&helpfulness| f64::from(helpfulness))
    }
}

/// Whether the guard calls thinking and answer safe; `None` where it could not judge one of them and the other is safe.
pub fn is_safe(verdict: &Verdict, controversial: Controversial) -> Option<bool> {
    let safe = |moderation: &Scored<judge::Moderation>| {
        moderation.scored().map(|moderation| match moderation.safety {
            Safety::Safe => true,
            Safety::Controversial => controversial == Controversial::Safe,
            Safety::Unsafe => false,
        })
    };
    match (
        verdict.thinking.as_ref().map_or(Some(true), safe),
        safe(&verdict.content),
    ) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

/// The answers to one prompt in one mode.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The prompt as its source has it.
    pub row: PromptRow,
    /// The prompt as the model reads it.
    pub prompt: Prompt,
    /// The answers.
    pub answers: Vec<Answer>,
    /// An advantage for each scorable answer; `None` where all have one reward.
    pub advantages: Option<Vec<Option<f64>>>,
}

/// Samples `count` completions to each question.
pub fn sample(
    policy: &mut dyn Generate,
    questions: &[Question],
    count: usize,
    sampling: &Sampling,
) -> Result<Vec<Vec<Completion>>> {
    let prompts: Vec<Prompt> = questions.iter().map(|question| question.prompt.clone()).collect();
    Ok(policy.generate(&prompts, count, sampling)?)
}

/// Judges completions and compares them within their groups.
///
/// Where more than `judge.unscorable_limit` of them have no reward, the judge is asked again about those, up to
/// `judge.attempts` times with `judge.wait_s` seconds between.
///
/// # Errors
/// [`Error::Unscorable`] where that does not help.
pub fn judge_all(
    recipe: &Recipe,
    judge: &mut dyn Judge,
    step: usize,
    questions: Vec<Question>,
    completions: Vec<Vec<Completion>>,
) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = questions
        .into_iter()
        .zip(completions)
        .map(|(question, completions)| {
            let unjudged = || Verdict {
                thinking: None,
                content: Scored::Unscorable("not judged yet".into()),
                helpfulness: Scored::Unscorable("not judged yet".into()),
            };
            let answers = completions
                .into_iter()
                .map(|completion| Answer::new(recipe, completion, unjudged()));
            let answers = answers.collect();
            Group {
                row: question.row,
                prompt: question.prompt,
                answers,
                advantages: None,
            }
        })
        .collect();
    let total: usize = groups.iter().map(|group| group.answers.len()).sum();
    let allowed = recipe.judge.unscorable_limit * total as f64;
    for attempt in 1.. {
        let unscorable = judge_unscored(recipe, judge, &mut groups);
        if unscorable.len() as f64 <= allowed {
            break;
        }
        if attempt >= recipe.judge.attempts {
            let cause = unscorable.into_iter().next().unwrap_or_default();
            let unscorable = count_unscorable(&groups);
            return Err(Error::Unscorable {
                step,
                unscorable,
                total,
                attempts: attempt,
                cause,
            });
        }
        tracing::warn!(
            "step {step}: {} of {total} completions could not be scored ({}); asking again in {} s",
            unscorable.len(),
            unscorable[0],
            recipe.judge.wait_s
        );
        sleep(Duration::from_secs_f64(recipe.judge.wait_s));
    }
    let rewards: Vec<Vec<Option<f64>>> = groups
        .iter()
        .map(|group| group.answers.iter().map(Answer::reward).collect())
        .collect();
    for (group, advantages) in groups
        .iter_mut()
        .zip(batch_advantages(recipe.loss.scale, &rewards))
    {
        group.advantages = advantages;
    }
    Ok(groups)
}

fn count_unscorable(groups: &[Group]) -> usize {
    groups
        .iter()
        .flat_map(|group| &group.answers)
        .filter(|answer| answer.reward().is_none())
        .count()
}

/// Asks the judge about every answer without a reward; the causes of those that stay without.
fn judge_unscored(recipe: &Recipe, judge: &mut dyn Judge, groups: &mut [Group]) -> Vec<String> {
    let mut open = Vec::new();
    let mut exchanges = Vec::new();
    for group in groups {
        for answer in group
            .answers
            .iter_mut()
            .filter(|answer| answer.reward().is_none())
        {
            exchanges.push(Exchange {
                messages: group.prompt.messages.clone(),
                thinking: answer.completion.thinking.clone(),
                content: answer.completion.content.clone(),
            });
            open.push(answer);
        }
    }
    let verdicts = judge.judge(&exchanges);
    let mut causes = Vec::new();
    for (answer, verdict) in open.into_iter().zip(verdicts) {
        *answer = Answer::new(recipe, answer.completion.clone(), verdict);
        if let Scored::Unscorable(cause) = &answer.reward {
            causes.push(cause.clone());
        }
    }
    causes
}

/// One completion in `samples.jsonl`.
#[derive(Debug, Serialize)]
pub struct Sample<'a> {
    /// The step that sampled it.
    pub step: usize,
    /// The prompt's id.
    pub id: &'a str,
    /// The prompt's kind and mode, and the prompt itself.
    pub kind: crate::recipe::Kind,
    /// The mode.
    pub mode: Mode,
    /// What the user said.
    pub prompt: &'a str,
    /// Thinking, where the model thought.
    pub thinking: Option<&'a str>,
    /// The answer.
    pub content: &'a str,
    /// Why it ended.
    pub finish_reason: model::generate::FinishReason,
    /// Its tokens.
    pub tokens: usize,
    /// What it earned, or `null`.
    pub reward: Option<f64>,
    /// The branch of the formula taken.
    pub branch: Option<judge::Branch>,
    /// Its advantage, or `null`.
    pub advantage: Option<f64>,
}

/// One judgement in `verdicts.jsonl`; the n-th of a step belongs to the n-th sample of that step.
#[derive(Debug, Serialize)]
pub struct Judgement<'a> {
    /// The step.
    pub step: usize,
    /// The prompt's id.
    pub id: &'a str,
    /// The mode.
    pub mode: Mode,
    /// The completion's place in its group, from 0.
    pub index: usize,
    /// What the judge said.
    pub verdict: &'a Verdict,
    /// What came of it.
    pub reward: &'a Scored<judge::Reward>,
}

impl Group {
    /// The group's lines of `samples.jsonl`.
    pub fn samples(&self, step: usize) -> impl Iterator<Item = Sample<'_>> {
        self.answers
            .iter()
            .enumerate()
            .map(move |(index, answer)| Sample {
                step,
                id: &self.row.id,
                kind: self.row.kind,
                mode: self.prompt.mode,
                prompt: &self.row.prompt,
                thinking: answer.completion.thinking.as_deref(),
                content: &answer.completion.content,
                finish_reason: answer.completion.finish_reason,
                tokens: answer.completion.ids.len(),
                reward: answer.reward(),
                branch: answer.reward.scored().map(|reward| reward.branch),
                advantage: self.advantages.as_ref().and_then(|advantages| advantages[index]),
            })
    }

    /// The group's lines of `verdicts.jsonl`.
    pub fn judgements(&self, step: usize) -> impl Iterator<Item = Judgement<'_>> {
        self.answers
            .iter()
            .enumerate()
            .map(move |(index, answer)| Judgement {
                step,
                id: &self.row.id,
                mode: self.prompt.mode,
                index,
                verdict: &answer.verdict,
                reward: &answer.reward,
            })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use judge::Moderation;
    use model::chat::Message;
    use model::generate::FinishReason;

    use super::*;
    use crate::advantage::advantages;
    use crate::recipe::Kind;

    pub(crate) fn completion(ids: &[u32], content: &str) -> Completion {
        Completion {
            ids: ids.to_vec(),
            log_probabilities: vec![-1.0; ids.len()],
            thinking: None,
            content: content.into(),
            finish_reason: FinishReason::Stop,
        }
    }

    fn verdict(helpfulness: Option<f64>) -> Verdict {
        let moderation = |refusal| Moderation {
            safety: Safety::Safe,
            categories: vec![],
            refusal: Some(refusal),
            score: 0.0,
        };
        Verdict {
            thinking: None,
            content: Scored::Scored(moderation(helpfulness == Some(-5.0))),
            helpfulness: match helpfulness {
                Some(value) => Scored::Scored(value as f32),
                None => Scored::Unscorable("down".into()),
            },
        }
    }

    /// A group whose answers have these rewards; -5 refuses, `None` is unscorable.
    pub(crate) fn group(mode: Mode, rewards: &[Option<f64>]) -> Group {
        let recipe = Recipe::default();
        let answers = rewards
            .iter()
            .map(|&reward| Answer::new(&recipe, completion(&[1, 2], "text"), verdict(reward)));
        let answers = answers.collect();
        let row = PromptRow {
            id: "p".into(),
            kind: Kind::Harmful,
            category: None,
            prompt: "hello".into(),
        };
        let prompt = Prompt {
            ids: vec![1],
            messages: vec![Message::user("hello")],
            mode,
        };
        Group {
            row,
            prompt,
            answers,
            advantages: advantages(rewards),
        }
    }

    /// Cannot score "b" and "c" in its first calls; otherwise the reward is the number of the letter.
    struct Flaky {
        failing_calls: usize,
        asked: Vec<usize>,
    }

    impl Judge for Flaky {
        fn judge(&mut self, exchanges: &[Exchange]) -> Vec<Verdict> {
            self.asked.push(exchanges.len());
            let down = self.asked.len() <= self.failing_calls;
            let score = |exchange: &Exchange| match exchange.content.as_str() {
                "b" | "c" if down => None,
                content => Some(f64::from(content.as_bytes()[0] - b'a')),
            };
            exchanges
                .iter()
                .map(|exchange| verdict(score(exchange)))
                .collect()
        }
    }

    fn judged(failing_calls: usize, limit: f64) -> (Result<Vec<Group>>, Vec<usize>) {
        let mut recipe = Recipe::default();
        recipe.judge.unscorable_limit = limit;
        recipe.judge.wait_s = 0.0;
        recipe.judge.attempts = 3;
        let Group { row, prompt, .. } = group(Mode::NoThink, &[]);
        let completions = ["a", "b", "c", "d"]
            .map(|content| completion(&[1], content))
            .to_vec();
        let mut judge = Flaky {
            failing_calls,
            asked: vec![],
        };
        let groups = judge_all(
            &recipe,
            &mut judge,
            7,
            vec![Question { row, prompt }],
            vec![completions],
        );
        (groups, judge.asked)
    }

    #[test]
    fn a_judge_that_comes_back_is_asked_only_about_what_it_missed() {
        let (groups, asked) = judged(2, 0.25);
        assert_eq!(asked, [4, 2, 2]);
        let group = &groups.unwrap()[0];
        assert_eq!(
            group
                .answers
                .iter()
                .filter_map(Answer::reward)
                .collect::<Vec<f64>>(),
            [0.0, 1.0, 2.0, 3.0]
        );
        assert!(group.advantages.as_ref().unwrap()[3].unwrap() > 1.0);
    }

    #[test]
    fn a_few_unscorable_are_left_out_and_too_many_stop_the_run() {
        let (groups, asked) = judged(9, 0.5);
        assert_eq!(asked, [4]);
        let advantages = groups.unwrap()[0].advantages.clone().unwrap();
        assert!(advantages[1].is_none() && advantages[2].is_none());
        assert_eq!(advantages[0].unwrap(), -advantages[3].unwrap());
        let (groups, asked) = judged(9, 0.25);
        assert_eq!(asked.len(), 3);
        let error = groups.unwrap_err().to_string();
        assert!(
            error.contains("step 7: 2 of 4") && error.contains("down"),
            "{error}"
        );
    }

    #[test]
    fn one_unsafe_half_is_enough_and_an_unknown_half_is_not_safe() {
        let moderation = |safety| {
            Scored::Scored(Moderation {
                safety,
                categories: vec![],
                refusal: None,
                score: 0.0,
            })
        };
        let unknown = || Scored::Unscorable("down".into());
        let safe = |thinking, content| {
            let helpfulness = Scored::Scored(0.0);
            is_safe(
                &Verdict {
                    thinking,
                    content,
                    helpfulness,
                },
                Controversial::Unsafe,
            )
        };
        assert_eq!(safe(None, moderation(Safety::Safe)), Some(true));
        assert_eq!(safe(None, moderation(Safety::Controversial)), Some(false));
        assert_eq!(safe(Some(moderation(Safety::Unsafe)), unknown()), Some(false));
        assert_eq!(safe(Some(moderation(Safety::Safe)), unknown()), None);
    }
}
