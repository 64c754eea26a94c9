//! `saferl guard`: how safe prompts and replies are.

use judge::data::Split;
use judge::probe::{Recipe, evaluate_guard, train_guard};
use judge::{BuiltInGuard, Endpoint, Guard, RemoteGuard, score_rows};

use crate::arguments::{GuardEval, GuardScore, HeadsTrain};
use crate::commands::heads::{self, Base, Watch};
use crate::error::Result;
use crate::output::{print_json, print_line};
use crate::progress::{say, spinner};

/// Trains the built-in guard's heads and prints their figures on test prompts.
pub(crate) fn train(arguments: &HeadsTrain) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe)?;
    let base = Base::load(&recipe.base, recipe.layout.clone(), true)?;
    let mut heads = heads::to_train(&arguments.output, &base)?;
    let mut watch = Watch::default();
    let trained = train_guard(&recipe, &arguments.data, &base.features, &mut heads, &mut |p| {
        watch.update(p);
    })?;
    heads.save(&arguments.output)?;
    say(&format!("saved {}", arguments.output.display()));
    if arguments.json {
        return print_json(&trained);
    }
    print_line(&format!(
        "{} rows trained, {} validated, {} tested; on test prompts:\n{}",
        trained.train_rows, trained.validation_rows, trained.test_rows, trained.test
    ))
}

/// Judges rows, a line of JSON each.
pub(crate) fn score(arguments: &GuardScore) -> Result<()> {
    let (input, name) = heads::rows(arguments.rows.as_ref())?;
    let mut guard: Box<dyn Guard> = if arguments.guard == "built-in" {
        let (heads, base) = heads::open(&arguments.heads)?;
        Box::new(BuiltInGuard::new(base.features, heads)?)
    } else {
        Box::new(RemoteGuard::new(Endpoint::new(
            &arguments.guard,
            &arguments.guard_model,
        ))?)
    };
    let (_, unscorable) = score_rows(guard.as_mut(), input, &name, std::io::stdout().lock())?;
    if unscorable > 0 {
        say(&format!(
            "warning: {unscorable} rows could not be judged; their `unscorable` says why"
        ));
    }
    Ok(())
}

/// Measures the guard on the recipe's test rows.
pub(crate) fn evaluate(arguments: &GuardEval) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe)?;
    let rows = recipe.load_data(&arguments.data)?.rows;
    let rows: Vec<_> = rows.iter().filter(|row| row.split == Some(Split::Test)).collect();
    let (heads, base) = heads::open(&arguments.heads)?;
    let mut guard = BuiltInGuard::new(base.features, heads)?;
    let wait = spinner(&format!("judging {} rows", rows.len()));
    let report = evaluate_guard(&mut guard, &rows);
    wait.finish_and_clear();
    if arguments.json {
        print_json(&report)
    } else {
        print_line(&report.to_string())
    }
}
