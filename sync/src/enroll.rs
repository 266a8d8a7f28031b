//! Joining a fleet: a join token, a key made here, a certificate signed there.
//!
//! The private key never leaves the device, and the first contact is checked against the CA whose
//! fingerprint the token carries. The roots of both repositories are trusted from then on; the
//! registry's only if it is the one that the token names, or that was brought by hand: whoever holds
//! the control plane at that moment brings no owner of his own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_policy::audit::{Event, Outcome};
use fulmar_protocol::{
    DeviceFacts, EnrollAnswerFile, EnrollRequest, EnrollRequestFile, EnrollResponse, JoinToken,
    JoinTokenError, RenewRequest, device_name_is_valid,
};
use fulmar_registry::Digest;
use fulmar_registry::trust::{Repo, RootPin, TrustError, Trusted};
use fulmar_store::{Store, StoreError};
use rcgen::{CertificateParams, KeyPair};
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;

use crate::clock::SignedClock;
use crate::identity::{Identity, IdentityError, write_secret};
use crate::outbox;
use crate::state;
use crate::transport::{Transport, TransportError};

/// What a device says of itself when it joins.
#[derive(Debug, Clone)]
pub struct Enrollment {
    /// The join token as text.
    pub token: String,
    /// A name for people, 1 to 63 of `[a-z0-9-]`.
    pub name: String,
    /// The public half of the device's audit key, hex.
    pub audit_key: String,
    /// What the device is.
    pub facts: DeviceFacts,
    /// Where the identity is to lie.
    pub identity_path: PathBuf,
    /// Who asked for it, for the audit log.
    pub actor: String,
    /// The owner's registry root, brought by hand: goes before the one that the join token names.
    pub registry_root: Option<Vec<u8>>,
}

/// Why a device could not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The token.
    #[error("enroll: {0}")]
    Token(#[from] JoinTokenError),
    /// The name.
    #[error("enroll as {found:?}: a device's name has 1 to 63 characters out of a-z 0-9 -")]
    Name {
        /// The name asked for.
        found: String,
    },
    /// It is a member already.
    #[error(
        "enroll: this device is {device_id} of the fleet at {url} already; remove {path} first if \
         it is to join another"
    )]
    Member {
        /// Its id there.
        device_id: String,
        /// The fleet's address.
        url: String,
        /// The identity's file.
        path: PathBuf,
    },
    /// The identity's file.
    #[error("enroll: {0}")]
    Identity(#[from] IdentityError),
    /// The key or the certificate request.
    #[error("enroll: make a key and a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// The control plane.
    #[error("enroll: {0}")]
    Transport(#[from] TransportError),
    /// The answer.
    #[error("enroll: the control plane's answer is not usable: {reason}")]
    Answer {
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody says which root is the owner's.
    #[error(
        "enroll: the join token names no root of the registry (the control plane had none when the \
         token was made, or is an older one), so nothing would keep another owner out; ask for a \
         new token once the registry is there, or bring the owner's root: --registry-root FILE"
    )]
    Unpinned,
    /// The control plane has no root, or will not show it.
    #[error(
        "enroll: the control plane brought no root of the registry, and the join token names \
         version {version}; it is not the control plane that made the token, or was set back"
    )]
    NoRegistryRoot {
        /// The version that the token names.
        version: u64,
    },
    /// A repository's root.
    #[error("enroll: trust the fleet's repositories: {0}")]
    Trust(#[from] Box<TrustError>),
    /// The audit log.
    #[error("enroll: {0}")]
    Audit(#[from] fulmar_policy::audit::AuditError),
    /// The database.
    #[error("enroll: {0}")]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for EnrollError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Joins the fleet that the token names.
///
/// # Errors
/// [`EnrollError`]; the device is no member then, and may try again with the same token unless the
/// control plane says that it was used.
pub async fn enroll(
    store: &Store,
    clock: Arc<SignedClock>,
    enrollment: &Enrollment,
) -> Result<Identity, EnrollError> {
    let Asked { token, registry, key, request } = ask(enrollment)?;
    let transport = Transport::pinned(&token.url, pin(&token)?, Arc::clone(&clock))?;
    let response = transport.enroll(&request).await?;
    join(store, &clock, enrollment, Terms { token, registry, key }, response).await
}

/// What a device asks with.
struct Asked {
    token: JoinToken,
    registry: RootPin,
    key: KeyPair,
    request: EnrollRequest,
}

fn ask(enrollment: &Enrollment) -> Result<Asked, EnrollError> {
    let token = JoinToken::decode(&enrollment.token)?;
    if !device_name_is_valid(&enrollment.name) {
        return Err(EnrollError::Name { found: enrollment.name.clone() });
    }
    let path = &enrollment.identity_path;
    if let Some(Identity { device_id, url, .. }) = Identity::load(path)? {
        return Err(EnrollError::Member { device_id, url, path: path.clone() });
    }
    let registry = registry_pin(enrollment, &token)?;
    let key = pending_key(path)?;
    let request = EnrollRequest {
        secret: token.secret.clone(),
        name: enrollment.name.clone(),
        csr_pem: request_pem(&key)?,
        audit_key: enrollment.audit_key.clone(),
        facts: enrollment.facts.clone(),
        // By hand, the root is here already, and the control plane need not have it.
        registry_root_version: match enrollment.registry_root {
            Some(_) => None,
            None => Some(registry.version),
        },
    };
    Ok(Asked { token, registry, key, request })
}

/// The root that is the owner's, as somebody said who is not asked over the link.
fn registry_pin(enrollment: &Enrollment, token: &JoinToken) -> Result<RootPin, EnrollError> {
    if let Some(root) = &enrollment.registry_root {
        return Ok(RootPin::of(Repo::Registry, root).map_err(Box::new)?);
    }
    let Some(named) = &token.registry_root else { return Err(EnrollError::Unpinned) };
    let digest = Digest::from_hex(&named.sha256)
        .map_err(|error| EnrollError::Answer { reason: error.to_string() })?;
    Ok(RootPin { version: named.version, digest })
}

/// The request of a device that has no link, for a file.
///
/// # Errors
/// [`EnrollError`].
pub fn enroll_request(enrollment: &Enrollment) -> Result<EnrollRequestFile, EnrollError> {
    Ok(EnrollRequestFile { schema: 1, request: ask(enrollment)?.request })
}

/// Joins the fleet with the answer that came by file. It must be signed by the CA that the join
/// token names, and be for the key that the request was made with.
///
/// # Errors
/// [`EnrollError`]; the device is no member then.
pub async fn enroll_by_answer(
    store: &Store,
    clock: Arc<SignedClock>,
    enrollment: &Enrollment,
    answer: &[u8],
) -> Result<Identity, EnrollError> {
    let Asked { token, registry, key, .. } = ask(enrollment)?;
    let unusable = |reason: String| EnrollError::Answer { reason };
    let (response, words, signature) =
        EnrollAnswerFile::read(answer).map_err(|e| unusable(e.to_string()))?;
    let ca = check_ca(&response, pin(&token)?)?;
    let signature = crate::run::unhex(&signature).unwrap_or_default();
    if !signed_by(&ca, &words, &signature) {
        return Err(unusable("it is not signed by the CA that the join token names".to_owned()));
    }
    if !certificate_is_for(&response.certificate_pem, &key) {
        return Err(unusable("its certificate is for another device's request".to_owned()));
    }
    join(store, &clock, enrollment, Terms { token, registry, key }, response).await
}

fn signed_by(ca: &[u8], words: &[u8], signature: &[u8]) -> bool {
    let Ok((_, ca)) = x509_parser::parse_x509_certificate(ca) else { return false };
    let key = &ca.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(words, signature).is_ok()
}

fn certificate_is_for(pem: &str, key: &KeyPair) -> bool {
    let first = CertificateDer::pem_slice_iter(pem.as_bytes()).next();
    let Some(Ok(certificate)) = first else { return false };
    x509_parser::parse_x509_certificate(&certificate).is_ok_and(|(_, certificate)| {
        certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
    })
}

/// What was known before the control plane answered.
struct Terms {
    token: JoinToken,
    registry: RootPin,
    key: KeyPair,
}

/// Where trust begins, checked.
struct Roots {
    registry: Vec<u8>,
    pin: RootPin,
    director: Vec<u8>,
}

impl Roots {
    fn of(
        response: &EnrollResponse,
        enrollment: &Enrollment,
        pin: RootPin,
    ) -> Result<Self, EnrollError> {
        let root = |field: &'static str, text: &str| {
            STANDARD.decode(text).map_err(|_| EnrollError::Answer {
                reason: format!("{field} is not base64 of a root"),
            })
        };
        let director = root("director_root", &response.director_root)?;
        let registry = match &enrollment.registry_root {
            Some(root) => root.clone(),
            None => root("registry_root", &response.registry_root)?,
        };
        if registry.is_empty() {
            return Err(EnrollError::NoRegistryRoot { version: pin.version });
        }
        pin.check_first(Repo::Registry, &registry).map_err(Box::new)?;
        Ok(Self { registry, pin, director })
    }
}

/// Makes the device a member by the control plane's answer.
async fn join(
    store: &Store,
    clock: &SignedClock,
    enrollment: &Enrollment,
    terms: Terms,
    response: EnrollResponse,
) -> Result<Identity, EnrollError> {
    let Terms { token, registry, key } = terms;
    check_ca(&response, pin(&token)?)?;
    let roots = Roots::of(&response, enrollment, registry)?;
    let path = &enrollment.identity_path;
    let identity = Identity {
        device_id: response.device_id.clone(),
        name: enrollment.name.clone(),
        url: token.url.trim_end_matches('/').to_owned(),
        certificate_pem: response.certificate_pem.clone(),
        ca_pem: response.ca_pem.clone(),
        audit_cosign_key: response.audit_cosign_key.clone(),
        key_pem: key.serialize_pem(),
    };
    trust(store, roots, clock.now_s(), &enrollment.actor, &identity).await?;
    // Last: a device is a member when this file is there.
    identity.save(path)?;
    let _ = std::fs::remove_file(pending_path(path));
    Ok(identity)
}

/// Makes both repositories' roots trusted, begins membership and records it, all at once.
async fn trust(
    store: &Store,
    roots: Roots,
    now_s: i64,
    actor: &str,
    identity: &Identity,
) -> Result<(), EnrollError> {
    let Roots { registry, pin, director } = roots;
    let device_id = identity.device_id.clone();
    let (actor, url) = (actor.to_owned(), identity.url.clone());
    let name = identity.name.clone();
    store
        .write(move |tx| {
            pin.store(tx, Repo::Registry).map_err(Box::new)?;
            Trusted::bootstrap(tx, Repo::Registry, &registry, now_s).map_err(Box::new)?;
            Trusted::bootstrap(tx, Repo::Director, &director, now_s).map_err(Box::new)?;
            if state::begin(tx, &device_id)? {
                outbox::record_earlier(tx)?;
            }
            let event = Event {
                at_s: now_s,
                actor: &actor,
                action: "device.enroll",
                resource: &device_id,
                outcome: Outcome::Completed,
                opened: None,
                detail: json!({
                    "url": url,
                    "name": name,
                    "registry_root": { "version": pin.version, "digest": pin.digest },
                }),
            };
            outbox::record(tx, &event)?;
            Ok::<_, EnrollError>(())
        })
        .await
}

/// The fingerprint in the token; its form was checked when it was decoded.
fn pin(token: &JoinToken) -> Result<[u8; 32], EnrollError> {
    Digest::from_hex(&token.ca_sha256)
        .map(|digest| *digest.as_bytes())
        .map_err(|error| EnrollError::Answer { reason: error.to_string() })
}

/// The CA of the answer must be the one of the token: all later connections rest on it.
fn check_ca(
    response: &EnrollResponse,
    ca_sha256: [u8; 32],
) -> Result<CertificateDer<'static>, EnrollError> {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(response.ca_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| EnrollError::Answer { reason: format!("ca_pem: {error}") })?;
    match certificates.as_slice() {
        [ca] if digest(&SHA256, ca).as_ref() == ca_sha256 => Ok(ca.clone()),
        _ => Err(EnrollError::Answer {
            reason: "ca_pem is not the one CA that the join token names".to_owned(),
        }),
    }
}

fn pending_path(identity_path: &Path) -> PathBuf {
    identity_path.with_extension("pending-key")
}

/// The key is on the disk before it is used, so that a device that is cut off in between can ask
/// again with the same key.
fn pending_key(identity_path: &Path) -> Result<KeyPair, EnrollError> {
    let path = pending_path(identity_path);
    if let Ok(pem) = std::fs::read_to_string(&path)
        && let Ok(key) = KeyPair::from_pem(&pem)
    {
        return Ok(key);
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    write_secret(&path, key.serialize_pem().as_bytes()).map_err(|source| IdentityError::File {
        op: "write the key of",
        path,
        source,
    })?;
    Ok(key)
}

/// The control plane decides what the certificate says; a request only proves the key.
fn request_pem(key: &KeyPair) -> Result<String, rcgen::Error> {
    CertificateParams::new(Vec::new())?.serialize_request(key)?.pem()
}

/// Asks for a new certificate when less than a third of the present one's life is left. Returns
/// the new identity, written to `path`.
///
/// # Errors
/// [`EnrollError`]; the present certificate stays in use.
pub(crate) async fn renew(
    identity: &Identity,
    path: &Path,
    transport: &Transport,
    now_s: i64,
) -> Result<Option<Identity>, EnrollError> {
    let Some((not_before, not_after)) = identity.validity_s() else { return Ok(None) };
    if not_after - now_s > (not_after - not_before) / 3 {
        return Ok(None);
    }
    let key = KeyPair::from_pem(&identity.key_pem)?;
    let request = RenewRequest { csr_pem: request_pem(&key)? };
    let certificate_pem = transport.renew(&request).await?.certificate_pem;
    let renewed = Identity { certificate_pem, ..identity.clone() };
    if renewed.validity_s().is_none_or(|(_, until)| until <= not_after) {
        let reason = "the renewed certificate is not good for longer".to_owned();
        return Err(EnrollError::Answer { reason });
    }
    renewed.save(path)?;
    Ok(Some(renewed))
}
