//! Reports, the control plane's own audit log, metrics and health.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use fulmar_policy::Action;
use fulmar_policy::audit::{self, Page};
use http::{StatusCode, header};
use rusqlite::Connection;
use serde::Deserialize;
use serde_json::{Value, json};

use super::page_len;
use crate::app::{AUDIT_NAME, App};
use crate::auth::Operator;
use crate::failure::{Failure, chain};
use crate::{act, now_s, reports};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    device: Option<String>,
    kind: Option<String>,
    before: Option<u64>,
    limit: Option<u32>,
}

/// `GET /api/v1/reports?device=&kind=&before=&limit=`, newest first.
pub(super) async fn reports(
    State(app): State<Arc<App>>,
    operator: Operator,
    Query(which): Query<Which>,
) -> Result<Json<Value>, Failure> {
    let filter = reports::Filter {
        device: which.device,
        kind: which.kind,
        before: which.before,
        len_max: page_len(which.limit),
    };
    let rows = act::read(&app, &operator.principal, Action::ReportRead, "-", move |c| {
        reports::list(c, &filter)
    })
    .await?;
    Ok(Json(json!({ "reports": rows })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    #[serde(default)]
    after: u64,
    limit: Option<u32>,
}

/// `GET /api/v1/audit?after=&limit=`: the control plane's own log, oldest first.
pub(super) async fn audit(
    State(app): State<Arc<App>>,
    operator: Operator,
    Query(page): Query<After>,
) -> Result<Json<Value>, Failure> {
    let page = Page { after: page.after, len_max: page_len(page.limit), newest_first: false };
    let read = act::read(&app, &operator.principal, Action::AuditRead, "-", move |c| {
        Ok((audit::list(c, page)?, audit::head(c)?))
    });
    let (entries, (count, root)) = read.await?;
    Ok(Json(json!({ "audit": entries, "entries": count, "root": hex::encode(root) })))
}

/// `GET /api/v1/audit/verify`: recomputes every hash of the log.
pub(super) async fn verify(
    State(app): State<Arc<App>>,
    operator: Operator,
) -> Result<Json<Value>, Failure> {
    let key = app.cosigner.public().to_vec();
    let verified = act::read(&app, &operator.principal, Action::AuditRead, "-", move |c| {
        Ok(audit::verify(c, AUDIT_NAME, &key, None))
    })
    .await?;
    Ok(Json(match verified {
        Ok(verified) => json!({
            "verified": true, "entries": verified.entries, "root": verified.root,
            "signed_entries": verified.signed_entries,
        }),
        Err(error) => json!({ "verified": false, "reason": chain(&error) }),
    }))
}

/// `GET /health`: whether the database answers. No sign-in, and nothing that needs one.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let answers = app
        .store
        .read(|c| Ok::<i64, Failure>(c.query_row("SELECT 1", [], |row| row.get(0))?))
        .await;
    match answers {
        Ok(_) => {
            Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") })).into_response()
        }
        Err(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "failing" }))).into_response()
        }
    }
}

/// `GET /metrics`, in Prometheus' text format.
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    operator: Operator,
) -> Result<Response, Failure> {
    let interval_ms = app.config.check_in_interval_ms;
    let rows = act::read(&app, &operator.principal, Action::MetricsRead, "-", move |c| {
        measure(c, crate::fleet::online_since_s(now_s(), interval_ms))
    })
    .await?;
    let mut text = String::new();
    let uptime = ("uptime_seconds", "Time since the start.", "gauge", now_s() - app.started_s);
    for (name, help, kind, value) in rows.into_iter().chain([uptime]) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP fulmar_control_{name} {help}");
        let _ = writeln!(text, "# TYPE fulmar_control_{name} {kind}");
        let _ = writeln!(text, "fulmar_control_{name} {value}");
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, text).into_response())
}

/// Name, help, type and value.
type Measured = (&'static str, &'static str, &'static str, i64);

fn measure(connection: &Connection, online_since_s: i64) -> Result<Vec<Measured>, Failure> {
    let count = |sql: &str| -> Result<i64, Failure> {
        Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    };
    let online: i64 = connection
        .prepare_cached("SELECT count(*) FROM device WHERE removed_s IS NULL AND seen_s >= ?1")?
        .query_row([online_since_s], |row| row.get(0))?;
    let members = "SELECT count(*) FROM device WHERE removed_s IS NULL";
    Ok(vec![
        ("devices", "Devices in the fleet.", "gauge", count(members)?),
        ("devices_online", "Devices that checked in lately.", "gauge", online),
        (
            "devices_behind",
            "Devices that have not applied their newest generation.",
            "gauge",
            count(&format!("{members} AND generation_applied < generation"))?,
        ),
        (
            "models_failed",
            "Models that a device says have failed.",
            "gauge",
            count("SELECT count(*) FROM device_model WHERE state = 'failed'")?,
        ),
        (
            "releases",
            "Releases that the registry names.",
            "gauge",
            count("SELECT count(*) FROM release WHERE withdrawn_s IS NULL")?,
        ),
        (
            "deployments_total",
            "Deployments made.",
            "counter",
            count("SELECT count(*) FROM deployment")?,
        ),
        (
            "reports_total",
            "Reports received.",
            "counter",
            count("SELECT coalesce(sum(acked_through), 0) FROM device")?,
        ),
    ])
}
