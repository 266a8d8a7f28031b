//! `/v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use fulmar_policy::Action;
use serde_json::{Value, json};

use super::auth::Caller;
use super::error::ApiError;
use crate::app::App;
use crate::models::Installed;

fn object(model: &Installed) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": model.installed_at_s,
        "owned_by": model.namespace,
        "fulmar": model,
    })
}

/// All models that the caller may see.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
) -> Result<Json<Value>, ApiError> {
    let policy = app.policy();
    policy.decide(&principal, Action::ModelList, "-")?;
    let models = app.models().installed().await?;
    let seen: Vec<Value> = models
        .iter()
        .filter(|model| policy.decide(&principal, Action::ModelShow, &model.name).is_ok())
        .map(object)
        .collect();
    Ok(Json(json!({ "object": "list", "data": seen })))
}

/// One model.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let name = app.models().resolve(&name).await?;
    app.policy().decide(&principal, Action::ModelShow, &name)?;
    let model = app.models().find(&name).await?;
    Ok(Json(object(&model)))
}
