//! Joining the fleet, and renewing the certificate.

use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::extract::{Extension, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_policy::audit::Outcome;
use fulmar_protocol::{EnrollRequest, EnrollResponse, RenewRequest, RenewResponse};
use http::StatusCode;
use ring::rand::{SecureRandom as _, SystemRandom};
use rusqlite::Transaction;

use super::peer::Device;
use crate::app::App;
use crate::body::Body;
use crate::ca::{Ca, CaError, Issued};
use crate::director::Director;
use crate::failure::{Failure, chain};
use crate::listen::Peer;
use crate::{act, deploy, director, fleet, groups, join, mirror, now_s};

/// Signs without doubt: of these, nothing is mistaken for another. 32 of them: 5 bits each.
const ID_SIGNS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ID_LEN: usize = 10;

/// `POST /device/v1/enroll`: a join token becomes a member.
pub(super) async fn enroll(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Body(request): Body<EnrollRequest>,
) -> Result<Json<EnrollResponse>, Failure> {
    let now_s = now_s();
    throttle(&app, &peer, now_s)?;
    let address = peer.address.ip().to_string();
    let worker = Arc::clone(&app);
    let name = request.name.clone();
    let certified = certify(&app.ca, request, now_s)?;
    let joined = app
        .store
        .write(move |tx| admit(tx, &worker.ca, &worker.director, &certified, &address, now_s))
        .await;
    let joined = match joined {
        Ok(joined) => joined,
        Err(failure) => {
            let detail = serde_json::json!({
                "name": name, "address": peer.address.ip().to_string(), "code": failure.code(),
            });
            let actor = format!("{} (enrolling)", peer.address.ip());
            act::note(&app, &actor, "device.enroll", "-", Outcome::Denied, detail).await?;
            return Err(failure);
        }
    };
    forgive(&app, &peer);
    tracing::info!(device = %joined.device_id, %name, "a device joined");
    Ok(Json(EnrollResponse { audit_cosign_key: hex::encode(app.cosigner.public()), ..joined }))
}

/// A request whose form and key are right, with an id and a certificate for it.
pub(crate) struct Certified {
    id: String,
    request: EnrollRequest,
    certificate: Issued,
}

/// Gives a request an id and a certificate. Its signature is checked before the token is touched: a
/// device that sends a bad request keeps its token.
pub(crate) fn certify(ca: &Ca, request: EnrollRequest, now_s: i64) -> Result<Certified, Failure> {
    check(&request)?;
    let id = new_id()?;
    let certificate = ca.device(&id, &request.csr_pem, now_s).map_err(csr_failure)?;
    Ok(Certified { id, request, certificate })
}

/// Makes a certified request a member, if its token is good; the answer lacks the co-signing key.
pub(crate) fn admit(
    tx: &Transaction<'_>,
    ca: &Ca,
    director: &Director,
    certified: &Certified,
    address: &str,
    now_s: i64,
) -> Result<EnrollResponse, Failure> {
    let Certified { id, request, certificate } = certified;
    let token = join::consume(tx, &request.secret, id, now_s)?;
    let new = fleet::NewDevice {
        id,
        name: &request.name,
        audit_key: &request.audit_key.to_ascii_lowercase(),
        facts: &request.facts,
        certificate,
    };
    fleet::insert(tx, &new, now_s)?;
    groups::join(tx, id, &token.groups, &token.created_by, now_s)?;
    deploy::assign_standing(tx, id)?;
    let detail = serde_json::json!({
        "name": request.name, "join_token": token.id, "address": address,
        "certificate_sha256": certificate.fingerprint, "groups": token.groups,
    });
    let actor = format!("{id} (device)");
    act::append(tx, &actor, "device.enroll", id, Outcome::Completed, detail)?;
    director.ensure_root(tx, now_s)?;
    // The root of the token: a device walks the chain from there to the newest by itself.
    let registry_root = mirror::root(tx, request.registry_root_version)?;
    let director_root = director::root(tx, Some(1))?.unwrap_or_default();
    Ok(EnrollResponse {
        device_id: id.clone(),
        certificate_pem: format!("{}{}", certificate.pem, ca.pem()),
        ca_pem: ca.pem().to_owned(),
        registry_root: STANDARD.encode(registry_root),
        director_root: STANDARD.encode(director_root),
        audit_cosign_key: String::new(),
    })
}

/// `POST /device/v1/renew`: a new certificate for a member.
pub(super) async fn renew(
    State(app): State<Arc<App>>,
    device: Device,
    Body(request): Body<RenewRequest>,
) -> Result<Json<RenewResponse>, Failure> {
    let now_s = now_s();
    let certificate = app.ca.device(&device.id, &request.csr_pem, now_s).map_err(csr_failure)?;
    let certificate_pem = format!("{}{}", certificate.pem, app.ca.pem());
    app.store
        .write(move |tx| {
            // Asked for twice, by the certificate before: that one stays the good one of the two.
            if !device.by_certificate_before {
                fleet::renew(tx, &device.id, &certificate)?;
            } else {
                fleet::renew_again(tx, &device.id, &certificate)?;
            }
            let actor = format!("{} (device)", device.id);
            let detail = serde_json::json!({ "certificate_sha256": certificate.fingerprint });
            act::append(tx, &actor, "device.renew", &device.id, Outcome::Completed, detail)
        })
        .await?;
    Ok(Json(RenewResponse { certificate_pem }))
}

fn check(request: &EnrollRequest) -> Result<(), Failure> {
    if !fulmar_protocol::device_name_is_valid(&request.name) {
        return Err(Failure::invalid(
            "name_invalid",
            format!("name is {:?}, expected 1 to 63 of [a-z0-9-]", request.name),
        ));
    }
    if !hex::decode(&request.audit_key).is_ok_and(|key| key.len() == 32) {
        return Err(Failure::invalid("audit_key_invalid", "audit_key is not 32 bytes in hex"));
    }
    super::check_in::check_facts(&request.facts)
}

fn csr_failure(error: CaError) -> Failure {
    match error {
        CaError::Request(reason) => Failure::invalid("csr_invalid", format!("csr_pem: {reason}")),
        other => Failure::internal("sign a device's certificate", chain(&other)),
    }
}

fn new_id() -> Result<String, Failure> {
    let mut bytes = [0_u8; ID_LEN];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::internal("make a device id", "no random numbers"))?;
    let signs = bytes.iter().map(|b| char::from(ID_SIGNS[usize::from(b & 31)]));
    Ok(format!("d-{}", signs.collect::<String>()))
}

/// Join tokens cannot be guessed; this keeps who tries from filling the audit log.
fn throttle(app: &App, peer: &Peer, now_s: i64) -> Result<(), Failure> {
    let key = format!("enroll {}", peer.address.ip());
    let mut throttle = app.throttle.lock().unwrap_or_else(PoisonError::into_inner);
    throttle.attempt(&key, now_s).map_err(|wait_s| {
        Failure::refused(
            StatusCode::TOO_MANY_REQUESTS,
            "enroll_too_often",
            format!("too many enrolments failed from this address; wait {wait_s} seconds"),
        )
    })
}

fn forgive(app: &App, peer: &Peer) {
    let key = format!("enroll {}", peer.address.ip());
    app.throttle.lock().unwrap_or_else(PoisonError::into_inner).forgive(&key);
}
