//! Signing in and out.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::{HeaderMap, StatusCode, header};

use super::form::Fields;
use super::{PageFailure, Visitor, render};
use crate::app::App;
use crate::auth;
use crate::failure::Failure;
use crate::listen::Peer;
use crate::session::Kind;

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    name: String,
    message: String,
}

/// `GET /sign-in`.
pub(super) async fn page() -> Result<Response, PageFailure> {
    render(&SignInPage { name: String::new(), message: String::new() })
}

/// `POST /sign-in`.
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    fields: Fields,
) -> Result<Response, PageFailure> {
    // Nobody is to be signed in as somebody else by another page.
    auth::same_origin(&headers)?;
    let name = fields.one("name").trim();
    match auth::sign_in(&app, &peer, name, fields.one("password"), Kind::Session).await {
        Ok((created, _)) => {
            let cookie = app.set_cookie(Some(&created.secret));
            Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/fleet")).into_response())
        }
        Err(Failure::Refused { status, message, .. })
            if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS) =>
        {
            let page = render(&SignInPage { name: name.to_owned(), message })?;
            Ok((status, page).into_response())
        }
        Err(failure) => Err(failure.into()),
    }
}

/// `POST /sign-out`.
pub(super) async fn leave(
    State(app): State<Arc<App>>,
    visitor: Visitor,
) -> Result<Response, PageFailure> {
    auth::sign_out(&app, &visitor.0).await?;
    Ok(([(header::SET_COOKIE, app.set_cookie(None))], Redirect::to("/sign-in")).into_response())
}
