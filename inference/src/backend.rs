//! The seam between the engine, which decides *what* runs in a step, and a backend, which runs it.
//!
//! A backend owns the weights and the key-value cache of one loaded model. The engine owns the
//! sequences: it hands out cache blocks, packs the tokens of many sequences into one [`Batch`] and
//! reads the logits back. One token's place in the cache is
//! `blocks[position / BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS`.

pub mod candle;
mod check;
mod copies;
pub mod native;
mod pages;
#[cfg(test)]
pub(crate) mod plain;
mod plan;

pub use check::{check_batch, check_blocks, output_rows};
pub use copies::WeightCopies;
pub(crate) use pages::file_bytes;
pub use plan::plan;

/// Positions per cache block, the same for every backend.
pub const BLOCK_TOKENS: usize = 32;

/// Precision of the key-value cache.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// 32-bit floats: for references and tests.
    F32,
    /// 16-bit floats: the default.
    #[default]
    F16,
    /// 8-bit integers with one scale per 32 values.
    Q8,
}

/// What a backend is asked to prepare for.
#[derive(Debug, Clone)]
pub struct BackendOptions {
    /// Threads that compute, at least 1.
    pub threads: usize,
    /// Context size in tokens of one sequence at most (llama.cpp's `n_ctx`). It also chooses
    /// between Phi's short and long rotary factors, as llama.cpp does.
    pub context_tokens_max: usize,
    /// Cache blocks, each [`BLOCK_TOKENS`] positions of every layer.
    pub kv_blocks: usize,
    /// Precision of the cache.
    pub kv_type: KvType,
    /// Tokens in one step at most, over all sequences.
    pub batch_tokens_max: usize,
    /// Processors that the threads are bound to, thread by thread, from the first again where there
    /// are more threads; empty: the system places them.
    pub cpus: Vec<usize>,
    /// Where a backend may keep a regrouped copy of the weights between starts. Only for a model
    /// whose digest somebody verified ([`Gguf::sha256`](crate::gguf::Gguf::sha256)).
    pub weight_copies: Option<WeightCopies>,
}

/// Which rows of a span give logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// None: a chunk of a prompt that goes on.
    None,
    /// The last token's.
    Last,
    /// Every token's: reference logits and the check of speculated tokens.
    All,
}

/// The part of a batch that belongs to one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// Index of the span's first token in [`Batch::tokens`]. Spans follow each other without gaps.
    pub start: usize,
    /// Tokens in the span, at least 1.
    pub len: usize,
    /// Position of the first token, that is, how many tokens of the sequence the cache holds.
    pub position: usize,
    /// The sequence's cache blocks, enough for `position + len` tokens. Blocks before `position`
    /// may be shared with other sequences and are only read.
    pub blocks: &'a [u32],
    /// Which rows give logits.
    pub rows: Rows,
}

/// One step: tokens of one or many sequences.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids, each below the vocabulary's size.
    pub tokens: &'a [u32],
    /// Who they belong to, in order.
    pub spans: &'a [Span<'a>],
    /// Whether the rows hold the final hidden state (after the output norm, before the head)
    /// instead of logits: for embeddings.
    pub hidden: bool,
}

/// The rows that a step produced.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    /// Row-major `[rows, width]`, span by span in the batch's order.
    pub values: Vec<f32>,
    /// Vocabulary size, or hidden size when [`Batch::hidden`] was set.
    pub width: usize,
}

/// Memory that a loaded model holds, in bytes: planned, or measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryUse {
    /// Weights in memory of the process; what is left in the model's file is the page cache's.
    pub weights_bytes: u64,
    /// Key-value cache.
    pub kv_bytes: u64,
    /// Buffers of a step.
    pub scratch_bytes: u64,
}

/// Why a step failed. The engine ends the sequences concerned; the process goes on.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The batch breaks a rule of [`Batch`] or [`Span`]: a bug in the caller.
    #[error("batch refused: {0}")]
    Batch(String),
    /// The backend's library failed.
    #[error("compute a step on the {backend} backend: {reason}")]
    Compute {
        /// The backend's name.
        backend: &'static str,
        /// What it said.
        reason: String,
    },
}

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An option asks for nothing or for more than can be.
    #[error("load with {option} {found}: expected {expected}")]
    Option {
        /// Name of the field of [`BackendOptions`].
        option: &'static str,
        /// Its value.
        found: usize,
        /// What it would have to be.
        expected: &'static str,
    },
    /// A tensor cannot be converted.
    #[error("load tensor {name}: {reason}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The backend or its device failed.
    #[error("start the {backend} backend: {reason}")]
    Backend {
        /// The backend's name.
        backend: &'static str,
        /// What it said.
        reason: String,
    },
}

impl BackendOptions {
    /// Refuses options that no backend can serve.
    ///
    /// # Errors
    /// [`LoadError::Option`].
    pub fn check(&self) -> Result<(), LoadError> {
        let at_least_1 = [
            ("threads", self.threads),
            ("context_tokens_max", self.context_tokens_max),
            ("kv_blocks", self.kv_blocks),
            ("batch_tokens_max", self.batch_tokens_max),
        ];
        if let Some((option, found)) = at_least_1.into_iter().find(|(_, found)| *found == 0) {
            return Err(LoadError::Option { option, found, expected: "at least 1" });
        }
        // Slots are counted in 32 bits by every backend.
        if self.kv_blocks > u32::MAX as usize / BLOCK_TOKENS {
            let (option, found) = ("kv_blocks", self.kv_blocks);
            return Err(LoadError::Option { option, found, expected: "fewer than 2^27" });
        }
        Ok(())
    }
}

/// Runs steps of one loaded model. Implementors: `native` and `candle`.
pub trait Backend: Send {
    /// `native`, `candle-cpu`, `candle-cuda` or `candle-metal`.
    fn name(&self) -> &'static str;

    /// Computes one step: writes keys and values of every token into the cache, then fills
    /// `output`.
    ///
    /// # Errors
    /// [`StepError`]; the cache positions of the batch's tokens are then undefined.
    fn step(&mut self, batch: &Batch<'_>, output: &mut StepOutput) -> Result<(), StepError>;

    /// Copies whole cache blocks `(from, to)`, in order: copy on write of shared prefixes.
    ///
    /// # Errors
    /// [`StepError::Batch`] when a block is out of range.
    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), StepError>;

    /// Memory held now: the lengths of the allocations themselves, and no formula of the plan's. What
    /// a step allocates and gives back is not in it.
    fn memory(&self) -> MemoryUse;

    /// Changes how many threads compute, from the next step on.
    fn set_threads(&mut self, threads: usize);
}
