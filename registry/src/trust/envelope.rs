//! A metadata file as it came: the exact bytes, the canonical bytes of its signed part, its
//! signatures and its body; and the check of signatures against a threshold.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canonical;
use super::date::Date;
use super::error::TrustError;
use super::key::PublicKey;
use super::metadata::{Body, RoleKeys};

/// The form of every metadata file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) signatures: Vec<Signature>,
    pub(crate) signed: Value,
}

/// One signature over the signed part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signature {
    pub(crate) keyid: String,
    pub(crate) sig: String,
}

/// A parsed metadata file. Parsing checks its form, not its signatures.
#[derive(Clone)]
pub(crate) struct Loaded<B> {
    pub(crate) bytes: Vec<u8>,
    canonical: Vec<u8>,
    signatures: Vec<Signature>,
    pub(crate) body: B,
}

impl<B: Body> Loaded<B> {
    /// Parses `bytes` as metadata of `role`.
    pub(crate) fn parse(role: &str, bytes: Vec<u8>) -> Result<Self, TrustError> {
        let refuse = |reason: String| TrustError::Parse { role: role.to_owned(), reason };
        let envelope: Envelope =
            serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        let canonical = canonical::to_vec(&envelope.signed).map_err(|e| refuse(e.to_string()))?;
        let body: B = serde_json::from_value(envelope.signed).map_err(|e| refuse(e.to_string()))?;
        body.check().map_err(refuse)?;
        // Specification 4.2.1: the keyid must be unique in the signatures.
        let mut ids = BTreeSet::new();
        if let Some(twice) = envelope.signatures.iter().find(|s| !ids.insert(s.keyid.as_str())) {
            return Err(refuse(format!("key id {} signed twice", short(&twice.keyid))));
        }
        Ok(Self { bytes, canonical, signatures: envelope.signatures, body })
    }

    /// The bytes that signatures are over.
    pub(crate) fn canonical(&self) -> &[u8] {
        &self.canonical
    }

    pub(crate) fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    pub(crate) fn version(&self) -> u64 {
        self.body.header().version
    }

    pub(crate) fn expires(&self) -> Date {
        self.body.header().expires
    }

    /// Whether its time is over at `now`.
    pub(crate) fn check_expiry(&self, role: &str, now: Date) -> Result<(), TrustError> {
        if self.expires() > now {
            return Ok(());
        }
        Err(TrustError::Expired {
            role: role.to_owned(),
            version: self.version(),
            expired_at: self.expires(),
            now,
        })
    }

    /// Checks that a threshold of the keys that `by` names for `role` signed this file.
    pub(crate) fn verify(
        &self,
        role: &str,
        by: &str,
        keys: &BTreeMap<String, PublicKey>,
        rule: &RoleKeys,
    ) -> Result<(), TrustError> {
        let found = self.signed_by(keys, rule).len();
        if found as u64 >= rule.threshold {
            return Ok(());
        }
        let unusable = rule
            .keyids
            .iter()
            .filter(|id| !keys.get(*id).is_some_and(PublicKey::is_known))
            .map(|id| short(id));
        Err(TrustError::Signatures {
            role: role.to_owned(),
            version: self.version(),
            by: by.to_owned(),
            found,
            needed: rule.threshold,
            keys: rule.keyids.iter().map(|id| short(id)).collect::<Vec<_>>().join(", "),
            unusable: unusable.collect::<Vec<_>>().join(", "),
        })
    }

    /// The ids of keys of `rule` whose signatures are valid, each distinct key once: the same key
    /// under two ids counts once.
    pub(crate) fn signed_by(
        &self,
        keys: &BTreeMap<String, PublicKey>,
        rule: &RoleKeys,
    ) -> Vec<String> {
        let mut counted = BTreeSet::new();
        let mut ids = Vec::new();
        for Signature { keyid, sig } in &self.signatures {
            if !rule.keyids.contains(keyid) {
                continue;
            }
            let Some(verifier) = keys.get(keyid).and_then(PublicKey::verifier) else { continue };
            let Ok(sig) = hex::decode(sig) else { continue };
            if verifier.verify(&self.canonical, &sig) && counted.insert(verifier) {
                ids.push(keyid.clone());
            }
        }
        ids
    }
}

impl<B: Body> std::fmt::Debug for Loaded<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "version {} ({} bytes)", self.version(), self.bytes.len())
    }
}

/// A key id short enough to read.
pub(crate) fn short(key_id: &str) -> String {
    key_id.chars().take(12).collect()
}
