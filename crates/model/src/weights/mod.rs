//! Files into tensors: a checkpoint's tensors by their Hugging Face names, each taken once.
//!
//! Left out: memory mapping. It needs `unsafe` and saves little, since every tensor is converted to f32 or laid out anew
//! anyway.

pub mod gguf;
pub mod safetensors;

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use kernels::Packed;

use crate::config::Config;
use crate::source::{Source, WeightsFormat};
use crate::{Error, Result};

/// A tensor on the CPU, as its file has it.
#[derive(Debug)]
pub(crate) enum Stored {
    /// Numbers in their type.
    Tensor(Tensor),
    /// A tensor of a GGUF file.
    Blocks(gguf::Blocks),
}

impl Stored {
    fn dims(&self) -> &[usize] {
        match self {
            Self::Tensor(tensor) => tensor.dims(),
            Self::Blocks(blocks) => &blocks.shape,
        }
    }

    /// The numbers; those in blocks are dequantized to f32.
    pub(crate) fn tensor(self) -> Result<Tensor> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            Self::Blocks(blocks) => blocks.dequantize(),
        }
    }
}

/// A checkpoint's tensors on the CPU, in the types they are stored in.
///
/// Whoever builds a model takes each tensor by name and shape, then calls [`Weights::finish`], which finds what is
/// left over.
#[derive(Debug, Default)]
pub struct Weights {
    tensors: HashMap<String, Stored>,
    keeps_blocks: bool,
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
                    let tensors = safetensors::read(path)?.into_iter();
                    weights.extend(tensors.map(|(name, tensor)| (name, Stored::Tensor(tensor))))?;
                }
            }
            WeightsFormat::Gguf(path) => weights.extend(gguf::Header::read(path)?.stored(config)?)?,
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

    /// The same, to be multiplied in a GGUF file's blocks where they can be: for a model that does not train.
    #[must_use]
    pub fn keep_blocks(self) -> Self {
        Self {
            keeps_blocks: true,
            ..self
        }
    }

    fn extend(&mut self, tensors: impl IntoIterator<Item = (String, Stored)>) -> Result<()> {
        for (name, stored) in tensors {
            if self.tensors.insert(name.clone(), stored).is_some() {
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
        let stored = self
            .tensors
            .remove(name)
            .ok_or_else(|| error("no such tensor".into()))?;
        if stored.dims() != shape {
            return Err(error(format!("shape {:?}", stored.dims())));
        }
        Ok(stored.tensor()?.to_dtype(DType::F32)?)
    }

    /// Takes the matrix `name` out in its blocks, for products of type `dtype`; `None`, and it stays, where it has none of
    /// this shape or they are not kept ([`Weights::keep_blocks`]).
    pub(crate) fn take_blocks(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Option<Packed>> {
        match self.tensors.get(name) {
            Some(Stored::Blocks(blocks))
                if self.keeps_blocks && blocks.is_packable() && blocks.shape == shape =>
            {
                let packed = blocks.packed(dtype)?;
                self.tensors.remove(name);
                Ok(Some(packed))
            }
            _ => Ok(None),
        }
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
            Some((name, stored)) => Err(Error::Tensor {
                name: name.clone(),
                expected: "no such tensor in this model".into(),
                found: format!("shape {:?}", stored.dims()),
            }),
        }
    }
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<T: IntoIterator<Item = (String, Tensor)>>(tensors: T) -> Self {
        let tensors = tensors.into_iter();
        Self {
            tensors: tensors
                .map(|(name, tensor)| (name, Stored::Tensor(tensor)))
                .collect(),
            keeps_blocks: false,
        }
    }
}
