//! Rows of a Parquet file, as datasets on the hub have them.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Reads a Parquet file's rows, each by its columns' names.
///
/// # Errors
/// A file that cannot be read; one that is no Parquet file or broken, with the row where it is known.
///
/// ```
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens/parquet/zstd.parquet");
/// let rows = model::parquet_file::rows(path.as_ref())?;
/// assert_eq!(rows[7]["prompt"], "Question 7: what is 7 times 7?");
/// # Ok::<(), model::Error>(())
/// ```
pub fn rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    // The library checks much, and panics at what it did not check.
    catch_unwind(AssertUnwindSafe(|| read(path))).unwrap_or_else(|_| {
        Err(Error::Format {
            path: path.into(),
            what: "expected a Parquet file, found a broken one".into(),
        })
    })
}

fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let file = File::open(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })?;
    let broken = |what: String| Error::Format {
        path: path.into(),
        what,
    };
    let reader = SerializedFileReader::new(file).map_err(|error| broken(error.to_string()))?;
    let rows = reader
        .get_row_iter(None)
        .map_err(|error| broken(error.to_string()))?;
    rows.enumerate()
        .map(|(index, row)| {
            let row = row.map_err(|error| broken(format!("row {}: {error}", index + 1)))?;
            let columns = row.get_column_iter();
            Ok(columns
                .map(|(name, field)| (name.clone(), value(field)))
                .collect())
        })
        .collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float(value) => Value::from(*value),
        Field::Double(value) => Value::from(*value),
        Field::Str(text) => Value::from(text.as_str()),
        // Writers that leave out the string annotation.
        Field::Bytes(bytes) => bytes.as_utf8().map_or(Value::Null, Value::from),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        other => Value::from(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../goldens/parquet")
            .join(name)
    }

    #[test]
    fn a_wrong_byte_is_an_error_or_another_value() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let (mut read, mut refused) = (0, 0);
        for name in ["zstd.parquet", "gzip.parquet"] {
            let whole = std::fs::read(golden(name)).unwrap();
            for place in 0..whole.len() {
                for wrong in [0x00, 0x7f, 0xff, whole[place] ^ 1, whole[place] ^ 0x80] {
                    let mut bytes = whole.clone();
                    bytes[place] = wrong;
                    std::fs::write(&path, bytes).unwrap();
                    match rows(&path) {
                        Ok(_) => read += 1,
                        Err(error) => {
                            assert!(error.to_string().contains("a.parquet"), "{error}");
                            refused += 1;
                        }
                    }
                }
            }
        }
        assert!(read > 0 && refused > 0, "{read} {refused}");
    }

    #[test]
    fn a_cut_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let whole = std::fs::read(golden("zstd.parquet")).unwrap();
        for length in [0, 1, 7, 8, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(rows(&path).is_err(), "{length}");
        }
        assert!(rows(&folder.path().join("none.parquet")).is_err());
    }
}
