//! A GGUF file on its way to the disk: version 3, little-endian, tensors aligned to 32 bytes.
//!
//! The header comes first, since every tensor's size follows from its shape and type; then one tensor after another, so
//! that no more than one is held encoded (candle's writer wants all of them at once, beside the model). The file is written
//! beside its final name, flushed to the disk and renamed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

use crate::{Error, Result};

const ALIGNMENT: usize = 32;
/// The type number of a text, which an empty array is taken to be of.
const TEXT: u32 = 8;

/// A tensor as the header lists it.
#[derive(Debug)]
pub(super) struct Entry {
    /// GGUF's name.
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// The type it is stored in; the last dimension fills whole blocks.
    pub(super) kind: GgmlDType,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.kind.block_size() * self.kind.type_size()
    }
}

/// Writes the file at `path`; `encode` gives the bytes of the entry at an index.
///
/// # Errors
/// Whatever `encode` fails with, and a file that cannot be written (a full disk, say): then nothing is left behind.
pub(super) fn write(
    path: &Path,
    metadata: &[(String, Value)],
    entries: &[Entry],
    encode: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    let partial = partial(path)?;
    let written = write_partial(&partial, metadata, entries, encode).and_then(|()| {
        std::fs::rename(&partial, path).map_err(|source| Error::File {
            path: path.into(),
            source,
        })
    });
    if written.is_err() {
        // A full disk should at least get back what this attempt took.
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// The name beside `path` that the file has until it is whole.
fn partial(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::File {
        path: path.into(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "expected a file's name"),
    })?;
    Ok(path.with_file_name(format!(".{}.partial", name.to_string_lossy())))
}

fn write_partial(
    path: &Path,
    metadata: &[(String, Value)],
    entries: &[Entry],
    mut encode: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    let failed = |source| Error::File {
        path: path.into(),
        source,
    };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
    file.write_all(&header(metadata, entries)).map_err(failed)?;
    for (index, entry) in entries.iter().enumerate() {
        let mut bytes = encode(index)?;
        if bytes.len() != entry.bytes() {
            return Err(Error::Tensor {
                name: entry.name.clone(),
                expected: format!("{} bytes", entry.bytes()),
                found: bytes.len().to_string(),
            });
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        file.write_all(&bytes).map_err(failed)?;
    }
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)
}

fn header(metadata: &[(String, Value)], entries: &[Entry]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut bytes, key);
        bytes.extend(type_number(value).to_le_bytes());
        put_value(&mut bytes, value);
    }
    let mut offset = 0;
    for entry in entries {
        put_text(&mut bytes, &entry.name);
        bytes.extend((entry.shape.len() as u32).to_le_bytes());
        for &size in entry.shape.iter().rev() {
            bytes.extend((size as u64).to_le_bytes());
        }
        bytes.extend(tensor_type_number(entry.kind).to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += entry.bytes().next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => bytes.push(*value),
        Value::I8(value) => bytes.extend(value.to_le_bytes()),
        Value::U16(value) => bytes.extend(value.to_le_bytes()),
        Value::I16(value) => bytes.extend(value.to_le_bytes()),
        Value::U32(value) => bytes.extend(value.to_le_bytes()),
        Value::I32(value) => bytes.extend(value.to_le_bytes()),
        Value::U64(value) => bytes.extend(value.to_le_bytes()),
        Value::I64(value) => bytes.extend(value.to_le_bytes()),
        Value::F32(value) => bytes.extend(value.to_le_bytes()),
        Value::F64(value) => bytes.extend(value.to_le_bytes()),
        Value::Bool(value) => bytes.push((*value).into()),
        Value::String(text) => put_text(bytes, text),
        Value::Array(list) => {
            bytes.extend(list.first().map_or(TEXT, type_number).to_le_bytes());
            bytes.extend((list.len() as u64).to_le_bytes());
            for value in list {
                put_value(bytes, value);
            }
        }
    }
}

fn type_number(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => TEXT,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn tensor_type_number(kind: GgmlDType) -> u32 {
    match kind {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q8_1 => 9,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::Q8K => 15,
        GgmlDType::BF16 => 30,
    }
}
