//! The bounded queue in front of the engine's thread.
//!
//! A [`Place`] is taken before anything is computed for a request, travels with it and is given
//! back by its drop: when the request starts to run, fails, or its caller goes. So the limits hold
//! over requests being prepared, in the mailbox and in a model's waiting list together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::request::Refused;
use super::status::QueueStatus;

/// Limits and counts of what waits.
#[derive(Debug)]
pub(crate) struct Queue {
    len: AtomicUsize,
    len_max: usize,
    bytes: AtomicU64,
    bytes_max: u64,
    refused: AtomicU64,
    /// When places came free: the start of the last, and the smoothed time between two.
    pace: Mutex<Pace>,
}

#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    interval_ms: f64,
}

/// Bounds of what a refused request is told to wait.
const RETRY_MS_MIN: u64 = 100;
const RETRY_MS_MAX: u64 = 60_000;

/// One request's place in the queue.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<Queue>,
    held: Vec<Held>,
}

/// Bytes of the queue's limit, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    queue: Arc<Queue>,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.queue.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Queue {
    pub(crate) fn new(len_max: usize, bytes_max: u64) -> Arc<Self> {
        Arc::new(Self {
            len: AtomicUsize::new(0),
            len_max,
            bytes: AtomicU64::new(0),
            bytes_max,
            refused: AtomicU64::new(0),
            pace: Mutex::new(Pace::default()),
        })
    }

    /// Takes a place, or says how many hold one.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Place, Refused> {
        let taken = self.len.fetch_update(Ordering::AcqRel, Ordering::Acquire, |len| {
            (len < self.len_max).then_some(len + 1)
        });
        match taken {
            Ok(_) => Ok(Place { queue: Arc::clone(self), held: Vec::new() }),
            Err(len) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let retry_after_ms = self.retry_after_ms();
                Err(Refused::QueueFull { len, max: self.len_max, retry_after_ms })
            }
        }
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self) -> QueueStatus {
        QueueStatus {
            len: self.len.load(Ordering::Acquire),
            len_max: self.len_max,
            bytes: self.bytes.load(Ordering::Acquire),
            bytes_max: self.bytes_max,
            retry_after_ms: self.retry_after_ms(),
        }
    }

    /// Notes that a request left the queue to run.
    pub(crate) fn started(&self, now: Instant) {
        let mut pace = lock(&self.pace);
        if let Some(last) = pace.last {
            let ms = now.saturating_duration_since(last).as_secs_f64() * 1e3;
            pace.interval_ms =
                if pace.interval_ms == 0.0 { ms } else { pace.interval_ms * 0.8 + ms * 0.2 };
        }
        pace.last = Some(now);
    }

    fn retry_after_ms(&self) -> u64 {
        (lock(&self.pace).interval_ms.ceil() as u64).clamp(RETRY_MS_MIN, RETRY_MS_MAX)
    }
}

impl Place {
    /// Counts bytes of the request for as long as it has its place.
    pub(crate) fn hold(&mut self, bytes: u64) -> Result<(), Refused> {
        let held = self.keep(bytes)?;
        self.held.push(held);
        Ok(())
    }

    /// Counts bytes of the request that outlive its place.
    pub(crate) fn keep(&self, bytes: u64) -> Result<Held, Refused> {
        let max = self.queue.bytes_max;
        let held = self.queue.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            held.checked_add(bytes).filter(|&sum| sum <= max)
        });
        match held {
            Ok(_) => Ok(Held { queue: Arc::clone(&self.queue), bytes }),
            Err(held) => {
                self.queue.refused.fetch_add(1, Ordering::Relaxed);
                Err(Refused::QueueBytes {
                    bytes: held.saturating_add(bytes),
                    bytes_max: max,
                    retry_after_ms: self.queue.retry_after_ms(),
                })
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.len.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Messages to the engine's thread. Jobs are bounded by their places, orders by `orders_max`.
pub(crate) struct Mailbox<Order, Job> {
    state: Mutex<Letters<Order, Job>>,
    wake: Condvar,
    orders_max: usize,
}

struct Letters<Order, Job> {
    orders: VecDeque<Order>,
    jobs: VecDeque<Job>,
    closed: Option<Closed>,
}

/// The mailbox takes nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

/// What was in the mailbox.
pub(crate) struct Mail<Order, Job> {
    pub(crate) orders: VecDeque<Order>,
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) closed: Option<Closed>,
}

/// Why an order was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    Closed,
    Full { max: usize },
}

impl<Order, Job> Mailbox<Order, Job> {
    pub(crate) fn new(orders_max: usize) -> Self {
        let letters = Letters { orders: VecDeque::new(), jobs: VecDeque::new(), closed: None };
        Self { state: Mutex::new(letters), wake: Condvar::new(), orders_max }
    }

    /// Puts a job in; its place in the queue bounds how many there are.
    pub(crate) fn push_job(&self, job: Job) -> Result<(), Closed> {
        let mut letters = lock(&self.state);
        if letters.closed.is_some() {
            return Err(Closed);
        }
        letters.jobs.push_back(job);
        self.wake.notify_one();
        Ok(())
    }

    pub(crate) fn push_order(&self, order: Order) -> Result<(), NotTaken> {
        let mut letters = lock(&self.state);
        if letters.closed.is_some() {
            return Err(NotTaken::Closed);
        }
        if letters.orders.len() >= self.orders_max {
            return Err(NotTaken::Full { max: self.orders_max });
        }
        letters.orders.push_back(order);
        self.wake.notify_one();
        Ok(())
    }

    pub(crate) fn close(&self) {
        lock(&self.state).closed = Some(Closed);
        self.wake.notify_one();
    }

    /// Takes everything, waiting up to `patience` (`None`: for ever) while there is nothing.
    pub(crate) fn collect(&self, patience: Option<Duration>) -> Mail<Order, Job> {
        let mut letters = lock(&self.state);
        let empty = |l: &Letters<Order, Job>| {
            l.orders.is_empty() && l.jobs.is_empty() && l.closed.is_none()
        };
        match patience {
            Some(Duration::ZERO) => {}
            Some(patience) => {
                letters = self
                    .wake
                    .wait_timeout_while(letters, patience, |l| empty(l))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            None => {
                letters = self
                    .wake
                    .wait_while(letters, |l| empty(l))
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        Mail {
            orders: std::mem::take(&mut letters.orders),
            jobs: std::mem::take(&mut letters.jobs),
            closed: letters.closed,
        }
    }
}

/// Locks; what a panicking holder left behind is plain counts and queues, whole at every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_at_once_and_says_its_limit() {
        let queue = Queue::new(2, 100);
        let first = queue.take().unwrap();
        let _second = queue.take().unwrap();
        let refused = queue.take().unwrap_err();
        assert_eq!(refused, Refused::QueueFull { len: 2, max: 2, retry_after_ms: RETRY_MS_MIN });
        drop(first);
        assert!(queue.take().is_ok(), "a place given back can be taken");
        assert_eq!(queue.refused(), 1);
    }

    #[test]
    fn bytes_of_waiting_prompts_are_bounded_too() {
        let queue = Queue::new(9, 100);
        let mut first = queue.take().unwrap();
        first.hold(60).unwrap();
        let mut second = queue.take().unwrap();
        assert!(matches!(
            second.hold(50),
            Err(Refused::QueueBytes { bytes: 110, bytes_max: 100, .. })
        ));
        drop(first);
        second.hold(50).unwrap();
        assert_eq!(queue.status().bytes, 50);
        drop(second);
        assert_eq!((queue.status().len, queue.status().bytes), (0, 0));
    }

    #[test]
    fn bytes_that_are_kept_outlive_the_place() {
        let queue = Queue::new(1, 100);
        let mut place = queue.take().unwrap();
        let kept = place.keep(30).unwrap();
        place.hold(60).unwrap();
        assert!(matches!(place.keep(11), Err(Refused::QueueBytes { bytes: 101, .. })));
        drop(place);
        assert_eq!((queue.status().len, queue.status().bytes), (0, 30));
        drop(kept);
        assert_eq!(queue.status().bytes, 0);
    }

    #[test]
    fn retry_after_follows_the_pace_at_which_places_come_free() {
        let queue = Queue::new(1, 1);
        let start = Instant::now();
        for i in 0..5 {
            queue.started(start + Duration::from_secs(3 * i));
        }
        assert_eq!(queue.status().retry_after_ms, 3000);
    }

    #[test]
    fn a_closed_mailbox_takes_nothing_and_orders_are_bounded() {
        let mailbox: Mailbox<u8, u8> = Mailbox::new(1);
        mailbox.push_order(1).unwrap();
        assert_eq!(mailbox.push_order(2), Err(NotTaken::Full { max: 1 }));
        mailbox.push_job(3).unwrap();
        mailbox.close();
        assert_eq!(mailbox.push_job(4), Err(Closed));
        let mail = mailbox.collect(None);
        assert_eq!((mail.orders.len(), mail.jobs.len(), mail.closed), (1, 1, Some(Closed)));
    }
}
