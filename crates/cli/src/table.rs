//! Figures before and after, as a table in the terminal.

use eval::measure::Summary;
use eval::statistics::Interval;

/// What is measured of a model: a name, the value with its interval, of how many.
struct Line {
    name: &'static str,
    before: String,
    after: String,
}

/// The table of two summaries, with 95% intervals and counts.
pub(crate) fn two_columns(before: &Summary, after: &Summary) -> String {
    let line = |name, show: fn(&Summary) -> String| Line {
        name,
        before: show(before),
        after: show(after),
    };
    let lines = [
        line("harmful prompts", |s| format!("n = {}", s.harmful.n)),
        line("  safe replies", |s| {
            share(s.harmful.safety, s.harmful.safety_interval)
        }),
        line("  refusals", |s| {
            share(s.harmful.refusal, s.harmful.refusal_interval)
        }),
        line("benign prompts", |s| format!("n = {}", s.benign.n)),
        line("  refusals", |s| {
            share(s.benign.refusal, s.benign.refusal_interval)
        }),
        line("  checks passed", |s| {
            format!(
                "{} of {}",
                share(s.benign.ability, s.benign.ability_interval),
                s.benign.checked
            )
        }),
        line("all replies", |s| format!("n = {}", s.harmful.n + s.benign.n)),
        line("  helpfulness", |s| {
            match (s.helpfulness, s.helpfulness_interval) {
                (Some(value), Some(interval)) => {
                    format!("{value:.2} ({:.2} to {:.2})", interval.low, interval.high)
                }
                _ => "not measured".into(),
            }
        }),
        line("  largest share with one opening", |s| {
            format!("{:.1}%", s.shared_opening * 100.0)
        }),
        line("  not scored by the judge", |s| s.unscorable.to_string()),
    ];
    let width = |cells: fn(&Line) -> &str| {
        lines
            .iter()
            .map(|line| cells(line).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (names, befores) = (width(|line| line.name), width(|line| &line.before));
    let mut table = format!("{:names$}  {:befores$}  after (95% interval)", "", "before");
    for Line { name, before, after } in &lines {
        table += &format!("\n{name:names$}  {before:befores$}  {after}");
    }
    table
}

fn share(value: Option<f64>, interval: Interval) -> String {
    value.map_or("not measured".into(), |value| {
        format!(
            "{:.1}% ({:.1} to {:.1})",
            value * 100.0,
            interval.low * 100.0,
            interval.high * 100.0
        )
    })
}
