//! The engine's section of the configuration, and what its defaults are on this machine.

use std::collections::BTreeMap;
use std::time::Duration;

use fulmar_inference::backend::KvType;
use fulmar_inference::engine::{BackendChoice, EngineOptions, PrefixCache, Speculation};
use fulmar_registry::ModelName;
use procfs::Current as _;
use serde::{Deserialize, Serialize};

use crate::models::Drafts;

/// The engine and its byte budget.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Bytes for weights, caches, scratch and queues together; 0: half of main memory.
    pub(crate) budget_bytes: u64,
    /// Threads that compute; 0: one per processor that this process may use.
    pub(crate) threads: usize,
    /// `auto`, `native` or `candle`.
    pub(crate) backend: BackendChoice,
    /// Tokens of one conversation at most; the model's own limit holds as well.
    pub(crate) context_tokens_max: usize,
    /// Tokens that the key-value cache holds over all conversations of a model.
    pub(crate) kv_tokens_max: usize,
    /// `f32`, `f16` or `q8`.
    pub(crate) kv_type: KvType,
    /// Tokens in one step.
    pub(crate) batch_tokens_max: usize,
    /// Answers under way at once, per model.
    pub(crate) sequences_max: usize,
    /// Requests that may wait.
    pub(crate) queue_len_max: usize,
    /// Seconds after which an idle model is unloaded; 0: when its room is wanted.
    pub(crate) keep_alive_s: u64,
    /// `shared` or `off`.
    pub(crate) prefix_cache: PrefixCache,
    /// Which tokens are guessed ahead: `off`, `prompt-lookup`, or `auto` for that and draft models.
    pub(crate) speculation: Speculation,
    /// Small models that guess ahead for others: `"acme/pumps:1" = "acme/tiny:1"`. A model's
    /// manifest may name one too.
    pub(crate) drafts: BTreeMap<String, ModelName>,
}

impl Default for Config {
    fn default() -> Self {
        let engine = EngineOptions::default();
        Self {
            budget_bytes: 0,
            threads: 0,
            backend: engine.backend,
            context_tokens_max: engine.context_tokens_max,
            kv_tokens_max: engine.kv_tokens_max,
            kv_type: engine.kv_type,
            batch_tokens_max: engine.batch_tokens_max,
            sequences_max: engine.sequences_max,
            queue_len_max: engine.queue_len_max,
            keep_alive_s: 0,
            prefix_cache: engine.prefix_cache,
            speculation: engine.speculation,
            drafts: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Which model guesses ahead for which.
    pub(crate) fn drafts(&self) -> Drafts {
        Drafts::new(self.drafts.clone(), self.speculation)
    }

    /// The engine's options.
    pub(crate) fn options(&self) -> EngineOptions {
        let default = EngineOptions::default();
        EngineOptions {
            budget_bytes: match self.budget_bytes {
                0 => memory_bytes() / 2,
                bytes => bytes,
            },
            threads: match self.threads {
                0 => default.threads,
                threads => threads,
            },
            backend: self.backend,
            context_tokens_max: self.context_tokens_max,
            kv_tokens_max: self.kv_tokens_max,
            kv_type: self.kv_type,
            batch_tokens_max: self.batch_tokens_max,
            sequences_max: self.sequences_max,
            queue_len_max: self.queue_len_max,
            keep_alive: (self.keep_alive_s > 0).then(|| Duration::from_secs(self.keep_alive_s)),
            prefix_cache: self.prefix_cache,
            speculation: self.speculation,
            // A stored copy of regrouped weights is not bound to the blob's digest yet, and no byte
            // reaches the engine that was not verified: weights are regrouped at every start.
            cache_dir: None,
            ..default
        }
    }
}

/// Main memory, in bytes; 4 GiB where the system does not tell.
pub(crate) fn memory_bytes() -> u64 {
    procfs::Meminfo::current().map_or(4 << 30, |info| info.mem_total)
}
