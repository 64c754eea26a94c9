//! Rows out of files: CSV, TSV, JSON, JSONL (gzipped too) and Parquet, by the file's name.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Longest text that a gzipped file may unpack to.
const LONGEST: u64 = 1 << 32;

/// A row and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    path: PathBuf,
    line: usize,
    /// Its number, and its file where the task has several.
    place: String,
    fields: Map<String, Value>,
}

impl Row {
    /// An error about this row.
    pub(crate) fn wrong(&self, what: &str) -> Error {
        Error::Format {
            path: self.path.clone(),
            line: Some(self.line),
            what: what.into(),
        }
    }

    /// A column's value, by its name in any case.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.fields
            .iter()
            .find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null())
            .map(|(_, value)| value)
    }

    /// The text of a column that may be missing or empty.
    pub(crate) fn optional(&self, name: &str) -> Option<&str> {
        let text = self.value(name)?.as_str()?;
        (!text.trim().is_empty()).then_some(text)
    }

    /// The text of the first of these columns that the row has.
    pub(crate) fn text(&self, names: &[&str]) -> Result<&str> {
        names.iter().find_map(|name| self.optional(name)).ok_or_else(|| {
            let columns: Vec<&str> = self.fields.keys().map(String::as_str).collect();
            self.wrong(&format!(
                "expected text in column {}, found columns {}",
                names.join(" or "),
                columns.join(", ")
            ))
        })
    }

    /// The text or number of the first of these columns, or else the row's place.
    pub(crate) fn id(&self, names: &[&str]) -> String {
        let found = names.iter().find_map(|name| match self.value(name)? {
            Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        found.unwrap_or_else(|| self.place.clone())
    }

    /// The row's number in its file, from 1, after the file's name where the task has several files.
    pub(crate) fn place(&self) -> String {
        self.place.clone()
    }

    /// The name of the row's file, and then that of the folder which holds it.
    pub(crate) fn file_names(&self) -> impl Iterator<Item = &str> {
        let names = self.path.iter().rev().take(2);
        names.filter_map(|name| name.to_str())
    }

    /// The row as one of a file among several.
    pub(crate) fn below(self, file: &str) -> Self {
        Self {
            place: format!("{file}:{}", self.line),
            ..self
        }
    }

    /// A row for tests.
    #[cfg(test)]
    pub(crate) fn of(fields: Value) -> Self {
        let Value::Object(fields) = fields else {
            panic!("expected an object")
        };
        Self {
            path: "test".into(),
            line: 1,
            place: "1".into(),
            fields,
        }
    }
}

/// Reads a file's rows.
///
/// # Errors
/// A file that is missing, of no known kind, or broken, with the row.
pub(crate) fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let kind = name.strip_suffix(".gz").unwrap_or(name);
    let extension = kind.rsplit_once('.').map_or("", |(_, extension)| extension);
    let broken = |what: String| Error::Format {
        path: path.into(),
        line: None,
        what,
    };
    let rows = match extension {
        "csv" => separated(&text(path)?, b','),
        "tsv" => separated(&text(path)?, b'\t'),
        "jsonl" => jsonl(&text(path)?),
        "json" => json(&text(path)?),
        "parquet" => model::parquet_file::rows(path)?.into_iter().map(Ok).collect(),
        _ => {
            return Err(broken(
                "expected .csv, .tsv, .json, .jsonl, .jsonl.gz or .parquet".into(),
            ));
        }
    };
    rows.into_iter()
        .enumerate()
        .map(|(index, fields)| {
            let line = index + 1;
            let fields = fields.map_err(|what| Error::Format {
                path: path.into(),
                line: Some(line),
                what,
            })?;
            Ok(Row {
                path: path.into(),
                line,
                place: line.to_string(),
                fields,
            })
        })
        .collect()
}

type Fields = std::result::Result<Map<String, Value>, String>;

fn text(path: &Path) -> Result<String> {
    let failed = |source| Error::file(path, source);
    let file = File::open(path).map_err(failed)?;
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        GzDecoder::new(file).take(LONGEST).read_to_string(&mut text)
    } else {
        let mut file = file;
        file.read_to_string(&mut text)
    }
    .map_err(failed)?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

fn separated(text: &str, separator: u8) -> Vec<Fields> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator)
        .from_reader(text.as_bytes());
    let headers = match reader.headers() {
        Ok(headers) => headers.clone(),
        Err(error) => return vec![Err(error.to_string())],
    };
    let fields = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(|error| error.to_string())?;
        let cells = headers.iter().zip(record.iter());
        Ok(cells
            .map(|(name, cell)| (name.trim().to_owned(), Value::from(cell)))
            .collect())
    };
    reader.records().map(fields).collect()
}

fn jsonl(text: &str) -> Vec<Fields> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).map_err(|error| format!("expected a JSON object: {error}")))
        .collect()
}

fn json(text: &str) -> Vec<Fields> {
    match serde_json::from_str::<Vec<Value>>(text) {
        Err(error) => vec![Err(format!("expected a JSON list of objects: {error}"))],
        Ok(rows) => rows
            .into_iter()
            .map(|row| match row {
                Value::Object(fields) => Ok(fields),
                other => Err(format!("expected a JSON object, found {other}")),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn every_format_gives_the_same_row() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"{\"prompt\": \"a, b\", \"n\": 1}\n").unwrap();
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("a.csv", b"\xef\xbb\xbfPrompt,n\n\"a, b\",1\n".to_vec()),
            ("a.tsv", b"prompt\tn\na, b\t1\n".to_vec()),
            ("a.jsonl", b"{\"prompt\": \"a, b\", \"n\": 1}\n\n".to_vec()),
            ("a.json", b"[{\"prompt\": \"a, b\", \"n\": 1}]".to_vec()),
            ("a.jsonl.gz", gz.finish().unwrap()),
        ];
        for (name, bytes) in cases {
            let (_folder, path) = file(name, &bytes);
            let rows = read_rows(&path).unwrap();
            assert_eq!(
                (rows.len(), rows[0].text(&["prompt"]).unwrap()),
                (1, "a, b"),
                "{name}"
            );
            assert_eq!(rows[0].id(&["n"]), "1", "{name}");
        }
    }

    #[test]
    fn parquet_lists_are_lists() {
        use parquet::basic::Compression;
        use parquet::data_type::{ByteArray, ByteArrayType};
        use parquet::file::properties::WriterProperties;
        use parquet::file::writer::SerializedFileWriter;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let schema = "message m { required binary question (utf8); required group options (LIST) { repeated group \
                      list { required binary element (utf8); } } }";
        let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
        // As the hub's own files are compressed.
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        let properties = std::sync::Arc::new(properties.build());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&[ByteArray::from("q")], None, None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values = [ByteArray::from("x"), ByteArray::from("y")];
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&[1, 1]), Some(&[0, 1]))
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let rows = read_rows(&path).unwrap();
        assert_eq!(rows[0].text(&["question"]).unwrap(), "q");
        assert_eq!(rows[0].value("options"), Some(&serde_json::json!(["x", "y"])));
    }

    #[test]
    fn compressed_parquet_is_read() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/parquet");
        for file in ["zstd.parquet", "gzip.parquet"] {
            let rows = read_rows(&goldens.join(file)).unwrap();
            assert_eq!(rows.len(), 40, "{file}");
            assert_eq!(
                rows[7].text(&["prompt"]).unwrap(),
                "Question 7: what is 7 times 7?"
            );
            assert_eq!(rows[7].value("options"), Some(&serde_json::json!(["7", "49"])));
            assert_eq!(
                (rows[7].optional("note"), rows[8].optional("note")),
                (None, Some("even"))
            );
        }
        // Cut off, as by a download that broke.
        let whole = std::fs::read(goldens.join("zstd.parquet")).unwrap();
        let (_folder, path) = self::file("a.parquet", &whole[..whole.len() / 2]);
        assert!(read_rows(&path).unwrap_err().to_string().contains("a.parquet"));
    }

    #[test]
    fn broken_rows_are_named() {
        let cases: [(&str, &[u8], &str); 4] = [
            ("a.jsonl", b"{}\n{\n", "line or row 2"),
            ("a.json", b"{}", "JSON list"),
            ("a.csv", b"a,b\n1\n", "line or row 1"),
            ("a.xlsx", b"", "expected .csv"),
        ];
        for (name, bytes, expected) in cases {
            let (_folder, path) = file(name, bytes);
            let error = read_rows(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        let (_folder, path) = file("a.csv", b"a,b\n1,2\n");
        let error = read_rows(&path).unwrap()[0]
            .text(&["prompt"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("column prompt, found columns a, b"), "{error}");
    }
}
