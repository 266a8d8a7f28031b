//! Which sequences take part in a step, with how many tokens, in which cache blocks.
//!
//! Higher priorities go first; within one priority the principal served least; within a principal
//! the first to arrive. A priority that goes unserved rises by one every [`AGING_STEPS`] steps, and
//! the sequence that is let in by that keeps the risen right, so that a stream of higher ones delays
//! a lower one and never starves it. Sequences that decode come before those that read their prompt, which
//! share what is left of the step in chunks. When blocks run out, the least entitled sequence gives
//! its blocks back and waits to be computed again. Invariants:
//! - In every step the most entitled of those that decode, or else of those that read, makes
//!   progress, so every sequence ends.
//! - No block is written in a step that another sequence reads.
//!
//! Pure: no clock, no backend, no channel.

use std::cmp::Reverse;

use super::sequence::{Kind, Sequence};
use super::shares::Shares;
use crate::kv::BlockPool;

/// Steps without service after which a priority counts one higher: the lowest priority waits for
/// the highest ones at most `255 * AGING_STEPS` steps.
pub(crate) const AGING_STEPS: u64 = 4;

/// Limits of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Tokens.
    pub(crate) batch_tokens: usize,
    /// Sequences running at once.
    pub(crate) sequences: usize,
}

/// All sequences of one model.
#[derive(Debug)]
pub(crate) struct Scheduler<W> {
    waiting: Vec<Sequence<W>>,
    running: Vec<Sequence<W>>,
    pub(crate) pool: BlockPool,
    shares: Shares,
    aging: Aging,
    step: u64,
    preemptions: u64,
}

/// One sequence's part in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    /// Index among the running sequences.
    pub(crate) index: usize,
    /// Tokens from the first that is not computed, guesses included.
    pub(crate) len: usize,
    /// How many of them are guesses.
    pub(crate) guesses: usize,
}

/// One step.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) items: Vec<Item>,
    /// Blocks to copy first.
    pub(crate) copies: Vec<(u32, u32)>,
    /// Indices of the running sequences that left the waiting ones.
    pub(crate) started: Vec<usize>,
}

/// Smaller goes first.
type Rank = (Reverse<u64>, u64, u64);

/// When each priority was last served.
#[derive(Debug)]
struct Aging([u64; 256]);

impl Aging {
    /// What a priority counts as after this many steps.
    fn risen(&self, priority: u8, step: u64) -> u64 {
        u64::from(priority) + step.saturating_sub(self.0[usize::from(priority)]) / AGING_STEPS
    }

    fn served(&mut self, priority: u8, step: u64) {
        self.0[usize::from(priority)] = step;
    }
}

impl<W> Scheduler<W> {
    pub(crate) fn new(pool: BlockPool) -> Self {
        Self {
            waiting: Vec::new(),
            running: Vec::new(),
            pool,
            shares: Shares::default(),
            aging: Aging([0; 256]),
            step: 0,
            preemptions: 0,
        }
    }

    pub(crate) fn add(&mut self, sequence: Sequence<W>) {
        self.shares.arrive(&sequence.principal);
        let mut all = self.waiting.iter().chain(&self.running);
        if !all.any(|s| s.priority == sequence.priority) {
            // Nobody of this priority was waiting to be served.
            self.aging.served(sequence.priority, self.step);
        }
        self.waiting.push(sequence);
    }

    pub(crate) fn running(&self) -> &[Sequence<W>] {
        &self.running
    }

    pub(crate) fn running_mut(&mut self) -> &mut [Sequence<W>] {
        &mut self.running
    }

    pub(crate) fn waiting(&self) -> &[Sequence<W>] {
        &self.waiting
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Whether there is work of a kind.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.waiting.iter().chain(&self.running).any(|s| s.kind == kind)
    }

    pub(crate) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    fn rank(&self, s: &Sequence<W>) -> Rank {
        (Reverse(self.right(s)), self.shares.served(&s.principal), s.id)
    }

    /// What a sequence's priority counts as now.
    fn right(&self, s: &Sequence<W>) -> u64 {
        self.aging.risen(s.priority, self.step).max(s.right)
    }

    /// Takes out the sequences that `ends` says are over, and frees what they hold.
    pub(crate) fn sweep<E>(
        &mut self,
        mut ends: impl FnMut(&mut Sequence<W>) -> Option<E>,
    ) -> Vec<(Sequence<W>, E)> {
        let mut over = Vec::new();
        for i in (0..self.waiting.len()).rev() {
            if let Some(end) = ends(&mut self.waiting[i]) {
                over.push((self.waiting.remove(i), end));
            }
        }
        for i in (0..self.running.len()).rev() {
            if let Some(end) = ends(&mut self.running[i]) {
                let mut sequence = self.running.remove(i);
                sequence.release(&mut self.pool);
                self.shares.stop(&sequence.principal);
                over.push((sequence, end));
            }
        }
        for (sequence, _) in &over {
            self.shares.leave(&sequence.principal);
        }
        over
    }

    /// Plans the next step of one kind.
    pub(crate) fn plan(&mut self, kind: Kind, limits: Limits) -> Plan {
        self.step += 1;
        let mut plan = Plan::default();
        self.make_room(kind, limits);
        let mut draft = Draft { left: limits.batch_tokens, items: Vec::new() };
        let reads = self.running.iter().any(|s| s.kind == kind && !s.is_decoding());
        let for_prompts = if reads { limits.batch_tokens / 4 } else { 0 };
        draft.left -= for_prompts;
        self.serve_running(kind, &mut draft, Phase::Decode);
        draft.left += for_prompts;
        self.serve_running(kind, &mut draft, Phase::Prompt);
        self.admit(kind, limits, &mut draft, &mut plan);
        self.settle(draft, &mut plan);
        plan
    }

    /// Running sequences of a phase in the order of their rights, least recently stepped first
    /// within a principal.
    fn serve_running(&mut self, kind: Kind, draft: &mut Draft, phase: Phase) {
        let mut order: Vec<usize> = (0..self.running.len())
            .filter(|&i| {
                let s = &self.running[i];
                s.kind == kind && s.is_decoding() == (phase == Phase::Decode)
            })
            .collect();
        order.sort_by_key(|&i| {
            let s = &self.running[i];
            let (priority, served, id) = self.rank(s);
            (priority, served, s.stepped, id)
        });
        for i in order {
            if draft.left == 0 {
                return;
            }
            self.serve(i, draft);
        }
    }

    /// Plans one running sequence, taking blocks from less entitled ones where none is left.
    fn serve(&mut self, i: usize, draft: &mut Draft) {
        if draft.is_out(self.running[i].id) {
            return;
        }
        let pending = self.running[i].pending();
        let mut guesses = if pending == 1 { self.running[i].guesses.len() } else { 0 };
        let len = pending.min(draft.left);
        guesses = guesses.min(draft.left - len);
        loop {
            let s = &mut self.running[i];
            let end = s.computed() + len + guesses;
            if s.reserve(end, &mut self.pool).is_ok() {
                break;
            }
            if guesses > 0 {
                guesses = 0;
                continue;
            }
            let Some(victim) = self.victim(Some(i), draft) else {
                self.preempt(i, draft);
                return;
            };
            self.preempt(victim, draft);
            if victim == i {
                return;
            }
        }
        let s = &mut self.running[i];
        debug_assert!(s.writes_alone(&self.pool));
        s.stepped = self.step;
        s.guesses.truncate(guesses);
        if guesses == 0 {
            s.guesses.clear();
        }
        draft.left -= len + guesses;
        draft.items.push((s.id, Item { index: i, len: len + guesses, guesses }));
    }

    /// The least entitled running sequence that is not planned yet; perhaps `asking` itself.
    fn victim(&self, asking: Option<usize>, draft: &Draft) -> Option<usize> {
        (0..self.running.len())
            .filter(|&i| {
                let s = &self.running[i];
                !draft.is_out(s.id)
                    && !s.blocks().is_empty()
                    && (Some(i) == asking || !draft.is_planned(s.id))
            })
            .max_by_key(|&i| self.rank(&self.running[i]))
    }

    /// Takes a running sequence's blocks; it goes back to waiting when the plan is settled.
    fn preempt(&mut self, i: usize, draft: &mut Draft) {
        let s = &mut self.running[i];
        s.release(&mut self.pool);
        draft.items.push((s.id, Item { index: i, len: 0, guesses: 0 }));
        self.preemptions += 1;
    }

    /// Before anything is planned: one running sequence goes, when the next waiting one has the
    /// better right and there is no room for both.
    fn make_room(&mut self, kind: Kind, limits: Limits) {
        let Some(next) = self.next_waiting(kind) else { return };
        if self.fits(next, limits) {
            return;
        }
        let candidate = &self.waiting[next];
        let rank = self.rank(candidate);
        let quota = limits.sequences.div_ceil(self.shares.len().max(1));
        let mine = self.shares.running(&candidate.principal);
        let victim = (0..self.running.len())
            .filter(|&i| {
                let s = &self.running[i];
                let theirs = self.rank(s);
                // Who has risen waits for a place, and keeps the one it rose to: only a priority
                // as it was asked for takes one away.
                let asked = u64::from(candidate.priority);
                let outranked = s.priority < candidate.priority && s.right <= asked;
                let over_quota = s.priority == candidate.priority
                    && rank.1 < theirs.1
                    && mine < quota
                    && self.shares.running(&s.principal) > quota;
                outranked || over_quota
            })
            .max_by_key(|&i| self.rank(&self.running[i]));
        if let Some(i) = victim {
            let mut sequence = self.running.remove(i);
            sequence.release(&mut self.pool);
            self.shares.stop(&sequence.principal);
            self.preemptions += 1;
            self.waiting.push(sequence);
        }
    }

    fn next_waiting(&self, kind: Kind) -> Option<usize> {
        (0..self.waiting.len())
            .filter(|&i| self.waiting[i].kind == kind)
            .min_by_key(|&i| self.rank(&self.waiting[i]))
    }

    /// Whether a waiting sequence can start: a place, and blocks up to its end with one to spare
    /// for each that runs.
    fn fits(&self, waiting: usize, limits: Limits) -> bool {
        if self.running.len() >= limits.sequences {
            return false;
        }
        let (blocks, idle) = self.waiting[waiting].wants(&self.pool);
        blocks + self.running.len() + idle <= self.pool.available()
            || (self.running.is_empty() && blocks + idle <= self.pool.available())
    }

    fn admit(&mut self, kind: Kind, limits: Limits, draft: &mut Draft, plan: &mut Plan) {
        while draft.left > 0 {
            let Some(next) = self.next_waiting(kind) else { return };
            if draft.preempted() || !self.fits(next, limits) {
                return;
            }
            let right = self.right(&self.waiting[next]);
            let mut sequence = self.waiting.remove(next);
            sequence.right = right;
            self.shares.start(&sequence.principal);
            sequence.resume(&mut self.pool, &mut plan.copies);
            self.running.push(sequence);
            let index = self.running.len() - 1;
            plan.started.push(index);
            self.serve(index, draft);
        }
    }

    /// Sends the preempted back to waiting and gives the planned their final indices.
    fn settle(&mut self, draft: Draft, plan: &mut Plan) {
        let started: Vec<u64> = plan.started.iter().map(|&i| self.running[i].id).collect();
        for &(id, item) in draft.items.iter().filter(|(_, item)| item.len == 0) {
            debug_assert_eq!(item.guesses, 0);
            if let Some(i) = self.running.iter().position(|s| s.id == id) {
                let sequence = self.running.remove(i);
                self.shares.stop(&sequence.principal);
                self.waiting.push(sequence);
            }
        }
        for (id, _) in draft.items.iter().filter(|(_, item)| item.len > 0) {
            if let Some(planned) = self.running.iter().find(|s| s.id == *id) {
                self.aging.served(planned.priority, self.step);
            }
        }
        let index_of = |id: u64| self.running.iter().position(|s| s.id == id);
        plan.started = started.into_iter().filter_map(index_of).collect();
        let planned = draft.items.iter().filter(|(_, item)| item.len > 0);
        plan.items = planned
            .filter_map(|&(id, item)| index_of(id).map(|index| Item { index, ..item }))
            .collect();
    }

    /// A sequence's part of the step is computed: `tokens` of it count. Returns how many of them
    /// had been computed before.
    pub(crate) fn advance(&mut self, index: usize, tokens: usize) -> usize {
        let s = &mut self.running[index];
        self.shares.serve(&s.principal, tokens);
        s.advance(tokens, &mut self.pool)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Decode,
    Prompt,
}

/// A plan in the making: by id, because preemption moves indices. A length of 0 marks the
/// preempted.
struct Draft {
    left: usize,
    items: Vec<(u64, Item)>,
}

impl Draft {
    fn is_out(&self, id: u64) -> bool {
        self.items.iter().any(|(i, item)| *i == id && item.len == 0)
    }

    fn is_planned(&self, id: u64) -> bool {
        self.items.iter().any(|(i, item)| *i == id && item.len > 0)
    }

    fn preempted(&self) -> bool {
        self.items.iter().any(|(_, item)| item.len == 0)
    }
}
