//! What can go wrong between a completion and its verdict, and while heads are trained.
//!
//! A judge that cannot score *one* completion says [`crate::Scored::Unscorable`]; these errors are for what concerns
//! the whole: a missing file, a recipe with an unknown key, heads that do not fit the base model.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the judge crate: each names the file, line, key or tensor, what was expected and what was found.
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
    #[error("{path}, line or row {line}: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The line, or for CSV and JSON arrays the row, from 1.
        line: usize,
        /// What was expected and what was found.
        what: String,
    },
    /// A recipe is wrong.
    #[error("{path}: {what}")]
    Recipe {
        /// The recipe's file.
        path: PathBuf,
        /// The key, what was expected and what was found.
        what: String,
    },
    /// A judge's endpoint cannot work as it is set.
    #[error("{url}: {what}")]
    Endpoint {
        /// The address.
        url: String,
        /// What was expected and what was found.
        what: String,
    },
    /// The trained heads are missing, or do not fit the base model.
    #[error("judge heads: {what}")]
    Heads {
        /// What was expected and what was found.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// The model beneath the built-in heads failed.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// The cure, where one is known; the edge prints it after `hint:`.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Heads { hint, .. } => Some(hint),
            Self::Model(error) => error.hint(),
            _ => None,
        }
    }
}
