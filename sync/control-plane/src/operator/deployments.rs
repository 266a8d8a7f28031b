//! Deployments.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use fulmar_policy::Action;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::page_len;
use crate::app::App;
use crate::auth::Operator;
use crate::body::Body;
use crate::failure::Failure;
use crate::{act, deploy, now_s, rollout};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    limit: Option<u32>,
}

/// `GET /api/v1/deployments?limit=`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    operator: Operator,
    Query(page): Query<Page>,
) -> Result<Json<Value>, Failure> {
    let rows = act::read(&app, &operator.principal, Action::FleetRead, "-", move |c| {
        rollout::deployments(c, page_len(page.limit))
    })
    .await?;
    let rows: Vec<Value> = rows.iter().map(with_state).collect();
    Ok(Json(json!({ "deployments": rows })))
}

fn with_state(row: &rollout::DeploymentRow) -> Value {
    let mut value = json!(row);
    value["state"] = row.state().into();
    value
}

/// Makes a deployment for whoever may.
pub(crate) async fn make(
    app: &Arc<App>,
    operator: &Operator,
    order: deploy::Order,
) -> Result<deploy::Created, Failure> {
    let by = operator.principal.subject.clone();
    let resource = order.model.chars().take(200).collect::<String>();
    act::change(app, &operator.principal, Action::DeploymentCreate, &resource, move |tx| {
        let created = deploy::create(tx, &order, &by, now_s())?;
        let detail = json!(created);
        Ok((created, detail))
    })
    .await
}

/// `POST /api/v1/deployments`.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    operator: Operator,
    Body(order): Body<deploy::Order>,
) -> Result<(StatusCode, Json<deploy::Created>), Failure> {
    Ok((StatusCode::CREATED, Json(make(&app, &operator, order).await?)))
}

/// `GET /api/v1/deployments/{id}`.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(id): Path<i64>,
) -> Result<Json<Value>, Failure> {
    let resource = id.to_string();
    let read = act::read(&app, &operator.principal, Action::FleetRead, &resource, move |c| {
        let row =
            rollout::deployment(c, id)?.ok_or_else(|| Failure::not_found("deployment", id))?;
        Ok((row, rollout::deployment_devices(c, id, super::PAGE_LEN_MAX)?))
    });
    let (row, devices) = read.await?;
    let mut value = with_state(&row);
    value["device_states"] = json!(devices);
    Ok(Json(value))
}

/// Stops a deployment for whoever may; returns how many devices went back.
pub(crate) async fn end(app: &Arc<App>, operator: &Operator, id: i64) -> Result<usize, Failure> {
    let by = operator.principal.subject.clone();
    let resource = id.to_string();
    act::change(app, &operator.principal, Action::DeploymentStop, &resource, move |tx| {
        let back = deploy::stop(tx, id, &by, now_s())?;
        Ok((back.len(), json!({ "devices_put_back": back.len() })))
    })
    .await
}

/// `POST /api/v1/deployments/{id}/stop`.
pub(super) async fn stop(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(id): Path<i64>,
) -> Result<Json<Value>, Failure> {
    let back = end(&app, &operator, id).await?;
    Ok(Json(json!({ "devices_put_back": back })))
}
