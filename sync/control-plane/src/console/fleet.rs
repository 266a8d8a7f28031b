//! The fleet: every device at a glance, and how to add one.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use fulmar_policy::Action;
use serde::Deserialize;

use super::form::Fields;
use super::format::{ago, time};
use super::{Live, PageFailure, Seen, Shell, Visitor, may, render};
use crate::app::App;
use crate::failure::Failure;
use crate::groups::{self, GroupRow};
use crate::operator::devices::{NewJoinToken, make_join_token};
use crate::{act, fleet, join, now_s};

/// Devices on the page.
const DEVICES_MAX: u32 = 500;
/// Join tokens on the page.
const TOKENS_MAX: u32 = 20;

struct Row {
    id: String,
    name: String,
    state: &'static str,
    models: Vec<(String, &'static str)>,
    generation: u64,
    generation_applied: u64,
    groups: Vec<String>,
    seen: String,
    system: String,
    version: String,
}

struct Token {
    id: String,
    note: String,
    state: &'static str,
    created_by: String,
    expires: String,
    used_by: Option<String>,
}

#[derive(Template)]
#[template(path = "fleet_live.html")]
struct Part {
    devices: Vec<Row>,
    online: usize,
    behind: usize,
    failed: usize,
    tokens: Vec<Token>,
    may_revoke: bool,
    group: String,
}

#[derive(Template)]
#[template(path = "fleet.html")]
struct Page {
    shell: Shell,
    live: Live,
    may_join: bool,
    group: String,
    groups: Vec<GroupRow>,
}

/// Of which group the devices are shown; empty: all.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Chosen {
    #[serde(default)]
    group: String,
}

async fn part(app: &Arc<App>, visitor: &Visitor, group: &str) -> Result<Live, PageFailure> {
    let now_s = now_s();
    let chosen = Some(group.to_owned()).filter(|group| !group.is_empty());
    groups::check(chosen.as_slice())?;
    let interval_ms = app.config.check_in_interval_ms;
    let read = act::read(app, &visitor.0.principal, Action::FleetRead, "-", move |c| {
        let mut rows = Vec::new();
        for device in fleet::list(c, "", chosen.as_deref(), DEVICES_MAX)? {
            let models = fleet::models(c, &device.id)?;
            rows.push(row(&device, models, now_s, interval_ms));
        }
        rows.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok((rows, join::list(c, TOKENS_MAX)?))
    });
    let (devices, tokens) = read.await?;
    let part = Part {
        online: devices.iter().filter(|d| d.state == "online").count(),
        behind: devices.iter().filter(|d| d.generation_applied < d.generation).count(),
        failed: devices
            .iter()
            .filter(|d| d.models.iter().any(|(_, state)| *state == "failed"))
            .count(),
        devices,
        tokens: tokens.iter().map(|t| token(t, now_s)).collect(),
        may_revoke: may(app, visitor, Action::JoinTokenCreate),
        group: group.to_owned(),
    };
    let url = if group.is_empty() { String::new() } else { format!("?group={group}") };
    Live::new(format!("/fleet/live{url}"), &part)
}

fn row(
    device: &fleet::DeviceRow,
    models: Vec<fulmar_protocol::ModelStatus>,
    now_s: i64,
    interval_ms: u64,
) -> Row {
    Row {
        id: device.id.clone(),
        name: device.name.clone(),
        state: device.state(now_s, interval_ms),
        models: models.into_iter().map(|m| (m.name, fleet::state_str(m.state))).collect(),
        generation: device.generation,
        generation_applied: device.generation_applied,
        groups: device.groups.clone(),
        seen: device.seen_s.map_or_else(|| "never".to_owned(), |at_s| ago(at_s, now_s)),
        system: format!("{}, {}", device.facts.os, device.facts.arch),
        version: device.facts.agent_version.clone(),
    }
}

fn token(token: &join::JoinTokenRow, now_s: i64) -> Token {
    Token {
        id: token.id.clone(),
        note: token.note.clone(),
        state: token.state(now_s),
        created_by: token.created_by.clone(),
        expires: time(token.expires_s),
        used_by: token.used_by.clone(),
    }
}

/// `GET /fleet`.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Query(chosen): Query<Chosen>,
) -> Result<Response, PageFailure> {
    let live = part(&app, &visitor, &chosen.group).await?;
    let groups =
        act::read(&app, &visitor.0.principal, Action::FleetRead, "groups", groups::list).await?;
    let (shell, group) = (Shell::new("fleet", &visitor), chosen.group);
    let may_join = may(&app, &visitor, Action::JoinTokenCreate);
    render(&Page { shell, live, may_join, group, groups })
}

/// `GET /fleet/live`.
pub(super) async fn live(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Query(seen): Query<Seen>,
    Query(chosen): Query<Chosen>,
) -> Result<Response, PageFailure> {
    part(&app, &visitor, &chosen.group).await?.unless_seen(&seen)
}

#[derive(Template)]
#[template(path = "join_token.html")]
struct Made {
    shell: Shell,
    token: String,
    expires: String,
}

/// `POST /fleet/join-tokens`: shows the token, once.
pub(super) async fn create_join_token(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    fields: Fields,
) -> Result<Response, PageFailure> {
    let hours: i64 = fields
        .one("hours")
        .parse()
        .map_err(|_| Failure::invalid("form_invalid", "the field hours is not a number"))?;
    let note = fields.one("note").trim().to_owned();
    let groups = groups::names(Some(fields.one("groups")));
    let request = NewJoinToken { note, life_s: Some(hours.saturating_mul(3_600)), groups };
    let made = make_join_token(&app, &visitor.0, request).await?;
    render(&Made {
        shell: Shell::new("fleet", &visitor),
        token: made.token,
        expires: time(made.expires_s),
    })
}

/// `POST /fleet/join-tokens/{id}/revoke`.
pub(super) async fn revoke_join_token(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageFailure> {
    crate::operator::devices::revoke(&app, &visitor.0, id).await?;
    Ok(Redirect::to("/fleet").into_response())
}
