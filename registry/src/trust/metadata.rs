//! The bodies of the four kinds of metadata, as read from the signed part of a file.
//!
//! Fields that this program does not know are kept in `extra`: they are part of what is signed, and
//! the repository side writes them back.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{SHA256, SHA512};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::date::Date;
use super::error::TrustError;
use super::key::PublicKey;
use super::pattern;

/// Names of the top-level roles.
pub(crate) const ROOT: &str = "root";
pub(crate) const TIMESTAMP: &str = "timestamp";
pub(crate) const SNAPSHOT: &str = "snapshot";
pub(crate) const TARGETS: &str = "targets";
pub(crate) const TOP_LEVEL: [&str; 4] = [ROOT, TIMESTAMP, SNAPSHOT, TARGETS];

/// The specification's version that written metadata names.
pub(crate) const SPEC_VERSION: &str = "1.0.31";

/// What all four kinds share.
pub(crate) trait Body: DeserializeOwned + Serialize + Clone {
    fn header(&self) -> &Header;
    /// Rules beyond the fields' types.
    fn check(&self) -> Result<(), String>;
}

/// The fields that every signed part has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The kind of metadata.
    #[serde(rename = "_type")]
    pub kind: String,
    /// The TUF specification's version.
    pub spec_version: String,
    /// Counts up by every change, from 1.
    pub version: u64,
    /// When this version ends.
    pub expires: Date,
}

/// Which keys, and how many of them, sign a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// Ids of the keys that may sign.
    pub keyids: Vec<String>,
    /// How many distinct keys must.
    pub threshold: u64,
    /// Fields this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The root of trust: which keys sign which top-level role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Root {
    /// Shared fields.
    #[serde(flatten)]
    pub header: Header,
    /// Whether file names carry versions and hashes.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// All keys by id.
    pub keys: BTreeMap<String, PublicKey>,
    /// The four top-level roles.
    pub roles: BTreeMap<String, RoleKeys>,
    /// Fields this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a listing role says about a metadata file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    /// The file's version.
    pub version: u64,
    /// Its length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Its hashes in hex, by algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<BTreeMap<String, String>>,
    /// Fields this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Says which snapshot is the newest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Shared fields.
    #[serde(flatten)]
    pub header: Header,
    /// One entry, `snapshot.json`.
    pub meta: BTreeMap<String, FileMeta>,
    /// Fields this program does not know, and `x-fulmar-signed-at`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Says which versions of all targets metadata belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Shared fields.
    #[serde(flatten)]
    pub header: Header,
    /// By file name without a version, as `targets.json`.
    pub meta: BTreeMap<String, FileMeta>,
    /// Fields this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What is signed about one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetEntry {
    /// Length in bytes.
    pub length: u64,
    /// Hashes in hex, by algorithm.
    pub hashes: BTreeMap<String, String>,
    /// What the publisher says about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Value>,
    /// Fields this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One delegation out of a targets role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegatedRole {
    /// The role's name.
    pub name: String,
    /// Who signs it.
    #[serde(flatten)]
    pub keys: RoleKeys,
    /// Whether the search ends with this role for the paths that it has.
    pub terminating: bool,
    /// Patterns of the target paths it may name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Or beginnings of the SHA-256 of the target path, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hash_prefixes: Option<Vec<String>>,
}

/// The delegations of a targets role, in the order of their priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delegations {
    /// Keys by id.
    pub keys: BTreeMap<String, PublicKey>,
    /// The roles.
    pub roles: Vec<DelegatedRole>,
    /// Fields this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Names targets, and delegates the naming of others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// Shared fields.
    #[serde(flatten)]
    pub header: Header,
    /// By target path.
    pub targets: BTreeMap<String, TargetEntry>,
    /// Who else may name targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
    /// Fields this program does not know, and `x-fulmar-device`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RoleKeys {
    /// Keys and a threshold.
    #[must_use]
    pub fn new(keyids: Vec<String>, threshold: u64) -> Self {
        Self { keyids, threshold, extra: Map::new() }
    }

    fn check(&self, role: &str) -> Result<(), String> {
        if self.threshold == 0 {
            return Err(format!("the threshold of role {role} is 0"));
        }
        let distinct: BTreeSet<_> = self.keyids.iter().collect();
        if distinct.len() != self.keyids.len() {
            return Err(format!("role {role} names a key id twice"));
        }
        Ok(())
    }
}

impl DelegatedRole {
    /// Whether this delegation covers `path`.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        match (&self.paths, &self.path_hash_prefixes) {
            (Some(paths), _) => paths.iter().any(|pattern| pattern::matches(pattern, path)),
            (None, Some(prefixes)) => {
                let hash = crate::Digest::of(path.as_bytes()).hex();
                prefixes.iter().any(|prefix| hash.starts_with(prefix.as_str()))
            }
            (None, None) => false,
        }
    }
}

impl FileMeta {
    /// A version, with the length and SHA-256 of `bytes`.
    #[must_use]
    pub fn of(version: u64, bytes: &[u8]) -> Self {
        let hashes = BTreeMap::from([("sha256".to_owned(), crate::Digest::of(bytes).hex())]);
        Self { version, length: Some(bytes.len() as u64), hashes: Some(hashes), extra: Map::new() }
    }

    fn check(&self, file: &str) -> Result<(), String> {
        check_version(self.version).map_err(|e| format!("the entry for {file}: {e}"))?;
        if self.hashes.as_ref().is_some_and(BTreeMap::is_empty) {
            return Err(format!("the entry for {file} has an empty list of hashes"));
        }
        Ok(())
    }

    /// Checks `bytes` against length and hashes, as far as they are given.
    pub(crate) fn verify(&self, file: &str, bytes: &[u8]) -> Result<(), TrustError> {
        if let Some(length) = self.length {
            check_length(file, length, bytes)?;
        }
        self.hashes.as_ref().map_or(Ok(()), |hashes| check_hashes(file, hashes, bytes))
    }
}

impl TargetEntry {
    /// Checks a whole target against its length and every hash that this program knows.
    ///
    /// # Errors
    /// [`TrustError::Content`], or [`TrustError::HashUnknown`] when no hash is known.
    pub fn verify(&self, path: &str, bytes: &[u8]) -> Result<(), TrustError> {
        check_length(path, self.length, bytes)?;
        check_hashes(path, &self.hashes, bytes)
    }

    /// The SHA-256, where it is given in its one form.
    #[must_use]
    pub fn digest(&self) -> Option<crate::Digest> {
        self.hashes.get("sha256").and_then(|hex| crate::Digest::from_hex(hex).ok())
    }
}

fn check_length(what: &str, expected: u64, bytes: &[u8]) -> Result<(), TrustError> {
    if bytes.len() as u64 == expected {
        return Ok(());
    }
    Err(TrustError::Content {
        what: what.to_owned(),
        kind: "length",
        expected: format!("{expected} bytes"),
        found: format!("{} bytes", bytes.len()),
    })
}

fn check_hashes(
    what: &str,
    hashes: &BTreeMap<String, String>,
    bytes: &[u8],
) -> Result<(), TrustError> {
    let mut known = 0;
    for (kind, algorithm) in [("sha256", &SHA256), ("sha512", &SHA512)] {
        let Some(expected) = hashes.get(kind) else { continue };
        known += 1;
        let found = hex::encode(ring::digest::digest(algorithm, bytes));
        if !expected.eq_ignore_ascii_case(&found) {
            let (what, expected) = (what.to_owned(), expected.clone());
            return Err(TrustError::Content { what, kind, expected, found });
        }
    }
    if known == 0 {
        let found = hashes.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(TrustError::HashUnknown { what: what.to_owned(), found });
    }
    Ok(())
}

fn check_version(version: u64) -> Result<(), String> {
    // SQLite and many readers of JSON end at 2^63 - 1.
    match i64::try_from(version) {
        Ok(1..) => Ok(()),
        _ => Err(format!("version {version} is not between 1 and 2^63 - 1")),
    }
}

impl Header {
    /// A first version of `kind`.
    pub(crate) fn first(kind: &str, expires: Date) -> Self {
        Self { kind: kind.to_owned(), spec_version: SPEC_VERSION.to_owned(), version: 1, expires }
    }

    pub(crate) fn check(&self, kind: &str) -> Result<(), String> {
        if self.kind != kind {
            return Err(format!("field _type: expected {kind:?}, found {:?}", self.kind));
        }
        let parts: Vec<_> = self.spec_version.split('.').collect();
        let numeric = parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
        if parts[0] != "1" || !numeric || !(2..=3).contains(&parts.len()) {
            return Err(format!("field spec_version: expected 1.x, found {:?}", self.spec_version));
        }
        check_version(self.version)
    }
}

macro_rules! body {
    ($body:ty, $kind:expr, $check:expr) => {
        impl Body for $body {
            fn header(&self) -> &Header {
                &self.header
            }
            fn check(&self) -> Result<(), String> {
                let check: fn(&$body) -> Result<(), String> = $check;
                self.header.check($kind)?;
                check(self)
            }
        }
    };
}

body!(Root, ROOT, |root| {
    for role in TOP_LEVEL {
        match root.roles.get(role) {
            Some(keys) => keys.check(role)?,
            None => return Err(format!("field roles: {role} is missing")),
        }
    }
    Ok(())
});
body!(Timestamp, TIMESTAMP, |timestamp| match timestamp.meta.get("snapshot.json") {
    Some(meta) if timestamp.meta.len() == 1 => meta.check("snapshot.json"),
    _ => Err("field meta: expected the one entry snapshot.json".to_owned()),
});
body!(Snapshot, SNAPSHOT, |snapshot| {
    snapshot.meta.iter().try_for_each(|(file, meta)| meta.check(file))
});
body!(Targets, TARGETS, |targets| {
    let Some(delegations) = &targets.delegations else { return Ok(()) };
    let mut names = BTreeSet::new();
    for role in &delegations.roles {
        let name = role.name.as_str();
        role.keys.check(name)?;
        if name.is_empty() || TOP_LEVEL.contains(&name) {
            return Err(format!("field delegations: {name:?} is no name for a delegated role"));
        }
        if !names.insert(name) {
            return Err(format!("field delegations: role {name:?} appears twice"));
        }
        if role.paths.is_some() == role.path_hash_prefixes.is_some() {
            return Err(format!(
                "field delegations: role {name:?} must have either paths or path_hash_prefixes"
            ));
        }
    }
    Ok(())
});

impl Timestamp {
    /// What is said about the snapshot.
    pub(crate) fn snapshot(&self) -> Option<&FileMeta> {
        self.meta.get("snapshot.json")
    }
}

/// The name under which listing roles and stores know a role's file: percent-encoded as a URL
/// segment, so it is a safe file name too.
pub(crate) fn encoded(role: &str) -> String {
    let mut out = String::with_capacity(role.len());
    for byte in role.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
