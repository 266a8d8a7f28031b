//! What an engine and a loaded model are given.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{BLOCK_TOKENS, KvType, WeightCopies};

/// Which backend runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// A GPU through candle where one is built in and present; else native where the processor
    /// and the model qualify; else candle on the processor.
    #[default]
    Auto,
    /// The native processor kernels, or a refusal.
    Native,
    /// Candle, or a refusal.
    Candle,
}

/// What the engine is given at its start.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Bytes for everything: weights, key-value caches, scratch, tokenizers, queues.
    pub budget_bytes: u64,
    /// Threads that compute, at least 1.
    pub threads: usize,
    /// Which backend runs models.
    pub backend: BackendChoice,
    /// Tokens of one sequence at most; the model's own limit is kept as well.
    pub context_tokens_max: usize,
    /// Tokens that a model's key-value cache holds over all sequences and prefixes, where the
    /// budget allows; at least one full context is planned.
    pub kv_tokens_max: usize,
    /// Precision of the key-value cache.
    pub kv_type: KvType,
    /// Tokens in one step at most, over all sequences.
    pub batch_tokens_max: usize,
    /// Sequences running at once at most, per model.
    pub sequences_max: usize,
    /// Requests waiting at most, over all models.
    pub queue_len_max: usize,
    /// Bytes of the prompts that wait, and of constraints until their answers end, at most, over
    /// all models.
    pub queue_bytes_max: u64,
    /// How long an idle model stays loaded where nothing else is said; `None`: until its room is
    /// wanted.
    pub keep_alive: Option<Duration>,
    /// Whether full blocks of finished sequences are kept for later prompts that start alike.
    pub prefix_cache: PrefixCache,
    /// Which tokens are guessed ahead.
    pub speculation: Speculation,
    /// Processors that the threads are bound to, in order; empty: the system places them.
    pub cpus: Vec<usize>,
    /// Where a backend may keep regrouped copies of the weights between starts.
    pub weight_copies: Option<WeightCopies>,
    /// The time that chat templates see, in seconds since 1970; `None`: the clock's.
    pub template_now_s: Option<i64>,
}

/// Whether prefixes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixCache {
    /// Kept while no running sequence wants their blocks.
    #[default]
    Shared,
    /// Given back at once.
    Off,
}

/// Which tokens are guessed ahead and checked in one step. The answer's text is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Speculation {
    /// None.
    Off,
    /// What followed the last tokens when they occurred before; a draft model where the model was
    /// loaded with one.
    #[default]
    Auto,
    /// Only what followed the last tokens when they occurred before.
    PromptLookup,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            budget_bytes: 2 << 30,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            backend: BackendChoice::Auto,
            context_tokens_max: 4096,
            kv_tokens_max: 16384,
            kv_type: KvType::F16,
            batch_tokens_max: 512,
            sequences_max: 16,
            queue_len_max: 64,
            queue_bytes_max: 8 << 20,
            keep_alive: None,
            prefix_cache: PrefixCache::Shared,
            speculation: Speculation::Auto,
            cpus: Vec::new(),
            weight_copies: None,
            template_now_s: None,
        }
    }
}

/// An option is out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, expected {expected}")]
pub struct OptionsError {
    /// The field of [`EngineOptions`].
    pub field: &'static str,
    /// Its value.
    pub found: u64,
    /// Its range.
    pub expected: &'static str,
}

impl EngineOptions {
    /// Checks every limit.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), OptionsError> {
        let ranges: [(&'static str, usize, usize, usize, &'static str); 5] = [
            ("threads", self.threads, 1, 1024, "1 to 1024"),
            (
                "context_tokens_max",
                self.context_tokens_max,
                BLOCK_TOKENS,
                1 << 24,
                "32 to 16777216",
            ),
            ("batch_tokens_max", self.batch_tokens_max, 1, 1 << 16, "1 to 65536"),
            ("sequences_max", self.sequences_max, 1, 4096, "1 to 4096"),
            ("queue_len_max", self.queue_len_max, 1, 1 << 16, "1 to 65536"),
        ];
        for (field, found, min, max, expected) in ranges {
            if found < min || found > max {
                return Err(OptionsError { field, found: found as u64, expected });
            }
        }
        let usable = fulmar_kernels::team::usable_cpus();
        // An empty list: the system does not tell.
        let missing = |cpu: &&usize| !usable.is_empty() && !usable.contains(cpu);
        if let Some(cpu) = self.cpus.iter().find(missing) {
            return Err(OptionsError {
                field: "cpus",
                found: *cpu as u64,
                expected: "processors that this process may use",
            });
        }
        if self.queue_bytes_max >= self.budget_bytes {
            return Err(OptionsError {
                field: "queue_bytes_max",
                found: self.queue_bytes_max,
                expected: "less than budget_bytes",
            });
        }
        Ok(())
    }
}

/// What one model is given, beyond the engine's options.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// How long the model stays loaded when idle.
    pub keep_alive: KeepAlive,
    /// Less than the engine's `context_tokens_max`.
    pub context_tokens_max: Option<usize>,
    /// Tokens of the key-value cache instead of the engine's `kv_tokens_max`.
    pub kv_tokens_max: Option<usize>,
    /// A small model of the same vocabulary that guesses ahead.
    pub draft: Option<DraftModel>,
}

/// A model that guesses ahead for another.
#[derive(Debug, Clone)]
pub struct DraftModel {
    /// Its name, for people.
    pub name: String,
    /// Its file.
    pub gguf: crate::gguf::Gguf,
}

/// How long an idle model stays loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeepAlive {
    /// As the engine's options say.
    #[default]
    Engine,
    /// Until its room is wanted by another.
    Idle,
    /// This long after the last request; zero: gone as soon as it is idle.
    For(Duration),
    /// Never unloaded to make room, nor by time.
    Pinned,
}
