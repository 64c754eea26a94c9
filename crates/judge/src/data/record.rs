//! CSV, JSON and JSONL files as records of named fields that know where they stand.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// One line of a CSV or JSONL file, or one element of a JSON list.
#[derive(Debug, Clone)]
pub struct Record {
    path: PathBuf,
    line: usize,
    fields: Map<String, Value>,
}

impl Record {
    /// The text of a field; a number is its digits, null and absence are nothing.
    pub fn optional(&self, name: &str) -> Option<String> {
        match self.fields.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }

    /// The text of a field that must be there.
    ///
    /// # Errors
    /// Names the file, the line and the field.
    pub fn text(&self, name: &str) -> Result<String> {
        self.optional(name)
            .ok_or_else(|| self.wrong(format!("expected a field `{name}`, found none")))
    }

    /// A field that must be a number, or text that spells one.
    ///
    /// # Errors
    /// Names the file, the line and the field.
    pub fn number(&self, name: &str) -> Result<f64> {
        let text = self.text(name)?;
        text.trim()
            .parse()
            .map_err(|_| self.wrong(format!("`{name}`: expected a number, found `{text}`")))
    }

    /// A field of any JSON shape.
    ///
    /// # Errors
    /// Names the file, the line and the field where the value is not of the type.
    pub fn value<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| self.wrong(format!("`{name}`: {error}"))),
        }
    }

    /// An error at this record.
    pub fn wrong(&self, what: impl Into<String>) -> Error {
        Error::Format {
            path: self.path.clone(),
            line: self.line,
            what: what.into(),
        }
    }
}

/// Reads one file by its ending: `.csv`, `.jsonl`, or `.json`, whose records are the list itself or the one at `list`.
///
/// # Errors
/// When the file cannot be read or is not what its ending says.
pub fn read(path: &Path, list: Option<&str>) -> Result<Vec<Record>> {
    let bytes = std::fs::read(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })?;
    let wrong = |line: usize, what: String| Error::Format {
        path: path.into(),
        line,
        what,
    };
    let record = |line: usize, value: Value| match value {
        Value::Object(fields) => Ok(Record {
            path: path.into(),
            line,
            fields,
        }),
        _ => Err(wrong(line, "expected a JSON object".into())),
    };
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("csv") => read_csv(path, &bytes),
        Some("jsonl") => String::from_utf8_lossy(&bytes)
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(index, line)| {
                let value =
                    serde_json::from_str(line).map_err(|error| wrong(index + 1, error.to_string()))?;
                record(index + 1, value)
            })
            .collect(),
        Some("json") => {
            let mut whole: Value =
                serde_json::from_slice(&bytes).map_err(|error| wrong(error.line(), error.to_string()))?;
            let rows = match list {
                None => Some(whole.take()),
                Some(list) => whole.get_mut(list).map(Value::take),
            };
            let Some(Value::Array(rows)) = rows else {
                return Err(wrong(
                    1,
                    format!(
                        "expected a list{}",
                        list.map_or(String::new(), |list| format!(" at `{list}`"))
                    ),
                ));
            };
            rows.into_iter()
                .enumerate()
                .map(|(index, value)| record(index + 1, value))
                .collect()
        }
        _ => Err(wrong(
            1,
            "expected a file that ends in .csv, .jsonl or .json".into(),
        )),
    }
}

/// Reads a file, or every file with that ending below a folder, in the order of their names.
///
/// # Errors
/// As [`read`]; also a folder without such files.
pub fn read_all(path: &Path, ending: &str, list: Option<&str>) -> Result<Vec<(PathBuf, Vec<Record>)>> {
    let mut paths = Vec::new();
    collect(path, ending, &mut paths)?;
    if paths.is_empty() {
        return Err(Error::Format {
            path: path.into(),
            line: 1,
            what: format!("expected .{ending} files, found none"),
        });
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| read(&path, list).map(|records| (path, records)))
        .collect()
}

fn collect(path: &Path, ending: &str, paths: &mut Vec<PathBuf>) -> Result<()> {
    let at = |source| Error::File {
        path: path.into(),
        source,
    };
    if std::fs::metadata(path).map_err(at)?.is_file() {
        paths.push(path.into());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(at)? {
        let path = entry.map_err(at)?.path();
        if path.is_dir() || path.extension().is_some_and(|found| found == ending) {
            collect(&path, ending, paths)?;
        }
    }
    Ok(())
}

/// CSV with a header; lines that begin with `#` are comments, and text that is not UTF-8 keeps what it can.
fn read_csv(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .comment(Some(b'#'))
        .from_reader(bytes);
    let wrong = |error: csv::Error| {
        let line = error.position().map_or(1, |position| position.line() as usize);
        Error::Format {
            path: path.into(),
            line,
            what: error.to_string(),
        }
    };
    let header: Vec<String> = reader
        .byte_headers()
        .map_err(wrong)?
        .iter()
        .map(|name| String::from_utf8_lossy(name).trim().into())
        .collect();
    let mut records = Vec::new();
    for row in reader.byte_records() {
        let row = row.map_err(wrong)?;
        let line = row.position().map_or(0, |position| position.line() as usize);
        let fields = header
            .iter()
            .cloned()
            .zip(
                row.iter()
                    .map(|field| Value::String(String::from_utf8_lossy(field).into_owned())),
            )
            .collect();
        records.push(Record {
            path: path.into(),
            line,
            fields,
        });
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn reads_csv_with_comments_and_lines_within_fields() {
        let (_folder, path) = file("b.csv", "# version,,\nprompt,score\n\"a\nb\",1\nc,high\n");
        let records = read(&path, None).unwrap();
        assert_eq!(records[0].text("prompt").unwrap(), "a\nb");
        assert_eq!(records[0].number("score").unwrap(), 1.0);
        let error = records[1].number("score").unwrap_err().to_string();
        assert!(
            error.contains("b.csv") && error.contains("line or row 5") && error.contains("`high`"),
            "{error}"
        );
        assert!(
            records[1]
                .text("reply")
                .unwrap_err()
                .to_string()
                .contains("`reply`")
        );
    }

    #[test]
    fn reads_json_lists_and_lines_and_names_the_line_of_a_fault() {
        let (_a, path) = file("a.json", r#"{"rows": [{"n": 1}, {"n": null}]}"#);
        let records = read(&path, Some("rows")).unwrap();
        assert_eq!((records.len(), records[1].optional("n")), (2, None));
        assert!(
            read(&path, None)
                .unwrap_err()
                .to_string()
                .contains("expected a list")
        );
        let (_b, path) = file("b.jsonl", "{\"n\": 1}\n\n{\"n\": \n");
        assert!(read(&path, None).unwrap_err().to_string().contains("row 3"));
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_names() {
        let (folder, _) = file("b.json", "[{}]");
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/z.json"), "[]").unwrap();
        std::fs::write(folder.path().join("note.txt"), "x").unwrap();
        let files = read_all(folder.path(), "json", None).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|(path, _)| path.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["z.json", "b.json"]);
        assert!(read_all(folder.path(), "csv", None).is_err());
        assert!(matches!(
            read_all(Path::new("/no/such"), "csv", None),
            Err(Error::File { .. })
        ));
    }
}
