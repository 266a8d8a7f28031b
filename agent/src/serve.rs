//! The agent's life: open, verify, serve, drain.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fulmar_inference::backend::WeightCopies;
use fulmar_inference::engine::Engine;
use fulmar_policy::audit::{self, AuditError, Event, Outcome};
use fulmar_registry::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::Config;
use crate::http::{self, Listeners};
use crate::models::Models;
use crate::state::{self, State};
use crate::{causes, governor, import, standing, systemd};

/// How often the audit log is signed while it grows.
const SIGN_INTERVAL: Duration = Duration::from_secs(10);

/// What `fulmar serve` is told.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) config: Config,
    pub(crate) dir: PathBuf,
    /// One file or folder to serve, without a fleet.
    pub(crate) model: Option<PathBuf>,
    /// One that guesses ahead for it.
    pub(crate) draft_model: Option<PathBuf>,
    /// Print one line of JSON when ready.
    pub(crate) ready_json: bool,
    /// What ends it, besides signals.
    pub(crate) lifetime: Lifetime,
}

/// What ends the agent, besides SIGTERM and SIGINT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Nothing.
    Service,
    /// The end of its standard input: for a process that must not outlive the one that started it.
    StandardInput,
}

/// Opens what the agent needs, without serving it.
///
/// # Errors
/// What could not be opened.
pub(crate) fn open(config: Config, dir: &Path) -> anyhow::Result<Arc<App>> {
    config.check()?;
    let state = State::open(dir)?;
    let limits = fulmar_registry::Options { blob_bytes_max: config.registry.blobs_bytes_max };
    let registry = Registry::open(&state.registry_dir(), state.store().clone(), &limits)?;
    let copies = WeightCopies::new(registry.blobs().copies_dir(), state.weights_key());
    let engine = Engine::start(config.engine.options(copies))?;
    let drafts = config.engine.drafts();
    let models = Models::new(state.store().clone(), registry, engine.clone(), drafts);
    Ok(Arc::new(App::new(config, state, engine, models)?))
}

/// Serves until told to stop, then drains.
///
/// # Errors
/// What could not be opened, or what stopped the agent early.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let mut config = options.config;
    if let (Some(model), Some(draft)) = (&options.model, &options.draft_model) {
        let (model, draft) = (import::name_of(model)?, import::name_of(draft)?);
        config.engine.drafts.insert(model.to_string(), draft);
    }
    let app = open(config, &options.dir)?;
    begin(&app).await?;
    if let Some(file) = &options.draft_model {
        let model = import::serve_file(&app, file).await?;
        tracing::info!(model, "guesses ahead");
    }
    if let Some(file) = &options.model {
        let model = import::serve_file(&app, file).await?;
        tracing::info!(model, "serving one file");
    }
    let listeners = Listeners::open(&app.config().http, &app.state().socket()).await?;
    let addresses = listeners.addresses();
    let stop = CancellationToken::new();
    let link = app.link().start(&app, stop.clone())?;
    let http = tokio::spawn({
        let (app, stop) = (Arc::clone(&app), stop.clone());
        let router = http::router(Arc::clone(&app));
        async move { http::serve(listeners, router, &app.config().http.clone(), stop).await }
    });
    let governed = tokio::spawn(governor::run(
        app.config().governor.clone(),
        app.engine().clone(),
        app.board().clone(),
        stop.clone(),
    ));
    let background = tokio::spawn(keep_signed(Arc::clone(&app), stop.clone()));
    let standing = tokio::spawn(standing::keep(Arc::clone(&app), stop.clone()));
    let watchdog = tokio::spawn(systemd::watchdog(stop.clone()));
    warm(&app).await;
    for address in &addresses {
        tracing::info!(url = %format!("http://{address}/v1"), "serving");
    }
    if options.ready_json {
        let urls: Vec<String> = addresses.iter().map(|a| format!("http://{a}/v1")).collect();
        println!("{}", json!({ "api_urls": urls, "device": app.state().device() }));
    }
    systemd::ready();
    stop_signal(options.lifetime).await?;
    tracing::info!("stopping: answers under way may end");
    systemd::stopping();
    stop.cancel();
    http.await.context("drain the connections")?;
    app.answers().close();
    app.answers().wait().await;
    link.await.context("stop the link")?;
    governed.await.context("stop the governor")?;
    background.await.context("stop signing")?;
    standing.await.context("stop watching the policy")?;
    watchdog.await.context("stop the watchdog")?;
    end(&app).await?;
    Ok(())
}

/// Waits for SIGTERM, SIGINT, or the end of what the agent lives for.
pub(crate) async fn stop_signal(lifetime: Lifetime) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stdin_closed(), if lifetime == Lifetime::StandardInput => {}
    }
    Ok(())
}

/// Waits until standard input ends. It is read on a thread of its own, which the process need not
/// wait for when something else ends it first.
async fn stdin_closed() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = sender.send(());
    });
    let _ = receiver.await;
}

/// Records the start, and closes what an earlier process left open when it was cut off.
async fn begin(app: &App) -> anyhow::Result<()> {
    let at_s = app.state().clock().now_s();
    app.state()
        .store()
        .write::<_, AuditError, _>(move |tx| {
            for entry in audit::unfinished(tx)? {
                let event = Event {
                    at_s,
                    actor: "system",
                    action: &entry.action,
                    resource: &entry.resource,
                    outcome: Outcome::Failed,
                    opened: Some(entry.seq),
                    detail: json!({ "reason": "the agent stopped before this ended" }),
                };
                state::record(tx, &event)?;
            }
            record_system(tx, at_s, "agent.start", json!({ "version": env!("CARGO_PKG_VERSION") }))
        })
        .await?;
    app.state().sign_audit_log().await?;
    Ok(())
}

async fn end(app: &App) -> anyhow::Result<()> {
    let at_s = app.state().clock().now_s();
    app.state()
        .store()
        .write::<_, AuditError, _>(move |tx| record_system(tx, at_s, "agent.stop", json!({})))
        .await?;
    app.state().sign_audit_log().await?;
    Ok(())
}

fn record_system(
    tx: &rusqlite::Transaction<'_>,
    at_s: i64,
    action: &str,
    detail: serde_json::Value,
) -> Result<(), AuditError> {
    let event = Event {
        at_s,
        actor: "system",
        action,
        resource: "-",
        outcome: Outcome::Completed,
        opened: None,
        detail,
    };
    state::record(tx, &event).map(|_| ())
}

/// Loads the active models, so that the first question does not wait. What does not fit or does
/// not verify is told again to whoever asks for it.
async fn warm(app: &App) {
    let Ok(models) = app.models().installed().await else { return };
    for model in models {
        if model.slot == Some(fulmar_registry::Slot::Active)
            // It is loaded beside the model that it guesses for.
            && !app.models().drafts().is_draft(&model.name)
            && let Err(error) = app.loaded(&model.name).await
        {
            tracing::warn!(
                model = model.name,
                error = causes::line(&error),
                "an active model is not loaded"
            );
        }
    }
}

/// Signs the audit log as it grows.
async fn keep_signed(app: Arc<App>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SIGN_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = app.state().sign_audit_log().await {
            tracing::error!(%error, "the audit log was not signed");
        }
    }
}
