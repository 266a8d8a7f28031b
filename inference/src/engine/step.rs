//! One step of a backend: packing sequences into a batch, and surviving what goes wrong.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use super::loaded::Work;
use super::schedule::Item;
use super::sequence::{Kind, Sequence};
use crate::backend::{Backend, Batch, MemoryUse, Rows, Span, StepOutput};
use crate::held;

pub(crate) struct Stepper {
    backend: Box<dyn Backend>,
    tokens: Vec<u32>,
    output: StepOutput,
    threads: Option<usize>,
    computing: Duration,
}

impl Stepper {
    pub(crate) fn new(backend: Box<dyn Backend>) -> Self {
        Self {
            backend,
            tokens: Vec::new(),
            output: StepOutput::default(),
            threads: None,
            computing: Duration::ZERO,
        }
    }

    /// What the backend holds, and the rows of the last step.
    pub(crate) fn memory(&self) -> MemoryUse {
        let mut memory = self.backend.memory();
        memory.scratch_bytes += held::of_vec(&self.output.values) + held::of_vec(&self.tokens);
        memory
    }

    /// Time spent in the backend so far.
    pub(crate) fn computing(&self) -> Duration {
        self.computing
    }

    /// Returns whether that is a change.
    pub(crate) fn set_threads(&mut self, threads: usize) -> bool {
        let changes = self.threads.replace(threads) != Some(threads);
        if changes {
            self.backend.set_threads(threads);
        }
        changes
    }

    pub(crate) fn copy(&mut self, from: u32, to: u32) -> Result<(), String> {
        let backend = &mut self.backend;
        guarded(|| backend.copy_blocks(&[(from, to)]))
    }

    /// How many rows an item gives.
    pub(crate) fn rows(&self, kind: Kind, item: &Item, sequence: &Sequence<Work>) -> usize {
        match rows(kind, item, sequence) {
            Rows::None => 0,
            Rows::Last => 1,
            Rows::All => item.len,
        }
    }

    /// Computes these items; the rows are in [`take_output`](Self::take_output) afterwards.
    pub(crate) fn step(
        &mut self,
        kind: Kind,
        items: &[Item],
        running: &[Sequence<Work>],
    ) -> Result<(), String> {
        self.tokens.clear();
        let mut spans = Vec::with_capacity(items.len());
        for item in items {
            let sequence = &running[item.index];
            let (position, read) = (sequence.computed(), item.len - item.guesses);
            spans.push(Span {
                start: self.tokens.len(),
                len: item.len,
                position,
                blocks: sequence.blocks(),
                rows: rows(kind, item, sequence),
            });
            self.tokens.extend_from_slice(&sequence.tokens[position..position + read]);
            self.tokens.extend_from_slice(&sequence.guesses[..item.guesses]);
        }
        let batch = Batch { tokens: &self.tokens, spans: &spans, hidden: kind == Kind::Embed };
        let wanted: usize =
            items.iter().map(|item| self.rows(kind, item, &running[item.index])).sum();
        let begun = Instant::now();
        let (backend, output) = (&mut self.backend, &mut self.output);
        let result = guarded(|| backend.step(&batch, output));
        self.computing += begun.elapsed();
        result?;
        let (found, width) = (self.output.values.len(), self.output.width);
        if wanted > 0 && (width == 0 || found != wanted * width) {
            return Err(format!(
                "read the step's output: found {found} values of width {width}, expected {wanted} rows"
            ));
        }
        Ok(())
    }

    /// The last step's rows, to be changed in place and given back.
    pub(crate) fn take_output(&mut self) -> StepOutput {
        std::mem::take(&mut self.output)
    }

    pub(crate) fn give_back(&mut self, output: StepOutput) {
        self.output = output;
    }
}

fn rows(kind: Kind, item: &Item, sequence: &Sequence<Work>) -> Rows {
    let last = sequence.computed() + item.len - item.guesses == sequence.tokens.len();
    match (&sequence.work, kind) {
        (Work::Embed(vector), Kind::Embed) => vector.rows(last),
        _ if !last => Rows::None,
        _ if item.guesses > 0 => Rows::All,
        _ => Rows::Last,
    }
}

/// A backend's error or, as a last resort, its panic, in words.
pub(super) fn guarded<E: std::fmt::Display>(
    work: impl FnOnce() -> Result<(), E>,
) -> Result<(), String> {
    match contained(work) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => Err(format!("compute a step: the backend panicked: {panic}")),
    }
}

/// What some work gives or, as a last resort, what its panic says.
pub(super) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
    })
}
