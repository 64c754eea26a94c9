//! What can go wrong between a name and a completion.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the model crate: each names the file, tensor or key, what was expected and what was found.
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
    #[error("{path}: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// A tensor is missing, left over or misshapen.
    #[error("tensor {name}: expected {expected}, found {found}")]
    Tensor {
        /// The tensor's name in the file.
        name: String,
        /// The shape or presence expected.
        expected: String,
        /// The shape or presence found.
        found: String,
    },
    /// A chat template failed to parse or to render.
    #[error("chat template: {0}")]
    Template(String),
    /// Text could not be turned into tokens or back.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A model name could not be resolved or fetched.
    #[error("model `{name}`: {what}")]
    Source {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        what: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
    },
    /// A request that cannot be carried out as asked.
    #[error("{0}")]
    Request(String),
    /// A remote server failed.
    #[error("{url}: {what}")]
    Remote {
        /// The endpoint.
        url: String,
        /// What happened.
        what: String,
        /// Whether the server and not the request is at fault: the same request may succeed another time.
        passing: bool,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// The cure, where one is known; the edge prints it after `hint:`.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Source { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }
}
