//! A file of a dataset on the Hugging Face hub, by name: `hf://datasets/ORG/NAME[@REVISION]/FILE`.
//!
//! The form is the one that pandas and `huggingface_hub` read. Files lie in the hub's own cache, beside what those
//! programs fetched; `hub.rs` says which variables are honoured. Left out: revisions with a slash in them.

use std::fmt;
use std::path::PathBuf;

use crate::hub::{Hub, is_repository};
use crate::source::Progress;
use crate::{Error, Result};

/// What such names begin with.
pub const SCHEME: &str = "hf://datasets/";

/// Where a file of a dataset stands on the hub.
///
/// ```
/// use model::dataset::DatasetFile;
///
/// let file = DatasetFile::parse("hf://datasets/org/name@v1/data/test.csv")?;
/// assert_eq!((file.repository.as_str(), file.revision.as_str()), ("org/name", "v1"));
/// assert_eq!(file.path, "data/test.csv");
/// # Ok::<(), model::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetFile {
    /// `ORG/NAME`.
    pub repository: String,
    /// A branch, a tag or a commit; `main` where the name has none.
    pub revision: String,
    /// Where it lies in the repository.
    pub path: String,
}

impl DatasetFile {
    /// Reads a name.
    ///
    /// # Errors
    /// A name of another form, or one that leads out of the repository.
    pub fn parse(name: &str) -> Result<Self> {
        let file = name.strip_prefix(SCHEME).and_then(|rest| {
            let mut parts = rest.splitn(3, '/');
            let (organisation, dataset, path) = (parts.next()?, parts.next()?, parts.next()?);
            let (dataset, revision) = dataset.split_once('@').unwrap_or((dataset, "main"));
            Some(Self {
                repository: format!("{organisation}/{dataset}"),
                revision: revision.to_owned(),
                path: path.to_owned(),
            })
        });
        file.filter(Self::is_plain).ok_or_else(|| Error::Source {
            name: name.into(),
            what: format!("expected {SCHEME}ORG/NAME/FILE or {SCHEME}ORG/NAME@REVISION/FILE"),
            hint: None,
        })
    }

    fn is_plain(&self) -> bool {
        let word = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !text.is_empty() && !text.starts_with('.') && text.chars().all(plain)
        };
        let part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':']);
        is_repository(&self.repository) && word(&self.revision) && self.path.split('/').all(part)
    }

    /// The file's path on this machine, fetched if need be. One that is there already is used as it is.
    ///
    /// # Errors
    /// A hub that cannot be reached or refuses (with what to do about gated data), a file that is not there, one that
    /// is not what the hub promised.
    pub fn fetch(&self, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        Hub::from_environment()?.fetch_dataset_file(self, progress)
    }

    /// The file's path where it was fetched before; the hub is not asked.
    pub fn cached(&self) -> Option<PathBuf> {
        Hub::from_environment().ok()?.cached_dataset_file(self)
    }

    /// The address of the dataset's page, where its terms are read and accepted.
    ///
    /// # Errors
    /// An environment that says nothing of a cache.
    pub fn page(&self) -> Result<String> {
        Ok(Hub::from_environment()?.dataset_page(self))
    }
}

/// Whether the environment has a token for the hub (`HF_TOKEN`, or the file that `hf auth login` writes).
pub fn has_token() -> bool {
    Hub::from_environment().is_ok_and(|hub| hub.has_token())
}

impl fmt::Display for DatasetFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision = match self.revision.as_str() {
            "main" => String::new(),
            revision => format!("@{revision}"),
        };
        write!(formatter, "{SCHEME}{}{revision}/{}", self.repository, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for name in [
            "hf://datasets/allenai/wildjailbreak/eval/eval.tsv",
            "hf://datasets/org/name@0f3a/file with spaces.jsonl",
        ] {
            assert_eq!(DatasetFile::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn names_of_another_form_are_refused() {
        for name in [
            "hf://org/name/file",
            "hf://datasets/org/name",
            "hf://datasets/org/name/",
            "hf://datasets/org/name/../../x",
            "hf://datasets/org/name/a//b",
            "hf://datasets/org/name@/file",
            "hf://datasets/org/name@../file",
            "hf://datasets/../name/file",
            "hf://datasets/org/name/a\\b",
            "data/file.csv",
        ] {
            let error = DatasetFile::parse(name).unwrap_err().to_string();
            assert!(
                error.contains("expected hf://datasets/ORG/NAME/FILE"),
                "{name}: {error}"
            );
        }
    }
}
