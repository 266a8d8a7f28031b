//! The owner's word, kept in force while the agent runs: the policy that decides requests, models
//! and devices that were taken back, and the end of a time offline that is too long.
//!
//! Another process may take a bundle in while this one serves, so every request looks whether
//! something changed (one small read), and so does a timer.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use fulmar_policy::audit::{AuditError, Event, Outcome};
use fulmar_registry::trust::TrustError;
use fulmar_registry::{Barred, Standing, standing};
use fulmar_store::Store;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::models::LoadedModel;
use crate::{damage, state};

/// How often a change is looked for while nobody asks anything.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often the running time is noted; a power cut loses so much of it.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);

/// The mark of a standing that could not be read: no other is like it.
const UNREADABLE: &str = "unreadable";

/// The standing in force.
#[derive(Debug)]
pub(crate) struct Current {
    store: Store,
    now: RwLock<(String, Arc<Standing>)>,
}

impl Current {
    /// As it is stored. By trust that was damaged nothing runs; the agent lives all the same, so
    /// that the link can mend it.
    ///
    /// # Errors
    /// [`TrustError`], of the database.
    pub(crate) fn open(store: Store) -> Result<Self, TrustError> {
        let now = match store.read_blocking(read) {
            Err(error) if error.is_damage() => {
                let standing = Standing::unreadable(&error);
                tracing::error!(%error, "the state of trust cannot be read: no model runs");
                (UNREADABLE.to_owned(), Arc::new(standing))
            }
            read => read?,
        };
        Ok(Self { store, now: RwLock::new(now) })
    }

    pub(crate) fn get(&self) -> Arc<Standing> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Reads again what changed; whether something did. What cannot be read leaves the standing as
    /// it was.
    pub(crate) async fn refresh(&self) -> bool {
        let known = self.now.read().unwrap_or_else(PoisonError::into_inner).0.clone();
        self.read_unless(known).await
    }

    /// Reads all of it again.
    pub(crate) async fn reread(&self) {
        self.read_unless("nothing is known".to_owned()).await;
    }

    async fn read_unless(&self, known: String) -> bool {
        let told = known == UNREADABLE;
        let changed: Result<_, TrustError> = self
            .store
            .read(move |connection| match standing::mark(connection)? == known {
                true => Ok(None),
                false => read(connection).map(Some),
            })
            .await;
        match changed {
            Ok(None) => false,
            Ok(Some(now)) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = now;
                true
            }
            Err(_) if told => false,
            Err(error) => {
                tracing::error!(%error, "the state of trust cannot be read");
                false
            }
        }
    }
}

fn read(connection: &rusqlite::Connection) -> Result<(String, Arc<Standing>), TrustError> {
    Ok((standing::mark(connection)?, Arc::new(Standing::load(connection)?)))
}

/// Ends what may not run any more, as the policy says: at once, or after the answers under way.
pub(crate) async fn enforce(app: &App) {
    let standing = app.standing();
    let now_s = app.state().clock().now_s();
    for model in app.models().in_engine() {
        if let Err(barred) = check(&standing, &model, now_s) {
            let how = standing.policy().running_answers();
            tracing::warn!(model = model.name, reason = %barred, "a model is taken out of the engine");
            if let Err(error) = record(app, &model, &barred).await {
                tracing::error!(%error, "the end of a model was not recorded");
            }
            app.models().retire(&model, how).await;
        }
    }
}

fn check(standing: &Standing, model: &LoadedModel, now_s: i64) -> Result<(), Barred> {
    standing.check_model(&model.digests)?;
    standing.check_device(now_s)
}

async fn record(app: &App, model: &LoadedModel, barred: &Barred) -> Result<(), AuditError> {
    let at_s = app.state().clock().now_s();
    let (name, reason) = (model.name.clone(), barred.to_string());
    let digest = model.digest;
    app.state()
        .store()
        .write(move |tx| {
            let event = Event {
                at_s,
                actor: "policy",
                action: "model.end",
                resource: &name,
                outcome: Outcome::Completed,
                opened: None,
                detail: json!({ "digest": digest, "reason": reason }),
            };
            state::record(tx, &event).map(|_| ())
        })
        .await
}

/// Looks for changes, ends what they end, and notes how long the agent runs without a word from its
/// fleet.
pub(crate) async fn keep(app: Arc<App>, stop: CancellationToken) {
    let mut noted = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stop.cancelled() => break,
        }
        app.refresh_standing().await;
        if noted.elapsed() >= NOTE_INTERVAL {
            note(&app, &mut noted).await;
        }
        enforce(&app).await;
        damage::look(&app).await;
        take_drafts_up(&app).await;
    }
    note(&app, &mut noted).await;
}

/// Loads again what runs without its draft, once that is here: a release and its draft come in any
/// order.
async fn take_drafts_up(app: &App) {
    for name in app.models().release_for_drafts().await {
        let now_s = app.state().clock().now_s();
        match app.models().loaded(&name, &app.standing(), now_s).await {
            Ok(model) => tracing::info!(model = model.name, "a model's draft came after it"),
            Err(error) => tracing::warn!(model = name, %error, "a model was not loaded again"),
        }
    }
}

async fn note(app: &App, noted: &mut Instant) {
    let more_s = noted.elapsed().as_secs();
    *noted = Instant::now();
    let Some(heard_s) = app.standing().heard_s() else { return };
    let written: Result<(), TrustError> =
        app.state().store().write(move |tx| standing::note_running(tx, heard_s, more_s)).await;
    match written {
        Ok(()) => app.reread_standing().await,
        Err(error) => tracing::error!(%error, "the running time was not noted"),
    }
}
