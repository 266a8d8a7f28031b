//! Groups of devices.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use fulmar_policy::Action;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::Operator;
use crate::body::Body;
use crate::failure::Failure;
use crate::groups::{self, CHANGED_MAX, Change, Changed};
use crate::{act, now_s};

/// `GET /api/v1/groups`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    operator: Operator,
) -> Result<Json<Value>, Failure> {
    let groups =
        act::read(&app, &operator.principal, Action::FleetRead, "groups", groups::list).await?;
    Ok(Json(json!({ "groups": groups })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Members {
    /// Ids of devices, or names that one device alone has.
    devices: Vec<String>,
}

/// `POST /api/v1/groups/{name}/devices`: puts devices into the group.
pub(super) async fn join(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(name): Path<String>,
    Body(request): Body<Members>,
) -> Result<Json<Value>, Failure> {
    members(&app, &operator, &name, request.devices, Change::Join(name.clone())).await
}

/// `DELETE /api/v1/groups/{name}/devices/{id}`: takes a device out of the group.
pub(super) async fn leave(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path((name, id)): Path<(String, String)>,
) -> Result<Json<Value>, Failure> {
    members(&app, &operator, &name, vec![id], Change::Leave(name.clone())).await
}

async fn members(
    app: &Arc<App>,
    operator: &Operator,
    group: &str,
    devices: Vec<String>,
    change: Change,
) -> Result<Json<Value>, Failure> {
    if devices.is_empty() || devices.len() > CHANGED_MAX {
        return Err(Failure::invalid(
            "devices_invalid",
            format!("devices has {} entries, expected 1 to {CHANGED_MAX}", devices.len()),
        ));
    }
    groups::check(std::slice::from_ref(&group.to_owned()))?;
    let by = operator.principal.subject.clone();
    let changed = act::change(app, &operator.principal, Action::DeviceGroup, group, move |tx| {
        let at_s = now_s();
        let each = devices.iter().map(|device| groups::change(tx, device, &change, &by, at_s));
        let changed = each.collect::<Result<Vec<Changed>, Failure>>()?;
        let detail = json!({ "devices": changed });
        Ok((changed, detail))
    });
    Ok(Json(json!({ "devices": changed.await? })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Names {
    groups: Vec<String>,
}

/// Says which groups a device is in, for whoever may.
pub(crate) async fn put(
    app: &Arc<App>,
    operator: &Operator,
    id: String,
    names: Vec<String>,
) -> Result<Changed, Failure> {
    let by = operator.principal.subject.clone();
    let resource = id.clone();
    act::change(app, &operator.principal, Action::DeviceGroup, &resource, move |tx| {
        let changed = groups::change(tx, &id, &Change::Set(names), &by, now_s())?;
        let detail = json!(changed);
        Ok((changed, detail))
    })
    .await
}

/// `PUT /api/v1/devices/{id}/groups`: the device is in these groups and no others.
pub(super) async fn set(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(id): Path<String>,
    Body(request): Body<Names>,
) -> Result<Json<Changed>, Failure> {
    Ok(Json(put(&app, &operator, id, request.groups).await?))
}
