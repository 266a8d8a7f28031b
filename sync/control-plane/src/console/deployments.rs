//! Deployments: made, watched and stopped in the browser.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use fulmar_policy::Action;
use serde::Deserialize;

use super::form::Fields;
use super::format::{bytes, short, time};
use super::{Live, PageFailure, Seen, Shell, Visitor, may, render};
use crate::app::App;
use crate::deploy::{All, Devices, Groups, Order, UseAs};
use crate::failure::Failure;
use crate::groups::{self, GroupRow};
use crate::{act, fleet, operator, rollout};

/// Deployments on the page.
const DEPLOYMENTS_MAX: u32 = 100;
/// Devices to choose from, and in one deployment's list.
const DEVICES_MAX: u32 = 500;

struct Row {
    id: i64,
    model: String,
    release: u64,
    digest: String,
    use_as: &'static str,
    scope: String,
    state: &'static str,
    devices: u64,
    done: u64,
    failed: u64,
    created: String,
    created_by: String,
    stopped: Option<String>,
    can_stop: bool,
}

impl From<rollout::DeploymentRow> for Row {
    fn from(row: rollout::DeploymentRow) -> Self {
        Self {
            state: row.state(),
            can_stop: row.can_stop(),
            id: row.id,
            release: row.release,
            digest: short(&row.digest),
            use_as: row.use_as,
            scope: match row.scope.as_str() {
                "all" => "all devices".to_owned(),
                "groups" => format!("groups {}", row.groups.join(", ")),
                _ => "chosen devices".to_owned(),
            },
            devices: row.devices,
            done: row.done,
            failed: row.failed,
            created: time(row.created_s),
            stopped: row
                .stopped_s
                .map(|at_s| format!("{} by {}", time(at_s), row.stopped_by.unwrap_or_default())),
            model: row.model,
            created_by: row.created_by,
        }
    }
}

#[derive(Template)]
#[template(path = "deployments_live.html")]
struct Part {
    rows: Vec<Row>,
}

struct Choice {
    value: String,
    label: String,
    chosen: bool,
}

#[derive(Template)]
#[template(path = "deployments.html")]
struct Page {
    shell: Shell,
    live: Live,
    may_create: bool,
    models: Vec<Choice>,
    devices: Vec<Choice>,
    groups: Vec<GroupRow>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Chosen {
    #[serde(default)]
    model: String,
}

async fn part(app: &Arc<App>, visitor: &Visitor) -> Result<Live, PageFailure> {
    let rows = act::read(app, &visitor.0.principal, Action::FleetRead, "-", |c| {
        rollout::deployments(c, DEPLOYMENTS_MAX)
    })
    .await?;
    Live::new("/deployments/live", &Part { rows: rows.into_iter().map(Row::from).collect() })
}

/// `GET /deployments`.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Query(chosen): Query<Chosen>,
) -> Result<Response, PageFailure> {
    let live = part(&app, &visitor).await?;
    let read = act::read(&app, &visitor.0.principal, Action::FleetRead, "-", |c| {
        let devices = fleet::list(c, "", None, DEVICES_MAX)?;
        Ok((rollout::releases(c, None, DEVICES_MAX)?, devices, groups::list(c)?))
    });
    let (releases, devices, groups) = read.await?;
    let model = |release: &rollout::ReleaseRow| Choice {
        value: release.model.clone(),
        label: format!("{}, release {}", release.model, release.release),
        chosen: release.model == chosen.model,
    };
    let device = |device: &fleet::DeviceRow| Choice {
        value: device.id.clone(),
        label: format!("{} ({})", device.name, device.id),
        chosen: false,
    };
    render(&Page {
        shell: Shell::new("deployments", &visitor),
        live,
        may_create: may(&app, &visitor, Action::DeploymentCreate),
        models: releases.iter().filter(|r| r.withdrawn_s.is_none()).map(model).collect(),
        devices: devices.iter().map(device).collect(),
        groups,
    })
}

/// `GET /deployments/live`.
pub(super) async fn live(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Query(seen): Query<Seen>,
) -> Result<Response, PageFailure> {
    part(&app, &visitor).await?.unless_seen(&seen)
}

/// `POST /deployments`.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    fields: Fields,
) -> Result<Response, PageFailure> {
    let devices = match fields.one("scope") {
        "all" => Devices::All(All::All),
        "chosen" => Devices::These(fields.all("device")),
        "groups" => Devices::In(Groups { groups: fields.all("group") }),
        other => {
            let message = format!("the field scope is {other:?}, expected all, groups or chosen");
            return Err(Failure::invalid("form_invalid", message).into());
        }
    };
    let order = Order {
        model: fields.one("model").to_owned(),
        digest: None,
        devices,
        use_as: fields.word::<UseAs>("use_as")?,
    };
    let created = operator::deployments::make(&app, &visitor.0, order).await?;
    Ok(Redirect::to(&format!("/deployments/{}", created.id)).into_response())
}

struct DeviceState {
    id: String,
    name: String,
    state: String,
    bytes_done: u64,
    bytes_total: u64,
    progress: String,
    reason: String,
    done: String,
}

#[derive(Template)]
#[template(path = "deployment_live.html")]
struct ShowPart {
    row: Row,
    devices: Vec<DeviceState>,
    may_stop: bool,
}

#[derive(Template)]
#[template(path = "deployment.html")]
struct ShowPage {
    shell: Shell,
    id: i64,
    live: Live,
}

async fn show_part(app: &Arc<App>, visitor: &Visitor, id: i64) -> Result<Live, PageFailure> {
    let resource = id.to_string();
    let read = act::read(app, &visitor.0.principal, Action::FleetRead, &resource, move |c| {
        let row =
            rollout::deployment(c, id)?.ok_or_else(|| Failure::not_found("deployment", id))?;
        Ok((row, rollout::deployment_devices(c, id, DEVICES_MAX)?))
    });
    let (row, devices) = read.await?;
    let device = |device: rollout::DeploymentDevice| DeviceState {
        progress: format!("{} of {}", bytes(device.bytes_done), bytes(device.bytes_total)),
        id: device.device_id,
        name: device.name,
        state: device.state,
        bytes_done: device.bytes_done,
        bytes_total: device.bytes_total,
        reason: device.reason.unwrap_or_default(),
        done: device.done_s.map(time).unwrap_or_default(),
    };
    let part = ShowPart {
        row: row.into(),
        devices: devices.into_iter().map(device).collect(),
        may_stop: may(app, visitor, Action::DeploymentStop),
    };
    Live::new(format!("/deployments/{id}/live"), &part)
}

/// `GET /deployments/{id}`.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path(id): Path<i64>,
) -> Result<Response, PageFailure> {
    let live = show_part(&app, &visitor, id).await?;
    render(&ShowPage { shell: Shell::new("deployments", &visitor), id, live })
}

/// `GET /deployments/{id}/live`.
pub(super) async fn show_live(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path(id): Path<i64>,
    Query(seen): Query<Seen>,
) -> Result<Response, PageFailure> {
    show_part(&app, &visitor, id).await?.unless_seen(&seen)
}

/// `POST /deployments/{id}/stop`.
pub(super) async fn stop(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path(id): Path<i64>,
) -> Result<Response, PageFailure> {
    operator::deployments::end(&app, &visitor.0, id).await?;
    Ok(Redirect::to(&format!("/deployments/{id}")).into_response())
}
