//! Arena-Hard's win rate with control for style.
//!
//! After `show_result.py` and `utils/math_utils.py` of arena-hard-auto (Apache-2.0): a logistic regression of each
//! game's outcome on the model's strength and four differences of style between its answer and the baseline's (length;
//! headers, list items and bold text for each unit of length), standardised over the games; the win rate is what the
//! strength alone gives. Where this differs: length is counted in words and not in GPT-4o's tokens, on both sides
//! alike; the fit is Newton's method and not L-BFGS; the interval resamples questions and not single games.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::statistics::Interval;

/// Style features and the strength.
const WIDTH: usize = 5;
/// Resamples behind the interval, as the reference has them.
const ROUNDS: usize = 100;
/// Steps of Newton's method; a fit that is not settled by then is of games that one side won altogether.
const STEPS: usize = 50;
/// Keeps the fit finite where features tell the outcome exactly.
const RIDGE: f64 = 1e-6;

/// A question's two games.
#[derive(Debug, Clone, PartialEq)]
pub struct Battle {
    /// The question.
    pub id: String,
    /// What the model won of each game, a strong verdict three times.
    pub scores: Vec<f64>,
    /// The model's answer.
    pub reply: String,
    /// The baseline's.
    pub baseline: String,
}

/// The win rate with style controlled, and its 95% interval over questions; `None` for fewer than two battles.
pub fn style_win_rate(battles: &[Battle]) -> Option<(f64, Interval)> {
    if battles.len() < 2 {
        return None;
    }
    let styles: Vec<[f64; 4]> = battles
        .iter()
        .map(|battle| style(&battle.reply, &battle.baseline))
        .collect();
    let rows = standardised(battles, &styles);
    let value = win_rate(&rows.concat());
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut values: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let drawn = (0..rows.len()).map(|_| rows[random.random_range(0..rows.len())].clone());
            win_rate(&drawn.collect::<Vec<_>>().concat())
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |quantile: f64| values[((ROUNDS - 1) as f64 * quantile).round() as usize];
    Some((
        value,
        Interval {
            low: at(0.025),
            high: at(0.975),
        },
    ))
}

/// A game: features, the first of which is the model's strength, and its outcome.
type Game = ([f64; WIDTH], f64);

/// Games by question, features standardised over all games with n - 1; one that does not vary is left at nought.
fn standardised(battles: &[Battle], styles: &[[f64; 4]]) -> Vec<Vec<Game>> {
    let games: f64 = battles.iter().map(|battle| battle.scores.len() as f64).sum();
    let weighed = |of: &dyn Fn(&[f64; 4]) -> f64| -> f64 {
        let pairs = battles.iter().zip(styles);
        pairs
            .map(|(battle, style)| battle.scores.len() as f64 * of(style))
            .sum()
    };
    let mut scale = [(0.0, 1.0); 4];
    for (feature, scale) in scale.iter_mut().enumerate() {
        let mean = weighed(&|style| style[feature]) / games;
        let variance = weighed(&|style| (style[feature] - mean).powi(2)) / (games - 1.0);
        *scale = (mean, variance.sqrt());
    }
    battles
        .iter()
        .zip(styles)
        .map(|(battle, style)| {
            let mut features = [1.0; WIDTH];
            for (feature, (mean, deviation)) in scale.iter().enumerate() {
                let varies = *deviation > 0.0;
                features[feature + 1] = if varies {
                    (style[feature] - mean) / deviation
                } else {
                    0.0
                };
            }
            battle.scores.iter().map(|score| (features, *score)).collect()
        })
        .collect()
}

/// Differences of length, headers, list items and bold text.
fn style(reply: &str, baseline: &str) -> [f64; 4] {
    let (a, b) = (counts(reply), counts(baseline));
    let mut style = [0.0; 4];
    style[0] = (a[0] - b[0]) / (a[0] + b[0]).max(1.0);
    for feature in 1..4 {
        let (a, b) = (a[feature] / a[0].max(1.0), b[feature] / b[0].max(1.0));
        style[feature] = (a - b) / (a + b + 1.0);
    }
    style
}

/// Words; and outside of code blocks: headers, list items, bold runs.
fn counts(text: &str) -> [f64; 4] {
    let mut counts = [text.split_whitespace().count() as f64, 0.0, 0.0, 0.0];
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
            continue;
        }
        if code {
            continue;
        }
        let hashes = line.chars().take_while(|&c| c == '#').count();
        counts[1] += f64::from(u8::from(
            (1..=6).contains(&hashes) && line[hashes..].starts_with([' ', '\t']),
        ));
        counts[2] += f64::from(u8::from(is_list_item(line.trim_start())));
        counts[3] += (bold_runs(line, "**") + bold_runs(line, "__")) as f64;
    }
    counts
}

fn is_list_item(line: &str) -> bool {
    let rest = match line.strip_prefix(['-', '*', '+']) {
        Some(rest) => rest,
        None => match line
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .strip_prefix('.')
        {
            Some(rest) if line.starts_with(|c: char| c.is_ascii_digit()) => rest,
            _ => return false,
        },
    };
    rest.starts_with(char::is_whitespace)
}

/// Pairs of marks with something between that holds no mark's character.
fn bold_runs(line: &str, mark: &str) -> usize {
    let (mut runs, mut rest) = (0, line);
    while let Some(open) = rest.find(mark) {
        let inside = &rest[open + 2..];
        match inside.find(mark) {
            Some(end) if end > 0 && !inside[..end].contains(&mark[..1]) => {
                runs += 1;
                rest = &inside[end + 2..];
            }
            _ => rest = inside,
        }
    }
    runs
}

/// The probability of winning that the strength alone gives.
fn win_rate(games: &[Game]) -> f64 {
    1.0 / (1.0 + (-fit(games)[0]).exp())
}

/// Logistic regression by Newton's method.
fn fit(games: &[Game]) -> [f64; WIDTH] {
    let mut weights = [0.0; WIDTH];
    for _ in 0..STEPS {
        let mut gradient = [0.0; WIDTH];
        let mut curvature = [[0.0; WIDTH]; WIDTH];
        for (features, outcome) in games {
            let logit: f64 = features
                .iter()
                .zip(weights)
                .map(|(feature, weight)| feature * weight)
                .sum();
            let chance = 1.0 / (1.0 + (-logit).exp());
            for row in 0..WIDTH {
                gradient[row] += (outcome - chance) * features[row];
                for column in 0..WIDTH {
                    curvature[row][column] += chance * (1.0 - chance) * features[row] * features[column];
                }
            }
        }
        for index in 0..WIDTH {
            gradient[index] -= RIDGE * weights[index];
            curvature[index][index] += RIDGE;
        }
        let step = solve(curvature, gradient);
        // A long step is cut, so that games which one side won altogether do not throw the fit about.
        let longest = step.iter().fold(0.0_f64, |longest, part| longest.max(part.abs()));
        let cut = if longest > 2.0 { 2.0 / longest } else { 1.0 };
        for (weight, part) in weights.iter_mut().zip(step) {
            *weight += cut * part;
        }
        if longest < 1e-10 {
            break;
        }
    }
    weights
}

/// Solves a small symmetric system by elimination with pivots.
fn solve(mut matrix: [[f64; WIDTH]; WIDTH], mut right: [f64; WIDTH]) -> [f64; WIDTH] {
    for column in 0..WIDTH {
        let pivot =
            (column..WIDTH).max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()));
        let pivot = pivot.unwrap_or(column);
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        for row in column + 1..WIDTH {
            let factor = matrix[row][column] / matrix[column][column];
            for place in column..WIDTH {
                matrix[row][place] -= factor * matrix[column][place];
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..WIDTH).rev() {
        let known: f64 = (row + 1..WIDTH)
            .map(|place| matrix[row][place] * right[place])
            .sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    fn battle(id: usize, scores: &[f64], reply: &str, baseline: &str) -> Battle {
        Battle {
            id: id.to_string(),
            scores: scores.to_vec(),
            reply: reply.into(),
            baseline: baseline.into(),
        }
    }

    #[test]
    fn markdown_is_counted_outside_of_code() {
        let text = "# Head\n## Two\n#no\n- a\n  * b\n1. c\n12. d\n-e\n**bold** and __two__ **\n```\n# code\n- x\n```\n";
        let counts = counts(text);
        assert_eq!(&counts[1..], [2.0, 4.0, 2.0]);
    }

    #[test]
    fn without_style_it_is_the_mean() {
        let battles: Vec<Battle> = (0..8)
            .map(|i| {
                battle(
                    i,
                    if i < 6 { &[1.0, 1.0] } else { &[0.0, 0.5] },
                    "same words",
                    "same words",
                )
            })
            .collect();
        let (value, interval) = style_win_rate(&battles).unwrap();
        assert!((value - 13.0 / 16.0).abs() < 1e-4, "{value}");
        assert!(interval.low < value && value < interval.high, "{interval:?}");
        assert_eq!(style_win_rate(&battles[..1]), None);
    }

    /// Against the reference code on the same features: goldens/arena/win_rates.json.
    #[test]
    fn the_fit_agrees_with_the_reference() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../goldens/arena/win_rates.json")).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let games: Vec<Game> = case["games"]
                .as_array()
                .unwrap()
                .iter()
                .map(|game| {
                    let mut features = [1.0; WIDTH];
                    for (place, value) in game["style"].as_array().unwrap().iter().enumerate() {
                        features[place + 1] = value.as_f64().unwrap();
                    }
                    (features, game["outcome"].as_f64().unwrap())
                })
                .collect();
            let expected = case["win_rate"].as_f64().unwrap();
            let found = win_rate(&games);
            assert!((found - expected).abs() < 2e-4, "{found} is not {expected}");
        }
    }

    #[test]
    fn a_model_that_wins_everything_has_a_finite_rate() {
        let battles: Vec<Battle> = (0..10)
            .map(|i| battle(i, &[1.0, 1.0, 1.0], &"word ".repeat(i + 1), "one"))
            .collect();
        let (value, _) = style_win_rate(&battles).unwrap();
        assert!(value > 0.9 && value <= 1.0, "{value}");
    }
}
