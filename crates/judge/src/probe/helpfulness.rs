//! Training and measuring the helpfulness head.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError};

use candle_core::{Device, Tensor};

use super::figures::{HelpfulnessReport, PairFigure, Share, rank_correlation};
use super::{Batch, Progress, Recipe, Shapes, Trained, compute, fit, measure, select};
use crate::data::degenerate::{self, Kind};
use crate::data::{Labelled, Pair, Row, Split, number_of, prompt_text};
use crate::features::{Feature, SharedFeatures};
use crate::heads::{Heads, Inputs, Tensors, helpfulness, standardise};
use crate::helpfulness::BuiltInHelpfulness;
use crate::helpfulness::built_in::score_replies;
use crate::judge::{Conversation, Helpfulness};
use crate::verdict::Safety;
use crate::{Error, Result};

/// Width of the bilinear term in which a reply meets its prompt.
const TOPIC_WIDTH: usize = 32;
/// Mean and spread that grades from 0 to 4 are brought to.
const GRADE_MEAN: f32 = 2.0;
const GRADE_SPREAD: f32 = 1.5;
/// Spread of the scores in the end. The hybrid reward sets them against -5 for a refusal and -10 for an unsafe answer, so
/// a score must be able to come near: at a spread of 1 a useless safe answer was worth as much as a good one, and the
/// policy learned to write useless ones.
const SCORE_SPREAD: f64 = 3.0;

/// Trains the helpfulness head of `heads` by the recipe and measures it on the test prompts.
///
/// Preferences are fitted by Bradley and Terry's loss; graded replies also pull their score to the grade, so that
/// scores compare across prompts; and the scores are brought to zero mean and one spread in the end.
///
/// # Errors
/// Data that cannot be read, or a recipe without preferences.
pub fn train_helpfulness(
    recipe: &Recipe,
    data_folder: &Path,
    features: &SharedFeatures,
    heads: &mut Heads,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Trained<HelpfulnessReport>> {
    let mut labelled = recipe.load_data(data_folder)?;
    let grades = complete(&mut labelled, recipe.degenerate_per_prompt);
    train_on(recipe, &labelled.pairs, &grades, features, heads, on_progress)
}

/// Adds pairs of graded rows and of degenerate replies to the pairs, and returns everything that has a grade.
pub(crate) fn complete(labelled: &mut Labelled, degenerate_per_prompt: usize) -> Vec<Row> {
    let mut grades: Vec<Row> = labelled
        .rows
        .iter()
        .filter(|row| row.helpfulness.is_some())
        .cloned()
        .collect();
    let graded_pairs = graded_pairs(&grades);
    let goods = goods(labelled);
    for (index, good) in goods.iter().enumerate() {
        let start = number_of(&good.key) as usize;
        let others = goods.iter().cycle().skip(index + 1 + start % 7).take(goods.len());
        let other = others
            .filter(|other| other.split == good.split && other.key != good.key)
            .find_map(|row| row.response.clone());
        for kind in (0..degenerate_per_prompt.min(Kind::ALL.len()))
            .map(|step| Kind::ALL[(start + step) % Kind::ALL.len()])
        {
            let (Some(better), Some(other)) = (&good.response, &other) else {
                continue;
            };
            let worse = degenerate::reply(kind, prompt_text(&good.messages), better, other);
            let row = Row {
                source: kind.name().into(),
                response: Some(worse.clone()),
                helpfulness: Some(0.0),
                ..good.clone()
            };
            labelled.pairs.push(pair(&row, better.clone(), worse));
            grades.push(row);
        }
    }
    labelled.pairs.extend(graded_pairs);
    grades
}

fn pair(row: &Row, better: String, worse: String) -> Pair {
    let Row {
        source,
        key,
        split,
        weight,
        messages,
        ..
    } = row.clone();
    Pair {
        source,
        key,
        split,
        weight,
        messages,
        better,
        worse,
    }
}

/// Every two replies of one source to one prompt whose grades differ by at least one.
fn graded_pairs(rows: &[Row]) -> Vec<Pair> {
    let mut groups: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        groups.entry((&row.source, &row.key)).or_default().push(row);
    }
    let mut pairs = Vec::new();
    for group in groups.values() {
        for (better, worse) in group
            .iter()
            .flat_map(|better| group.iter().map(move |worse| (better, worse)))
        {
            if let (Some(high), Some(low)) = (better.helpfulness, worse.helpfulness)
                && high >= low + 1.0
                && let (Some(better_reply), Some(worse_reply)) = (&better.response, &worse.response)
            {
                pairs.push(pair(better, better_reply.clone(), worse_reply.clone()));
            }
        }
    }
    pairs
}

/// One good reply to each prompt: a preferred one, one graded 3 or 4, or an ordinary harmless answer.
fn goods(labelled: &Labelled) -> Vec<Row> {
    let mut goods: BTreeMap<&str, Row> = BTreeMap::new();
    for row in &labelled.rows {
        let answers = row.refusal == Some(false) && row.safety == Some(Safety::Safe);
        let good = row
            .helpfulness
            .map_or(answers && row.response.is_some(), |grade| grade >= 3.0);
        if good {
            goods.entry(&row.key).or_insert_with(|| row.clone());
        }
    }
    for pair in &labelled.pairs {
        goods.entry(&pair.key).or_insert_with(|| Row {
            split: pair.split,
            messages: pair.messages.clone(),
            response: Some(pair.better.clone()),
            weight: pair.weight,
            ..Row::new(&pair.source, prompt_text(&pair.messages))
        });
    }
    goods.into_values().collect()
}

/// As [`train_helpfulness`], on pairs and grades that are complete and divided.
pub(crate) fn train_on(
    recipe: &Recipe,
    pairs: &[Pair],
    grades: &[Row],
    features: &SharedFeatures,
    heads: &mut Heads,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Trained<HelpfulnessReport>> {
    let mut replies = Replies::default();
    let pair_rows: Vec<_> = pairs
        .iter()
        .map(|pair| {
            (
                replies.add(&pair.messages, &pair.better),
                replies.add(&pair.messages, &pair.worse),
            )
        })
        .collect();
    let grade_rows: Vec<_> = grades
        .iter()
        .map(|row| replies.add(&row.messages, row.response.as_deref().unwrap_or_default()))
        .collect();
    let computed = compute(
        &mut features.lock().unwrap_or_else(PoisonError::into_inner),
        &replies.conversations,
        on_progress,
    );
    let found: Vec<(usize, &Feature)> = computed
        .iter()
        .enumerate()
        .filter_map(|(index, feature)| Some((index, &**feature.as_ref()?)))
        .collect();
    let place: HashMap<usize, usize> = found
        .iter()
        .enumerate()
        .map(|(place, (index, _))| (*index, place))
        .collect();
    let all: Vec<&Feature> = found.iter().map(|(_, feature)| *feature).collect();
    if all.is_empty() {
        return Err(Error::Heads {
            what: "helpfulness: expected preferences, found none".into(),
            hint: "add sources with preferences or grades to the recipe".into(),
        });
    }

    let mut examples: Vec<(Split, Example)> = Vec::new();
    for (pair, (better, worse)) in pairs.iter().zip(&pair_rows) {
        if let (Some(split), Some(better), Some(worse)) = (pair.split, place.get(better), place.get(worse)) {
            examples.push((
                split,
                Example::Pair {
                    better: *better,
                    worse: *worse,
                    weight: pair.weight,
                },
            ));
        }
    }
    for (row, index) in grades.iter().zip(&grade_rows) {
        if let (Some(split), Some(reply), Some(grade)) = (row.split, place.get(index), row.helpfulness) {
            let weight = row.weight * recipe.grade_weight as f32;
            examples.push((
                split,
                Example::Grade {
                    reply: *reply,
                    target: (grade - GRADE_MEAN) / GRADE_SPREAD,
                    weight,
                },
            ));
        }
    }
    let mut tensors = std::mem::take(&mut heads.tensors);
    fit_scores(recipe, &examples, &all, heads, &mut tensors, on_progress)?;
    heads.tensors = tensors;
    let training = rows_of(&examples, Split::Train);
    scale_scores(heads, &training.iter().map(|row| all[*row]).collect::<Vec<_>>())?;
    heads.card.helpfulness = Some(serde_json::Value::Null);
    *heads = heads.rounded()?;

    let mut score = BuiltInHelpfulness::new(Arc::clone(features), Arc::new(heads.clone()))?;
    let mut report = |split| {
        let pairs: Vec<_> = pairs.iter().filter(|pair| pair.split == Some(split)).collect();
        let grades: Vec<_> = grades.iter().filter(|row| row.split == Some(split)).collect();
        evaluate_helpfulness(&mut score, &pairs, &grades)
    };
    let trained = Trained {
        validation: report(Split::Validation),
        test: report(Split::Test),
        train_rows: training.len(),
        validation_rows: rows_of(&examples, Split::Validation).len(),
        test_rows: rows_of(&examples, Split::Test).len(),
    };
    heads.card.helpfulness = Some(serde_json::to_value(&trained.test).unwrap_or_default());
    Ok(trained)
}

/// Distinct replies to be scored.
#[derive(Default)]
struct Replies {
    conversations: Vec<Conversation>,
    known: HashMap<(String, String), usize>,
}

impl Replies {
    fn add(&mut self, messages: &[model::chat::Message], reply: &str) -> usize {
        *self
            .known
            .entry((prompt_text(messages).to_owned(), reply.to_owned()))
            .or_insert_with(|| {
                self.conversations.push(Conversation {
                    messages: messages.to_vec(),
                    reply: Some(reply.to_owned()),
                });
                self.conversations.len() - 1
            })
    }
}

/// What one example asks of the scores.
enum Example {
    /// That one be higher than another.
    Pair {
        better: usize,
        worse: usize,
        weight: f32,
    },
    /// That it be near a target.
    Grade { reply: usize, target: f32, weight: f32 },
}

/// Rows that the examples of a split speak of, each once, ascending.
fn rows_of(examples: &[(Split, Example)], split: Split) -> Vec<usize> {
    let mut rows: Vec<_> = examples
        .iter()
        .filter(|(of, _)| *of == split)
        .flat_map(|(_, example)| match example {
            Example::Pair { better, worse, .. } => vec![*better, *worse],
            Example::Grade { reply, .. } => vec![*reply],
        })
        .collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}

fn fit_scores(
    recipe: &Recipe,
    examples: &[(Split, Example)],
    features: &[&Feature],
    heads: &Heads,
    tensors: &mut Tensors,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let of = |split| {
        examples
            .iter()
            .filter(move |(found, _)| *found == split)
            .map(|(_, example)| example)
    };
    let ordered: Vec<&Example> = of(Split::Train).chain(of(Split::Validation)).collect();
    let training = of(Split::Train).count();
    let raw = Inputs::replies(features)?;
    let seen = rows_of(examples, Split::Train);
    for (name, raw_n_f) in [
        ("prompt", &raw.prompt_n_f),
        ("reply", &raw.reply_n_r),
        ("surface", &raw.surface_n_s),
    ] {
        measure(
            tensors,
            &format!("helpfulness.{name}"),
            &select(raw_n_f, &seen)?,
            seen.len(),
        )?;
    }
    let all = Inputs {
        prompt_n_f: standardise(tensors, "helpfulness.prompt", &raw.prompt_n_f)?,
        reply_n_r: standardise(tensors, "helpfulness.reply", &raw.reply_n_r)?,
        surface_n_s: standardise(tensors, "helpfulness.surface", &raw.surface_n_s)?,
    };
    let width = recipe.fit.width;
    let shapes = Shapes::default()
        .projection("helpfulness", width, heads.helpfulness_width())
        .projection("topic_reply", TOPIC_WIDTH, heads.reply_width())
        .projection("topic_prompt", TOPIC_WIDTH, heads.prompt_width())
        .linear("helpfulness_head", 1, width + TOPIC_WIDTH);
    let loss = |tensors: &Tensors, mut batch: Batch<'_>| {
        let chosen: Vec<&Example> = batch.examples.iter().map(|index| ordered[*index]).collect();
        batch_loss(tensors, &all, &chosen, &mut batch)
    };
    fit(
        "helpfulness",
        &recipe.fit,
        &shapes,
        tensors,
        (training, ordered.len() - training),
        &loss,
        on_progress,
    )
}

/// Bradley and Terry's loss of the pairs, and half the squared distance of the grades, over all weights.
fn batch_loss(
    tensors: &Tensors,
    all: &Inputs,
    examples: &[&Example],
    batch: &mut Batch<'_>,
) -> Result<Tensor> {
    let (mut better, mut worse, mut pair_weights) = (vec![], vec![], vec![]);
    let (mut graded, mut targets, mut grade_weights) = (vec![], vec![], vec![]);
    for example in examples {
        match example {
            Example::Pair {
                better: b,
                worse: w,
                weight,
            } => {
                better.push(*b);
                worse.push(*w);
                pair_weights.push(*weight);
            }
            Example::Grade {
                reply,
                target,
                weight,
            } => {
                graded.push(*reply);
                targets.push(*target);
                grade_weights.push(*weight);
            }
        }
    }
    let total: f32 = pair_weights.iter().chain(&grade_weights).sum();
    let rows: Vec<usize> = better.iter().chain(&worse).chain(&graded).copied().collect();
    let inputs = Inputs {
        prompt_n_f: batch.drop_out(&select(&all.prompt_n_f, &rows)?)?,
        reply_n_r: batch.drop_out(&select(&all.reply_n_r, &rows)?)?,
        surface_n_s: select(&all.surface_n_s, &rows)?,
    };
    let scores_n = helpfulness(tensors, &inputs)?;
    let mut loss = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
    if !better.is_empty() {
        let gap_n =
            (scores_n.narrow(0, better.len(), worse.len())? - scores_n.narrow(0, 0, better.len())?)?;
        // log(1 + exp(gap)) without overflow.
        let softplus_n = (gap_n.relu()? + ((gap_n.abs()?.neg()?.exp()? + 1.0)?.log()?))?;
        loss = (loss + (softplus_n * Tensor::new(pair_weights, &Device::Cpu)?)?.sum_all()?)?;
    }
    if !graded.is_empty() {
        let distance_n =
            (scores_n.narrow(0, 2 * better.len(), graded.len())? - Tensor::new(targets, &Device::Cpu)?)?;
        loss = (loss + ((distance_n.sqr()? * Tensor::new(grade_weights, &Device::Cpu)?)?.sum_all()? * 0.5)?)?;
    }
    Ok((loss / f64::from(total.max(1e-6)))?)
}

/// Scales the last layer so that the scores of these replies have zero mean and a spread of [`SCORE_SPREAD`].
fn scale_scores(heads: &mut Heads, replies: &[&Feature]) -> Result<()> {
    let scores = score_replies(heads, replies)?;
    let count = scores.len().max(1) as f64;
    let mean = scores.iter().map(|score| f64::from(*score)).sum::<f64>() / count;
    let variance = scores
        .iter()
        .map(|score| (f64::from(*score) - mean).powi(2))
        .sum::<f64>()
        / count;
    let scale = SCORE_SPREAD / variance.sqrt().max(1e-6);
    for (name, shift) in [("helpfulness_head.weight", 0.0), ("helpfulness_head.bias", -mean)] {
        if let Some(tensor) = heads.tensors.get_mut(name) {
            *tensor = ((&*tensor + shift)? * scale)?;
        }
    }
    Ok(())
}

/// Asks a helpfulness score about labelled pairs and graded rows.
pub fn evaluate_helpfulness(
    score: &mut dyn Helpfulness,
    pairs: &[&Pair],
    grades: &[&Row],
) -> HelpfulnessReport {
    let of = |messages: &[model::chat::Message], reply: &str| Conversation {
        messages: messages.to_vec(),
        reply: Some(reply.into()),
    };
    let conversations: Vec<_> = pairs
        .iter()
        .flat_map(|pair| [of(&pair.messages, &pair.better), of(&pair.messages, &pair.worse)])
        .chain(
            grades
                .iter()
                .map(|row| of(&row.messages, row.response.as_deref().unwrap_or_default())),
        )
        .collect();
    let scores: Vec<Option<f32>> = score
        .score(&conversations)
        .iter()
        .map(|score| score.scored().copied())
        .collect();

    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut unscorable = 0;
    for (pair, scores) in pairs.iter().zip(scores.chunks(2)) {
        let [Some(better), Some(worse)] = scores else {
            unscorable += 1;
            continue;
        };
        for source in ["*", &pair.source] {
            let (right, of) = counts.entry(source).or_default();
            *right += usize::from(better > worse);
            *of += 1;
        }
    }
    let graded = grades.iter().zip(scores.iter().skip(2 * pairs.len()));
    let (grades, scores): (Vec<f32>, Vec<f32>) = graded
        .filter_map(|(row, score)| Some((row.helpfulness?, (*score)?)))
        .unzip();
    HelpfulnessReport {
        pairs: counts
            .into_iter()
            .map(|(source, (right, of))| PairFigure {
                source: source.into(),
                right: Share::new(right, of),
            })
            .collect(),
        grades: rank_correlation(&grades, &scores).map(|correlation| (correlation, grades.len())),
        unscorable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graded(prompt: &str, reply: &str, grade: f32) -> Row {
        Row {
            response: Some(reply.into()),
            helpfulness: Some(grade),
            split: Some(Split::Train),
            ..Row::new("own", prompt)
        }
    }

    #[test]
    fn grades_become_pairs_within_a_prompt_and_every_good_prompt_gets_its_losers() {
        let mut labelled = Labelled {
            rows: vec![
                graded("a", "best of a", 4.0),
                graded("a", "poor a", 1.0),
                graded("a", "poorer a", 0.5),
                graded("b", "fine b", 3.0),
            ],
            pairs: vec![],
        };
        let grades = complete(&mut labelled, 8);
        let own: Vec<_> = labelled
            .pairs
            .iter()
            .filter(|pair| pair.source == "own")
            .collect();
        assert_eq!(own.len(), 2, "4 over 1 and 4 over 0.5, but not 1 over 0.5");
        assert!(own.iter().all(|pair| pair.better == "best of a"));
        let degenerate: Vec<_> = labelled
            .pairs
            .iter()
            .filter(|pair| pair.source.starts_with("degenerate/"))
            .collect();
        assert_eq!(degenerate.len(), 16);
        let off_topic = degenerate
            .iter()
            .find(|pair| pair.source == "degenerate/off-topic" && pair.key == "a")
            .unwrap();
        assert_eq!(off_topic.worse, "fine b");
        assert_eq!(grades.len(), 4 + 16);
        assert!(
            grades[4..]
                .iter()
                .all(|row| row.helpfulness == Some(0.0) && row.split == Some(Split::Train))
        );
    }

    #[test]
    fn an_evaluation_counts_ties_as_wrong_and_leaves_out_the_unscorable() {
        struct Words;
        impl Helpfulness for Words {
            fn score(&mut self, conversations: &[Conversation]) -> Vec<crate::Scored<f32>> {
                let of = |conversation: &Conversation| match conversation.reply.as_deref() {
                    Some("?") => crate::Scored::Unscorable("question".into()),
                    Some(text) => crate::Scored::Scored(text.len() as f32),
                    None => crate::Scored::Unscorable("none".into()),
                };
                conversations.iter().map(of).collect()
            }
        }
        let base = graded("a", "", 0.0);
        let pairs = [("long", "s"), ("s", "long"), ("aa", "bb"), ("?", "x")];
        let pairs: Vec<_> = pairs
            .into_iter()
            .map(|(b, w)| pair(&base, b.into(), w.into()))
            .collect();
        let rows = [graded("a", "aaa", 4.0), graded("b", "b", 1.0)];
        let report = evaluate_helpfulness(
            &mut Words,
            &pairs.iter().collect::<Vec<_>>(),
            &rows.iter().collect::<Vec<_>>(),
        );
        assert_eq!(
            (
                report.pairs[0].right.count,
                report.pairs[0].right.of,
                report.unscorable
            ),
            (1, 3, 1)
        );
        assert_eq!(report.grades, Some((1.0, 2)));
    }
}
