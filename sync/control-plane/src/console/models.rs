//! Releases that the owner signed.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use fulmar_policy::Action;
use fulmar_registry::Manifest;
use fulmar_registry::catalog::Filter;
use fulmar_registry::manifest::SizeClass;
use serde::Deserialize;

use super::format::{bytes, count, short, time};
use super::{Live, PageFailure, Seen, Shell, Visitor, may, render};
use crate::app::App;
use crate::failure::Failure;
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
    filtered: bool,
    releases: Vec<Release>,
    may_deploy: bool,
}

#[derive(Template)]
#[template(path = "models.html")]
struct Page {
    shell: Shell,
    live: Live,
    wanted: Wanted,
    size_classes: [&'static str; 5],
}

/// Which releases to show, as a form's fields say it: an empty one asks for nothing.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    text: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    size_class: String,
    #[serde(default)]
    quantization: String,
    #[serde(default)]
    license: String,
    #[serde(default)]
    context_tokens_min: String,
    #[serde(default)]
    memory_bytes_max: String,
}

impl Wanted {
    fn fields(&self) -> [(&'static str, &str); 7] {
        [
            ("text", &self.text),
            ("architecture", &self.architecture),
            ("size_class", &self.size_class),
            ("quantization", &self.quantization),
            ("license", &self.license),
            ("context_tokens_min", &self.context_tokens_min),
            ("memory_bytes_max", &self.memory_bytes_max),
        ]
    }

    fn filter(&self) -> Result<Filter, PageFailure> {
        let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let size_class = given(&self.size_class).map(|text| text.parse::<SizeClass>()).transpose();
        Ok(Filter {
            text: given(&self.text),
            architecture: given(&self.architecture),
            size_class: size_class.map_err(|e| {
                Failure::invalid("form_invalid", format!("the field size_class: {e}"))
            })?,
            quantization: given(&self.quantization),
            license: given(&self.license),
            context_tokens_min: number("context_tokens_min", given(&self.context_tokens_min))?,
            memory_bytes_max: number("memory_bytes_max", given(&self.memory_bytes_max))?,
            slot: None,
        })
    }

    /// Where the live part of just these releases is.
    fn live_url(&self) -> String {
        let quoted = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        };
        let given = self.fields().into_iter().filter(|(_, value)| !value.trim().is_empty());
        let pairs: Vec<String> = given
            .map(|(name, value)| {
                format!("{name}={}", value.bytes().map(quoted).collect::<String>())
            })
            .collect();
        if pairs.is_empty() {
            "/models/live".to_owned()
        } else {
            format!("/models/live?{}", pairs.join("&"))
        }
    }
}

fn number<T: std::str::FromStr>(
    field: &'static str,
    text: Option<String>,
) -> Result<Option<T>, PageFailure> {
    let refuse = |text: &String| {
        let message = format!("the field {field} is {text:?}, expected a whole number");
        Failure::invalid("form_invalid", message)
    };
    Ok(text.map(|text| text.parse().map_err(|_| refuse(&text))).transpose()?)
}

async fn part(app: &Arc<App>, visitor: &Visitor, wanted: &Wanted) -> Result<Live, PageFailure> {
    let filter = wanted.filter()?;
    let releases = act::read(app, &visitor.0.principal, Action::FleetRead, "-", |c| {
        rollout::releases(c, None, RELEASES_MAX)
    })
    .await?;
    let part = Part {
        filtered: filter != Filter::default(),
        releases: releases.into_iter().filter_map(|row| release(row, &filter)).collect(),
        may_deploy: may(app, visitor, Action::DeploymentCreate),
    };
    Live::new(wanted.live_url(), &part)
}

fn release(row: rollout::ReleaseRow, filter: &Filter) -> Option<Release> {
    // What is stored was parsed when it came.
    let manifest: Manifest = serde_json::from_value(row.manifest).ok()?;
    if !filter.matches(&manifest) {
        return None;
    }
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
    Query(wanted): Query<Wanted>,
) -> Result<Response, PageFailure> {
    let live = part(&app, &visitor, &wanted).await?;
    let size_classes = ["nano", "micro", "small", "medium", "large"];
    render(&Page { shell: Shell::new("models", &visitor), live, wanted, size_classes })
}

/// `GET /models/live`.
pub(super) async fn live(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Query(seen): Query<Seen>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, PageFailure> {
    part(&app, &visitor, &wanted).await?.unless_seen(&seen)
}
