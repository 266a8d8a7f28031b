//! Audit: what devices did, and what operators did here.

use std::collections::BTreeMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use fulmar_policy::Action;
use fulmar_policy::audit::{self, Entry, Page as LogPage};
use serde_json::Value;

use super::format::{plain, short, time, words};
use super::{Live, PageFailure, Seen, Shell, Visitor, render};
use crate::app::App;
use crate::reports::{self, ReportRow};
use crate::{act, fleet};

/// Entries of each kind on the page.
const ENTRIES_MAX: u32 = 50;

/// An entry of a device's log, as it reported it.
pub(super) struct DeviceEntry {
    pub(super) device_id: String,
    pub(super) device: String,
    pub(super) seq: u64,
    pub(super) at: String,
    pub(super) actor: String,
    pub(super) action: String,
    pub(super) resource: String,
    pub(super) outcome: String,
    pub(super) detail: String,
}

struct OwnEntry {
    seq: u64,
    at: String,
    actor: String,
    action: String,
    resource: String,
    outcome: String,
    detail: String,
}

#[derive(Template)]
#[template(path = "audit_live.html")]
struct Part {
    devices: Vec<DeviceEntry>,
    own: Vec<OwnEntry>,
    entries: u64,
    root: String,
}

#[derive(Template)]
#[template(path = "audit.html")]
struct Page {
    shell: Shell,
    live: Live,
}

/// A report of kind `audit` as a row; what is not there stays empty.
pub(super) fn entry_of(report: &ReportRow) -> DeviceEntry {
    let text = |name: &str| match &report.body[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    DeviceEntry {
        device: report.device_id.clone(),
        device_id: report.device_id.clone(),
        seq: report.body["seq"].as_u64().unwrap_or(report.seq),
        at: time(report.at_s),
        actor: text("actor"),
        action: text("action"),
        resource: plain(&text("resource")),
        outcome: text("outcome"),
        detail: words(&report.body["detail"]),
    }
}

fn own(entry: Entry) -> OwnEntry {
    OwnEntry {
        seq: entry.seq,
        at: time(entry.at_s),
        actor: entry.actor,
        action: entry.action,
        resource: plain(&entry.resource),
        outcome: entry.outcome,
        detail: words(&entry.detail),
    }
}

async fn part(app: &Arc<App>, visitor: &Visitor) -> Result<Live, PageFailure> {
    let read = act::read(app, &visitor.0.principal, Action::AuditRead, "-", |c| {
        let page = LogPage { after: 0, len_max: ENTRIES_MAX, newest_first: true };
        let filter = reports::Filter {
            kind: Some("audit".to_owned()),
            len_max: ENTRIES_MAX,
            ..reports::Filter::default()
        };
        let said = reports::list(c, &filter)?;
        let mut names = BTreeMap::new();
        for report in &said {
            if !names.contains_key(&report.device_id) {
                let name = fleet::get(c, &report.device_id)?.map(|device| device.name);
                names.insert(report.device_id.clone(), name.unwrap_or_default());
            }
        }
        Ok((audit::list(c, page)?, audit::head(c)?, said, names))
    });
    let (entries, (count, root), said, names) = read.await?;
    let devices = said.iter().map(|report| {
        let mut entry = entry_of(report);
        entry.device = names.get(&report.device_id).cloned().unwrap_or_default();
        entry
    });
    let part = Part {
        devices: devices.collect(),
        own: entries.into_iter().map(own).collect(),
        entries: count,
        root: short(&hex::encode(root)),
    };
    Live::new("/audit/live", &part)
}

/// `GET /audit`.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    visitor: Visitor,
) -> Result<Response, PageFailure> {
    let live = part(&app, &visitor).await?;
    render(&Page { shell: Shell::new("audit", &visitor), live })
}

/// `GET /audit/live`.
pub(super) async fn live(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Query(seen): Query<Seen>,
) -> Result<Response, PageFailure> {
    part(&app, &visitor).await?.unless_seen(&seen)
}
