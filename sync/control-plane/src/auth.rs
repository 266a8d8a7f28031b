//! Who asks at the operators' port: sign-in, and the extractor that every handler begins with.
//!
//! - A cookie is taken only with proof that the request came from our own page (`Origin` or
//!   `Sec-Fetch-Site`), whatever the method changes; `SameSite=Strict` alone would let another
//!   port of the same host in.
//! - On plain HTTP the `Host` must be a loopback name: a page of elsewhere whose name was
//!   pointed at 127.0.0.1 stays out.
//! - A wrong name costs as much time as a wrong password.

use std::sync::{Arc, PoisonError};

use axum::extract::FromRequestParts;
use fulmar_policy::audit::Outcome;
use fulmar_policy::{Principal, Role, Via};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};

use crate::act;
use crate::app::App;
use crate::failure::Failure;
use crate::listen::Peer;
use crate::session::{self, Created, Kind, Lifetime};
use crate::{now_s, password};

/// Longest password that is looked at, in bytes.
const PASSWORD_BYTES_MAX: usize = 256;
/// Longest operator name that is looked at, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// A signed-in operator.
#[derive(Debug, Clone)]
pub(crate) struct Operator {
    /// Who it is and how that is known.
    pub(crate) principal: Principal,
    /// The sign-in, to end it.
    pub(crate) session_id: String,
}

impl FromRequestParts<Arc<App>> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let (kind, secret) = if let Some(token) = bearer(&parts.headers)? {
            (Kind::Token, token)
        } else if let Some(cookie) = cookie(&parts.headers, app.cookie_name()) {
            if !is_safe(&parts.method) {
                same_origin(&parts.headers)?;
            }
            (Kind::Session, cookie)
        } else {
            return Err(unauthenticated("sign in first: POST /api/v1/sign-in"));
        };
        let found = app.store.read(move |c| session::find(c, kind, &secret, now_s())).await?;
        let Some(found) = found else {
            return Err(unauthenticated("the sign-in is unknown or has ended; sign in again"));
        };
        if found.note_use {
            let id = found.id.clone();
            app.store.write(move |tx| session::note_use(tx, &id, now_s())).await?;
        }
        Ok(Self { principal: found.principal, session_id: found.id })
    }
}

pub(crate) fn unauthenticated(message: &str) -> Failure {
    Failure::refused(StatusCode::UNAUTHORIZED, "unauthenticated", message)
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn bearer(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = value
        .to_str()
        .ok()
        .and_then(|v| v.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token {
        Some((_, token)) => Ok(Some(token.trim().to_owned())),
        None => Err(unauthenticated("the Authorization header is not \"Bearer <token>\"")),
    }
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
}

/// Reads what headers say about who asks; for the fuzz target.
#[cfg(feature = "fuzzing")]
pub(crate) fn try_headers(headers: &HeaderMap) {
    let _ = (bearer(headers), cookie(headers, "fulmar"));
    let _ = (same_origin(headers), host_is_loopback(headers));
}

/// Refuses a request that a page of another origin may have sent.
pub(crate) fn same_origin(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|v: &http::HeaderValue| v.to_str().ok());
    let own = match (text(header::ORIGIN), text(header::HeaderName::from_static("sec-fetch-site")))
    {
        (Some(origin), _) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_some() && host == text(header::HOST)
        }
        (None, Some(site)) => site == "same-origin",
        (None, None) => false,
    };
    if own {
        return Ok(());
    }
    Err(Failure::refused(
        StatusCode::FORBIDDEN,
        "foreign_origin",
        "the request does not come from this console's own page; programs use a bearer token",
    ))
}

/// Whether a plain-HTTP request names this machine's loopback as its host.
pub(crate) fn host_is_loopback(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or("");
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map_or("", |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Checks name and password and makes a sign-in; writes both outcomes to the audit log.
pub(crate) async fn sign_in(
    app: &Arc<App>,
    peer: &Peer,
    name: &str,
    password: &str,
    kind: Kind,
) -> Result<(Created, Vec<Role>), Failure> {
    let now_s = now_s();
    let keys = [format!("address {}", peer.address.ip()), format!("name {name}")];
    attempt(app, &keys, now_s)?;
    let short = name.len() <= NAME_BYTES_MAX && password.len() <= PASSWORD_BYTES_MAX;
    let known = if short {
        let name = name.to_owned();
        app.store.read(move |c| session::operator(c, &name)).await?
    } else {
        None
    };
    let hash = known.as_ref().map_or_else(|| app.dummy_hash.clone(), |(hash, _)| hash.clone());
    let matches = {
        // Hashing is meant to be slow: few at once, and not on the runtime's threads.
        let _slot =
            app.hashing.acquire().await.map_err(|e| Failure::internal("check a password", e))?;
        let password = if short { password.to_owned() } else { String::new() };
        tokio::task::spawn_blocking(move || password::matches(&password, &hash))
            .await
            .map_err(|e| Failure::internal("check a password", e))?
    };
    let address = peer.address.ip().to_string();
    let subject = name.chars().take(NAME_BYTES_MAX).collect::<String>();
    let Some((_, roles)) = known.filter(|_| matches) else {
        let detail = serde_json::json!({ "address": address });
        act::note(app, &subject, "sign_in", "-", Outcome::Denied, detail).await?;
        return Err(Failure::refused(
            StatusCode::UNAUTHORIZED,
            "sign_in_refused",
            "name or password is wrong",
        ));
    };
    forgive(app, &keys);
    let lifetime = app.lifetime(kind);
    let created = app
        .store
        .write(move |tx| {
            let created = session::create(tx, kind, &subject, &roles, lifetime, now_s)?;
            let via = match kind {
                Kind::Session => Via::Session,
                Kind::Token => Via::Token { id: created.id.clone() },
            };
            let principal = Principal { subject, roles, via };
            let detail = serde_json::json!({ "address": address, "session": created.id });
            act::append(tx, &principal.audit_name(), "sign_in", "-", Outcome::Completed, detail)?;
            Ok::<_, Failure>((created, principal.roles))
        })
        .await?;
    Ok(created)
}

/// Ends the sign-in of `operator`.
pub(crate) async fn sign_out(app: &Arc<App>, operator: &Operator) -> Result<(), Failure> {
    let id = operator.session_id.clone();
    let actor = operator.principal.audit_name();
    app.store
        .write(move |tx| {
            session::end(tx, &id)?;
            let detail = serde_json::json!({ "session": id });
            act::append(tx, &actor, "sign_out", "-", Outcome::Completed, detail)
        })
        .await
}

fn attempt(app: &App, keys: &[String], now_s: i64) -> Result<(), Failure> {
    let mut throttle = app.throttle.lock().unwrap_or_else(PoisonError::into_inner);
    for key in keys {
        throttle.attempt(key, now_s).map_err(|wait_s| {
            Failure::refused(
                StatusCode::TOO_MANY_REQUESTS,
                "sign_in_too_often",
                format!("too many sign-ins failed; wait {wait_s} seconds"),
            )
        })?;
    }
    Ok(())
}

fn forgive(app: &App, keys: &[String]) {
    let mut throttle = app.throttle.lock().unwrap_or_else(PoisonError::into_inner);
    keys.iter().for_each(|key| throttle.forgive(key));
}

impl App {
    /// The session cookie's name. Over TLS the browser itself holds it to this host and to TLS.
    pub(crate) fn cookie_name(&self) -> &'static str {
        if self.console_is_tls() { "__Host-fulmar" } else { "fulmar" }
    }

    /// `Set-Cookie` for a new session; `None` ends it in the browser.
    pub(crate) fn set_cookie(&self, secret: Option<&str>) -> String {
        let secure = if self.console_is_tls() { "; Secure" } else { "" };
        let (value, age_s) = match secret {
            Some(secret) => (secret, i64::from(self.config.console.session_hours_max) * 3_600),
            None => ("", 0),
        };
        format!(
            "{}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age_s}{secure}",
            self.cookie_name()
        )
    }

    fn lifetime(&self, kind: Kind) -> Lifetime {
        let console = &self.config.console;
        Lifetime {
            idle_s: (kind == Kind::Session).then(|| i64::from(console.session_idle_minutes) * 60),
            max_s: i64::from(console.session_hours_max) * 3_600,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(k, v)| (header::HeaderName::from_static(k), http::HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn a_change_by_cookie_must_come_from_our_own_page() {
        let host = ("host", "127.0.0.1:7480");
        let own = [
            headers(&[host, ("origin", "http://127.0.0.1:7480")]),
            headers(&[host, ("sec-fetch-site", "same-origin")]),
        ];
        let foreign = [
            headers(&[host]),
            headers(&[host, ("origin", "http://127.0.0.1:9999")]),
            headers(&[host, ("origin", "null")]),
            headers(&[host, ("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")]),
            headers(&[host, ("sec-fetch-site", "same-site")]),
        ];
        own.iter().for_each(|h| same_origin(h).unwrap());
        assert!(foreign.iter().all(|h| same_origin(h).is_err()));
    }

    #[test]
    fn only_loopback_names_are_served_without_tls() {
        for host in ["localhost:7480", "127.0.0.1:1", "[::1]:7480", "127.0.0.1"] {
            assert!(host_is_loopback(&headers(&[("host", host)])), "{host}");
        }
        for host in ["evil.example:7480", "localhost.evil.example", "10.0.0.1:7480", ""] {
            assert!(!host_is_loopback(&headers(&[("host", host)])), "{host}");
        }
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let headers = headers(&[("cookie", "a=1; xfulmar=no; fulmar=yes")]);
        assert_eq!(cookie(&headers, "fulmar").as_deref(), Some("yes"));
        assert_eq!(cookie(&headers, "__Host-fulmar"), None);
    }
}
