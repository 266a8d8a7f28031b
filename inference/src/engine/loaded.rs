//! One loaded model: its sequences, and their way through schedule, step and postprocess.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{Answer, End};
use super::budget;
use super::guess::{self, Draft};
use super::queue::Queue;
use super::request::FinishReason;
use super::schedule::{Item, Limits, Plan, Scheduler};
use super::sequence::{Kind, Sequence};
use super::status::{KvStatus, ModelInfo, ModelStatus, Totals};
use super::step::{self, Stepper};
use super::vector::Vector;
use crate::backend::{Backend, MemoryUse};
use crate::governor::Strength;
use crate::kv::BlockPool;
use crate::sampler::Scratch;
use crate::tokenizer::Tokenizer;

/// What a sequence is for.
pub(crate) enum Work {
    Generate(Box<Answer>),
    Embed(Box<Vector>),
}

/// When an idle model goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    /// When its room is wanted.
    Idle,
    /// After this long, or when its room is wanted.
    For(Duration),
    /// Never by itself.
    Pinned,
}

pub(crate) struct Loaded {
    pub(crate) info: ModelInfo,
    pub(crate) stay: Stay,
    /// Bytes planned, or measured where that is more; the tokenizer's are beside it.
    pub(crate) planned: MemoryUse,
    stepper: Stepper,
    tokenizer: Arc<Tokenizer>,
    scheduler: Scheduler<Work>,
    draft: Option<Draft>,
    scratch: Scratch,
    queue: Arc<Queue>,
    totals: Totals,
    block_bytes: u64,
    last_kind: Kind,
    last_step: Option<Instant>,
    last_used: Instant,
}

/// What a model is made from.
pub(crate) struct Parts {
    pub(crate) info: ModelInfo,
    pub(crate) stay: Stay,
    pub(crate) planned: MemoryUse,
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) pool: BlockPool,
    /// Guesses ahead.
    pub(crate) draft: Option<Draft>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) block_bytes: u64,
}

/// What a turn may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    pub(crate) strength: Strength,
    /// Tokens guessed per sequence at most; 0: none.
    pub(crate) guesses_max: usize,
}

impl Loaded {
    pub(crate) fn new(parts: Parts, now: Instant) -> Self {
        Self {
            info: parts.info,
            stay: parts.stay,
            planned: parts.planned,
            stepper: Stepper::new(parts.backend),
            tokenizer: parts.tokenizer,
            scheduler: Scheduler::new(parts.pool),
            draft: parts.draft,
            scratch: Scratch::default(),
            queue: parts.queue,
            totals: Totals::default(),
            block_bytes: parts.block_bytes,
            last_kind: Kind::Embed,
            last_step: None,
            last_used: now,
        }
    }

    pub(crate) fn add(&mut self, sequence: Sequence<Work>, now: Instant) {
        self.totals.requests += 1;
        self.last_used = now;
        self.scheduler.add(sequence);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    pub(crate) fn last_used(&self) -> Instant {
        self.last_used
    }

    /// When it goes by itself, if nothing comes.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        match self.stay {
            Stay::For(patience) if self.is_idle() => self.last_used.checked_add(patience),
            _ => None,
        }
    }

    /// Bytes that it holds of the budget.
    pub(crate) fn bytes(&self) -> u64 {
        budget::total(&self.planned).saturating_add(self.info.tokenizer_bytes)
    }

    /// Bytes held now, by what was allocated: the plan is not asked.
    pub(crate) fn measured(&self) -> MemoryUse {
        let memory = self.stepper.memory();
        let draft = self.draft.as_ref().map(Draft::memory).unwrap_or_default();
        let (pool, scratch) = (self.scheduler.pool.held_bytes(), self.scratch.held_bytes());
        MemoryUse {
            weights_bytes: memory.weights_bytes + draft.weights_bytes,
            kv_bytes: memory.kv_bytes + draft.kv_bytes + pool,
            scratch_bytes: memory.scratch_bytes + draft.scratch_bytes + scratch,
        }
    }

    /// Bytes that the sequences in the batch hold, with what nobody has read of their answers. Those
    /// that wait are in the queue's count.
    pub(crate) fn sequence_bytes(&self) -> u64 {
        let of_work = |work: &Work| match work {
            Work::Generate(answer) => answer.unread_bytes(),
            Work::Embed(vector) => vector.held_bytes(),
        };
        self.scheduler.running().iter().map(|s| s.held_bytes() + of_work(&s.work)).sum()
    }

    /// One round: ends what is over, plans a step, computes it, deals with the result.
    pub(crate) fn turn(&mut self, now: Instant, allowance: Allowance) {
        self.sweep(now);
        if self.is_idle() {
            return;
        }
        let begun = Instant::now();
        self.last_used = now;
        let kind = self.next_kind();
        if kind == Kind::Generate {
            let (running, draft) = (self.scheduler.running_mut(), self.draft.as_mut());
            guess::guess(running, draft, allowance.guesses_max, &mut self.scratch);
        }
        let limits = Limits {
            batch_tokens: allowance.strength.batch_tokens,
            sequences: allowance.strength.sequences,
        };
        let plan = self.scheduler.plan(kind, limits);
        self.start(&plan, now);
        if plan.items.is_empty() {
            self.unstick();
        } else {
            let computing = self.step(kind, &plan, allowance.strength.threads);
            self.last_step = Some(now);
            self.totals.steps += 1;
            self.totals.compute_us += computing.as_micros() as u64;
            let overhead = begun.elapsed().saturating_sub(computing);
            self.totals.overhead_us += overhead.as_micros() as u64;
        }
        let ended = Instant::now();
        self.sweep(ended);
        // The idle time begins with the end of a step, which may take long.
        self.last_used = ended;
    }

    /// Kinds take turns where there is work of both.
    fn next_kind(&mut self) -> Kind {
        let other = match self.last_kind {
            Kind::Generate => Kind::Embed,
            Kind::Embed => Kind::Generate,
        };
        if self.scheduler.has(other) {
            self.last_kind = other;
        }
        self.last_kind
    }

    /// Nothing could be planned. A waiting sequence that doesn't fit an empty cache never will.
    fn unstick(&mut self) {
        if !self.scheduler.running().is_empty() {
            return;
        }
        let mut failed = false;
        let over = self.scheduler.sweep(|_| {
            let first = !failed;
            failed = true;
            first.then(|| End::Failed("find room in the key-value cache".to_owned()))
        });
        self.say_goodbye(over, Instant::now());
    }

    fn start(&mut self, plan: &Plan, now: Instant) {
        for &index in &plan.started {
            let sequence = &mut self.scheduler.running_mut()[index];
            let cached = sequence.computed();
            let waited = match &mut sequence.work {
                Work::Generate(answer) => answer.start(now, cached),
                Work::Embed(vector) => vector.start(now),
            };
            if let Some(waited_us) = waited {
                self.totals.cached_tokens += cached as u64;
                self.totals.queue_us += waited_us;
                self.queue.started(now);
            }
        }
    }

    /// Computes a plan. When a step of several sequences fails, each is tried alone, so that only
    /// the one to blame ends. Returns the time within the backend.
    fn step(&mut self, kind: Kind, plan: &Plan, threads: usize) -> Duration {
        if self.stepper.set_threads(threads)
            && let Some(draft) = &mut self.draft
        {
            draft.set_threads(threads);
        }
        let begun = self.stepper.computing();
        let items = self.copy(plan);
        if items.is_empty() {
            return Duration::ZERO;
        }
        match self.stepper.step(kind, &items, self.scheduler.running()) {
            Ok(()) => self.postprocess(kind, &items),
            Err(reason) if items.len() == 1 => self.fail(&items, &reason),
            Err(reason) => {
                self.totals.steps_failed += 1;
                tracing::warn!(model = %self.info.name, %reason, "step failed; trying its sequences one by one");
                for item in &items {
                    let alone = std::slice::from_ref(item);
                    match self.stepper.step(kind, alone, self.scheduler.running()) {
                        Ok(()) => self.postprocess(kind, alone),
                        Err(reason) => self.fail(alone, &reason),
                    }
                }
            }
        }
        self.stepper.computing() - begun
    }

    /// Copies a plan's blocks, each alone and in order: one may overwrite what the one before it
    /// read. A sequence whose block was not copied ends here, for the cache does not hold its text.
    /// Returns the items that are left to compute.
    fn copy(&mut self, plan: &Plan) -> Vec<Item> {
        let mut items = plan.items.clone();
        for &(from, to) in &plan.copies {
            let Err(reason) = self.stepper.copy(from, to) else { continue };
            let running = self.scheduler.running();
            let (failed, left): (Vec<Item>, Vec<Item>) =
                items.into_iter().partition(|item| running[item.index].blocks().contains(&to));
            items = left;
            self.fail(&failed, &reason);
        }
        items
    }

    fn fail(&mut self, items: &[Item], reason: &str) {
        self.totals.steps_failed += 1;
        for item in items {
            let end = Some(End::Failed(reason.to_owned()));
            match &mut self.scheduler.running_mut()[item.index].work {
                Work::Generate(answer) => answer.end = end,
                Work::Embed(vector) => vector.end = end,
            }
        }
    }

    /// Reads the rows of a step, in the order of its items.
    fn postprocess(&mut self, kind: Kind, items: &[Item]) {
        let mut output = self.stepper.take_output();
        let width = output.width.max(1);
        let mut rows = output.values.chunks_exact_mut(width);
        for item in items {
            let wanted = self.stepper.rows(kind, item, &self.scheduler.running()[item.index]);
            let counted = match kind {
                Kind::Generate => self.choose(item, wanted, &mut rows),
                Kind::Embed => self.pool(item, wanted, width, &mut rows),
            };
            let again = self.scheduler.advance(item.index, counted);
            self.totals.recomputed_tokens += again as u64;
        }
        self.stepper.give_back(output);
    }

    /// Chooses tokens from a sequence's rows: one, and one more for every guess that was right.
    /// Returns how many of the item's tokens count.
    fn choose<'r>(
        &mut self,
        item: &Item,
        wanted: usize,
        rows: &mut impl Iterator<Item = &'r mut [f32]>,
    ) -> usize {
        let sequence = &mut self.scheduler.running_mut()[item.index];
        let read = item.len - item.guesses;
        let Work::Generate(answer) = &mut sequence.work else { return read };
        if answer.completion_tokens() == 0 {
            self.totals.prompt_tokens += read as u64;
        }
        let mut accepted = 0;
        for at in 0..wanted {
            let Some(row) = rows.next() else { break };
            if at > accepted || answer.end.is_some() {
                continue; // A row after a wrong guess, or after the end: skipped, but consumed.
            }
            let next = step::contained(|| {
                answer.next(row, &sequence.tokens, &self.tokenizer, &mut self.scratch)
            });
            let Some(token) = next.unwrap_or_else(|panic| {
                answer.end =
                    Some(End::Failed(format!("choose a token: the engine panicked: {panic}")));
                None
            }) else {
                continue;
            };
            sequence.tokens.push(token);
            self.totals.completion_tokens += 1;
            if at < item.guesses && sequence.guesses.get(at) == Some(&token) {
                accepted += 1;
            }
        }
        if item.guesses > 0 {
            answer.pace.learn(item.guesses, accepted);
            self.totals.drafted_tokens += item.guesses as u64;
            self.totals.accepted_tokens += accepted as u64;
        }
        sequence.guesses.clear();
        read + accepted
    }

    fn pool<'r>(
        &mut self,
        item: &Item,
        wanted: usize,
        width: usize,
        rows: &mut impl Iterator<Item = &'r mut [f32]>,
    ) -> usize {
        let sequence = &mut self.scheduler.running_mut()[item.index];
        let last = sequence.computed() + item.len == sequence.tokens.len();
        let Work::Embed(vector) = &mut sequence.work else { return item.len };
        for row in rows.take(wanted) {
            vector.take(row, width);
        }
        if last {
            vector.complete();
        }
        self.totals.prompt_tokens += item.len as u64;
        item.len
    }

    /// Takes out what is over.
    fn sweep(&mut self, now: Instant) {
        let over = self.scheduler.sweep(|s| match &mut s.work {
            Work::Generate(answer) => answer.over(now),
            Work::Embed(vector) => vector.over(now),
        });
        self.say_goodbye(over, now);
    }

    /// Ends every sequence.
    pub(crate) fn cancel_all(&mut self, now: Instant) {
        let over = self.scheduler.sweep(|_| Some(End::Finished(FinishReason::Cancelled)));
        self.say_goodbye(over, now);
    }

    fn say_goodbye(&mut self, over: Vec<(Sequence<Work>, End)>, now: Instant) {
        for (sequence, end) in over {
            let counter = match &end {
                End::Finished(FinishReason::Stop) => &mut self.totals.finished_stop,
                End::Finished(FinishReason::Length) => &mut self.totals.finished_length,
                End::Finished(FinishReason::Deadline) => &mut self.totals.deadline,
                End::Finished(FinishReason::Cancelled) | End::Gone => &mut self.totals.cancelled,
                End::Failed(reason) => {
                    tracing::warn!(model = %self.info.name, %reason, "sequence failed");
                    &mut self.totals.failed
                }
            };
            *counter += 1;
            match sequence.work {
                Work::Generate(answer) => answer.finish(end, now),
                Work::Embed(vector) => vector.finish(end),
            }
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals { preemptions: self.scheduler.preemptions(), ..self.totals }
    }

    pub(crate) fn kv(&self) -> KvStatus {
        let pool = &self.scheduler.pool;
        KvStatus {
            blocks: pool.len(),
            used: pool.len() - pool.available(),
            prefix: pool.idle(),
            free: pool.available() - pool.idle(),
            block_bytes: self.block_bytes,
        }
    }

    pub(crate) fn status(&self, now: Instant) -> ModelStatus {
        let since = |then: Instant| now.saturating_duration_since(then).as_millis() as u64;
        ModelStatus {
            info: self.info.clone(),
            measured: self.measured(),
            measured_tokenizer_bytes: self.tokenizer.held_bytes(),
            running: self.scheduler.running().len(),
            waiting: self.scheduler.waiting().len(),
            kv: self.kv(),
            idle_ms: self.last_step.map(since),
            expires_in_ms: self
                .expires_at()
                .map(|at| at.saturating_duration_since(now).as_millis() as u64),
            totals: self.totals(),
        }
    }
}
