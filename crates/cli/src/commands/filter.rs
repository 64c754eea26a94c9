//! `saferl data filter`: the prompts on which a model is sometimes safe and sometimes not.

use std::sync::Arc;

use candle_core::{DType, Device};
use model::engine::Engine;
use model::generate::Generate;
use model::tokenizer::Tokenizer;
use train::recipe::Recipe;
use train::server::Server;

use crate::arguments::Filter;
use crate::error::Result;
use crate::local::{Local, open_device, resolve};
use crate::output::print_line;
use crate::progress::bar;

/// Tokens of the engine's KV pool; what does not fit waits its turn.
const POOL_TOKENS: usize = 1 << 16;

/// Filters the recipe's prompts into a file that `prompts.source` reads, and prints how many were kept. The answers are the
/// recipe's server's where it names one, which needs no weights here.
pub(crate) fn run(arguments: &Filter) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe.recipe, &arguments.recipe.overrides)?;
    let device = open_device(&arguments.on)?;
    let rows = train::prompts::load(&recipe.prompts)?;
    let mut judge = train::judges::open(&recipe.judge, &device)?;
    let (mut policy, tokenizer) = open_policy(&recipe, &device)?;
    let bar = bar("prompts", rows.len());
    let outcome = train::filter::filter(
        &recipe,
        &rows,
        &tokenizer,
        &mut *policy,
        &mut judge,
        &arguments.output,
        &mut |progress| {
            bar.set_position(progress.done as u64);
            bar.set_message(format!("{} kept", progress.kept));
        },
    );
    bar.finish_and_clear();
    let outcome = outcome?;
    print_line(&format!(
        "kept {} of {} prompts in {}; dropped {} whose answers were all safe, {} whose answers were all unsafe or not judged",
        outcome.kept,
        outcome.prompts,
        arguments.output.display(),
        outcome.all_safe,
        outcome.all_unsafe
    ))
}

/// What answers, and its tokenizer.
fn open_policy(recipe: &Recipe, device: &Device) -> Result<(Box<dyn Generate>, Arc<Tokenizer>)> {
    if !recipe.rollout.url.is_empty() {
        let tokenizer = Arc::new(Tokenizer::load(&resolve(&recipe.model)?)?);
        if let Some(server) = Server::of(recipe, &tokenizer)? {
            return Ok((Box::new(server), tokenizer));
        }
    }
    let Local {
        decoder, tokenizer, ..
    } = Local::load(&recipe.model, DType::F32, device)?;
    let engine = Engine::new(decoder, tokenizer.clone(), POOL_TOKENS)?;
    Ok((Box::new(engine), tokenizer))
}
