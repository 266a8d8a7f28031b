//! Routes of our own: what the command line asks a running agent.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use fulmar_policy::audit::{AuditError, Event, Outcome};
use fulmar_policy::{Action, Denied, Permit, Principal};
use serde_json::{Value, json};

use super::auth::Caller;
use super::error::ApiError;
use crate::app::App;
use crate::state;

/// Whether the agent answers at all: for probes that have no token, so it says nothing else.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// The device, its link and its models.
pub(crate) async fn status(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
) -> Result<Json<Value>, ApiError> {
    app.policy().decide(&principal, Action::StatusRead, "-")?;
    let engine = app.engine().status();
    let models = app.models().installed().await?;
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": app.state().device(),
        "state_dir": app.state().dir(),
        "policy_version": app.policy().version(),
        "link": app.link().status(),
        "models": models,
        "memory": engine.memory,
        "queue": engine.queue,
        "governor": engine.governor,
    })))
}

/// What the engine does now.
pub(crate) async fn ps(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
) -> Result<Json<Value>, ApiError> {
    app.policy().decide(&principal, Action::StatusRead, "-")?;
    let mut status = serde_json::to_value(app.engine().status())
        .map_err(|error| ApiError::internal("write the engine's status", &error))?;
    let mut refused = app.models().drafts_refused();
    let in_engine = app.models().in_engine();
    for model in status["models"].as_array_mut().into_iter().flatten() {
        let reason = model["name"].as_str().and_then(|name| refused.remove(name));
        model["draft_refused"] = reason.into();
        let same = in_engine.iter().find(|loaded| model["name"] == loaded.engine_name.as_str());
        model["digests"] = json!(same.map(|loaded| &loaded.digests));
    }
    status["sensors"] = json!(app.board().sensors());
    Ok(Json(status))
}

/// Meets the control plane now.
pub(crate) async fn sync_now(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
) -> Result<Json<Value>, ApiError> {
    app.policy().decide(&principal, Action::SyncNow, "-")?;
    let nudged = app.link().nudge();
    Ok(Json(json!({ "nudged": nudged, "link": app.link().status() })))
}

/// The permit to ask the model of this name, complete or short; a refusal is recorded.
///
/// # Errors
/// 403, 404, or 500 when the refusal cannot be recorded.
pub(crate) async fn permit(
    app: &App,
    principal: &Principal,
    model: &str,
) -> Result<Permit, ApiError> {
    let model = app.models().resolve(model).await?;
    match app.policy().decide(principal, Action::ModelRun, &model) {
        Ok(permit) => Ok(permit),
        Err(denied) => {
            record_denied(app, principal, &denied).await?;
            Err(denied.into())
        }
    }
}

/// Records that somebody was refused.
///
/// # Errors
/// 500, when that cannot be recorded.
async fn record_denied(app: &App, principal: &Principal, denied: &Denied) -> Result<(), ApiError> {
    let (actor, denied) = (principal.audit_name(), denied.clone());
    let at_s = app.state().clock().now_s();
    app.state()
        .store()
        .write::<_, AuditError, _>(move |tx| {
            let event = Event {
                at_s,
                actor: &actor,
                action: denied.action.as_str(),
                resource: &denied.resource,
                outcome: Outcome::Denied,
                opened: None,
                detail: json!({ "reason": denied.reason, "policy_version": denied.policy_version }),
            };
            state::record(tx, &event).map(|_| ())
        })
        .await
        .map_err(|error| ApiError::internal("record a refusal", &error))
}
