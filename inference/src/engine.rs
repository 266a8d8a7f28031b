//! The engine: many requests, several models, one thread and one byte budget.
//!
//! One thread owns every loaded model and goes round in three calls: *schedule* (which sequences,
//! how many tokens each, which cache blocks), *step* (the backend), *postprocess* (choose tokens,
//! stream text, free what ended). Everything else is a message to it. Invariants:
//! - A request is refused at once or it has a place in the bounded queue; nothing waits unbounded.
//! - What is planned for models and queues never exceeds the byte budget.
//! - A text depends on the request and the model only: not on what else is in the batch, on
//!   preemption, on the prefix cache or on speculation.
//! - A failing step ends the sequences concerned, never the process.
//!
//! Deliberately absent: HTTP, permits and audit (the caller's), files (the registry's).

mod answer;
mod budget;
mod choose;
mod front;
mod guess;
mod load;
mod loaded;
mod options;
mod prompt;
mod queue;
mod request;
mod resident;
mod runner;
mod schedule;
mod sequence;
mod shares;
mod status;
mod step;
mod text;
mod unread;
mod vector;

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

pub use budget::Hold;
pub use load::{LoadRefused, MustGo, memory_need};
pub use options::{
    BackendChoice, DraftModel, EngineOptions, KeepAlive, LoadOptions, OptionsError, PrefixCache,
    Speculation,
};
pub use request::{
    Constraint, EmbedError, EmbedRequest, Embeddings, Event, FinishReason, LOGIT_BIAS_MAX,
    LOGPROBS_MAX, Logprobs, PRIORITY_DEFAULT, Prompt, Refused, Request, STOP_BYTES_MAX, STOPS_MAX,
    Sampling, TopToken, Usage,
};
pub use status::{
    EngineStatus, KvStatus, MemoryStatus, ModelInfo, ModelStatus, QueueStatus, Totals,
};

use crate::chat::OutputParser;
use crate::gguf::Gguf;
use crate::governor::{Narrowing, Strength};
use crate::tokenizer::Tokenizer;
use queue::{Mailbox, NotTaken, Queue, lock};
use runner::{Job, Order, Runner};

/// Orders (loads, unloads) that wait for the engine's thread at most.
const ORDERS_MAX: usize = 64;
/// Inputs of one embedding request that are in the engine at a time.
const EMBED_WAVE: usize = 8;
/// Bytes set aside for each sequence that runs: its tokens, bookkeeping, and what nobody has read
/// yet of its answer.
const SEQUENCE_BYTES: u64 = 64 * 1024 + unread::UNREAD_BYTES_MAX;

/// A handle to the engine; clones share it. When the last one is dropped, the engine ends.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    _end: Arc<EndOnDrop>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// What handles, loads and the engine's thread share.
pub(crate) struct Shared {
    options: EngineOptions,
    mailbox: Mailbox<Order, Job>,
    queue: Arc<Queue>,
    fronts: front::Fronts,
    narrowing: Mutex<Narrowing>,
    published: Mutex<Published>,
    /// Held by the load under way.
    loading: Mutex<()>,
    /// Orders models and sequences.
    ordinals: AtomicU64,
}

/// What the engine's thread says of itself now and then.
#[derive(Default)]
struct Published {
    models: Vec<ModelStatus>,
    memory: MemoryStatus,
    totals: Totals,
}

impl Shared {
    fn next_ordinal(&self) -> u64 {
        self.ordinals.fetch_add(1, Ordering::Relaxed)
    }

    fn strength(&self) -> Strength {
        Strength {
            threads: self.options.threads,
            batch_tokens: self.options.batch_tokens_max,
            sequences: self.options.sequences_max,
        }
    }

    /// Bytes of the budget for what waits and for the sequences themselves.
    fn queue_bytes(&self) -> u64 {
        self.options.queue_bytes_max + SEQUENCE_BYTES * self.options.sequences_max as u64
    }
}

struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.mailbox.close();
    }
}

/// The engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An option is out of its range.
    #[error("read the engine's options")]
    Options(#[from] OptionsError),
    /// The system gave no thread.
    #[error("start the engine's thread")]
    Thread(#[source] std::io::Error),
}

fn refused(reason: NotTaken) -> OrderRefused {
    match reason {
        NotTaken::Closed => OrderRefused::ShuttingDown,
        NotTaken::Full { max } => OrderRefused::Busy { max },
    }
}

/// The model could not be unloaded, or not be told when to go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefused {
    /// No model of this name is loaded.
    #[error("model \"{name}\" is not loaded")]
    NotLoaded {
        /// The name asked for.
        name: String,
    },
    /// Too many orders wait.
    #[error("the engine has {max} orders waiting, its limit")]
    Busy {
        /// The limit.
        max: usize,
    },
    /// The engine is shutting down.
    #[error("engine is shutting down")]
    ShuttingDown,
}

impl Engine {
    /// Starts an engine without models.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(options: EngineOptions) -> Result<Self, StartError> {
        options.check()?;
        let shared = Arc::new(Shared {
            mailbox: Mailbox::new(ORDERS_MAX),
            queue: Queue::new(options.queue_len_max, options.queue_bytes_max),
            fronts: front::Fronts::default(),
            narrowing: Mutex::default(),
            published: Mutex::default(),
            loading: Mutex::default(),
            ordinals: AtomicU64::new(1),
            options,
        });
        let mut runner = Runner::new(Arc::clone(&shared));
        // Whoever asks before the thread runs gets what it will say, not zeros.
        runner.publish();
        std::thread::Builder::new()
            .name("fulmar-engine".to_owned())
            .spawn(move || runner.run())
            .map_err(StartError::Thread)?;
        Ok(Self { _end: Arc::new(EndOnDrop(Arc::clone(&shared))), shared })
    }

    /// Loads a model with the engine's own options.
    ///
    /// # Errors
    /// [`LoadRefused`].
    pub async fn load(&self, name: &str, gguf: Gguf) -> Result<ModelInfo, LoadRefused> {
        self.load_with(name, gguf, LoadOptions::default()).await
    }

    /// Loads a model. Idle models go where its room is wanted. The load goes on when the caller
    /// doesn't wait for it.
    ///
    /// # Errors
    /// [`LoadRefused`]; of the model nothing stays then.
    pub async fn load_with(
        &self,
        name: &str,
        gguf: Gguf,
        options: LoadOptions,
    ) -> Result<ModelInfo, LoadRefused> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        let loading =
            tokio::task::spawn_blocking(move || load::load(&shared, &name, &gguf, &options));
        // A loader that panicked is an error here, and its reservation is given back.
        loading.await.unwrap_or_else(|panic| Err(LoadRefused::Lost(panic.to_string())))
    }

    /// Unloads a model: its sequences end as cancelled.
    ///
    /// # Errors
    /// [`OrderRefused`].
    pub async fn unload(&self, name: &str) -> Result<(), OrderRefused> {
        let (reply, answer) = oneshot::channel();
        let order = Order::Unload { name: name.to_owned(), reply };
        self.shared.mailbox.push_order(order).map_err(refused)?;
        answer.await.unwrap_or(Err(OrderRefused::ShuttingDown))
    }

    /// Says anew how long a loaded model stays when it is idle. A pinned one stays pinned.
    ///
    /// # Errors
    /// [`OrderRefused`].
    pub async fn keep_alive(&self, name: &str, keep_alive: KeepAlive) -> Result<(), OrderRefused> {
        let (reply, answer) = oneshot::channel();
        let order = Order::KeepAlive { name: name.to_owned(), keep_alive, reply };
        self.shared.mailbox.push_order(order).map_err(refused)?;
        answer.await.unwrap_or(Err(OrderRefused::ShuttingDown))
    }

    /// Accepts a request or refuses it at once; never waits for a place. (It renders the template,
    /// finds the tokens and compiles the constraint, on a thread that may block.)
    ///
    /// # Errors
    /// [`Refused`], with the limit that was met.
    pub async fn generate(&self, request: Request) -> Result<Generation, Refused> {
        // Its deadline counts from here, the wait for a thread to prepare it included.
        let accepted_at = std::time::Instant::now();
        let place = self.shared.queue.take()?;
        let shared = Arc::clone(&self.shared);
        let preparing = tokio::task::spawn_blocking(move || {
            prompt::generate(&shared, request, place, accepted_at)
        });
        let (events, parser) = preparing.await.map_err(|e| Refused::Template(e.to_string()))??;
        Ok(Generation { events, parser, told: Told::NotYet })
    }

    /// Turns texts into vectors, by the model's own pooling type (the mean where it has none).
    ///
    /// # Errors
    /// [`EmbedError`].
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, EmbedError> {
        let accepted_at = std::time::Instant::now();
        let (place, _inputs) = prompt::embed_place(&self.shared, &request)?;
        let mut place = Some(place);
        let request = Arc::new(request);
        let mut vectors = Vec::with_capacity(request.inputs.len());
        let mut prompt_tokens = 0u32;
        // In waves, so that one request never has more than a wave of sequences waiting.
        for wave in (0..request.inputs.len()).step_by(EMBED_WAVE) {
            let (shared, request) = (Arc::clone(&self.shared), Arc::clone(&request));
            let place = place.take();
            let preparing = tokio::task::spawn_blocking(move || {
                let end = request.inputs.len().min(wave + EMBED_WAVE);
                prompt::embed(&shared, &request, &request.inputs[wave..end], place, accepted_at)
            });
            let (replies, tokens) =
                preparing.await.map_err(|e| EmbedError::Failed(e.to_string()))??;
            prompt_tokens = prompt_tokens.saturating_add(tokens);
            for reply in replies {
                let vector = reply.await.unwrap_or_else(|_| Err(vector::unloaded()));
                vectors.push(vector?);
            }
        }
        Ok(Embeddings { vectors, prompt_tokens })
    }

    /// The tokenizer of a loaded model.
    #[must_use]
    pub fn tokenizer(&self, name: &str) -> Option<Arc<Tokenizer>> {
        Some(Arc::clone(&self.shared.fronts.get(name)?.tokenizer))
    }

    /// What the engine uses at full strength: for a [`Governor`](crate::governor::Governor).
    #[must_use]
    pub fn strength(&self) -> Strength {
        self.shared.strength()
    }

    /// Narrows the engine from the next step on, or widens it again.
    pub fn govern(&self, narrowing: Narrowing) {
        *lock(&self.shared.narrowing) = narrowing;
    }

    /// What the engine says about itself; counts are at most a tenth of a second old.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let governor = lock(&self.shared.narrowing).clone();
        let (models, mut memory, mut totals) = {
            let published = lock(&self.shared.published);
            (published.models.clone(), published.memory, published.totals)
        };
        let resident = resident::read();
        memory.resident_bytes = resident.bytes;
        memory.resident_file_bytes = resident.file_bytes;
        memory.resident_peak_bytes = resident.peak_bytes;
        totals.refused = self.shared.queue.refused();
        EngineStatus {
            models,
            memory,
            queue: self.shared.queue.status(),
            threads: governor.apply(self.strength()).threads,
            governor,
            backend: self.shared.options.backend,
            totals,
        }
    }
}

/// An answer under way. Dropping it cancels the request at the next step.
#[derive(Debug)]
pub struct Generation {
    events: unread::EventReceiver,
    parser: Option<OutputParser>,
    told: Told,
}

/// Whether the last event was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    NotYet,
    All,
}

impl Generation {
    /// What takes the answer to a conversation apart into content, reasoning and tool calls, as
    /// this model's template writes them. `None` after the first call and for other prompts.
    pub fn take_parser(&mut self) -> Option<OutputParser> {
        self.parser.take()
    }

    /// The next event; `None` after `Done` or `Failed`.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.tell(event)
    }

    /// As [`next`](Self::next), for threads that may block.
    pub fn blocking_next(&mut self) -> Option<Event> {
        let event = self.events.blocking_recv();
        self.tell(event)
    }

    /// A stream that ends without a last event ends with a failure.
    fn tell(&mut self, event: Option<Event>) -> Option<Event> {
        match event {
            Some(event) => {
                if matches!(event, Event::Done { .. } | Event::Failed { .. }) {
                    self.told = Told::All;
                }
                Some(event)
            }
            None if self.told == Told::All => None,
            None => {
                self.told = Told::All;
                Some(Event::Failed { message: "the model was unloaded".to_owned() })
            }
        }
    }
}

impl futures_util::Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx).map(|event| self.tell(event))
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
