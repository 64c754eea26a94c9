//! The header of a GGUF file, byte by byte.
//!
//! Every count, length and offset is held against the bytes that are left in the file before anything is allocated, so a
//! hostile header ends in an error.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

use crate::{Error, Result};

/// Where a tensor lies in the file, and what it is.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Outermost dimension first, as candle has it (the file has it last).
    pub(super) shape: Vec<usize>,
    pub(super) dtype: GgmlDType,
    /// Bytes from the start of the data.
    pub(super) offset: u64,
}

/// The header of a GGUF file: its metadata and the list of its tensors.
#[derive(Debug)]
pub struct Header {
    pub(super) path: PathBuf,
    /// The metadata by key, tokenizer and chat template included.
    pub metadata: HashMap<String, Value>,
    pub(super) entries: HashMap<String, Entry>,
    data_start: u64,
    pub(super) file_length: u64,
}

impl Header {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is not GGUF version 2 or 3, or ends before its header says; a tensor of a type
    /// other than F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::File {
            path: path.into(),
            source,
        })?;
        let file_length = file
            .metadata()
            .map_err(|source| Error::File {
                path: path.into(),
                source,
            })?
            .len();
        Bytes {
            path: path.into(),
            input: BufReader::new(file),
            position: 0,
            length: file_length,
        }
        .header()
    }

    /// First byte and length of a tensor's data, held against the file's length.
    pub(super) fn extent(&self, name: &str, entry: &Entry) -> Result<(u64, u64)> {
        let block = entry.dtype.block_size();
        let elements = entry
            .shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size));
        let bytes = elements
            .filter(|_| entry.shape.last().unwrap_or(&1).is_multiple_of(block))
            .and_then(|elements| (elements / block).checked_mul(entry.dtype.type_size()));
        let start = self.data_start.checked_add(entry.offset);
        start
            .zip(bytes.map(|bytes| bytes as u64))
            .filter(|&(start, bytes)| {
                start
                    .checked_add(bytes)
                    .is_some_and(|end| end <= self.file_length)
            })
            .ok_or_else(|| Error::Tensor {
                name: name.into(),
                expected: format!(
                    "data that lies within the file's {} bytes, in rows of whole blocks of {block}",
                    self.file_length
                ),
                found: format!(
                    "shape {:?} of {:?} at offset {}",
                    entry.shape, entry.dtype, entry.offset
                ),
            })
    }

    /// The text under a metadata key.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The whole number under a metadata key, of whatever width it was stored in.
    pub fn optional_count(&self, key: &str) -> Option<usize> {
        match *self.metadata.get(key)? {
            Value::U8(count) => Some(count.into()),
            Value::U16(count) => Some(count.into()),
            Value::U32(count) => usize::try_from(count).ok(),
            Value::U64(count) => usize::try_from(count).ok(),
            Value::I32(count) => usize::try_from(count).ok(),
            Value::I64(count) => usize::try_from(count).ok(),
            _ => None,
        }
    }

    pub(super) fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)
            .ok_or_else(|| self.wrong(key, "a whole number", None))
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        match *self.metadata.get(key)? {
            Value::F32(number) => Some(number.into()),
            Value::F64(number) => Some(number),
            _ => None,
        }
    }

    pub(super) fn wrong(&self, key: &str, expected: &str, found: Option<&str>) -> Error {
        let found = found.unwrap_or("nothing of that kind");
        Error::Format {
            path: self.path.clone(),
            what: format!("key `{key}`: expected {expected}, found {found}"),
        }
    }
}

/// A file's bytes in order, counted against its length.
struct Bytes {
    path: PathBuf,
    input: BufReader<File>,
    position: u64,
    length: u64,
}

impl Bytes {
    fn error(&self, what: String) -> Error {
        Error::Format {
            path: self.path.clone(),
            what: format!("GGUF header, byte {}: {what}", self.position),
        }
    }

    /// Refuses a count of things, each at least `size` bytes, that the rest of the file cannot hold.
    fn fits(&self, count: u64, size: u64, thing: &str) -> Result<usize> {
        let left = self.length - self.position;
        match count.checked_mul(size) {
            Some(bytes) if bytes <= left => Ok(count as usize),
            _ => Err(self.error(format!(
                "{count} {thing} of at least {size} bytes do not fit in the {left} left"
            ))),
        }
    }

    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.fits(count, 1, "bytes")?];
        self.input.read_exact(&mut bytes).map_err(|source| Error::File {
            path: self.path.clone(),
            source,
        })?;
        self.position += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(&self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        // Some vocabularies hold pieces of characters; they must not make the file unreadable.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.take(1)? != [0]),
            8 => Value::String(self.string()?),
            9 => self.values(depth)?,
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(self.error(format!("expected a value type from 0 to 12, found {other}"))),
        })
    }

    fn values(&mut self, depth: usize) -> Result<Value> {
        // Arrays of arrays are legal; a chain of them would overflow the stack.
        if depth > 4 {
            return Err(self.error("arrays nest more than four deep".into()));
        }
        let kind = self.u32()?;
        let count = self.u64()?;
        let size = match kind {
            9 => 12,
            8 | 10..=12 => 8,
            4..=6 => 4,
            2 | 3 => 2,
            _ => 1,
        };
        let count = self.fits(count, size, "array elements")?;
        (0..count)
            .map(|_| self.value(kind, depth + 1))
            .collect::<Result<_>>()
            .map(Value::Array)
    }

    fn entry(&mut self) -> Result<(String, Entry)> {
        let name = self.string()?;
        let rank = self.u32()?;
        if rank > 4 {
            return Err(self.error(format!(
                "tensor {name}: expected at most 4 dimensions, found {rank}"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let size = self.u64()?;
            shape.push(
                usize::try_from(size).map_err(|_| self.error(format!("tensor {name}: dimension {size}")))?,
            );
        }
        shape.reverse();
        let dtype = match self.u32()? {
            0 => GgmlDType::F32,
            1 => GgmlDType::F16,
            2 => GgmlDType::Q4_0,
            3 => GgmlDType::Q4_1,
            6 => GgmlDType::Q5_0,
            7 => GgmlDType::Q5_1,
            8 => GgmlDType::Q8_0,
            12 => GgmlDType::Q4K,
            13 => GgmlDType::Q5K,
            14 => GgmlDType::Q6K,
            30 => GgmlDType::BF16,
            other => {
                let expected = "type F32 (0), F16 (1), Q4_0 (2), Q4_1 (3), Q5_0 (6), Q5_1 (7), Q8_0 (8), Q4_K (12), \
                                Q5_K (13), Q6_K (14) or BF16 (30)";
                return Err(Error::Tensor {
                    name,
                    expected: expected.into(),
                    found: format!("type {other}"),
                });
            }
        };
        let offset = self.u64()?;
        Ok((name, Entry { shape, dtype, offset }))
    }

    fn header(mut self) -> Result<Header> {
        if self.length < 24 || self.array()? != *b"GGUF" {
            return Err(self.error("expected the four letters GGUF".into()));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(self.error(format!("expected version 2 or 3, found {version}")));
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        // The least a pair can be: an empty key, a type, a byte; the least a tensor: an empty name, a rank, a type,
        // an offset.
        let pairs = self.fits(pairs, 13, "metadata pairs")?;
        let tensors = self.fits(tensors, 24, "tensors")?;
        let mut metadata = HashMap::new();
        for _ in 0..pairs {
            let key = self.string()?;
            let kind = self.u32()?;
            let value = self.value(kind, 0)?;
            metadata.insert(key, value);
        }
        let mut entries = HashMap::new();
        for _ in 0..tensors {
            let (name, entry) = self.entry()?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(self.error(format!("tensor {name} is there twice")));
            }
        }
        let mut header = Header {
            path: self.path.clone(),
            metadata,
            entries,
            data_start: 0,
            file_length: self.length,
        };
        let alignment = header.optional_count("general.alignment").unwrap_or(32) as u64;
        if !(1..=1 << 20).contains(&alignment) {
            return Err(self.error(format!(
                "key `general.alignment`: expected 1 to 2^20, found {alignment}"
            )));
        }
        header.data_start = self.position.next_multiple_of(alignment);
        Ok(header)
    }
}
