//! A packed micro-batch into log-probabilities, and a loss of them into gradients.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use model::decoder::Decoder;

use crate::error::Result;
use crate::pack::Pack;

/// Gradients of the trained parameters, in their order; those of micro-batches add up.
#[derive(Debug)]
pub struct Gradients<'a> {
    parameters: &'a [(String, Var)],
    /// Nobody else's, for they are added to in place.
    sums: Vec<Option<Tensor>>,
}

impl<'a> Gradients<'a> {
    /// No gradients yet.
    pub fn new(parameters: &'a [(String, Var)]) -> Self {
        Self {
            parameters,
            sums: vec![None; parameters.len()],
        }
    }

    /// The sums; `None` for a parameter that the loss does not depend on.
    pub fn into_sums(self) -> Vec<Option<Tensor>> {
        self.sums
    }

    fn add(&mut self, store: &mut GradStore) -> Result<()> {
        for ((_, parameter), sum) in self.parameters.iter().zip(&mut self.sums) {
            let Some(gradient) = store.remove(parameter) else {
                continue;
            };
            *sum = Some(match sum.take() {
                Some(sum) if kernels::fuses(sum.device()) => {
                    kernels::add_to(&sum, &gradient)?;
                    sum
                }
                Some(sum) => (sum + gradient)?.detach(),
                None => gradient.detach(),
            });
        }
        Ok(())
    }

    /// Adds the gradient of a pack's embedded tokens to that of the embedding, where it trains.
    fn add_embedding(&mut self, decoder: &Decoder, pack: &Pack, gradient_t_d: &Tensor) -> Result<()> {
        let Some(embedding_v_d) = decoder.trained_embedding() else {
            return Ok(());
        };
        let mut parameters = self.parameters.iter();
        let place = parameters.position(|(_, parameter)| parameter.id() == embedding_v_d.id());
        // A head that is tied to the embedding has been here before.
        if let Some(Some(sum_v_d)) = place.map(|place| &self.sums[place])
            && kernels::fuses(sum_v_d.device())
        {
            return Ok(kernels::add_rows(sum_v_d, gradient_t_d, &pack.ids)?);
        }
        let embedded_t_d = decoder.embed(&pack.ids)?;
        self.add(&mut (embedded_t_d * gradient_t_d.detach())?.sum_all()?.backward()?)
    }
}

/// A pack as the blocks below the first trained one leave it. Policy, reference and the policy that sampled have those
/// blocks in common, so they are run once for all of them.
#[derive(Debug)]
pub struct Below {
    blocks: usize,
    x_t_d: Tensor,
}

impl Below {
    /// Runs the first `blocks` blocks of `decoder`, none of which is trained.
    pub fn new(decoder: &Decoder, pack: &Pack, blocks: usize) -> Result<Self> {
        let mut attention = decoder.packed(pack.ids.len(), &pack.segments)?;
        let mut x_t_d = decoder.embed(&pack.ids)?;
        for layer in 0..blocks {
            x_t_d = decoder.block(layer, &x_t_d, &mut attention)?;
        }
        let x_t_d = x_t_d.detach();
        Ok(Self { blocks, x_t_d })
    }

    /// The first block that is still to be run, and its input.
    fn entry(below: Option<&Self>, decoder: &Decoder, pack: &Pack) -> Result<(usize, Tensor)> {
        match below {
            Some(below) => Ok((below.blocks, below.x_t_d.clone())),
            None => Ok((0, decoder.embed(&pack.ids)?)),
        }
    }
}

/// Log-probabilities of a pack's completion tokens, `n`, at a temperature; from `below` where that has been computed.
/// Differentiable; with a frozen decoder nothing is kept for a backward pass.
pub fn log_probabilities(
    decoder: &Decoder,
    pack: &Pack,
    below: Option<&Below>,
    temperature: f64,
) -> Result<Tensor> {
    let mut attention = decoder.packed(pack.ids.len(), &pack.segments)?;
    let (first, mut x_t_d) = Below::entry(below, decoder, pack)?;
    for layer in first..decoder.config.layers {
        x_t_d = decoder.block(layer, &x_t_d, &mut attention)?;
    }
    read_out(decoder, &x_t_d, pack, temperature)
}

/// From the last block's output to log-probabilities; only rows that predict something reach norm and head.
fn read_out(decoder: &Decoder, x_t_d: &Tensor, pack: &Pack, temperature: f64) -> Result<Tensor> {
    let rows_n = Tensor::new(pack.rows.as_slice(), x_t_d.device())?;
    let hidden_n_d = decoder.finish(&x_t_d.index_select(&rows_n, 0)?)?;
    Ok(decoder.log_probability(&hidden_n_d, &pack.targets, temperature)?)
}

/// What of a forward pass is kept for the backward one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// All that it takes.
    Kept,
    /// Each block's input alone: a block is run again when its turn in the backward pass has come. Takes the memory of one
    /// block instead of all, and a third more time.
    Recomputed,
}

impl Activations {
    /// By `update.gradient_checkpointing`.
    pub fn checkpointed(checkpointing: bool) -> Self {
        if checkpointing {
            Self::Recomputed
        } else {
            Self::Kept
        }
    }
}

/// Differentiates `loss`, a scalar of the pack's log-probabilities, and adds to the gradients.
pub fn backpropagate(
    decoder: &Decoder,
    pack: &Pack,
    below: Option<&Below>,
    temperature: f64,
    activations: Activations,
    loss: impl FnOnce(&Tensor) -> Result<Tensor>,
    gradients: &mut Gradients<'_>,
) -> Result<()> {
    let fused = kernels::fuses(decoder.device());
    if !fused && activations == Activations::Kept {
        let loss = loss(&log_probabilities(decoder, pack, below, temperature)?)?;
        return gradients.add(&mut loss.backward()?);
    }
    let mut attention = decoder.packed(pack.ids.len(), &pack.segments)?;
    let (first, mut x_t_d) = Below::entry(below, decoder, pack)?;
    let mut inputs = Vec::new();
    for layer in first..decoder.config.layers {
        let (next_t_d, kept) = decoder.block_keeping(layer, &x_t_d, &mut attention)?;
        let kept = (activations == Activations::Kept).then_some(kept);
        inputs.push((layer, std::mem::replace(&mut x_t_d, next_t_d), kept));
    }

    let output_t_d = Var::from_tensor(&x_t_d)?;
    let loss = loss(&read_out(decoder, &output_t_d, pack, temperature)?)?;
    let mut store = loss.backward()?;
    let mut upstream_t_d = store.remove(&output_t_d);
    gradients.add(&mut store)?;

    for (layer, input_t_d, kept) in inputs.into_iter().rev() {
        let Some(gradient_t_d) = upstream_t_d else {
            return Ok(());
        };
        let mut store = GradStore::default();
        upstream_t_d = if fused {
            let kept = match kept {
                Some(kept) => kept,
                None => decoder.block_keeping(layer, &input_t_d, &mut attention)?.1,
            };
            Some(decoder.block_gradients(layer, &kept, &gradient_t_d, &attention, &mut store)?)
        } else {
            let input_t_d = Var::from_tensor(&input_t_d)?;
            let output_t_d = decoder.block(layer, &input_t_d, &mut attention)?;
            // The product's gradient with respect to the output is the gradient that came from above.
            store = (output_t_d * gradient_t_d.detach())?.sum_all()?.backward()?;
            store.remove(&input_t_d)
        };
        gradients.add(&mut store)?;
    }
    match (upstream_t_d, below) {
        (Some(gradient_t_d), None) => gradients.add_embedding(decoder, pack, &gradient_t_d),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use model::config::Family;
    use model::lora::Lora;
    use model::seeded::{tiny_decoder, write_tiny};

    use super::*;
    use crate::pack::{Example, Family as Answers, pack};

    const PROMPTS: [&[u32]; 2] = [&[10, 20, 30, 40], &[50, 60]];
    const REPLIES: [&[u32]; 3] = [&[1, 2, 3], &[4], &[5, 6, 7, 8, 9]];

    fn families() -> Vec<Answers<'static>> {
        let example = |ids: &'static [u32]| Example {
            ids,
            sampler: &[],
            advantage: 1.0,
        };
        let family = |prompt| Answers {
            prompt,
            examples: REPLIES.map(example).to_vec(),
        };
        PROMPTS.map(family).to_vec()
    }

    /// Each completion in a pack of its own, its prompt before it.
    fn apart() -> Vec<Pack> {
        let alone = families().into_iter().flat_map(|family| {
            let Answers { prompt, examples } = family;
            examples.into_iter().map(move |example| Answers {
                prompt,
                examples: vec![example],
            })
        });
        alone.flat_map(|family| pack(&[family], 1)).collect()
    }

    fn trainable(lora: bool) -> (Decoder, Vec<(String, Var)>) {
        train(tiny_decoder(Family::Qwen3, true).unwrap(), lora)
    }

    fn train(mut decoder: Decoder, lora: bool) -> (Decoder, Vec<(String, Var)>) {
        let parameters = if lora {
            let lora = Lora {
                rank: 2,
                alpha: 4.0,
                targets: vec!["q_proj".into(), "down_proj".into()],
                layers: vec![],
            };
            let parameters = decoder.add_adapters(&lora, 1).unwrap();
            // B is zero at first, and A would get no gradient.
            for (name, parameter) in &parameters {
                if name.contains("lora_B") {
                    parameter
                        .set(&(parameter.ones_like().unwrap() * 0.1).unwrap())
                        .unwrap();
                }
            }
            parameters
        } else {
            decoder.make_trainable().unwrap()
        };
        (decoder, parameters)
    }

    /// By candle's record of every operation.
    fn by_tape(
        decoder: &Decoder,
        pack: &Pack,
        loss: impl FnOnce(&Tensor) -> Result<Tensor>,
        gradients: &mut Gradients<'_>,
    ) -> Result<()> {
        let loss = loss(&log_probabilities(decoder, pack, None, 0.8)?)?;
        gradients.add(&mut loss.backward()?)
    }

    /// Log-probabilities, and gradients of the sum of their squares; by candle's record where nothing else is asked for.
    fn gradients(
        decoder: &Decoder,
        parameters: &[(String, Var)],
        packs: &[Pack],
        activations: Option<Activations>,
    ) -> (Vec<f32>, Vec<Option<Tensor>>) {
        let mut gradients = Gradients::new(parameters);
        let mut values = Vec::new();
        for pack in packs {
            let loss = |new_n: &Tensor| {
                values.extend(new_n.to_vec1::<f32>()?);
                Ok(new_n.sqr()?.sum_all()?)
            };
            match activations {
                None => by_tape(decoder, pack, loss, &mut gradients).unwrap(),
                Some(activations) => {
                    backpropagate(decoder, pack, None, 0.8, activations, loss, &mut gradients).unwrap();
                }
            }
        }
        (values, gradients.into_sums())
    }

    fn assert_close(parameters: &[(String, Var)], one: &[Option<Tensor>], other: &[Option<Tensor>]) {
        for (((name, _), one), other) in parameters.iter().zip(one).zip(other) {
            let flat = |gradient: &Option<Tensor>| -> Vec<f32> {
                gradient
                    .as_ref()
                    .expect(name)
                    .flatten_all()
                    .unwrap()
                    .to_vec1()
                    .unwrap()
            };
            let (one, other) = (flat(one), flat(other));
            let scale = one.iter().fold(0.0, |scale: f32, value| scale.max(value.abs()));
            assert!(scale > 0.0, "{name} has no gradient");
            for (one, other) in one.iter().zip(&other) {
                assert!(
                    (one - other).abs() < 1e-4 * scale,
                    "{name}: {one} {other}, largest {scale}"
                );
            }
        }
    }

    #[test]
    fn a_shared_prompt_gives_what_separate_sequences_give() {
        let (decoder, parameters) = trainable(false);
        let together = gradients(
            &decoder,
            &parameters,
            &pack(&families(), 100),
            Some(Activations::Kept),
        );
        let apart = gradients(&decoder, &parameters, &apart(), Some(Activations::Kept));
        assert_eq!(together.0.len(), 18);
        assert!(
            together
                .0
                .iter()
                .zip(&apart.0)
                .all(|(one, other)| (one - other).abs() < 1e-5)
        );
        assert_close(&parameters, &together.1, &apart.1);
    }

    #[test]
    fn micro_batches_add_up_to_one_batch() {
        let (decoder, parameters) = trainable(true);
        let one = pack(&families(), 100);
        let many = pack(&families(), 8);
        assert!(one.len() == 1 && many.len() > 2);
        let one = gradients(&decoder, &parameters, &one, Some(Activations::Kept));
        let many = gradients(&decoder, &parameters, &many, Some(Activations::Kept));
        assert_close(&parameters, &one.1, &many.1);
    }

    #[test]
    fn gradients_are_those_of_candles_record() {
        for family in [Family::Qwen3, Family::Qwen2, Family::Llama] {
            for (dtype, lora) in [
                (DType::F32, false),
                (DType::F32, true),
                (DType::BF16, false),
                (DType::BF16, true),
            ] {
                let folder = tempfile::tempdir().unwrap();
                write_tiny(folder.path(), family).unwrap();
                let source = model::source::resolve(folder.path().to_str().unwrap(), &mut |_| {}).unwrap();
                let decoder = Decoder::load(&source, dtype, &Device::Cpu).unwrap();
                let (decoder, parameters) = train(decoder, lora);
                let packs = pack(&families(), 16);
                let taped = gradients(&decoder, &parameters, &packs, None);
                for activations in [Activations::Kept, Activations::Recomputed] {
                    let found = gradients(&decoder, &parameters, &packs, Some(activations));
                    assert_eq!(taped.0, found.0);
                    for (((name, _), taped), found) in parameters.iter().zip(&taped.1).zip(&found.1) {
                        let bits = |gradient: &Option<Tensor>| {
                            let gradient = gradient.as_ref().expect(name);
                            gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                        };
                        // A token that comes twice is added to the head's gradient twice, not once for both.
                        if name != "model.embed_tokens.weight" {
                            assert_eq!(bits(taped), bits(found), "{family:?} {dtype:?} {name}");
                        }
                    }
                    assert_close(&parameters, &taped.1, &found.1);
                }
            }
        }
    }

    #[test]
    fn shared_lower_blocks_change_nothing() {
        let mut decoder = tiny_decoder(Family::Qwen3, true).unwrap();
        let lora = Lora {
            rank: 2,
            alpha: 4.0,
            targets: vec!["q_proj".into(), "down_proj".into()],
            layers: vec![1],
        };
        let parameters = decoder.add_adapters(&lora, 1).unwrap();
        for (_, parameter) in &parameters {
            parameter
                .set(&(parameter.ones_like().unwrap() * 0.1).unwrap())
                .unwrap();
        }
        let pack = &pack(&families(), 100)[0];
        let square = |new_n: &Tensor| Ok(new_n.sqr()?.sum_all()?);
        let below = Below::new(&decoder, pack, 1).unwrap();
        let mut whole = Gradients::new(&parameters);
        by_tape(&decoder, pack, square, &mut whole).unwrap();
        let whole = whole.into_sums();
        for activations in [Activations::Kept, Activations::Recomputed] {
            let mut upper = Gradients::new(&parameters);
            backpropagate(&decoder, pack, Some(&below), 0.8, activations, square, &mut upper).unwrap();
            assert_close(&parameters, &whole, &upper.into_sums());
        }
    }

    #[test]
    fn a_frozen_decoder_agrees_and_keeps_no_graph() {
        let (decoder, _) = trainable(false);
        let pack = &pack(&families(), 100)[0];
        let traced = log_probabilities(&decoder, pack, None, 1.0).unwrap();
        let frozen = log_probabilities(&decoder.frozen().unwrap(), pack, None, 1.0).unwrap();
        assert_eq!(traced.to_vec1::<f32>().unwrap(), frozen.to_vec1::<f32>().unwrap());
        assert!(traced.track_op() && !frozen.track_op());
    }
}
