//! One device: what it should hold, what it holds, what it said.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use fulmar_policy::Action;
use fulmar_protocol::ModelStatus;

use super::audit::{DeviceEntry, entry_of};
use super::form::Fields;
use super::format::{ago, bytes, short, time, words};
use super::{Live, PageFailure, Seen, Shell, Visitor, may, render};
use crate::app::App;
use crate::failure::Failure;
use crate::{act, fleet, groups, now_s, operator, reports, rollout, witness};

/// Reports on the page.
const REPORTS_MAX: u32 = 15;

struct Model {
    name: String,
    digest: String,
    state: &'static str,
    done: String,
    total: String,
    bytes_done: u64,
    bytes_total: u64,
    reason: String,
}

struct Wanted {
    model: String,
    digest: String,
    release: u64,
    use_as: &'static str,
    deployment_id: i64,
}

struct Said {
    seq: u64,
    at: String,
    kind: String,
    text: String,
}

#[derive(Template)]
#[template(path = "device_live.html")]
struct Part {
    state: &'static str,
    facts: Vec<(&'static str, String)>,
    models: Vec<Model>,
    wanted: Vec<Wanted>,
    entries: Option<Vec<DeviceEntry>>,
    checkpoint: Option<(u64, String)>,
    reports: Option<Vec<Said>>,
}

#[derive(Template)]
#[template(path = "device.html")]
struct Page {
    shell: Shell,
    id: String,
    name: String,
    removed: bool,
    live: Live,
    groups: Vec<String>,
    may_group: bool,
    may_sync: bool,
    may_remove: bool,
}

struct Read {
    device: fleet::DeviceRow,
    models: Vec<ModelStatus>,
    desired: Vec<rollout::DesiredRow>,
    entries: Vec<reports::ReportRow>,
    others: Vec<reports::ReportRow>,
    checkpoint: Option<reports::Checkpoint>,
    witness: witness::Witness,
}

async fn read(app: &Arc<App>, visitor: &Visitor, id: &str) -> Result<Read, PageFailure> {
    let wanted = id.to_owned();
    let read = act::read(app, &visitor.0.principal, Action::FleetRead, id, move |c| {
        let device =
            fleet::get(c, &wanted)?.ok_or_else(|| Failure::not_found("device", &wanted))?;
        let filter = |kind: Option<&str>| reports::Filter {
            device: Some(wanted.clone()),
            kind: kind.map(str::to_owned),
            before: None,
            len_max: REPORTS_MAX,
        };
        let mut others = reports::list(c, &reports::Filter { len_max: 200, ..filter(None) })?;
        others.retain(|report| report.kind != "audit");
        others.truncate(REPORTS_MAX as usize);
        Ok(Read {
            models: fleet::models(c, &wanted)?,
            desired: rollout::desired(c, &wanted)?,
            entries: reports::list(c, &filter(Some("audit")))?,
            others,
            checkpoint: reports::last_checkpoint(c, &wanted)?,
            witness: witness::of(c, &wanted)?,
            device,
        })
    });
    Ok(read.await?)
}

fn part(app: &App, visitor: &Visitor, read: Read) -> Result<Live, PageFailure> {
    let now_s = now_s();
    let device = &read.device;
    let part = Part {
        state: device.state(now_s, app.config.check_in_interval_ms),
        facts: facts(device, &read.witness, now_s),
        models: read.models.into_iter().map(model).collect(),
        wanted: read.desired.into_iter().map(wanted).collect(),
        entries: may(app, visitor, Action::AuditRead)
            .then(|| read.entries.iter().map(entry_of).collect()),
        checkpoint: read.checkpoint.map(|c| (c.entries, short(&c.root))),
        reports: may(app, visitor, Action::ReportRead)
            .then(|| read.others.into_iter().map(said).collect()),
    };
    Live::new(format!("/devices/{}/live", device.id), &part)
}

fn facts(
    device: &fleet::DeviceRow,
    witness: &witness::Witness,
    now_s: i64,
) -> Vec<(&'static str, String)> {
    let never = || "never".to_owned();
    vec![
        ("Last seen", device.seen_s.map_or_else(never, |at_s| ago(at_s, now_s))),
        (
            "Desired state",
            format!("generation {} applied, of {}", device.generation_applied, device.generation),
        ),
        ("Address", device.address.clone().unwrap_or_default()),
        ("Link", device.link.clone().unwrap_or_default()),
        ("Groups", device.groups.join(", ")),
        ("System", device.facts.os.clone()),
        ("Processors", format!("{}, {}", device.facts.cpus, device.facts.arch)),
        ("Memory", bytes(device.facts.memory_bytes)),
        ("Room for models", device.disk_free_bytes.map(bytes).unwrap_or_default()),
        ("Agent", device.facts.agent_version.clone()),
        ("Joined", time(device.enrolled_s)),
        ("Certificate until", time(device.certificate_expires_s)),
        ("Audit log", audit_log(witness)),
    ]
}

fn audit_log(witness: &witness::Witness) -> String {
    match &witness.fault {
        Some(fault) => format!("NOT WHAT IT WAS: {fault}"),
        None => format!(
            "{} entries here, {} of them held against a head that the device signed",
            witness.entries, witness.verified_entries
        ),
    }
}

fn model(status: ModelStatus) -> Model {
    Model {
        name: status.name,
        digest: short(&status.digest),
        state: fleet::state_str(status.state),
        done: bytes(status.bytes_done),
        total: bytes(status.bytes_total),
        bytes_done: status.bytes_done,
        bytes_total: status.bytes_total,
        reason: status.reason.unwrap_or_default(),
    }
}

fn wanted(row: rollout::DesiredRow) -> Wanted {
    Wanted {
        model: row.model,
        digest: short(&row.digest),
        release: row.release,
        use_as: row.use_as,
        deployment_id: row.deployment_id,
    }
}

fn said(report: reports::ReportRow) -> Said {
    Said { seq: report.seq, at: time(report.at_s), text: words(&report.body), kind: report.kind }
}

/// `GET /devices/{id}`.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageFailure> {
    let read = read(&app, &visitor, &id).await?;
    let (name, removed) = (read.device.name.clone(), read.device.removed_s.is_some());
    let groups = read.device.groups.clone();
    let live = part(&app, &visitor, read)?;
    render(&Page {
        shell: Shell::new("fleet", &visitor),
        id,
        name,
        removed,
        live,
        groups,
        may_group: may(&app, &visitor, Action::DeviceGroup),
        may_sync: may(&app, &visitor, Action::SyncNow),
        may_remove: may(&app, &visitor, Action::DeviceRemove),
    })
}

/// `GET /devices/{id}/live`.
pub(super) async fn live(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path(id): Path<String>,
    Query(seen): Query<Seen>,
) -> Result<Response, PageFailure> {
    let read = read(&app, &visitor, &id).await?;
    part(&app, &visitor, read)?.unless_seen(&seen)
}

/// `POST /devices/{id}/sync`.
pub(super) async fn sync(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageFailure> {
    operator::devices::ask_to_sync(&app, &visitor.0, id.clone()).await?;
    Ok(Redirect::to(&format!("/devices/{id}")).into_response())
}

/// `POST /devices/{id}/groups`.
pub(super) async fn set_groups(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path(id): Path<String>,
    fields: Fields,
) -> Result<Response, PageFailure> {
    let names = groups::names(Some(fields.one("groups")));
    operator::groups::put(&app, &visitor.0, id.clone(), names).await?;
    Ok(Redirect::to(&format!("/devices/{id}")).into_response())
}

/// `POST /devices/{id}/remove`.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageFailure> {
    operator::devices::take_out(&app, &visitor.0, id).await?;
    Ok(Redirect::to("/fleet").into_response())
}
