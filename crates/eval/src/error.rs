//! What can go wrong between a recipe and its table.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the eval crate: each names the file, key, task or log, what was expected and what was found.
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
    #[error("{path}{}: {what}", line.map_or(String::new(), |line| format!(", line or row {line}")))]
    Format {
        /// The file.
        path: PathBuf,
        /// The line or the row, from 1, where there is one.
        line: Option<usize>,
        /// What was expected and what was found.
        what: String,
    },
    /// A recipe is wrong.
    #[error("{origin}: {what}")]
    Recipe {
        /// Where the recipe comes from.
        origin: String,
        /// The key, what was expected and what was found.
        what: String,
    },
    /// A task cannot run, or failed.
    #[error("task {task}: {what}")]
    Task {
        /// The task's name.
        task: String,
        /// What is wrong.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A log belongs to something else.
    #[error("{path}: {what}")]
    Log {
        /// The log.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// Code cannot be run safely.
    #[error("sandbox: {what}")]
    Sandbox {
        /// What is missing.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A gate is not met.
    #[error("gate not met: {0}")]
    Gate(String),
    /// The model crate's.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The judge crate's.
    #[error(transparent)]
    Judge(#[from] judge::Error),
}

impl Error {
    /// A failure of the file system at `path`.
    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File {
            path: path.to_path_buf(),
            source,
        }
    }

    /// The cure, where one is known; the edge prints it after `hint:`.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Task { hint, .. } | Self::Log { hint, .. } | Self::Sandbox { hint, .. } => Some(hint),
            Self::Model(error) => error.hint(),
            Self::Judge(error) => error.hint(),
            _ => None,
        }
    }
}
