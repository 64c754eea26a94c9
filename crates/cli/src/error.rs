//! What the program prints when it cannot do as it was told.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Result of a command.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Errors of the program: those of the crates beneath, and what only the edge can know.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file's contents are not what the command expects.
    #[error("{path}{}: {what}", line.map_or(String::new(), |line| format!(", line {line}")))]
    Format {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where there is one.
        line: Option<usize>,
        /// What was expected and what was found.
        what: String,
    },
    /// A request that cannot be carried out.
    #[error("{what}")]
    Request {
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// Standard output could not be written.
    #[error("standard output: {0}")]
    Output(std::io::Error),
    /// The model crate's.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The judge crate's.
    #[error(transparent)]
    Judge(#[from] judge::Error),
    /// The serve crate's.
    #[error(transparent)]
    Serve(#[from] serve::Error),
    /// The train crate's.
    #[error(transparent)]
    Train(#[from] train::Error),
    /// The eval crate's.
    #[error(transparent)]
    Eval(#[from] eval::Error),
}

impl Error {
    /// A failure of the file system at `path`.
    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File {
            path: path.to_path_buf(),
            source,
        }
    }

    /// The cure, where one is known.
    fn hint(&self) -> Option<&str> {
        match self {
            Self::Request { hint, .. } => Some(hint),
            Self::Model(error) => error.hint(),
            Self::Judge(error) => error.hint(),
            Self::Serve(error) => error.hint(),
            Self::Train(error) => error.hint(),
            Self::Eval(error) => error.hint(),
            _ => None,
        }
    }

    /// 1 where a gate was not met, 2 for an error.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Train(train::Error::Alarm { .. }) | Self::Eval(eval::Error::Gate(_)) => 1,
            _ => 2,
        }
    }

    /// The message, its causes that the message does not already tell, and the hint.
    pub(crate) fn report(&self) -> String {
        let mut text = format!("error: {self}");
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                let _ = write!(text, "\n  cause: {said}");
            }
            cause = error.source();
        }
        if let Some(hint) = self.hint() {
            let _ = write!(text, "\nhint: {hint}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_and_the_hint_last() {
        let cause = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        assert_eq!(
            Error::file(Path::new("a.json"), cause).report(),
            "error: a.json: no such file"
        );
        let request = Error::Request {
            what: "no messages".into(),
            hint: "give a list".into(),
        };
        assert_eq!(request.report(), "error: no messages\nhint: give a list");
        assert_eq!(request.exit_code(), 2);
    }

    #[test]
    fn an_alarm_that_stops_a_run_is_a_gate_not_met() {
        let alarm = train::Error::Alarm {
            step: 3,
            what: "refusals".into(),
        };
        assert_eq!(Error::from(alarm).exit_code(), 1);
    }
}
