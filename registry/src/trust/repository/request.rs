//! Signing on another machine: what is staged goes out as one file, comes back with more
//! signatures, and is merged. Several people may sign copies of the same file at once.
//!
//! Invariant: a signature counts only for exactly the bytes that are staged here now.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::status::Progress;
use super::{Repository, RepositoryError, files};
use crate::trust::canonical;
use crate::trust::envelope::{Envelope, Signature, short};
use crate::trust::metadata::{SNAPSHOT, TIMESTAMP};
use crate::trust::signing::SigningKey;

/// Longest file, in bytes.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// What is staged, and who may sign it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningRequest {
    schema: u32,
    roles: BTreeMap<String, Wanted>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Ids of the keys that may sign.
    key_ids: Vec<String>,
    metadata: Envelope,
}

/// A role that a request asks signatures for, for people to read before they sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedFor {
    /// The role.
    pub role: String,
    /// Its version.
    pub version: u64,
    /// When it ends.
    pub expires: String,
    /// Target paths that it names, with their digests.
    pub targets: Vec<String>,
    /// Ids of the keys that signed it so far.
    pub signed_by: Vec<String>,
}

impl SigningRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// [`RepositoryError::Request`].
    pub fn read(bytes: &[u8]) -> Result<Self, RepositoryError> {
        let refuse = |reason: String| RepositoryError::Request { reason };
        if bytes.len() > REQUEST_BYTES_MAX {
            let found = bytes.len();
            return Err(refuse(format!("it has {found} bytes, at most {REQUEST_BYTES_MAX}")));
        }
        let request: Self = serde_json::from_slice(bytes).map_err(|e| refuse(e.to_string()))?;
        match request.schema {
            1 => Ok(request),
            found => Err(refuse(format!("schema {found}, this program knows 1"))),
        }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// [`RepositoryError::Request`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, RepositoryError> {
        serde_json::to_vec_pretty(self)
            .map_err(|e| RepositoryError::Request { reason: e.to_string() })
    }

    /// What it asks for.
    #[must_use]
    pub fn asked_for(&self) -> Vec<AskedFor> {
        let roles = self.roles.iter();
        roles
            .map(|(role, wanted)| {
                let signed = &wanted.metadata.signed;
                let targets = signed["targets"].as_object().into_iter().flatten();
                AskedFor {
                    role: role.clone(),
                    version: signed["version"].as_u64().unwrap_or(0),
                    expires: signed["expires"].as_str().unwrap_or_default().to_owned(),
                    targets: targets
                        .map(|(path, entry)| {
                            format!("{path} {}", entry["hashes"]["sha256"].as_str().unwrap_or("-"))
                        })
                        .collect(),
                    signed_by: wanted.metadata.signatures.iter().map(|s| s.keyid.clone()).collect(),
                }
            })
            .collect()
    }

    /// Adds the signatures that `keys` may give; the roles that got one.
    ///
    /// # Errors
    /// [`RepositoryError::Sign`].
    pub fn sign(&mut self, keys: &[&dyn SigningKey]) -> Result<Vec<String>, RepositoryError> {
        let mut signed = Vec::new();
        for (role, wanted) in &mut self.roles {
            let message = canonical::to_vec(&wanted.metadata.signed)
                .map_err(|e| RepositoryError::Request { reason: e.to_string() })?;
            for key in keys {
                let keyid = key.key_id();
                let has = wanted.metadata.signatures.iter().any(|s| s.keyid == keyid);
                if has || !wanted.key_ids.contains(&keyid) {
                    continue;
                }
                let sig = key
                    .sign(&message)
                    .map_err(|source| RepositoryError::Sign { role: role.clone(), source })?;
                let sig = hex::encode(sig);
                wanted.metadata.signatures.push(Signature { keyid, sig });
                signed.push(role.clone());
            }
        }
        Ok(signed)
    }
}

impl Repository {
    /// What is staged and lacks signatures, for others to sign.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn request(&self) -> Result<SigningRequest, RepositoryError> {
        let _lock = self.files.lock()?;
        self.drop_stale()?;
        let mut roles = BTreeMap::new();
        for role in self.files.staged_roles()? {
            let Some(bytes) = files::read_bounded(&self.files.staged(&role))? else { continue };
            let metadata: Envelope = serde_json::from_slice(&bytes)
                .map_err(|e| RepositoryError::Request { reason: format!("staged {role}: {e}") })?;
            let mut key_ids = Vec::new();
            for (_, rule) in [self.rule(&role)?, self.staged_rule(&role)?].into_iter().flatten() {
                key_ids.extend(rule.keyids);
            }
            key_ids.sort();
            key_ids.dedup();
            roles.insert(role, Wanted { key_ids, metadata });
        }
        Ok(SigningRequest { schema: 1, roles })
    }

    /// Takes the signatures of a request that came back, and publishes what has enough of them.
    ///
    /// # Errors
    /// [`RepositoryError::Request`] where what was signed is not what is staged now; as
    /// [`Repository::sign`].
    pub fn merge(&self, request: &SigningRequest, now_s: i64) -> Result<Progress, RepositoryError> {
        self.take_signatures(request)?;
        self.sign(&[], now_s)
    }

    fn take_signatures(&self, request: &SigningRequest) -> Result<(), RepositoryError> {
        let _lock = self.files.lock()?;
        self.drop_stale()?;
        for (role, wanted) in &request.roles {
            let path = self.files.staged(role);
            let changed = |what: &str| RepositoryError::Request {
                reason: format!("{role}: {what}; write a new request and have it signed"),
            };
            let Some(bytes) = files::read_bounded(&path)? else {
                // Published meanwhile, with the signatures of others.
                continue;
            };
            let mut staged: Envelope =
                serde_json::from_slice(&bytes).map_err(|e| changed(&e.to_string()))?;
            if staged.signed != wanted.metadata.signed {
                // Snapshots and timestamps are made anew with what they list.
                if role == SNAPSHOT || role == TIMESTAMP {
                    continue;
                }
                return Err(changed("what is staged has changed since"));
            }
            let message = canonical::to_vec(&staged.signed).map_err(|e| changed(&e.to_string()))?;
            for signature in &wanted.metadata.signatures {
                if staged.signatures.iter().any(|s| s.keyid == signature.keyid) {
                    continue;
                }
                if !self.signature_holds(role, signature, &message)? {
                    let id = short(&signature.keyid);
                    return Err(changed(&format!("the signature by key {id} is not over this")));
                }
                staged.signatures.push(signature.clone());
            }
            let bytes = serde_json::to_vec_pretty(&staged).map_err(|e| changed(&e.to_string()))?;
            files::write(&path, &bytes)?;
        }
        Ok(())
    }

    /// Whether a key that may sign the role, now or by what is staged, made this signature.
    fn signature_holds(
        &self,
        role: &str,
        signature: &Signature,
        message: &[u8],
    ) -> Result<bool, RepositoryError> {
        let rules = [self.rule(role)?, self.staged_rule(role)?];
        let sig = hex::decode(&signature.sig).unwrap_or_default();
        Ok(rules.into_iter().flatten().any(|(names, rule)| {
            let may = rule.keyids.contains(&signature.keyid);
            let key = names.get(&signature.keyid).filter(|_| may);
            key.and_then(|key| key.verifier()).is_some_and(|v| v.verify(message, &sig))
        }))
    }

    /// Forgets staged versions that are published already: a folder that was copied back over this
    /// one brings them. A published file never changes.
    pub(super) fn drop_stale(&self) -> Result<(), RepositoryError> {
        for role in self.files.staged_roles()? {
            if role == TIMESTAMP || role == SNAPSHOT {
                continue;
            }
            let Some(bytes) = files::read_bounded(&self.files.staged(&role))? else { continue };
            let staged: Option<Envelope> = serde_json::from_slice(&bytes).ok();
            let version = staged.and_then(|s| s.signed["version"].as_u64()).unwrap_or(0);
            if version > 0 && self.files.newest_version(&role)?.is_some_and(|n| version <= n) {
                files::remove(&self.files.staged(&role))?;
            }
        }
        Ok(())
    }
}
