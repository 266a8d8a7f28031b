//! Which device asks: by its certificate, looked up at every request, so that a removed device is
//! refused at once.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::StatusCode;
use http::request::Parts;

use crate::app::App;
use crate::ca::{sha256_hex, subject};
use crate::failure::Failure;
use crate::fleet;
use crate::listen::Peer;

/// A member of the fleet.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    /// Its id.
    pub(crate) id: String,
    /// Where it connects from.
    pub(crate) address: std::net::SocketAddr,
    /// It uses the certificate before its last renewal.
    pub(crate) by_certificate_before: bool,
}

impl FromRequestParts<Arc<App>> for Device {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let peer = peer(parts)?;
        let Some(certificate) = peer.certificate else {
            return Err(Failure::refused(
                StatusCode::UNAUTHORIZED,
                "certificate_required",
                "this path needs the device's client certificate; enroll first",
            ));
        };
        let fingerprint = sha256_hex(&certificate);
        let member = app.store.read(move |c| fleet::by_certificate(c, &fingerprint)).await?;
        let refused =
            |code, message: &str| Failure::refused(StatusCode::FORBIDDEN, code, message.to_owned());
        let Some(member) = member else {
            return Err(refused("device_unknown", "this certificate belongs to no device here"));
        };
        if member.removed {
            return Err(refused("device_removed", "this device was removed from the fleet"));
        }
        // The row and the certificate were made together; if they differ, neither is believed.
        if subject(&certificate).as_deref() != Some(member.id.as_str()) {
            return Err(refused("device_unknown", "the certificate names another device"));
        }
        Ok(Self {
            id: member.id,
            address: peer.address,
            by_certificate_before: member.by_certificate_before,
        })
    }
}

/// The connection's other end.
pub(crate) fn peer(parts: &Parts) -> Result<Peer, Failure> {
    parts
        .extensions
        .get::<Peer>()
        .cloned()
        .ok_or_else(|| Failure::internal("find the connection", "the request has no peer"))
}
