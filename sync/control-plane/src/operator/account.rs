//! Sign-in and operators.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use fulmar_policy::{Action, Role};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::{self, Operator};
use crate::body::Body;
use crate::failure::Failure;
use crate::listen::Peer;
use crate::session::{self, Kind};
use crate::{act, init, now_s, password};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignIn {
    name: String,
    password: String,
}

/// A bearer token, told once.
#[derive(Debug, Serialize)]
pub(super) struct SignedIn {
    token: String,
    expires_s: i64,
    roles: Vec<Role>,
}

/// `POST /api/v1/sign-in`: a bearer token for programs.
pub(super) async fn sign_in(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Body(request): Body<SignIn>,
) -> Result<Json<SignedIn>, Failure> {
    let (created, roles) =
        auth::sign_in(&app, &peer, &request.name, &request.password, Kind::Token).await?;
    Ok(Json(SignedIn { token: created.secret, expires_s: created.expires_s, roles }))
}

/// `POST /api/v1/sign-out`: ends the sign-in that asks.
pub(super) async fn sign_out(
    State(app): State<Arc<App>>,
    operator: Operator,
) -> Result<StatusCode, Failure> {
    auth::sign_out(&app, &operator).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /api/v1/me`.
pub(super) async fn me(operator: Operator) -> Json<Value> {
    Json(json!({ "name": operator.principal.subject, "roles": operator.principal.roles }))
}

/// `GET /api/v1/operators`.
pub(super) async fn operators(
    State(app): State<Arc<App>>,
    operator: Operator,
) -> Result<Json<Value>, Failure> {
    let rows = act::read(&app, &operator.principal, Action::TokenList, "operators", |c| {
        session::operators(c)
    })
    .await?;
    Ok(Json(json!({ "operators": rows })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewOperator {
    name: String,
    roles: Vec<Role>,
}

/// `POST /api/v1/operators`: a new operator; or a new password and roles for one, whose sign-ins
/// end.
pub(super) async fn create_operator(
    State(app): State<Arc<App>>,
    operator: Operator,
    Body(request): Body<NewOperator>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    if !init::operator_name_is_valid(&request.name) {
        return Err(Failure::invalid(
            "name_invalid",
            format!("name is {:?}, expected 1 to 63 of [a-z0-9._-]", request.name),
        ));
    }
    // The role `app` is for tokens on devices; it opens nothing here.
    if request.roles.is_empty() || request.roles.contains(&Role::App) {
        return Err(Failure::invalid(
            "roles_invalid",
            "roles: expected some of operator, auditor, admin",
        ));
    }
    act::decide(&app, &operator.principal, Action::TokenMint, &request.name).await?;
    let fail = |e| Failure::internal("make a password", e);
    let password = password::generate().map_err(fail)?;
    let hashed = password.clone();
    let hash = tokio::task::spawn_blocking(move || password::hash(&hashed, password::ROUNDS))
        .await
        .map_err(|e| Failure::internal("hash a password", e))?
        .map_err(fail)?;
    let (name, roles) = (request.name.clone(), request.roles.clone());
    act::change(&app, &operator.principal, Action::TokenMint, &request.name, move |tx| {
        session::put_operator(tx, &name, &hash, &roles, now_s())?;
        Ok(((), json!({ "operator": name, "roles": roles })))
    })
    .await?;
    let made = json!({ "name": request.name, "password": password, "roles": request.roles });
    Ok((StatusCode::CREATED, Json(made)))
}

/// `DELETE /api/v1/operators/{name}`: their sign-ins end too.
pub(super) async fn remove_operator(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    if name == operator.principal.subject {
        return Err(Failure::conflict("own_account", "an operator cannot remove themselves"));
    }
    let resource = name.clone();
    act::change(&app, &operator.principal, Action::TokenRevoke, &resource, move |tx| {
        session::remove_operator(tx, &name)?;
        Ok(((), json!({ "operator": name })))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}
