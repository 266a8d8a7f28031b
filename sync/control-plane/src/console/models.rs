//! Releases that the owner signed.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use fulmar_policy::Action;
use fulmar_registry::Manifest;

use super::format::{bytes, count, short, time};
use super::{Live, PageFailure, Seen, Shell, Visitor, may, render};
use crate::app::App;
use crate::{act, rollout};

/// Releases on the page.
const RELEASES_MAX: u32 = 200;

struct Release {
    model: String,
    number: u64,
    digest: String,
    withdrawn: bool,
    architecture: String,
    parameters: String,
    quantization: String,
    size: String,
    context: u32,
    license: String,
    evaluation: Vec<String>,
    published: String,
    published_by: String,
    devices_active: u64,
}

#[derive(Template)]
#[template(path = "models_live.html")]
struct Part {
    releases: Vec<Release>,
    may_deploy: bool,
}

#[derive(Template)]
#[template(path = "models.html")]
struct Page {
    shell: Shell,
    live: Live,
}

async fn part(app: &Arc<App>, visitor: &Visitor) -> Result<Live, PageFailure> {
    let releases = act::read(app, &visitor.0.principal, Action::FleetRead, "-", |c| {
        rollout::releases(c, None, RELEASES_MAX)
    })
    .await?;
    let part = Part {
        releases: releases.into_iter().filter_map(release).collect(),
        may_deploy: may(app, visitor, Action::DeploymentCreate),
    };
    Live::new("/models/live", &part)
}

fn release(row: rollout::ReleaseRow) -> Option<Release> {
    // What is stored was parsed when it came.
    let manifest: Manifest = serde_json::from_value(row.manifest).ok()?;
    let evaluation = |e: &fulmar_registry::manifest::Evaluation| {
        format!("{} {}: {:.3}", e.task, e.metric, e.value)
    };
    Some(Release {
        model: row.model,
        number: row.release,
        digest: short(&row.digest),
        withdrawn: row.withdrawn_s.is_some(),
        parameters: count(manifest.parameters),
        size: bytes(manifest.size_bytes()),
        context: manifest.context_tokens,
        evaluation: manifest.evaluation.iter().map(evaluation).collect(),
        architecture: manifest.architecture,
        quantization: manifest.quantization,
        license: manifest.license,
        published: time(row.published_s),
        published_by: row.published_by,
        devices_active: row.devices_active,
    })
}

/// `GET /models`.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    visitor: Visitor,
) -> Result<Response, PageFailure> {
    let live = part(&app, &visitor).await?;
    render(&Page { shell: Shell::new("models", &visitor), live })
}

/// `GET /models/live`.
pub(super) async fn live(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Query(seen): Query<Seen>,
) -> Result<Response, PageFailure> {
    part(&app, &visitor).await?.unless_seen(&seen)
}
