//! What can go wrong between a recipe and a trained model.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the train crate: each names the file, line, key or step, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file's contents are not what its format promises.
    #[error("{path}{}: {what}", line.map_or(String::new(), |line| format!(", line {line}")))]
    Format {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1, where there is one.
        line: Option<usize>,
        /// What was expected and what was found.
        what: String,
    },
    /// A recipe that does not parse: an unknown key, a wrong type, broken TOML.
    #[error("recipe {path}: {what}")]
    Recipe {
        /// The recipe's file, or the override that broke it.
        path: String,
        /// What the parser says.
        what: String,
    },
    /// A recipe's value that cannot be meant.
    #[error("recipe key `{key}`: expected {expected}, found {found}")]
    Key {
        /// The dotted key.
        key: String,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The server that samples did not do as it was told.
    #[error("{url}: {what}")]
    Server {
        /// The address.
        url: String,
        /// What happened.
        what: String,
    },
    /// A run folder that cannot be used as asked.
    #[error("run folder {path}: {what}")]
    Run {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A checkpoint that is torn or belongs to another recipe.
    #[error("checkpoint {path}: {what}")]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// A number that is not finite; the step that made it is not applied.
    #[error("step {step}: {what} is {value}, not a finite number; the last checkpoint is whole")]
    NotFinite {
        /// The step, counted from 1.
        step: usize,
        /// Which number: loss, gradient norm, reward.
        what: String,
        /// The value.
        value: f64,
    },
    /// Too many completions could not be scored, also after waiting.
    #[error(
        "step {step}: {unscorable} of {total} completions could not be scored after {attempts} attempts: {cause}"
    )]
    Unscorable {
        /// The step, counted from 1.
        step: usize,
        /// How many had no score.
        unscorable: usize,
        /// Of how many.
        total: usize,
        /// How often the judge was asked.
        attempts: usize,
        /// What the judge said of the first of them.
        cause: String,
    },
    /// An alarm that the recipe wants to stop the run.
    #[error("step {step}: stopped by an alarm: {what}")]
    Alarm {
        /// The step, counted from 1.
        step: usize,
        /// What was noticed.
        what: String,
    },
    /// A prompt that cannot be trained on.
    #[error("prompt `{id}`: {what}")]
    Prompt {
        /// The prompt's id.
        id: String,
        /// What is wrong with it.
        what: String,
    },
    /// The model failed to load, to generate or to save.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The judge failed to load.
    #[error(transparent)]
    Judge(#[from] judge::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// A failure of the file system at `path`.
    pub fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File {
            path: path.to_path_buf(),
            source,
        }
    }

    /// The cure, where one is known; the edge prints it after `hint:`.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Run { hint, .. } => Some(hint),
            Self::Model(error) => error.hint(),
            Self::Unscorable { .. } => Some("check the judge, then continue with --resume"),
            Self::NotFinite { .. } => {
                Some("lower optimizer.learning_rate or update.gradient_clip, then --resume")
            }
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Some("free some space or lower checkpoint.keep, then continue with --resume")
            }
            _ => None,
        }
    }
}
