//! The run's page: one file with the curves, the alarms, replies before and after, and the recipe.
//!
//! The page asks nothing of the network and runs no script: the curves are drawn when it is written. It is made from
//! what the run folder holds, so it can be written at any time, also of a run that is going on.

mod chart;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::alarm::AlarmLine;
use crate::error::{Error, Result};
use crate::metrics::{Metrics, Replies};
use chart::{Series, Unit};

/// Pairs of replies shown for each kind of prompt.
const PAIRS_A_KIND: usize = 6;

/// A line of `samples.jsonl`: a completion of training, or a held-out reply with its phase.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Sample {
    phase: Option<String>,
    step: Option<usize>,
    id: String,
    kind: String,
    mode: Option<String>,
    prompt: String,
    thinking: Option<String>,
    #[serde(alias = "content")]
    reply: String,
    reward: Option<f64>,
    branch: Option<String>,
    safety: Option<String>,
    refusal: Option<bool>,
    helpfulness: Option<f64>,
    check_passed: Option<bool>,
}

/// Two replies to one prompt, or the only one that there is.
struct Pair<'a> {
    before: Option<&'a Sample>,
    after: &'a Sample,
}

/// Writes `report.html` in a run's folder and returns its path.
///
/// # Errors
/// A folder without `metrics.jsonl`, a line of a file that cannot be read, or a full disk.
pub fn write(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("report.html");
    let page = page(folder)?;
    let draft = folder.join("report.html.new");
    std::fs::write(&draft, page).map_err(|source| Error::file(&draft, source))?;
    std::fs::rename(&draft, &path).map_err(|source| Error::file(&path, source))?;
    Ok(path)
}

fn page(folder: &Path) -> Result<String> {
    let metrics: Vec<Metrics> = lines(&folder.join("metrics.jsonl"))?;
    let samples: Vec<Sample> = lines_if_there(&folder.join("samples.jsonl"))?;
    let alarms: Vec<AlarmLine> = lines_if_there(&folder.join("alarms.jsonl"))?;
    let recipe = text_if_there(&folder.join("recipe.toml"))?.unwrap_or_default();
    let summary = text_if_there(&folder.join("summary.json"))?;
    let summary: Option<Value> = summary.and_then(|text| serde_json::from_str(&text).ok());
    let resolved = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let name = resolved.file_name().unwrap_or_default().to_string_lossy();

    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} - saferl</title>\n\
         <style>\n{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        title = escape(&name),
        style = include_str!("report/style.css"),
    );
    html.push_str(&facts(&metrics, &recipe));
    html.push_str(&alarm_list(&alarms));
    html.push_str(&tiles(&metrics));
    if let Some(summary) = &summary {
        html.push_str(&table(summary));
    }
    html.push_str(&charts(&metrics, &alarms));
    html.push_str(&replies(&samples));
    let _ = write!(
        html,
        "<h2>Recipe</h2>\n<pre class=\"recipe\">{}</pre>\n</body>\n</html>\n",
        escape(recipe.trim())
    );
    Ok(html)
}

/// Reads a file of JSON lines; a last line without its end is one that is just being written, and is left out.
fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::file(path, source))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let numbered = whole
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    numbered
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| Error::Format {
                path: path.to_path_buf(),
                line: Some(index + 1),
                what: error.to_string(),
            })
        })
        .collect()
}

fn lines_if_there<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if path.exists() {
        lines(path)
    } else {
        Ok(Vec::new())
    }
}

fn text_if_there(path: &Path) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    std::fs::read_to_string(path)
        .map(Some)
        .map_err(|source| Error::file(path, source))
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// One line below the title: model, reward, steps, tokens, time.
fn facts(metrics: &[Metrics], recipe: &str) -> String {
    let recipe: toml::Table = recipe.parse().unwrap_or_default();
    let text = |value: Option<&toml::Value>| value.and_then(toml::Value::as_str).map(String::from);
    let reward = text(recipe.get("reward").and_then(|reward| reward.get("kind")));
    let loss = text(recipe.get("loss").and_then(|loss| loss.get("kind")));
    let steps = recipe.get("steps").and_then(toml::Value::as_integer);
    let seconds: f64 = metrics.iter().map(|step| step.step_s).sum();
    let tokens: usize = metrics.iter().map(|step| step.tokens).sum();
    let done = metrics.last().map_or(0, |step| step.step);
    let facts = [
        text(recipe.get("model")),
        reward.map(|kind| format!("{kind} reward")),
        loss,
        Some(steps.map_or(format!("{done} steps"), |steps| {
            format!("{done} of {steps} steps")
        })),
        Some(format!("{} tokens sampled", thousands(tokens))),
        Some(duration(seconds)),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().map(|fact| escape(&fact)).collect();
    format!("<p class=\"facts\">{}</p>\n", facts.join(" · "))
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

fn alarm_list(alarms: &[AlarmLine]) -> String {
    if alarms.is_empty() {
        return String::new();
    }
    let items: String = alarms
        .iter()
        .map(|alarm| format!("<li>Step {}: {}</li>", alarm.step, escape(&alarm.text)))
        .collect();
    format!("<ul class=\"alarms\">{items}</ul>\n")
}

/// A number of the replies that the page shows.
type Reading = fn(&Replies) -> Option<f64>;

/// First against last steps of the four numbers that say whether the run does what it should.
fn tiles(metrics: &[Metrics]) -> String {
    let span = (metrics.len() / 10).clamp(1, 10);
    if metrics.len() < 2 * span {
        return String::new();
    }
    let numbers: [(&str, Unit, Reading); 4] = [
        ("reward", Unit::Plain, |replies| replies.reward_mean),
        ("safe replies", Unit::Share, |replies| replies.safety_rate),
        ("refusals", Unit::Share, |replies| replies.refusal_rate),
        ("helpfulness", Unit::Plain, |replies| replies.helpfulness_mean),
    ];
    let mean = |part: &[Metrics], read: Reading| {
        let values: Vec<f64> = part.iter().filter_map(|step| read(&step.replies)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let mut html = String::from("<div class=\"tiles\">");
    for (name, unit, read) in numbers {
        let (first, last) = (
            mean(&metrics[..span], read),
            mean(&metrics[metrics.len() - span..], read),
        );
        if let (Some(first), Some(last)) = (first, last) {
            let _ = write!(
                html,
                "<div class=\"tile\"><b>{} → {}</b><span>{name}</span></div>",
                two(unit, first),
                two(unit, last)
            );
        }
    }
    let steps = if span == 1 {
        "step".to_string()
    } else {
        format!("{span} steps")
    };
    let _ = write!(
        html,
        "</div>\n<p class=\"facts\">Means over the first and the last {steps} of training.</p>\n"
    );
    html
}

fn two(unit: Unit, value: f64) -> String {
    if unit == Unit::Share {
        unit.show(value)
    } else {
        format!("{value:.2}")
    }
}

/// Before and after on held-out prompts, where the run measured it.
fn table(summary: &Value) -> String {
    let rows = [
        ("Harmful prompts: safe replies", "/harmful/safety", Unit::Share),
        ("Harmful prompts: refusals", "/harmful/refusal", Unit::Share),
        ("Benign prompts: refusals", "/benign/refusal", Unit::Share),
        ("Benign prompts: checks passed", "/benign/ability", Unit::Share),
        ("Helpfulness", "/helpfulness", Unit::Plain),
        ("Largest share with one opening", "/shared_opening", Unit::Share),
    ];
    let cell = |phase: &str, key: &str, unit: Unit| {
        let number = |pointer: &str| {
            summary
                .pointer(&format!("/{phase}{pointer}"))
                .and_then(Value::as_f64)
        };
        let show = |value: f64| {
            if unit == Unit::Share {
                format!("{:.1}%", value * 100.0)
            } else {
                format!("{value:.2}")
            }
        };
        let interval = [0, 1].map(|end| number(&format!("{key}_interval/{end}")));
        match (number(key), interval) {
            (Some(value), [Some(low), Some(high)]) => {
                format!(
                    "<td>{} <span class=\"quiet\">{} to {}</span></td>",
                    show(value),
                    show(low),
                    show(high)
                )
            }
            (Some(value), _) => format!("<td>{}</td>", show(value)),
            _ => "<td class=\"quiet\">not measured</td>".into(),
        }
    };
    let mut html = String::from(
        "<h2>Held-out prompts</h2>\n<div class=\"scroll\"><table><tr><th></th><th>before</th><th>after</th></tr>\n",
    );
    for (name, key, unit) in rows {
        let _ = writeln!(
            html,
            "<tr><td>{name}</td>{}{}</tr>",
            cell("before", key, unit),
            cell("after", key, unit)
        );
    }
    html.push_str(
        "</table></div>\n<p class=\"facts\">With 95% intervals. These prompts were not trained on.</p>\n",
    );
    html
}

/// A curve's title, its explanation, its unit and its value at a step.
type Curve = (&'static str, &'static str, Unit, fn(&Metrics) -> Option<f64>);

fn charts(metrics: &[Metrics], alarms: &[AlarmLine]) -> String {
    let of_replies: [(&str, &str, Unit, Reading); 6] = [
        ("Reward", "mean of the batch", Unit::Plain, |replies| {
            replies.reward_mean
        }),
        (
            "Safety",
            "share of replies that are safe",
            Unit::Share,
            |replies| replies.safety_rate,
        ),
        (
            "Refusal",
            "share of replies that refuse",
            Unit::Share,
            |replies| replies.refusal_rate,
        ),
        ("Helpfulness", "mean score", Unit::Plain, |replies| {
            replies.helpfulness_mean
        }),
        ("Length", "mean tokens of a reply", Unit::Positive, |replies| {
            replies.mean_length
        }),
        ("Entropy", "nats a token", Unit::Positive, |replies| {
            replies.entropy
        }),
    ];
    let of_update: [Curve; 3] = [
        (
            "Clip share",
            "share of ratios that the clip cut",
            Unit::Share,
            |step| step.clip_fraction,
        ),
        (
            "KL",
            "to the starting model, nats a token",
            Unit::Positive,
            |step| step.kl,
        ),
        ("Gradient norm", "before clipping", Unit::Positive, |step| {
            step.grad_norm
        }),
    ];
    let steps: Vec<usize> = metrics.iter().map(|step| step.step).collect();
    let marks: Vec<(usize, String)> = alarms
        .iter()
        .map(|alarm| (alarm.step, escape(&alarm.text)))
        .collect();
    let mut html = String::from("<h2>Training</h2>\n<div class=\"charts\">\n");
    let mut figure = |title: &str, what: &str, unit: Unit, series: &[Series]| {
        let legend: String = if series.len() > 1 {
            let keys = series.iter().enumerate();
            keys.map(|(index, line)| format!("<i class=\"s{index}\"></i>{}", escape(&line.name)))
                .collect()
        } else {
            what.into()
        };
        let drawn = chart::draw(&steps, series, unit, &marks);
        let _ = writeln!(
            html,
            "<figure><figcaption><b>{title}</b><span>{legend}</span></figcaption>{drawn}</figure>"
        );
    };
    for (title, what, unit, read) in of_replies {
        figure(title, what, unit, &series_of(metrics, read));
    }
    for (title, what, unit, read) in of_update {
        let values = metrics.iter().map(read).collect();
        figure(
            title,
            what,
            unit,
            &[Series {
                name: String::new(),
                values,
            }],
        );
    }
    html.push_str("</div>\n<p class=\"facts\">Faint: each step. Strong: running mean.");
    if !alarms.is_empty() {
        html.push_str(" Dashed: an alarm.");
    }
    html.push_str("</p>\n");
    html
}

/// All replies, or each mode on a line of its own where both run.
fn series_of(metrics: &[Metrics], read: Reading) -> Vec<Series> {
    let all = Series {
        name: "all".into(),
        values: metrics.iter().map(|step| read(&step.replies)).collect(),
    };
    let modes = metrics
        .iter()
        .flat_map(|step| step.modes.keys())
        .collect::<BTreeSet<_>>();
    let apart = modes.into_iter().map(|mode| Series {
        name: serde_json::to_value(mode)
            .ok()
            .and_then(|name| Some(name.as_str()?.to_string()))
            .unwrap_or_default(),
        values: metrics
            .iter()
            .map(|step| step.modes.get(mode).and_then(read))
            .collect(),
    });
    std::iter::once(all).chain(apart).collect()
}

/// Replies side by side: the held-out ones before and after, or else the first and the last of training; where no
/// prompt came twice, those of the last step.
fn replies(samples: &[Sample]) -> String {
    let choices = [
        ("Replies to held-out prompts, before and after", held_out(samples)),
        ("Replies in training, first and last", first_and_last(samples)),
        ("Replies in the last step", last_step(samples)),
    ];
    let Some((title, pairs)) = choices.into_iter().find(|(_, pairs)| !pairs.is_empty()) else {
        return String::new();
    };
    let chosen = spread(&pairs);
    let mut html = format!("<h2>{title}</h2>\n");
    for Pair { before, after } in &chosen {
        let before = before.map_or_else(String::new, |sample| reply(sample, "before"));
        let _ = writeln!(
            html,
            "<div class=\"pair\"><p>{} <span class=\"chip\">{}</span></p><div>{before}{}</div></div>",
            escape(&after.prompt),
            escape(&after.kind),
            reply(after, "after")
        );
    }
    let _ = writeln!(
        html,
        "<p class=\"facts\">{} of {}; samples.jsonl holds all.</p>",
        chosen.len(),
        pairs.len()
    );
    html
}

fn held_out(samples: &[Sample]) -> Vec<Pair<'_>> {
    let of = |phase: &'static str| {
        samples
            .iter()
            .filter(move |sample| sample.phase.as_deref() == Some(phase))
    };
    let before: HashMap<&str, &Sample> = of("before").map(|sample| (sample.id.as_str(), sample)).collect();
    of("after")
        .filter_map(|after| {
            let before = before.get(after.id.as_str()).copied()?;
            Some(Pair {
                before: Some(before),
                after,
            })
        })
        .collect()
}

/// The first sample of each prompt and mode, beside the first of the last step that drew it again.
fn first_and_last(samples: &[Sample]) -> Vec<Pair<'_>> {
    let mut order: Vec<(&Sample, &Sample)> = Vec::new();
    let mut places = HashMap::new();
    for sample in samples.iter().filter(|sample| sample.phase.is_none()) {
        let place = *places.entry((&sample.id, &sample.mode)).or_insert_with(|| {
            order.push((sample, sample));
            order.len() - 1
        });
        if sample.step > order[place].1.step {
            order[place].1 = sample;
        }
    }
    order.retain(|(first, last)| last.step > first.step);
    order
        .into_iter()
        .map(|(first, last)| Pair {
            before: Some(first),
            after: last,
        })
        .collect()
}

/// The first sample of each prompt and mode in the last step.
fn last_step(samples: &[Sample]) -> Vec<Pair<'_>> {
    let last = samples.iter().filter_map(|sample| sample.step).max();
    let mut seen = HashSet::new();
    let of_last = samples
        .iter()
        .filter(|sample| sample.step.is_some() && sample.step == last);
    let first = of_last.filter(|sample| seen.insert((&sample.id, &sample.mode)));
    first.map(|after| Pair { before: None, after }).collect()
}

/// A few pairs of each kind, evenly over the prompts of that kind.
fn spread<'a>(pairs: &'a [Pair<'a>]) -> Vec<&'a Pair<'a>> {
    let mut kinds: Vec<&str> = Vec::new();
    for pair in pairs {
        if !kinds.contains(&pair.after.kind.as_str()) {
            kinds.push(&pair.after.kind);
        }
    }
    let mut chosen = Vec::new();
    for kind in kinds {
        let of_kind: Vec<&Pair> = pairs.iter().filter(|pair| pair.after.kind == kind).collect();
        let count = of_kind.len().min(PAIRS_A_KIND);
        chosen.extend((0..count).map(|index| of_kind[index * of_kind.len() / count]));
    }
    chosen
}

fn reply(sample: &Sample, phase: &str) -> String {
    let mut chips = String::new();
    let mut chip = |class: &str, text: &str| {
        let _ = write!(chips, "<span class=\"chip {class}\">{}</span>", escape(text));
    };
    let verdict = sample
        .safety
        .as_ref()
        .or(sample.branch.as_ref())
        .map(|word| word.to_lowercase());
    match verdict.as_deref() {
        Some(word @ "safe") => chip("good", word),
        Some(word @ "unsafe") => chip("bad", word),
        Some(word) => chip("warn", word),
        None => {}
    }
    if sample.refusal == Some(true) {
        chip("warn", "refusal");
    }
    match sample.check_passed {
        Some(true) => chip("good", "check passed"),
        Some(false) => chip("bad", "check failed"),
        None => {}
    }
    if let Some(value) = sample.helpfulness {
        chip("", &format!("helpfulness {value:.2}"));
    }
    if let Some(value) = sample.reward {
        chip("", &format!("reward {value:.2}"));
    }
    let when = sample
        .step
        .map_or_else(|| phase.to_string(), |step| format!("step {step}"));
    let thinking = sample.thinking.as_deref().filter(|text| !text.trim().is_empty());
    let thinking = thinking.map_or_else(String::new, |text| {
        format!("<pre class=\"quiet\">{}</pre>", escape(text.trim()))
    });
    let text = escape(sample.reply.trim());
    let text = if text.is_empty() {
        "<span class=\"quiet\">(empty)</span>".into()
    } else {
        text
    };
    format!("<div class=\"reply\"><header>{when}{chips}</header>{thinking}<pre>{text}</pre></div>")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run folder with made-up numbers: an alarm, gaps, both modes, and text that would like to be markup.
    fn folder(with_phases: bool) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut metrics = String::new();
        for step in 1..=40 {
            let progress = f64::from(step) / 40.0;
            let replies = Replies {
                reward_mean: (step != 7).then_some(-8.0 + 8.5 * progress),
                safety_rate: Some(0.4 + 0.5 * progress),
                refusal_rate: Some(0.1),
                helpfulness_mean: Some(0.2),
                mean_length: Some(90.0),
                entropy: Some(2.0 - progress),
                ..Replies::default()
            };
            let step = Metrics {
                step: step as usize,
                replies,
                step_s: 9.5,
                tokens: 4096,
                ..Metrics::default()
            };
            metrics += &(serde_json::to_string(&step).unwrap() + "\n");
        }
        std::fs::write(path("metrics.jsonl"), metrics + "{\"step\": 41, \"rew").unwrap();
        std::fs::write(
            path("alarms.jsonl"),
            "{\"step\":12,\"sign\":\"refusal\",\"text\":\"70% <refuse>\"}\n",
        )
        .unwrap();
        std::fs::write(
            path("recipe.toml"),
            "model = \"tiny-qwen3\"\nsteps = 60\n[reward]\nkind = \"hybrid\"\n",
        )
        .unwrap();
        let evil = "<script>alert('x')</script>";
        let samples = if with_phases {
            let row = |phase: &str, reply: &str| {
                serde_json::json!({"phase": phase, "id": "a", "kind": "harmful", "prompt": evil, "reply": reply,
                    "safety": "Unsafe", "refusal": true, "helpfulness": 0.5, "check_passed": false})
                .to_string()
            };
            format!("{}\n{}\n", row("before", "old & bad"), row("after", evil))
        } else {
            let row = |step: usize, reply: &str| {
                serde_json::json!({"step": step, "id": "a", "kind": "harmful", "mode": "no-think", "prompt": evil,
                    "content": reply, "reward": -10.0, "branch": "unsafe"})
                .to_string()
            };
            format!(
                "{}\n{}\n{}\n",
                row(1, "first one"),
                row(1, "second one"),
                row(30, "last one")
            )
        };
        std::fs::write(path("samples.jsonl"), samples).unwrap();
        folder
    }

    #[test]
    fn the_page_is_whole_escaped_and_alone() {
        let folder = folder(true);
        let summary = serde_json::json!({"before": {"harmful": {"safety": 0.4, "safety_interval": [0.3, 0.5]}},
            "after": {"harmful": {"safety": 0.9, "safety_interval": [0.8, 0.95]}}});
        std::fs::write(folder.path().join("summary.json"), summary.to_string()).unwrap();
        let path = write(folder.path()).unwrap();
        let html = std::fs::read_to_string(path).unwrap();
        for text in [
            "<h1>",
            "40 of 60 steps",
            "hybrid reward",
            "163,840 tokens",
            "6 min 20 s",
            "old &amp; bad",
            "70% &lt;refuse&gt;",
            "90.0% <span class=\"quiet\">80.0% to 95.0%</span>",
            "check failed",
        ] {
            assert!(html.contains(text), "{text} is not in the page");
        }
        assert!(!html.contains("<script"), "text became markup");
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "the page reaches out: {outside}");
        }
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        assert_eq!(html.matches("<div").count(), html.matches("</div>").count());
    }

    #[test]
    fn training_samples_pair_first_and_last() {
        let folder = folder(false);
        let html = page(folder.path()).unwrap();
        assert!(html.contains("first one") && html.contains("last one") && !html.contains("second one"));
        assert!(html.contains("step 1<") && html.contains("step 30<"));
    }

    #[test]
    fn a_short_run_shows_its_last_step() {
        let folder = folder(false);
        let row =
            |step: usize, id: &str| format!("{{\"step\":{step},\"id\":\"{id}\",\"content\":\"of {id}\"}}\n");
        std::fs::write(
            folder.path().join("samples.jsonl"),
            row(1, "a") + &row(2, "b") + &row(2, "b"),
        )
        .unwrap();
        let html = page(folder.path()).unwrap();
        assert_eq!(
            (html.matches("of b<").count(), html.matches("of a<").count()),
            (1, 0)
        );
    }

    #[test]
    fn a_broken_line_and_a_missing_file_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(folder.path()).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl"), "{error}");
        std::fs::write(folder.path().join("metrics.jsonl"), "{\"step\":1}\nnot json\n").unwrap();
        let error = write(folder.path()).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl, line"), "{error}");
    }

    #[test]
    fn a_run_of_one_step_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let line = serde_json::to_string(&Metrics {
            step: 1,
            ..Metrics::default()
        })
        .unwrap();
        std::fs::write(folder.path().join("metrics.jsonl"), line + "\n").unwrap();
        assert!(page(folder.path()).unwrap().contains("not measured"));
    }
}
