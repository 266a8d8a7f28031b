//! The agent's view of its link to the control plane: starts it for members of a fleet, and does
//! for it what only the agent can: try a model out, serve what is active.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Context as _;
use fulmar_inference::engine::{Prompt, Request, Sampling};
use fulmar_protocol::DeviceFacts;
use fulmar_registry::manifest::Health;
use fulmar_registry::{Digest, VerifiedModel};
use fulmar_sync::{Checked, Deps, Hooks, Identity, Sync};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::models::{LoadedModel, ModelError};
use crate::{causes, damage, standing};

/// Tokens of a golden prompt's answer at most.
const GOLDEN_TOKENS_MAX: u32 = 256;

/// The link; nothing on a device that belongs to no fleet.
#[derive(Debug, Default)]
pub(crate) struct Link {
    sync: Mutex<Option<Sync>>,
    /// Wakes who mends models on a device of no fleet.
    broken: Notify,
}

impl Link {
    /// Starts meeting the control plane, on a device that belongs to a fleet.
    ///
    /// # Errors
    /// When the device's identity or the state of trust cannot be read.
    pub(crate) fn start(
        &self,
        app: &Arc<App>,
        stop: CancellationToken,
    ) -> anyhow::Result<JoinHandle<()>> {
        let identity_path = app.state().identity_path();
        let Some(identity) = Identity::load(&identity_path)? else {
            let (app, interval_s) = (Arc::clone(app), app.config().registry.scrub_interval_s);
            return Ok(tokio::spawn(async move {
                let told = |corrupt: Vec<Digest>| {
                    tracing::error!("models are damaged: `fulmar doctor` says what to do");
                    let app = Arc::clone(&app);
                    async move {
                        damage::found(&app, &corrupt).await;
                        app.link().repair();
                    }
                };
                let blobs = app.models().registry().blobs().clone();
                let scrub = fulmar_sync::scrub(blobs, interval_s, told);
                let mend = damage::fetch_again(&app, &app.link().broken);
                stop.run_until_cancelled(async { tokio::join!(scrub, mend) }).await;
            }));
        };
        let mut options = fulmar_sync::Options::default();
        let settings = &app.config().sync;
        options.downloads.bytes_per_s_max = settings.download_bytes_per_s_max;
        options.downloads.metered_bytes_max = settings.metered_bytes_max;
        options.cost = settings.link_cost;
        options.blob_urls.clone_from(&settings.blob_urls);
        options.scrub_interval_s = app.config().registry.scrub_interval_s;
        let sync = Sync::new(Deps {
            identity,
            identity_path,
            registry: app.models().registry().clone(),
            clock: Arc::clone(app.state().clock()),
            facts: facts(),
            hooks: hooks(app),
            options,
        })?;
        *self.lock() = Some(sync.clone());
        Ok(tokio::spawn(sync.run(stop)))
    }

    /// What `fulmar status` shows.
    pub(crate) fn status(&self) -> Value {
        match &*self.lock() {
            None => json!({ "state": "unenrolled" }),
            Some(sync) => {
                let status = sync.status();
                let state = match status.link {
                    fulmar_sync::Link::Online { .. } => "online",
                    fulmar_sync::Link::Offline { .. } => "offline",
                };
                let mut value = serde_json::to_value(status).unwrap_or(Value::Null);
                value["state"] = state.into();
                value
            }
        }
    }

    /// Asks for a check-in now; says whether there is anybody to check in with.
    pub(crate) fn nudge(&self) -> bool {
        self.lock().as_ref().map(Sync::nudge).is_some()
    }

    /// Looks at what is here against what should be, now: something was found broken.
    pub(crate) fn repair(&self) {
        match &*self.lock() {
            Some(sync) => sync.reconcile(),
            None => self.broken.notify_one(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Sync>> {
        // Set once, read after: whole whatever panics.
        self.sync.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this device is.
pub(crate) fn facts() -> DeviceFacts {
    let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    DeviceFacts {
        arch: std::env::consts::ARCH.into(),
        os: pretty.unwrap_or(std::env::consts::OS).trim_matches('"').chars().take(100).collect(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: crate::engine::memory_bytes(),
    }
}

/// The hooks hold the agent weakly: the agent holds the link.
fn hooks(app: &Arc<App>) -> Hooks {
    let (check, changed, running) = (Arc::downgrade(app), Arc::downgrade(app), Arc::downgrade(app));
    let damaged = Arc::downgrade(app);
    Hooks {
        check: Box::new(move |model| Box::pin(try_out(check.clone(), model))),
        changed: Box::new(move || Box::pin(serve_active(changed.clone()))),
        damaged: Box::new(move |corrupt| {
            let app = damaged.clone();
            Box::pin(async move {
                if let Some(app) = app.upgrade() {
                    damage::found(&app, &corrupt).await;
                }
            })
        }),
        running: Box::new(move || {
            running.upgrade().map_or_else(BTreeSet::new, |app| app.models().running())
        }),
    }
}

/// Serves what is active now, drops what is not.
async fn serve_active(app: Weak<App>) {
    let Some(app) = app.upgrade() else { return };
    // First what the policy ends, in the policy's way.
    app.refresh_standing().await;
    standing::enforce(&app).await;
    if let Err(error) = app.models().unload_inactive().await {
        tracing::warn!(error = %error, "models that are no longer active stay loaded");
    }
}

/// Loads a model and holds it against its health contract.
async fn try_out(app: Weak<App>, model: VerifiedModel) -> Checked {
    let Some(app) = app.upgrade() else {
        return Checked::NotNow { reason: "the agent is stopping".into() };
    };
    let health = model.manifest.health.clone();
    let loaded = match app.models().load_verified(model).await {
        Ok(loaded) => loaded,
        // It may fit when another model has gone; a file the engine cannot read never will.
        Err(error @ ModelError::NoRoom { .. }) => {
            return Checked::NotNow { reason: error.to_string() };
        }
        Err(error) => {
            return Checked::Unhealthy { reason: causes::line(&error) };
        }
    };
    match keep_contract(&app, &loaded, &health).await {
        Ok(()) => Checked::Healthy,
        Err(reason) => {
            app.models().unload(&loaded).await;
            Checked::Unhealthy { reason }
        }
    }
}

/// Asks the golden prompts; all answers must be as expected, and fast enough.
async fn keep_contract(app: &App, model: &LoadedModel, health: &Health) -> Result<(), String> {
    for golden in &health.prompts {
        let request = Request {
            model: model.engine_name.clone(),
            prompt: Prompt::Chat {
                messages: vec![json!({ "role": "user", "content": golden.prompt })],
                tools: None,
                template_kwargs: Value::Null,
            },
            sampling: Sampling::greedy(),
            max_tokens: Some(GOLDEN_TOKENS_MAX),
            principal: "health contract".into(),
            ..Request::default()
        };
        let mut answer = app.engine().generate(request).await.map_err(|e| e.to_string())?;
        let mut text = String::new();
        let mut speed = f64::INFINITY;
        while let Some(event) = answer.next().await {
            match event {
                fulmar_inference::engine::Event::Token { text: more, .. } => text += &more,
                fulmar_inference::engine::Event::Done { usage, .. } => {
                    if usage.decode_us > 0 && usage.completion_tokens > 1 {
                        speed = crate::http::tokens_per_s(&usage);
                    }
                }
                fulmar_inference::engine::Event::Failed { message } => return Err(message),
                fulmar_inference::engine::Event::Started { .. } => {}
            }
        }
        if text.trim() != golden.expected.trim() {
            return Err(format!(
                "it answered {text:?} to the golden prompt {:?}, expected {:?}",
                golden.prompt, golden.expected
            ));
        }
        // 0 where the contract names no speed.
        let least = health.tokens_per_second_min;
        if speed < least {
            return Err(format!("it gave {speed:.1} tokens/s, at least {least} are expected"));
        }
    }
    Ok(())
}

/// Reads a join token that was handed over in a file or as text.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn join_token(text_or_file: &str) -> anyhow::Result<String> {
    match text_or_file.strip_prefix('@') {
        Some(path) => Ok(std::fs::read_to_string(Path::new(path))
            .with_context(|| format!("read the join token in {path}"))?
            .trim()
            .to_owned()),
        None => Ok(text_or_file.trim().to_owned()),
    }
}
