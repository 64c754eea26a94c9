//! Files into tensors: a checkpoint's tensors by their Hugging Face names, each taken once.
//!
//! Left out: memory mapping. It needs `unsafe` and saves little, since every tensor is converted to f32 anyway.

pub mod gguf;
pub mod safetensors;

use std::collections::HashMap;

use candle_core::{DType, Tensor};

use crate::config::Config;
use crate::source::{Source, WeightsFormat};
use crate::{Error, Result};

/// A checkpoint's tensors on the CPU, in the types they are stored in (GGUF: already dequantized to f32).
///
/// Whoever builds a model takes each tensor by name and shape, then calls [`Weights::finish`], which finds what is
/// left over.
#[derive(Debug, Default)]
pub struct Weights {
    tensors: HashMap<String, Tensor>,
}

impl Weights {
    /// Reads all tensors of `source`; a file's buffer is freed before the next file is read.
    ///
    /// # Errors
    /// Files that cannot be read, are not what their format promises, or hold the same tensor twice.
    pub fn load(source: &Source, config: &Config) -> Result<Self> {
        let mut weights = Self::default();
        match &source.weights {
            WeightsFormat::Safetensors(paths) => {
                for path in paths {
                    weights.extend(safetensors::read(path)?)?;
                }
            }
            WeightsFormat::Gguf(path) => weights.extend(gguf::Header::read(path)?.tensors(config)?)?,
            WeightsFormat::None => {
                return Err(Error::Source {
                    name: source.name.clone(),
                    what: "it has a tokenizer but no weights (no *.safetensors, no *.gguf)".into(),
                    hint: None,
                });
            }
        }
        Ok(weights)
    }

    fn extend(&mut self, tensors: Vec<(String, Tensor)>) -> Result<()> {
        for (name, tensor) in tensors {
            if self.tensors.insert(name.clone(), tensor).is_some() {
                let (expected, found) = ("one tensor of this name".into(), "two".into());
                return Err(Error::Tensor {
                    name,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Whether a tensor of this name is there and not yet taken.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Takes the tensor `name` out, in f32.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is missing or its shape is not `shape`.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let error = |found| Error::Tensor {
            name: name.into(),
            expected: format!("shape {shape:?}"),
            found,
        };
        let tensor = self
            .tensors
            .remove(name)
            .ok_or_else(|| error("no such tensor".into()))?;
        if tensor.dims() != shape {
            return Err(error(format!("shape {:?}", tensor.dims())));
        }
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// Ends the taking: nothing may be left, save tensors known to be redundant.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the first tensor left over, by name.
    pub fn finish(self, config: &Config) -> Result<()> {
        // Rotary frequencies are computed; a tied head is the embedding, though some files hold it again.
        let redundant =
            |name: &str| name.ends_with("rotary_emb.inv_freq") || (config.tied && name == "lm_head.weight");
        match self
            .tensors
            .iter()
            .filter(|(name, _)| !redundant(name))
            .min_by_key(|(name, _)| name.as_str())
        {
            None => Ok(()),
            Some((name, tensor)) => Err(Error::Tensor {
                name: name.clone(),
                expected: "no such tensor in this model".into(),
                found: format!("shape {:?}", tensor.dims()),
            }),
        }
    }
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<T: IntoIterator<Item = (String, Tensor)>>(tensors: T) -> Self {
        Self {
            tensors: tensors.into_iter().collect(),
        }
    }
}
