//! The log of one task, one model and one mode: a line of JSON for everything that happened.
//!
//! The first line is the [`Spec`], the last a status; between them every reply, score and verdict as it came. Lines are
//! only ever added, so a killed evaluation goes on where it stopped: a line that was cut off is dropped, and whatever
//! is in the log is not asked again. A log that was made for something else is refused.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::chat::{Message, Mode};
use model::generate::{FinishReason, Sampling};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::judges::Verdict;
use crate::recipe::TaskKind;

/// The form of a line; a log of another version is refused.
pub const VERSION: u32 = 1;

/// What a log's replies depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// [`VERSION`].
    pub version: u32,
    /// The task's name.
    pub task: String,
    /// The benchmark.
    pub kind: TaskKind,
    /// SHA-256 of the benchmark's files.
    pub data_sha256: String,
    /// SHA-256 of what the recipe puts round each prompt.
    pub prompt_sha256: String,
    /// The model's name.
    pub model: String,
    /// Which model that is: a fingerprint of its weights, or its name at its server.
    pub identity: String,
    /// Whether it thinks.
    pub mode: Mode,
    /// How tokens are drawn; each sample has a seed of its own.
    pub sampling: Sampling,
    /// What the samples' seeds follow from.
    pub seed: u64,
}

/// One sample: a prompt's id and the sample's number.
pub type Key = (String, usize);

/// What the model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// What it was asked.
    pub messages: Vec<Message>,
    /// What it thought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    /// What it answered.
    pub reply: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// How many tokens that took, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Seconds, as far as one reply's can be told from the others'.
    pub seconds: f64,
}

/// What a rule says about a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Whether it is right.
    pub passed: bool,
    /// What was taken from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extracted: Option<String>,
    /// What was wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Which text of a sample a verdict is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The answer.
    Answer,
    /// The thinking.
    Thinking,
    /// A comparison in which the baseline stands first.
    BaselineFirst,
    /// A comparison in which the baseline stands second.
    BaselineSecond,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
enum Event {
    Spec {
        spec: Spec,
    },
    Reply {
        id: String,
        sample: usize,
        reply: Reply,
    },
    Failed {
        id: String,
        sample: usize,
        cause: String,
    },
    Score {
        id: String,
        sample: usize,
        score: Score,
    },
    Verdict {
        id: String,
        sample: usize,
        part: Part,
        judge: String,
        /// Which judge that is, so that another one under the same name judges anew.
        by: String,
        verdict: Verdict,
        seconds: f64,
    },
    Status {
        status: Status,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        what: String,
    },
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Every reply and verdict is there, or few enough are missing.
    Done,
    /// Too many failed.
    Failed,
}

/// A log that is open for more.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// The replies.
    pub replies: BTreeMap<Key, Reply>,
    /// Why samples have no reply.
    pub failed: BTreeMap<Key, String>,
    /// Scores by rule.
    pub scores: BTreeMap<Key, Score>,
    /// Verdicts, by sample, part and judge, each with which judge it was.
    pub verdicts: BTreeMap<(Key, Part, String), (String, Verdict)>,
    /// How the last run on it ended.
    pub status: Option<Status>,
}

/// Keeps other processes from writing the log. A child that is being started holds a copy of every open file, locks and all,
/// until it is another program: so a log that was closed just now may be locked for a moment yet.
fn lock(file: &File, path: &Path) -> Result<()> {
    const ATTEMPTS: usize = 20;
    for attempt in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < ATTEMPTS => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Log {
                    path: path.into(),
                    what: "another process writes it".into(),
                    hint: "wait for that evaluation, or give this one another name: --set run=NAME".into(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(Error::file(path, source)),
        }
    }
    Ok(())
}

impl Log {
    /// Opens a log for `spec`, a new one where there is none.
    ///
    /// # Errors
    /// A log for something else, one that another process writes, or a broken line before the last.
    pub fn open(path: &Path, spec: &Spec) -> Result<Self> {
        let failed = |source| Error::file(path, source);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(failed)?;
        lock(&file, path)?;
        let mut log = Self {
            path: path.into(),
            file,
            replies: BTreeMap::new(),
            failed: BTreeMap::new(),
            scores: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            status: None,
        };
        let text = std::fs::read(path).map_err(failed)?;
        let whole = text
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        if whole < text.len() {
            tracing::warn!("{}: the last line was cut off and is dropped", path.display());
            log.file.set_len(whole as u64).map_err(failed)?;
        }
        let found = log.replay(&text[..whole])?;
        match found {
            None => log.append(&Event::Spec { spec: spec.clone() })?,
            Some(found) => refuse_other(path, spec, &found)?,
        }
        Ok(log)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn replay(&mut self, text: &[u8]) -> Result<Option<Spec>> {
        let mut spec = None;
        for (index, line) in text
            .split(|&byte| byte == b'\n')
            .enumerate()
            .filter(|(_, line)| !line.is_empty())
        {
            let broken = |what: String| Error::Format {
                path: self.path.clone(),
                line: Some(index + 1),
                what,
            };
            let event: Event = serde_json::from_slice(line).map_err(|error| broken(error.to_string()))?;
            match event {
                Event::Spec { spec: found } => spec = Some(found),
                _ if spec.is_none() => return Err(broken("expected the spec in the first line".into())),
                other => self.take(other),
            }
        }
        Ok(spec)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Spec { .. } => {}
            Event::Reply { id, sample, reply } => {
                self.failed.remove(&(id.clone(), sample));
                self.replies.insert((id, sample), reply);
            }
            Event::Failed { id, sample, cause } => {
                self.failed.insert((id, sample), cause);
            }
            Event::Score { id, sample, score } => {
                self.scores.insert((id, sample), score);
            }
            Event::Verdict {
                id,
                sample,
                part,
                judge,
                by,
                verdict,
                ..
            } => {
                self.verdicts.insert(((id, sample), part, judge), (by, verdict));
            }
            Event::Status { status, .. } => self.status = Some(status),
        }
    }

    /// Adds a line; what a process wrote is kept by the system even where the process is killed.
    fn append(&mut self, event: &Event) -> Result<()> {
        let failed = |source| Error::file(&self.path, source);
        let mut line = serde_json::to_vec(event).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed)
    }

    fn add(&mut self, event: Event) -> Result<()> {
        self.append(&event)?;
        self.take(event);
        Ok(())
    }

    /// Adds a reply.
    pub fn add_reply(&mut self, (id, sample): Key, reply: Reply) -> Result<()> {
        self.add(Event::Reply { id, sample, reply })
    }

    /// Notes that there is no reply.
    pub fn add_failure(&mut self, (id, sample): Key, cause: String) -> Result<()> {
        self.add(Event::Failed { id, sample, cause })
    }

    /// Adds a score by rule.
    pub fn add_score(&mut self, (id, sample): Key, score: Score) -> Result<()> {
        self.add(Event::Score { id, sample, score })
    }

    /// Adds a verdict; `by` says which judge gave it.
    pub fn add_verdict(
        &mut self,
        (id, sample): Key,
        part: Part,
        judge: &str,
        by: &str,
        verdict: Verdict,
        seconds: f64,
    ) -> Result<()> {
        self.add(Event::Verdict {
            id,
            sample,
            part,
            judge: judge.into(),
            by: by.into(),
            verdict,
            seconds,
        })
    }

    /// Notes how it ended.
    pub fn add_status(&mut self, status: Status, what: &str) -> Result<()> {
        self.add(Event::Status {
            status,
            what: what.into(),
        })
    }

    /// Whether a judge has said all it can about a text: an answer that could not be read counts, silence does not.
    pub fn is_judged(&self, key: &Key, part: Part, judge: &str, by: &str) -> bool {
        let found = self.verdicts.get(&(key.clone(), part, judge.to_owned()));
        found.is_some_and(|(who, verdict)| who == by && !verdict.unreached)
    }

    /// A judge's verdict on a text.
    pub fn verdict(&self, key: &Key, part: Part, judge: &str) -> Option<&Verdict> {
        let found = self.verdicts.get(&(key.clone(), part, judge.to_owned()));
        found.map(|(_, verdict)| verdict)
    }
}

fn refuse_other(path: &Path, spec: &Spec, found: &Spec) -> Result<()> {
    if spec == found {
        return Ok(());
    }
    let value = |spec: &Spec| serde_json::to_value(spec).unwrap_or_default();
    let (expected, found) = (value(spec), value(found));
    let differs = expected
        .as_object()
        .into_iter()
        .flatten()
        .find_map(|(key, expected)| {
            let found = &found[key];
            (expected != found).then(|| format!("{key}: expected {expected}, found {found}"))
        });
    Err(Error::Log {
        path: path.into(),
        what: format!("it is of another evaluation: {}", differs.unwrap_or_default()),
        hint: "give this one another name with --set run=NAME, or delete the log".into(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn spec() -> Spec {
        Spec {
            version: VERSION,
            task: "t".into(),
            kind: TaskKind::Xstest,
            data_sha256: "d".into(),
            prompt_sha256: "p".into(),
            model: "m".into(),
            identity: "i".into(),
            mode: Mode::NoThink,
            sampling: Sampling::default(),
            seed: 1,
        }
    }

    fn reply(text: &str) -> Reply {
        Reply {
            messages: vec![Message::user("q")],
            thinking: None,
            reply: text.into(),
            finish: FinishReason::Stop,
            tokens: Some(3),
            seconds: 0.5,
        }
    }

    fn key(id: &str) -> Key {
        (id.into(), 0)
    }

    #[test]
    fn what_was_written_is_there_again_and_a_torn_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/t.jsonl");
        let mut log = Log::open(&path, &spec()).unwrap();
        log.add_reply(key("a"), reply("x")).unwrap();
        log.add_failure(key("b"), "timeout".into()).unwrap();
        let verdict = Verdict {
            refusal: Some(true),
            raw: "Refusal: yes".into(),
            ..Verdict::default()
        };
        log.add_verdict(key("a"), Part::Answer, "g", "g1", verdict.clone(), 0.1)
            .unwrap();
        drop(log);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"event\": \"reply\", \"id\": \"c\", \"sam")
            .unwrap();
        drop(file);

        let mut log = Log::open(&path, &spec()).unwrap();
        assert_eq!(log.replies[&key("a")], reply("x"));
        assert_eq!((log.replies.len(), log.failed.len()), (1, 1));
        assert_eq!(log.verdict(&key("a"), Part::Answer, "g"), Some(&verdict));
        assert!(log.is_judged(&key("a"), Part::Answer, "g", "g1"));
        assert!(!log.is_judged(&key("a"), Part::Answer, "g", "another"));
        log.add_reply(key("b"), reply("late")).unwrap();
        log.add_status(Status::Done, "").unwrap();
        drop(log);
        let log = Log::open(&path, &spec()).unwrap();
        assert!(log.failed.is_empty() && log.replies.len() == 2 && log.status == Some(Status::Done));
    }

    #[test]
    fn a_judge_that_was_not_reached_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(&folder.path().join("t.jsonl"), &spec()).unwrap();
        let unread = Verdict {
            unscorable: Some("no verdict".into()),
            ..Verdict::default()
        };
        let silent = Verdict {
            unreached: true,
            ..unread.clone()
        };
        log.add_verdict(key("a"), Part::Answer, "g", "g", unread, 0.0)
            .unwrap();
        log.add_verdict(key("b"), Part::Answer, "g", "g", silent, 0.0)
            .unwrap();
        assert!(log.is_judged(&key("a"), Part::Answer, "g", "g"));
        assert!(!log.is_judged(&key("b"), Part::Answer, "g", "g"));
    }

    #[test]
    fn another_spec_a_broken_line_and_a_second_writer_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        let log = Log::open(&path, &spec()).unwrap();
        let error = Log::open(&path, &spec()).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop(log);
        let other = Spec { seed: 2, ..spec() };
        let error = Log::open(&path, &other).unwrap_err();
        assert!(error.to_string().contains("seed: expected 2, found 1"), "{error}");
        assert!(error.hint().unwrap().contains("run=NAME"));
        std::fs::write(&path, "{}\n{}\n").unwrap();
        let error = Log::open(&path, &spec()).unwrap_err();
        assert!(error.to_string().contains("line or row 1"), "{error}");
    }
}
