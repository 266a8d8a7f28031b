//! What all handlers share.

use std::sync::Arc;

use fulmar_inference::engine::Engine;
use fulmar_policy::Policy;
use fulmar_policy::budget::Meter;
use fulmar_policy::token::Verifier;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::http::Metrics;
use crate::link::Link;
use crate::models::{LoadedModel, ModelError, Models};
use crate::state::State;

/// One running agent.
#[derive(Debug)]
pub(crate) struct App {
    config: Config,
    state: Arc<State>,
    verifier: Verifier,
    policy: Policy,
    models: Models,
    meter: Arc<Meter>,
    metrics: Metrics,
    answers: TaskTracker,
    link: Link,
}

impl App {
    pub(crate) fn new(config: Config, state: Arc<State>, engine: Engine, models: Models) -> Self {
        let verifier = Verifier::new([state.token_key().public()], &state.device());
        let metrics = Metrics::new(engine);
        Self {
            config,
            state,
            verifier,
            policy: Policy::builtin(),
            models,
            meter: Arc::default(),
            metrics,
            answers: TaskTracker::new(),
            link: Link::default(),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    pub(crate) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn models(&self) -> &Models {
        &self.models
    }

    /// The model in the engine; one whose bytes are broken is sent for, so that the next question
    /// may find it whole.
    ///
    /// # Errors
    /// [`ModelError`].
    pub(crate) async fn loaded(&self, name: &str) -> Result<Arc<LoadedModel>, ModelError> {
        let loaded = self.models.loaded(name).await;
        if let Err(ModelError::Verify { .. }) = &loaded {
            self.link.repair();
        }
        loaded
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.models.engine()
    }

    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Answers under way; each completes its audit entry before it ends.
    pub(crate) fn answers(&self) -> &TaskTracker {
        &self.answers
    }

    /// The link to the control plane.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }
}
