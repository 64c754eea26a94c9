//! The model card of an exported folder, `README.md` as hubs read it: what the run's own files say of base, recipe, data,
//! judges and figures. What they do not say is named as missing, not made up.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// The base models whose licence we know, as hubs spell it.
const LICENCES: [(&str, &str); 1] = [("smollm2-135m", "apache-2.0")];

/// Rows of the table of figures: what it is called, where `summary.json` has it, whether it is a share.
const FIGURES: [(&str, &str, bool); 5] = [
    ("safety, harmful prompts", "/harmful/safety", true),
    ("refusal, harmful prompts", "/harmful/refusal", true),
    ("refusal, benign prompts", "/benign/refusal", true),
    ("checked ability, benign prompts", "/benign/ability", true),
    ("helpfulness, benign prompts", "/helpfulness", false),
];

/// Writes the card of `checkpoint`, which belongs to the model `base`, into `folder`.
///
/// # Errors
/// Files of the run that are not what a run writes; a card that cannot be written.
pub(crate) fn write(folder: &Path, checkpoint: &Path, base: &str) -> Result<()> {
    let run = checkpoint.parent().and_then(Path::parent);
    let run = run.filter(|run| run.join("manifest.json").is_file());
    let manifest = match run {
        Some(run) => json(&run.join("manifest.json"))?.unwrap_or_default(),
        None => Value::Null,
    };
    let base = manifest["model"]["name"].as_str().unwrap_or(base);
    let mut text = head(folder, base);
    if let Some(run) = run {
        let summary = json(&run.join("summary.json"))?;
        let path = run.join("recipe.toml");
        let recipe = std::fs::read_to_string(&path).map_err(|source| Error::file(&path, source))?;
        // Where the run lay on this machine is nobody's business.
        let recipe: Vec<&str> = recipe
            .lines()
            .filter(|line| !line.starts_with("runs_dir"))
            .collect();
        text += &figures(summary.as_ref());
        text += &list(
            "Data",
            "The prompts, by the hashes of their files:",
            &manifest["prompts"],
        );
        text += &list(
            "Judges",
            "What judged the replies in training:",
            &manifest["judge"],
        );
        let version = manifest["version"].as_str().unwrap_or_default();
        let _ = write!(
            text,
            "\n## Recipe\n\nsaferl {version}, `saferl train` with:\n\n```toml\n{}\n```\n",
            recipe.join("\n")
        );
    }
    let path = folder.join("README.md");
    std::fs::write(&path, text).map_err(|source| Error::file(&path, source))
}

fn head(folder: &Path, base: &str) -> String {
    let known = LICENCES.iter().find(|(name, _)| *name == base);
    let licence = known.map_or(
        "license: other\nlicense_name: that-of-the-base-model".into(),
        |(_, licence)| format!("license: {licence}"),
    );
    let said = known.map_or("The base model's licence holds for these weights, too; it is not known here: look it up before you publish.".into(), |(_, licence)| {
        format!("{licence}, as the base model's.")
    });
    // A path says where the base lay on this machine, its last part what it is called.
    let base = if Path::new(base).exists() {
        Path::new(base)
            .file_name()
            .map_or_else(|| base.into(), |name| name.to_string_lossy())
    } else {
        base.into()
    };
    let name = folder
        .file_name()
        .map_or_else(|| base.clone(), |name| name.to_string_lossy());
    format!(
        "---\nbase_model: {base}\n{licence}\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- saferl\n---\n\n\
         # {name}\n\n{base}, as saferl wrote it for transformers.\n\n## Licence\n\n{said}\n"
    )
}

/// Before and after, where the run measured that.
fn figures(summary: Option<&Value>) -> String {
    let mut text = "\n## Evaluation\n\n".to_owned();
    let Some(summary) = summary else {
        text += "This run measured nothing before and after. `saferl eval` makes the table.\n";
        return text;
    };
    text += "By the judges of the training, on held-out prompts, with 95% intervals:\n\n| | before | after |\n|---|---|---|\n";
    for (name, place, share) in FIGURES {
        let [before, after] = ["before", "after"].map(|when| figure(&summary[when], place, share));
        let _ = writeln!(text, "| {name} | {before} | {after} |");
    }
    text
}

fn figure(side: &Value, place: &str, share: bool) -> String {
    let number = |value: &Value| {
        let number = value.as_f64()?;
        Some(if share {
            format!("{:.1}%", 100.0 * number)
        } else {
            format!("{number:.2}")
        })
    };
    let Some(middle) = side.pointer(place).and_then(number) else {
        return "not measured".into();
    };
    let interval = side.pointer(&format!("{place}_interval"));
    match interval.and_then(|ends| Some((number(&ends[0])?, number(&ends[1])?))) {
        Some((low, high)) => format!("{middle} [{low}, {high}]"),
        None => middle,
    }
}

/// A section that lists an object's fields; objects within it by their own.
fn list(title: &str, sentence: &str, fields: &Value) -> String {
    format!("\n## {title}\n\n{sentence}\n\n{}", lines(fields))
}

fn lines(fields: &Value) -> String {
    let line = |(name, value): (&String, &Value)| match value {
        Value::Object(_) => lines(value),
        value => format!("- {name}: {}\n", plain(value)),
    };
    fields.as_object().into_iter().flatten().map(line).collect()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A JSON file; none where there is no such file.
fn json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::Format {
                path: path.into(),
                line: Some(error.line()),
                what: format!("expected JSON: {error}"),
            }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::file(path, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(files: &[(&str, &str)], base: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("run/checkpoints/step-3");
        std::fs::create_dir_all(&checkpoint).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join("run").join(name), text).unwrap();
        }
        let output = folder.path().join("my-model");
        std::fs::create_dir(&output).unwrap();
        write(&output, &checkpoint, base).unwrap();
        std::fs::read_to_string(output.join("README.md")).unwrap()
    }

    #[test]
    fn a_run_says_what_it_was() {
        let manifest = r#"{"version": "0.1.0", "model": {"name": "smollm2-135m"}, "judge": {"guard": "built-in"},
            "prompts": {"name": "mine", "sha256": {"prompts.jsonl": "abc"}}}"#;
        let summary = r#"{"before": {"harmful": {"safety": 0.5, "safety_interval": [0.4, 0.6]}, "helpfulness": 0.25},
            "after": {"harmful": {"safety": 0.875}}}"#;
        let recipe = "runs_dir = \"/secret\"\nsteps = 3\n";
        let text = card(
            &[
                ("manifest.json", manifest),
                ("summary.json", summary),
                ("recipe.toml", recipe),
            ],
            "other",
        );
        assert!(
            text.starts_with("---\nbase_model: smollm2-135m\nlicense: apache-2.0\n"),
            "{text}"
        );
        assert!(text.contains("# my-model"), "{text}");
        assert!(
            text.contains("| safety, harmful prompts | 50.0% [40.0%, 60.0%] | 87.5% |"),
            "{text}"
        );
        assert!(
            text.contains("| helpfulness, benign prompts | 0.25 | not measured |"),
            "{text}"
        );
        assert!(
            text.contains("- prompts.jsonl: abc") && text.contains("- guard: built-in"),
            "{text}"
        );
        assert!(
            text.contains("```toml\nsteps = 3\n```") && !text.contains("secret"),
            "{text}"
        );
    }

    #[test]
    fn without_a_run_only_the_base_is_known() {
        let text = card(&[], "org/base");
        assert!(text.contains("base_model: org/base\nlicense: other"), "{text}");
        assert!(
            text.contains("look it up") && !text.contains("## Recipe"),
            "{text}"
        );
    }
}
