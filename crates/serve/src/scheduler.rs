//! The thread that owns an engine: requests join its batch, get their tokens as they come, and leave it.
//!
//! Requests run in the order in which they came, as far as the engine has room (see `model::engine`). A request ends
//! when its completions are done, when its [`Running`] is dropped (the client went away), or at its deadline. More
//! requests than [`Limits::requests`] at once are turned away at the door, so that none waits for ever.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use model::chat::Prompt;
use model::engine::{Draw, Engine, Event, Extras, News, Ticket};
use model::generate::{FinishReason, Sampling};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// Seconds after which a client that was turned away may try again.
pub(crate) const RETRY_AFTER_S: u64 = 2;

/// How much a scheduler takes on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most requests that run or wait at once.
    pub requests: usize,
    /// Longest time that a request may take, in seconds.
    pub deadline_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 128,
            deadline_s: 600,
        }
    }
}

/// Completions to make of a prompt.
#[derive(Debug, Clone)]
pub struct Job {
    /// The prompt.
    pub prompt: Prompt,
    /// How many completions.
    pub count: usize,
    /// How tokens are drawn. Its stop texts are to be empty: whoever reads the text knows where they act.
    pub sampling: Sampling,
    /// What else the request wants.
    pub extras: Extras,
}

/// What came of a request.
#[derive(Debug)]
pub enum Update {
    /// A token of a completion.
    Token {
        /// Which completion.
        index: usize,
        /// The token.
        draw: Draw,
    },
    /// A completion is done.
    Finished {
        /// Which completion.
        index: usize,
        /// Why it ended.
        reason: FinishReason,
    },
    /// The request failed; nothing follows.
    Failed(Error),
}

enum Command {
    Start {
        job: Box<Job>,
        updates: UnboundedSender<Update>,
        accepted: oneshot::Sender<Result<Ticket>>,
    },
    Stop(Ticket, usize),
}

/// Hands requests to the engine's thread, which ends when the last of these is gone.
#[derive(Clone)]
pub struct Scheduler {
    commands: Sender<Command>,
    room: Arc<Semaphore>,
}

/// Leave for one request to run or wait; dropping it and its clones gives the place to another.
#[derive(Debug, Clone)]
pub struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// A request under way; dropping it ends the request.
pub struct Running {
    ticket: Ticket,
    updates: UnboundedReceiver<Update>,
    commands: Sender<Command>,
    _place: Place,
}

impl Running {
    /// The next news; none once all completions are done or the request failed.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// As [`Running::next`], for those who wait for more than this.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Update>> {
        self.updates.poll_recv(context)
    }

    /// Ends one completion, which is then not reported as finished.
    pub fn stop(&self, index: usize) {
        // Where the thread is gone, so is the completion.
        let _ = self.commands.send(Command::Stop(self.ticket, index));
    }
}

impl Scheduler {
    /// Starts the thread that owns `engine`. `name` labels its metrics.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(engine: Engine, name: &str, limits: Limits, metrics: Arc<Metrics>) -> Result<Self> {
        let (commands, inbox) = channel();
        let work = Work {
            engine,
            open: HashMap::new(),
            deadline_s: limits.deadline_s,
            name: name.to_owned(),
            metrics,
        };
        std::thread::Builder::new()
            .name(format!("engine {name}"))
            .spawn(move || work.run(&inbox))
            .map_err(Error::Server)?;
        Ok(Self {
            commands,
            room: Arc::new(Semaphore::new(limits.requests)),
        })
    }

    /// Takes a place for a request; to be called before any work is done for it.
    ///
    /// # Errors
    /// A server that is busy.
    pub fn enter(&self) -> Result<Place> {
        let busy = |_| Error::Busy {
            retry_after_s: RETRY_AFTER_S,
        };
        let room = Arc::clone(&self.room);
        let permit = room.try_acquire_owned().map_err(busy)?;
        Ok(Place {
            _permit: Arc::new(permit),
        })
    }

    /// Hands a request over; it waits for its turn in the engine.
    ///
    /// # Errors
    /// What the engine refuses: a prompt that is too long, sampling that means nothing.
    pub async fn submit(&self, place: Place, job: Job) -> Result<Running> {
        let gone = || Error::Unavailable("the model's engine has stopped".into());
        let (updates, inbox) = unbounded_channel();
        let (accepted, answer) = oneshot::channel();
        let start = Command::Start {
            job: Box::new(job),
            updates,
            accepted,
        };
        self.commands.send(start).map_err(|_| gone())?;
        let ticket = answer.await.map_err(|_| gone())??;
        Ok(Running {
            ticket,
            updates: inbox,
            commands: self.commands.clone(),
            _place: place,
        })
    }
}

/// A request that the engine works on.
struct Open {
    updates: UnboundedSender<Update>,
    deadline: Instant,
    /// Completions that are not done.
    left: BTreeSet<usize>,
    submitted: Instant,
    started: bool,
}

struct Work {
    engine: Engine,
    open: HashMap<Ticket, Open>,
    deadline_s: u64,
    name: String,
    metrics: Arc<Metrics>,
}

impl Work {
    fn run(mut self, inbox: &Receiver<Command>) {
        loop {
            if self.engine.is_idle() {
                match inbox.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            while let Ok(command) = inbox.try_recv() {
                self.obey(command);
            }
            self.drop_ended();
            match self.engine.step() {
                Ok(events) => events.into_iter().for_each(|event| self.tell(event)),
                Err(error) => self.fail(&error),
            }
            self.measure();
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start {
                job,
                updates,
                accepted,
            } => {
                let read = job.prompt.ids.len();
                let ticket = self
                    .engine
                    .submit_with(&job.prompt, job.count, &job.sampling, job.extras);
                if let Ok(ticket) = ticket {
                    self.count("saferl_prompt_tokens_total", read as f64);
                    let now = Instant::now();
                    self.open.insert(
                        ticket,
                        Open {
                            updates,
                            deadline: now + Duration::from_secs(self.deadline_s),
                            left: (0..job.count).collect(),
                            submitted: now,
                            started: false,
                        },
                    );
                }
                // A client that has left already is found by `drop_ended`.
                let _ = accepted.send(ticket.map_err(Error::from));
            }
            Command::Stop(ticket, index) => {
                let Some(open) = self.open.get_mut(&ticket) else {
                    return;
                };
                self.engine.cancel_one(ticket, index);
                open.left.remove(&index);
                if open.left.is_empty() {
                    self.open.remove(&ticket);
                }
            }
        }
    }

    /// Takes requests out whose client went away or whose time is over.
    fn drop_ended(&mut self) {
        let now = Instant::now();
        let ended: Vec<Ticket> = self
            .open
            .iter()
            .filter(|(_, open)| open.updates.is_closed() || open.deadline <= now)
            .map(|(&ticket, _)| ticket)
            .collect();
        for ticket in ended {
            self.engine.cancel(ticket);
            let Some(open) = self.open.remove(&ticket) else {
                continue;
            };
            let cancelled = open
                .updates
                .send(Update::Failed(Error::Deadline(self.deadline_s)))
                .is_err();
            self.count(
                if cancelled {
                    "saferl_cancelled_total"
                } else {
                    "saferl_expired_total"
                },
                1.0,
            );
        }
    }

    fn tell(&mut self, event: Event) {
        let Some(open) = self.open.get_mut(&event.ticket) else {
            return;
        };
        let index = event.index;
        let update = match event.news {
            News::Token(draw) => {
                if !open.started {
                    open.started = true;
                    let seconds = open.submitted.elapsed().as_secs_f64();
                    let labels = [("model", self.name.as_str())];
                    self.metrics
                        .count("saferl_first_token_seconds_sum", &labels, seconds);
                    self.metrics
                        .count("saferl_first_token_seconds_count", &labels, 1.0);
                }
                Update::Token { index, draw }
            }
            News::Text(_) => return,
            News::Finished(completion) => {
                open.left.remove(&index);
                Update::Finished {
                    index,
                    reason: completion.finish_reason,
                }
            }
        };
        // A client that is gone is found by `drop_ended`.
        let _ = open.updates.send(update);
        if open.left.is_empty() {
            self.open.remove(&event.ticket);
        }
    }

    /// After an error the engine has dropped every request.
    fn fail(&mut self, error: &model::Error) {
        tracing::error!("{}: {error}", self.name);
        for (_, open) in self.open.drain() {
            let _ = open
                .updates
                .send(Update::Failed(Error::Internal(error.to_string())));
        }
    }

    fn measure(&self) {
        let labels = [("model", self.name.as_str())];
        let metrics = self.engine.metrics();
        self.metrics
            .set("saferl_requests_open", &labels, self.open.len() as f64);
        self.metrics
            .set("saferl_tokens_drawn", &labels, metrics.tokens as f64);
        self.metrics
            .set("saferl_tokens_read", &labels, metrics.read_tokens as f64);
        self.metrics
            .set("saferl_engine_seconds", &labels, metrics.seconds);
        self.metrics
            .set("saferl_engine_pauses", &labels, metrics.pauses as f64);
    }

    fn count(&self, name: &'static str, by: f64) {
        self.metrics.count(name, &[("model", &self.name)], by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{tiny_engine, tiny_tokenizer};

    fn job(text: &str, count: usize, max_new_tokens: usize) -> Job {
        let prompt = Prompt {
            ids: tiny_tokenizer().encode_plain(text).unwrap(),
            messages: vec![],
            mode: model::chat::Mode::NoThink,
        };
        Job {
            prompt,
            count,
            sampling: Sampling {
                max_new_tokens,
                logit_bias: [(256, -100.0), (258, -100.0)].into(),
                ..Sampling::default()
            },
            extras: Extras::default(),
        }
    }

    fn scheduler(limits: Limits) -> (Scheduler, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::default());
        let scheduler = Scheduler::start(tiny_engine(), "tiny", limits, Arc::clone(&metrics)).unwrap();
        (scheduler, metrics)
    }

    async fn submit(scheduler: &Scheduler, job: Job) -> Result<Running> {
        scheduler.submit(scheduler.enter()?, job).await
    }

    async fn drain(mut running: Running) -> (usize, usize, Option<Error>) {
        let (mut tokens, mut finished) = (0, 0);
        while let Some(update) = running.next().await {
            match update {
                Update::Token { .. } => tokens += 1,
                Update::Finished { .. } => finished += 1,
                Update::Failed(error) => return (tokens, finished, Some(error)),
            }
        }
        (tokens, finished, None)
    }

    #[tokio::test]
    async fn requests_share_the_engine_and_end() {
        let (scheduler, _) = scheduler(Limits::default());
        let first = submit(&scheduler, job("a", 3, 20)).await.unwrap();
        let second = submit(&scheduler, job("bcd", 1, 5)).await.unwrap();
        let (first, second) = tokio::join!(drain(first), drain(second));
        assert_eq!((first.0, first.1), (60, 3));
        assert_eq!((second.0, second.1), (5, 1));
        assert!(first.2.is_none() && second.2.is_none());
    }

    #[tokio::test]
    async fn what_is_too_much_is_turned_away_and_comes_in_later() {
        let (scheduler, _) = scheduler(Limits {
            requests: 1,
            ..Limits::default()
        });
        let running = submit(&scheduler, job("a", 1, 5)).await.unwrap();
        let refused = scheduler.enter().err().unwrap();
        assert!(matches!(refused, Error::Busy { .. }), "{refused}");
        drain(running).await;
        assert!(submit(&scheduler, job("a", 1, 5)).await.is_ok());
    }

    #[tokio::test]
    async fn what_the_engine_refuses_is_the_requests_fault() {
        let (scheduler, _) = scheduler(Limits::default());
        let refused = submit(&scheduler, job(&"x".repeat(5000), 1, 5))
            .await
            .err()
            .unwrap();
        assert!(
            matches!(&refused, Error::Request(what) if what.contains("context")),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn a_client_that_leaves_and_a_deadline_end_a_request() {
        let (scheduler, metrics) = scheduler(Limits {
            deadline_s: 0,
            ..Limits::default()
        });
        let expired = drain(submit(&scheduler, job("a", 1, 1000)).await.unwrap()).await;
        assert!(matches!(expired.2, Some(Error::Deadline(0))), "{:?}", expired.2);
        drop(scheduler);

        let scheduler = self::scheduler(Limits::default());
        let mut running = submit(&scheduler.0, job("a", 2, 1500)).await.unwrap();
        running.next().await.unwrap();
        drop(running);
        // Were the first still under way, this one would wait behind its 3000 tokens.
        let next = drain(submit(&scheduler.0, job("b", 1, 3)).await.unwrap()).await;
        assert_eq!(next.0, 3);
        assert!(
            scheduler
                .1
                .render()
                .contains("saferl_cancelled_total{model=\"tiny\"} 1")
        );
        assert!(
            metrics
                .render()
                .contains("saferl_expired_total{model=\"tiny\"} 1")
        );
    }

    #[tokio::test]
    async fn one_completion_can_be_stopped() {
        let (scheduler, _) = scheduler(Limits::default());
        let mut running = submit(&scheduler, job("a", 2, 300)).await.unwrap();
        running.next().await.unwrap();
        running.stop(0);
        let mut finished = Vec::new();
        while let Some(update) = running.next().await {
            if let Update::Finished { index, .. } = update {
                finished.push(index);
            }
        }
        assert_eq!(finished, [1]);
    }
}
