//! `saferl reward`: how helpful replies are.

use judge::probe::train_helpfulness;
use judge::{BuiltInHelpfulness, score_helpfulness};

use crate::arguments::{HeadsTrain, RewardScore};
use crate::commands::heads;
use crate::error::Result;
use crate::local::open_device;
use crate::progress::say;

/// Trains the built-in helpfulness head and prints its figures on test prompts.
pub(crate) fn train(arguments: &HeadsTrain) -> Result<()> {
    heads::train(arguments, train_helpfulness)
}

/// Scores rows, a line of JSON each.
pub(crate) fn score(arguments: &RewardScore) -> Result<()> {
    let (input, name) = heads::rows(arguments.rows.as_ref())?;
    let (heads, base) = heads::open(&arguments.heads, &open_device(&arguments.on)?)?;
    let mut helpfulness = BuiltInHelpfulness::new(base.features, heads)?;
    let (_, unscorable) = score_helpfulness(&mut helpfulness, input, &name, std::io::stdout().lock())?;
    if unscorable > 0 {
        say(&format!(
            "warning: {unscorable} rows could not be scored; their `unscorable` says why"
        ));
    }
    Ok(())
}
