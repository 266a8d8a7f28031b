//! What all handlers share.

use std::sync::Arc;

use fulmar_inference::engine::Engine;
use fulmar_policy::Policy;
use fulmar_policy::budget::Meter;
use fulmar_policy::token::Verifier;
use fulmar_registry::Standing;
use fulmar_registry::catalog::CatalogError;
use fulmar_registry::trust::TrustError;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::governor::Board;
use crate::http::Metrics;
use crate::link::Link;
use crate::models::{LoadedModel, ModelError, Models};
use crate::standing::Current;
use crate::state::State;

/// One running agent.
#[derive(Debug)]
pub(crate) struct App {
    config: Config,
    state: Arc<State>,
    verifier: Verifier,
    standing: Current,
    models: Models,
    meter: Arc<Meter>,
    metrics: Metrics,
    board: Board,
    answers: TaskTracker,
    link: Link,
}

impl App {
    /// # Errors
    /// When the state of trust does not verify.
    pub(crate) fn new(
        config: Config,
        state: Arc<State>,
        engine: Engine,
        models: Models,
    ) -> Result<Self, TrustError> {
        let standing = Current::open(state.store().clone())?;
        let verifier = Verifier::new([state.token_key().public()], &state.device());
        let board = Board::default();
        let metrics = Metrics::new(engine, board.clone());
        Ok(Self {
            config,
            state,
            verifier,
            standing,
            models,
            meter: Arc::default(),
            metrics,
            board,
            answers: TaskTracker::new(),
            link: Link::default(),
        })
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
    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(self.standing().policy())
    }

    /// How the device stands with its owner.
    pub(crate) fn standing(&self) -> Arc<Standing> {
        self.standing.get()
    }

    /// Takes up what another process, or the link, has changed: a bundle brings a new desired state
    /// too.
    pub(crate) async fn refresh_standing(&self) {
        if self.standing.refresh().await {
            self.link.repair();
        }
    }

    /// Reads the standing anew, whether it changed or not.
    pub(crate) async fn reread_standing(&self) {
        self.standing.reread().await;
    }

    pub(crate) fn models(&self) -> &Models {
        &self.models
    }

    /// The model in the engine. One whose bytes are broken is sent for, so that the next question
    /// may find it whole; until then the release that served before it answers, if it is whole and
    /// the caller has not pinned one by its digest.
    ///
    /// # Errors
    /// [`ModelError`].
    pub(crate) async fn loaded(&self, name: &str) -> Result<Arc<LoadedModel>, ModelError> {
        let loaded = self.models.loaded(name, &self.standing(), self.state.clock().now_s()).await;
        let broken = match &loaded {
            Err(ModelError::Verify { .. }) => true,
            Err(ModelError::Store(error)) => matches!(error, CatalogError::Damaged { .. }),
            _ => false,
        };
        if !broken {
            return loaded;
        }
        self.link.repair();
        let Some(before) = self.models.before(name).await else { return loaded };
        let now_s = self.state.clock().now_s();
        match self.models.loaded(&before, &self.standing(), now_s).await {
            Ok(model) => {
                tracing::error!(
                    name,
                    before,
                    "the active release is damaged: the one before serves"
                );
                Ok(model)
            }
            Err(_) => loaded,
        }
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

    /// What the host's sensors said last.
    pub(crate) fn board(&self) -> &Board {
        &self.board
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
