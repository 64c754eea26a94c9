//! The audit log: a line of JSON for every verdict that was handed out.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A file that verdicts are appended to.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

/// One verdict. The texts themselves are not kept: their hashes find them in the trainer's own log.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    /// Seconds since 1970.
    pub(crate) time: f64,
    /// The path that was asked.
    pub(crate) protocol: &'a str,
    /// SHA-256 of the prompt's messages as JSON.
    pub(crate) prompt_sha256: String,
    /// SHA-256 of thinking and answer as JSON.
    pub(crate) reply_sha256: String,
    /// Who judged: names, and the hashes of heads or model.
    pub(crate) judges: &'a BTreeMap<String, String>,
    /// What they said.
    pub(crate) verdict: Value,
    /// The reward, absent where there is none or none was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reward: Option<Value>,
    /// Whether the verdict came out of the cache.
    pub(crate) cached: bool,
}

impl Audit {
    /// Opens the file, which earlier lines stay in.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(BufWriter::new(file)),
        })
    }

    /// Appends lines. A disk that is full is told in the program's log and does not stop the service.
    pub(crate) fn write(&self, lines: &[Line<'_>]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = lines.iter().try_for_each(|line| {
            serde_json::to_writer(&mut *file, line)?;
            file.write_all(b"\n")
        });
        if let Err(error) = written.and_then(|()| file.flush()) {
            tracing::error!(
                "{}: {} verdicts are not in the audit log: {error}",
                self.path.display(),
                lines.len()
            );
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |time| time.as_secs_f64())
}

/// The SHA-256 of a value's JSON.
pub(crate) fn sha256(value: &impl Serialize) -> [u8; 32] {
    // Values here are strings and lists of them, which always make JSON.
    Sha256::digest(serde_json::to_vec(value).unwrap_or_default()).into()
}

/// A hash in hexadecimal.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
