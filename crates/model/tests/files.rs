//! Checkpoint files: GGUF against candle's own reading of its blocks, and files that are wrong or mean harm.

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use kernels::Segment;
use model::chat::{Message, Mode};
use model::config::{Config, Family};
use model::decoder::Decoder;
use model::engine::Engine;
use model::generate::{Completion, Generate, Sampling};
use model::lora::Lora;
use model::seeded;
use model::source::{Source, WeightsFormat, resolve};
use model::tokenizer::Tokenizer;
use model::weights::{Weights, gguf, safetensors};
use serde_json::json;

type Outcome = Result<(), Box<dyn Error>>;

/// Metadata of the tiny model of a family, as a GGUF file has it.
fn metadata(family: Family) -> Vec<(String, Value)> {
    let name = family.model_type();
    let mut list = vec![("general.architecture".to_owned(), Value::String(name.into()))];
    let head_dim = if family == Family::Qwen3 { 16 } else { 8 };
    for (key, count) in [
        ("embedding_length", 32),
        ("block_count", 2),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", head_dim),
        ("context_length", 2048),
    ] {
        list.push((format!("{name}.{key}"), Value::U32(count)));
    }
    list.push((
        format!("{name}.attention.layer_norm_rms_epsilon"),
        Value::F32(1e-6),
    ));
    list.push((format!("{name}.rope.freq_base"), Value::F32(50_000.0)));
    list.push(("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(258)));
    list.push((
        "tokenizer.ggml.tokens".to_owned(),
        Value::Array(vec![Value::String("a".into())]),
    ));
    list
}

fn write_gguf(path: &Path, metadata: &[(String, Value)], tensors: &[(String, QTensor)]) -> Outcome {
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    Ok(gguf_file::write(
        &mut BufWriter::new(File::create(path)?),
        &metadata,
        &tensors,
    )?)
}

/// Rows of each head in llama.cpp's order: pairs (0, half), (1, half + 1), ...
fn interleaved(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = tensor.dims2()?;
    let halves = tensor.reshape((heads, 2, rows / heads / 2, columns))?;
    halves.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}

/// The tiny model of a family as a GGUF file, as llama.cpp's converter lays it out: matrices whose rows fill blocks of
/// `dtype` in that, the rest in F32.
fn write_tiny_gguf(path: &Path, family: Family, tied: bool, dtype: GgmlDType) -> Outcome {
    let mut tensors = Vec::new();
    for (name, tensor) in seeded::tensors(&seeded::tiny_config(family, tied)?)? {
        let tensor = match (family, name.rsplit('.').nth(1)) {
            (Family::Llama, Some("q_proj")) => interleaved(&tensor, 4)?,
            (Family::Llama, Some("k_proj")) => interleaved(&tensor, 2)?,
            _ => tensor,
        };
        let mut name = name.replace("model.layers.", "blk.");
        for (theirs, ours) in [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ] {
            name = name.replace(theirs, ours);
        }
        let blocks = tensor.rank() == 2 && tensor.dim(1)?.is_multiple_of(dtype.block_size());
        let dtype = if blocks { dtype } else { GgmlDType::F32 };
        tensors.push((name, QTensor::quantize(&tensor, dtype)?));
    }
    write_gguf(path, &metadata(family), &tensors)
}

fn gguf_source(path: PathBuf) -> Source {
    Source {
        weights: WeightsFormat::Gguf(path),
        folder: None,
        name: "test".into(),
    }
}

#[test]
fn a_gguf_file_gives_the_model_it_was_made_from() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.gguf");
    for (family, tied) in [
        (Family::Llama, true),
        (Family::Qwen3, false),
        (Family::Qwen2, true),
    ] {
        write_tiny_gguf(&path, family, tied, GgmlDType::F32)?;
        let found = Decoder::load(&gguf_source(path.clone()), DType::F32, &Device::Cpu)?;
        let expected = seeded::tiny_decoder(family, tied)?;
        assert_eq!(
            (found.config.tied, found.config.fields["eos_token_id"].as_u64()),
            (tied, Some(258))
        );
        for ((name, expected), (other, found)) in expected.parameters()?.iter().zip(found.parameters()?) {
            assert_eq!(name, &other);
            assert_eq!(
                expected.flatten_all()?.to_vec1::<f32>()?,
                found.flatten_all()?.to_vec1::<f32>()?,
                "{name}"
            );
        }
        // Saved as a folder, it is that model again.
        found.save(folder.path(), DType::F32)?;
        let weights = WeightsFormat::Safetensors(vec![folder.path().join("model.safetensors")]);
        let saved = Source {
            weights,
            folder: Some(folder.path().into()),
            name: "saved".into(),
        };
        let again = Decoder::load(&saved, DType::F32, &Device::Cpu)?;
        let segments = [Segment {
            start: 0,
            len: 3,
            prefix: None,
        }];
        let hidden = |decoder: &Decoder| -> Result<Vec<Vec<f32>>, Box<dyn Error>> {
            Ok(decoder.hidden(&[1, 2, 3], &segments)?.to_vec2()?)
        };
        assert_eq!(hidden(&again)?, hidden(&expected)?);
    }
    Ok(())
}

/// The completions of a prompt, with their log-probabilities: a greedy one, and two drawn together.
fn completions(decoder: &Decoder, tokenizer: &Arc<Tokenizer>) -> model::Result<Vec<Completion>> {
    let mut engine = Engine::new(decoder.clone(), Arc::clone(tokenizer), 1024)?;
    let prompt = tokenizer.prompt(&[Message::user("Hello!")], Mode::NoThink)?;
    let mut sampling = Sampling {
        max_new_tokens: 12,
        temperature: 0.0,
        ..Sampling::default()
    };
    let mut completions = engine.generate(std::slice::from_ref(&prompt), 1, &sampling)?;
    sampling.temperature = 1.0;
    completions.extend(engine.generate(&[prompt], 2, &sampling)?);
    Ok(completions.concat())
}

#[test]
fn a_model_in_blocks_is_the_dequantized_one_to_the_last_bit() -> Outcome {
    let folder = tempfile::tempdir()?;
    seeded::write_tiny(folder.path(), Family::Qwen3)?;
    let tokenizer = resolve(&folder.path().display().to_string(), &mut |_| {})?;
    let tokenizer = Arc::new(Tokenizer::load(&tokenizer)?);
    let path = folder.path().join("blocks.gguf");
    for (family, tied, kind) in [
        (Family::Llama, true, GgmlDType::Q8_0),
        (Family::Llama, false, GgmlDType::Q4_1),
        (Family::Qwen3, false, GgmlDType::Q4_0),
        (Family::Qwen2, true, GgmlDType::Q5_0),
    ] {
        write_tiny_gguf(&path, family, tied, kind)?;
        let source = gguf_source(path.clone());
        let plain = Decoder::load(&source, DType::F32, &Device::Cpu)?;
        let blocks = Decoder::load_for_inference(&source, DType::F32, &Device::Cpu)?;
        let integers = Decoder::load_for_inference(&source, DType::U8, &Device::Cpu)?;
        assert!(
            blocks.matrix_bytes() < plain.matrix_bytes(),
            "{family:?} {kind:?}"
        );
        for ((name, expected), (_, found)) in plain.parameters()?.iter().zip(blocks.parameters()?) {
            let found = found.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(found, expected.flatten_all()?.to_vec1::<f32>()?, "{name}");
        }
        let expected = completions(&plain, &tokenizer)?;
        assert_eq!(completions(&blocks, &tokenizer)?, expected, "{family:?} {kind:?}");
        assert_eq!(completions(&blocks.frozen()?, &tokenizer)?, expected);

        let segments = [Segment {
            start: 0,
            len: 3,
            prefix: None,
        }];
        let read = |decoder: &Decoder| -> Result<Vec<f32>, Box<dyn Error>> {
            let hidden_t_d = decoder.hidden(&[1, 2, 3], &segments)?;
            Ok(decoder.log_probability(&hidden_t_d, &[2, 3, 4], 1.0)?.to_vec1()?)
        };
        assert_eq!(read(&blocks)?, read(&plain)?);
        // Products of integers are near.
        for (found, expected) in read(&integers)?.iter().zip(read(&plain)?) {
            assert!(
                (found - expected).abs() < 0.1,
                "{family:?} {kind:?}: {found}, {expected}"
            );
        }
        // What trains leaves its blocks.
        let mut trained = blocks.clone();
        let variables = trained.make_trainable()?;
        assert_eq!(variables.len(), plain.parameters()?.len());
        assert_eq!(read(&trained)?, read(&plain)?);
    }
    Ok(())
}

#[test]
fn every_gguf_type_reads_as_candle_dequantizes_it() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("types.gguf");
    let source = seeded::tensor("source", &[3, 512])?;
    let config = seeded::tiny_config(Family::Qwen3, true)?;
    for (dtype, loss) in [
        (GgmlDType::F32, 0.0),
        (GgmlDType::F16, 1e-3),
        (GgmlDType::BF16, 1e-2),
        (GgmlDType::Q8_0, 1e-2),
        (GgmlDType::Q4_0, 0.15),
        (GgmlDType::Q4_1, 0.15),
        (GgmlDType::Q5_0, 0.08),
        (GgmlDType::Q5_1, 0.08),
        (GgmlDType::Q4K, 0.15),
        (GgmlDType::Q5K, 0.08),
        (GgmlDType::Q6K, 0.05),
    ] {
        let quantized = QTensor::quantize(&source, dtype)?;
        let expected = quantized.dequantize(&Device::Cpu)?;
        write_gguf(&path, &metadata(Family::Qwen3), &[("tensor".into(), quantized)])?;
        let found = gguf::Header::read(&path)?.tensors(&config)?;
        assert_eq!(
            found[0].1.to_vec2::<f32>()?,
            expected.to_vec2::<f32>()?,
            "{dtype:?}"
        );
        let largest: f32 = source.abs()?.max_all()?.to_scalar()?;
        let lost: f32 = (&found[0].1 - &source)?.abs()?.max_all()?.to_scalar()?;
        assert!(lost <= loss * largest, "{dtype:?} loses {lost} of {largest}");
    }
    let quantized = QTensor::quantize(&source, GgmlDType::Q3K)?;
    write_gguf(
        &path,
        &metadata(Family::Qwen3),
        &[("blk.0.attn_q.weight".into(), quantized)],
    )?;
    let error = message(gguf::Header::read(&path));
    assert!(
        error.contains("blk.0.attn_q.weight") && error.contains("found type 11"),
        "{error}"
    );
    Ok(())
}

fn message<T>(result: model::Result<T>) -> String {
    match result {
        Ok(_) => "it succeeded".into(),
        Err(error) => error.to_string(),
    }
}

/// What loading the tiny qwen2 model says after `change` to its tensors.
fn load_changed(change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> String {
    let load = || -> model::Result<Decoder> {
        let config = seeded::tiny_config(Family::Qwen2, true)?;
        let mut tensors = seeded::tensors(&config)?;
        change(&mut tensors);
        let mut weights: Weights = tensors.into_iter().collect();
        let decoder = Decoder::from_weights(&config, &mut weights, true, DType::F32, &Device::Cpu)?;
        weights.finish(&config)?;
        Ok(decoder)
    };
    message(load())
}

#[test]
fn a_wrong_tensor_is_named_with_both_shapes() -> Outcome {
    let bias = "model.layers.1.self_attn.k_proj.bias";
    let other = Tensor::zeros((3, 5), DType::F32, &Device::Cpu)?;
    let missing = load_changed(|tensors| tensors.retain(|(name, _)| name != bias));
    assert_eq!(
        missing,
        format!("tensor {bias}: expected shape [16], found no such tensor")
    );
    let misshapen = load_changed(|tensors| {
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name == bias) {
            *tensor = other.clone();
        }
    });
    assert_eq!(
        misshapen,
        format!("tensor {bias}: expected shape [16], found shape [3, 5]")
    );
    let extra = load_changed(|tensors| tensors.push(("score.weight".into(), other.clone())));
    assert_eq!(
        extra,
        "tensor score.weight: expected no such tensor in this model, found shape [3, 5]"
    );
    let redundant = load_changed(|tensors| {
        tensors.push(("lm_head.weight".into(), other.clone()));
        tensors.push((
            "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
            other.clone(),
        ));
    });
    assert_eq!(redundant, "it succeeded");
    Ok(())
}

#[test]
fn a_checkpoint_may_be_split_but_holds_no_tensor_twice() -> Outcome {
    let folder = tempfile::tempdir()?;
    let decoder = seeded::tiny_decoder(Family::Qwen3, false)?;
    decoder.save(folder.path(), DType::F32)?;
    let parameters = decoder.parameters()?;
    let paths = ["model-1.safetensors", "model-2.safetensors"].map(|name| folder.path().join(name));
    safetensors::write(&paths[0], &parameters[..5], DType::F32)?;
    safetensors::write(&paths[1], &parameters[5..], DType::F32)?;
    let source = |paths: Vec<PathBuf>| Source {
        weights: WeightsFormat::Safetensors(paths),
        folder: Some(folder.path().into()),
        name: "split".into(),
    };
    let again = Decoder::load(&source(paths.to_vec()), DType::F32, &Device::Cpu)?;
    assert_eq!(again.parameters()?.len(), parameters.len());
    let twice = Decoder::load(
        &source(vec![paths[0].clone(), paths[0].clone()]),
        DType::F32,
        &Device::Cpu,
    );
    assert!(message(twice).ends_with("expected one tensor of this name, found two"));
    let half = Decoder::load(&source(vec![paths[0].clone()]), DType::F32, &Device::Cpu);
    assert!(message(half).ends_with("found no such tensor"));
    Ok(())
}

#[test]
fn saved_rotary_settings_stand_where_old_and_new_readers_look() -> Outcome {
    let scaled = json!({"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    for (rope, scaling) in [
        (json!({"rope_type": "default", "rope_theta": 500.0}), None),
        (scaled.clone(), Some(scaled)),
    ] {
        let mut fields = seeded::tiny_fields(Family::Llama, true);
        fields.insert("rope_parameters".into(), rope.clone());
        let config = Config::from_fields(Path::new("config.json"), fields)?;
        let folder = tempfile::tempdir()?;
        seeded::decoder(&config)?.save(folder.path(), DType::F32)?;
        let path = folder.path().join("config.json");
        let mut saved: serde_json::Map<_, _> = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        assert_eq!(saved.get("rope_theta"), Some(&json!(500.0)));
        assert_eq!(saved.get("rope_scaling"), scaling.as_ref());
        // An older reader knows nothing of the newer place.
        assert_eq!(saved.remove("rope_parameters"), Some(rope));
        let older = Config::from_fields(&path, saved)?;
        assert_eq!(
            (older.rope_theta, older.rope_scaling),
            (config.rope_theta, config.rope_scaling)
        );
    }
    Ok(())
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("whole.gguf");
    write_tiny_gguf(&path, Family::Llama, true, GgmlDType::Q4_0)?;
    let bytes = std::fs::read(&path)?;
    let cut = folder.path().join("cut.gguf");
    // Closely through the header, then some lengths through the data.
    for length in (0..2500).step_by(9).chain((2500..bytes.len()).step_by(4099)) {
        std::fs::write(&cut, &bytes[..length])?;
        let source = gguf_source(cut.clone());
        let error = message(Decoder::load(&source, DType::F32, &Device::Cpu));
        assert_ne!(error, "it succeeded", "{length} bytes");
        let in_blocks = message(Decoder::load_for_inference(&source, DType::F32, &Device::Cpu));
        // Which of the tensors beyond the end is told depends on the order of a map.
        let cut_off = "expected data that lies within the file";
        if error.contains(cut_off) {
            assert!(in_blocks.contains(cut_off), "{length} bytes: {in_blocks}");
        } else {
            assert_eq!(in_blocks, error, "{length} bytes");
        }
    }
    seeded::tiny_decoder(Family::Llama, true)?.save(folder.path(), DType::F32)?;
    let bytes = std::fs::read(folder.path().join("model.safetensors"))?;
    for length in (0..2500).step_by(9).chain((2500..bytes.len()).step_by(4099)) {
        assert!(
            safetensors::read_bytes(&bytes[..length], &path).is_err(),
            "{length} bytes"
        );
    }
    Ok(())
}

/// A GGUF file by hand: header counts, then `rest`.
fn raw_gguf(tensors: u64, pairs: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(pairs.to_le_bytes());
    bytes.extend(rest);
    bytes
}

fn raw_string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes
}

/// A tensor's entry by hand.
fn raw_entry(name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = raw_string(name);
    bytes.extend((dimensions.len() as u32).to_le_bytes());
    bytes.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

/// What reading such a file whole says.
fn read_raw(bytes: &[u8]) -> Result<String, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("hostile.gguf");
    std::fs::write(&path, bytes)?;
    let config = seeded::tiny_config(Family::Llama, true)?;
    Ok(message(
        gguf::Header::read(&path).and_then(|header| header.tensors(&config)),
    ))
}

#[test]
fn a_hostile_gguf_header_is_an_error_before_anything_is_allocated() -> Outcome {
    let padding = [0u8; 4096];
    let says = |bytes: Vec<u8>, expected: &str| -> Outcome {
        let found = read_raw(&bytes)?;
        assert!(found.contains(expected), "expected `{expected}`, found `{found}`");
        Ok(())
    };
    says(
        raw_gguf(u64::MAX, 0, &padding),
        "tensors of at least 24 bytes do not fit",
    )?;
    says(
        raw_gguf(0, 1 << 40, &padding),
        "metadata pairs of at least 13 bytes do not fit",
    )?;
    let mut long_key = u64::MAX.to_le_bytes().to_vec();
    long_key.extend(padding);
    says(raw_gguf(0, 1, &long_key), "do not fit")?;
    let array = |kind: u32, count: u64| {
        let mut bytes = raw_string("key");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes
    };
    says(
        raw_gguf(0, 1, &[array(4, u64::MAX / 2), padding.to_vec()].concat()),
        "array elements",
    )?;
    let mut nested = array(9, 1);
    for _ in 0..100 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    nested.extend(padding);
    says(raw_gguf(0, 1, &nested), "nest")?;
    let mut alignment = raw_string("general.alignment");
    alignment.extend([4, 0, 0, 0, 0, 0, 0, 0]);
    alignment.extend(padding);
    says(raw_gguf(0, 1, &alignment), "general.alignment")?;
    for (dimensions, offset) in [
        (vec![1 << 40, 1 << 40], 0),
        (vec![u64::MAX], 0),
        (vec![1 << 30], 0),
        (vec![32], u64::MAX),
        (vec![32], 1 << 20),
    ] {
        let entry = [
            raw_entry("blk.0.attn_q.weight", &dimensions, 0, offset),
            padding.to_vec(),
        ]
        .concat();
        says(raw_gguf(1, 0, &entry), "expected data that lies within the file")?;
    }
    let ragged = [raw_entry("token_embd.weight", &[33], 2, 0), padding.to_vec()].concat();
    says(raw_gguf(1, 0, &ragged), "in rows of whole blocks of 32")?;
    let ranked = [raw_entry("token_embd.weight", &[1; 9], 0, 0), padding.to_vec()].concat();
    says(raw_gguf(1, 0, &ranked), "at most 4 dimensions")?;
    // Many tensors over the same bytes: each fits, together they would not.
    let mut shared: Vec<u8> = (0..20)
        .flat_map(|index| raw_entry(&index.to_string(), &[1000], 0, 0))
        .collect();
    shared.extend(padding);
    says(raw_gguf(20, 0, &shared), "tensors apart from each other")?;
    let twice: Vec<u8> = [
        raw_entry("a", &[1], 0, 0),
        raw_entry("a", &[1], 0, 0),
        padding.to_vec(),
    ]
    .concat();
    says(raw_gguf(2, 0, &twice), "twice")
}

#[test]
fn a_hostile_safetensors_header_is_an_error() {
    let file = |length: u64, header: &str, data: usize| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + data, 0);
        message(safetensors::read_bytes(&bytes, Path::new("hostile.safetensors")))
    };
    let whole = |header: &str, data: usize| file(header.len() as u64, header, data);
    assert_eq!(
        whole(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8),
        "it succeeded"
    );
    for error in [
        file(u64::MAX, "{}", 0),
        file(1 << 26, "{}", 0),
        whole(
            r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#,
            8,
        ),
        whole(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8),
        whole(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8),
        whole(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4),
        whole(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            8,
        ),
        whole("[1, 2", 8),
    ] {
        assert!(
            error.starts_with("hostile.safetensors: expected safetensors"),
            "{error}"
        );
    }
    let integers = whole(r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, 8);
    assert_eq!(
        integers,
        "tensor a: expected type F32, F16, BF16 or F64, found I64"
    );
}

/// The tiny tokenizer's ids of a rendered conversation, by the `tokenizers` crate and by transformers.
#[test]
fn the_tiny_tokenizer_gives_the_ids_that_transformers_gives() -> Outcome {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/logits/checkpoints.json");
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let folder = tempfile::tempdir()?;
    seeded::write_tokenizer(folder.path())?;
    let from_file = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json"));
    let tokenizer = from_file.map_err(|error| error.to_string())?;
    let text = golden["rendered"]["text"].as_str().ok_or("no text")?;
    let encoding = tokenizer.encode(text, false).map_err(|error| error.to_string())?;
    assert_eq!(serde_json::json!(encoding.get_ids()), golden["rendered"]["ids"]);
    // Thinking marks are ordinary added tokens, so skipping special tokens keeps them.
    let decoded = tokenizer
        .decode(encoding.get_ids(), true)
        .map_err(|error| error.to_string())?;
    assert_eq!(decoded, "user\nGrüß Gott\nassistant\n<think>\n\n</think>\n\n");
    Ok(())
}

#[test]
fn a_wrong_configuration_names_file_and_key() {
    let says = |key: &str, value: serde_json::Value, expected: &str| {
        let mut fields = seeded::tiny_fields(Family::Llama, true);
        fields.insert(key.into(), value);
        let found = message(Config::from_fields(Path::new("folder/config.json"), fields));
        assert_eq!(
            found,
            format!("folder/config.json: key `{key}`: expected {expected}")
        );
    };
    use serde_json::json;
    says(
        "model_type",
        json!("gpt2"),
        "qwen3, qwen2, llama or mistral, found \"gpt2\"",
    );
    says(
        "hidden_size",
        json!(-1),
        "a whole number from 1 to 2^31, found -1",
    );
    says(
        "num_hidden_layers",
        json!(null),
        "a whole number from 1 to 2^31, found null",
    );
    says(
        "num_key_value_heads",
        json!(3),
        "a divisor of 4 attention heads, found 3",
    );
    says("head_dim", json!(7), "an even width, here 7, found 7");
    says("hidden_act", json!("gelu"), "\"silu\", found \"gelu\"");
    says(
        "rms_norm_eps",
        json!("small"),
        "a positive number, found \"small\"",
    );
    says(
        "rope_parameters",
        json!({"rope_type": "yarn"}),
        "a rope_type of default or llama3, found {\"rope_type\":\"yarn\"}",
    );
    says("tie_word_embeddings", json!(1), "true or false, found 1");
}

#[test]
fn adapters_that_would_compute_otherwise_are_refused() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut decoder = seeded::tiny_decoder(Family::Llama, true)?;
    let targets = vec!["k_proj".to_owned()];
    let lora = Lora {
        rank: 2,
        alpha: 4.0,
        targets,
        layers: Vec::new(),
    };
    decoder.add_adapters(&lora, 3)?;
    decoder.save_adapters(folder.path(), "base")?;
    let path = folder.path().join("adapter_config.json");
    let saved: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    let load = |key: &str, value: serde_json::Value| -> Result<String, Box<dyn Error>> {
        let mut config = saved.clone();
        config[key] = value;
        std::fs::write(&path, config.to_string())?;
        Ok(message(
            seeded::tiny_decoder(Family::Llama, true)?.load_adapters(folder.path()),
        ))
    };
    assert_eq!(load("use_rslora", false.into())?, "it succeeded");
    for (key, value, expected) in [
        (
            "use_rslora",
            true.into(),
            "key `use_rslora`: expected nothing, found true",
        ),
        (
            "bias",
            "all".into(),
            "key `bias`: expected \"none\", found \"all\"",
        ),
        ("peft_type", "IA3".into(), "key `peft_type`: expected \"LORA\""),
        (
            "r",
            3.into(),
            "lora_A.weight: expected shape [3, 32], found shape [2, 32]",
        ),
        ("r", 0.into(), "lora rank: expected at least 1"),
        (
            "layers_to_transform",
            serde_json::json!([0, 7]),
            "lora layers: expected blocks below 2, found 7",
        ),
        (
            "target_modules",
            serde_json::json!(["lm_head"]),
            "lora target `lm_head`: expected one of",
        ),
        (
            "target_modules",
            serde_json::json!(["q_proj"]),
            "q_proj.lora_A.weight: expected shape [2, 32], found no",
        ),
    ] {
        let found = load(key, value)?;
        assert!(found.contains(expected), "expected `{expected}`, found `{found}`");
    }
    Ok(())
}

#[test]
fn ids_segments_and_windows_are_checked() -> Outcome {
    let mut fields = seeded::tiny_fields(Family::Mistral, true);
    fields.insert("sliding_window".into(), 4.into());
    let decoder = seeded::decoder(&Config::from_fields(Path::new("config.json"), fields)?)?;
    let one = |start, len, prefix| Segment { start, len, prefix };
    assert!(decoder.hidden(&[1, 2, 3, 4], &[one(0, 4, None)]).is_ok());
    let hidden = |ids: &[u32], segments: &[Segment]| message(decoder.hidden(ids, segments));
    assert!(hidden(&[1, 2, 3, 4, 5], &[one(0, 5, None)]).contains("the sliding window of 4"));
    assert!(hidden(&[320], &[one(0, 1, None)]).contains("token 320"));
    assert!(hidden(&[], &[]).contains("at least one token"));
    assert!(hidden(&[1, 2], &[one(0, 1, None)]).contains("expected 2 rows in all, found 1"));
    assert!(hidden(&[1, 2], &[one(0, 1, Some(0)), one(1, 1, None)]).contains("segment 0"));
    assert!(
        hidden(
            &[1, 2, 3],
            &[one(0, 1, None), one(1, 1, Some(0)), one(2, 1, Some(2))]
        )
        .contains("segment 2")
    );
    assert!(message(decoder.decode(&[1], &[0], &mut [], &[0], &[])).contains("pool layers"));
    Ok(())
}
