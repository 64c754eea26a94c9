//! Training and measuring the guard's heads.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, PoisonError};

use candle_core::{D, Device, Tensor};

use super::figures::{Calibration, Counts, Figure, GuardFigure, GuardReport, Question};
use super::{Batch, Progress, Recipe, Shapes, Trained, compute, fit, measure, select};
use crate::Result;
use crate::data::{Row, Split, prompt_text};
use crate::features::{Feature, SharedFeatures};
use crate::guard::BuiltInGuard;
use crate::guard::built_in::{probabilities, prompt_log_odds, shift_odds};
use crate::heads::{
    Decision, GuardCard, Heads, Inputs, RISK_CLASSES, Tensors, query_logits, reply_logits, standardise,
};
use crate::judge::{Conversation, Guard};
use crate::verdict::{Category, Safety};

/// What the prompt's log-odds may count in a reply's risk.
const PROMPT_WEIGHTS: [f32; 5] = [0.0, 0.15, 0.3, 0.45, 0.6];

/// Trains the guard of `heads` by the recipe and measures it on the test prompts. The weights are in `heads` after it.
///
/// # Errors
/// Data that cannot be read, or labels that no source has.
pub fn train_guard(
    recipe: &Recipe,
    data_folder: &Path,
    features: &SharedFeatures,
    heads: &mut Heads,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Trained<GuardReport>> {
    let rows = recipe.load_data(data_folder)?.rows;
    train_on(recipe, &rows, features, heads, on_progress)
}

/// As [`train_guard`], on rows that are loaded and divided.
pub(crate) fn train_on(
    recipe: &Recipe,
    rows: &[Row],
    features: &SharedFeatures,
    heads: &mut Heads,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Trained<GuardReport>> {
    let conversations: Vec<_> = rows.iter().map(Row::conversation).collect();
    let computed = compute(
        &mut features.lock().unwrap_or_else(PoisonError::into_inner),
        &conversations,
        on_progress,
    );
    let usable: Vec<(&Row, &Feature)> = rows
        .iter()
        .zip(&computed)
        .filter_map(|(row, feature)| Some((row, &**feature.as_ref()?)))
        .collect();

    let mut tensors = std::mem::take(&mut heads.tensors);
    let mut seen = HashSet::new();
    let prompts = Examples::new(&usable, |row| {
        row.prompt_safety.is_some() && seen.insert(prompt_text(&row.messages))
    });
    let query = fit_prompts(recipe, &prompts, heads, &mut tensors, on_progress)?;
    let replies = Examples::new(&usable, |row| {
        row.response.is_some() && (row.safety.is_some() || row.refusal.is_some())
    });
    let (risk, refusal) = fit_replies(recipe, &replies, query, heads, &mut tensors, on_progress)?;
    heads.tensors = tensors;
    heads.card.guard = Some(GuardCard {
        risk,
        query,
        refusal,
        figures: serde_json::Value::Null,
    });
    *heads = heads.rounded()?;

    let mut guard = BuiltInGuard::new(Arc::clone(features), Arc::new(heads.clone()))?;
    let of = |split| rows.iter().filter(move |row| row.split == Some(split));
    let trained = Trained {
        train_rows: of(Split::Train).count(),
        validation_rows: of(Split::Validation).count(),
        test_rows: of(Split::Test).count(),
        validation: evaluate_guard(&mut guard, &of(Split::Validation).collect::<Vec<_>>()),
        test: evaluate_guard(&mut guard, &of(Split::Test).collect::<Vec<_>>()),
    };
    if let Some(card) = &mut heads.card.guard {
        card.figures = serde_json::to_value(&trained.test).unwrap_or_default();
    }
    Ok(trained)
}

/// Rows to learn from: training ones first, then validation ones.
struct Examples<'a> {
    rows: Vec<&'a Row>,
    features: Vec<&'a Feature>,
    training: usize,
}

impl<'a> Examples<'a> {
    fn new(usable: &[(&'a Row, &'a Feature)], mut wanted: impl FnMut(&'a Row) -> bool) -> Self {
        let chosen: Vec<_> = usable.iter().filter(|(row, _)| wanted(row)).copied().collect();
        let of = |split| {
            chosen
                .iter()
                .copied()
                .filter(move |(row, _)| row.split == Some(split))
        };
        let training = of(Split::Train).count();
        let (rows, features) = of(Split::Train).chain(of(Split::Validation)).unzip();
        Self {
            rows,
            features,
            training,
        }
    }

    fn counts(&self) -> (usize, usize) {
        (self.training, self.rows.len() - self.training)
    }

    /// The validation rows' labels of a question beside the probability of yes.
    fn held_out(&self, yes: &[f32], label: impl Fn(&Row) -> Option<bool>) -> Vec<(bool, f32, f32)> {
        let rows = self.rows[self.training..].iter().zip(yes);
        rows.filter_map(|(row, yes)| Some((label(row)?, *yes, row.weight)))
            .collect()
    }
}

/// Targets of a classification: for each row the weight of each class, all zero where the label is open.
struct Targets(Tensor);

impl Targets {
    fn new(rows: &[&Row], classes: usize, label: impl Fn(&Row) -> Vec<usize>) -> Result<Self> {
        let mut weights = vec![0.0; rows.len() * classes];
        for (row, weights_c) in rows.iter().zip(weights.chunks_mut(classes)) {
            let label = label(row);
            for class in &label {
                weights_c[*class] = row.weight / label.len() as f32;
            }
        }
        Ok(Self(Tensor::from_vec(
            weights,
            (rows.len(), classes),
            &Device::Cpu,
        )?))
    }

    /// Weighted cross-entropy of the rows whose label is known; zero where none is.
    fn loss(&self, examples: &[usize], logits_n_c: &Tensor) -> Result<Tensor> {
        let targets_n_c = select(&self.0, examples)?;
        let total = f64::from(targets_n_c.sum_all()?.to_scalar::<f32>()?).max(1e-6);
        Ok((((log_softmax(logits_n_c)? * targets_n_c)?.sum_all()?) / -total)?)
    }
}

fn log_softmax(logits_n_c: &Tensor) -> Result<Tensor> {
    let shifted_n_c = logits_n_c.broadcast_sub(&logits_n_c.max_keepdim(D::Minus1)?.detach())?;
    let sum_n_1 = shifted_n_c.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(shifted_n_c.broadcast_sub(&sum_n_1)?)
}

fn risk_class(safety: Option<Safety>) -> Vec<usize> {
    RISK_CLASSES
        .iter()
        .position(|class| Some(*class) == safety)
        .into_iter()
        .collect()
}

fn category_classes(safety: Option<Safety>, categories: &[Category], classes: usize) -> Vec<usize> {
    // What is safe has no category, and the head is never asked for one.
    let harmful = safety.is_some_and(|safety| safety != Safety::Safe);
    let known = Category::ALL[..classes].iter().enumerate();
    known
        .filter(|(_, category)| harmful && categories.contains(category))
        .map(|(index, _)| index)
        .collect()
}

/// Risk, category and refusal heads of replies; returns the decisions for risk and for refusal. `query` is that for
/// prompts, whose head is already fitted.
fn fit_replies(
    recipe: &Recipe,
    examples: &Examples<'_>,
    query: Decision,
    heads: &Heads,
    tensors: &mut Tensors,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<(Decision, Decision)> {
    let (settings, width) = (&recipe.fit, heads.reply_width());
    let raw_n_r = Inputs::replies(&examples.features)?.reply_n_r;
    measure(tensors, "guard.reply", &raw_n_r, examples.training)?;
    let reply_n_r = standardise(tensors, "guard.reply", &raw_n_r)?;
    let risk = Targets::new(&examples.rows, 3, |row| risk_class(row.safety))?;
    let category = Targets::new(&examples.rows, 8, |row| {
        category_classes(row.safety, &row.categories, 8)
    })?;
    let refusal = Targets::new(&examples.rows, 2, |row| {
        row.refusal.map(usize::from).into_iter().collect()
    })?;
    let shapes = Shapes::default()
        .projection("risk_level_category", settings.width, width)
        .linear("risk_level_head", 3, settings.width)
        .linear("category_head", 8, settings.width)
        .projection("refusal", settings.width, width)
        .linear("refusal_head", 2, settings.width);
    let loss = |tensors: &Tensors, mut batch: Batch<'_>| {
        let chosen_n_r = select(&reply_n_r, batch.examples)?;
        let logits = reply_logits(tensors, &batch.drop_out(&chosen_n_r)?)?;
        let categories = (category.loss(batch.examples, &logits.category_n_8)? * 0.3)?;
        let risks = (risk.loss(batch.examples, &logits.risk_n_3)? + categories)?;
        Ok((risks + refusal.loss(batch.examples, &logits.refusal_n_2)?)?)
    };
    fit(
        "replies",
        settings,
        &shapes,
        tensors,
        examples.counts(),
        &loss,
        on_progress,
    )?;

    let (training, held) = examples.counts();
    let logits = reply_logits(tensors, &reply_n_r.narrow(0, training, held)?)?;
    let harm = |row: &Row| row.safety.map(|safety| safety != Safety::Safe);
    let log_odds_n = prompt_log_odds(tensors, &examples.features[training..], query)?;
    let risk_n_3 = |weight: f32| shift_odds(&logits.risk_n_3, &log_odds_n, weight);
    let risk = decide(risk_n_3, &PROMPT_WEIGHTS, |yes| examples.held_out(yes, harm))?;
    let refusal_n_2 = |_| Ok(logits.refusal_n_2.clone());
    let refusal = decide(refusal_n_2, &[0.0], |yes| {
        examples.held_out(yes, |row| row.refusal)
    })?;
    Ok((risk, refusal))
}

/// Risk and category heads of prompts; returns the decision for risk.
fn fit_prompts(
    recipe: &Recipe,
    examples: &Examples<'_>,
    heads: &Heads,
    tensors: &mut Tensors,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Decision> {
    let settings = &recipe.fit;
    let raw_n_f = Inputs::prompts(&examples.features)?;
    measure(tensors, "guard.prompt", &raw_n_f, examples.training)?;
    let prompt_n_f = standardise(tensors, "guard.prompt", &raw_n_f)?;
    let risk = Targets::new(&examples.rows, 3, |row| risk_class(row.prompt_safety))?;
    let category = Targets::new(&examples.rows, 9, |row| {
        category_classes(row.prompt_safety, &row.prompt_categories, 9)
    })?;
    let shapes = Shapes::default()
        .projection("query_risk_level_category", settings.width, heads.prompt_width())
        .linear("query_risk_level_head", 3, settings.width)
        .linear("query_category_head", 9, settings.width);
    let loss = |tensors: &Tensors, mut batch: Batch<'_>| {
        let chosen_n_f = select(&prompt_n_f, batch.examples)?;
        let (risk_n_3, category_n_9) = query_logits(tensors, &batch.drop_out(&chosen_n_f)?)?;
        Ok((risk.loss(batch.examples, &risk_n_3)? + (category.loss(batch.examples, &category_n_9)? * 0.3)?)?)
    };
    fit(
        "prompts",
        settings,
        &shapes,
        tensors,
        examples.counts(),
        &loss,
        on_progress,
    )?;

    let (training, held) = examples.counts();
    let (risk_n_3, _) = query_logits(tensors, &prompt_n_f.narrow(0, training, held)?)?;
    let harm = |row: &Row| row.prompt_safety.map(|safety| safety != Safety::Safe);
    decide(
        |_| Ok(risk_n_3.clone()),
        &[0.0],
        |yes| examples.held_out(yes, harm),
    )
}

/// The prompt's weight, bias and temperature of the lowest log-loss on held-out rows, and at them the threshold of the
/// highest F1; yes is every class but the first. `logits` are those at a weight; `held_out` gives label, probability of
/// yes, and weight of the row.
fn decide(
    logits: impl Fn(f32) -> Result<Tensor>,
    prompt_weights: &[f32],
    held_out: impl Fn(&[f32]) -> Vec<(bool, f32, f32)>,
) -> Result<Decision> {
    let log_loss = |(label, yes, weight): &(bool, f32, f32)| {
        let right = f64::from(if *label { *yes } else { 1.0 - yes }).max(1e-6);
        -right.ln() * f64::from(*weight)
    };
    let (mut best, mut decision, mut rows) = (f64::INFINITY, Decision::default(), Vec::new());
    for prompt_weight in prompt_weights {
        let logits_n_c = logits(*prompt_weight)?;
        for (step, bias) in (-4..=8).flat_map(|step| (-12..=12).map(move |bias| (step, bias))) {
            let tried = Decision {
                temperature: 1.25_f32.powi(step),
                prompt_weight: *prompt_weight,
                bias: bias as f32 * 0.5,
                ..Decision::default()
            };
            let answers = probabilities(&logits_n_c, tried)?;
            let yes: Vec<f32> = answers
                .iter()
                .map(|answer_c| answer_c[1..].iter().sum())
                .collect();
            let held = held_out(&yes);
            let total: f64 = held.iter().map(log_loss).sum();
            if total < best {
                (best, decision, rows) = (total, tried, held);
            }
        }
    }
    // From the middle outwards, so that among equals the threshold nearest to a half stays.
    let mut thresholds: Vec<f32> = (2..=38).map(|step| step as f32 * 0.025).collect();
    thresholds.sort_by(|a, b| (a - 0.5).abs().total_cmp(&(b - 0.5).abs()));
    let mut chosen = (f32::NEG_INFINITY, 0.5);
    for threshold in thresholds {
        let sum = |wanted: &dyn Fn(bool, bool) -> bool| -> f32 {
            rows.iter()
                .filter(|(label, yes, _)| wanted(*label, *yes >= threshold))
                .map(|row| row.2)
                .sum()
        };
        let right = 2.0 * sum(&|label, yes| label && yes);
        let f1 = right / (right + sum(&|label, yes| label != yes)).max(1e-6);
        if f1 > chosen.0 {
            chosen = (f1, threshold);
        }
    }
    Ok(Decision {
        threshold: chosen.1,
        ..decision
    })
}

/// Asks a guard about labelled rows: refusal and harm of replies, and harm of prompts (each prompt once).
///
/// A controversial label or answer counts as harmful.
pub fn evaluate_guard(guard: &mut dyn Guard, rows: &[&Row]) -> GuardReport {
    let replies: Vec<_> = rows.iter().filter(|row| row.response.is_some()).collect();
    let mut seen = HashSet::new();
    let prompts: Vec<_> = rows
        .iter()
        .filter(|row| row.prompt_safety.is_some() && seen.insert(prompt_text(&row.messages)))
        .collect();
    let conversations: Vec<_> = replies
        .iter()
        .map(|row| row.conversation())
        .chain(prompts.iter().map(|row| Conversation {
            messages: row.messages.clone(),
            reply: None,
        }))
        .collect();
    let verdicts = guard.moderate(&conversations);

    let mut counts: BTreeMap<(Question, String), Counts> = BTreeMap::new();
    let mut add = |question, row: &Row, label: Option<bool>, answer: Option<bool>| {
        if let (Some(label), Some(answer)) = (label, answer) {
            for source in ["*", &row.source] {
                counts
                    .entry((question, source.to_owned()))
                    .or_default()
                    .add(label, answer);
            }
        }
    };
    let harmful = |safety: Safety| safety != Safety::Safe;
    let (mut of_replies, mut of_prompts) = (Vec::new(), Vec::new());
    let mut unscorable = 0;
    for (index, verdict) in verdicts.iter().enumerate() {
        let Some(moderation) = verdict.scored() else {
            unscorable += 1;
            continue;
        };
        let answer = Some(harmful(moderation.safety));
        if let Some(row) = replies.get(index) {
            add(Question::Refusal, row, row.refusal, moderation.refusal);
            add(Question::HarmfulReply, row, row.safety.map(harmful), answer);
            of_replies.extend(row.safety.map(|safety| (harmful(safety), moderation.score)));
        } else if let Some(row) = prompts.get(index - replies.len()) {
            add(
                Question::HarmfulPrompt,
                row,
                row.prompt_safety.map(harmful),
                answer,
            );
            of_prompts.extend(
                row.prompt_safety
                    .map(|safety| (harmful(safety), moderation.score)),
            );
        }
    }
    let figures = counts
        .into_iter()
        .map(|((question, source), counts)| GuardFigure {
            question,
            source,
            figure: Figure::from(counts),
        });
    GuardReport {
        figures: figures.collect(),
        calibrations: [
            (Question::HarmfulReply, of_replies),
            (Question::HarmfulPrompt, of_prompts),
        ]
        .into_iter()
        .filter_map(|(question, rows)| Calibration::new(question, &rows))
        .collect(),
        unscorable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_counts_only_known_labels() {
        let known = Row {
            refusal: Some(true),
            weight: 2.0,
            ..Row::new("s", "a")
        };
        let open = Row::new("s", "b");
        let rows = [&known, &open];
        let targets =
            Targets::new(&rows, 2, |row| row.refusal.map(usize::from).into_iter().collect()).unwrap();
        let logits = Tensor::new(&[[0.0_f32, 1.0], [50.0, -50.0]], &Device::Cpu).unwrap();
        let loss = targets
            .loss(&[0, 1], &logits)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!((loss - (1.0 + (-1.0_f32).exp()).ln()).abs() < 1e-6, "{loss}");
        let nothing = targets
            .loss(&[1], &logits.narrow(0, 1, 1).unwrap())
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert_eq!(nothing, 0.0);
    }

    #[test]
    fn thresholds_follow_the_held_out_rows() {
        // Yes from a probability of 0.27 on.
        let logits: Vec<f32> = (0..40).flat_map(|n| [0.0, (n as f32 - 20.0) * 0.25]).collect();
        let logits = Tensor::from_vec(logits, (40, 2), &Device::Cpu).unwrap();
        let labels: Vec<bool> = (0..40).map(|n| n >= 16).collect();
        let decision = decide(
            |_| Ok(logits.clone()),
            &[0.0],
            |yes| {
                yes.iter()
                    .zip(&labels)
                    .map(|(yes, label)| (*label, *yes, 1.0))
                    .collect()
            },
        )
        .unwrap();
        let right = probabilities(&logits, decision)
            .unwrap()
            .iter()
            .zip(&labels)
            .filter(|(row, label)| (row[1] >= decision.threshold) == **label)
            .count();
        assert!(right >= 39, "{right} of 40 with {decision:?}");
    }
}
