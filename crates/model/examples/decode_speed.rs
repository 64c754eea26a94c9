//! Tokens per second of the engine at several batch sizes: `decode_speed [MODEL] [NEW_TOKENS] [BATCH...]`.

use std::sync::Arc;

use candle_core::{DType, Device};
use model::chat::{Message, Mode};
use model::decoder::Decoder;
use model::engine::Engine;
use model::generate::{Generate, Sampling};
use model::source;
use model::tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "smollm2-135m".to_owned());
    let new_tokens = arguments.next().map_or(Ok(64), |count| count.parse())?;
    let mut batches = arguments
        .map(|batch| batch.parse())
        .collect::<Result<Vec<usize>, _>>()?;
    if batches.is_empty() {
        batches = vec![1, 8, 32];
    }
    let source = source::resolve(&name, &mut |_| {})?;
    let tokenizer = Arc::new(Tokenizer::load(&source)?);
    let decoder = Decoder::load(&source, DType::F32, &Device::Cpu)?;
    let prompt = tokenizer.prompt(
        &[Message::user("Write a long story about a lighthouse.")],
        Mode::NoThink,
    )?;
    let sampling = Sampling {
        max_new_tokens: new_tokens,
        ..Sampling::default()
    };
    for batch in batches {
        let mut engine = Engine::new(
            decoder.clone(),
            Arc::clone(&tokenizer),
            batch * (new_tokens + 16) + 1024,
        )?;
        engine.generate(
            std::slice::from_ref(&prompt),
            batch,
            &Sampling {
                max_new_tokens: 2,
                ..sampling.clone()
            },
        )?;
        let before = engine.metrics();
        engine.generate(std::slice::from_ref(&prompt), batch, &sampling)?;
        let after = engine.metrics();
        let (tokens, seconds) = (after.tokens - before.tokens, after.seconds - before.seconds);
        println!(
            "batch {batch:>3}: {tokens:>5} tokens in {seconds:.2} s, {:.1} tokens/s, {} prompt tokens",
            tokens as f64 / seconds,
            after.read_tokens - before.read_tokens
        );
    }
    Ok(())
}
