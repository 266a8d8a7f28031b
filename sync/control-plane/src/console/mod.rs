//! The console: pages rendered on the server, the same data and the same permissions as the API.
//!
//! - Live parts are fetched again every two seconds; an unchanged one costs an empty answer and
//!   leaves the page alone.
//! - Changes are plain forms, so they work without scripts too.
//!
//! Deliberately absent: inline scripts and styles, anything from another host, client-side state.

mod assets;
mod audit;
mod deployments;
mod device;
mod fleet;
mod form;
mod format;
mod models;
mod sign_in;

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use fulmar_policy::Action;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use tower_http::timeout::TimeoutLayer;

use crate::app::App;
use crate::auth::Operator;
use crate::failure::Failure;

/// Bytes of a form.
const FORM_BYTES_MAX: usize = 64 << 10;

/// The routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let timeout = Duration::from_millis(app.config.limits.request_timeout_ms);
    Router::new()
        .route("/", get(|| async { Redirect::to("/fleet") }))
        .route("/sign-in", get(sign_in::page).post(sign_in::submit))
        .route("/sign-out", post(sign_in::leave))
        .route("/fleet", get(fleet::page))
        .route("/fleet/live", get(fleet::live))
        .route("/fleet/join-tokens", post(fleet::create_join_token))
        .route("/fleet/join-tokens/{id}/revoke", post(fleet::revoke_join_token))
        .route("/devices/{id}", get(device::page))
        .route("/devices/{id}/live", get(device::live))
        .route("/devices/{id}/sync", post(device::sync))
        .route("/devices/{id}/groups", post(device::set_groups))
        .route("/devices/{id}/remove", post(device::remove))
        .route("/models", get(models::page))
        .route("/models/live", get(models::live))
        .route("/deployments", get(deployments::page).post(deployments::create))
        .route("/deployments/live", get(deployments::live))
        .route("/deployments/{id}", get(deployments::show))
        .route("/deployments/{id}/live", get(deployments::show_live))
        .route("/deployments/{id}/stop", post(deployments::stop))
        .route("/audit", get(audit::page))
        .route("/audit/live", get(audit::live))
        .route("/static/{file}", get(assets::file))
        .fallback(|| async {
            PageFailure::from(Failure::refused(
                StatusCode::NOT_FOUND,
                "path_unknown",
                "there is no such page",
            ))
        })
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, timeout))
        .with_state(app)
}

/// Somebody signed in; whoever is not is sent to the sign-in page.
pub(crate) struct Visitor(pub(crate) Operator);

impl FromRequestParts<Arc<App>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        match Operator::from_request_parts(parts, app).await {
            Ok(operator) => Ok(Self(operator)),
            Err(Failure::Refused { status: StatusCode::UNAUTHORIZED, .. }) => {
                Err(to_sign_in(&parts.headers))
            }
            Err(failure) => Err(PageFailure::from(failure).into_response()),
        }
    }
}

fn to_sign_in(headers: &HeaderMap) -> Response {
    if headers.contains_key("hx-request") {
        return [("hx-redirect", "/sign-in")].into_response();
    }
    Redirect::to("/sign-in").into_response()
}

/// What every page shows around its own part.
pub(crate) struct Shell {
    /// The page's name in the navigation.
    page: &'static str,
    /// Who is signed in.
    operator: String,
    /// With which roles.
    roles: String,
}

impl Shell {
    fn new(page: &'static str, visitor: &Visitor) -> Self {
        let principal = &visitor.0.principal;
        let roles: Vec<&str> = principal.roles.iter().map(|role| role.as_str()).collect();
        Self { page, operator: principal.subject.clone(), roles: roles.join(", ") }
    }
}

/// Whether `visitor` may: decides which forms a page offers. The action itself decides again.
fn may(app: &App, visitor: &Visitor, action: Action) -> bool {
    app.policy.decide(&visitor.0.principal, action, "-").is_ok()
}

/// A part of a page that is fetched again and again.
#[derive(Template)]
#[template(path = "live.html")]
pub(crate) struct Live {
    url: String,
    /// What stands between the address and one more parameter.
    and: char,
    tag: String,
    html: String,
}

/// What the page has of a live part.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Seen {
    #[serde(default)]
    tag: String,
}

impl Live {
    fn new(url: impl Into<String>, part: &impl Template) -> Result<Self, PageFailure> {
        let html = part.render().map_err(|e| Failure::internal("render a page", e))?;
        let tag = crate::ca::sha256_hex(html.as_bytes()).chars().take(16).collect();
        let url = url.into();
        Ok(Self { and: if url.contains('?') { '&' } else { '?' }, url, tag, html })
    }

    /// The part itself, or nothing if the page has it already.
    fn unless_seen(self, seen: &Seen) -> Result<Response, PageFailure> {
        if seen.tag == self.tag {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        render(&self)
    }
}

/// A failure as a page.
pub(crate) struct PageFailure(Failure);

impl<E: Into<Failure>> From<E> for PageFailure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

#[derive(Template)]
#[template(path = "failure.html")]
struct FailurePage {
    title: &'static str,
    message: String,
}

impl IntoResponse for PageFailure {
    fn into_response(self) -> Response {
        let (status, error) = self.0.tell();
        let title = match status {
            StatusCode::NOT_FOUND => "Not found",
            StatusCode::FORBIDDEN => "Not allowed",
            status if status.is_server_error() => "The control plane failed",
            _ => "That did not work",
        };
        match (FailurePage { title, message: error.message }).render() {
            Ok(html) => (status, Html(html)).into_response(),
            Err(_) => status.into_response(),
        }
    }
}

fn render(page: &impl Template) -> Result<Response, PageFailure> {
    let html = page.render().map_err(|e| Failure::internal("render a page", e))?;
    Ok(Html(html).into_response())
}
