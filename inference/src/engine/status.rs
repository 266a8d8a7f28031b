//! What the engine says about itself: for `fulmar ps`, `/api/ps` and the metrics.

use serde::Serialize;

use super::options::{BackendChoice, Speculation};
use crate::backend::{KvType, MemoryUse};
use crate::governor::Narrowing;

/// The engine at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct EngineStatus {
    /// Loaded models, in order of loading.
    pub models: Vec<ModelStatus>,
    /// The byte budget.
    pub memory: MemoryStatus,
    /// Requests that wait.
    pub queue: QueueStatus,
    /// What the governor takes away now, and why.
    pub governor: Narrowing,
    /// Threads that compute now.
    pub threads: usize,
    /// The choice made in the options.
    pub backend: BackendChoice,
    /// Totals since the start.
    pub totals: Totals,
}

/// One loaded model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelStatus {
    /// What was planned at loading and what the model is.
    #[serde(flatten)]
    pub info: ModelInfo,
    /// Held now, by the lengths of what was allocated; a draft model included.
    pub measured: MemoryUse,
    /// Bytes that tokenizer and grammar tables hold now.
    pub measured_tokenizer_bytes: u64,
    /// Sequences in the batch.
    pub running: usize,
    /// Requests that wait for this model.
    pub waiting: usize,
    /// The key-value cache's blocks.
    pub kv: KvStatus,
    /// Milliseconds since the last step; `None` before the first.
    pub idle_ms: Option<u64>,
    /// Milliseconds until `keep_alive` unloads it; `None`: not by time.
    pub expires_in_ms: Option<u64>,
    /// Totals since loading.
    pub totals: Totals,
}

/// A loaded model, as planned.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// `llama`, `qwen3`, …
    pub architecture: String,
    /// `native`, `candle-cpu`, …
    pub backend: String,
    /// Why this backend, where it was chosen automatically.
    pub backend_reason: String,
    /// Tokens of one sequence at most.
    pub context_tokens: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Tokens that the cache holds over all sequences.
    pub kv_tokens: usize,
    /// Precision of the cache.
    pub kv_type: KvType,
    /// Bytes planned before loading, a draft model and the tokenizer's tables included.
    pub planned: MemoryUse,
    /// Bytes planned for tokenizer and grammar tables.
    pub tokenizer_bytes: u64,
    /// Which tokens are guessed ahead.
    pub speculation: Speculation,
    /// The model that guesses ahead, where there is one.
    pub draft: Option<String>,
    /// Milliseconds that loading took.
    pub load_ms: u64,
}

/// The cache blocks of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct KvStatus {
    /// All.
    pub blocks: usize,
    /// Held by running sequences.
    pub used: usize,
    /// Held only for prompts that start alike.
    pub prefix: usize,
    /// Free.
    pub free: usize,
    /// Bytes of one block.
    pub block_bytes: u64,
}

/// The byte budget, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStatus {
    /// The limit.
    pub budget_bytes: u64,
    /// Planned, all models and queues.
    pub planned_bytes: u64,
    /// Held now, all models, tokenizers, sequences and queues, by the lengths of what was allocated.
    /// Memory that was allocated and never touched counts, pages of mapped files don't.
    pub measured_bytes: u64,
    /// Not planned for anything.
    pub free_bytes: u64,
    /// Weights, planned.
    pub weights_bytes: u64,
    /// Key-value caches, planned.
    pub kv_bytes: u64,
    /// Of these, held by prefixes now.
    pub prefix_bytes: u64,
    /// Scratch buffers, planned.
    pub scratch_bytes: u64,
    /// Tokenizers and grammar tables, planned.
    pub tokenizer_bytes: u64,
    /// Reserved for waiting prompts and answers not yet read.
    pub queue_bytes: u64,
    /// Of these, held now.
    pub measured_queue_bytes: u64,
    /// The process's resident memory, where the system tells: everything, this program's code too.
    pub resident_bytes: Option<u64>,
    /// Of these, pages of mapped files.
    pub resident_file_bytes: Option<u64>,
    /// The most that was resident since the process began.
    pub resident_peak_bytes: Option<u64>,
}

/// Requests that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct QueueStatus {
    /// How many.
    pub len: usize,
    /// Limit.
    pub len_max: usize,
    /// Bytes of their prompts.
    pub bytes: u64,
    /// Limit.
    pub bytes_max: u64,
    /// What a refused request is told now.
    pub retry_after_ms: u64,
}

/// Counts since the start; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Requests accepted.
    pub requests: u64,
    /// Refused because a queue was full.
    pub refused: u64,
    /// Finished by an end token, a stop string or a fulfilled constraint.
    pub finished_stop: u64,
    /// Finished by length.
    pub finished_length: u64,
    /// Ended because the caller went or the model was unloaded.
    pub cancelled: u64,
    /// Ended by their deadline.
    pub deadline: u64,
    /// Failed.
    pub failed: u64,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Tokens computed again after a preemption.
    pub recomputed_tokens: u64,
    /// Sequences preempted.
    pub preemptions: u64,
    /// Tokens guessed ahead.
    pub drafted_tokens: u64,
    /// Of these, accepted.
    pub accepted_tokens: u64,
    /// Steps.
    pub steps: u64,
    /// Steps that failed.
    pub steps_failed: u64,
    /// Microseconds within the backend.
    pub compute_us: u64,
    /// Microseconds in steps outside the backend: scheduling, sampling, text.
    pub overhead_us: u64,
    /// Sum of waiting times of started requests, in microseconds.
    pub queue_us: u64,
}

impl Totals {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        let pairs: [(&mut u64, u64); 19] = [
            (&mut self.requests, other.requests),
            (&mut self.refused, other.refused),
            (&mut self.finished_stop, other.finished_stop),
            (&mut self.finished_length, other.finished_length),
            (&mut self.cancelled, other.cancelled),
            (&mut self.deadline, other.deadline),
            (&mut self.failed, other.failed),
            (&mut self.prompt_tokens, other.prompt_tokens),
            (&mut self.cached_tokens, other.cached_tokens),
            (&mut self.completion_tokens, other.completion_tokens),
            (&mut self.recomputed_tokens, other.recomputed_tokens),
            (&mut self.preemptions, other.preemptions),
            (&mut self.drafted_tokens, other.drafted_tokens),
            (&mut self.accepted_tokens, other.accepted_tokens),
            (&mut self.steps, other.steps),
            (&mut self.steps_failed, other.steps_failed),
            (&mut self.compute_us, other.compute_us),
            (&mut self.overhead_us, other.overhead_us),
            (&mut self.queue_us, other.queue_us),
        ];
        for (mine, theirs) in pairs {
            *mine = mine.saturating_add(theirs);
        }
    }
}
