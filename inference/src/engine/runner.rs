//! The engine's thread: it owns the models and goes round.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::budget::{self, Hold, Holder, Reserved, Verdict, Wish};
use super::front::{Coming, Front};
use super::load::{self, LoadRefused};
use super::loaded::{Allowance, Loaded, Stay, Work};
use super::options::{KeepAlive, Speculation};
use super::queue::{Closed, lock};
use super::sequence::Sequence;
use super::status::{MemoryStatus, Totals};
use super::{OrderRefused, Shared, step};
use crate::governor::SpeculationAllowed;

/// What the thread is told beside requests.
pub(crate) enum Order {
    Reserve {
        name: String,
        wish: Wish,
        reply: oneshot::Sender<Result<(usize, Reserved), LoadRefused>>,
    },
    Commit {
        loaded: Box<Loaded>,
        front: Arc<Front>,
        reserved: Reserved,
        reply: oneshot::Sender<Result<(), LoadRefused>>,
    },
    Unload {
        name: String,
        reply: oneshot::Sender<Result<(), OrderRefused>>,
    },
    KeepAlive {
        name: String,
        keep_alive: KeepAlive,
        reply: oneshot::Sender<Result<(), OrderRefused>>,
    },
}

/// A request for a model.
pub(crate) struct Job {
    /// The model's ordinal: it may have gone since.
    pub(crate) model: u64,
    pub(crate) sequence: Sequence<Work>,
    /// Keeps the model until it has the sequence.
    pub(crate) _coming: Coming,
}

pub(crate) struct Runner {
    shared: Arc<Shared>,
    models: Vec<(u64, Loaded)>,
    /// Bytes held by loads under way.
    reserved: Arc<AtomicU64>,
    /// Totals of models that are gone.
    gone: Totals,
    published: Option<Instant>,
}

/// How often the status is renewed while there is work.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// Tokens guessed ahead per sequence at most.
const GUESSES_EACH_MAX: usize = 8;

/// Closes the mailbox when the thread ends, however it ends, so that nobody waits for it.
struct LastWords(Arc<Shared>);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.mailbox.close();
        // What nobody will read is dropped, and with it every waiting reply.
        drop(self.0.mailbox.collect(Some(Duration::ZERO)));
    }
}

impl Runner {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            models: Vec::new(),
            reserved: Arc::default(),
            gone: Totals::default(),
            published: None,
        }
    }

    pub(crate) fn run(mut self) {
        let _last_words = LastWords(Arc::clone(&self.shared));
        loop {
            let patience = self.patience();
            let mail = self.shared.mailbox.collect(patience);
            for order in mail.orders {
                self.obey(order);
            }
            for job in mail.jobs {
                self.take(job);
            }
            if mail.closed == Some(Closed) {
                self.end();
                return;
            }
            self.turn();
            self.expire();
            self.publish();
        }
    }

    /// How long to wait for mail: not at all while there is work.
    fn patience(&mut self) -> Option<Duration> {
        if self.models.iter().any(|(_, m)| !m.is_idle()) {
            return Some(Duration::ZERO);
        }
        self.published = None;
        self.publish();
        let now = Instant::now();
        let next = self.models.iter().filter_map(|(_, m)| m.expires_at()).min();
        next.map(|at| at.saturating_duration_since(now).max(Duration::from_millis(1)))
    }

    fn take(&mut self, job: Job) {
        // A model that is gone takes the job's reply with it: its caller hears of it.
        if let Some((_, model)) = self.models.iter_mut().find(|(o, _)| *o == job.model) {
            model.add(job.sequence, Instant::now());
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Reserve { name, wish, reply } => {
                let granted = self.reserve(&name, wish);
                // A loader that is gone drops the reservation with the reply.
                let _ = reply.send(granted);
            }
            Order::Commit { loaded, front, reserved, reply } => {
                let _ = reply.send(self.commit(*loaded, front, reserved));
            }
            Order::Unload { name, reply } => {
                let found = self.models.iter().position(|(_, m)| m.info.name == name);
                let result = match found {
                    Some(at) => {
                        self.unload(at, "asked for");
                        Ok(())
                    }
                    None => Err(OrderRefused::NotLoaded { name }),
                };
                self.published = None;
                self.publish();
                let _ = reply.send(result);
            }
            Order::KeepAlive { name, keep_alive, reply } => {
                let _ = reply.send(self.keep_alive(name, keep_alive));
            }
        }
    }

    fn free_bytes(&self) -> u64 {
        let models: u64 = self.models.iter().map(|(_, m)| m.bytes()).sum();
        let held = models + self.reserved.load(Ordering::Acquire) + self.shared.queue_bytes();
        self.shared.options.budget_bytes.saturating_sub(held)
    }

    fn reserve(&mut self, name: &str, wish: Wish) -> Result<(usize, Reserved), LoadRefused> {
        let needed = wish.least_bytes();
        loop {
            let free_bytes = self.free_bytes();
            match budget::make_room(needed, free_bytes, &self.holders()) {
                Verdict::Unload(names) => {
                    // Where a request came for one of them meanwhile, all is decided anew.
                    if names.iter().all(|gone| self.retire(gone, "its room is wanted")) {
                        break;
                    }
                }
                Verdict::Short { would_have_to_go } => {
                    return Err(self.over_budget(needed, free_bytes, would_have_to_go));
                }
            }
        }
        let Some(blocks) = wish.blocks_in(self.free_bytes()) else {
            return Err(self.over_budget(needed, self.free_bytes(), Vec::new()));
        };
        let bytes = wish.fixed_bytes + wish.block_bytes * blocks as u64;
        tracing::debug!(model = name, bytes, blocks, "room reserved");
        Ok((blocks, Reserved::new(bytes, &self.reserved)))
    }

    fn holders(&self) -> Vec<Holder> {
        let now = Instant::now();
        let holder = |m: &Loaded| Holder {
            name: m.info.name.clone(),
            bytes: m.bytes(),
            hold: match m.stay {
                Stay::Pinned => Hold::Pinned,
                _ if m.is_idle() && !self.shared.fronts.is_awaited(&m.info.name) => Hold::Idle,
                _ => Hold::Busy,
            },
            used: u64::MAX - now.saturating_duration_since(m.last_used()).as_micros() as u64,
        };
        self.models.iter().map(|(_, m)| holder(m)).collect()
    }

    fn over_budget(&self, asked_bytes: u64, free_bytes: u64, go: Vec<Holder>) -> LoadRefused {
        LoadRefused::OverBudget {
            asked_bytes,
            free_bytes,
            budget_bytes: self.shared.options.budget_bytes,
            must_go: go.into_iter().map(Into::into).collect(),
        }
    }

    fn commit(
        &mut self,
        mut loaded: Loaded,
        front: Arc<Front>,
        reserved: Reserved,
    ) -> Result<(), LoadRefused> {
        drop(reserved);
        let free = self.free_bytes().saturating_sub(loaded.bytes());
        load::measure(&mut loaded, free)?;
        tracing::info!(model = %front.name, backend = %loaded.info.backend, bytes = loaded.bytes(), "model loaded");
        self.models.push((front.ordinal, loaded));
        self.shared.fronts.insert(front);
        self.published = None;
        self.publish();
        Ok(())
    }

    /// Unloads an idle model unless a request is on its way to it; says whether it is gone.
    fn retire(&mut self, name: &str, why: &str) -> bool {
        let gone = self.shared.fronts.retire(name);
        if gone && let Some(at) = self.models.iter().position(|(_, m)| m.info.name == name) {
            self.unload(at, why);
        }
        gone
    }

    fn unload(&mut self, at: usize, why: &str) {
        let (_, mut model) = self.models.remove(at);
        self.shared.fronts.remove(&model.info.name);
        model.cancel_all(Instant::now());
        self.gone.add(&model.totals());
        tracing::info!(model = %model.info.name, why, "model unloaded");
    }

    fn keep_alive(&mut self, name: String, keep_alive: KeepAlive) -> Result<(), OrderRefused> {
        let found = self.models.iter_mut().find(|(_, m)| m.info.name == name);
        let Some((_, model)) = found else { return Err(OrderRefused::NotLoaded { name }) };
        if model.stay != Stay::Pinned {
            model.stay = load::stay(keep_alive, self.shared.options.keep_alive);
        }
        self.expire();
        self.published = None;
        self.publish();
        Ok(())
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let over = |m: &Loaded| m.expires_at().is_some_and(|expiry| expiry <= now);
        let over = self.models.iter().filter(|(_, m)| over(m)).map(|(_, m)| m.info.name.clone());
        for name in over.collect::<Vec<_>>() {
            self.retire(&name, "idle for its keep_alive");
        }
    }

    /// One step of every model that has work.
    fn turn(&mut self) {
        let allowance = self.allowance();
        for at in (0..self.models.len()).rev() {
            let model = &mut self.models[at].1;
            if model.is_idle() {
                continue;
            }
            if let Err(panic) = step::contained(|| model.turn(Instant::now(), allowance)) {
                // Where one sequence was to blame, it ended alone before it came to this. Here the
                // model's bookkeeping can't be trusted any more; the others' can.
                let (_, model) = self.models.remove(at);
                tracing::error!(model = %model.info.name, panic, "the engine panicked over this model");
                self.shared.fronts.remove(&model.info.name);
                self.gone.add(&model.totals());
                self.published = None;
            }
        }
    }

    fn allowance(&self) -> Allowance {
        let narrowing = lock(&self.shared.narrowing);
        let strength = narrowing.apply(self.shared.strength());
        let off = self.shared.options.speculation == Speculation::Off
            || narrowing.speculation == SpeculationAllowed::Off;
        Allowance { strength, guesses_max: if off { 0 } else { GUESSES_EACH_MAX } }
    }

    fn end(&mut self) {
        while !self.models.is_empty() {
            self.unload(0, "the engine ends");
        }
        self.published = None;
        self.publish();
    }

    /// Says what there is and what it takes, unless that was said just now.
    pub(super) fn publish(&mut self) {
        let now = Instant::now();
        if self.published.is_some_and(|at| now.saturating_duration_since(at) < PUBLISH_EVERY) {
            return;
        }
        self.published = Some(now);
        let mut models: Vec<_> = self.models.iter().map(|(_, m)| m.status(now)).collect();
        let mut totals = self.gone;
        let mut memory = MemoryStatus {
            budget_bytes: self.shared.options.budget_bytes,
            queue_bytes: self.shared.queue_bytes(),
            free_bytes: self.free_bytes(),
            ..MemoryStatus::default()
        };
        memory.planned_bytes = memory.budget_bytes - memory.free_bytes;
        memory.measured_queue_bytes = self.shared.queue.status().bytes;
        for ((_, loaded), status) in self.models.iter().zip(&mut models) {
            if let Some(front) = self.shared.fronts.get(&status.info.name) {
                status.measured_tokenizer_bytes = front.held_bytes();
            }
            memory.measured_queue_bytes += loaded.sequence_bytes();
            totals.add(&status.totals);
            memory.weights_bytes += loaded.planned.weights_bytes;
            memory.kv_bytes += loaded.planned.kv_bytes;
            memory.scratch_bytes += loaded.planned.scratch_bytes;
            memory.tokenizer_bytes += status.info.tokenizer_bytes;
            memory.prefix_bytes += status.kv.prefix as u64 * status.kv.block_bytes;
            memory.measured_bytes +=
                budget::total(&status.measured) + status.measured_tokenizer_bytes;
        }
        memory.measured_bytes += memory.measured_queue_bytes;
        let mut published = lock(&self.shared.published);
        published.models = models;
        published.memory = memory;
        published.totals = totals;
    }
}
