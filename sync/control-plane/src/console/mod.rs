//! The console: pages rendered on the server.
use crate::app::App;
use axum::Router;
use std::sync::Arc;
/// The routes.
pub(crate) fn router(_app: Arc<App>) -> Router {
    Router::new()
}
