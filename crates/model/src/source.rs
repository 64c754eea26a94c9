//! A model's name into files: a path, a built-in name, or `org/name` on the Hugging Face hub.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::hub::{Hub, is_repository};
use crate::{Error, Result, built_in};

/// Where a model's weights lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsFormat {
    /// One or more safetensors files.
    Safetensors(Vec<PathBuf>),
    /// One GGUF file, which also holds the configuration and the tokenizer.
    Gguf(PathBuf),
    /// No weights: enough to render conversations.
    None,
}

/// A model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The weights.
    pub weights: WeightsFormat,
    /// The folder with `config.json`, `tokenizer.json` and so on; `None` for a GGUF file by itself.
    pub folder: Option<PathBuf>,
    /// The name as it was given.
    pub name: String,
}

/// How far a long step has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, for example `downloading model.safetensors`.
    pub step: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, where that is known.
    pub total: Option<u64>,
}

/// Finds a model's files, fetching them into the cache where that is needed.
///
/// An existing path is used as it is: an HF folder, or a `.gguf` file. Then come the built-in names
/// ([`built_in::NAMES`]), then `org/name` on the Hugging Face hub.
pub fn resolve(name: &str, progress: &mut dyn FnMut(Progress)) -> Result<Source> {
    let path = Path::new(name);
    if path.is_dir() {
        return folder_source(path, name);
    }
    if path.is_file() {
        return file_source(path, name);
    }
    if let Some(path) = built_in::fetch(name, progress)? {
        return if path.is_dir() {
            folder_source(&path, name)
        } else {
            file_source(&path, name)
        };
    }
    if is_repository(name) {
        return folder_source(&Hub::from_environment()?.fetch(name, progress)?, name);
    }
    Err(Error::Source {
        name: name.into(),
        what: format!(
            "no such file or folder, and not one of the built-in names ({})",
            built_in::NAMES.join(", ")
        ),
        hint: Some(
            "give an HF folder, a .gguf file, a built-in name, or org/name of the Hugging Face hub".into(),
        ),
    })
}

/// The folder where fetched models are kept: `SAFERL_CACHE`, else `saferl` in the user's cache folder.
pub fn cache_folder() -> Result<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("SAFERL_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("saferl")))
        .or_else(|| Some(std::env::home_dir()?.join(".cache").join("saferl")))
        .ok_or_else(|| Error::Request("no cache folder; set SAFERL_CACHE".into()))
}

fn file_source(path: &Path, name: &str) -> Result<Source> {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    if read.is_err() || &magic != b"GGUF" {
        return Err(Error::Source {
            name: name.into(),
            what: "expected a GGUF file (one that begins with the letters GGUF)".into(),
            hint: Some("a safetensors model is named by its folder".into()),
        });
    }
    Ok(Source {
        weights: WeightsFormat::Gguf(path.into()),
        folder: None,
        name: name.into(),
    })
}

/// The source in an HF folder, which has at least `config.json` or `tokenizer.json`.
pub(crate) fn folder_source(folder: &Path, name: &str) -> Result<Source> {
    let weights = folder_weights(folder)?;
    let known = ["config.json", "tokenizer.json"]
        .iter()
        .any(|file| folder.join(file).is_file());
    if !known && !matches!(weights, WeightsFormat::Gguf(_)) {
        return Err(Error::Source {
            name: name.into(),
            what: "the folder holds no config.json, no tokenizer.json and no .gguf file".into(),
            hint: Some("a LoRA adapter is loaded beside its base model".into())
                .filter(|_| folder.join("adapter_config.json").exists()),
        });
    }
    Ok(Source {
        weights,
        folder: Some(folder.into()),
        name: name.into(),
    })
}

fn folder_weights(folder: &Path) -> Result<WeightsFormat> {
    let index = folder.join("model.safetensors.index.json");
    if index.is_file() {
        return Ok(WeightsFormat::Safetensors(shards(&index)?));
    }
    let whole = folder.join("model.safetensors");
    if whole.is_file() {
        return Ok(WeightsFormat::Safetensors(vec![whole]));
    }
    let entries = std::fs::read_dir(folder).map_err(|source| Error::File {
        path: folder.into(),
        source,
    })?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let with_extension = |wanted: &str| {
        let has = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == wanted);
        paths.iter().filter(has).cloned().collect::<Vec<_>>()
    };
    let adapter = |path: &PathBuf| path.ends_with("adapter_model.safetensors");
    let safetensors: Vec<_> = with_extension("safetensors")
        .into_iter()
        .filter(|path| !adapter(path))
        .collect();
    match (safetensors.is_empty(), with_extension("gguf").as_slice()) {
        (false, _) => Ok(WeightsFormat::Safetensors(safetensors)),
        (true, [gguf]) => Ok(WeightsFormat::Gguf(gguf.clone())),
        (true, []) => Ok(WeightsFormat::None),
        (true, several) => Err(Error::Format {
            path: folder.into(),
            what: format!(
                "expected one .gguf file, found {}; name the one you want",
                several.len()
            ),
        }),
    }
}

/// The files that an index names, each of which must exist beside it.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let format = |what: String| Error::Format {
        path: index.into(),
        what,
    };
    let text = std::fs::read_to_string(index).map_err(|source| Error::File {
        path: index.into(),
        source,
    })?;
    let names = shard_names(&text).map_err(format)?;
    let paths: Vec<_> = names.iter().map(|name| index.with_file_name(name)).collect();
    match paths.iter().find(|path| !path.is_file()) {
        Some(missing) => Err(format(format!("names {}, which is not there", missing.display()))),
        None => Ok(paths),
    }
}

/// The files in the `weight_map` of an index, each once. A name with a path in it is refused.
pub(crate) fn shard_names(index: &str) -> std::result::Result<BTreeSet<String>, String> {
    let index: serde_json::Value =
        serde_json::from_str(index).map_err(|error| format!("expected JSON: {error}"))?;
    let map = index["weight_map"]
        .as_object()
        .ok_or("expected an object `weight_map`")?;
    let plain = |name: &str| !name.contains(['/', '\\']) && name != "..";
    map.iter()
        .map(|(tensor, file)| match file.as_str().filter(|name| plain(name)) {
            Some(name) => Ok(name.to_owned()),
            None => Err(format!("weight_map.{tensor}: expected a file name, found {file}")),
        })
        .collect()
}

/// SHA-256 of a file as lower-case hexadecimal digits.
pub fn sha256(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<String> {
    let error = |source| Error::File {
        path: path.into(),
        source,
    };
    let mut file = std::fs::File::open(path).map_err(error)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let count = file.read(&mut block).map_err(error)?;
        if count == 0 {
            return Ok(format!("{:x}", hash.finalize()));
        }
        hash.update(&block[..count]);
        done += count as u64;
        progress(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn weights(files: &[(&str, &str)]) -> std::result::Result<Vec<String>, String> {
        let folder = folder(files);
        let source =
            resolve(folder.path().to_str().unwrap(), &mut |_| {}).map_err(|error| error.to_string())?;
        assert_eq!(source.folder.as_deref(), Some(folder.path()));
        let paths = match source.weights {
            WeightsFormat::Safetensors(paths) => paths,
            WeightsFormat::Gguf(path) => vec![path],
            WeightsFormat::None => Vec::new(),
        };
        Ok(paths
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect())
    }

    #[test]
    fn a_folder_is_used_as_it_is() {
        let index = r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#;
        let sharded = [
            ("config.json", "{}"),
            ("model.safetensors.index.json", index),
            ("a.safetensors", ""),
            ("b.safetensors", ""),
            ("other.safetensors", ""),
        ];
        assert_eq!(weights(&sharded).unwrap(), ["a.safetensors", "b.safetensors"]);
        assert_eq!(
            weights(&[("config.json", "{}"), ("model.safetensors", "")]).unwrap(),
            ["model.safetensors"]
        );
        assert_eq!(weights(&[("model.gguf", "GGUF")]).unwrap(), ["model.gguf"]);
        assert_eq!(
            weights(&[("tokenizer.json", "{}")]).unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_folder_that_is_no_model_says_what_is_missing() {
        assert!(weights(&[]).unwrap_err().contains("config.json"));
        let index = (
            "model.safetensors.index.json",
            r#"{"weight_map": {"x": "a.safetensors"}}"#,
        );
        assert!(
            weights(&[("config.json", "{}"), index])
                .unwrap_err()
                .contains("a.safetensors, which is not there")
        );
        let outside = ("model.safetensors.index.json", r#"{"weight_map": {"x": "../a"}}"#);
        assert!(
            weights(&[("config.json", "{}"), outside])
                .unwrap_err()
                .contains("expected a file name")
        );
    }

    #[test]
    fn a_file_must_be_gguf() {
        let folder = folder(&[
            ("a.gguf", "GGUF..."),
            ("b.gguf", "something else"),
            ("c.gguf", ""),
        ]);
        let resolve = |name: &str| resolve(folder.path().join(name).to_str().unwrap(), &mut |_| {});
        assert_eq!(
            resolve("a.gguf").unwrap().weights,
            WeightsFormat::Gguf(folder.path().join("a.gguf"))
        );
        assert!(
            resolve("b.gguf")
                .unwrap_err()
                .to_string()
                .contains("expected a GGUF file")
        );
        assert!(resolve("c.gguf").is_err());
    }

    #[test]
    fn a_name_that_is_nothing_has_a_hint() {
        let error = resolve("no-such-model", &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("smollm2-135m"), "{error}");
        assert!(error.hint().unwrap().contains("Hugging Face hub"));
    }

    #[test]
    fn sha256_is_that_of_the_standard() {
        let folder = folder(&[("abc", "abc")]);
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(
            sha256(&folder.path().join("abc"), &mut |done| assert_eq!(done, 3)).unwrap(),
            expected
        );
    }
}
