//! What a log entry is about: it must be this signature, by this certificate, over this payload.
//! An entry of something else, with all its proofs, is the oldest trick against such bundles
//! (CVE-2022-36056).
//!
//! Known are the kinds that envelopes are logged as: `dsse` 0.0.1 and 0.0.2, `intoto` 0.0.2, and
//! `hashedrekord` 0.0.2. `hashedrekord` 0.0.1 is for bare files, `intoto` 0.0.1 does not name the
//! signature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::bundle::{Base64, LogEntry};
use super::der::Hash;
use super::{Signed, SigstoreError};

const KINDS: &str = "dsse 0.0.1 or 0.0.2, intoto 0.0.2, hashedrekord 0.0.2";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    kind: String,
    api_version: String,
    spec: serde_json::Value,
}

/// `dsse` 0.0.1.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dsse1 {
    payload_hash: HexHash,
    signatures: Vec<Dsse1Signature>,
}

#[derive(Debug, Deserialize)]
struct Dsse1Signature {
    signature: Base64,
    /// PEM.
    verifier: Base64,
}

/// `intoto` 0.0.2.
#[derive(Debug, Deserialize)]
struct Intoto2 {
    content: IntotoContent,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IntotoContent {
    envelope: IntotoEnvelope,
    payload_hash: HexHash,
}

#[derive(Debug, Deserialize)]
struct IntotoEnvelope {
    signatures: Vec<IntotoSignature>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IntotoSignature {
    /// In base64 twice.
    sig: Base64,
    /// PEM.
    public_key: Base64,
}

#[derive(Debug, Deserialize)]
struct HexHash {
    algorithm: String,
    value: String,
}

/// `dsse` 0.0.2.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dsse2 {
    dsse_v002: Dsse2Content,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dsse2Content {
    payload_hash: RawHash,
    signatures: Vec<RawSignature>,
}

/// `hashedrekord` 0.0.2.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hashed2 {
    hashed_rekord_v002: Hashed2Content,
}

#[derive(Debug, Deserialize)]
struct Hashed2Content {
    data: RawHash,
    signature: RawSignature,
}

#[derive(Debug, Deserialize)]
struct RawHash {
    algorithm: String,
    digest: Base64,
}

#[derive(Debug, Deserialize)]
struct RawSignature {
    content: Base64,
    verifier: Verifier,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Verifier {
    x509_certificate: super::bundle::Certificate,
}

/// What an entry of any kind says.
struct Said {
    algorithm: String,
    digest: Vec<u8>,
    /// Signatures, each with its certificate in DER.
    signatures: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the digest is of.
    of: Of,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Payload,
    Message,
}

/// Checks that the entry is of this signature, this certificate and these bytes.
pub(super) fn verify(
    entry: &LogEntry,
    signed: &Signed<'_>,
    certificate: &CertificateDer<'_>,
) -> Result<(), SigstoreError> {
    let body: Body = read("body", &entry.canonicalized_body.0)?;
    let kind = format!("{} {}", body.kind, body.api_version);
    let promised = format!("{} {}", entry.kind_version.kind, entry.kind_version.version);
    if kind != promised {
        return Err(wrong("kind", &kind, &format!("{promised}, as the bundle says")));
    }
    let said = said(&kind, body.spec)?;
    let (field, bytes) = match said.of {
        Of::Payload => ("payload hash", signed.payload),
        Of::Message => ("data digest", signed.message),
    };
    let expected = Hash::from_name(&said.algorithm)
        .ok_or_else(|| wrong("hash algorithm", &said.algorithm, "SHA-256, SHA-384 or SHA-512"))?
        .of(bytes);
    if said.digest != expected {
        let expected = format!("{}, that of this bundle", hex::encode(expected));
        return Err(wrong(field, &hex::encode(said.digest), &expected));
    }
    let [(signature, verifier)] = said.signatures.as_slice() else {
        return Err(wrong("signatures", &said.signatures.len().to_string(), "exactly one"));
    };
    if signature != signed.signature {
        return Err(wrong("signature", &STANDARD.encode(signature), "this bundle's"));
    }
    if verifier != certificate.as_ref() {
        let found = format!("with SHA-256 {}", crate::Digest::of(verifier).hex());
        return Err(wrong("certificate", &found, "this bundle's"));
    }
    Ok(())
}

fn said(kind: &str, spec: serde_json::Value) -> Result<Said, SigstoreError> {
    Ok(match kind {
        "dsse 0.0.1" => {
            let spec: Dsse1 = value("spec", spec)?;
            let pair = |s: Dsse1Signature| Ok((s.signature.0, from_pem(&s.verifier.0)?));
            Said {
                signatures: spec.signatures.into_iter().map(pair).collect::<Result<_, _>>()?,
                ..payload_hash(spec.payload_hash)?
            }
        }
        "intoto 0.0.2" => {
            let IntotoContent { envelope, payload_hash: hash } =
                value::<Intoto2>("spec", spec)?.content;
            let pair = |s: IntotoSignature| {
                let signature = STANDARD
                    .decode(&s.sig.0)
                    .map_err(|error| wrong("sig", &error.to_string(), "base64 in base64"))?;
                Ok((signature, from_pem(&s.public_key.0)?))
            };
            Said {
                signatures: envelope.signatures.into_iter().map(pair).collect::<Result<_, _>>()?,
                ..payload_hash(hash)?
            }
        }
        "dsse 0.0.2" => {
            let Dsse2Content { payload_hash, signatures } = value::<Dsse2>("spec", spec)?.dsse_v002;
            let pair = |s: RawSignature| (s.content.0, s.verifier.x509_certificate.der.0);
            Said {
                algorithm: payload_hash.algorithm,
                digest: payload_hash.digest.0,
                signatures: signatures.into_iter().map(pair).collect(),
                of: Of::Payload,
            }
        }
        "hashedrekord 0.0.2" => {
            let Hashed2Content { data, signature } =
                value::<Hashed2>("spec", spec)?.hashed_rekord_v002;
            Said {
                algorithm: data.algorithm,
                digest: data.digest.0,
                signatures: vec![(signature.content.0, signature.verifier.x509_certificate.der.0)],
                of: Of::Message,
            }
        }
        _ => return Err(wrong("kind", kind, KINDS)),
    })
}

fn payload_hash(hash: HexHash) -> Result<Said, SigstoreError> {
    let digest = hex::decode(&hash.value).map_err(|_| wrong("payload hash", &hash.value, "hex"))?;
    Ok(Said { algorithm: hash.algorithm, digest, signatures: Vec::new(), of: Of::Payload })
}

fn from_pem(bytes: &[u8]) -> Result<Vec<u8>, SigstoreError> {
    let expected = "a certificate in PEM";
    let (_, pem) = x509_parser::pem::parse_x509_pem(bytes)
        .map_err(|error| wrong("certificate", &error.to_string(), expected))?;
    match pem.label.as_str() {
        "CERTIFICATE" => Ok(pem.contents),
        label => Err(wrong("certificate", label, expected)),
    }
}

fn read<T: DeserializeOwned>(field: &'static str, bytes: &[u8]) -> Result<T, SigstoreError> {
    serde_json::from_slice(bytes).map_err(|error| wrong(field, &error.to_string(), KINDS))
}

fn value<T: DeserializeOwned>(
    field: &'static str,
    value: serde_json::Value,
) -> Result<T, SigstoreError> {
    serde_json::from_value(value).map_err(|error| wrong(field, &error.to_string(), KINDS))
}

fn wrong(field: &'static str, found: &str, expected: &str) -> SigstoreError {
    let found = super::error::short(found);
    SigstoreError::Entry { field, found, expected: expected.to_owned() }
}
