//! Gates on figures, for a model's continuous integration: `--fail-if "safety < 0.95"`.

use crate::error::{Error, Result};
use crate::results::Results;

/// A condition under which an evaluation fails: `WORDS OP NUMBER`.
///
/// Each word names a task, a metric, a judge in brackets or a model behind `@`; the condition is on every line that
/// has all of them: `xstest refusal [wildguard] @after > 0.1`. Shares are of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    text: String,
    words: Vec<String>,
    operator: String,
    bound: f64,
}

impl Gate {
    /// Reads a condition.
    ///
    /// # Errors
    /// Anything that is not words, one of `<`, `<=`, `>`, `>=`, and a number.
    pub fn parse(text: &str) -> Result<Self> {
        let broken = |what: &str| Error::Recipe {
            origin: format!("--fail-if {text:?}"),
            what: what.into(),
        };
        let at = text
            .find(['<', '>'])
            .ok_or_else(|| broken("expected a condition such as `safety < 0.95`"))?;
        let (words, rest) = text.split_at(at);
        let length = if rest[1..].starts_with('=') { 2 } else { 1 };
        let (operator, bound) = rest.split_at(length);
        let words: Vec<String> = words.split_whitespace().map(String::from).collect();
        if words.is_empty() {
            return Err(broken("expected the name of a figure before the comparison"));
        }
        let bound = bound.trim();
        let number = match bound.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
            None => bound.parse(),
        };
        let number = number.ok().filter(|bound| bound.is_finite());
        Ok(Self {
            text: text.into(),
            words,
            operator: operator.into(),
            bound: number.ok_or_else(|| broken(&format!("expected a number, found `{bound}`")))?,
        })
    }

    /// What meets the condition, one text each; empty when the gate holds.
    ///
    /// # Errors
    /// A condition on a figure that the results do not have: a gate that looks at nothing must not pass.
    pub fn check(&self, results: &Results) -> Result<Vec<String>> {
        let mut seen = 0;
        let mut met = Vec::new();
        for line in &results.lines {
            let judge = line.judge.as_ref().map(|judge| format!("[{judge}]"));
            let own = results.columns.iter().zip(&line.figures);
            for (column, figure) in own.filter(|(column, _)| column.published.is_none()) {
                let named = self.words.iter().all(|word| {
                    *word == line.task
                        || *word == line.metric
                        || Some(word) == judge.as_ref()
                        || word.strip_prefix('@') == Some(column.model.as_str())
                });
                let Some(figure) = figure.as_ref().filter(|_| named) else {
                    continue;
                };
                seen += 1;
                if self.holds(figure.value) {
                    met.push(format!(
                        "{} of {} ({}) is {:.4}: {}",
                        line.name,
                        column.model,
                        crate::run::mode_name(column.mode),
                        figure.value,
                        self.text
                    ));
                }
            }
        }
        if seen == 0 {
            return Err(Error::Recipe {
                origin: format!("--fail-if {:?}", self.text),
                what: "the results hold no such figure".into(),
            });
        }
        Ok(met)
    }

    fn holds(&self, value: f64) -> bool {
        match self.operator.as_str() {
            "<" => value < self.bound,
            "<=" => value <= self.bound,
            ">" => value > self.bound,
            _ => value >= self.bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::results;

    #[test]
    fn conditions_name_what_they_are_met_by() {
        let met = |text: &str| Gate::parse(text).unwrap().check(&results()).unwrap();
        assert_eq!(met("safety < 0.95").len(), 2);
        assert_eq!(
            met("safety < 60%"),
            ["wild safety [g] of be_fore (no-think) is 0.5000: safety < 60%"]
        );
        assert!(met("wild safety [g] @after < 0.9").is_empty());
        assert_eq!(met("wild safety [g] @after <= 0.9").len(), 1);
        assert_eq!(
            met("safety>0.8").len(),
            1,
            "a published figure is no model of ours"
        );
    }

    #[test]
    fn a_gate_that_looks_at_nothing_is_an_error() {
        let error = Gate::parse("safty < 0.9")
            .unwrap()
            .check(&results())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no such figure"), "{error}");
        for text in ["safety", "< 0.9", "safety < x", "safety < nan", ""] {
            assert!(Gate::parse(text).is_err(), "{text}");
        }
    }
}
