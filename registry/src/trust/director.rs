//! The director's side: the control plane mints each device's targets, snapshot and timestamp in
//! memory, with its one online key.
//!
//! All devices share one root; what a device gets is bound to its id by a signed field. File names
//! carry no versions (no consistent snapshots): the three files travel together in one message.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::canonical;
use super::date::Date;
use super::envelope::{Envelope, Signature};
use super::key::PublicKey;
use super::metadata::{
    Body, FileMeta, Header, ROOT, RoleKeys, Root, SNAPSHOT, Snapshot, TARGETS, TIMESTAMP,
    TOP_LEVEL, TargetEntry, Targets, Timestamp,
};
use super::refresh::{Fetched, Want};
use super::signing::{KeyError, SigningKey};
use crate::Digest;

/// One model that a device should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectorEntry {
    /// The target path, as the registry repository names it.
    pub target_path: String,
    /// The manifest's length in bytes.
    pub length: u64,
    /// The manifest's digest.
    pub digest: Digest,
    /// The release counter that the registry's entry carries.
    pub release: u64,
    /// Whether to serve it.
    pub active: super::Active,
}

/// The versions and times of one minting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minting {
    /// The generation of the device's desired state; counts up when the entries change.
    pub generation: u64,
    /// Counts up by every minting for the device, and is kept by the control plane.
    pub serial: u64,
    /// The control plane's clock, in seconds since 1970; becomes the device's time floor, where the
    /// owner's metadata lasts beyond it.
    pub signed_at_s: i64,
    /// When the device has to hear from the control plane again to admit anything new.
    pub expires_s: i64,
}

/// The three files of one minting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectorSet {
    /// `targets.json`.
    pub targets: Vec<u8>,
    /// `snapshot.json`.
    pub snapshot: Vec<u8>,
    /// `timestamp.json`.
    pub timestamp: Vec<u8>,
}

impl DirectorSet {
    /// What a refresh wants, out of this set; roots are looked for in `roots` by file name.
    pub fn fetch(&self, want: &Want, roots: &BTreeMap<String, Vec<u8>>) -> Fetched {
        let found = match want.file_name.as_str() {
            "targets.json" => Some(&self.targets),
            "snapshot.json" => Some(&self.snapshot),
            "timestamp.json" => Some(&self.timestamp),
            name => roots.get(name),
        };
        found.map_or(Fetched::NotFound, |bytes| Fetched::Found(bytes.clone()))
    }
}

/// Signs as the director.
pub struct DirectorSigner<K> {
    key: K,
}

impl<K: SigningKey> std::fmt::Debug for DirectorSigner<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectorSigner").field("key_id", &self.key.key_id()).finish()
    }
}

impl<K: SigningKey> DirectorSigner<K> {
    /// With the control plane's online key.
    pub fn new(key: K) -> Self {
        Self { key }
    }

    /// The key's public half.
    pub fn public(&self) -> &PublicKey {
        self.key.public()
    }

    /// The key itself, for what a control plane signs besides metadata: bundles.
    pub fn key(&self) -> &dyn SigningKey {
        &self.key
    }

    /// The first root: this key for all four roles.
    ///
    /// # Errors
    /// What the key says.
    pub fn root(&self, expires_s: i64) -> Result<Vec<u8>, KeyError> {
        let id = self.key.key_id();
        let role = || RoleKeys::new(vec![id.clone()], 1);
        let root = Root {
            header: Header::first(ROOT, Date(expires_s)),
            consistent_snapshot: false,
            keys: BTreeMap::from([(id.clone(), self.key.public().clone())]),
            roles: TOP_LEVEL.into_iter().map(|name| (name.to_owned(), role())).collect(),
            extra: Map::new(),
        };
        sign_body(&root, &[&self.key])
    }

    /// A root that follows `previous`, with another expiry; and, with `successor`, handed over to
    /// the next key: signed by both, so that devices follow.
    ///
    /// # Errors
    /// What the keys say, or [`KeyError::Form`] when `previous` is no root.
    pub fn next_root(
        &self,
        previous: &[u8],
        successor: Option<&dyn SigningKey>,
        expires_s: i64,
    ) -> Result<Vec<u8>, KeyError> {
        let previous = super::envelope::Loaded::<Root>::parse(ROOT, previous.to_vec())
            .map_err(|e| KeyError::Form { reason: e.to_string() })?;
        let mut root = previous.body;
        root.header.version += 1;
        root.header.expires = Date(expires_s);
        let Some(next) = successor else { return sign_body(&root, &[&self.key]) };
        let id = next.key_id();
        root.keys = BTreeMap::from([(id.clone(), next.public().clone())]);
        for role in root.roles.values_mut() {
            *role = RoleKeys::new(vec![id.clone()], 1);
        }
        sign_body(&root, &[&self.key, next])
    }

    /// One device's targets, snapshot and timestamp.
    ///
    /// # Errors
    /// What the key says.
    pub fn mint(
        &self,
        device_id: &str,
        entries: &[DirectorEntry],
        minting: Minting,
    ) -> Result<DirectorSet, KeyError> {
        let header =
            |kind, version| Header { version, ..Header::first(kind, Date(minting.expires_s)) };
        let targets = sign_body(
            &Targets {
                header: header(TARGETS, minting.generation),
                targets: entries.iter().map(|e| (e.target_path.clone(), e.to_entry())).collect(),
                delegations: None,
                extra: one(super::DEVICE_FIELD, Value::from(device_id)),
            },
            &[&self.key],
        )?;
        let listed = |file: &str, meta| BTreeMap::from([(file.to_owned(), meta)]);
        let snapshot = sign_body(
            &Snapshot {
                header: header(SNAPSHOT, minting.serial),
                meta: listed("targets.json", FileMeta::of(minting.generation, &targets)),
                extra: Map::new(),
            },
            &[&self.key],
        )?;
        let timestamp = sign_body(
            &Timestamp {
                header: header(TIMESTAMP, minting.serial),
                meta: listed("snapshot.json", FileMeta::of(minting.serial, &snapshot)),
                extra: one(
                    super::SIGNED_AT_FIELD,
                    Value::from(Date(minting.signed_at_s).to_string()),
                ),
            },
            &[&self.key],
        )?;
        Ok(DirectorSet { targets, snapshot, timestamp })
    }
}

impl DirectorEntry {
    fn to_entry(&self) -> TargetEntry {
        let active = self.active == super::Active::Serve;
        TargetEntry {
            length: self.length,
            hashes: BTreeMap::from([("sha256".to_owned(), self.digest.hex())]),
            custom: Some(json!({
                "fulmar": {"kind": "model", "active": active, "release": self.release}
            })),
            extra: Map::new(),
        }
    }
}

fn one(name: &str, value: Value) -> Map<String, Value> {
    Map::from_iter([(name.to_owned(), value)])
}

/// A metadata file of `body`, signed by all of `keys`.
pub(crate) fn sign_body<B: Body>(body: &B, keys: &[&dyn SigningKey]) -> Result<Vec<u8>, KeyError> {
    let form = |reason: String| KeyError::Form { reason };
    let signed = serde_json::to_value(body).map_err(|e| form(e.to_string()))?;
    let message = canonical::to_vec(&signed).map_err(|e| form(e.to_string()))?;
    let mut signatures = Vec::with_capacity(keys.len());
    for key in keys {
        signatures.push(Signature { keyid: key.key_id(), sig: hex::encode(key.sign(&message)?) });
    }
    serde_json::to_vec(&Envelope { signatures, signed }).map_err(|e| form(e.to_string()))
}
