//! What the server counts, in Prometheus' text form.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counters and gauges by name and labels.
///
/// ```
/// let metrics = serve::Metrics::default();
/// metrics.count("saferl_requests_total", &[("path", "/health")], 1.0);
/// metrics.set("saferl_running", &[], 3.0);
/// assert!(metrics.render().contains("saferl_requests_total{path=\"/health\"} 1\n"));
/// ```
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<&'static str, Family>>);

#[derive(Debug)]
struct Family {
    kind: &'static str,
    values: BTreeMap<String, f64>,
}

impl Metrics {
    /// Adds to a counter. Its name ends in `_total`, `_sum` or `_count`, as Prometheus has it.
    pub fn count(&self, name: &'static str, labels: &[(&str, &str)], by: f64) {
        *self
            .families()
            .entry(name)
            .or_insert_with(|| Family::new("counter"))
            .value(labels) += by;
    }

    /// Sets a gauge.
    pub fn set(&self, name: &'static str, labels: &[(&str, &str)], value: f64) {
        *self
            .families()
            .entry(name)
            .or_insert_with(|| Family::new("gauge"))
            .value(labels) = value;
    }

    /// Everything, in Prometheus' text form, by name.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, family) in self.families().iter() {
            let _ = writeln!(text, "# TYPE {name} {}", family.kind);
            for (labels, value) in &family.values {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        }
        text
    }

    fn families(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Family {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            values: BTreeMap::new(),
        }
    }

    fn value(&mut self, labels: &[(&str, &str)]) -> &mut f64 {
        let quote = |text: &str| {
            text.replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n")
        };
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", quote(value)))
            .collect();
        let key = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        self.values.entry(key).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_and_gauges_do_not() {
        let metrics = Metrics::default();
        for _ in 0..2 {
            metrics.count("a_total", &[("path", "/x"), ("say", "\"hi\"")], 1.5);
            metrics.set("b", &[], 2.0);
        }
        let expected =
            "# TYPE a_total counter\na_total{path=\"/x\",say=\"\\\"hi\\\"\"} 3\n# TYPE b gauge\nb 2\n";
        assert_eq!(metrics.render(), expected);
    }
}
