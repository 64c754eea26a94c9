//! `saferl guard`: how safe prompts and replies are.

use std::io::Read;
use std::sync::Arc;

use candle_core::{DType, Device};
use judge::data::Split;
use judge::endpoint::is_address;
use judge::guard::qwen3guard_stream::TokenRisk;
use judge::probe::{Recipe, evaluate_guard, train_guard};
use judge::{
    BuiltInGuard, Endpoint, Guard, LanguageModelGuard, RemoteGuard, RemoteWildGuard, Safety, StreamGuard,
    score_rows,
};
use model::chat::Message;
use model::decoder::Decoder;
use model::source::Source;
use model::tokenizer::Tokenizer;
use train::judges::ROOM;

use crate::arguments::{GuardChoice, GuardEval, GuardKind, GuardScore, GuardStream, HeadsTrain};
use crate::commands::heads;
use crate::error::{Error, Result};
use crate::local::{open_device, resolve};
use crate::output::{print_json, print_line};
use crate::progress::{say, spinner};

/// Trains the built-in guard's heads and prints their figures on test prompts.
pub(crate) fn train(arguments: &HeadsTrain) -> Result<()> {
    heads::train(arguments, train_guard)
}

/// The guard that the arguments choose.
fn open(choice: &GuardChoice, device: &Device) -> Result<Box<dyn Guard>> {
    open_on(choice, device, |_| None)
}

/// The same; `loaded` says whether the built-in guard's base model is there already, in f32, to be shared.
pub(crate) fn open_on(
    choice: &GuardChoice,
    device: &Device,
    loaded: impl FnOnce(&Source) -> Option<(Decoder, Arc<Tokenizer>)>,
) -> Result<Box<dyn Guard>> {
    let name = choice.guard.as_str();
    if name == "built-in" {
        let (heads, base) = heads::open_on(&choice.heads, device, loaded)?;
        return Ok(Box::new(BuiltInGuard::new(base.features, heads)?));
    }
    if !is_address(name) {
        let source = resolve(name)?;
        let wait = spinner(&format!("loading {name}"));
        let guard = judge::guard::local::load(&source, DType::F32, device, ROOM)?;
        wait.finish_and_clear();
        return Ok(guard);
    }
    let endpoint = Endpoint::new(name, &choice.guard_model);
    Ok(match choice.guard_kind {
        GuardKind::Qwen3guard => Box::new(RemoteGuard::new(endpoint)?),
        GuardKind::Wildguard => Box::new(RemoteWildGuard::new(endpoint)?),
        GuardKind::LanguageModel => Box::new(LanguageModelGuard::new(endpoint)?),
    })
}

/// Judges rows, a line of JSON each.
pub(crate) fn score(arguments: &GuardScore) -> Result<()> {
    let device = open_device(&arguments.on)?;
    let (input, name) = heads::rows(arguments.rows.as_ref())?;
    let mut guard = open(&arguments.guard, &device)?;
    let (_, unscorable) = score_rows(guard.as_mut(), input, &name, std::io::stdout().lock())?;
    if unscorable > 0 {
        say(&format!(
            "warning: {unscorable} rows could not be judged; their `unscorable` says why"
        ));
    }
    Ok(())
}

/// Prints the risk of a prompt and of every token of a reply to it.
pub(crate) fn stream(arguments: &GuardStream) -> Result<()> {
    let device = open_device(&arguments.on)?;
    let (mut input, name) = heads::rows(arguments.reply.as_ref())?;
    let mut reply = String::new();
    input
        .read_to_string(&mut reply)
        .map_err(|source| Error::file(&name, source))?;
    let source = resolve(&arguments.model)?;
    let wait = spinner(&format!("loading {}", arguments.model));
    let mut guard = StreamGuard::load(&source, DType::F32, &device, ROOM)?;
    wait.finish_and_clear();
    let risk = guard.start(&[Message::user(&arguments.prompt)])?;
    print_risk("prompt", &arguments.prompt, &risk, arguments.json)?;
    let ids = guard.tokenizer().encode_plain(&reply)?;
    let mut shown = 0;
    for count in 1..=ids.len() {
        let risks = guard.read(&ids[count - 1..count])?;
        // A character may take several tokens: its text comes with the last of them.
        let text = guard.tokenizer().decode(&ids[shown..count], false)?;
        let whole = !text.ends_with('\u{fffd}');
        for risk in &risks {
            print_risk("reply", if whole { &text } else { "" }, risk, arguments.json)?;
        }
        if whole {
            shown = count;
        }
    }
    Ok(())
}

fn print_risk(part: &str, text: &str, risk: &TokenRisk, json: bool) -> Result<()> {
    if json {
        let (safety, category, score) = (risk.safety, risk.category, risk.score);
        return print_json(&serde_json::json!({
            "part": part, "text": text, "safety": safety, "category": category, "score": score,
        }));
    }
    let category = if risk.safety == Safety::Safe {
        String::new()
    } else {
        format!("  {}", risk.category)
    };
    print_line(&format!(
        "{:<13} {:.3}  {text:?}{category}",
        risk.safety.name(),
        risk.score
    ))
}

/// Measures the guard on the recipe's test rows.
pub(crate) fn evaluate(arguments: &GuardEval) -> Result<()> {
    let device = open_device(&arguments.on)?;
    let recipe = Recipe::load(&arguments.recipe)?;
    let rows = recipe.load_data(&arguments.data)?.rows;
    let rows: Vec<_> = rows.iter().filter(|row| row.split == Some(Split::Test)).collect();
    let mut guard = open(&arguments.guard, &device)?;
    let wait = spinner(&format!("judging {} rows", rows.len()));
    let report = evaluate_guard(guard.as_mut(), &rows);
    wait.finish_and_clear();
    if arguments.json {
        print_json(&report)
    } else {
        print_line(&report.to_string())
    }
}
