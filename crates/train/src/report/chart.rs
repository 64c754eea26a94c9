//! One curve over the steps of a run, as inline SVG whose colours follow the page's style sheet.

use std::fmt::Write;

/// Size of a chart in its own units, and the room for labels at its edges.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;

/// A line of a chart; `None` where the step has no value.
pub(super) struct Series {
    /// Shown in the legend; empty for a chart with one line.
    pub(super) name: String,
    /// One value a step.
    pub(super) values: Vec<Option<f64>>,
}

/// What a value is, hence how it is written and where the axis ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// From 0 to 1, written in percent.
    Share,
    /// Any number.
    Plain,
    /// Never below zero.
    Positive,
}

impl Unit {
    /// A value as the page shows it.
    pub(super) fn show(self, value: f64) -> String {
        let size = value.abs();
        match self {
            Self::Share => format!("{:.0}%", value * 100.0),
            _ if size >= 100.0 => format!("{value:.0}"),
            _ if size >= 10.0 => trim(&format!("{value:.1}")),
            _ if size >= 0.001 || size == 0.0 => trim(&format!("{value:.4}")),
            _ => format!("{value:.1e}"),
        }
    }
}

fn trim(number: &str) -> String {
    let bare = number.trim_end_matches('0').trim_end_matches('.');
    if bare == "-0" { "0".into() } else { bare.into() }
}

/// Where steps and values lie on the paper.
struct Frame {
    first_step: f64,
    last_step: f64,
    low: f64,
    high: f64,
}

impl Frame {
    fn x(&self, step: f64) -> f64 {
        let span = (self.last_step - self.first_step).max(1.0);
        LEFT + (step - self.first_step) / span * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// The chart of `series` over `steps`; `marks` are steps at which an alarm sounded, with its text (already escaped).
///
/// Each line is drawn twice: as measured, faint, and as a running mean, since a step's batch is small.
pub(super) fn draw(steps: &[usize], series: &[Series], unit: Unit, marks: &[(usize, String)]) -> String {
    let values = || {
        series
            .iter()
            .flat_map(|line| line.values.iter().flatten().copied())
            .filter(|v| v.is_finite())
    };
    let (Some(first), Some(last), true) = (steps.first(), steps.last(), values().next().is_some()) else {
        return "<p class=\"none\">not measured in this run</p>".into();
    };
    let least = values().fold(f64::INFINITY, f64::min);
    let most = values().fold(f64::NEG_INFINITY, f64::max);
    let ticks = ticks(least, most, unit);
    let frame = Frame {
        first_step: *first as f64,
        last_step: *last as f64,
        low: ticks[0],
        high: ticks[ticks.len() - 1],
    };
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    grid(&mut svg, &frame, &ticks, unit, [*first, *last]);
    for (step, text) in marks {
        let x = frame.x(*step as f64);
        let _ = write!(
            svg,
            "<line class=\"alarm\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"><title>step {step}: {text}</title></line>",
            HEIGHT - BOTTOM
        );
    }
    for (index, line) in series.iter().enumerate() {
        let smooth = running_mean(&line.values);
        let _ = write!(
            svg,
            "<path class=\"raw s{index}\" d=\"{}\"/>",
            path(&frame, steps, &line.values)
        );
        let _ = write!(
            svg,
            "<path class=\"smooth s{index}\" d=\"{}\"/>",
            path(&frame, steps, &smooth)
        );
        if let Some((step, value)) = steps
            .iter()
            .zip(&smooth)
            .rev()
            .find_map(|(s, v)| v.map(|v| (*s, v)))
        {
            let (x, y) = (frame.x(step as f64), frame.y(value));
            let _ = write!(
                svg,
                "<circle class=\"s{index}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\"/>"
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

fn grid(svg: &mut String, frame: &Frame, ticks: &[f64], unit: Unit, ends: [usize; 2]) {
    for tick in ticks {
        let y = frame.y(*tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" class=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 3.5,
            unit.show(*tick)
        );
    }
    let base = HEIGHT - 8.0;
    let _ = write!(svg, "<text x=\"{LEFT}\" y=\"{base}\">step {}</text>", ends[0]);
    if ends[1] > ends[0] {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{base}\" class=\"end\">{}</text>",
            WIDTH - RIGHT,
            ends[1]
        );
    }
}

/// Round values from below the least to above the most, at most six of them.
fn ticks(least: f64, most: f64, unit: Unit) -> Vec<f64> {
    if unit == Unit::Share {
        return vec![0.0, 0.25, 0.5, 0.75, 1.0];
    }
    let low = if unit == Unit::Positive {
        least.min(0.0)
    } else {
        least
    };
    let span = if most > low {
        most - low
    } else {
        low.abs().max(1.0)
    };
    let rough = span / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let start = (low / step).floor();
    let count = ((low + span) / step - start).ceil().max(1.0) as usize;
    (0..=count).map(|index| (start + index as f64) * step).collect()
}

/// Mean over a window of about a tenth of the run, centred where it can be; gaps stay gaps.
fn running_mean(values: &[Option<f64>]) -> Vec<Option<f64>> {
    let reach = (values.len() / 20).min(25);
    let around = |at: usize| &values[at.saturating_sub(reach)..(at + reach + 1).min(values.len())];
    values
        .iter()
        .enumerate()
        .map(|(at, value)| {
            value.filter(|value| value.is_finite())?;
            let known: Vec<f64> = around(at)
                .iter()
                .flatten()
                .copied()
                .filter(|value| value.is_finite())
                .collect();
            Some(known.iter().sum::<f64>() / known.len() as f64)
        })
        .collect()
}

fn path(frame: &Frame, steps: &[usize], values: &[Option<f64>]) -> String {
    let mut data = String::new();
    let mut open = false;
    for (step, value) in steps.iter().zip(values) {
        let Some(value) = value.filter(|value| value.is_finite()) else {
            open = false;
            continue;
        };
        let command = if open { 'L' } else { 'M' };
        let _ = write!(
            data,
            "{command}{:.1} {:.1}",
            frame.x(*step as f64),
            frame.y(value)
        );
        open = true;
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(values: Vec<Option<f64>>) -> [Series; 1] {
        [Series {
            name: String::new(),
            values,
        }]
    }

    #[test]
    fn a_line_stays_on_the_paper_and_breaks_at_gaps() {
        let series = one(vec![Some(-10.0), None, Some(3.0), Some(f64::NAN), Some(0.5)]);
        let svg = draw(&[1, 2, 3, 4, 5], &series, Unit::Plain, &[(3, "refusals".into())]);
        let raw = svg
            .split("class=\"raw s0\" d=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        assert_eq!(raw.matches('M').count(), 3, "{raw}");
        for number in raw
            .split(|c: char| c.is_ascii_alphabetic() || c == ' ')
            .filter(|part| !part.is_empty())
        {
            let number: f64 = number.parse().unwrap();
            assert!((0.0..=WIDTH).contains(&number), "{raw}");
        }
        assert!(svg.contains("step 3: refusals"));
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn nothing_measured_is_said() {
        assert!(draw(&[1, 2], &one(vec![None, None]), Unit::Share, &[]).contains("not measured"));
        assert!(draw(&[], &one(vec![]), Unit::Share, &[]).contains("not measured"));
    }

    #[test]
    fn ticks_are_round_and_enclose() {
        for (least, most) in [
            (0.0, 1.0),
            (-10.0, 2.3),
            (5.0, 5.0),
            (0.0, 0.0),
            (1e-6, 3e-6),
            (17.0, 912.0),
        ] {
            let ticks = ticks(least, most, Unit::Plain);
            assert!(ticks.len() >= 2 && ticks.len() <= 7, "{ticks:?}");
            assert!(
                ticks[0] <= least + 1e-12 && ticks[ticks.len() - 1] >= most - 1e-12,
                "{least} {most} {ticks:?}"
            );
        }
        assert_eq!(ticks(3.0, 7.0, Unit::Positive)[0], 0.0);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(Unit::Share.show(0.256), "26%");
        assert_eq!(Unit::Plain.show(-0.0), "0");
        assert_eq!(Unit::Plain.show(0.5), "0.5");
        assert_eq!(Unit::Plain.show(3e-4), "3.0e-4");
        assert_eq!(Unit::Plain.show(-10.0), "-10");
        assert_eq!(Unit::Plain.show(123.4), "123");
    }
}
