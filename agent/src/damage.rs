//! Files that break while the agent runs: what the engine made of them leaves it at once, the release
//! that served before answers meanwhile, and the model comes back when its files are whole again.
//!
//! A fleet's device fetches them by its link. One without a fleet asks the hub or registry that the
//! model was pulled from; where there is none, `fulmar doctor` says what to pull.

use std::time::Duration;

use anyhow::Context as _;
use fulmar_policy::audit::{AuditError, Event, Outcome};
use fulmar_registry::Digest;
use fulmar_registry::catalog::{self, CatalogError, Filter, Installed, Slot};
use fulmar_registry::fetch::Pace;
use fulmar_registry::import::hugging_face::Hub;
use fulmar_registry::import::{again, unpack};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::app::App;
use crate::models::{LoadedModel, ModelError};
use crate::{causes, import, state};

/// How often broken models are looked for while nobody says that one is.
const LOOK_INTERVAL: Duration = Duration::from_secs(600);
/// After a failure nobody is asked again before.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);

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

/// On a device without a fleet: fetches files of active models that broke from where they came.
/// `broken` wakes it.
pub(crate) async fn fetch_again(app: &App, broken: &Notify) {
    loop {
        tokio::select! {
            () = broken.notified() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let mut failed = false;
        for model in incomplete(app).await {
            let name = model.name().to_string();
            match refetch(app, &model).await {
                Ok(()) => tracing::info!(model = name, "a damaged model was fetched again"),
                Err(error) => {
                    failed = true;
                    let reason = causes::line(error.as_ref());
                    tracing::error!(model = name, reason, "a damaged model was not fetched again");
                }
            }
        }
        if failed {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

/// Active models with files that are gone.
async fn incomplete(app: &App) -> Vec<Installed> {
    let blobs = app.models().registry().blobs().clone();
    let filter = Filter { slot: Some(Slot::Active), ..Filter::default() };
    let listed: Result<_, CatalogError> =
        app.state().store().read(move |connection| catalog::list(connection, &filter)).await;
    let mut models = listed.unwrap_or_else(|error| {
        tracing::warn!(%error, "damaged models were not looked for");
        Vec::new()
    });
    models.retain(|model| {
        model.manifest.files.iter().any(|file| !blobs.contains(&file.digest, file.size_bytes))
    });
    models
}

async fn refetch(app: &App, model: &Installed) -> anyhow::Result<()> {
    let registry = app.models().registry();
    let hub = Hub::from_environment();
    let found = again::resolve(registry.blobs(), &hub, &model.manifest).await?;
    let (remote, resolved) = found.context(
        "find where it came from: its manifest names no hub or registry; `fulmar doctor` says what \
         to do",
    )?;
    let link = &app.config().sync;
    import::check_cost(registry, &resolved, link)?;
    let pace = Pace::new(link.download_bytes_per_s_max);
    let _hold = remote.fetch_all(registry, &resolved, &pace).await?;
    let unpacked = registry.clone();
    tokio::task::spawn_blocking(move || unpack(&unpacked, resolved)).await??;
    again::check(registry.blobs(), &model.manifest)?;
    let detail = json!({ "digest": model.digest, "source": model.manifest.source });
    record(app, "model.repair", model.name().to_string(), detail).await?;
    Ok(())
}

async fn end(app: &App, ends: &(dyn Fn(&LoadedModel) -> bool + Sync), reason: &'static str) {
    for model in app.models().in_engine() {
        if !ends(&model) {
            continue;
        }
        tracing::error!(model = model.name, reason, "a model is taken out of the engine");
        let detail = json!({ "digest": model.digest, "reason": reason });
        if let Err(error) = record(app, "model.end", model.name.clone(), detail).await {
            tracing::error!(%error, "the end of a model was not recorded");
        }
        app.models().unload_damaged(&model).await;
        // Sends for the bytes, and has the release before serve meanwhile.
        if let Err(error) = app.loaded(&model.name).await {
            tracing::error!(model = model.name, %error, "no whole release of it is here");
        }
    }
}

async fn record(
    app: &App,
    action: &'static str,
    name: String,
    detail: Value,
) -> Result<(), AuditError> {
    let at_s = app.state().clock().now_s();
    app.state()
        .store()
        .write(move |tx| {
            let event = Event {
                at_s,
                actor: "system",
                action,
                resource: &name,
                outcome: Outcome::Completed,
                opened: None,
                detail,
            };
            state::record(tx, &event).map(|_| ())
        })
        .await
}
