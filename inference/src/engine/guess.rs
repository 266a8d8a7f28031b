//! Guessing ahead for the sequences of one model: by what the text said before, or by a small
//! model of the same vocabulary.
//!
//! The draft model draws with each request's own sampler, whose random numbers belong to positions:
//! where the two models agree on a distribution, they draw the same token. A wrong guess costs its
//! row in the next step and nothing else; see [`crate::speculate`].

use ahash::AHashMap;

use super::loaded::Work;
use super::sequence::Sequence;
use crate::backend::{Backend, Batch, MemoryUse, Rows, Span, StepOutput};
use crate::held;
use crate::kv::{BlockPool, blocks_for};
use crate::sampler::Scratch;
use crate::speculate;

/// Tokens guessed ahead in one step at most, over all sequences: they cost rows of logits.
pub(crate) const GUESSES_MAX: usize = 16;
/// With more sequences than this in a step, it has enough to do without guesses.
pub(crate) const GUESSING_SEQUENCES_MAX: usize = 4;

/// Guesses tokens for the sequences that decode, where a step has room to check them.
pub(super) fn guess(
    running: &mut [Sequence<Work>],
    mut draft: Option<&mut Draft>,
    guesses_max: usize,
    scratch: &mut Scratch,
) {
    let decoding = running.iter().filter(|s| s.is_decoding()).count();
    let room = if decoding <= GUESSING_SEQUENCES_MAX { GUESSES_MAX } else { 0 };
    let each = guesses_max.min(room / decoding.max(1));
    if let Some(draft) = &mut draft {
        draft.forget_all_but(running);
    }
    for sequence in running {
        sequence.guesses.clear();
        if each == 0 || !sequence.is_decoding() {
            continue;
        }
        let Work::Generate(answer) = &mut sequence.work else { continue };
        let wanted = answer.pace.wanted(each).min(answer.tokens_left().saturating_sub(1));
        speculate::prompt_lookup(&sequence.tokens, wanted, &mut sequence.guesses);
        if let (Some(draft), true) = (&mut draft, sequence.guesses.is_empty()) {
            draft.guess(sequence, wanted, scratch);
        }
    }
}

/// A small model that guesses.
pub(crate) struct Draft {
    backend: Box<dyn Backend>,
    pool: BlockPool,
    context_tokens: usize,
    batch_tokens: usize,
    texts: AHashMap<u64, Text>,
    output: StepOutput,
}

/// What the draft's cache holds of a sequence.
#[derive(Default)]
struct Text {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
}

/// The draft has no guess now.
struct NoGuess;

impl Draft {
    pub(crate) fn new(
        backend: Box<dyn Backend>,
        pool: BlockPool,
        context_tokens: usize,
        batch_tokens: usize,
    ) -> Self {
        let (texts, output) = (AHashMap::new(), StepOutput::default());
        Self { backend, pool, context_tokens, batch_tokens, texts, output }
    }

    pub(crate) fn memory(&self) -> MemoryUse {
        let mut memory = self.backend.memory();
        let of_text = |text: &Text| held::of_vec(&text.tokens) + held::of_vec(&text.blocks);
        memory.kv_bytes += self.pool.held_bytes();
        memory.scratch_bytes += held::of_vec(&self.output.values);
        memory.scratch_bytes += self.texts.values().map(of_text).sum::<u64>();
        memory
    }

    pub(crate) fn set_threads(&mut self, threads: usize) {
        self.backend.set_threads(threads);
    }

    fn forget_all_but(&mut self, running: &[Sequence<Work>]) {
        let pool = &mut self.pool;
        self.texts.retain(|id, text| {
            let stays = running.iter().any(|s| s.id == *id);
            if !stays {
                pool.release(&text.blocks);
            }
            stays
        });
    }

    /// Guesses up to `wanted` tokens. A draft that fails guesses nothing, and starts anew.
    fn guess(&mut self, sequence: &mut Sequence<Work>, wanted: usize, scratch: &mut Scratch) {
        let Work::Generate(answer) = &sequence.work else { return };
        if wanted == 0 || sequence.tokens.len() + wanted > self.context_tokens {
            return;
        }
        let mut sampler = answer.sampler.clone();
        let mut text = self.texts.remove(&sequence.id).unwrap_or_default();
        let mut all = sequence.tokens.clone();
        let mut failed = false;
        for _ in 0..wanted {
            let Ok(ready) = self.feed(&mut text, &all) else {
                failed = true;
                break;
            };
            let Some(width) = ready else { break };
            let row = &mut self.output.values[..width];
            let Ok(token) = sampler.choose(row, &all, None, scratch) else {
                failed = true;
                break;
            };
            sampler.note(token);
            sequence.guesses.push(token);
            all.push(token);
        }
        if failed {
            self.pool.release(&text.blocks);
        } else {
            self.texts.insert(sequence.id, text);
        }
    }

    /// Computes what the draft lacks of `all`, at most a step's worth. `Some(width)`: the row after
    /// the last token is there.
    fn feed(&mut self, text: &mut Text, all: &[u32]) -> Result<Option<usize>, NoGuess> {
        let same = text.tokens.iter().zip(all).take_while(|(a, b)| a == b).count();
        // The last token's row is wanted, so it is always computed.
        let position = same.min(all.len() - 1);
        let end = all.len().min(position + self.batch_tokens);
        while text.blocks.len() < blocks_for(end) {
            text.blocks.push(self.pool.take().ok_or(NoGuess)?);
        }
        let tokens = &all[position..end];
        let rows = if end == all.len() { Rows::Last } else { Rows::None };
        let span = Span { start: 0, len: tokens.len(), position, blocks: &text.blocks, rows };
        let batch = Batch { tokens, spans: &[span], hidden: false };
        let (backend, output) = (&mut self.backend, &mut self.output);
        super::step::guarded(|| backend.step(&batch, output)).map_err(|_| NoGuess)?;
        text.tokens.truncate(position);
        text.tokens.extend_from_slice(tokens);
        if rows == Rows::None {
            return Ok(None);
        }
        let width = self.output.width;
        if width == 0 || self.output.values.len() != width {
            return Err(NoGuess);
        }
        Ok(Some(width))
    }
}
