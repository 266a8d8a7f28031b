//! `/fulmar/v1/search`: what could run here.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};

use super::auth::Caller;
use super::error::ApiError;
use crate::app::App;
use crate::search::{self, Results, SearchError, Wanted};

/// `GET /fulmar/v1/search?text=&architecture=&size_class=&quantization=&license=&context_tokens_min=
/// &memory_bytes_max=`: the models that the caller may see.
pub(crate) async fn search(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Results>, ApiError> {
    let Query(wanted) = query.map_err(|error| ApiError::invalid(None, error.body_text()))?;
    let (state, policy) = (app.state(), app.policy());
    let now_s = state.clock().now_s();
    let found = search::search(state.store(), &policy, &principal, &wanted, now_s).await;
    found.map(Json).map_err(|error| match error {
        SearchError::Denied(denied) => denied.into(),
        SearchError::Offers(error) => ApiError::internal("search the registry", &error),
    })
}
