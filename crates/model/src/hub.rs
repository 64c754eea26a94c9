//! Models and files of datasets on the Hugging Face hub, kept in the cache that its other programs use.
//!
//! Honours `HF_ENDPOINT`, `HF_TOKEN` (or the token file of `hf auth login`), `HF_HOME` and `HF_HUB_CACHE`, the usual proxy
//! variables, and the system's certificates. A broken download goes on where it stopped; a file counts only once its
//! size, and where the hub gives one its SHA-256, agree. What is whole in the cache serves when the hub cannot be
//! reached. A model is asked after at every start; a dataset's file, once there, is not: figures go with the data that
//! they began with. Left out: revisions of models other than `main`, and files that this program does not read.
//!
//! Why not the hf-hub crate: its light version trusts a bundled list of certificates and knows no `HF_TOKEN`; the
//! other brings an asynchronous runtime and the Xet protocol for what are two requests here.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::dataset::DatasetFile;
use crate::source::{Progress, WeightsFormat, folder_source, sha256, shard_names};
use crate::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";
const INDEX: &str = "model.safetensors.index.json";
/// Files beside the weights that this program reads.
const SMALL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
];
const ATTEMPTS: u32 = 4;
const LONGEST_INDEX: u64 = 64 << 20;
/// Most files of a repository that an error lists.
const LISTED: usize = 20;

/// The hub, as the environment sets it.
#[derive(Debug)]
pub(crate) struct Hub {
    endpoint: String,
    token: Option<String>,
    cache: PathBuf,
    agent: Agent,
    /// The pause before the second attempt; it doubles from then on.
    pause: Duration,
}

/// The hub's answer about one repository at one commit.
#[derive(Debug, Deserialize)]
struct Repository {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<LargeFile>,
}

#[derive(Debug, Deserialize)]
struct LargeFile {
    sha256: String,
}

/// Which repository, at which revision.
struct Place<'a> {
    kind: Kind,
    name: &'a str,
    revision: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Dataset,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }
}

impl<'a> Place<'a> {
    fn model(name: &'a str) -> Self {
        Self {
            kind: Kind::Model,
            name,
            revision: "main",
        }
    }

    fn dataset(file: &'a DatasetFile) -> Self {
        Self {
            kind: Kind::Dataset,
            name: &file.repository,
            revision: &file.revision,
        }
    }

    /// Where a person sees it, below the endpoint.
    fn page(&self) -> String {
        match self.kind {
            Kind::Model => self.name.to_owned(),
            Kind::Dataset => format!("datasets/{}", self.name),
        }
    }

    /// Its folder in the cache.
    fn folder(&self) -> String {
        format!("{}s--{}", self.kind.noun(), self.name.replace('/', "--"))
    }
}

/// Why a request gave nothing.
struct Failure {
    what: String,
    hint: Option<String>,
    /// Whether another attempt may do better.
    passing: bool,
}

impl Failure {
    fn passing(what: impl ToString) -> Self {
        Self {
            what: what.to_string(),
            hint: None,
            passing: true,
        }
    }

    fn lasting(what: impl ToString, hint: Option<&str>) -> Self {
        Self {
            what: what.to_string(),
            hint: hint.map(str::to_owned),
            passing: false,
        }
    }

    fn name(self, name: &str) -> Error {
        Error::Source {
            name: name.into(),
            what: self.what,
            hint: self.hint,
        }
    }
}

/// Whether `name` has the form `org/name` of the hub.
pub(crate) fn is_repository(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/')
        .is_some_and(|(organisation, model)| plain(organisation) && plain(model))
}

impl Hub {
    /// The hub that environment variables describe.
    pub(crate) fn from_environment() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<String>, user: Option<PathBuf>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(user?.join(".cache").join("huggingface")))
            .ok_or_else(|| Error::Request("no cache folder; set HF_HOME".into()))?;
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        Ok(Self {
            endpoint: variable("HF_ENDPOINT")
                .unwrap_or_else(|| ENDPOINT.into())
                .trim_end_matches('/')
                .to_owned(),
            token: token
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            agent: agent(),
            pause: Duration::from_secs(1),
        })
    }

    /// The folder with the files of `name` (`org/name`), fetched if need be.
    pub(crate) fn fetch(&self, name: &str, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        let place = Place::model(name);
        let folder = self.cache.join(place.folder());
        let reference = folder.join("refs").join(place.revision);
        let repository = match self.repository(&place) {
            Ok(repository) => repository,
            Err(failure) => {
                let cached = std::fs::read_to_string(&reference).ok();
                let cached = cached.map(|sha| folder.join("snapshots").join(sha.trim()));
                return match cached.filter(|folder| failure.passing && is_whole(folder)) {
                    Some(folder) => {
                        tracing::warn!(
                            "{name}: the hub could not be asked ({}); using the cached files",
                            failure.what
                        );
                        Ok(folder)
                    }
                    None => Err(failure.name(name)),
                };
            }
        };
        let snapshot = folder.join("snapshots").join(&repository.sha);
        create_folder(&snapshot)?;
        let _lock = lock(&folder.join(".saferl.lock"))?;
        let fetch = |file: &Sibling, progress: &mut dyn FnMut(Progress)| {
            self.fetch_file(&place, &repository.sha, file, &snapshot, progress)
                .map_err(|failure| failure.name(name))
        };
        for file in repository
            .siblings
            .iter()
            .filter(|file| SMALL_FILES.contains(&file.rfilename.as_str()))
        {
            fetch(file, progress)?;
        }
        for file in repository
            .weights(&snapshot)
            .map_err(|failure| failure.name(name))?
        {
            fetch(file, progress)?;
        }
        write_reference(&reference, &repository.sha)?;
        Ok(snapshot)
    }

    /// The path of a dataset's file, fetched if need be.
    pub(crate) fn fetch_dataset_file(
        &self,
        file: &DatasetFile,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf> {
        if let Some(path) = self.cached_dataset_file(file) {
            return Ok(path);
        }
        let place = Place::dataset(file);
        let failed = |failure: Failure| failure.name(&file.to_string());
        let repository = self.repository(&place).map_err(failed)?;
        let listed = repository.file(&file.path).map_err(failed)?;
        let folder = self.cache.join(place.folder());
        let snapshot = folder.join("snapshots").join(&repository.sha);
        let path = snapshot.join(&file.path);
        create_folder(path.parent().unwrap_or(&snapshot))?;
        let _lock = lock(&folder.join(".saferl.lock"))?;
        self.fetch_file(&place, &repository.sha, listed, &snapshot, progress)
            .map_err(failed)?;
        if file.revision != repository.sha {
            write_reference(&folder.join("refs").join(&file.revision), &repository.sha)?;
        }
        Ok(path)
    }

    /// The path of a dataset's file where the cache has it; the hub is not asked.
    pub(crate) fn cached_dataset_file(&self, file: &DatasetFile) -> Option<PathBuf> {
        let folder = self.cache.join(Place::dataset(file).folder());
        let commit = std::fs::read_to_string(folder.join("refs").join(&file.revision));
        let commit = commit.unwrap_or_else(|_| file.revision.clone());
        let path = folder.join("snapshots").join(commit.trim()).join(&file.path);
        path.is_file().then_some(path)
    }

    /// The address that a person opens to see a dataset or to accept its terms.
    pub(crate) fn dataset_page(&self, file: &DatasetFile) -> String {
        format!("{}/{}", self.endpoint, Place::dataset(file).page())
    }

    /// Whether requests carry somebody's token.
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    fn repository(&self, place: &Place) -> std::result::Result<Repository, Failure> {
        let (kind, name, revision) = (place.kind.noun(), place.name, place.revision);
        let url = format!(
            "{}/api/{kind}s/{name}/revision/{revision}?blobs=true",
            self.endpoint
        );
        let text = self.again(|| {
            let mut response = self.get(place, &url, 0)?;
            let body = response
                .body_mut()
                .with_config()
                .limit(LONGEST_INDEX)
                .read_to_string();
            body.map_err(Failure::passing)
        })?;
        let repository: Repository = serde_json::from_str(&text).map_err(|error| {
            Failure::lasting(
                format!("{url}: expected a description of a {kind}: {error}"),
                None,
            )
        })?;
        if repository.sha.is_empty() || !repository.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(Failure::lasting(
                format!("{url}: expected a commit, found {:?}", repository.sha),
                None,
            ));
        }
        Ok(repository)
    }

    /// Downloads one file into the snapshot, going on from what an earlier attempt left.
    fn fetch_file(
        &self,
        place: &Place,
        sha: &str,
        file: &Sibling,
        snapshot: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> std::result::Result<(), Failure> {
        let target = snapshot.join(&file.rfilename);
        if target
            .metadata()
            .is_ok_and(|data| file.size.is_none_or(|size| size == data.len()))
        {
            return Ok(());
        }
        let path = escape(&file.rfilename);
        let url = format!("{}/{}/resolve/{sha}/{path}", self.endpoint, place.page());
        let partial = snapshot.join(format!("{}.incomplete", file.rfilename));
        self.again(|| self.download(place, &url, &partial, file, progress))?;
        if let Some(expected) = file.lfs.as_ref().map(|lfs| &lfs.sha256) {
            let step = format!("verifying {}", file.rfilename);
            let found = sha256(&partial, &mut |done| {
                progress(Progress {
                    step: step.clone(),
                    done,
                    total: file.size,
                });
            });
            let found = found.map_err(|error| Failure::lasting(error, None))?;
            if found != *expected {
                let _ = std::fs::remove_file(&partial);
                return Err(Failure::lasting(
                    format!("{url}: expected sha256 {expected}, found {found}"),
                    None,
                ));
            }
        }
        std::fs::rename(&partial, &target).map_err(|error| on_disk(&target, &error))
    }

    fn download(
        &self,
        place: &Place,
        url: &str,
        partial: &Path,
        file: &Sibling,
        progress: &mut dyn FnMut(Progress),
    ) -> std::result::Result<(), Failure> {
        let fault = |error: std::io::Error| on_disk(partial, &error);
        let mut output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(partial)
            .map_err(fault)?;
        let mut done = output.metadata().map_err(fault)?.len();
        if file.size.is_some_and(|size| done > size) {
            output.set_len(0).map_err(fault)?;
            done = 0;
        }
        if done == 0 || file.size != Some(done) {
            let response = self.get(place, url, done)?;
            if response.status().as_u16() != 206 {
                output.set_len(0).map_err(fault)?;
                done = 0;
            }
            let mut input = response.into_body().into_reader();
            let mut block = vec![0; 1 << 18];
            loop {
                progress(Progress {
                    step: format!("downloading {}", file.rfilename),
                    done,
                    total: file.size,
                });
                let count = input.read(&mut block).map_err(Failure::passing)?;
                if count == 0 {
                    break;
                }
                output.write_all(&block[..count]).map_err(fault)?;
                done += count as u64;
            }
        }
        match file.size.filter(|size| *size != done) {
            Some(size) => Err(Failure::passing(format!(
                "{url}: expected {size} bytes, found {done}"
            ))),
            None => output.sync_all().map_err(fault),
        }
    }

    /// Sends a request for the bytes from `start` on.
    fn get(&self, place: &Place, url: &str, start: u64) -> std::result::Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let response = request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) => Failure::lasting(format!("{url}: {error}"), Some("check HF_ENDPOINT")),
            _ => Failure::passing(format!("{url}: {error}")),
        })?;
        match response.status().as_u16() {
            200..300 => Ok(response),
            401 | 403 => Err(self.refusal(place, url, response.status())),
            404 => {
                let at = match place.kind {
                    Kind::Model => String::new(),
                    Kind::Dataset => format!(" at revision {}", place.revision),
                };
                let what = format!("{url}: there is no such {}{at} on the hub", place.kind.noun());
                Err(Failure::lasting(what, None))
            }
            408 | 429 | 500.. => Err(Failure::passing(format!("{url}: {}", response.status()))),
            _ => Err(Failure::lasting(format!("{url}: {}", response.status()), None)),
        }
    }

    /// What the hub's 401 or 403 means: it answers the same for what is gated, private and not there.
    fn refusal(&self, place: &Place, url: &str, status: StatusCode) -> Failure {
        let noun = place.kind.noun();
        let what =
            format!("{url}: the hub refuses ({status}); there is no such {noun}, or it is private or gated");
        let page = format!("{}/{}", self.endpoint, place.page());
        let hint = match (place.kind, self.token.is_some()) {
            (Kind::Model, _) => "set HF_TOKEN to the token of an account that may read it".to_owned(),
            (Kind::Dataset, false) => {
                format!("accept its terms at {page}, and set HF_TOKEN to a token of that account")
            }
            (Kind::Dataset, true) => {
                format!("accept its terms at {page} with the account whose token HF_TOKEN is, or set another")
            }
        };
        Failure::lasting(what, Some(&hint))
    }

    fn again<T>(
        &self,
        mut attempt: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> std::result::Result<T, Failure> {
        let mut pause = self.pause;
        for _ in 1..ATTEMPTS {
            match attempt() {
                Err(failure) if failure.passing => tracing::debug!("once more: {}", failure.what),
                outcome => return outcome,
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        attempt()
    }
}

impl Repository {
    /// The file at a path of the repository.
    fn file(&self, path: &str) -> std::result::Result<&Sibling, Failure> {
        let found = self.siblings.iter().find(|file| file.rfilename == path);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.siblings.iter().map(|file| file.rfilename.as_str()).collect();
            let shown = names[..names.len().min(LISTED)].join(", ");
            let more = names.len().saturating_sub(LISTED);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            Failure::lasting(format!("expected a file {path}, found {shown}{more}"), None)
        })
    }

    /// The files with weights: those that the index names, else `model.safetensors`, else the only `.gguf` file.
    fn weights(&self, snapshot: &Path) -> std::result::Result<Vec<&Sibling>, Failure> {
        let named = |name: &str| self.siblings.iter().find(|file| file.rfilename == name);
        if named(INDEX).is_some() {
            let path = snapshot.join(INDEX);
            let text = std::fs::read_to_string(&path).map_err(|error| on_disk(&path, &error))?;
            let names =
                shard_names(&text).map_err(|what| Failure::lasting(format!("{INDEX}: {what}"), None))?;
            let missing =
                |name: &String| Failure::lasting(format!("{INDEX} names {name}, which is not there"), None);
            return names
                .iter()
                .map(|name| named(name).ok_or_else(|| missing(name)))
                .collect();
        }
        if let Some(whole) = named("model.safetensors") {
            return Ok(vec![whole]);
        }
        let gguf: Vec<_> = self
            .siblings
            .iter()
            .filter(|file| file.rfilename.ends_with(".gguf") && !file.rfilename.contains('/'))
            .collect();
        match gguf.as_slice() {
            [] | [_] => Ok(gguf),
            several => Err(Failure::lasting(
                format!(
                    "expected safetensors or one .gguf file, found {} .gguf files",
                    several.len()
                ),
                Some("download the one that you want and give its path"),
            )),
        }
    }
}

fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_per_read(Some(Duration::from_mins(1)))
        .tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::PlatformVerifier)
                .build(),
        )
        .user_agent(concat!("saferl/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

fn is_whole(snapshot: &Path) -> bool {
    let source = folder_source(snapshot, "");
    source.is_ok_and(|source| source.weights != WeightsFormat::None)
}

/// Notes which commit a revision was found at.
fn write_reference(path: &Path, sha: &str) -> Result<()> {
    create_folder(path.parent().unwrap_or(path))?;
    std::fs::write(path, sha).map_err(|source| Error::File {
        path: path.into(),
        source,
    })
}

/// A path in the form that addresses have.
fn escape(path: &str) -> String {
    let mut escaped = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })
}

/// Holds others off until the file is dropped; the operating system lets go of the lock of a killed process.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).and_then(|file| file.lock().map(|()| file));
    file.map_err(|source| Error::File {
        path: path.into(),
        source,
    })
}

fn on_disk(path: &Path, error: &std::io::Error) -> Failure {
    Failure::lasting(format!("{}: {error}", path.display()), None)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What the small server does for a path.
    #[derive(Clone)]
    enum Answer {
        Text(String),
        /// This many bytes, and then the line goes dead; the next request gets the rest.
        Broken(String, usize),
        Status(u16),
        Redirect(String),
    }

    #[derive(Default)]
    struct Server {
        answers: Mutex<HashMap<String, Vec<Answer>>>,
        requests: Mutex<Vec<String>>,
    }

    impl Server {
        /// Answers of a path, one a request; the last one stays.
        fn start(answers: &[(&str, &[Answer])]) -> (Arc<Self>, Hub, tempfile::TempDir) {
            let server = Arc::new(Self::default());
            for (path, list) in answers {
                server
                    .answers
                    .lock()
                    .unwrap()
                    .insert((*path).into(), list.to_vec());
            }
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}/", listener.local_addr().unwrap());
            let twin = Arc::clone(&server);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    twin.answer(stream);
                }
            });
            let cache = tempfile::tempdir().unwrap();
            let home = cache.path().to_str().unwrap().to_owned();
            let variables = HashMap::from([
                ("HF_ENDPOINT", endpoint),
                ("HF_HOME", home),
                ("HF_TOKEN", "secret".into()),
            ]);
            let mut hub = Hub::from_variables(&|name| variables.get(name).cloned(), None).unwrap();
            hub.pause = Duration::from_millis(1);
            (server, hub, cache)
        }

        fn answer(&self, mut stream: TcpStream) {
            let mut lines = BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map_while(std::result::Result::ok);
            let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            self.requests.lock().unwrap().push(head.join("\n"));
            let path = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
            let range = head.iter().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let start = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?;
                name.eq_ignore_ascii_case("range")
                    .then(|| start.parse::<usize>().unwrap())
            });
            let answer = match self.answers.lock().unwrap().get_mut(&path) {
                None => Answer::Status(404),
                Some(list) if list.len() > 1 => list.remove(0),
                Some(list) => list[0].clone(),
            };
            let close = "Connection: close\r\n";
            let _ = match answer {
                Answer::Status(status) => {
                    write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: 0\r\n{close}\r\n")
                }
                Answer::Redirect(to) => {
                    write!(
                        stream,
                        "HTTP/1.1 302 x\r\nLocation: {to}\r\nContent-Length: 0\r\n{close}\r\n"
                    )
                }
                Answer::Text(text) => {
                    let (status, rest) = range.map_or((200, text.as_str()), |start| (206, &text[start..]));
                    write!(
                        stream,
                        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n{close}\r\n{rest}",
                        rest.len()
                    )
                }
                Answer::Broken(text, count) => {
                    write!(
                        stream,
                        "HTTP/1.1 200 x\r\nContent-Length: {}\r\n{close}\r\n{}",
                        text.len(),
                        &text[..count]
                    )
                }
            };
        }

        fn requests(&self) -> Vec<String> {
            self.requests.lock().unwrap().clone()
        }
    }

    const API: &str = "/api/models/org/name/revision/main?blobs=true";

    fn api(files: &[(&str, &str)]) -> Answer {
        let siblings: Vec<_> = files
            .iter()
            .map(|(name, text)| {
                let hash = <sha2::Sha256 as sha2::Digest>::digest(text);
                let large = name.ends_with(".safetensors") || name.ends_with(".parquet");
                let lfs = large.then(|| serde_json::json!({"sha256": format!("{hash:x}")}));
                serde_json::json!({"rfilename": name, "size": text.len(), "lfs": lfs})
            })
            .collect();
        Answer::Text(serde_json::json!({"sha": "abc123", "siblings": siblings}).to_string())
    }

    fn text(text: &str) -> Answer {
        Answer::Text(text.into())
    }

    #[test]
    fn a_model_is_fetched_once_into_the_shared_cache() {
        let index = r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#;
        let files = [
            ("config.json", "{}"),
            (INDEX, index),
            ("a.safetensors", "aaaa"),
            ("b.safetensors", "bb"),
            ("pytorch.bin", "?"),
        ];
        let (server, hub, cache) = Server::start(&[
            (API, &[api(&files)]),
            ("/org/name/resolve/abc123/config.json", &[text("{}")]),
            (
                "/org/name/resolve/abc123/model.safetensors.index.json",
                &[text(index)],
            ),
            (
                "/org/name/resolve/abc123/a.safetensors",
                &[Answer::Redirect("/elsewhere".into())],
            ),
            ("/elsewhere", &[text("aaaa")]),
            (
                "/org/name/resolve/abc123/b.safetensors",
                &[Answer::Status(503), text("bb")],
            ),
        ]);
        let mut steps = Vec::new();
        let folder = hub
            .fetch("org/name", &mut |progress| steps.push(progress))
            .unwrap();
        assert_eq!(
            folder,
            cache.path().join("hub/models--org--name/snapshots/abc123")
        );
        let source = folder_source(&folder, "org/name").unwrap();
        let shards = ["a.safetensors", "b.safetensors"].map(|name| folder.join(name));
        assert_eq!(source.weights, WeightsFormat::Safetensors(shards.to_vec()));
        assert!(!folder.join("pytorch.bin").exists());
        let last = Progress {
            step: "downloading a.safetensors".into(),
            done: 4,
            total: Some(4),
        };
        assert!(steps.contains(&last), "{steps:?}");
        let authorised = |request: &String| request.to_lowercase().contains("authorization: bearer secret");
        assert!(server.requests().iter().all(authorised));

        let count = server.requests().len();
        assert_eq!(hub.fetch("org/name", &mut |_| {}).unwrap(), folder);
        assert_eq!(server.requests().len(), count + 1);
        server
            .answers
            .lock()
            .unwrap()
            .insert(API.into(), vec![Answer::Status(503)]);
        assert_eq!(hub.fetch("org/name", &mut |_| {}).unwrap(), folder);
    }

    #[test]
    fn a_broken_download_goes_on_where_it_stopped() {
        let weights = "0123456789".repeat(1000);
        let path = "/org/name/resolve/abc123/model.safetensors";
        let (server, hub, _cache) = Server::start(&[
            (
                API,
                &[api(&[("config.json", "{}"), ("model.safetensors", &weights)])],
            ),
            ("/org/name/resolve/abc123/config.json", &[text("{}")]),
            (path, &[Answer::Broken(weights.clone(), 5000), text(&weights)]),
        ]);
        let folder = hub.fetch("org/name", &mut |_| {}).unwrap();
        assert_eq!(
            std::fs::read_to_string(folder.join("model.safetensors")).unwrap(),
            weights
        );
        let ranges = server
            .requests()
            .iter()
            .filter(|request| request.to_lowercase().contains("range: bytes=5000-"))
            .count();
        assert_eq!(ranges, 1);
    }

    #[test]
    fn a_file_that_is_not_what_the_hub_promised_is_refused() {
        let (_server, hub, _cache) = Server::start(&[
            (
                API,
                &[api(&[("config.json", "{}"), ("model.safetensors", "good")])],
            ),
            ("/org/name/resolve/abc123/config.json", &[text("{}")]),
            ("/org/name/resolve/abc123/model.safetensors", &[text("evil")]),
        ]);
        let error = hub.fetch("org/name", &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("expected sha256"), "{error}");
        assert!(
            !hub.cache
                .join("models--org--name/snapshots/abc123/model.safetensors")
                .exists()
        );
        assert!(!hub.cache.join("models--org--name/refs/main").exists());
    }

    #[test]
    fn what_the_hub_refuses_has_a_hint() {
        let (_server, hub, _cache) = Server::start(&[(API, &[Answer::Status(401)])]);
        let error = hub.fetch("org/name", &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("org/name"), "{error}");
        assert!(error.hint().unwrap().contains("HF_TOKEN"));
        let error = hub.fetch("org/other", &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("no such model on the hub"), "{error}");
        assert!(error.hint().is_none());
    }

    const DATASET: &str = "/api/datasets/org/name/revision/main?blobs=true";

    fn dataset(name: &str) -> DatasetFile {
        DatasetFile::parse(&format!("{}org/{name}", crate::dataset::SCHEME)).unwrap()
    }

    #[test]
    fn a_datasets_file_is_fetched_once_and_never_asked_after() {
        let (server, hub, cache) = Server::start(&[
            (DATASET, &[api(&[("data/a b.csv", "x\n1\n"), ("README.md", "?")])]),
            (
                "/datasets/org/name/resolve/abc123/data/a%20b.csv",
                &[text("x\n1\n")],
            ),
            (
                "/api/datasets/org/name/revision/v1?blobs=true",
                &[api(&[("data/a b.csv", "x\n2\n")])],
            ),
        ]);
        let file = dataset("name/data/a b.csv");
        assert_eq!(hub.cached_dataset_file(&file), None);
        let path = hub.fetch_dataset_file(&file, &mut |_| {}).unwrap();
        assert_eq!(
            path,
            cache
                .path()
                .join("hub/datasets--org--name/snapshots/abc123/data/a b.csv")
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n1\n");
        assert_eq!(hub.cached_dataset_file(&file), Some(path.clone()));
        let asked = server.requests().len();
        assert_eq!(asked, 2);
        assert_eq!(hub.fetch_dataset_file(&file, &mut |_| {}).unwrap(), path);
        assert_eq!(server.requests().len(), asked);
        // By its commit it is the same file; another revision is asked for.
        assert_eq!(
            hub.cached_dataset_file(&dataset("name@abc123/data/a b.csv")),
            Some(path)
        );
        assert_eq!(hub.cached_dataset_file(&dataset("name@v1/data/a b.csv")), None);
    }

    #[test]
    fn a_gated_dataset_says_where_its_terms_are() {
        let file = dataset("name/eval.tsv");
        let page = |hub: &Hub| format!("{}/datasets/org/name", hub.endpoint);
        for (at, answers) in [
            (DATASET, vec![(DATASET, Answer::Status(401))]),
            (
                "/datasets/org/name/resolve/abc123/eval.tsv",
                vec![
                    (DATASET, api(&[("eval.tsv", "x")])),
                    ("/datasets/org/name/resolve/abc123/eval.tsv", Answer::Status(403)),
                ],
            ),
        ] {
            let answers: Vec<_> = answers
                .iter()
                .map(|(path, answer)| (*path, std::slice::from_ref(answer)))
                .collect();
            let (server, mut hub, _cache) = Server::start(&answers);
            let error = hub.fetch_dataset_file(&file, &mut |_| {}).unwrap_err();
            let (what, hint) = (error.to_string(), error.hint().unwrap());
            assert!(
                what.contains("hf://datasets/org/name/eval.tsv")
                    && what.contains(at)
                    && what.contains("gated"),
                "{what}"
            );
            assert!(hint.contains(&page(&hub)) && hint.contains("HF_TOKEN"), "{hint}");
            let asked = server.requests().len();
            hub.token = None;
            let error = hub.fetch_dataset_file(&file, &mut |_| {}).unwrap_err();
            assert!(error.hint().unwrap().contains("set HF_TOKEN"), "{error}");
            // A refusal is not asked again and again, and leaves nothing that could be taken for the file.
            assert_eq!(server.requests().len(), 2 * asked);
            assert_eq!(hub.cached_dataset_file(&file), None);
        }
    }

    #[test]
    fn a_file_that_a_dataset_lacks_is_named_beside_those_it_has() {
        let (server, hub, _cache) = Server::start(&[(DATASET, &[api(&[("a.csv", ""), ("b.csv", "")])])]);
        let error = hub.fetch_dataset_file(&dataset("name/c.csv"), &mut |_| {});
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("expected a file c.csv, found a.csv, b.csv"),
            "{error}"
        );
        assert_eq!(server.requests().len(), 1);
        let error = hub.fetch_dataset_file(&dataset("other@v2/c.csv"), &mut |_| {});
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("no such dataset at revision v2 on the hub"),
            "{error}"
        );
    }

    #[test]
    fn a_truncated_file_of_a_dataset_is_not_taken_and_goes_on_later() {
        let rows = "0123456789".repeat(1000);
        let path = "/datasets/org/name/resolve/abc123/test.jsonl";
        let broken = || Answer::Broken(rows.clone(), 4000);
        let (server, hub, _cache) = Server::start(&[
            (DATASET, &[api(&[("test.jsonl", &rows)])]),
            (path, &[broken(), Answer::Status(503)]),
        ]);
        let file = dataset("name/test.jsonl");
        assert!(hub.fetch_dataset_file(&file, &mut |_| {}).is_err());
        assert_eq!(hub.cached_dataset_file(&file), None);
        server
            .answers
            .lock()
            .unwrap()
            .insert(path.into(), vec![text(&rows)]);
        let fetched = hub.fetch_dataset_file(&file, &mut |_| {}).unwrap();
        assert_eq!(std::fs::read_to_string(fetched).unwrap(), rows);
        let last = server.requests().pop().unwrap().to_lowercase();
        assert!(last.contains("range: bytes=4000-"), "{last}");
    }

    #[test]
    fn a_dataset_that_is_not_what_the_hub_promised_is_refused() {
        let (_server, hub, _cache) = Server::start(&[
            (DATASET, &[api(&[("test.parquet", "good")])]),
            ("/datasets/org/name/resolve/abc123/test.parquet", &[text("evil")]),
        ]);
        let file = dataset("name/test.parquet");
        let error = hub
            .fetch_dataset_file(&file, &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected sha256"), "{error}");
        assert_eq!(hub.cached_dataset_file(&file), None);
    }

    #[test]
    fn names_of_repositories() {
        assert!(is_repository("Qwen/Qwen3-4B"));
        for name in [
            "smollm2-135m",
            "a/b/c",
            "../x",
            "/x",
            "a/",
            "a/..",
            "./a",
            "C:\\a/b",
        ] {
            assert!(!is_repository(name), "{name}");
        }
    }

    #[test]
    fn the_environment_says_where() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from-file\n").unwrap();
        let hub = |variables: &[(&str, &str)]| {
            let get = |name: &str| {
                variables
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            };
            Hub::from_variables(&get, Some("/user".into())).unwrap()
        };
        assert_eq!(hub(&[]).cache, Path::new("/user/.cache/huggingface/hub"));
        assert_eq!((hub(&[]).endpoint.as_str(), hub(&[]).token), (ENDPOINT, None));
        assert_eq!(
            hub(&[("XDG_CACHE_HOME", "/cache")]).cache,
            Path::new("/cache/huggingface/hub")
        );
        let path = home.path().to_str().unwrap();
        assert_eq!(hub(&[("HF_HOME", path)]).token.as_deref(), Some("from-file"));
        assert_eq!(
            hub(&[("HF_HOME", path), ("HF_TOKEN", "t")]).token.as_deref(),
            Some("t")
        );
        assert_eq!(
            hub(&[("HF_HOME", path), ("HF_HUB_CACHE", "/models")]).cache,
            Path::new("/models")
        );
    }
}
