//! Devices and join tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use fulmar_policy::Action;
use fulmar_protocol::JoinToken;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::page_len;
use crate::app::App;
use crate::auth::Operator;
use crate::body::Body;
use crate::failure::Failure;
use crate::{act, fleet, groups, hand_in, join, mirror, now_s, reports, rollout, witness};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    #[serde(default)]
    after: String,
    group: Option<String>,
    limit: Option<u32>,
}

fn with_state(app: &App, device: &fleet::DeviceRow) -> Value {
    let mut value = json!(device);
    value["state"] = device.state(now_s(), app.config.check_in_interval_ms).into();
    value
}

/// `GET /api/v1/devices?group=&after=&limit=`; of a group that nobody is in, none.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    operator: Operator,
    Query(page): Query<Page>,
) -> Result<Json<Value>, Failure> {
    let limit = page_len(page.limit);
    let devices = act::read(&app, &operator.principal, Action::FleetRead, "-", move |c| {
        groups::check(page.group.as_slice())?;
        fleet::list(c, &page.after, page.group.as_deref(), limit)
    })
    .await?;
    let next = (devices.len() == limit as usize).then(|| devices.last().map(|d| d.id.clone()));
    let devices: Vec<Value> = devices.iter().map(|d| with_state(&app, d)).collect();
    Ok(Json(json!({ "devices": devices, "next_after": next.flatten() })))
}

/// `GET /api/v1/devices/{id}`.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    let resource = id.clone();
    let read = act::read(&app, &operator.principal, Action::FleetRead, &resource, move |c| {
        let device = fleet::get(c, &id)?.ok_or_else(|| Failure::not_found("device", &id))?;
        let audit = (reports::last_checkpoint(c, &id)?, witness::of(c, &id)?);
        Ok((device, fleet::models(c, &id)?, rollout::desired(c, &id)?, audit))
    });
    let (device, models, desired, (checkpoint, witness)) = read.await?;
    let mut value = with_state(&app, &device);
    value["models"] = json!(models);
    value["desired"] = json!(desired);
    value["audit_checkpoint"] = json!(checkpoint);
    value["audit_log"] = json!(witness);
    Ok(Json(value))
}

/// `POST /api/v1/report-files`: the file of a device without a link, as it wrote it.
pub(super) async fn hand_in(
    State(app): State<Arc<App>>,
    operator: Operator,
    file: axum::body::Bytes,
) -> Result<Json<hand_in::HandedIn>, Failure> {
    act::decide(&app, &operator.principal, Action::SyncNow, "report-files").await?;
    let actor = operator.principal.audit_name();
    let taken = tokio::task::spawn_blocking(move || {
        hand_in::take(&app.store, &app.cosigner, &actor, &file)
    });
    let taken = taken.await.map_err(|e| Failure::internal("take a file of reports", e))?;
    taken.map(Json)
}

/// Removes a device for whoever may.
pub(crate) async fn take_out(
    app: &Arc<App>,
    operator: &Operator,
    id: String,
) -> Result<(), Failure> {
    let resource = id.clone();
    act::change(app, &operator.principal, Action::DeviceRemove, &resource, move |tx| {
        fleet::remove(tx, &id, now_s())?;
        Ok(((), json!({})))
    })
    .await
}

/// `DELETE /api/v1/devices/{id}`.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    take_out(&app, &operator, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Asks a device to sync, for whoever may.
pub(crate) async fn ask_to_sync(
    app: &Arc<App>,
    operator: &Operator,
    id: String,
) -> Result<(), Failure> {
    let resource = id.clone();
    act::change(app, &operator.principal, Action::SyncNow, &resource, move |tx| {
        fleet::request_sync(tx, &id)?;
        Ok(((), json!({})))
    })
    .await
}

/// `POST /api/v1/devices/{id}/sync`: a command for the device's next check-in.
pub(super) async fn sync(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    ask_to_sync(&app, &operator, id).await?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Before {
    before: Option<u64>,
    limit: Option<u32>,
}

/// `GET /api/v1/devices/{id}/audit?before=&limit=`: the device's audit entries, newest first.
pub(super) async fn audit(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(id): Path<String>,
    Query(page): Query<Before>,
) -> Result<Json<Value>, Failure> {
    let resource = id.clone();
    let read = act::read(&app, &operator.principal, Action::AuditRead, &resource, move |c| {
        fleet::get(c, &id)?.ok_or_else(|| Failure::not_found("device", &id))?;
        let filter = reports::Filter {
            device: Some(id.clone()),
            kind: Some("audit".to_owned()),
            before: page.before,
            len_max: page_len(page.limit),
        };
        Ok((reports::list(c, &filter)?, reports::last_checkpoint(c, &id)?))
    });
    let (entries, checkpoint) = read.await?;
    Ok(Json(json!({ "entries": entries, "checkpoint": checkpoint })))
}

/// `GET /api/v1/join-tokens`.
pub(super) async fn join_tokens(
    State(app): State<Arc<App>>,
    operator: Operator,
) -> Result<Json<Value>, Failure> {
    let tokens = act::read(&app, &operator.principal, Action::FleetRead, "join_tokens", |c| {
        join::list(c, super::PAGE_LEN_MAX)
    })
    .await?;
    let now_s = now_s();
    let with_state = |token: &join::JoinTokenRow| {
        let mut value = json!(token);
        value["state"] = token.state(now_s).into();
        value
    };
    let tokens: Vec<Value> = tokens.iter().map(with_state).collect();
    Ok(Json(json!({ "join_tokens": tokens })))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewJoinToken {
    #[serde(default)]
    pub(crate) note: String,
    pub(crate) life_s: Option<i64>,
    #[serde(default)]
    pub(crate) groups: Vec<String>,
}

/// A join token, told once.
#[derive(Debug, Serialize)]
pub(crate) struct MadeJoinToken {
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) expires_s: i64,
}

/// Makes a join token for whoever may.
pub(crate) async fn make_join_token(
    app: &Arc<App>,
    operator: &Operator,
    request: NewJoinToken,
) -> Result<MadeJoinToken, Failure> {
    let by = operator.principal.subject.clone();
    let made = act::change(app, &operator.principal, Action::JoinTokenCreate, "-", move |tx| {
        let life_s = request.life_s.unwrap_or(join::LIFE_S);
        let (note, groups) = (request.note.as_str(), request.groups.as_slice());
        let new = join::NewToken { by: &by, note, life_s, groups };
        let (id, secret, expires_s) = join::create(tx, &new, now_s())?;
        let detail = json!({
            "join_token": id, "note": note, "expires_s": expires_s, "groups": groups,
        });
        Ok(((id, secret, expires_s, mirror::root_pin(tx)?), detail))
    });
    let (id, secret, expires_s, registry_root) = made.await?;
    let (url, ca_sha256) = (app.device_url.clone(), app.ca.sha256());
    let token = JoinToken { url, ca_sha256, secret, registry_root };
    Ok(MadeJoinToken { id, token: token.encode(), expires_s })
}

/// `POST /api/v1/join-tokens`.
pub(super) async fn create_join_token(
    State(app): State<Arc<App>>,
    operator: Operator,
    Body(request): Body<NewJoinToken>,
) -> Result<(StatusCode, Json<MadeJoinToken>), Failure> {
    Ok((StatusCode::CREATED, Json(make_join_token(&app, &operator, request).await?)))
}

/// Revokes a join token for whoever may.
pub(crate) async fn revoke(app: &Arc<App>, operator: &Operator, id: String) -> Result<(), Failure> {
    let resource = id.clone();
    act::change(app, &operator.principal, Action::JoinTokenCreate, &resource, move |tx| {
        join::revoke(tx, &id, now_s())?;
        Ok(((), json!({ "revoked": id })))
    })
    .await
}

/// `DELETE /api/v1/join-tokens/{id}`.
pub(super) async fn revoke_join_token(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    revoke(&app, &operator, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
