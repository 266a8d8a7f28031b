//! Files that break while the agent runs: what the engine made of them leaves it at once, the release
//! that served before answers meanwhile, and the model comes back when its files are whole again.
//!
//! A fleet's device fetches them by itself; on one without a fleet `fulmar doctor` says what to pull.

use fulmar_policy::audit::{AuditError, Event, Outcome};
use fulmar_registry::Digest;
use serde_json::json;

use crate::app::App;
use crate::models::{LoadedModel, ModelError};
use crate::state;

/// The scrub found these blobs broken; they are in quarantine.
pub(crate) async fn found(app: &App, corrupt: &[Digest]) {
    let broken = |model: &LoadedModel| model.digests.iter().any(|d| corrupt.contains(d));
    end(app, &broken, "one of its files was found broken").await;
}

/// Ends what runs from files that another process took out of the store, and brings back what is
/// whole again.
pub(crate) async fn look(app: &App) {
    let blobs = app.models().registry().blobs();
    let gone = |model: &LoadedModel| model.files.iter().any(|d| !blobs.path(d).exists());
    end(app, &gone, "one of its files is gone").await;
    for name in app.models().damaged() {
        let now_s = app.state().clock().now_s();
        match app.models().loaded(&name, &app.standing(), now_s).await {
            Ok(_) => tracing::info!(model = name, "a damaged model is whole again"),
            // Not yet.
            Err(ModelError::Verify { .. }) => continue,
            Err(error) => {
                tracing::warn!(model = name, %error, "a damaged model does not come back")
            }
        }
        app.models().mended(&name);
        if let Err(error) = app.models().unload_inactive().await {
            tracing::warn!(%error, "models that are no longer active stay loaded");
        }
    }
}

async fn end(app: &App, ends: &(dyn Fn(&LoadedModel) -> bool + Sync), reason: &'static str) {
    for model in app.models().in_engine() {
        if !ends(&model) {
            continue;
        }
        tracing::error!(model = model.name, reason, "a model is taken out of the engine");
        if let Err(error) = record(app, &model, reason).await {
            tracing::error!(%error, "the end of a model was not recorded");
        }
        app.models().unload_damaged(&model).await;
        // Sends for the bytes, and has the release before serve meanwhile.
        if let Err(error) = app.loaded(&model.name).await {
            tracing::error!(model = model.name, %error, "no whole release of it is here");
        }
    }
}

async fn record(app: &App, model: &LoadedModel, reason: &'static str) -> Result<(), AuditError> {
    let at_s = app.state().clock().now_s();
    let (name, digest) = (model.name.clone(), model.digest);
    app.state()
        .store()
        .write(move |tx| {
            let event = Event {
                at_s,
                actor: "system",
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
