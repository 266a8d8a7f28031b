//! The operator routes.

use std::sync::Arc;

use axum::Router;

use crate::app::App;

/// The routes.
pub(crate) fn router(_app: Arc<App>) -> Router {
    Router::new()
}
