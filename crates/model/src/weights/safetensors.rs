//! Safetensors files: read whole, written tensor by tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use ::safetensors::{Dtype, SafeTensors};
use candle_core::{DType, Device, Tensor};
use half::bf16;
use serde_json::{Map, json};

use crate::{Error, Result};

/// Reads every tensor of the file at `path` to the CPU, in its stored type (F32, F16, BF16 or F64).
///
/// # Errors
/// A file that cannot be read; a header that is truncated, malformed or at odds with the file's length; a tensor of
/// another type.
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let bytes = std::fs::read(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })?;
    read_bytes(&bytes, path)
}

/// Reads every tensor out of `bytes`; `path` stands in the errors.
pub fn read_bytes(bytes: &[u8], path: &Path) -> Result<Vec<(String, Tensor)>> {
    // `deserialize` holds every offset and shape against the buffer's length before anything is allocated.
    let file = SafeTensors::deserialize(bytes).map_err(|error| Error::Format {
        path: path.into(),
        what: format!("expected safetensors: {error}"),
    })?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.iter() {
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            other => {
                let (expected, found) = ("type F32, F16, BF16 or F64".into(), format!("{other:?}"));
                return Err(Error::Tensor {
                    name: name.into(),
                    expected,
                    found,
                });
            }
        };
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
        tensors.push((name.to_owned(), tensor));
    }
    Ok(tensors)
}

/// Writes `tensors` to `path` as `dtype`, F32 or BF16, one tensor in memory at a time.
///
/// # Errors
/// Another type, or a file that cannot be written.
pub fn write(path: &Path, tensors: &[(String, Tensor)], dtype: DType) -> Result<()> {
    let label = match dtype {
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        other => {
            return Err(Error::Request(format!(
                "weights are saved as f32 or bf16, not as {other:?}"
            )));
        }
    };
    let tensors: BTreeMap<_, _> = tensors.iter().map(|(name, tensor)| (name, tensor)).collect();
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for (name, tensor) in &tensors {
        let start = end;
        end += tensor.elem_count() * dtype.size_in_bytes();
        let entry = json!({"dtype": label, "shape": tensor.dims(), "data_offsets": [start, end]});
        header.insert((*name).clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    // Padding keeps the data aligned to 8 bytes, as readers that map the file like it.
    header.extend(std::iter::repeat_n(
        ' ',
        header.len().next_multiple_of(8) - header.len(),
    ));

    let file_error = |source| Error::File {
        path: path.into(),
        source,
    };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(file_error)?);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .map_err(file_error)?;
    file.write_all(header.as_bytes()).map_err(file_error)?;
    for tensor in tensors.values() {
        file.write_all(&little_endian_bytes(tensor, dtype)?)
            .map_err(file_error)?;
    }
    file.flush().map_err(file_error)
}

fn little_endian_bytes(tensor: &Tensor, dtype: DType) -> Result<Vec<u8>> {
    let flat = tensor.to_device(&Device::Cpu)?.to_dtype(dtype)?.flatten_all()?;
    Ok(match dtype {
        DType::BF16 => flat
            .to_vec1::<bf16>()?
            .into_iter()
            .flat_map(bf16::to_le_bytes)
            .collect(),
        _ => flat
            .to_vec1::<f32>()?
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect(),
    })
}
