//! The judges' threads: batches off the queue, verdicts back to the requests and into the cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use judge::{Conversation, Exchange, Judge, Panel, Scored, Verdict};
use tokio::sync::oneshot;

use super::answer::Answer;
use super::cache::{Cache, Key};
use super::queue::Queue;
use crate::Metrics;

/// What the judges' threads see.
pub(super) struct Shared {
    pub(super) queue: Queue<Job>,
    pub(super) cache: Mutex<Cache<Verdict>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) batch: usize,
    pub(super) batch_wait: Duration,
    /// What an item of the last batch cost the judges.
    pub(super) seconds_an_item: Mutex<f64>,
}

/// What is asked about a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aspect {
    /// Everything the reward needs.
    Reward,
    /// The guard alone.
    Safety,
    /// The helpfulness alone.
    Helpfulness,
}

/// A question on its way to the judges.
pub(super) struct Job {
    pub(super) aspect: Aspect,
    pub(super) question: Arc<Exchange>,
    /// The prompt alone is asked about.
    pub(super) prompt_only: bool,
    pub(super) key: Key,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Answer>,
}

impl Shared {
    pub(super) fn cache(&self) -> MutexGuard<'_, Cache<Verdict>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_batch(&self, items: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        self.metrics.count("saferl_reward_batches_total", &[], 1.0);
        self.metrics
            .count("saferl_reward_batch_items_total", &[], items as f64);
        self.metrics
            .count("saferl_reward_judge_seconds_sum", &[], seconds);
        *self
            .seconds_an_item
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = seconds / items as f64;
    }
}

/// Whether every part that was asked about is there.
pub(super) fn is_whole(aspect: Aspect, verdict: &Verdict) -> bool {
    let thinking = verdict
        .thinking
        .as_ref()
        .is_none_or(|thinking| thinking.scored().is_some());
    let content = verdict.content.scored().is_some();
    let helpfulness = verdict.helpfulness.scored().is_some();
    match aspect {
        Aspect::Reward => thinking && content && helpfulness,
        Aspect::Safety => content,
        Aspect::Helpfulness => helpfulness,
    }
}

/// A judges' thread.
pub(super) fn work(shared: &Shared, mut panel: Panel) {
    while let Some(batch) = shared.queue.pop_batch(shared.batch, shared.batch_wait) {
        let now = Instant::now();
        let mut by_aspect: [Vec<Job>; 3] = Default::default();
        for job in batch {
            // Nobody waits any more for what is overdue or given up.
            if job.deadline > now && !job.reply.is_closed() {
                by_aspect[job.aspect as usize].push(job);
            }
        }
        for jobs in by_aspect {
            if let Some(aspect) = jobs.first().map(|job| job.aspect) {
                answer(shared, &mut panel, aspect, jobs);
            }
        }
    }
}

/// Judges jobs of one aspect and sends each its answer.
fn answer(shared: &Shared, panel: &mut Panel, aspect: Aspect, jobs: Vec<Job>) {
    let started = Instant::now();
    // A judge that panics costs its batch, not the service.
    let verdicts = catch_unwind(AssertUnwindSafe(|| judge(panel, aspect, &jobs)));
    shared.count_batch(jobs.len(), started.elapsed());
    let mut verdicts = verdicts.unwrap_or_default().into_iter();
    for job in jobs {
        let verdict = verdicts
            .next()
            .ok_or_else(|| "the judge failed: the log says how".to_owned());
        if let Ok(verdict) = &verdict
            && is_whole(aspect, verdict)
        {
            shared.cache().insert(job.key, verdict.clone());
        }
        // The request may be gone.
        let _ = job.reply.send(verdict);
    }
}

/// One verdict for each job, or none at all where a judge returned another number of scores.
fn judge(panel: &mut Panel, aspect: Aspect, jobs: &[Job]) -> Vec<Verdict> {
    let conversation = |job: &Job| Conversation {
        messages: job.question.messages.clone(),
        reply: (!job.prompt_only).then(|| job.question.content.clone()),
    };
    let not_asked = || "not asked for".to_owned();
    let verdicts: Vec<Verdict> = match aspect {
        Aspect::Reward => {
            let exchanges: Vec<Exchange> = jobs.iter().map(|job| (*job.question).clone()).collect();
            panel.judge(&exchanges)
        }
        Aspect::Safety => {
            let conversations: Vec<_> = jobs.iter().map(conversation).collect();
            let moderations = panel.guard.moderate(&conversations).into_iter();
            moderations
                .map(|content| Verdict {
                    thinking: None,
                    content,
                    helpfulness: Scored::Unscorable(not_asked()),
                })
                .collect()
        }
        Aspect::Helpfulness => {
            let conversations: Vec<_> = jobs.iter().map(conversation).collect();
            let scores = panel.helpfulness.score(&conversations).into_iter();
            scores
                .map(|helpfulness| Verdict {
                    thinking: None,
                    content: Scored::Unscorable(not_asked()),
                    helpfulness,
                })
                .collect()
        }
    };
    if verdicts.len() == jobs.len() {
        return verdicts;
    }
    tracing::error!(
        "a judge returned {} verdicts for {} conversations",
        verdicts.len(),
        jobs.len()
    );
    Vec::new()
}
