//! Who answers: an engine in this process, a server, or a script, one reply at a time.
//!
//! [`model::generate::Generate`] gives a batch back as a whole; an evaluation writes down each reply as it comes, so
//! that none is asked for twice.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use model::chat::{Message, Mode, Prompt};
use model::engine::{Engine, News, Ticket};
use model::generate::{Completion, FinishReason, Generate, Sampling};
use model::remote::Remote;
use model::tokenizer::Tokenizer;
use serde::Deserialize;

use crate::error::{Error, Result};

/// One thing to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Whether to think.
    pub mode: Mode,
    /// How tokens are drawn, with a seed of its own.
    pub sampling: Sampling,
}

/// What came of a request: a completion, or why there is none, and the seconds it took.
pub type Answer = (std::result::Result<Completion, String>, f64);

/// Whoever answers.
#[derive(Debug)]
pub enum Respondent {
    /// An engine in this process.
    Local {
        /// The engine.
        engine: Box<Engine>,
        /// Its tokenizer.
        tokenizer: Arc<Tokenizer>,
    },
    /// A server.
    Remote(Remote),
    /// A script, and how often it was asked.
    Scripted(Script),
}

/// Replies by prompt.
#[derive(Debug, Default)]
pub struct Script {
    replies: HashMap<String, String>,
    otherwise: Option<String>,
    /// How many requests it has answered.
    pub asked: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    prompt: Option<String>,
    reply: String,
}

impl Script {
    /// Reads JSONL of `{"prompt", "reply"}`; a line without a prompt answers whatever no other line does.
    ///
    /// # Errors
    /// A file that cannot be read, or a line that is none of these.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::file(path, source))?;
        let mut script = Self::default();
        for (index, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let line: Line = serde_json::from_str(line).map_err(|error| Error::Format {
                path: path.into(),
                line: Some(index + 1),
                what: format!("expected {{\"prompt\", \"reply\"}}: {error}"),
            })?;
            match line.prompt {
                Some(prompt) => {
                    script.replies.insert(prompt, line.reply);
                }
                None => script.otherwise = Some(line.reply),
            }
        }
        Ok(script)
    }

    fn answer(&mut self, request: &Request) -> std::result::Result<Completion, String> {
        self.asked += 1;
        let prompt = request.messages.last().map_or("", |message| &message.content);
        let reply = self.replies.get(prompt).or(self.otherwise.as_ref());
        let reply = reply.ok_or_else(|| format!("the script has no reply to `{}`", first_words(prompt)))?;
        Ok(Completion::from_text(reply, FinishReason::Stop))
    }
}

fn first_words(text: &str) -> String {
    text.chars().take(80).collect()
}

impl Respondent {
    /// Answers every request and hands over each answer as it comes, in any order, with the request's index.
    ///
    /// # Errors
    /// What `done` returns, which stops the rest; or an engine that fails as a whole. A single request that fails is
    /// an answer.
    pub fn answer(
        &mut self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Answer) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Local { engine, tokenizer } => answer_local(engine, tokenizer, requests, done),
            Self::Remote(remote) => {
                let one = Remote {
                    concurrency: 1,
                    ..remote.clone()
                };
                in_parallel(requests, remote.concurrency, |request| ask(&one, request), done)
            }
            Self::Scripted(script) => {
                for (index, request) in requests.iter().enumerate() {
                    done(index, (script.answer(request), 0.0))?;
                }
                Ok(())
            }
        }
    }
}

fn ask(remote: &Remote, request: &Request) -> std::result::Result<Completion, String> {
    let prompt = Prompt {
        ids: Vec::new(),
        messages: request.messages.clone(),
        mode: request.mode,
    };
    let answers = remote.clone().generate(&[prompt], 1, &request.sampling);
    let mut answers = answers.map_err(|error| error.to_string())?;
    let answer = answers.pop().and_then(|mut samples| samples.pop());
    answer.ok_or_else(|| "the server returned no completion".into())
}

/// Works on all jobs with some threads and hands over each result in this one.
pub(crate) fn in_parallel<J: Sync, T: Send>(
    jobs: &[J],
    threads: usize,
    work: impl Fn(&J) -> T + Sync,
    done: &mut dyn FnMut(usize, (T, f64)) -> Result<()>,
) -> Result<()> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            let sender = sender.clone();
            let (next, stop, work) = (&next, &stop, &work);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { return };
                    let start = Instant::now();
                    let result = work(job);
                    if sender
                        .send((index, (result, start.elapsed().as_secs_f64())))
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (index, result) in receiver {
            if let Err(error) = done(index, result) {
                stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    })
}

fn answer_local(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    requests: &[Request],
    done: &mut dyn FnMut(usize, Answer) -> Result<()>,
) -> Result<()> {
    let mut waiting: HashMap<Ticket, usize> = HashMap::new();
    for (index, request) in requests.iter().enumerate() {
        let ticket = tokenizer
            .prompt(&request.messages, request.mode)
            .and_then(|prompt| engine.submit(&prompt, 1, &request.sampling));
        match ticket {
            Ok(ticket) => {
                waiting.insert(ticket, index);
            }
            Err(error) => done(index, (Err(error.to_string()), 0.0))?,
        }
    }
    // Replies of a batch share the time of its steps; each is given its part.
    let mut last = Instant::now();
    while !engine.is_idle() {
        for event in engine.step()? {
            let News::Finished(completion) = event.news else {
                continue;
            };
            if let Some(index) = waiting.remove(&event.ticket) {
                let seconds = last.elapsed().as_secs_f64();
                last = Instant::now();
                if let Err(error) = done(index, (Ok(completion), seconds)) {
                    for ticket in waiting.into_keys() {
                        engine.cancel(ticket);
                    }
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use model::config::Family;
    use model::decoder::Decoder;

    use super::*;

    fn request(text: &str, seed: u64) -> Request {
        Request {
            messages: vec![Message::user(text)],
            mode: Mode::NoThink,
            sampling: Sampling {
                max_new_tokens: 6,
                seed,
                ..Sampling::default()
            },
        }
    }

    #[test]
    fn an_engine_hands_over_each_reply_and_names_what_it_cannot_answer() {
        let folder = tempfile::tempdir().unwrap();
        model::seeded::write_tiny(folder.path(), Family::Qwen3).unwrap();
        let source = model::source::resolve(folder.path().to_str().unwrap(), &mut |_| ()).unwrap();
        let tokenizer = Arc::new(Tokenizer::load(&source).unwrap());
        let decoder = Decoder::load(&source, DType::F32, &Device::Cpu).unwrap();
        let engine = Engine::new(decoder, Arc::clone(&tokenizer), 256).unwrap();
        let mut respondent = Respondent::Local {
            engine: Box::new(engine),
            tokenizer,
        };
        let long = "word ".repeat(2000);
        let requests = [
            request("a", 1),
            request(&long, 1),
            request("a", 2),
            request("a", 1),
        ];
        let mut answers = vec![None; 4];
        respondent
            .answer(&requests, &mut |index, (answer, _)| {
                answers[index] = Some(answer.map(|completion| completion.ids));
                Ok(())
            })
            .unwrap();
        assert_eq!(answers[0], answers[3]);
        assert_ne!(answers[0], answers[2]);
        assert!(answers[1].as_ref().unwrap().is_err());
    }

    #[test]
    fn a_failing_receiver_stops_the_threads() {
        let jobs: Vec<usize> = (0..1000).collect();
        let worked = AtomicUsize::new(0);
        let mut seen = 0;
        let outcome = in_parallel(
            &jobs,
            4,
            |job| {
                worked.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(1));
                *job
            },
            &mut |_, _| {
                seen += 1;
                if seen < 5 {
                    Ok(())
                } else {
                    Err(Error::Gate("enough".into()))
                }
            },
        );
        assert!(outcome.is_err());
        assert!(worked.load(Ordering::Relaxed) < 500);
    }

    #[test]
    fn scripts_answer_by_prompt() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script.jsonl");
        std::fs::write(
            &path,
            "{\"prompt\": \"a\", \"reply\": \"<think>\\nhm\\n</think>\\n\\nb\"}\n",
        )
        .unwrap();
        let mut script = Script::read(&path).unwrap();
        let known = script.answer(&request("a", 1)).unwrap();
        assert_eq!(
            (known.thinking.as_deref(), known.content.as_str()),
            (Some("hm"), "b")
        );
        assert!(script.answer(&request("z", 1)).unwrap_err().contains("`z`"));
        std::fs::write(&path, "{\"prompt\": \"a\"}\n").unwrap();
        assert!(
            Script::read(&path)
                .unwrap_err()
                .to_string()
                .contains("line or row 1")
        );
    }
}
