//! Jobs between requests and the judges' threads: bounded, and handed out in batches.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A bounded queue.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    limit: usize,
}

#[derive(Debug)]
struct State<T> {
    jobs: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// Room for `limit` jobs.
    pub(crate) fn new(limit: usize) -> Self {
        let state = State {
            jobs: VecDeque::new(),
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            arrived: Condvar::new(),
            limit,
        }
    }

    /// Jobs that wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Queues all of the jobs, or, where there is no room for all, none: then the number that wait.
    pub(crate) fn push_all(&self, jobs: Vec<T>) -> Result<(), usize> {
        let mut state = self.lock();
        if state.jobs.len() + jobs.len() > self.limit {
            return Err(state.jobs.len());
        }
        state.jobs.extend(jobs);
        drop(state);
        self.arrived.notify_all();
        Ok(())
    }

    /// The next jobs, at most `count`. Once there is one, waits up to `patience` for others to join it. `None` when the
    /// queue is closed and empty.
    pub(crate) fn pop_batch(&self, count: usize, patience: Duration) -> Option<Vec<T>> {
        let mut state = self.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + patience;
        while state.jobs.len() < count && !state.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.arrived.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = count.min(state.jobs.len());
        Some(state.jobs.drain(..count).collect())
    }

    /// Lets the threads end once the queue is empty.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_WAIT: Duration = Duration::ZERO;

    #[test]
    fn a_request_is_queued_whole_or_not_at_all() {
        let queue = Queue::new(4);
        assert_eq!(queue.push_all(vec![1, 2, 3]), Ok(()));
        assert_eq!(queue.push_all(vec![4, 5]), Err(3));
        assert_eq!(queue.push_all(vec![4]), Ok(()));
        assert_eq!(queue.pop_batch(3, NO_WAIT), Some(vec![1, 2, 3]));
        assert_eq!(queue.pop_batch(3, NO_WAIT), Some(vec![4]));
    }

    #[test]
    fn a_closed_queue_is_emptied_first() {
        let queue = Queue::new(4);
        queue.push_all(vec![1]).unwrap();
        queue.close();
        assert_eq!(queue.pop_batch(2, Duration::from_mins(1)), Some(vec![1]));
        assert_eq!(queue.pop_batch(2, NO_WAIT), None);
    }

    #[test]
    fn jobs_of_two_requests_share_a_batch() {
        let queue = Queue::new(4);
        queue.push_all(vec![1]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                queue.push_all(vec![2]).unwrap();
            });
            assert_eq!(queue.pop_batch(2, Duration::from_secs(5)), Some(vec![1, 2]));
        });
    }
}
