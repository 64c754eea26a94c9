//! `saferl reward`: how helpful replies are.

use judge::probe::{Recipe, train_helpfulness};
use judge::{BuiltInHelpfulness, score_helpfulness};

use crate::arguments::{HeadsTrain, RewardScore};
use crate::commands::heads::{self, Base, Watch};
use crate::error::Result;
use crate::output::{print_json, print_line};
use crate::progress::say;

/// Trains the built-in helpfulness head and prints its figures on test prompts.
pub(crate) fn train(arguments: &HeadsTrain) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe)?;
    let base = Base::load(&recipe.base, recipe.layout.clone(), true)?;
    let mut heads = heads::to_train(&arguments.output, &base)?;
    let mut watch = Watch::default();
    let trained = train_helpfulness(&recipe, &arguments.data, &base.features, &mut heads, &mut |p| {
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

/// Scores rows, a line of JSON each.
pub(crate) fn score(arguments: &RewardScore) -> Result<()> {
    let (input, name) = heads::rows(arguments.rows.as_ref())?;
    let (heads, base) = heads::open(&arguments.heads)?;
    let mut helpfulness = BuiltInHelpfulness::new(base.features, heads)?;
    let (_, unscorable) = score_helpfulness(&mut helpfulness, input, &name, std::io::stdout().lock())?;
    if unscorable > 0 {
        say(&format!(
            "warning: {unscorable} rows could not be scored; their `unscorable` says why"
        ));
    }
    Ok(())
}
