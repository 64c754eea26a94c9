//! The weights of a decoder by name: listed, made to train, frozen again, written to a folder.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor, Var};

use crate::decoder::Decoder;
use crate::linear::{Linear, Weight};
use crate::weights::safetensors;
use crate::{Error, Result};

impl Decoder {
    /// Every weight, adapters apart, with its Hugging Face name.
    ///
    /// # Errors
    /// A failing tensor operation.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let mut copy = self.clone();
        copy.slots()
            .into_iter()
            .map(|(name, slot)| Ok((name, slot.tensor()?)))
            .collect()
    }

    /// Turns every weight into a variable, held in f32, and returns the variables by name. Clones made before keep
    /// the old weights; clones made after share the variables.
    pub fn make_trainable(&mut self) -> Result<Vec<(String, Var)>> {
        let mut variables = Vec::new();
        for (name, slot) in self.slots() {
            let variable = Var::from_tensor(&slot.tensor()?.to_dtype(DType::F32)?)?;
            slot.set(variable.as_tensor().clone());
            variables.push((name, variable));
        }
        self.packed_head = Arc::default();
        Ok(variables)
    }

    /// The same model for inference, recording no gradient. What trains is taken as it is now: after an update it is
    /// to be made anew. Weights that do not train are shared.
    pub fn frozen(&self) -> Result<Self> {
        let mut copy = self.clone();
        let dtype = self.dtype;
        if matches!(self.head(), Weight::Tensor(head_v_d) if head_v_d.track_op()) {
            copy.packed_head = Arc::default();
        }
        for (_, slot) in copy.slots() {
            match slot {
                Slot::Weight(Weight::Packed(_)) | Slot::Table(Weight::Packed(_)) => {}
                Slot::Weight(weight) => *weight = Weight::frozen(&weight.tensor()?, dtype)?,
                Slot::Tensor(tensor) | Slot::Table(Weight::Tensor(tensor)) => *tensor = tensor.detach(),
            }
        }
        for (_, linear) in copy.linears_mut() {
            let adapter = linear.adapter.as_mut();
            for matrix in adapter
                .map(|adapter| [&mut adapter.a_r_i, &mut adapter.b_o_r])
                .into_iter()
                .flatten()
            {
                *matrix = Weight::frozen(&matrix.tensor()?, dtype)?;
            }
        }
        Ok(copy)
    }

    /// Writes `config.json` and `model.safetensors` into `folder` (made if missing) in `dtype`, F32 or BF16, so that
    /// transformers loads them. The tokenizer's files are the tokenizer's to write.
    ///
    /// # Errors
    /// Adapters that are neither merged nor removed; files that cannot be written.
    pub fn save(&self, folder: &Path, dtype: DType) -> Result<()> {
        if self.adapters.is_some() {
            return Err(Error::Request(
                "a model with adapters is saved merged, or its adapters apart".into(),
            ));
        }
        let name = if dtype == DType::BF16 {
            "bfloat16"
        } else {
            "float32"
        };
        std::fs::create_dir_all(folder).map_err(|source| Error::File {
            path: folder.into(),
            source,
        })?;
        safetensors::write(&folder.join("model.safetensors"), &self.parameters()?, dtype)?;
        let path = folder.join("config.json");
        let text = format!(
            "{:#}\n",
            serde_json::Value::Object(self.config.fields_with_dtype(name))
        );
        std::fs::write(&path, text).map_err(|source| Error::File { path, source })
    }

    /// Every weight by name, adapters apart. The one list of what a decoder consists of.
    fn slots(&mut self) -> Vec<(String, Slot<'_>)> {
        let mut list = vec![(
            "model.embed_tokens.weight".to_owned(),
            Slot::Table(&mut self.embedding_v_d),
        )];
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let (norms, linears) = block.parts_mut();
            for (part, norm_d) in norms {
                list.push((
                    format!("model.layers.{layer}.{part}.weight"),
                    Slot::Tensor(norm_d),
                ));
            }
            for (part, Linear { weight, bias_o, .. }) in linears {
                let name = |kind: &str| format!("model.layers.{layer}.{part}.{kind}");
                list.push((name("weight"), Slot::Weight(weight)));
                list.extend(bias_o.as_mut().map(|bias_o| (name("bias"), Slot::Tensor(bias_o))));
            }
        }
        list.push(("model.norm.weight".to_owned(), Slot::Tensor(&mut self.norm_d)));
        list.extend(
            self.head_v_d
                .as_mut()
                .map(|head_v_d| ("lm_head.weight".to_owned(), Slot::Table(head_v_d))),
        );
        list
    }

    /// Every linear layer of the blocks by the name of its module, `model.layers.0.self_attn.q_proj` and so on.
    pub(crate) fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut list = Vec::new();
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let named = block.parts_mut().1.into_iter();
            list.extend(named.map(|(part, linear)| (format!("model.layers.{layer}.{part}"), linear)));
        }
        list
    }
}

/// Where a decoder holds one of its weights.
enum Slot<'a> {
    Tensor(&'a mut Tensor),
    /// The matrix of a linear layer.
    Weight(&'a mut Weight),
    /// A matrix whose rows are looked up.
    Table(&'a mut Weight),
}

impl Slot<'_> {
    fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Tensor(tensor) => Ok((*tensor).clone()),
            Self::Weight(weight) | Self::Table(weight) => Ok(weight.tensor()?),
        }
    }

    fn set(self, new: Tensor) {
        match self {
            Self::Tensor(tensor) => *tensor = new,
            Self::Weight(weight) | Self::Table(weight) => *weight = Weight::Tensor(new),
        }
    }
}
