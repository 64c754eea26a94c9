//! The decoder's numbers against transformers' and peft's (goldens/logits), and its paths against each other.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor, Var};
use kernels::{Context, Segment};
use model::config::{Config, Family};
use model::decoder::{Decoder, PoolLayer};
use model::heads::{RewardModel, TokenClassifier};
use model::lora::Lora;
use model::seeded;
use model::source::{Source, WeightsFormat};
use model::weights::Weights;
use serde_json::{Value, json};

type Outcome = Result<(), Box<dyn Error>>;

fn golden(name: &str) -> Result<Value, Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../goldens/logits")
        .join(name);
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_u64)
        .map(|id| id as u32)
        .collect()
}

fn floats(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_f64)
        .map(|number| number as f32)
        .collect()
}

fn whole(rows: usize) -> [Segment; 1] {
    [Segment {
        start: 0,
        len: rows,
        prefix: None,
    }]
}

/// The largest difference between two lists of one length.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs())
        .fold(0.0, f32::max)
}

fn tensor_difference(found: &Tensor, expected: &Tensor) -> Result<f32, Box<dyn Error>> {
    assert_eq!(found.dims(), expected.dims());
    Ok((found - expected)?
        .abs()?
        .flatten_all()?
        .max(D::Minus1)?
        .to_scalar()?)
}

fn all_logits(decoder: &Decoder, ids: &[u32]) -> Result<Vec<Vec<f32>>, Box<dyn Error>> {
    Ok(decoder
        .logits(&decoder.hidden(ids, &whole(ids.len()))?)?
        .to_vec2()?)
}

fn empty_pool(config: &Config, slots: usize) -> Result<Vec<PoolLayer>, Box<dyn Error>> {
    let shape = (slots, config.key_value_heads, config.head_dim);
    (0..config.layers)
        .map(|_| {
            let k = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
            Ok(PoolLayer {
                v: k.zeros_like()?,
                k,
            })
        })
        .collect()
}

/// Greedy tokens through the pool, from slot 0 on: the prompt's rows in one call, then one row a call.
fn greedy(decoder: &Decoder, prompt: &[u32], count: usize) -> Result<Vec<u32>, Box<dyn Error>> {
    let mut pool = empty_pool(&decoder.config, prompt.len() + count)?;
    let all: Arc<[u32]> = (0..(prompt.len() + count) as u32).collect();
    let (mut start, mut step, mut tokens) = (0, prompt.to_vec(), Vec::new());
    while tokens.len() < count {
        let positions: Vec<u32> = (start..start + step.len() as u32).collect();
        let rows: Vec<_> = positions
            .iter()
            .map(|&position| Context {
                slots: all.clone(),
                len: position as usize + 1,
            })
            .collect();
        let hidden_t_d = decoder.decode(&step, &positions, &mut pool, &positions, &rows)?;
        let last_1_d = hidden_t_d.narrow(0, step.len() - 1, 1)?;
        let token = decoder.logits(&last_1_d)?.argmax(D::Minus1)?.to_vec1::<u32>()?[0];
        tokens.push(token);
        start += step.len() as u32;
        step = vec![token];
    }
    Ok(tokens)
}

fn agrees_with(decoder: &Decoder, golden: &Value) -> Outcome {
    let prompt = ids(&golden["ids"]);
    let rows = all_logits(decoder, &prompt)?;
    assert!(difference(&rows[0][..8], &floats(&golden["first_row"])) < 1e-4);
    assert!(difference(&rows[prompt.len() - 1], &floats(&golden["last_row"])) < 1e-4);
    assert_eq!(greedy(decoder, &prompt, 64)?, ids(&golden["greedy"]));
    Ok(())
}

#[test]
fn every_family_agrees_with_transformers() -> Outcome {
    let golden = golden("tiny.json")?;
    for family in Family::ALL {
        for (tied, name) in [(true, "tied"), (false, "untied")] {
            let name = format!("{}-{name}", family.model_type());
            println!("{name}");
            agrees_with(&seeded::tiny_decoder(family, tied)?, &golden[&name])?;
        }
    }
    Ok(())
}

#[test]
fn llama3_rotary_scaling_agrees_with_transformers() -> Outcome {
    let mut fields = seeded::tiny_fields(Family::Llama, true);
    fields.remove("rope_parameters");
    // The older spelling; the golden's config has the newer one.
    fields.insert("rope_theta".into(), json!(50_000.0));
    fields.insert(
        "rope_scaling".into(),
        json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }),
    );
    let config = Config::from_fields(Path::new("config.json"), fields)?;
    agrees_with(&seeded::decoder(&config)?, &golden("tiny.json")?["llama3-rope"])
}

/// The weights of the language model `config`, and more tensors.
fn weights_with(config: &Config, more: &[(&str, &[usize])]) -> Result<Weights, Box<dyn Error>> {
    let mut tensors = seeded::tensors(config)?;
    for (name, shape) in more {
        tensors.push(((*name).into(), seeded::tensor(name, shape)?));
    }
    Ok(tensors.into_iter().collect())
}

#[test]
fn reward_head_agrees_with_torch() -> Outcome {
    let golden = &golden("tiny.json")?["heads"];
    let config = seeded::tiny_config(Family::Qwen2, true)?;
    let more: [(&str, &[usize]); 4] = [
        ("score.0.weight", &[32, 32]),
        ("score.0.bias", &[32]),
        ("score.2.weight", &[1, 32]),
        ("score.2.bias", &[1]),
    ];
    let mut weights = weights_with(&config, &more)?;
    let model = RewardModel::from_weights(&config, &mut weights, DType::F32, &Device::Cpu)?;
    weights.finish(&config)?;
    let ids = ids(&golden["ids"]);
    let rewards = model.score(&ids, &whole(ids.len()))?;
    assert!(difference(&rewards, &floats(&json!([golden["reward"]]))) < 1e-4);
    Ok(())
}

#[test]
fn token_classifier_agrees_with_torch() -> Outcome {
    let golden = &golden("tiny.json")?["heads"];
    let mut fields = seeded::tiny_fields(Family::Qwen3, true);
    fields.insert("guard_inner_size".into(), json!(24));
    let config = Config::from_fields(Path::new("config.json"), fields)?;
    let more: [(&str, &[usize]); 8] = [
        ("risk_level_category_pre.weight", &[24, 32]),
        ("risk_level_category_layernorm.weight", &[24]),
        ("risk_level_head.weight", &[3, 24]),
        ("category_head.weight", &[8, 24]),
        ("query_risk_level_category_pre.weight", &[24, 32]),
        ("query_risk_level_category_layernorm.weight", &[24]),
        ("query_risk_level_head.weight", &[3, 24]),
        ("query_category_head.weight", &[9, 24]),
    ];
    let mut weights = weights_with(&config, &more)?;
    let model = TokenClassifier::from_weights(&config, &mut weights, DType::F32, &Device::Cpu)?;
    weights.finish(&config)?;
    let ids = ids(&golden["ids"]);
    let hidden_t_d = model.decoder.hidden(&ids, &whole(ids.len()))?;
    let last =
        |tensor: &Tensor| -> Result<Vec<f32>, Box<dyn Error>> { Ok(tensor.get(ids.len() - 1)?.to_vec1()?) };
    for (head, prefix) in [(&model.reply, ""), (&model.query, "query_")] {
        let classes = head.classify(&hidden_t_d)?;
        let expected = |name: &str| floats(&golden["classes"][format!("{prefix}{name}")]);
        assert!(difference(&last(&classes.risk_level_n_c)?, &expected("risk_level")) < 1e-4);
        assert!(difference(&last(&classes.category_n_c)?, &expected("category")) < 1e-4);
    }
    Ok(())
}

#[test]
fn packed_sequences_with_a_shared_prefix_equal_single_ones() -> Outcome {
    let decoder = seeded::tiny_decoder(Family::Qwen3, true)?;
    let (prompt, replies) = (vec![1, 2, 3, 4, 5], [vec![6, 7, 8], vec![9, 10], vec![11]]);
    let mut packed = prompt.clone();
    let mut segments = whole(prompt.len()).to_vec();
    for reply in &replies {
        segments.push(Segment {
            start: packed.len(),
            len: reply.len(),
            prefix: Some(0),
        });
        packed.extend(reply);
    }
    let hidden_t_d = decoder.hidden(&packed, &segments)?;
    for (reply, segment) in replies.iter().zip(&segments[1..]) {
        let single: Vec<u32> = prompt.iter().chain(reply).copied().collect();
        let expected = decoder
            .hidden(&single, &whole(single.len()))?
            .narrow(0, prompt.len(), reply.len())?;
        let found = hidden_t_d.narrow(0, segment.start, segment.len)?;
        assert!(tensor_difference(&found, &expected)? < 1e-5);
    }
    Ok(())
}

#[test]
fn paged_rows_in_scattered_slots_equal_packed_ones() -> Outcome {
    let decoder = seeded::tiny_decoder(Family::Qwen2, false)?;
    let sequences = [vec![1u32, 2, 3, 4], vec![9, 8, 7]];
    let slots: [Arc<[u32]>; 2] = [Arc::from([11, 3, 7, 0]), Arc::from([5, 2, 9])];
    let mut pool = empty_pool(&decoder.config, 12)?;
    let (mut ids, mut positions, mut to, mut rows) = (vec![], vec![], vec![], vec![]);
    for (sequence, slots) in sequences.iter().zip(&slots) {
        for (position, &id) in sequence.iter().enumerate() {
            ids.push(id);
            positions.push(position as u32);
            to.push(slots[position]);
            rows.push(Context {
                slots: slots.clone(),
                len: position + 1,
            });
        }
    }
    let found = decoder.decode(&ids, &positions, &mut pool, &to, &rows)?;
    let segments = [
        Segment {
            start: 0,
            len: 4,
            prefix: None,
        },
        Segment {
            start: 4,
            len: 3,
            prefix: None,
        },
    ];
    assert!(tensor_difference(&found, &decoder.hidden(&ids, &segments)?)? < 1e-5);
    Ok(())
}

#[test]
fn hidden_at_gives_the_stream_between_embedding_and_final_norm() -> Outcome {
    let decoder = seeded::tiny_decoder(Family::Llama, true)?;
    let (ids, segments) = ([5, 6, 7], whole(3));
    let found = decoder.hidden_at(&ids, &segments, &[2, 0, 1])?;
    assert!(tensor_difference(&found[0], &decoder.hidden(&ids, &segments)?)? == 0.0);
    assert!(tensor_difference(&found[1], &decoder.embed(&ids)?)? == 0.0);
    let mut attention = decoder.packed(3, &segments)?;
    assert!(tensor_difference(&found[2], &decoder.block(0, &found[1], &mut attention)?)? == 0.0);
    assert!(decoder.hidden_at(&ids, &segments, &[3]).is_err());
    Ok(())
}

#[test]
fn every_trainable_weight_gets_a_gradient() -> Outcome {
    for (family, dtype) in [(Family::Qwen3, DType::F32), (Family::Qwen2, DType::BF16)] {
        let config = seeded::tiny_config(family, false)?;
        let mut weights: Weights = seeded::tensors(&config)?.into_iter().collect();
        let mut decoder = Decoder::from_weights(&config, &mut weights, true, dtype, &Device::Cpu)?;
        let names: Vec<String> = decoder.parameters()?.into_iter().map(|(name, _)| name).collect();
        let variables = decoder.make_trainable()?;
        assert_eq!(
            names,
            variables.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        );
        let loss = decoder
            .logits(&decoder.hidden(&[1, 2, 3], &whole(3))?)?
            .sqr()?
            .sum_all()?;
        let gradients = loss.backward()?;
        for (name, variable) in &variables {
            let gradient = gradients.get(variable).ok_or(format!("no gradient for {name}"))?;
            // A key's bias shifts all of a row's scores alike where positions are equal, so its gradient may be tiny.
            let size: f32 = gradient.abs()?.sum_all()?.to_scalar()?;
            assert!(size > 0.0 && size.is_finite(), "{name}: {size}");
        }
        assert!(!decoder.frozen()?.hidden(&[1, 2, 3], &whole(3))?.track_op());
    }
    Ok(())
}

#[test]
fn bf16_is_near_f32_and_frozen_equals_trainable() -> Outcome {
    let config = seeded::tiny_config(Family::Mistral, true)?;
    let mut weights: Weights = seeded::tensors(&config)?.into_iter().collect();
    let mut narrow = Decoder::from_weights(&config, &mut weights, true, DType::BF16, &Device::Cpu)?;
    let exact = seeded::decoder(&config)?.hidden(&[1, 2, 3], &whole(3))?;
    let rounded = narrow.hidden(&[1, 2, 3], &whole(3))?;
    let gap = tensor_difference(&rounded, &exact)?;
    assert!(gap > 1e-4 && gap < 5e-2, "{gap}");
    narrow.make_trainable()?;
    let trained = narrow.hidden(&[1, 2, 3], &whole(3))?.detach();
    assert!(tensor_difference(&trained, &rounded)? == 0.0);
    assert!(tensor_difference(&narrow.frozen()?.hidden(&[1, 2, 3], &whole(3))?, &rounded)? == 0.0);
    Ok(())
}

#[test]
fn in_bf16_sampler_and_trainer_agree() -> Outcome {
    let config = seeded::tiny_config(Family::Qwen3, true)?;
    let mut weights: Weights = seeded::tensors(&config)?.into_iter().collect();
    let mut decoder = Decoder::from_weights(&config, &mut weights, true, DType::BF16, &Device::Cpu)?;
    let (ids, targets) = ([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]);
    for _ in ["frozen", "trainable"] {
        let trainer = decoder.log_probability(&decoder.hidden(&ids, &whole(5))?, &targets, 1.0)?;
        let sampler = decoder.frozen()?;
        let logits = sampler
            .logits(&sampler.hidden(&ids, &whole(5))?)?
            .to_vec2::<f32>()?;
        for ((logits, target), found) in logits.iter().zip(targets).zip(trainer.to_vec1::<f32>()?) {
            let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
            let expected = logits[target as usize] - sum.ln();
            assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
        decoder.make_trainable()?;
    }
    Ok(())
}

/// The losses of some steps of gradient descent on one sequence, over all weights or over adapters.
fn descend(dtype: DType, adapters: bool) -> Result<Vec<f32>, Box<dyn Error>> {
    let config = seeded::tiny_config(Family::Qwen3, true)?;
    let mut weights: Weights = seeded::tensors(&config)?.into_iter().collect();
    let mut decoder = Decoder::from_weights(&config, &mut weights, true, dtype, &Device::Cpu)?;
    let variables = match adapters {
        true => decoder.add_adapters(
            &Lora {
                rank: 4,
                alpha: 8.0,
                targets: vec!["q_proj".into(), "v_proj".into(), "down_proj".into()],
                layers: Vec::new(),
            },
            7,
        )?,
        false => decoder.make_trainable()?,
    };
    // An adapter whose B is zero at first is slow to begin.
    let rate = if adapters { 0.2 } else { 0.05 };
    let (ids, targets) = ([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]);
    let mut losses = Vec::new();
    for _ in 0..6 {
        let hidden_t_d = decoder.hidden(&ids, &whole(ids.len()))?;
        let loss = decoder
            .log_probability(&hidden_t_d, &targets, 1.0)?
            .mean_all()?
            .neg()?;
        losses.push(loss.to_scalar()?);
        let gradients = loss.backward()?;
        for (name, variable) in &variables {
            let gradient = gradients.get(variable).ok_or(format!("no gradient for {name}"))?;
            variable.set(&(variable.as_tensor() - (gradient * rate)?)?.detach())?;
        }
    }
    Ok(losses)
}

#[test]
fn training_in_bf16_follows_f32() -> Outcome {
    for adapters in [false, true] {
        let (wide, narrow) = (descend(DType::F32, adapters)?, descend(DType::BF16, adapters)?);
        // A bf16 number is good to one part in 256: so far off may be what a loss is, and some times that what was learnt.
        let fallen = wide[0] - wide[5];
        assert!(fallen > 0.1, "{wide:?}");
        for (one, other) in wide.iter().zip(&narrow) {
            let bound = 1.0 / 256.0 + 0.02 * fallen;
            assert!((one - other).abs() < bound, "{wide:?} is not {narrow:?}");
        }
    }
    Ok(())
}

/// A decoder with adapters, and the adapters' variables by name.
type Adapted = (Decoder, Vec<(String, Var)>);

/// The tiny model with adapters whose numbers are all seeded, as goldens/logits/checkpoints.py loads it.
fn adapted() -> Result<Adapted, Box<dyn Error>> {
    let mut decoder = seeded::tiny_decoder(Family::Qwen3, true)?;
    let targets = vec!["q_proj".into(), "v_proj".into(), "down_proj".into()];
    let variables = decoder.add_adapters(
        &Lora {
            rank: 4,
            alpha: 6.0,
            targets,
            layers: Vec::new(),
        },
        7,
    )?;
    for (name, variable) in &variables {
        variable.set(&seeded::tensor(name, variable.dims())?)?;
    }
    Ok((decoder, variables))
}

#[test]
fn fresh_adapters_change_nothing_and_only_they_train() -> Outcome {
    let mut decoder = seeded::tiny_decoder(Family::Llama, false)?;
    let before = decoder.hidden(&[1, 2, 3], &whole(3))?;
    let variables = decoder.add_adapters(
        &Lora {
            rank: 2,
            alpha: 4.0,
            targets: vec!["o_proj".into()],
            layers: Vec::new(),
        },
        1,
    )?;
    assert_eq!(
        variables[0].0,
        "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"
    );
    assert_eq!(
        (variables.len(), variables[0].1.dims(), variables[1].1.dims()),
        (4, &[2, 32][..], &[32, 2][..])
    );
    let after = decoder.hidden(&[1, 2, 3], &whole(3))?;
    assert!(tensor_difference(&after.detach(), &before)? == 0.0);
    let gradients = after.sum_all()?.backward()?;
    // With B at zero, A has a gradient of zero and B has not.
    let size = |index: usize| -> Result<f32, Box<dyn Error>> {
        let gradient = gradients.get(&variables[index].1).ok_or("no gradient")?;
        Ok(gradient.abs()?.sum_all()?.to_scalar()?)
    };
    assert_eq!(size(0)?, 0.0);
    assert!(size(1)? > 0.0);
    Ok(())
}

#[test]
fn an_adapters_gradient_is_that_of_its_definition() -> Outcome {
    let (decoder, variables) = adapted()?;
    let mut full = decoder.clone();
    // With trainable weights, candle's own product computes every gradient; else the frozen product does.
    full.make_trainable()?;
    let loss = |decoder: &Decoder| -> Result<_, Box<dyn Error>> {
        Ok(decoder
            .hidden(&[1, 2, 3, 4], &whole(4))?
            .sqr()?
            .mean_all()?
            .backward()?)
    };
    let gradients = [loss(&decoder)?, loss(&full)?];
    for (name, variable) in &variables {
        let [found, expected] = [0, 1].map(|index| gradients[index].get(variable));
        let (found, expected) = (found.ok_or("no gradient")?, expected.ok_or("no gradient")?);
        assert!(tensor_difference(found, expected)? < 1e-6, "{name}");
    }
    Ok(())
}

#[test]
fn adapters_merge_detach_and_survive_a_round_trip() -> Outcome {
    let (decoder, _) = adapted()?;
    let hidden = |decoder: &Decoder| {
        decoder
            .hidden(&[1, 2, 3, 4], &whole(4))
            .map(|hidden_t_d| hidden_t_d.detach())
    };
    let adapted = hidden(&decoder)?;
    assert!(tensor_difference(&hidden(&decoder.merge_adapters()?)?, &adapted)? < 1e-5);
    let base = seeded::tiny_decoder(Family::Qwen3, true)?;
    assert!(tensor_difference(&hidden(&decoder.without_adapters())?, &hidden(&base)?)? == 0.0);
    assert!(tensor_difference(&adapted, &hidden(&base)?)? > 1e-2);

    let folder = tempfile::tempdir()?;
    decoder.save_adapters(folder.path(), "tiny-qwen3")?;
    let mut again = base;
    assert_eq!(again.load_adapters(folder.path())?.len(), 12);
    assert!(tensor_difference(&hidden(&again)?, &adapted)? == 0.0);
    assert!(decoder.save(folder.path(), DType::F32).is_err());
    Ok(())
}

fn folder_source(folder: &Path) -> Source {
    let weights = WeightsFormat::Safetensors(vec![folder.join("model.safetensors")]);
    Source {
        weights,
        folder: Some(folder.into()),
        name: "test".into(),
    }
}

#[test]
fn a_saved_model_loads_again() -> Outcome {
    for family in Family::ALL {
        let decoder = seeded::tiny_decoder(family, false)?;
        let folder = tempfile::tempdir()?;
        decoder.save(folder.path(), DType::F32)?;
        let again = Decoder::load(&folder_source(folder.path()), DType::F32, &Device::Cpu)?;
        for ((name, before), (_, after)) in decoder.parameters()?.iter().zip(&again.parameters()?) {
            assert!(tensor_difference(after, before)? == 0.0, "{name}");
        }
        decoder.save(folder.path(), DType::BF16)?;
        let again = Decoder::load(&folder_source(folder.path()), DType::F32, &Device::Cpu)?;
        assert_eq!(again.config.fields["dtype"], "bfloat16");
        let (before, after) = (decoder.head_weight()?, again.head_weight()?);
        assert!(tensor_difference(&after, &before.to_dtype(DType::BF16)?.to_dtype(DType::F32)?)? == 0.0);
    }
    Ok(())
}

/// What checkpoints.py found when transformers and peft loaded the folders that `write_checkpoints` writes.
#[test]
fn saved_checkpoints_agree_with_transformers_and_peft() -> Outcome {
    let golden = golden("checkpoints.json")?;
    let (decoder, _) = adapted()?;
    agrees_with(&decoder.merge_adapters()?, &golden["merged"])?;
    agrees_with(&decoder, &golden["peft"])
}

/// Run by hand before checkpoints.py: `SAFERL_CHECKPOINTS=DIR cargo test -p model --test logits write_checkpoints`.
#[test]
fn write_checkpoints() -> Outcome {
    let Some(folder) = std::env::var_os("SAFERL_CHECKPOINTS").map(PathBuf::from) else {
        println!("skipped: SAFERL_CHECKPOINTS names no folder to write to");
        return Ok(());
    };
    seeded::write_tiny(&folder.join("base"), Family::Qwen3)?;
    let (decoder, _) = adapted()?;
    decoder.save_adapters(&folder.join("peft"), "tiny-qwen3")?;
    decoder
        .merge_adapters()?
        .save(&folder.join("merged"), DType::F32)?;
    if let Some(path) = smollm2() {
        load_smollm2(path)?.save(&folder.join("smollm2"), DType::F32)?;
    }
    Ok(())
}

/// The GGUF file of SmolLM2: `SAFERL_SMOLLM2`, else where `saferl pull smollm2-135m` puts it.
fn smollm2() -> Option<PathBuf> {
    let pulled = || {
        Some(
            model::source::cache_folder()
                .ok()?
                .join("smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"),
        )
    };
    std::env::var_os("SAFERL_SMOLLM2")
        .map(PathBuf::from)
        .or_else(pulled)
        .filter(|path| path.exists())
}

fn load_smollm2(path: PathBuf) -> Result<Decoder, Box<dyn Error>> {
    let (weights, name) = (WeightsFormat::Gguf(path), "smollm2-135m".into());
    let source = Source {
        weights,
        folder: None,
        name,
    };
    Ok(Decoder::load(&source, DType::F32, &Device::Cpu)?)
}

#[test]
fn smollm2_agrees_with_transformers() -> Outcome {
    let Some(path) = smollm2() else {
        println!("skipped: SAFERL_SMOLLM2 names no file, and smollm2-135m has not been pulled");
        return Ok(());
    };
    let golden = golden("smollm2.json")?;
    let decoder = load_smollm2(path)?;
    let prompt = ids(&golden["ids"]);
    let rows = all_logits(&decoder, &prompt)?;
    let last = &rows[prompt.len() - 1];
    let found: Vec<f32> = ids(&golden["top_ids"])
        .iter()
        .map(|&id| last[id as usize])
        .collect();
    let gap = difference(&found, &floats(&golden["top_logits"]));
    println!("largest difference of the twenty likeliest logits: {gap:.2e}");
    assert!(gap < 1e-4);
    assert_eq!(greedy(&decoder, &prompt, 64)?, ids(&golden["greedy"]));
    Ok(())
}
