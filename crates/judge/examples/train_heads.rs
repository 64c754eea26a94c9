//! Trains the built-in guard or helpfulness head and writes the heads file.
//!
//! ```text
//! cargo run --release -p judge --example train_heads -- guard recipes/guard.toml MODEL DATA CACHE OUT
//! cargo run --release -p judge --example train_heads -- helpfulness recipes/helpfulness.toml MODEL DATA CACHE OUT
//! ```
//!
//! MODEL is the base (a GGUF file, a folder or a name), DATA the folder of public data, CACHE a folder for features, OUT
//! the heads file; the other head in OUT is kept. Progress goes to stderr, the report to stdout in JSON.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use judge::Heads;
use judge::features::{Features, fingerprint};
use judge::probe::{Progress, Recipe, train_guard, train_helpfulness};
use model::decoder::Decoder;
use model::tokenizer::Tokenizer;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, recipe, base, data, cache, out] = arguments.as_slice() else {
        return Err("usage: train_heads guard|helpfulness RECIPE MODEL DATA CACHE OUT".into());
    };
    let (data, out) = (Path::new(data), PathBuf::from(out));
    let recipe = Recipe::load(Path::new(recipe))?;
    let source = model::source::resolve(base, &mut |_| ())?;
    let decoder = Decoder::load(&source, recipe.dtype.into(), &candle_core::Device::Cpu)?;
    let tokenizer = Arc::new(Tokenizer::load(&source)?);
    let sha256 = fingerprint(&source)?;
    let features =
        Features::new(decoder, tokenizer, recipe.layout.clone()).with_cache(Path::new(cache), &sha256)?;

    let mut heads = match std::fs::metadata(&out) {
        Ok(file) if file.len() > 0 => Heads::load(&out)?,
        _ => Heads::untrained(base, &sha256, &features),
    };
    heads.check(&features, &sha256)?;
    let features = Arc::new(Mutex::new(features));
    let mut progress = printer();
    let report = match what.as_str() {
        "guard" => {
            let trained = train_guard(&recipe, data, &features, &mut heads, &mut progress)?;
            eprintln!("validation\n{}\ntest\n{}", trained.validation, trained.test);
            serde_json::to_string_pretty(&trained)?
        }
        "helpfulness" => {
            let trained = train_helpfulness(&recipe, data, &features, &mut heads, &mut progress)?;
            eprintln!("validation\n{}\ntest\n{}", trained.validation, trained.test);
            serde_json::to_string_pretty(&trained)?
        }
        other => return Err(format!("expected guard or helpfulness, found `{other}`").into()),
    };
    heads.save(&out)?;
    println!("{report}");
    Ok(())
}

/// Prints progress with the time that is left.
fn printer() -> impl FnMut(Progress) {
    let start = Instant::now();
    move |progress| match progress {
        Progress::Loaded { conversations } => eprintln!("{conversations} conversations"),
        Progress::Features { done, total } => {
            let seconds = start.elapsed().as_secs_f64();
            let left = seconds * (total - done) as f64 / done.max(1) as f64;
            let speed = done as f64 / seconds.max(1e-3);
            eprintln!("features: {done} of {total} rows, {speed:.0} rows/s, {left:.0} s left");
        }
        Progress::Epoch {
            head,
            epoch,
            loss,
            validation,
        } => {
            eprintln!("{head}: epoch {epoch}, loss {loss:.4}, validation {validation:.4}");
        }
    }
}
