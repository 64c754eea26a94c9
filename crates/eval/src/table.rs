//! Figures as a table: for the terminal, as Markdown, CSV and LaTeX.

use std::fmt::Write;

use crate::results::{Column, Figure, Line, Results};
use crate::run::mode_name;

/// The table for a terminal, and below it how the models differ and how far judges agree.
pub fn terminal(results: &Results) -> String {
    let mut text = aligned(&cells(results), false);
    text += &notes(results);
    text
}

/// The same in Markdown.
pub fn markdown(results: &Results) -> String {
    let mut text = aligned(&cells(results), true);
    text += &notes(results);
    text
}

/// A row for each figure, with everything that is known of it; for spreadsheets and programs.
pub fn csv(results: &Results) -> String {
    let mut text =
        String::from("task,metric,judge,model,mode,step,value,low,high,prompts,samples,unscored,published\n");
    for line in &results.lines {
        for (column, figure) in results.columns.iter().zip(&line.figures) {
            let Some(figure) = figure else { continue };
            let interval = figure.interval.map_or(",".into(), |interval| {
                format!("{:.6},{:.6}", interval.low, interval.high)
            });
            let fields = [
                quoted(&line.task),
                quoted(&line.metric),
                quoted(line.judge.as_deref().unwrap_or_default()),
                quoted(&column.model),
                mode_name(column.mode).into(),
                column.step.map(|step| step.to_string()).unwrap_or_default(),
                format!("{:.6}", figure.value),
                interval,
                figure.prompts.to_string(),
                figure.samples.to_string(),
                figure.unscored.to_string(),
                quoted(column.published.as_deref().unwrap_or_default()),
            ];
            text += &fields.join(",");
            text.push('\n');
        }
    }
    text
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// A `booktabs` table.
pub fn latex(results: &Results) -> String {
    let cells = cells(results);
    let row = |cells: &[String]| {
        cells
            .iter()
            .map(|cell| escaped(cell))
            .collect::<Vec<_>>()
            .join(" & ")
            + " \\\\\n"
    };
    let mut text = format!(
        "\\begin{{tabular}}{{l{}}}\n\\toprule\n",
        "r".repeat(results.columns.len())
    );
    let mut rows = cells.iter();
    text += &rows.next().map(|head| row(head)).unwrap_or_default();
    text += "\\midrule\n";
    rows.for_each(|cells| text += &row(cells));
    text + "\\bottomrule\n\\end{tabular}\n"
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut text, c| {
        match c {
            '\\' => text.push_str("\\textbackslash{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => text.extend(['\\', c]),
            '~' => text.push_str("\\textasciitilde{}"),
            '^' => text.push_str("\\textasciicircum{}"),
            c => text.push(c),
        }
        text
    })
}

/// The head and a row for each line.
fn cells(results: &Results) -> Vec<Vec<String>> {
    let heads = results.columns.iter().map(head);
    let mut rows = vec![std::iter::once(String::new()).chain(heads).collect::<Vec<_>>()];
    for line in &results.lines {
        let figures = line.figures.iter().map(|figure| {
            let show = |figure: &Figure| show(line, figure);
            figure.as_ref().map_or("-".into(), show)
        });
        rows.push(std::iter::once(line.name.clone()).chain(figures).collect());
    }
    rows
}

/// What a column is called: published ones say so.
pub fn head(column: &Column) -> String {
    let mark = if column.published.is_some() {
        ", published"
    } else {
        ""
    };
    format!("{} ({}{mark})", column.model, mode_name(column.mode))
}

/// A figure with its interval and how many samples were left out.
fn show(line: &Line, figure: &Figure) -> String {
    if line.metric == "tokens" {
        return format!("{:.0}", figure.value);
    }
    let mut text = format!("{:.1}", figure.value * 100.0);
    if let Some(interval) = figure.interval {
        let _ = write!(
            text,
            " [{:.1}, {:.1}]",
            interval.low * 100.0,
            interval.high * 100.0
        );
    }
    if figure.prompts > 0 {
        let _ = write!(text, " n={}", figure.prompts);
    }
    if figure.unscored > 0 {
        let _ = write!(text, ", {} unscored", figure.unscored);
    }
    text
}

fn aligned(rows: &[Vec<String>], markdown: bool) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let padded: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        if markdown {
            let _ = writeln!(text, "| {} |", padded.join(" | "));
            if index == 0 {
                let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width.max(3))).collect();
                let _ = writeln!(text, "| {} |", rule.join(" | "));
            }
        } else {
            let _ = writeln!(text, "{}", padded.join("  ").trim_end());
        }
    }
    text
}

/// Differences, agreements, sources and failures, a line each.
fn notes(results: &Results) -> String {
    let mut text = String::from("\nShares in percent with 95% intervals; n counts prompts.\n");
    for compared in &results.differences {
        let difference = &compared.difference;
        let tokens = compared.line.ends_with(" tokens");
        let scale = if tokens { 1.0 } else { 100.0 };
        let _ = writeln!(
            text,
            "{} ({}): {} - {} = {:+.1} [{:+.1}, {:+.1}], p = {}, {} prompts",
            compared.line,
            mode_name(compared.mode),
            compared.second,
            compared.first,
            difference.value * scale,
            difference.interval.low * scale,
            difference.interval.high * scale,
            p_value(difference.p),
            difference.prompts
        );
    }
    for agreement in &results.agreements {
        let kappa = agreement
            .kappa
            .map_or("not defined".into(), |kappa| format!("{kappa:.2}"));
        let _ = writeln!(
            text,
            "{} {}: {} and {} agree on {:.1}% of {} replies, kappa {kappa}",
            agreement.task,
            agreement.about,
            agreement.judges[0],
            agreement.judges[1],
            agreement.agreed * 100.0,
            agreement.replies
        );
    }
    let mut sources: Vec<&str> = results
        .columns
        .iter()
        .filter_map(|column| column.published.as_deref())
        .collect();
    sources.dedup();
    for source in sources {
        let _ = writeln!(text, "published: {source}");
    }
    for failure in &results.failures {
        let _ = writeln!(text, "failed: {failure}");
    }
    text
}

fn p_value(p: f64) -> String {
    if p < 0.001 {
        "< 0.001".into()
    } else {
        format!("{p:.3}")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use model::chat::Mode;

    use super::*;
    use crate::results::{Agreement, Compared};
    use crate::statistics::{Difference, Interval};

    pub(crate) fn results() -> Results {
        let column = |model: &str, published: Option<&str>| Column {
            model: model.into(),
            mode: Mode::NoThink,
            step: None,
            series: String::new(),
            published: published.map(String::from),
        };
        let figure = |value: f64, unscored: usize| Figure {
            value,
            interval: Some(Interval {
                low: value - 0.1,
                high: value + 0.1,
            }),
            prompts: 20,
            samples: 20,
            unscored,
            clusters: BTreeMap::new(),
        };
        let published = Figure {
            interval: None,
            prompts: 0,
            samples: 0,
            ..figure(0.865, 0)
        };
        let line = |metric: &str, judge: Option<&str>, figures: Vec<Option<Figure>>| Line {
            name: judge.map_or(format!("wild {metric}"), |judge| {
                format!("wild {metric} [{judge}]")
            }),
            task: "wild".into(),
            metric: metric.into(),
            judge: judge.map(String::from),
            figures,
        };
        Results {
            columns: vec![
                column("be_fore", None),
                column("after", None),
                column("Qwen3", Some("the card")),
            ],
            lines: vec![
                line(
                    "safety",
                    Some("g"),
                    vec![Some(figure(0.5, 2)), Some(figure(0.9, 0)), Some(published)],
                ),
                line("tokens", None, vec![Some(figure(120.4, 0)), None, None]),
            ],
            differences: vec![Compared {
                line: "wild safety [g]".into(),
                mode: Mode::NoThink,
                first: "be_fore".into(),
                second: "after".into(),
                difference: Difference {
                    value: 0.4,
                    interval: Interval { low: 0.2, high: 0.6 },
                    p: 0.0001,
                    prompts: 18,
                },
            }],
            agreements: vec![Agreement {
                task: "wild".into(),
                about: "safety".into(),
                judges: ["g".into(), "h".into()],
                kappa: Some(0.61),
                agreed: 0.85,
                replies: 40,
            }],
            failures: vec![],
        }
    }

    #[test]
    fn markdown_says_everything() {
        let text = markdown(&results());
        assert!(
            text.contains(
                "| wild safety [g] | 50.0 [40.0, 60.0] n=20, 2 unscored | 90.0 [80.0, 100.0] n=20 | 86.5"
            ),
            "{text}"
        );
        assert!(
            text.contains("after - be_fore = +40.0 [+20.0, +60.0], p = < 0.001, 18 prompts"),
            "{text}"
        );
        assert!(
            text.contains("g and h agree on 85.0% of 40 replies, kappa 0.61"),
            "{text}"
        );
        assert!(
            text.contains("Qwen3 (no-think, published)") && text.contains("published: the card"),
            "{text}"
        );
        let widths: std::collections::HashSet<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.chars().count())
            .collect();
        assert_eq!(widths.len(), 1, "{text}");
    }

    #[test]
    fn csv_and_latex_are_well_formed() {
        let csv = csv(&results());
        assert!(
            csv.contains("wild,safety,g,be_fore,no-think,,0.500000,0.400000,0.600000,20,20,2,\n"),
            "{csv}"
        );
        let commas: std::collections::HashSet<usize> =
            csv.lines().map(|line| line.matches(',').count()).collect();
        assert_eq!(commas.len(), 1, "{csv}");
        let latex = latex(&results());
        assert!(
            latex.contains("be\\_fore (no-think)") && latex.contains("\\bottomrule"),
            "{latex}"
        );
        assert_eq!(latex.matches("\\\\\n").count(), 3);
    }
}
