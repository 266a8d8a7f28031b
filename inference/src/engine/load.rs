//! Loading a model: plan, ask for room, build, measure.
//!
//! All of it runs on a thread of its own, one load at a time, while the engine's thread goes on
//! serving. Nothing is built before the plan has its bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::budget::{Holder, Reserved, Wish, total};
use super::choose::Chosen;
use super::front::Front;
use super::guess::{Draft, GUESSES_MAX};
use super::loaded::{Loaded, Parts, Stay};
use super::options::{
    BackendChoice, EngineOptions, KeepAlive, LoadOptions, PrefixCache, Speculation,
};
use super::runner::Order;
use super::status::ModelInfo;
use super::{Hold, Shared};
use crate::backend::{self, BLOCK_TOKENS, BackendOptions, MemoryUse};
use crate::chat::ChatTemplate;
use crate::gguf::Gguf;
use crate::kv::{BlockPool, blocks_for};
use crate::model::Architecture;
use crate::sampler::Scratch;
use crate::tokenizer::Tokenizer;

/// Why a model was not loaded. Nothing of it stays.
#[derive(Debug, thiserror::Error)]
pub enum LoadRefused {
    /// A model of this name is there.
    #[error("model \"{name}\" is already loaded; unload it first")]
    AlreadyLoaded {
        /// The name asked for.
        name: String,
    },
    /// The file's architecture can't be run.
    #[error("read the model's architecture")]
    Architecture(#[from] crate::model::ArchitectureError),
    /// The file's tokenizer can't be used.
    #[error("read the model's tokenizer")]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// Tokenizer and weights don't belong together.
    #[error("tokenizer has {tokens} tokens, the model's output {outputs}")]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the output.
        outputs: usize,
    },
    /// An option is out of its range.
    #[error("{field} is {found}, expected {expected}")]
    Option {
        /// The field of [`LoadOptions`].
        field: &'static str,
        /// Its value.
        found: u64,
        /// Its range.
        expected: &'static str,
    },
    /// It doesn't fit the byte budget.
    #[error("{asked_bytes} bytes are needed, {free_bytes} of {budget_bytes} are free{}", go(.must_go))]
    OverBudget {
        /// Bytes without which it can't run.
        asked_bytes: u64,
        /// Bytes not planned for anything.
        free_bytes: u64,
        /// The budget.
        budget_bytes: u64,
        /// What would have to go; empty: it doesn't fit even an empty engine.
        must_go: Vec<MustGo>,
    },
    /// It took more than was planned, and that doesn't fit.
    #[error(
        "{measured_bytes} bytes were measured after loading, {planned_bytes} planned, {free_bytes} more are free"
    )]
    Measured {
        /// Planned.
        planned_bytes: u64,
        /// Measured.
        measured_bytes: u64,
        /// Not planned for anything else.
        free_bytes: u64,
    },
    /// The backend refused it.
    #[error("load the weights")]
    Backend(#[from] backend::LoadError),
    /// The backend asked for is not there for this model.
    #[error("the {backend} backend can't run this model: {reason}")]
    NoBackend {
        /// Which was asked for.
        backend: &'static str,
        /// Why not.
        reason: String,
    },
    /// A draft model must have the same vocabulary.
    #[error("use the draft model: {reason}")]
    Draft {
        /// What differs.
        reason: String,
    },
    /// The thread that loaded it panicked.
    #[error("load the model: {0}")]
    Lost(String),
    /// The engine is shutting down.
    #[error("engine is shutting down")]
    ShuttingDown,
}

/// A model that holds what another needs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MustGo {
    /// Its name.
    pub name: String,
    /// Bytes it holds.
    pub bytes: u64,
    /// Why it doesn't go by itself.
    pub hold: Hold,
}

impl From<Holder> for MustGo {
    fn from(h: Holder) -> Self {
        Self { name: h.name, bytes: h.bytes, hold: h.hold }
    }
}

fn go(models: &[MustGo]) -> String {
    if models.is_empty() {
        return ", which even an empty engine could not offer".to_owned();
    }
    let each = models.iter().map(|m| {
        let why = match m.hold {
            Hold::Idle => "idle",
            Hold::Busy => "busy",
            Hold::Pinned => "pinned",
        };
        format!("\"{}\" ({} bytes, {why})", m.name, m.bytes)
    });
    format!("; these would have to go: {}", each.collect::<Vec<_>>().join(", "))
}

/// Bytes that tokenizer and grammar tables take per token of the vocabulary, with room to spare:
/// 530 to 580 were measured at the peak with vocabularies of 150 and 200 thousand tokens.
const TABLE_BYTES_PER_TOKEN: u64 = 672;

/// Threads whose buffers [`memory_need`] counts.
const NEED_THREADS: usize = 4;
/// Longest context whose cache is computed.
const NEED_CONTEXT_TOKENS_MAX: usize = 1 << 22;

/// Everything known of a model before it is loaded.
struct Planned {
    architecture: Architecture,
    chosen: Chosen,
    tokenizer: Arc<Tokenizer>,
    backend: BackendOptions,
    wish: Wish,
    tokenizer_bytes: u64,
    draft: Option<PlannedDraft>,
}

/// A draft model before it is loaded.
struct PlannedDraft {
    architecture: Architecture,
    chosen: Chosen,
    backend: BackendOptions,
    memory: MemoryUse,
}

/// Loads a model; runs on a thread that may block.
pub(super) fn load(
    shared: &Arc<Shared>,
    name: &str,
    gguf: &Gguf,
    options: &LoadOptions,
) -> Result<ModelInfo, LoadRefused> {
    let begun = Instant::now();
    let _one_at_a_time = super::queue::lock(&shared.loading);
    if shared.fronts.get(name).is_some() {
        return Err(LoadRefused::AlreadyLoaded { name: name.to_owned() });
    }
    let mut planned = plan(&shared.options, gguf, options)?;
    let (blocks, reserved) = reserve(shared, name, planned.wish)?;
    planned.backend.kv_blocks = blocks;
    // Fewer blocks than a full context: the context is what they hold.
    let context_tokens = planned.backend.context_tokens_max.min(blocks * BLOCK_TOKENS);
    let backend = planned.chosen.load(gguf, &planned.architecture, &planned.backend)?;
    let draft = load_draft(&planned, options)?;
    let memory = planned.memory(&shared.options, gguf, blocks)?;
    let template = ChatTemplate::from_gguf(gguf, &planned.tokenizer).map_err(|e| e.to_string());
    let front = Arc::new(Front::new(
        name.to_owned(),
        shared.next_ordinal(),
        planned.tokenizer,
        template,
        planned.architecture.pooling,
        context_tokens,
        planned.architecture.vocab_len,
    ));
    let info = ModelInfo {
        name: name.to_owned(),
        architecture: planned.architecture.family.name.to_owned(),
        backend: backend.name().to_owned(),
        backend_reason: planned.chosen.reason,
        context_tokens,
        vocabulary: planned.architecture.vocab_len,
        kv_tokens: blocks * BLOCK_TOKENS,
        kv_type: planned.backend.kv_type,
        planned: memory,
        tokenizer_bytes: planned.tokenizer_bytes,
        speculation: shared.options.speculation,
        draft: options.draft.as_ref().filter(|_| draft.is_some()).map(|d| d.name.clone()),
        load_ms: begun.elapsed().as_millis() as u64,
    };
    let loaded = Loaded::new(
        Parts {
            info: info.clone(),
            stay: stay(options.keep_alive, shared.options.keep_alive),
            planned: memory,
            backend,
            tokenizer: Arc::clone(&front.tokenizer),
            pool: BlockPool::new(blocks, shared.options.prefix_cache),
            draft,
            queue: Arc::clone(&shared.queue),
            block_bytes: planned.wish.block_bytes,
        },
        Instant::now(),
    );
    commit(shared, loaded, front, reserved)?;
    Ok(info)
}

pub(super) fn stay(model: KeepAlive, engine: Option<Duration>) -> Stay {
    match (model, engine) {
        (KeepAlive::Pinned, _) => Stay::Pinned,
        (KeepAlive::For(patience), _) | (KeepAlive::Engine, Some(patience)) => Stay::For(patience),
        (KeepAlive::Idle, _) | (KeepAlive::Engine, None) => Stay::Idle,
    }
}

/// Bytes of the byte budget that a model takes on a processor when it is alone: weights, the cache
/// of one sequence that fills the whole context, buffers, tokenizer. The same on every machine of a
/// kind: the engine's defaults are taken, and not what this machine has.
///
/// # Errors
/// [`LoadRefused`] where the engine cannot run the model, or its context is absurdly long.
pub fn memory_need(gguf: &Gguf) -> Result<u64, LoadRefused> {
    let context_tokens = Architecture::from_gguf(gguf)?.context_tokens.max(BLOCK_TOKENS);
    if context_tokens > NEED_CONTEXT_TOKENS_MAX {
        let (field, found) = ("context_length", context_tokens as u64);
        return Err(LoadRefused::Option { field, found, expected: "at most 4194304" });
    }
    let engine = |backend| EngineOptions {
        threads: NEED_THREADS,
        backend,
        context_tokens_max: context_tokens,
        kv_tokens_max: context_tokens,
        ..EngineOptions::default()
    };
    let planned = |backend| plan(&engine(backend), gguf, &LoadOptions::default());
    let wish = planned(BackendChoice::Native).or_else(|_| planned(BackendChoice::Candle))?.wish;
    Ok(wish.fixed_bytes.saturating_add(wish.block_bytes.saturating_mul(wish.blocks_min as u64)))
}

fn plan(
    engine: &EngineOptions,
    gguf: &Gguf,
    options: &LoadOptions,
) -> Result<Planned, LoadRefused> {
    let architecture = Architecture::from_gguf(gguf)?;
    let tokenizer = Arc::new(Tokenizer::from_gguf(gguf)?);
    let (tokens, outputs) = (tokenizer.vocab_len(), architecture.vocab_len);
    if tokens > outputs {
        return Err(LoadRefused::Vocabulary { tokens, outputs });
    }
    let context = context_tokens(&architecture, engine.context_tokens_max, options)?;
    let kv_tokens = options.kv_tokens_max.unwrap_or(engine.kv_tokens_max).max(context);
    let backend = BackendOptions {
        threads: engine.threads,
        context_tokens_max: context,
        kv_blocks: blocks_for(kv_tokens),
        kv_type: engine.kv_type,
        batch_tokens_max: engine.batch_tokens_max,
        cpus: engine.cpus.clone(),
        weight_copies: engine.weight_copies.clone(),
    };
    let chosen = Chosen::new(engine.backend, gguf, &architecture, &backend)?;
    let tokenizer_bytes = tokens as u64 * TABLE_BYTES_PER_TOKEN;
    let wish = Wish { fixed_bytes: 0, block_bytes: 0, blocks_min: 0, blocks_wanted: 0 };
    let draft = match (&options.draft, engine.speculation) {
        (Some(draft), Speculation::Auto) => {
            Some(plan_draft(engine.backend, &draft.gguf, &tokenizer, &backend)?)
        }
        _ => None,
    };
    let mut planned =
        Planned { architecture, chosen, tokenizer, backend, wish, tokenizer_bytes, draft };
    let blocks_wanted = planned.backend.kv_blocks;
    let most = planned.memory(engine, gguf, blocks_wanted)?;
    let block_bytes =
        planned.memory(engine, gguf, 2)?.kv_bytes - planned.memory(engine, gguf, 1)?.kv_bytes;
    planned.wish = Wish {
        fixed_bytes: most.weights_bytes
            + most.scratch_bytes
            + (most.kv_bytes - block_bytes * blocks_wanted as u64)
            + tokenizer_bytes,
        block_bytes,
        blocks_min: blocks_for(context),
        blocks_wanted,
    };
    Ok(planned)
}

impl Planned {
    /// The backend's plan with this many cache blocks, and what the engine itself keeps for each
    /// step of the model: rows of logits or of hidden states, and the sampler's candidates.
    fn memory(
        &self,
        engine: &EngineOptions,
        gguf: &Gguf,
        kv_blocks: usize,
    ) -> Result<MemoryUse, LoadRefused> {
        let options = BackendOptions { kv_blocks, ..self.backend.clone() };
        let mut memory = self.chosen.plan(gguf, &self.architecture, &options)?;
        memory.kv_bytes += BlockPool::held_bytes_max(kv_blocks);
        let logits = (engine.sequences_max + GUESSES_MAX) * self.architecture.vocab_len;
        let hidden = options.batch_tokens_max * self.architecture.embedding_len;
        let rows = (logits.max(hidden) * size_of::<f32>()) as u64;
        memory.scratch_bytes += rows + Scratch::bytes(self.architecture.vocab_len);
        memory.scratch_bytes +=
            backend::file_bytes(gguf, &self.architecture, &options, memory.scratch_bytes);
        if let Some(draft) = &self.draft {
            memory.weights_bytes += draft.memory.weights_bytes;
            memory.kv_bytes += draft.memory.kv_bytes;
            memory.scratch_bytes += draft.memory.scratch_bytes;
        }
        Ok(memory)
    }
}

/// Contexts that a draft's cache holds: it guesses for few sequences at a time.
const DRAFT_CONTEXTS: usize = 2;

fn plan_draft(
    choice: BackendChoice,
    gguf: &Gguf,
    tokenizer: &Tokenizer,
    target: &BackendOptions,
) -> Result<PlannedDraft, LoadRefused> {
    let refuse = |reason: String| LoadRefused::Draft { reason };
    let architecture = Architecture::from_gguf(gguf).map_err(|e| refuse(e.to_string()))?;
    let own = Tokenizer::from_gguf(gguf).map_err(|e| refuse(e.to_string()))?;
    let (found, expected) = (own.vocab_len(), tokenizer.vocab_len());
    if found != expected {
        return Err(refuse(format!("it has {found} tokens, the model {expected}")));
    }
    let differs = |id: &u32| own.token_bytes(*id) != tokenizer.token_bytes(*id);
    if let Some(id) = (0..found as u32).find(differs) {
        return Err(refuse(format!("token {id} is another one than the model's")));
    }
    let context = target.context_tokens_max.min(architecture.context_tokens);
    let backend = BackendOptions {
        context_tokens_max: context,
        kv_blocks: blocks_for(context) * DRAFT_CONTEXTS,
        ..target.clone()
    };
    let chosen = Chosen::new(choice, gguf, &architecture, &backend)?;
    let mut memory = chosen.plan(gguf, &architecture, &backend)?;
    memory.kv_bytes += BlockPool::held_bytes_max(backend.kv_blocks);
    // A row of logits, and the texts that its cache holds.
    let texts = backend.kv_blocks * BLOCK_TOKENS * 2;
    memory.scratch_bytes += ((architecture.vocab_len + texts) * size_of::<f32>()) as u64;
    Ok(PlannedDraft { architecture, chosen, backend, memory })
}

fn load_draft(planned: &Planned, options: &LoadOptions) -> Result<Option<Draft>, LoadRefused> {
    let (Some(draft), Some(given)) = (&planned.draft, &options.draft) else { return Ok(None) };
    let backend = draft.chosen.load(&given.gguf, &draft.architecture, &draft.backend)?;
    let pool = BlockPool::new(draft.backend.kv_blocks, PrefixCache::Off);
    let (context, batch) = (draft.backend.context_tokens_max, draft.backend.batch_tokens_max);
    Ok(Some(Draft::new(backend, pool, context, batch)))
}

fn context_tokens(
    architecture: &Architecture,
    engine: usize,
    options: &LoadOptions,
) -> Result<usize, LoadRefused> {
    let wanted = options.context_tokens_max.unwrap_or(engine);
    if wanted < BLOCK_TOKENS {
        let (field, expected) = ("context_tokens_max", "at least 32");
        return Err(LoadRefused::Option { field, found: wanted as u64, expected });
    }
    Ok(wanted.min(engine).min(architecture.context_tokens))
}

fn reserve(shared: &Shared, name: &str, wish: Wish) -> Result<(usize, Reserved), LoadRefused> {
    let (reply, answer) = oneshot::channel();
    let order = Order::Reserve { name: name.to_owned(), wish, reply };
    shared.mailbox.push_order(order).map_err(|_| LoadRefused::ShuttingDown)?;
    answer.blocking_recv().map_err(|_| LoadRefused::ShuttingDown)?
}

fn commit(
    shared: &Shared,
    loaded: Loaded,
    front: Arc<Front>,
    reserved: Reserved,
) -> Result<(), LoadRefused> {
    let (reply, answer) = oneshot::channel();
    let order = Order::Commit { loaded: Box::new(loaded), front, reserved, reply };
    shared.mailbox.push_order(order).map_err(|_| LoadRefused::ShuttingDown)?;
    answer.blocking_recv().map_err(|_| LoadRefused::ShuttingDown)?
}

/// What the model holds beyond what was planned, or a refusal.
pub(super) fn measure(loaded: &mut Loaded, free_bytes: u64) -> Result<(), LoadRefused> {
    let measured = loaded.measured();
    let larger = MemoryUse {
        weights_bytes: loaded.planned.weights_bytes.max(measured.weights_bytes),
        kv_bytes: loaded.planned.kv_bytes.max(measured.kv_bytes),
        scratch_bytes: loaded.planned.scratch_bytes.max(measured.scratch_bytes),
    };
    let (planned_bytes, measured_bytes) = (total(&loaded.planned), total(&larger));
    if measured_bytes > planned_bytes + free_bytes {
        return Err(LoadRefused::Measured { planned_bytes, measured_bytes, free_bytes });
    }
    loaded.planned = larger;
    Ok(())
}
