//! Keyless signatures: a certificate for minutes, in which a Sigstore's authority (Fulcio) vouches
//! for who signed, and an entry in its transparency log (Rekor), so that it can be seen by all.
//!
//! Verified offline, by the Sigstore client specification's chapter 4, whose steps [`verify`]
//! numbers. Whom to trust comes from files that the device's owner configures ([`TrustedRoot`]),
//! and so does whose signatures count ([`Identity`]): without both, none does.
//!
//! Deliberately absent: a root that comes with the program, fetching a newer one, asking a log
//! over the network, and intermediate certificates out of bundles (the trusted root has them).

use jiff::Timestamp;

use bundle::{Material, Version};
use certificate::Leaf;

pub(super) mod bundle;
mod certificate;
mod certificate_log;
mod der;
mod entry;
mod error;
mod identity;
pub(super) mod key;
mod log;
mod root;
mod timestamp;

pub use error::SigstoreError;
pub use identity::Identity;
pub use root::TrustedRoot;

/// Entries of logs in one bundle, and timestamps likewise.
const PROOFS_MAX: usize = 16;

/// What keyless signatures are held against.
#[derive(Debug, Clone, Default)]
pub struct Keyless {
    /// Each by itself: nothing of one vouches for anything of another.
    pub roots: Vec<TrustedRoot>,
    /// Any of them may have signed.
    pub identities: Vec<Identity>,
}

/// What was signed, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed<'a> {
    /// The bytes under the signature: of an envelope, its pre-authentication encoding.
    pub(super) message: &'a [u8],
    /// The envelope's payload.
    pub(super) payload: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// Who has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signer {
    pub(super) subject: String,
    pub(super) issuer: String,
    pub(super) time: Timestamp,
}

impl Keyless {
    /// Verifies with the first root that does, at `now_s` (seconds since 1970).
    pub(super) fn verify(
        &self,
        version: Version,
        material: &Material,
        signed: &Signed<'_>,
        now_s: i64,
    ) -> Result<Signer, SigstoreError> {
        if self.roots.is_empty() {
            return Err(SigstoreError::NoRoot);
        }
        if self.identities.is_empty() {
            return Err(SigstoreError::NoIdentity);
        }
        let mut refusals = Vec::new();
        for root in &self.roots {
            match verify(version, material, signed, root, &self.identities, now_s) {
                Ok(signer) => return Ok(signer),
                Err(error) => refusals.push((root, error)),
            }
        }
        if refusals.len() == 1
            && let Some((_, error)) = refusals.pop()
        {
            return Err(error);
        }
        let all: Vec<String> =
            refusals.iter().map(|(root, error)| format!("with {}: {error}", root.path)).collect();
        Err(SigstoreError::EveryRoot(all.join("; ")))
    }
}

/// The steps of the specification's chapter 4, in its order where one does not need another.
fn verify(
    version: Version,
    material: &Material,
    signed: &Signed<'_>,
    root: &TrustedRoot,
    identities: &[Identity],
    now_s: i64,
) -> Result<Signer, SigstoreError> {
    // 4.1 The certificate, and what it says of itself.
    let der = certificate::of(material, version)?;
    let leaf = Leaf::read(&der)?;
    // 4.2.2 and 4.4, first half: each entry is in a trusted log, and the log says when it came.
    let entries = &material.tlog_entries;
    if entries.is_empty() || entries.len() > PROOFS_MAX {
        return Err(error::bundle("tlogEntries", entries.len(), "1 to 16 log entries"));
    }
    let mut times = Vec::new();
    let mut logs = Vec::new();
    for entry in entries {
        let (log, time) = log::verify(entry, version, root)?;
        logs.push(log);
        times.extend(time);
    }
    // 4.2.1 Timestamp authorities say when the signature was there.
    let (stamped, refused) = timestamp::verify_all(material, signed.signature, root)?;
    times.extend(stamped);
    let Some(time) = times.iter().min().copied() else {
        return Err(SigstoreError::Time {
            reason: match refused.as_slice() {
                [] => "neither a signed entry timestamp of the log nor one of RFC 3161".to_owned(),
                refused => refused.join("; "),
            },
        });
    };
    let now = Timestamp::from_second(now_s).unwrap_or(Timestamp::MAX);
    for time in &times {
        let time = *time;
        if time > now {
            let (signed, now) = (time.to_string(), now.to_string());
            return Err(SigstoreError::Future { signed, now });
        }
        for log in &logs {
            log::check_period(log, time)?;
        }
        // 4.3 The certificate leads to a trusted authority, at each of these times.
        let issuer_key = certificate::verify_chain(&der, &leaf, root, time)?;
        // 4.3 Its authority has told a certificate transparency log of it.
        certificate_log::verify(&der, &issuer_key, &root.certificate_logs)?;
    }
    // 4.3 The policy: somebody who is accepted here has signed.
    if !identities.iter().any(|identity| identity.accepts(&leaf.issuer, &leaf.subject)) {
        let accepted: Vec<String> = identities.iter().map(Identity::to_string).collect();
        return Err(SigstoreError::NotAccepted {
            subject: leaf.subject,
            issuer: leaf.issuer,
            accepted: accepted.join(", "),
        });
    }
    // 4.4, second half: the entries speak of this signature, certificate and payload.
    for log_entry in entries {
        entry::verify(log_entry, signed, &der)?;
    }
    // 4.5 The certificate's key made the signature.
    if !leaf.key.made(signed.message, signed.signature) {
        return Err(SigstoreError::Signature { subject: leaf.subject });
    }
    Ok(Signer { subject: leaf.subject, issuer: leaf.issuer, time })
}

/// Reads bytes as each of the parts that lie behind signatures: a certificate, a timestamp, and the
/// entries of a bundle.
#[cfg(feature = "fuzzing")]
pub(super) fn try_parts(bytes: &[u8]) {
    let _ = Leaf::read(bytes);
    timestamp::try_token(bytes);
    let Ok(read) = serde_json::from_slice::<bundle::Bundle>(bytes) else { return };
    let Some(version) = Version::of(&read.media_type) else { return };
    let material = &read.verification_material;
    let Ok(der) = certificate::of(material, version) else { return };
    let _ = Leaf::read(&der);
    let signed = Signed { message: b"", payload: b"", signature: b"" };
    for log_entry in &material.tlog_entries {
        let _ = entry::verify(log_entry, &signed, &der);
    }
}

#[cfg(test)]
mod tests;
