//! The operators' JSON API, `/api/v1`. Each handler: who asks, may they, one transaction, answer.

mod account;
pub(crate) mod deployments;
pub(crate) mod devices;
pub(crate) mod groups;
mod releases;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{any, delete, get, post, put};
use http::StatusCode;
use tower_http::timeout::TimeoutLayer;

use crate::app::App;
use crate::failure::Failure;

/// Rows in one answer.
pub(crate) const PAGE_LEN_MAX: u32 = 500;
/// Bytes of an upload of metadata.
const METADATA_BYTES_MAX: usize = 32 << 20;

/// The routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let timeout = Duration::from_millis(app.config.limits.request_timeout_ms);
    // A blob may take hours; it is bound by its own limit in bytes instead.
    let uploads = Router::new()
        .route("/api/v1/blobs/{digest}", put(releases::upload).head(releases::upload_state))
        .layer(DefaultBodyLimit::disable());
    let metadata = Router::new()
        .route("/api/v1/registry/metadata", post(releases::publish))
        .layer(DefaultBodyLimit::max(METADATA_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, timeout));
    let report_files = Router::new()
        .route("/api/v1/report-files", post(devices::hand_in))
        .layer(DefaultBodyLimit::max(fulmar_protocol::REPORT_FILE_BYTES_MAX));
    Router::new()
        .route("/api/v1/sign-in", post(account::sign_in))
        .route("/api/v1/sign-out", post(account::sign_out))
        .route("/api/v1/me", get(account::me))
        .route("/api/v1/operators", get(account::operators).post(account::create_operator))
        .route("/api/v1/operators/{name}", delete(account::remove_operator))
        .route("/api/v1/devices", get(devices::list))
        .route("/api/v1/devices/{id}", get(devices::show).delete(devices::remove))
        .route("/api/v1/devices/{id}/sync", post(devices::sync))
        .route("/api/v1/devices/{id}/audit", get(devices::audit))
        .route("/api/v1/devices/{id}/groups", put(groups::set))
        .route("/api/v1/groups", get(groups::list))
        .route("/api/v1/groups/{name}/devices", post(groups::join))
        .route("/api/v1/groups/{name}/devices/{id}", delete(groups::leave))
        .route("/api/v1/join-tokens", get(devices::join_tokens).post(devices::create_join_token))
        .route("/api/v1/join-tokens/{id}", delete(devices::revoke_join_token))
        .route("/api/v1/registry/metadata/{file}", get(releases::metadata))
        .route("/api/v1/releases", get(releases::list))
        .route("/api/v1/deployments", get(deployments::list).post(deployments::create))
        .route("/api/v1/deployments/{id}", get(deployments::show))
        .route("/api/v1/deployments/{id}/stop", post(deployments::stop))
        .route("/api/v1/reports", get(watch::reports))
        .route("/api/v1/audit", get(watch::audit))
        .route("/api/v1/audit/verify", get(watch::verify))
        .route("/metrics", get(watch::metrics))
        .route("/health", get(watch::health))
        .route("/api/{*rest}", any(path_unknown))
        .layer(DefaultBodyLimit::max(fulmar_protocol::BODY_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, timeout))
        .merge(uploads)
        .merge(metadata)
        .merge(report_files)
        .with_state(app)
}

async fn path_unknown() -> Failure {
    Failure::refused(StatusCode::NOT_FOUND, "path_unknown", "there is no such path")
}

/// Reads a body of one of the routes; for the fuzz target.
#[cfg(feature = "fuzzing")]
pub(crate) fn try_body(route: u8, bytes: &[u8]) {
    use crate::body::read;
    let refused = match route % 7 {
        0 => read::<account::SignIn>(bytes).err(),
        1 => read::<account::NewOperator>(bytes).err(),
        2 => read::<devices::NewJoinToken>(bytes).err(),
        3 => read::<groups::Members>(bytes).err(),
        4 => read::<groups::Names>(bytes).err(),
        5 => read::<releases::Metadata>(bytes).err(),
        _ => read::<crate::deploy::Order>(bytes).err(),
    };
    assert!(refused.is_none_or(|refused| refused.code() == "body_invalid"));
}

/// How many rows an answer has, within the limit.
fn page_len(asked: Option<u32>) -> u32 {
    asked.unwrap_or(100).clamp(1, PAGE_LEN_MAX)
}
