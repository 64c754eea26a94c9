//! How good a judge is on held-out rows: counts, rates, and how sure one can be of them.

use std::fmt;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 1000;
/// Bins of a [`Calibration`].
pub const BINS: usize = 10;

/// A share of a count with its 95% interval (Wilson 1927); no value where there is nothing to count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// How many.
    pub count: usize,
    /// Of how many.
    pub of: usize,
    /// `count / of`.
    pub value: Option<f64>,
    /// Lower end of the interval.
    pub low: Option<f64>,
    /// Upper end of the interval.
    pub high: Option<f64>,
}

impl Share {
    /// The share of `count` in `of`.
    pub fn new(count: usize, of: usize) -> Self {
        if of == 0 {
            return Self {
                count,
                of,
                value: None,
                low: None,
                high: None,
            };
        }
        let (n, p, z) = (of as f64, count as f64 / of as f64, 1.959_964);
        let centre = p + z * z / (2.0 * n);
        let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z * z / n;
        let (low, high) = (
            ((centre - spread) / scale).max(0.0),
            ((centre + spread) / scale).min(1.0),
        );
        Self {
            count,
            of,
            value: Some(p),
            low: Some(low),
            high: Some(high),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.value, self.low, self.high) {
            (Some(value), Some(low), Some(high)) => {
                let text = format!("{value:.3} [{low:.3}, {high:.3}] {}/{}", self.count, self.of);
                formatter.pad(&text)
            }
            _ => formatter.pad("-"),
        }
    }
}

/// A number with its 95% bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The number on the rows as they are.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How often a yes or no agrees with its label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Yes, rightly.
    pub true_positive: usize,
    /// Yes, wrongly.
    pub false_positive: usize,
    /// No, wrongly.
    pub false_negative: usize,
    /// No, rightly.
    pub true_negative: usize,
}

impl Counts {
    /// Counts one answer.
    pub fn add(&mut self, label: bool, answer: bool) {
        *match (label, answer) {
            (true, true) => &mut self.true_positive,
            (false, true) => &mut self.false_positive,
            (true, false) => &mut self.false_negative,
            (false, false) => &mut self.true_negative,
        } += 1;
    }

    /// Rows counted.
    pub fn rows(self) -> usize {
        self.true_positive + self.false_positive + self.false_negative + self.true_negative
    }

    /// The harmonic mean of precision and recall, where there is a positive row or answer.
    pub fn f1(self) -> Option<f64> {
        let denominator = 2 * self.true_positive + self.false_positive + self.false_negative;
        (denominator > 0).then(|| 2.0 * self.true_positive as f64 / denominator as f64)
    }
}

/// Precision, recall and F1 of a yes-or-no question.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The counts behind it.
    pub counts: Counts,
    /// Right yeses among the yeses.
    pub precision: Share,
    /// Yeses among the rows that are.
    pub recall: Share,
    /// Yeses among the rows that are not.
    pub false_alarms: Share,
    /// The harmonic mean of precision and recall; none where no row is positive.
    pub f1: Option<Interval>,
}

impl From<Counts> for Figure {
    fn from(counts: Counts) -> Self {
        let Counts {
            true_positive,
            false_positive,
            false_negative,
            true_negative,
        } = counts;
        let positives = true_positive + false_negative;
        Self {
            counts,
            precision: Share::new(true_positive, true_positive + false_positive),
            recall: Share::new(true_positive, positives),
            false_alarms: Share::new(false_positive, false_positive + true_negative),
            f1: if positives > 0 { bootstrap_f1(counts) } else { None },
        }
    }
}

/// F1 over resamples of the rows; a row is known by which of the four counts it stands in.
fn bootstrap_f1(counts: Counts) -> Option<Interval> {
    let mut random = StdRng::seed_from_u64(1);
    let rows = counts.rows();
    let yes = counts.true_positive;
    let (alarms, missed) = (
        yes + counts.false_positive,
        yes + counts.false_positive + counts.false_negative,
    );
    let mut values: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let mut resample = Counts::default();
            for _ in 0..rows {
                match random.random_range(0..rows) {
                    row if row < yes => resample.true_positive += 1,
                    row if row < alarms => resample.false_positive += 1,
                    row if row < missed => resample.false_negative += 1,
                    _ => resample.true_negative += 1,
                }
            }
            resample.f1()
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        values
            .get((share * (values.len() as f64 - 1.0)).round() as usize)
            .copied()
    };
    Some(Interval {
        value: counts.f1()?,
        low: at(0.025)?,
        high: at(0.975)?,
    })
}

/// What a guard is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Does the reply refuse?
    Refusal,
    /// Is the reply harmful (unsafe or controversial)?
    HarmfulReply,
    /// Is the prompt harmful?
    HarmfulPrompt,
}

impl Question {
    fn name(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::HarmfulReply => "harmful reply",
            Self::HarmfulPrompt => "harmful prompt",
        }
    }
}

/// A guard's figures on held-out rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GuardReport {
    /// Each question on each source, and on all (`*`).
    pub figures: Vec<GuardFigure>,
    /// How far to believe its probabilities of harm, on all sources.
    #[serde(default)]
    pub calibrations: Vec<Calibration>,
    /// Conversations that the guard could not judge; they are in no figure.
    pub unscorable: usize,
}

/// How far a guard's probabilities are from what the labels say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The question.
    pub question: Question,
    /// Mean squared distance of probability and label (Brier 1950).
    pub brier: f64,
    /// Expected calibration error: the mean distance of probability and share in [`BINS`] equal bins (Guo et al.,
    /// arXiv 1706.04599).
    pub error: f64,
    /// The bins that hold rows, from the lowest.
    pub bins: Vec<Bin>,
}

/// Rows to which a guard gives about the same probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Their mean probability.
    pub said: f64,
    /// How many are harmful by their labels.
    pub harmful: Share,
}

impl Calibration {
    /// Of rows' labels and probabilities; none without rows.
    pub fn new(question: Question, rows: &[(bool, f32)]) -> Option<Self> {
        let bin_of = |said: f32| ((said * BINS as f32) as usize).min(BINS - 1);
        let bin = |index| {
            let members = rows.iter().filter(|(_, said)| bin_of(*said) == index);
            let said: Vec<f64> = members.clone().map(|(_, said)| f64::from(*said)).collect();
            let harmful = members.filter(|(label, _)| *label).count();
            (!said.is_empty()).then(|| Bin {
                said: said.iter().sum::<f64>() / said.len() as f64,
                harmful: Share::new(harmful, said.len()),
            })
        };
        let bins: Vec<Bin> = (0..BINS).filter_map(bin).collect();
        let distance = |bin: &Bin| (bin.said * bin.harmful.of as f64 - bin.harmful.count as f64).abs();
        let squared = |(label, said): &(bool, f32)| (f64::from(*said) - f64::from(u8::from(*label))).powi(2);
        let mean = |sum: f64| sum / rows.len() as f64;
        (!rows.is_empty()).then(|| Self {
            question,
            brier: mean(rows.iter().map(squared).sum()),
            error: mean(bins.iter().map(distance).sum()),
            bins,
        })
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            question,
            brier,
            error,
            bins,
        } = self;
        write!(
            formatter,
            "calibration, {}: Brier {brier:.3}, expected error {error:.3}; said and found",
            question.name()
        )?;
        bins.iter()
            .try_for_each(|Bin { said, harmful }| write!(formatter, "\n  {said:.2}  {harmful}"))
    }
}

/// One line of a [`GuardReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardFigure {
    /// The question.
    pub question: Question,
    /// The source, or `*`.
    pub source: String,
    /// The figures.
    pub figure: Figure,
}

impl fmt::Display for GuardReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = [
            "question",
            "source",
            "rows",
            "precision",
            "recall",
            "false alarms",
            "F1",
        ];
        let [question, source, rows, precision, recall, alarms, f1] = header;
        writeln!(
            formatter,
            "{question:<14} {source:<28} {rows:>5}  {precision:<32} {recall:<32} {alarms:<32} {f1}"
        )?;
        for GuardFigure {
            question,
            source,
            figure,
        } in &self.figures
        {
            let question = question.name();
            let f1 = figure.f1.map_or("-".into(), |f1| {
                format!("{:.3} [{:.3}, {:.3}]", f1.value, f1.low, f1.high)
            });
            let Figure {
                counts,
                precision,
                recall,
                false_alarms,
                ..
            } = figure;
            let rows = counts.rows();
            writeln!(
                formatter,
                "{question:<14} {source:<28} {rows:>5}  {precision:<32} {recall:<32} {false_alarms:<32} {f1}"
            )?;
        }
        for calibration in &self.calibrations {
            writeln!(formatter, "{calibration}")?;
        }
        write!(formatter, "unscorable: {}", self.unscorable)
    }
}

/// A helpfulness score's figures on held-out pairs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HelpfulnessReport {
    /// How often the better reply of a pair scores higher: by source or kind of degenerate reply, and on all (`*`).
    pub pairs: Vec<PairFigure>,
    /// Spearman's rank correlation of score and grade over all graded rows, whatever their prompts; and their number.
    pub grades: Option<(f64, usize)>,
    /// Pairs that could not be scored; they are in no figure.
    pub unscorable: usize,
}

/// One line of a [`HelpfulnessReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairFigure {
    /// The source, or `*`.
    pub source: String,
    /// Pairs in the right order; ties are not.
    pub right: Share,
}

impl fmt::Display for HelpfulnessReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{:<28} pairs in the right order", "source")?;
        for PairFigure { source, right } in &self.pairs {
            writeln!(formatter, "{source:<28} {right}")?;
        }
        if let Some((correlation, rows)) = self.grades {
            writeln!(
                formatter,
                "rank correlation with grades: {correlation:.3} over {rows} rows"
            )?;
        }
        write!(formatter, "unscorable: {}", self.unscorable)
    }
}

/// Spearman's rank correlation; ties share their mean rank. None where one side does not vary.
pub(crate) fn rank_correlation(a: &[f32], b: &[f32]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let mean = f64::midpoint(a.len() as f64, 1.0);
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let spread = (product(&a, &a) * product(&b, &b)).sqrt();
    (spread > 0.0).then(|| product(&a, &b) / spread)
}

fn ranks(values: &[f32]) -> Vec<f64> {
    let rank = |value: &f32| {
        let below = values.iter().filter(|other| *other < value).count();
        let equal = values.iter().filter(|other| *other == value).count();
        below as f64 + f64::midpoint(equal as f64, 1.0)
    };
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_intervals_agree_with_the_published_formula() {
        let share = Share::new(8, 10);
        assert!((share.low.unwrap() - 0.490_162).abs() < 1e-5, "{share}");
        assert!((share.high.unwrap() - 0.943_318).abs() < 1e-5, "{share}");
        assert_eq!(Share::new(0, 0).value, None);
        assert_eq!(Share::new(5, 5).high, Some(1.0));
    }

    #[test]
    fn figures_from_counts() {
        let mut counts = Counts::default();
        for (label, answer, times) in [
            (true, true, 30),
            (true, false, 10),
            (false, true, 20),
            (false, false, 40),
        ] {
            (0..times).for_each(|_| counts.add(label, answer));
        }
        let figure = Figure::from(counts);
        assert_eq!(figure.precision.value, Some(0.6));
        assert_eq!(figure.recall.value, Some(0.75));
        assert_eq!((figure.false_alarms.count, figure.false_alarms.of), (20, 60));
        let f1 = figure.f1.unwrap();
        assert!((f1.value - 2.0 / 3.0).abs() < 1e-9);
        assert!(
            f1.low < 0.62 && f1.low > 0.5 && f1.high > 0.71 && f1.high < 0.82,
            "{f1:?}"
        );
        let benign = Figure::from(Counts {
            true_negative: 9,
            false_positive: 1,
            ..Counts::default()
        });
        assert_eq!((benign.f1, benign.recall.value), (None, None));
    }

    #[test]
    fn calibration_compares_what_is_said_with_what_is_found() {
        // Ten rows of 0.25, of which half are harmful; ten of 1.0, all harmful.
        let rows: Vec<(bool, f32)> = (0..20)
            .map(|n| (n % 2 == 0 || n >= 10, if n < 10 { 0.25 } else { 1.0 }))
            .collect();
        let calibration = Calibration::new(Question::HarmfulReply, &rows).unwrap();
        assert!((calibration.error - 0.125).abs() < 1e-9, "{calibration}");
        assert!((calibration.brier - (0.75_f64.powi(2) + 0.25_f64.powi(2)) / 4.0).abs() < 1e-9);
        let found: Vec<_> = calibration
            .bins
            .iter()
            .map(|bin| (bin.harmful.count, bin.harmful.of))
            .collect();
        assert_eq!(found, [(5, 10), (10, 10)]);
        assert_eq!(Calibration::new(Question::HarmfulReply, &[]), None);
    }

    #[test]
    fn rank_correlation_of_orders() {
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[10.0, 20.0, 90.0]), Some(1.0));
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), Some(-1.0));
        assert_eq!(rank_correlation(&[1.0, 1.0], &[3.0, 2.0]), None);
    }
}
