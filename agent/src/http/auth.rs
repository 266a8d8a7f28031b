//! Who asks: a bearer token over TCP, the peer's user id on the Unix socket.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use fulmar_policy::token::{self, TokenError};
use fulmar_policy::{Principal, Role, Via};

use super::error::ApiError;
use crate::app::App;

/// How a connection came in. Set by the accept loop on every request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// Over TCP.
    Tcp,
    /// Over the Unix socket, from a process of this user.
    Unix {
        /// The user id, as the kernel tells it.
        uid: u32,
    },
}

/// A principal that proved who it is.
#[derive(Debug)]
pub(crate) struct Caller(pub(crate) Principal);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        app.refresh_standing().await;
        // A token is more specific than the socket's user, so it goes first where there is one.
        if let Some(value) = parts.headers.get(AUTHORIZATION) {
            let text = value.to_str().ok().and_then(|text| {
                let (scheme, rest) = text.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
            });
            let token = text.ok_or_else(|| {
                ApiError::unauthenticated("the Authorization header must be: Bearer TOKEN")
            })?;
            return by_token(app, token).await.map(Self);
        }
        match parts.extensions.get::<Peer>() {
            Some(Peer::Unix { uid }) => by_uid(app, *uid).map(Self),
            Some(Peer::Tcp) | None => Err(ApiError::unauthenticated(
                "no token: send the header Authorization: Bearer TOKEN; \
                 `fulmar token mint` makes one",
            )),
        }
    }
}

async fn by_token(app: &App, text: &str) -> Result<Principal, ApiError> {
    let principal = app.verifier().verify(text, app.state().clock().now_s())?;
    if let Via::Token { id } = &principal.via {
        let id = id.clone();
        app.state()
            .store()
            .read::<_, TokenError, _>(move |c| token::check_not_revoked(c, &id))
            .await?;
    }
    token::check_owners_word(&app.policy(), &principal, &app.state().token_key().id())?;
    Ok(principal)
}

fn by_uid(app: &App, uid: u32) -> Result<Principal, ApiError> {
    // Who runs the agent can read its keys anyway.
    let role = if uid == rustix::process::geteuid().as_raw() {
        Some(Role::Admin)
    } else {
        app.policy().unix_role(uid)
    };
    let role = role.ok_or_else(|| {
        ApiError::unauthenticated(format!(
            "user id {uid} has no role in the policy's unix_users; send a token"
        ))
    })?;
    Ok(Principal { subject: format!("uid:{uid}"), roles: vec![role], via: Via::UnixUid(uid) })
}
