//! The device port: what devices ask, over TLS with their own certificates.

mod check_in;
mod enroll;
mod files;
mod peer;

pub(crate) use check_in::{Told, check, cosign, take_state};
pub(crate) use enroll::{admit, certify};

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use http::StatusCode;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use crate::app::App;
use crate::failure::Failure;

/// The routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let timeout = Duration::from_millis(app.config.limits.request_timeout_ms);
    Router::new()
        .route("/device/v1/enroll", post(enroll::enroll))
        .route("/device/v1/renew", post(enroll::renew))
        .route("/device/v1/check-in", post(check_in::check_in))
        .route("/device/v1/outbox", post(check_in::outbox))
        .route("/device/v1/registry/{file}", get(files::registry))
        .route("/device/v1/director/{file}", get(files::director))
        .route("/device/v1/blobs/{digest}", get(files::blob))
        .fallback(|| async {
            Failure::refused(StatusCode::NOT_FOUND, "path_unknown", "there is no such path")
        })
        .layer(DefaultBodyLimit::max(fulmar_protocol::BODY_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, timeout))
        .layer(CatchPanicLayer::new())
        .with_state(app)
}
