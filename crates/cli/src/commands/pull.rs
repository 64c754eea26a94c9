//! `saferl pull`: a model into the cache.

use model::source::WeightsFormat;

use crate::arguments::Pull;
use crate::error::Result;
use crate::local;
use crate::output::print_line;

/// Fetches the model and prints where it lies: its folder, or its file where it is a single one.
pub(crate) fn run(arguments: &Pull) -> Result<()> {
    let source = local::resolve(&arguments.name)?;
    let path = match (&source.folder, &source.weights) {
        (Some(folder), _) => folder.display().to_string(),
        (None, WeightsFormat::Gguf(path)) => path.display().to_string(),
        (None, _) => source.name,
    };
    print_line(&path)
}
