//! The engine's section of the configuration, and what its defaults are on this machine.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use fulmar_inference::backend::{KvType, WeightCopies};
use fulmar_inference::engine::{BackendChoice, EngineOptions, PrefixCache, Speculation};
use fulmar_registry::ModelName;
use procfs::Current as _;
use serde::{Deserialize, Serialize};

use crate::models::Drafts;

mod cpus;
use cpus::Cpus;

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
    /// Processors that the threads are bound to, as `0-3,6`; empty: the system places them.
    pub(crate) cpus: Cpus,
    /// `stored`: weights that were regrouped for the processor are kept on the disk, so that the
    /// next start is fast; `off`: they are regrouped at every start.
    pub(crate) regrouped_weights: RegroupedWeights,
    /// Small models that guess ahead for others: `"acme/pumps:1" = "acme/tiny:1"`. A model's
    /// manifest may name one too.
    pub(crate) drafts: BTreeMap<String, ModelName>,
}

/// Whether regrouped weights are kept between starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RegroupedWeights {
    /// In the registry's folder, bound to the model's digest and the device's key.
    Stored,
    /// Not.
    Off,
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
            cpus: Cpus::default(),
            regrouped_weights: RegroupedWeights::Stored,
            drafts: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Which model guesses ahead for which.
    pub(crate) fn drafts(&self) -> Drafts {
        Drafts::new(self.drafts.clone(), self.speculation)
    }

    /// Refuses limits that are out of range, and processors that this process may not use.
    ///
    /// # Errors
    /// Names the field.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.limits().check().context("read the section engine")
    }

    /// The engine's options; `copies` is where it may keep regrouped weights.
    pub(crate) fn options(&self, copies: WeightCopies) -> EngineOptions {
        let weight_copies = match self.regrouped_weights {
            RegroupedWeights::Stored => Some(copies),
            RegroupedWeights::Off => None,
        };
        EngineOptions { weight_copies, ..self.limits() }
    }

    /// The same, where nothing is kept.
    fn limits(&self) -> EngineOptions {
        let default = EngineOptions::default();
        EngineOptions {
            budget_bytes: match self.budget_bytes {
                0 => memory_bytes() / 2,
                bytes => bytes,
            },
            threads: match self.threads {
                0 if !self.cpus.0.is_empty() => self.cpus.0.len(),
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
            cpus: self.cpus.0.clone(),
            ..default
        }
    }
}

/// Main memory, in bytes; 4 GiB where the system does not tell.
pub(crate) fn memory_bytes() -> u64 {
    procfs::Meminfo::current().map_or(4 << 30, |info| info.mem_total)
}
