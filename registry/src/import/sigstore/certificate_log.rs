//! Signed certificate timestamps (RFC 6962, 3.2): a certificate transparency log's promise to show
//! a certificate to all. They are in the certificate itself, so the log has signed what it is
//! without them.

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::SignedCertificateTimestamp;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::SigstoreError;
use super::certificate::promises;
use super::der::{Hash, OBJECT_IDENTIFIER, Reader, SEQUENCE, Wrong, context, encode};
use super::root::Log;
use crate::Digest;

/// DER of 1.3.6.1.4.1.11129.2.4.2, the list of promises.
const PROMISES: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xd6, 0x79, 0x02, 0x04, 0x02];
/// RFC 5246's numbers of hashes.
const SHA256: u8 = 4;
const SHA384: u8 = 5;
const SHA512: u8 = 6;

/// Checks that a trusted log has promised the certificate; `issuer_key` is the digest of the key
/// that signed it.
pub(super) fn verify(
    der: &CertificateDer<'_>,
    issuer_key: &Digest,
    logs: &[Log],
) -> Result<(), SigstoreError> {
    let refuse = |reason: String| SigstoreError::CertificateLog { reason };
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| refuse(error.to_string()))?;
    let found = promises(&certificate).unwrap_or_default();
    if found.is_empty() {
        return Err(refuse("it has no signed certificate timestamp".to_owned()));
    }
    let before = without_promises(der).map_err(refuse)?;
    let mut reasons = Vec::new();
    for promise in found {
        match held(promise, &before, issuer_key, logs) {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(refuse(reasons.join("; ")))
}

fn held(
    promise: &SignedCertificateTimestamp<'_>,
    before: &[u8],
    issuer_key: &Digest,
    logs: &[Log],
) -> Result<(), String> {
    let Some(log) = logs.iter().find(|log| log.id == promise.id.key_id) else {
        let found = hex::encode(promise.id.key_id);
        let trusted: Vec<String> = logs.iter().map(Log::to_string).collect();
        return Err(format!("a promise of log {found}, trusted are {}", trusted.join(", ")));
    };
    let key = log.key.as_ref().map_err(|reason| format!("log {log} has {reason}"))?;
    let time = i64::try_from(promise.timestamp).ok();
    let time = time.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let time = time.ok_or_else(|| format!("log {log} promises at {} ms", promise.timestamp))?;
    if !log.period.contains(time) {
        return Err(format!("log {log} is trusted {}, its promise is of {time}", log.period));
    }
    let hash = match promise.signature.hash_alg_id {
        SHA256 => Hash::Sha256,
        SHA384 => Hash::Sha384,
        SHA512 => Hash::Sha512,
        other => return Err(format!("log {log} has signed with hash {other}, expected SHA-2")),
    };
    let message =
        signed_bytes(promise, before, issuer_key).map_err(|e| format!("log {log}: {e}"))?;
    if promise.version.0 != 0 || !key.made_with(hash, &message, promise.signature.data) {
        return Err(format!("the promise is not of log {log} for this certificate"));
    }
    Ok(())
}

/// What the log has signed: version 1, type 0 (a certificate's timestamp), time, entry type 1 (a
/// certificate before the promises), issuer's key, certificate, extensions.
fn signed_bytes(
    promise: &SignedCertificateTimestamp<'_>,
    before: &[u8],
    issuer_key: &Digest,
) -> Result<Vec<u8>, String> {
    let length = u32::try_from(before.len()).ok().filter(|length| *length < 1 << 24);
    let length = length.ok_or("the certificate is too long")?.to_be_bytes();
    let extensions = promise.extensions.0;
    let extensions_length = u16::try_from(extensions.len()).map_err(|error| error.to_string())?;
    let mut bytes = vec![0, 0];
    bytes.extend(promise.timestamp.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(issuer_key.as_bytes());
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(before);
    bytes.extend(extensions_length.to_be_bytes());
    bytes.extend_from_slice(extensions);
    Ok(bytes)
}

/// The certificate's signed part without the list of promises, all else to the byte.
fn without_promises(der: &[u8]) -> Result<Vec<u8>, Wrong> {
    let mut fields = Reader::new(der).within(SEQUENCE)?.within(SEQUENCE)?;
    let mut kept = Vec::new();
    let mut left_out = 0;
    while !fields.is_empty() {
        if fields.peek() != Some(context(3)) {
            kept.extend_from_slice(fields.next()?.whole);
            continue;
        }
        let mut extensions = fields.within(context(3))?.within(SEQUENCE)?;
        let mut others = Vec::new();
        while !extensions.is_empty() {
            let extension = extensions.expect(SEQUENCE)?;
            let name = Reader::new(extension.content).expect(OBJECT_IDENTIFIER)?;
            if name.content == PROMISES {
                left_out += 1;
            } else {
                others.extend_from_slice(extension.whole);
            }
        }
        kept.extend(encode(context(3), &encode(SEQUENCE, &others)));
    }
    match left_out {
        1 => Ok(encode(SEQUENCE, &kept)),
        _ => Err(format!("it has {left_out} lists of signed certificate timestamps, expected one")),
    }
}
