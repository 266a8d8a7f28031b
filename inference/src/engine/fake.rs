//! A backend for tests: its logits are a hash of what the cache holds, so that a wrong block, a
//! stale position or a lost token changes every text after it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::backend::{BLOCK_TOKENS, Backend, Batch, MemoryUse, Rows, StepError, StepOutput};

/// Ways to go wrong, by the token that sets them off.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    pub(super) fails: Option<u32>,
    pub(super) panics: Option<u32>,
    pub(super) not_a_number: Option<u32>,
    /// The beginning of the block that can't be copied.
    pub(super) fails_to_copy: Option<u32>,
    /// Being told this many threads panics: no sequence is to blame for that.
    pub(super) panics_with_threads: Option<usize>,
}

/// What happened, for tests to look at.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) tokens: AtomicUsize,
    pub(super) steps: AtomicUsize,
    pub(super) threads: AtomicUsize,
    /// `(first token of the sequence, tokens)` of every span.
    pub(super) spans: Mutex<Vec<(u32, usize)>>,
}

pub(super) struct Fake {
    slots: Vec<u32>,
    vocab: usize,
    /// Last tokens that the logits depend on: few make texts that repeat.
    sees: usize,
    faults: Faults,
    log: Arc<Log>,
}

/// Width of the fake's hidden states.
pub(super) const HIDDEN: usize = 4;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The logits after (the visible end of) a text.
pub(super) fn logits(text: impl Iterator<Item = u32>, vocab: usize) -> Vec<f32> {
    let hash =
        text.fold(7u64, |h, token| mix(h.wrapping_mul(31).wrapping_add(u64::from(token) + 1)));
    (0..vocab as u64).map(|id| (mix(hash ^ (id << 32)) % 4096) as f32 / 512.0).collect()
}

impl Fake {
    pub(super) fn new(
        blocks: usize,
        vocab: usize,
        sees: usize,
        faults: Faults,
        log: Arc<Log>,
    ) -> Self {
        Self { slots: vec![u32::MAX; blocks * BLOCK_TOKENS], vocab, sees, faults, log }
    }
}

fn slot(blocks: &[u32], position: usize) -> usize {
    blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
}

impl Backend for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn step(&mut self, batch: &Batch<'_>, output: &mut StepOutput) -> Result<(), StepError> {
        self.log.steps.fetch_add(1, Ordering::Relaxed);
        self.log.tokens.fetch_add(batch.tokens.len(), Ordering::Relaxed);
        let has = |token: Option<u32>| token.is_some_and(|t| batch.tokens.contains(&t));
        assert!(!has(self.faults.panics), "this token makes the backend panic");
        // All are written before any is read, as in a layer of a real model.
        for span in batch.spans {
            for i in 0..span.len {
                self.slots[slot(span.blocks, span.position + i)] = batch.tokens[span.start + i];
            }
            let first = self.slots[slot(span.blocks, 0)];
            self.log.spans.lock().unwrap().push((first, span.len));
        }
        if has(self.faults.fails) {
            return Err(StepError::Batch("this token makes the backend fail".to_owned()));
        }
        output.values.clear();
        output.width = if batch.hidden { HIDDEN } else { self.vocab };
        for span in batch.spans {
            let wanted = match span.rows {
                Rows::None => span.len..span.len,
                Rows::Last => span.len - 1..span.len,
                Rows::All => 0..span.len,
            };
            for i in wanted {
                let end = span.position + i;
                let seen = (end + 1).saturating_sub(self.sees)..=end;
                let text = seen.map(|p| self.slots[slot(span.blocks, p)]);
                let mut row = logits(text, output.width);
                if Some(batch.tokens[span.start + i]) == self.faults.not_a_number {
                    row[1] = f32::NAN;
                }
                output.values.extend(row);
            }
        }
        Ok(())
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), StepError> {
        for &(from, to) in pairs {
            let from = from as usize * BLOCK_TOKENS;
            if self.faults.fails_to_copy == Some(self.slots[from]) {
                return Err(StepError::Batch("this block fails to be copied".to_owned()));
            }
            self.slots.copy_within(from..from + BLOCK_TOKENS, to as usize * BLOCK_TOKENS);
        }
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse { weights_bytes: 0, kv_bytes: (self.slots.len() * 4) as u64, scratch_bytes: 0 }
    }

    fn set_threads(&mut self, threads: usize) {
        assert_ne!(self.faults.panics_with_threads, Some(threads), "a bug over the whole model");
        self.log.threads.store(threads, Ordering::Relaxed);
    }
}
