//! Questions of all protocols to the judges: cache, bounded queue, micro-batches, deadlines, audit.
//!
//! Each panel of judges works on a thread of its own. A question that its deadline overtakes is answered with the cause
//! and, if it still waits, is not judged any more; a verdict that comes late goes into the cache. Only verdicts whose
//! every part was scored are cached, since what could not be scored may be scored the next time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use judge::{
    Branch, Controversial, Conversation, Exchange, Moderation, Panel, Reward, RewardKind, Scored, Verdict,
};
use serde_json::json;
use tokio::sync::oneshot;

use super::answer::{Answer, Judged, reward_of};
use super::audit::{Audit, Line, hex, now, sha256};
use super::cache::{Cache, Key};
use super::queue::Queue;
use super::worker::{Aspect, Job, Shared, is_whole, work};
use crate::{Error, Metrics, Result};

/// The names under which the service answers where a protocol names a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The reward, in `/classify`, `/pooling` and `/v1/embeddings`.
    pub reward: String,
    /// The helpfulness alone, in the same places.
    pub helpfulness: String,
    /// The guard, in `/v1/chat/completions`.
    pub guard: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            reward: "saferl-reward".into(),
            helpfulness: "saferl-helpfulness".into(),
            guard: "saferl-guard".into(),
        }
    }
}

/// What the service gives and how much it takes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The formula.
    pub kind: RewardKind,
    /// What controversial counts as in it.
    pub controversial: Controversial,
    /// Names for clients.
    pub names: Names,
    /// Most items of one request.
    pub items: usize,
    /// Most items that wait for a judge, over all requests; what is beyond is answered 429.
    pub queue: usize,
    /// Most items that are judged together.
    pub batch: usize,
    /// How long an item waits for others to be judged with.
    pub batch_wait: Duration,
    /// Verdicts that are remembered.
    pub cache: usize,
    /// How long a request waits for its verdicts.
    pub deadline: Duration,
    /// Where every verdict is logged.
    pub audit: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kind: RewardKind::Hybrid,
            controversial: Controversial::Unsafe,
            names: Names::default(),
            items: 512,
            queue: 4096,
            batch: 64,
            batch_wait: Duration::from_millis(5),
            cache: 100_000,
            deadline: Duration::from_mins(2),
            audit: None,
        }
    }
}

/// The judges at work; shared by all routes.
pub struct Service {
    settings: Settings,
    judges: BTreeMap<String, String>,
    audit: Option<Audit>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Service {
    /// Starts a thread for each panel. `judges` says who they are, with the hashes of heads or models, for the audit log.
    ///
    /// # Errors
    /// An audit log that cannot be opened; a queue that the largest request does not fit.
    pub fn start(
        panels: Vec<Panel>,
        judges: BTreeMap<String, String>,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        if settings.queue < settings.items || settings.batch == 0 || panels.is_empty() {
            return Err(Error::Internal(format!(
                "reward service: expected a judge, batches of at least 1 and a queue with room for a request of {} \
                 items, found {} judges, batches of {} and a queue of {}",
                settings.items,
                panels.len(),
                settings.batch,
                settings.queue
            )));
        }
        let audit = settings.audit.as_deref().map(|path| {
            Audit::open(path).map_err(|error| Error::Internal(format!("{}: {error}", path.display())))
        });
        let audit = audit.transpose()?;
        let shared = Arc::new(Shared {
            queue: Queue::new(settings.queue),
            cache: Mutex::new(Cache::new(settings.cache)),
            metrics,
            batch: settings.batch,
            batch_wait: settings.batch_wait,
            seconds_an_item: Mutex::new(0.0),
        });
        let threads = panels
            .into_iter()
            .map(|panel| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || work(&shared, panel))
            })
            .collect();
        Ok(Self {
            settings,
            judges,
            audit,
            shared,
            threads,
        })
    }

    /// What it was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The reward of each item, in order; an item that is no exchange comes with its cause and goes back with it.
    pub(crate) async fn rewards(
        &self,
        protocol: &'static str,
        items: Vec<std::result::Result<Exchange, String>>,
    ) -> Result<Vec<Judged>> {
        let verdicts = self.ask(protocol, Aspect::Reward, items, false).await?;
        Ok(verdicts
            .into_iter()
            .map(|answer| Judged::new(&self.settings, answer))
            .collect())
    }

    /// The helpfulness of each item, in order.
    pub(crate) async fn helpfulness(
        &self,
        protocol: &'static str,
        items: Vec<std::result::Result<Exchange, String>>,
    ) -> Result<Vec<Scored<f32>>> {
        let verdicts = self.ask(protocol, Aspect::Helpfulness, items, false).await?;
        let helpfulness = |verdict: Answer| match verdict {
            Ok(verdict) => verdict.helpfulness,
            Err(cause) => Scored::Unscorable(cause),
        };
        Ok(verdicts.into_iter().map(helpfulness).collect())
    }

    /// The guard's word on one conversation, or on its prompt where it has no reply.
    pub(crate) async fn moderate(
        &self,
        protocol: &'static str,
        conversation: Conversation,
    ) -> Result<Scored<Moderation>> {
        let prompt_only = conversation.reply.is_none();
        let question = Exchange {
            messages: conversation.messages,
            thinking: None,
            content: conversation.reply.unwrap_or_default(),
        };
        let verdicts = self
            .ask(protocol, Aspect::Safety, vec![Ok(question)], prompt_only)
            .await?;
        Ok(match verdicts.into_iter().next() {
            Some(Ok(verdict)) => verdict.content,
            Some(Err(cause)) => Scored::Unscorable(cause),
            None => Scored::Unscorable("no verdict".into()),
        })
    }

    /// One answer for each question, in order. What a verdict holds beyond the aspect asked about means nothing.
    async fn ask(
        &self,
        protocol: &'static str,
        aspect: Aspect,
        questions: Vec<std::result::Result<Exchange, String>>,
        prompt_only: bool,
    ) -> Result<Vec<Answer>> {
        if questions.len() > self.settings.items {
            let (limit, found) = (self.settings.items, questions.len());
            return Err(Error::Request(format!(
                "a request may have {limit} items, found {found}"
            )));
        }
        let deadline = Instant::now() + self.settings.deadline;
        let mut jobs = Vec::new();
        let mut items = Vec::with_capacity(questions.len());
        for question in questions {
            items.push(match question.map(Arc::new) {
                Err(cause) => Item::new(None, Wait::Done(Err(cause))),
                Ok(question) => {
                    let key = key(aspect, &question, prompt_only);
                    let known = self.shared.cache().get(&key);
                    let wait = known.map_or_else(
                        || {
                            let (reply, answer) = oneshot::channel();
                            jobs.push(Job {
                                aspect,
                                question: Arc::clone(&question),
                                prompt_only,
                                key,
                                deadline,
                                reply,
                            });
                            Wait::Open(answer)
                        },
                        Wait::Cached,
                    );
                    Item::new(Some(question), wait)
                }
            });
        }
        self.shared
            .queue
            .push_all(jobs)
            .map_err(|waiting| self.busy(waiting))?;
        self.show_sizes();
        let mut answers = Vec::with_capacity(items.len());
        for item in items {
            let cached = matches!(item.wait, Wait::Cached(_));
            let answer = match item.wait {
                Wait::Done(answer) => answer,
                Wait::Cached(verdict) => Ok(verdict),
                Wait::Open(answer) => match tokio::time::timeout_at(deadline.into(), answer).await {
                    Ok(Ok(answer)) => answer,
                    // Dropped unanswered, which the judges do with what is overdue.
                    Ok(Err(_)) | Err(_) => Err(format!("no verdict within {:?}", self.settings.deadline)),
                },
            };
            answers.push((item.question, answer, cached));
        }
        self.show_sizes();
        self.record(protocol, aspect, &answers);
        Ok(answers.into_iter().map(|(_, answer, _)| answer).collect())
    }

    fn busy(&self, waiting: usize) -> Error {
        let metrics = &self.shared.metrics;
        metrics.count("saferl_reward_rejected_total", &[], 1.0);
        let seconds_an_item = *self
            .shared
            .seconds_an_item
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let seconds = seconds_an_item * waiting as f64;
        Error::Busy {
            retry_after_s: seconds.ceil().clamp(1.0, 60.0) as u64,
        }
    }

    fn show_sizes(&self) {
        let metrics = &self.shared.metrics;
        metrics.set("saferl_reward_queue_items", &[], self.shared.queue.len() as f64);
        let entries = self.shared.cache().len();
        metrics.set("saferl_reward_cache_entries", &[], entries as f64);
    }

    /// Counts the answers and logs them.
    fn record(
        &self,
        protocol: &'static str,
        aspect: Aspect,
        answers: &[(Option<Arc<Exchange>>, Answer, bool)],
    ) {
        let mut lines = Vec::new();
        for (question, answer, cached) in answers {
            let reward = (aspect == Aspect::Reward).then(|| reward_of(&self.settings, answer));
            let outcome = outcome(aspect, answer, reward.as_ref());
            let labels = [("protocol", protocol), ("outcome", outcome)];
            self.shared
                .metrics
                .count("saferl_reward_items_total", &labels, 1.0);
            if *cached {
                self.shared
                    .metrics
                    .count("saferl_reward_cache_hits_total", &[], 1.0);
            }
            let (Some(question), Some(_)) = (question, &self.audit) else {
                continue;
            };
            lines.push(Line {
                time: now(),
                protocol,
                prompt_sha256: hex(&sha256(&question.messages)),
                reply_sha256: hex(&sha256(&(&question.thinking, &question.content))),
                judges: &self.judges,
                verdict: match answer {
                    Err(cause) => json!({ "unscorable": cause }),
                    Ok(verdict) if aspect == Aspect::Safety => json!({ "content": verdict.content }),
                    Ok(verdict) if aspect == Aspect::Helpfulness => {
                        json!({ "helpfulness": verdict.helpfulness })
                    }
                    Ok(verdict) => json!(verdict),
                },
                reward: reward.map(|reward| json!(reward)),
                cached: *cached,
            });
        }
        if let Some(audit) = &self.audit {
            audit.write(&lines);
        }
    }
}

impl Drop for Service {
    /// Judges what still waits, and ends the threads.
    fn drop(&mut self) {
        self.shared.queue.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// An item on its way: the question, if it is one, and what is known of its answer.
struct Item {
    question: Option<Arc<Exchange>>,
    wait: Wait,
}

impl Item {
    fn new(question: Option<Arc<Exchange>>, wait: Wait) -> Self {
        Self { question, wait }
    }
}

enum Wait {
    /// Answered without a judge.
    Done(Answer),
    /// Judged before.
    Cached(Verdict),
    /// With the judges.
    Open(oneshot::Receiver<Answer>),
}

fn key(aspect: Aspect, question: &Exchange, prompt_only: bool) -> Key {
    sha256(&(
        aspect as u8,
        prompt_only,
        &question.messages,
        &question.thinking,
        &question.content,
    ))
}

/// For the metrics: the branch of a reward, or whether a part was scored.
fn outcome(aspect: Aspect, answer: &Answer, reward: Option<&Scored<Reward>>) -> &'static str {
    match reward {
        Some(reward) => match reward.scored().map(|reward| reward.branch) {
            Some(Branch::Safe) => "safe",
            Some(Branch::Refusal) => "refusal",
            Some(Branch::Unsafe) => "unsafe",
            None => "unscorable",
        },
        None if answer.as_ref().is_ok_and(|verdict| is_whole(aspect, verdict)) => "scored",
        None => "unscorable",
    }
}
