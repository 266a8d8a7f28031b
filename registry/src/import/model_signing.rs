//! OpenSSF model signing: a publisher's own signature over a model's files, checked where a model
//! is imported with one.
//!
//! The bundle is a Sigstore bundle (v0.3; keyless v0.1 and v0.2 too) around a DSSE envelope around an in-toto statement with
//! predicate `https://model_signing/signature/v1.0`, which names each file with its SHA-256.
//! Trusted are public keys, certificate chains up to roots, and the identities of keyless
//! signatures under a Sigstore's trusted root ([`super::sigstore`]), all as this device's owner has
//! configured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{Context, SHA256};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::Deserialize;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::sigstore::bundle::{Bundle, Chain, Material, Version};
use super::sigstore::key::{Key, Kind};
use super::sigstore::{Keyless, Signed, SigstoreError};
use crate::Digest;

/// Longest bundle accepted, in bytes.
pub const BUNDLE_BYTES_MAX: u64 = 4 << 20;
/// Longest file of keys or certificates accepted, in bytes.
const PEM_BYTES_MAX: u64 = 1 << 20;
const BUNDLE_TYPES: &str = "a Sigstore bundle of version 0.1, 0.2 or 0.3";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// What a statement of model signing says it is.
pub(super) const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// What a bundle over a single file calls it.
const ONLY_FILE: &str = ".";
/// DER of the object identifier 1.3.6.1.5.5.7.3.3, code signing.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];

/// Why a publisher's signature was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// A file of trusted keys or roots.
    #[error("read trusted signers from {path}: {reason}")]
    Trusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The bundle is not one that can be read.
    #[error("read the model's signature: {field} is {found}, expected {expected}")]
    Bundle {
        /// Which part.
        field: &'static str,
        /// What was found.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// Signed by way of Sigstore, and that does not count.
    #[error("verify the model's signature, made keyless by way of Sigstore")]
    Keyless(#[from] SigstoreError),
    /// No trusted signer made it.
    #[error(
        "verify the model's signature: {reason}; trusted are {trusted}; name the publisher's key \
         in registry.signing_keys, or the root of its certificates in registry.signing_roots, if \
         you know it to be theirs"
    )]
    Untrusted {
        /// What did not hold.
        reason: String,
        /// Who would be.
        trusted: String,
    },
    /// The signature does not speak of the file.
    #[error("verify the model's signature: it names {named} files, {path} is not among them")]
    NotNamed {
        /// The file.
        path: String,
        /// How many it names.
        named: usize,
    },
    /// The file is another than the one that was signed.
    #[error("verify the model's signature: {path} was signed as {signed}, it is {found}")]
    Differs {
        /// The file.
        path: String,
        /// By the signature.
        signed: Digest,
        /// The file's own.
        found: Digest,
    },
}

fn bundle(field: &'static str, found: impl ToString, expected: &'static str) -> SigningError {
    let found: String = found.to_string().chars().take(200).collect();
    SigningError::Bundle { field, found: format!("{found:?}"), expected }
}

/// Signers' own keys are on elliptic curves, as the format says.
fn elliptic(key: Key) -> Result<Key, String> {
    match key.kind() {
        Kind::P256 | Kind::P384 => Ok(key),
        kind => Err(format!("a key of {kind:?}, expected P-256 or P-384")),
    }
}

/// Whose signatures count: configured by the device's owner.
#[derive(Debug, Clone, Default)]
pub struct TrustedSigners {
    keys: Vec<(PathBuf, Key)>,
    roots: Vec<TrustAnchor<'static>>,
    keyless: Keyless,
}

impl TrustedSigners {
    /// Reads PEM files: public keys, and certificates that chains may end in.
    ///
    /// # Errors
    /// [`SigningError::Trusted`].
    pub fn read(keys: &[PathBuf], roots: &[PathBuf]) -> Result<Self, SigningError> {
        let mut signers = Self::default();
        for path in keys {
            let refuse = |reason| SigningError::Trusted { path: path.clone(), reason };
            for der in pem(path, "PUBLIC KEY")? {
                let key = Key::from_der(&der).and_then(elliptic).map_err(refuse)?;
                signers.keys.push((path.clone(), key));
            }
        }
        for path in roots {
            for der in pem(path, "CERTIFICATE")? {
                let certificate = CertificateDer::from(der);
                let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(|error| {
                    let reason = format!("no certificate to trust: {error}");
                    SigningError::Trusted { path: path.clone(), reason }
                })?;
                signers.roots.push(anchor.to_owned());
            }
        }
        Ok(signers)
    }

    /// And those of keyless signatures.
    #[must_use]
    pub fn with_keyless(self, keyless: Keyless) -> Self {
        Self { keyless, ..self }
    }

    fn describe(&self) -> String {
        let identities = self.keyless.identities.len();
        match (self.keys.len(), self.roots.len(), identities) {
            (0, 0, 0) => "none".to_owned(),
            (keys, roots, 0) => format!("{keys} keys and {roots} roots of certificates"),
            (keys, roots, identities) => format!(
                "{keys} keys, {roots} roots of certificates and {identities} identities of \
                 keyless signatures"
            ),
        }
    }
}

/// The DER of all blocks of one kind in a PEM file; at least one.
fn pem(path: &Path, label: &str) -> Result<Vec<Vec<u8>>, SigningError> {
    let refuse = |reason: String| SigningError::Trusted { path: path.to_owned(), reason };
    let size_bytes = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?.len();
    if size_bytes > PEM_BYTES_MAX {
        return Err(refuse(format!("it has {size_bytes} bytes, the limit is {PEM_BYTES_MAX}")));
    }
    let bytes = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let mut found = Vec::new();
    for block in x509_parser::pem::Pem::iter_from_buffer(&bytes) {
        let block = block.map_err(|error| refuse(format!("no PEM: {error}")))?;
        if block.label == label {
            found.push(block.contents);
        }
    }
    if found.is_empty() {
        return Err(refuse(format!("there is no PEM block {label:?} in it")));
    }
    Ok(found)
}

#[derive(Debug, Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Debug, Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Debug, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
}

#[derive(Debug, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

/// Files that a trusted signer vouches for.
#[derive(Debug, Clone)]
pub struct SignedFiles {
    signer: String,
    files: BTreeMap<String, Digest>,
}

impl SignedFiles {
    /// Who signed, in words.
    #[must_use]
    pub fn signer(&self) -> &str {
        &self.signer
    }

    /// Checks that the signer has named this file with this digest.
    ///
    /// # Errors
    /// [`SigningError::NotNamed`], [`SigningError::Differs`].
    pub fn check(&self, path: &str, found: &Digest) -> Result<(), SigningError> {
        let only = self.files.get(ONLY_FILE).filter(|_| self.files.len() == 1);
        let signed = self.files.get(path).or(only).ok_or_else(|| SigningError::NotNamed {
            path: path.to_owned(),
            named: self.files.len(),
        })?;
        if signed != found {
            let (path, signed, found) = (path.to_owned(), *signed, *found);
            return Err(SigningError::Differs { path, signed, found });
        }
        Ok(())
    }

    /// Checks that the signer has named some file with this digest: for sources that have no names
    /// for files.
    ///
    /// # Errors
    /// [`SigningError::NotNamed`].
    pub fn check_any(&self, found: &Digest) -> Result<(), SigningError> {
        if self.files.values().any(|signed| signed == found) {
            return Ok(());
        }
        let (path, named) = (format!("a file with {found}"), self.files.len());
        Err(SigningError::NotNamed { path, named })
    }
}

/// Whether a bundle holds a statement of model signing, true or not: other bundles say nothing of a
/// model's files.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    let read = serde_json::from_slice::<Bundle>(bytes).ok();
    let payload = read.and_then(|read| read.dsse_envelope).map(|envelope| envelope.payload.0);
    let statement: Option<serde_json::Value> =
        payload.and_then(|payload| serde_json::from_slice(&payload).ok());
    statement.is_some_and(|statement| statement["predicateType"] == PREDICATE_TYPE)
}

/// Verifies a bundle at `now_s` (seconds since 1970): the signature first, then what it says.
///
/// # Errors
/// [`SigningError`].
pub fn verify(
    bytes: &[u8],
    signers: &TrustedSigners,
    now_s: i64,
) -> Result<SignedFiles, SigningError> {
    let read: Bundle = serde_json::from_slice(bytes)
        .map_err(|error| bundle("the bundle", error, "the JSON of a Sigstore bundle"))?;
    let version = Version::of(&read.media_type)
        .ok_or_else(|| bundle("mediaType", &read.media_type, BUNDLE_TYPES))?;
    let envelope =
        read.dsse_envelope.ok_or_else(|| bundle("dsseEnvelope", "missing", "a DSSE envelope"))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(bundle("payloadType", envelope.payload_type, PAYLOAD_TYPE));
    }
    let [signature] = envelope.signatures.as_slice() else {
        return Err(bundle("signatures", envelope.signatures.len(), "exactly one signature"));
    };
    let (signature, payload) = (signature.sig.0.as_slice(), envelope.payload.0.as_slice());
    // DSSE's pre-authentication encoding.
    let mut message =
        format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    let material = &read.verification_material;
    // Each way is as strict as the other, so the bundle may say which one it went.
    let signer = match material {
        Material {
            certificate: None,
            public_key: None,
            x509_certificate_chain: Some(chain),
            ..
        } if material.tlog_entries.is_empty() => {
            by_certificate(chain, signers, &message, signature, now_s)?
        }
        Material {
            certificate: None, public_key: Some(_), x509_certificate_chain: None, ..
        } => by_key(signers, &message, signature)?,
        Material { certificate: None, x509_certificate_chain: None, .. } => {
            return Err(bundle("verificationMaterial", "empty", "a public key or certificates"));
        }
        _ => {
            let signed = Signed { message: &message, payload, signature };
            let by = signers.keyless.verify(version, material, &signed, now_s)?;
            format!("{} of {}, signed at {}", by.subject, by.issuer, by.time)
        }
    };
    Ok(SignedFiles { signer, files: files(payload)? })
}

/// The bundle's own hint is not asked: any trusted key will do.
fn by_key(
    signers: &TrustedSigners,
    message: &[u8],
    signature: &[u8],
) -> Result<String, SigningError> {
    let found = signers.keys.iter().find(|(_, key)| key.made(message, signature));
    let (path, key) = found.ok_or_else(|| SigningError::Untrusted {
        reason: "no trusted key made it".to_owned(),
        trusted: signers.describe(),
    })?;
    Ok(format!("key {} ({})", &key.id().hex()[..16], path.display()))
}

fn by_certificate(
    chain: &Chain,
    signers: &TrustedSigners,
    message: &[u8],
    signature: &[u8],
    now_s: i64,
) -> Result<String, SigningError> {
    let ders: Vec<CertificateDer<'_>> =
        chain.certificates.iter().map(|c| c.der.0.as_slice().into()).collect();
    let [leaf, others @ ..] = ders.as_slice() else {
        return Err(bundle("certificates", "empty", "at least the signer's certificate"));
    };
    let untrusted = |reason: String| SigningError::Untrusted {
        reason: format!("the signer's certificate: {reason}"),
        trusted: signers.describe(),
    };
    let end = EndEntityCert::try_from(leaf).map_err(|error| untrusted(error.to_string()))?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s.max(0).unsigned_abs()));
    // Without a trusted time of signing, the certificates must hold now.
    end.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &signers.roots,
        others,
        now,
        KeyUsage::required_if_present(CODE_SIGNING),
        None,
        None,
    )
    .map_err(|error| untrusted(error.to_string()))?;
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| untrusted(error.to_string()))?;
    let usage = parsed.key_usage().map_err(|error| untrusted(error.to_string()))?;
    let purposes = parsed.extended_key_usage().map_err(|error| untrusted(error.to_string()))?;
    let may_sign = match (usage, purposes) {
        (Some(usage), _) => usage.value.digital_signature(),
        (None, purposes) => purposes.is_some_and(|purposes| purposes.value.code_signing),
    };
    if !may_sign {
        return Err(untrusted("it is not for digital signatures".to_owned()));
    }
    let key = Key::from_spki(parsed.public_key()).and_then(elliptic).map_err(untrusted)?;
    if !key.made(message, signature) {
        return Err(untrusted("its key did not make the signature".to_owned()));
    }
    Ok(format!("certificate of {}", parsed.subject()))
}

/// The files that a statement names.
pub(super) fn files(payload: &[u8]) -> Result<BTreeMap<String, Digest>, SigningError> {
    let statement: Statement = serde_json::from_slice(payload)
        .map_err(|error| bundle("payload", error, "an in-toto statement of model signing"))?;
    if statement.kind != STATEMENT_TYPE {
        return Err(bundle("_type", statement.kind, STATEMENT_TYPE));
    }
    if statement.predicate_type != PREDICATE_TYPE {
        return Err(bundle("predicateType", statement.predicate_type, PREDICATE_TYPE));
    }
    let Predicate { serialization, resources } = statement.predicate;
    if serialization.method != "files" {
        return Err(bundle("serialization.method", serialization.method, "files"));
    }
    if serialization.hash_type != "sha256" {
        return Err(bundle("serialization.hash_type", serialization.hash_type, "sha256"));
    }
    let mut all = Context::new(&SHA256);
    let mut files = BTreeMap::new();
    for Resource { name, algorithm, digest } in resources {
        let parsed = Digest::from_hex(&digest).ok().filter(|_| algorithm == "sha256");
        let digest = parsed.ok_or_else(|| {
            bundle("resources", format!("{name} {algorithm} {digest}"), "sha256 of each file")
        })?;
        all.update(digest.as_bytes());
        if files.insert(name.clone(), digest).is_some() {
            return Err(bundle("resources", name, "each file once"));
        }
    }
    // The subject's digest is that of all digests in their order.
    let found = hex::encode(all.finish());
    match statement.subject.as_slice() {
        [subject] if subject.digest.get("sha256") == Some(&found) => Ok(files),
        _ => Err(bundle("subject", "another digest", "one subject, of all resources together")),
    }
}
