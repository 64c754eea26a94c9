//! The run folder's JSON Lines: one object a line, each with its step, cut back to a checkpoint on resume.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A file that grows by lines.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
}

/// The one key that all lines have.
#[derive(Deserialize)]
struct Line {
    step: usize,
}

impl Journal {
    /// Opens a journal and removes the lines of steps after `step`, and a line that a crash cut off.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(path: &Path, step: usize) -> Result<Self> {
        let failed = |source| Error::file(path, source);
        let text = match fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(error)),
        };
        let belongs = |line: &&str| serde_json::from_str::<Line>(line).is_ok_and(|line| line.step <= step);
        let kept: String = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .filter(belongs)
            .collect();
        if kept != text {
            // Written beside and renamed: a crash here must not lose what earlier steps wrote.
            let beside = path.with_extension("jsonl.partial");
            fs::write(&beside, kept)
                .and_then(|()| fs::rename(&beside, path))
                .map_err(failed)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(failed)?;
        Ok(Self {
            path: path.into(),
            file: BufWriter::new(file),
        })
    }

    /// Appends one line.
    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let failed = |source| Error::file(&self.path, source);
        serde_json::to_writer(&mut self.file, line).map_err(|error| failed(error.into()))?;
        self.file.write_all(b"\n").map_err(failed)
    }

    /// Hands what was written to the system, so that others can read it.
    pub fn flush(&mut self) -> Result<()> {
        self.file
            .flush()
            .map_err(|source| Error::file(&self.path, source))
    }

    /// Waits until it is on the disk.
    pub fn synchronize(&mut self) -> Result<()> {
        self.flush()?;
        self.file
            .get_ref()
            .sync_all()
            .map_err(|source| Error::file(&self.path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_cut_back_to_a_step_and_loses_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let text = "{\"step\":1,\"x\":1}\n{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st";
        fs::write(&path, text).unwrap();
        let mut journal = Journal::open(&path, 2).unwrap();
        journal.write(&serde_json::json!({"step": 3, "y": 2})).unwrap();
        journal.synchronize().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":1,\"x\":1}\n{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"y\":2}\n"
        );
        drop(Journal::open(&path, 0).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }
}
