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

mod options;
mod queue;
mod request;
mod status;

use std::pin::Pin;
use std::task::{Context, Poll};

use crate::governor::{Narrowing, Strength};

pub use options::{
    BackendChoice, EngineOptions, KeepAlive, LoadOptions, OptionsError, PrefixCache, Speculation,
};
pub use request::{
    Constraint, EmbedError, EmbedRequest, Embeddings, Event, FinishReason, LOGIT_BIAS_MAX,
    LOGPROBS_MAX, Logprobs, PRIORITY_DEFAULT, Prompt, Refused, Request, STOP_BYTES_MAX, STOPS_MAX,
    Sampling, TopToken, Usage,
};
pub use status::{
    EngineStatus, KvStatus, MemoryStatus, ModelInfo, ModelStatus, QueueStatus, Totals,
};

/// A handle to the engine; clones share it. When the last one is dropped, the engine ends.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: std::sync::Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: EngineOptions,
    queue: std::sync::Arc<queue::Queue>,
    narrowing: std::sync::Mutex<Narrowing>,
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

/// The model could not be unloaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnloadRefused {
    /// No model of this name is loaded.
    #[error("model \"{name}\" is not loaded")]
    NotLoaded {
        /// The name asked for.
        name: String,
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
        let queue = queue::Queue::new(options.queue_len_max, options.queue_bytes_max);
        let narrowing = std::sync::Mutex::default();
        Ok(Self { shared: std::sync::Arc::new(Shared { options, queue, narrowing }) })
    }

    /// Unloads a model: its sequences end as cancelled.
    ///
    /// # Errors
    /// [`UnloadRefused`].
    pub async fn unload(&self, name: &str) -> Result<(), UnloadRefused> {
        Err(UnloadRefused::NotLoaded { name: name.to_owned() })
    }

    /// Accepts a request or refuses it at once; never waits for a place.
    ///
    /// # Errors
    /// [`Refused`], with the limit that was met.
    pub async fn generate(&self, request: Request) -> Result<Generation, Refused> {
        let _place = self.shared.queue.take()?;
        Err(Refused::ModelNotLoaded { name: request.model })
    }

    /// Turns texts into vectors, by the model's own pooling type.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, EmbedError> {
        let _place = self.shared.queue.take()?;
        Err(EmbedError::Refused(Refused::ModelNotLoaded { name: request.model }))
    }

    /// What the engine uses at full strength: for a [`Governor`](crate::governor::Governor).
    #[must_use]
    pub fn strength(&self) -> Strength {
        let options = &self.shared.options;
        Strength {
            threads: options.threads,
            batch_tokens: options.batch_tokens_max,
            sequences: options.sequences_max,
        }
    }

    /// Narrows the engine from the next step on, or widens it again.
    pub fn govern(&self, narrowing: Narrowing) {
        *queue::lock(&self.shared.narrowing) = narrowing;
    }

    /// What the engine says about itself; at most a tenth of a second old.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let options = &self.shared.options;
        let governor = queue::lock(&self.shared.narrowing).clone();
        EngineStatus {
            models: Vec::new(),
            memory: MemoryStatus {
                budget_bytes: options.budget_bytes,
                planned_bytes: options.queue_bytes_max,
                free_bytes: options.budget_bytes - options.queue_bytes_max,
                queue_bytes: options.queue_bytes_max,
                ..MemoryStatus::default()
            },
            queue: self.shared.queue.status(),
            threads: governor.apply(self.strength()).threads,
            governor,
            backend: options.backend,
            totals: Totals { refused: self.shared.queue.refused(), ..Totals::default() },
        }
    }
}

/// An answer under way. Dropping it cancels the request at the next step.
#[derive(Debug)]
pub struct Generation {
    events: tokio::sync::mpsc::Receiver<Event>,
}

impl Generation {
    /// The next event; `None` after `Done` or `Failed`.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// As [`next`](Self::next), for threads that may block.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

impl futures_util::Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx)
    }
}
