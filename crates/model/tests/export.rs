//! GGUF files and Modelfiles as this program writes them, read back by its own reader. llama.cpp's reading of them is
//! `goldens/gguf/check.py`.

use std::error::Error;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device};
use kernels::Segment;
use model::chat::{Message, Mode};
use model::config::{Config, Family};
use model::decoder::Decoder;
use model::export::{WeightType, modelfile, write_gguf};
use model::generate::Sampling;
use model::seeded;
use model::source::{Source, resolve};
use model::tokenizer::Tokenizer;
use model::weights::gguf::Header;
use serde_json::json;

type Outcome = Result<(), Box<dyn Error>>;

const IDS: [u32; 6] = [257, 72, 105, 33, 258, 10];

fn source(path: &Path) -> Result<Source, Box<dyn Error>> {
    Ok(resolve(&path.display().to_string(), &mut |_| {})?)
}

fn tiny_tokenizer(folder: &Path) -> Result<Tokenizer, Box<dyn Error>> {
    seeded::write_tokenizer(folder)?;
    Ok(Tokenizer::load(&source(folder)?)?)
}

fn write(
    folder: &Path,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    kind: WeightType,
) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join(format!("{kind:?}.gguf"));
    write_gguf(&path, "tiny", decoder, tokenizer, kind, &mut |_, _| {})?;
    Ok(path)
}

fn logits(decoder: &Decoder) -> Result<Vec<f32>, Box<dyn Error>> {
    let whole = [Segment {
        start: 0,
        len: IDS.len(),
        prefix: None,
    }];
    let hidden = decoder.hidden(&IDS, &whole)?;
    Ok(decoder.logits(&hidden)?.flatten_all()?.to_vec1()?)
}

fn load(path: &Path) -> Result<Decoder, Box<dyn Error>> {
    Ok(Decoder::load(&source(path)?, DType::F32, &Device::Cpu)?)
}

#[test]
fn every_family_comes_back_with_the_same_logits() -> Outcome {
    let folder = tempfile::tempdir()?;
    let tokenizer = tiny_tokenizer(folder.path())?;
    for family in Family::ALL {
        for tied in [true, false] {
            let decoder = seeded::tiny_decoder(family, tied)?;
            let path = write(folder.path(), &decoder, &tokenizer, WeightType::F32)?;
            let again = load(&path)?;
            assert_eq!(again.config.tied, tied, "{family:?}");
            assert_eq!(logits(&again)?, logits(&decoder)?, "{family:?}, tied {tied}");
            std::fs::remove_file(path)?;
        }
    }
    assert!(
        std::fs::read_dir(folder.path())?.all(|entry| {
            entry.is_ok_and(|entry| !entry.file_name().to_string_lossy().ends_with(".partial"))
        }),
        "a partial file was left behind"
    );
    Ok(())
}

#[test]
fn scaled_frequencies_and_biases_come_back() -> Outcome {
    let folder = tempfile::tempdir()?;
    let tokenizer = tiny_tokenizer(folder.path())?;
    let mut fields = seeded::tiny_fields(Family::Llama, true);
    fields.insert("attention_bias".into(), json!(true));
    fields.insert(
        "rope_parameters".into(),
        json!({"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
    );
    let decoder = seeded::decoder(&Config::from_fields(Path::new("config.json"), fields.clone())?)?;
    let again = load(&write(folder.path(), &decoder, &tokenizer, WeightType::F32)?)?;
    assert_eq!(again.config.rope_scaling, decoder.config.rope_scaling);
    assert_eq!(logits(&again)?, logits(&decoder)?);

    // Qwen's architectures have neither in llama.cpp.
    fields.insert("model_type".into(), json!("qwen3"));
    let decoder = seeded::decoder(&Config::from_fields(Path::new("config.json"), fields)?)?;
    let error = write(folder.path(), &decoder, &tokenizer, WeightType::F16).unwrap_err();
    assert!(error.to_string().contains("Llama 3"), "{error}");
    Ok(())
}

#[test]
fn every_type_comes_back_about_the_same() -> Outcome {
    let folder = tempfile::tempdir()?;
    let tokenizer = tiny_tokenizer(folder.path())?;
    let mut fields = seeded::tiny_fields(Family::Llama, true);
    // Rows of whole blocks of 256, of 32, and of neither: every fallback occurs.
    fields.insert("hidden_size".into(), json!(256));
    fields.insert("intermediate_size".into(), json!(288));
    fields.insert("head_dim".into(), json!(20));
    let decoder = seeded::decoder(&Config::from_fields(Path::new("config.json"), fields)?)?;
    let expected = logits(&decoder)?;
    let largest = expected.iter().fold(0f32, |most, logit| most.max(logit.abs()));
    for kind in WeightType::ALL {
        let path = write(folder.path(), &decoder, &tokenizer, kind)?;
        let found = logits(&load(&path)?)?;
        let pairs = found.iter().zip(&expected);
        let gap = pairs.fold(0f32, |most, (found, expected)| most.max((found - expected).abs())) / largest;
        let allowed = match kind {
            WeightType::F32 => 0.0,
            WeightType::F16 => 0.005,
            WeightType::Bf16 | WeightType::Q8_0 => 0.03,
            WeightType::Q6K => 0.1,
            WeightType::Q4_0 | WeightType::Q4KM => 0.5,
        };
        println!("{kind:?}: {gap:.2e} of the largest logit");
        assert!(gap <= allowed, "{kind:?}: {gap} of the largest logit");
    }
    Ok(())
}

#[test]
fn the_tokenizer_comes_back() -> Outcome {
    let folder = tempfile::tempdir()?;
    let tokenizer = tiny_tokenizer(folder.path())?;
    let decoder = seeded::tiny_decoder(Family::Qwen3, true)?;
    let path = write(folder.path(), &decoder, &tokenizer, WeightType::F32)?;
    let header = Header::read(&path)?;
    let tokens = match &header.metadata["tokenizer.ggml.tokens"] {
        Value::Array(tokens) => tokens.len(),
        other => return Err(format!("tokens: {other:?}").into()),
    };
    assert_eq!(tokens, decoder.config.vocabulary, "one a row of the embedding");
    assert_eq!(header.text("tokenizer.ggml.pre"), Some("gpt-2"));
    assert_eq!(header.optional_count("tokenizer.ggml.eos_token_id"), Some(258));
    assert_eq!(header.optional_count("tokenizer.ggml.eot_token_id"), Some(256));

    // The file alone, away from the folder's tokenizer.json.
    let apart = tempfile::tempdir()?;
    let moved = apart.path().join("model.gguf");
    std::fs::rename(path, &moved)?;
    let again = Tokenizer::load(&source(&moved)?)?;
    assert_eq!(again.end_ids(), tokenizer.end_ids());
    let text = "Héllo  12 <think>x</think><|im_end|>\n";
    assert_eq!(again.encode_control(text)?, tokenizer.encode_control(text)?);
    assert_eq!(again.encode_plain(text)?, tokenizer.encode_plain(text)?);
    let messages = [Message::system("Be brief."), Message::user("Hi <|im_end|>")];
    for mode in [Mode::Think, Mode::NoThink] {
        assert_eq!(
            again.prompt(&messages, mode)?.ids,
            tokenizer.prompt(&messages, mode)?.ids
        );
    }
    Ok(())
}

#[test]
fn a_file_that_cannot_be_written_leaves_nothing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let tokenizer = tiny_tokenizer(folder.path())?;
    let decoder = seeded::tiny_decoder(Family::Qwen3, true)?;
    let missing = folder.path().join("missing");
    let error = write(&missing, &decoder, &tokenizer, WeightType::F32).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");

    // A number that half precision does not hold.
    let weights: Result<Vec<_>, _> = seeded::tensors(&decoder.config)?
        .into_iter()
        .map(|(name, tensor)| {
            Ok((
                name.clone(),
                if name.ends_with("up_proj.weight") {
                    (tensor * 1e6)?
                } else {
                    tensor
                },
            ))
        })
        .collect::<Result<Vec<_>, candle_core::Error>>();
    let mut weights = weights?.into_iter().collect();
    let large = Decoder::from_weights(&decoder.config, &mut weights, true, DType::F32, &Device::Cpu)?;
    let error = write(folder.path(), &large, &tokenizer, WeightType::F16).unwrap_err();
    assert!(error.to_string().contains("ffn_up.weight"), "{error}");
    let names: Vec<_> = std::fs::read_dir(folder.path())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>, std::io::Error>>()?;
    assert!(names.iter().all(|name| !name.contains("gguf")), "{names:?}");
    Ok(())
}

#[test]
fn the_modelfile_has_the_templates_parts() -> Outcome {
    let folder = tempfile::tempdir()?;
    let tokenizer = tiny_tokenizer(folder.path())?;
    let config = seeded::tiny_config(Family::Qwen3, true)?;
    let sampling = Sampling {
        temperature: 0.6,
        top_k: 20,
        ..Sampling::default()
    };
    let text = modelfile("model.gguf", &tokenizer, &config, &sampling)?;
    let expected = r#"FROM ./model.gguf
TEMPLATE """{{- if .System }}{{ "<|im_start|>system\n" }}{{ .System }}{{ "<|im_end|>\n" }}{{ else }}{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}{{ "<|im_start|>user\n" }}{{ .Content }}{{ "<|im_end|>\n" }}
{{- else if eq .Role "assistant" }}{{ "<|im_start|>assistant\n" }}
{{- if and $last .Thinking }}<think>{{ .Thinking }}</think>{{ end }}
{{- .Content }}{{ if not $last }}{{ "<|im_end|>\n" }}{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}{{ if and $.IsThinkSet (not $.Think) }}{{ "<|im_start|>assistant\n<think>\n\n</think>\n\n" }}{{ else }}{{ "<|im_start|>assistant\n" }}{{ end }}{{ end }}
{{- end }}"""
PARAMETER stop "<|endoftext|>"
PARAMETER stop "<|im_end|>"
PARAMETER temperature 0.6
PARAMETER top_p 1
PARAMETER top_k 20
PARAMETER min_p 0
PARAMETER repeat_penalty 1
"#;
    assert_eq!(text, expected);

    // A template that treats the second question otherwise than the first.
    let odd = "{% for m in messages %}{{ m.role }}{{ loop.index }}: {{ m.content }}\n{% endfor %}";
    std::fs::write(folder.path().join("chat_template.jinja"), odd)?;
    let odd = Tokenizer::load(&source(folder.path())?)?;
    let error = modelfile("model.gguf", &odd, &config, &sampling).unwrap_err();
    assert!(error.to_string().contains("Ollama"), "{error}");
    Ok(())
}

/// Log-probabilities of every token, and which token came.
type Row = (Vec<f64>, usize);

/// The log-probabilities of every token after each row of a window's second half, and the rows' next tokens.
fn second_half(decoder: &Decoder, ids: &[u32]) -> Result<Vec<Row>, Box<dyn Error>> {
    let whole = [Segment {
        start: 0,
        len: ids.len(),
        prefix: None,
    }];
    let rows = ids.len() / 2 - 1..ids.len() - 1;
    let hidden = decoder.hidden(ids, &whole)?.narrow(0, rows.start, rows.len())?;
    let logits = decoder.logits(&hidden)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let with_next = logits.into_iter().zip(&ids[rows.start + 1..]);
    Ok(with_next
        .map(|(mut row, next)| {
            let most = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|logit| (logit - most).exp()).sum();
            row.iter_mut().for_each(|logit| *logit -= most + sum.ln());
            (row, *next as usize)
        })
        .collect())
}

/// Perplexity of the second half of each window, as the script `goldens/gguf/check.py` takes it; and how far, on average,
/// `exact` predicts otherwise (Kullback-Leibler divergence).
fn perplexity(
    decoder: &Decoder,
    exact: &Decoder,
    windows: &[Vec<u32>],
) -> Result<(f64, f64), Box<dyn Error>> {
    let (mut total, mut apart, mut count) = (0.0, 0.0, 0);
    for ids in windows {
        for ((row, next), (exact, _)) in second_half(decoder, ids)?.iter().zip(second_half(exact, ids)?) {
            total -= row[*next];
            apart += exact.iter().zip(row).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            count += 1;
        }
    }
    let count = f64::from(count);
    Ok(((total / count).exp(), apart / count))
}

#[test]
fn perplexity_is_that_of_llama_cpp() -> Outcome {
    let Some(folder) = std::env::var_os("SAFERL_GGUF").map(PathBuf::from) else {
        println!("skipped: SAFERL_GGUF names no folder of goldens/gguf/check.py");
        return Ok(());
    };
    let facts: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("perplexity.json"))?)?;
    let windows: Vec<Vec<u32>> = serde_json::from_value(facts["windows"].clone())?;
    for (name, theirs) in facts["perplexity"].as_object().ok_or("no perplexities")? {
        let file = folder.join(format!("{name}.gguf"));
        let exact = load(&file)?;
        let narrow = |dtype| {
            Decoder::load_for_inference(&source(&file)?, dtype, &Device::Cpu).map_err(Box::<dyn Error>::from)
        };
        let (ours, _) = perplexity(&exact, &exact, &windows)?;
        let (bf16, bf16_apart) = perplexity(&narrow(DType::BF16)?, &exact, &windows)?;
        let (int8, int8_apart) = perplexity(&narrow(DType::U8)?, &exact, &windows)?;
        let theirs = theirs.as_f64().ok_or("no number")?;
        println!(
            "{name}: f32 {ours:.4}; bf16 {bf16:.4}, {bf16_apart:.5} apart; int8 {int8:.4}, {int8_apart:.5} apart; \
             llama.cpp's {theirs:.4}"
        );
        // llama.cpp rounds the inputs of products with blocks to 8 bits, as this program does with int8 only.
        for ours in [ours, bf16, int8] {
            assert!((ours / theirs - 1.0).abs() < 0.02, "{name}: {ours} and {theirs}");
        }
    }
    Ok(())
}
