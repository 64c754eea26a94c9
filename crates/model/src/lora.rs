//! Low-rank adapters (LoRA) on a decoder's linear layers, in the files of the peft library.
//!
//! `y = x W^T + (x A^T) B^T * alpha / rank`, with A drawn at random and B zero at first, so that a fresh adapter
//! changes nothing. Left out: dropout, rank-stabilised scaling, DoRA, adapters on the embedding or the head; files
//! that ask for them are refused.

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::decoder::Decoder;
use crate::linear::{Adapter, Linear, Weight};
use crate::weights::{Weights, safetensors};
use crate::{Error, Result};

/// The linear layers that can have an adapter, by the last part of their name.
pub const TARGETS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// What peft writes before every module's name.
const PREFIX: &str = "base_model.model.";

/// The shape of a decoder's adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Width of the inner product.
    pub rank: usize,
    /// The adapter's part is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Which layers of each block have one: some of [`TARGETS`].
    pub targets: Vec<String>,
    /// The blocks that have them; empty for all. Below the lowest of them nothing is differentiated, which makes
    /// training on the upper blocks cheaper.
    pub layers: Vec<usize>,
}

impl Lora {
    fn check(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::Request("lora rank: expected at least 1, found 0".into()));
        }
        match self
            .targets
            .iter()
            .find(|target| !TARGETS.contains(&target.as_str()))
        {
            None if self.targets.is_empty() => Err(Error::Request(format!(
                "lora targets: expected some of {TARGETS:?}, found none"
            ))),
            None => Ok(()),
            Some(target) => Err(Error::Request(format!(
                "lora target `{target}`: expected one of {TARGETS:?}"
            ))),
        }
    }

    fn targets(&self, module: &str) -> bool {
        let target = module.rsplit('.').next();
        let layer = module.split('.').find_map(|part| part.parse::<usize>().ok());
        self.targets.iter().any(|known| target == Some(known))
            && (self.layers.is_empty() || layer.is_some_and(|layer| self.layers.contains(&layer)))
    }
}

impl Decoder {
    /// Gives every targeted layer a fresh adapter and returns the adapters' variables under the names that peft
    /// writes. A is uniform within one over the root of its inputs, as peft draws it, from `seed`; B is zero.
    ///
    /// # Errors
    /// A rank of zero, an unknown target, a block that the model does not have, or adapters that are there already.
    pub fn add_adapters(&mut self, lora: &Lora, seed: u64) -> Result<Vec<(String, Var)>> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let device = self.device().clone();
        self.set_adapters(lora, |_, outputs, inputs| {
            let bound = 1.0 / (inputs as f32).sqrt();
            let a = (0..lora.rank * inputs)
                .map(|_| random.random_range(-bound..bound))
                .collect();
            let a_r_i = Tensor::from_vec::<_, f32>(a, (lora.rank, inputs), &device)?;
            Ok((a_r_i, Tensor::zeros((outputs, lora.rank), DType::F32, &device)?))
        })
    }

    /// Gives the decoder the adapters in `folder`, as [`Decoder::save_adapters`] or peft wrote them, and returns
    /// their variables, so that training can go on.
    ///
    /// # Errors
    /// Missing or malformed files, settings that this decoder does not have, a missing, misshapen or left-over
    /// tensor.
    pub fn load_adapters(&mut self, folder: &Path) -> Result<Vec<(String, Var)>> {
        let lora = read_config(&folder.join("adapter_config.json"))?;
        let mut weights: Weights = safetensors::read(&folder.join("adapter_model.safetensors"))?
            .into_iter()
            .collect();
        let device = self.device().clone();
        let variables = self.set_adapters(&lora, |module, outputs, inputs| {
            let a_r_i = weights.take(&format!("{PREFIX}{module}.lora_A.weight"), &[lora.rank, inputs])?;
            let b_o_r = weights.take(&format!("{PREFIX}{module}.lora_B.weight"), &[outputs, lora.rank])?;
            Ok((a_r_i.to_device(&device)?, b_o_r.to_device(&device)?))
        })?;
        weights.finish(&self.config)?;
        Ok(variables)
    }

    /// Blocks below the first that has adapters: what they compute is the same with and without them.
    pub fn blocks_below_adapters(&self) -> usize {
        let lowest = self.adapters.as_ref().and_then(|lora| lora.layers.iter().min());
        lowest.copied().unwrap_or(0)
    }

    fn set_adapters(
        &mut self,
        lora: &Lora,
        mut matrices: impl FnMut(&str, usize, usize) -> Result<(Tensor, Tensor)>,
    ) -> Result<Vec<(String, Var)>> {
        lora.check()?;
        let layers = self.config.layers;
        if let Some(layer) = lora.layers.iter().find(|&&layer| layer >= layers) {
            return Err(Error::Request(format!(
                "lora layers: expected blocks below {layers}, found {layer}"
            )));
        }
        if self.adapters.is_some() {
            return Err(Error::Request(
                "the model has adapters already: merge or remove them first".into(),
            ));
        }
        let scale = lora.alpha / lora.rank as f64;
        let mut variables = Vec::new();
        for (module, linear) in self
            .linears_mut()
            .into_iter()
            .filter(|(module, _)| lora.targets(module))
        {
            let (outputs, inputs) = linear.weight.dims()?;
            let (a_r_i, b_o_r) = matrices(&module, outputs, inputs)?;
            let (a_r_i, b_o_r) = (Var::from_tensor(&a_r_i)?, Var::from_tensor(&b_o_r)?);
            let (a, b) = (a_r_i.as_tensor().clone(), b_o_r.as_tensor().clone());
            linear.adapter = Some(Adapter {
                a_r_i: Weight::Tensor(a),
                b_o_r: Weight::Tensor(b),
                scale,
            });
            variables.push((format!("{PREFIX}{module}.lora_A.weight"), a_r_i));
            variables.push((format!("{PREFIX}{module}.lora_B.weight"), b_o_r));
        }
        self.adapters = Some(lora.clone());
        Ok(variables)
    }

    /// The adapters' shape, if the decoder has any.
    pub fn adapters(&self) -> Option<&Lora> {
        self.adapters.as_ref()
    }

    /// The same decoder as it was before adapters were added: the model to hold an adapted one against.
    #[must_use]
    pub fn without_adapters(&self) -> Self {
        let mut copy = self.clone();
        copy.adapters = None;
        for (_, linear) in copy.linears_mut() {
            linear.adapter = None;
        }
        copy
    }

    /// The adapter of each linear layer, in the order of the layers: for [`Decoder::mixed`].
    pub(crate) fn adapter_list(&self) -> Vec<Option<Adapter>> {
        let mut copy = self.clone();
        let linears = copy.linears_mut().into_iter();
        linears.map(|(_, linear)| linear.adapter.take()).collect()
    }

    /// A decoder for one pass over the rows of several models that are this one with adapters of their own: how many rows
    /// come next, and the [`Decoder::adapter_list`] that they take, or none. For inference.
    pub(crate) fn mixed(&self, runs: &[(usize, Option<&[Option<Adapter>]>)]) -> Self {
        let mut copy = self.without_adapters();
        let mut linears = copy.linears_mut();
        let mut start = 0;
        for &(rows, adapters) in runs {
            let span = start..start + rows;
            start = span.end;
            for ((_, linear), adapter) in linears.iter_mut().zip(adapters.unwrap_or_default()) {
                linear
                    .mixed
                    .extend(adapter.clone().map(|adapter| (span.clone(), adapter)));
            }
        }
        copy
    }

    /// A decoder without adapters whose weights contain them.
    pub fn merge_adapters(&self) -> Result<Self> {
        let mut copy = self.clone();
        copy.adapters = None;
        let dtype = self.dtype;
        for (_, linear) in copy.linears_mut() {
            if let Some(Adapter { a_r_i, b_o_r, scale }) = linear.adapter.take() {
                let change_o_i = b_o_r
                    .tensor()?
                    .detach()
                    .matmul(&a_r_i.tensor()?.detach())?
                    .affine(scale, 0.0)?;
                let weight_o_i = linear.weight.tensor()?.detach().to_dtype(DType::F32)?;
                linear.weight = Weight::frozen(&(weight_o_i + change_o_i)?, dtype)?;
            }
        }
        Ok(copy)
    }

    /// Writes the adapters into `folder` (made if missing) as peft does, in f32. `base` is the name or path of the
    /// model that they belong to, from which peft loads it.
    ///
    /// # Errors
    /// No adapters, or files that cannot be written.
    pub fn save_adapters(&self, folder: &Path, base: &str) -> Result<()> {
        let Some(lora) = &self.adapters else {
            return Err(Error::Request("the model has no adapters to save".into()));
        };
        std::fs::create_dir_all(folder).map_err(|source| Error::File {
            path: folder.into(),
            source,
        })?;
        let mut tensors = Vec::new();
        for (module, Linear { adapter, .. }) in self.clone().linears_mut() {
            if let Some(Adapter { a_r_i, b_o_r, .. }) = adapter {
                tensors.push((
                    format!("{PREFIX}{module}.lora_A.weight"),
                    a_r_i.tensor()?.to_device(&Device::Cpu)?,
                ));
                tensors.push((
                    format!("{PREFIX}{module}.lora_B.weight"),
                    b_o_r.tensor()?.to_device(&Device::Cpu)?,
                ));
            }
        }
        safetensors::write(&folder.join("adapter_model.safetensors"), &tensors, DType::F32)?;
        let config = json!({
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": lora.alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": lora.rank,
            "target_modules": lora.targets,
            "task_type": "CAUSAL_LM",
            "layers_to_transform": (!lora.layers.is_empty()).then_some(&lora.layers),
        });
        let path = folder.join("adapter_config.json");
        std::fs::write(&path, format!("{config:#}\n")).map_err(|source| Error::File { path, source })
    }
}

/// Settings of peft that change the arithmetic in a way the decoder does not have, and the value that leaves it be.
const REFUSED: [&str; 7] = [
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
];

fn read_config(path: &Path) -> Result<Lora> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })?;
    let config: Value = serde_json::from_str(&text).map_err(|error| Error::Format {
        path: path.into(),
        what: format!("expected a JSON object: {error}"),
    })?;
    let wrong = |key: &str, expected: &str| Error::Format {
        path: path.into(),
        what: format!("key `{key}`: expected {expected}, found {}", config[key]),
    };
    if config["peft_type"] != "LORA" {
        return Err(wrong("peft_type", "\"LORA\""));
    }
    if config.get("bias").is_some_and(|bias| bias != "none") {
        return Err(wrong("bias", "\"none\""));
    }
    for key in REFUSED {
        let neutral = match config.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(items)) => items.is_empty(),
            Some(_) => false,
        };
        if !neutral {
            return Err(wrong(key, "nothing"));
        }
    }
    let rank = config["r"].as_u64().ok_or_else(|| wrong("r", "a whole number"))? as usize;
    let alpha = config["lora_alpha"]
        .as_f64()
        .ok_or_else(|| wrong("lora_alpha", "a number"))?;
    let targets = config["target_modules"]
        .as_array()
        .and_then(|targets| {
            targets
                .iter()
                .map(|target| target.as_str().map(str::to_owned))
                .collect()
        })
        .ok_or_else(|| wrong("target_modules", "a list of names"))?;
    let layers = match config.get("layers_to_transform") {
        None | Some(Value::Null) => Vec::new(),
        Some(layers) => serde_json::from_value(layers.clone())
            .map_err(|_| wrong("layers_to_transform", "a list of block numbers"))?,
    };
    Ok(Lora {
        rank,
        alpha,
        targets,
        layers,
    })
}
