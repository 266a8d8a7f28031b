//! The repository side: a folder with `metadata/` and `targets/` that any TUF client can read, and
//! `staged/` with what still lacks signatures.
//!
//! Every change edits a role's next version in `staged/` and drops the signatures it had. Signing
//! adds signatures, one person at a time; what has its threshold is published, at once and in the
//! order that keeps readers safe: roots, targets, snapshot, timestamp. File names carry versions
//! and hashes (consistent snapshots), so a reader never sees half a change.
//!
//! Invariants: a published file never changes; nothing is published below its threshold; a new
//! root is signed by the old root's threshold and its own.
//!
//! Deliberately absent: keys. They are handed in to sign, and nothing here knows where they live.

mod edit;
mod files;
mod policy;
mod request;
mod sign;
mod status;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::date::Date;
use super::envelope::{Envelope, Loaded, Signature};
use super::error::TrustError;
use super::key::PublicKey;
use super::metadata::{
    Body, Header, ROOT, RoleKeys, Root, SNAPSHOT, TARGETS, TIMESTAMP, TOP_LEVEL, Targets,
};
use super::refresh::{Fetched, Refresh, Scope};
use super::signing::KeyError;
use super::trusted::{Repo, Trusted};
use files::Files;

pub use edit::{Delegation, Published};
pub use request::{AskedFor, SigningRequest};
pub use status::{Missing, Progress, RoleStatus};

/// Field of a role's signed part: for how many days a new version of it holds.
const EXPIRY_FIELD: &str = "x-fulmar-expiry-days";
const DAY_S: i64 = 86_400;

/// Why a repository could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// A file or folder could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder could not be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A metadata file is broken.
    #[error("read {path}")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TrustError,
    },
    /// There is a repository already.
    #[error("make a repository in {path}: there is one already")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// There is no repository.
    #[error(
        "open the repository in {path}: no root metadata there; make one with `fulmar registry init`"
    )]
    Absent {
        /// The folder.
        path: PathBuf,
    },
    /// A role that nobody delegates to.
    #[error("change the role {role}: the repository has no such role")]
    NoSuchRole {
        /// The role.
        role: String,
    },
    /// A change that would break the repository.
    #[error("change the role {role}: {reason}")]
    Change {
        /// The role.
        role: String,
        /// Why not.
        reason: String,
    },
    /// A target path that a role may not name, or that is no path.
    #[error("publish the target {path}: {reason}")]
    Target {
        /// The target path.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A policy that no device would follow.
    #[error("publish the policy: {0}")]
    Policy(#[from] fulmar_policy::PolicyError),
    /// A file of things to sign is of no use.
    #[error("read the signing request: {reason}")]
    Request {
        /// What is wrong with it.
        reason: String,
    },
    /// A key would not sign.
    #[error("sign {role}")]
    Sign {
        /// The role.
        role: String,
        /// Why.
        source: KeyError,
    },
    /// The published files do not verify as a client would.
    #[error("verify the repository as a client would")]
    Verify(#[source] TrustError),
}

/// Who signs a top-level role, and for how long a version holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolePlan {
    /// The keys.
    pub keys: Vec<PublicKey>,
    /// How many of them must sign.
    pub threshold: u64,
    /// Days from signing to expiry.
    pub expiry_days: u32,
}

/// The four top-level roles of a new repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Signs changes of keys.
    pub root: RolePlan,
    /// Names targets and delegates.
    pub targets: RolePlan,
    /// Says what belongs together.
    pub snapshot: RolePlan,
    /// Says what is newest.
    pub timestamp: RolePlan,
}

impl Plan {
    /// The same keys for all roles; root and targets need `threshold` of them, snapshot and
    /// timestamp one. Root holds two years, targets one, snapshot and timestamp half of one.
    #[must_use]
    pub fn with_keys(keys: &[PublicKey], threshold: u64) -> Self {
        let role =
            |threshold, expiry_days| RolePlan { keys: keys.to_vec(), threshold, expiry_days };
        Self {
            root: role(threshold, 730),
            targets: role(threshold, 365),
            snapshot: role(1, 180),
            timestamp: role(1, 180),
        }
    }

    fn role(&self, name: &str) -> &RolePlan {
        match name {
            ROOT => &self.root,
            TARGETS => &self.targets,
            SNAPSHOT => &self.snapshot,
            _ => &self.timestamp,
        }
    }
}

/// A repository in a folder.
#[derive(Debug, Clone)]
pub struct Repository {
    files: Files,
}

impl Repository {
    /// Makes a repository in `dir` and stages its first root and targets. It is published when
    /// [`Repository::sign`] has seen enough keys. `now_s` in seconds since 1970.
    ///
    /// # Errors
    /// [`RepositoryError::Exists`], [`RepositoryError::Change`] for a plan that cannot be met, or
    /// [`RepositoryError::Write`].
    pub fn init(dir: &Path, plan: &Plan, now_s: i64) -> Result<Self, RepositoryError> {
        let files = Files { dir: dir.to_owned() };
        files.create()?;
        let _lock = files.lock()?;
        if files.staged(ROOT).exists() || files.published(ROOT, 1).exists() {
            return Err(RepositoryError::Exists { path: dir.to_owned() });
        }
        let mut keys = BTreeMap::new();
        let mut roles = BTreeMap::new();
        for name in TOP_LEVEL {
            let role = plan.role(name);
            let rule = rule_of(name, &role.keys, role.threshold)?;
            keys.extend(role.keys.iter().map(|key| (key.key_id(), key.clone())));
            roles.insert(name.to_owned(), rule);
        }
        let mut extra = expiry_field(plan.root.expiry_days);
        for name in [SNAPSHOT, TIMESTAMP] {
            extra.insert(period_field(name), Value::from(plan.role(name).expiry_days));
        }
        let expires = |days: u32| Date(now_s.saturating_add(i64::from(days) * DAY_S));
        let root = Root {
            header: Header::first(ROOT, expires(plan.root.expiry_days)),
            consistent_snapshot: true,
            keys,
            roles,
            extra,
        };
        let repository = Self { files };
        repository.stage(ROOT, &root)?;
        let targets = Targets {
            header: Header::first(TARGETS, expires(plan.targets.expiry_days)),
            targets: BTreeMap::new(),
            delegations: None,
            extra: expiry_field(plan.targets.expiry_days),
        };
        repository.stage(TARGETS, &targets)?;
        Ok(repository)
    }

    /// Opens the repository in `dir`.
    ///
    /// # Errors
    /// [`RepositoryError::Absent`].
    pub fn open(dir: &Path) -> Result<Self, RepositoryError> {
        let files = Files { dir: dir.to_owned() };
        if !files.staged(ROOT).exists() && !files.published(ROOT, 1).exists() {
            return Err(RepositoryError::Absent { path: dir.to_owned() });
        }
        files.create()?;
        Ok(Self { files })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.files.dir
    }

    /// The first root, to be handed to devices out of band.
    ///
    /// # Errors
    /// [`RepositoryError::Absent`] while it is not published.
    pub fn first_root(&self) -> Result<Vec<u8>, RepositoryError> {
        files::read_bounded(&self.files.published(ROOT, 1))?
            .ok_or_else(|| RepositoryError::Absent { path: self.files.dir.clone() })
    }

    /// The published state, verified from the first root on as a client would, at `now_s`.
    ///
    /// # Errors
    /// [`RepositoryError::Verify`] with what a client would say.
    pub fn trusted(&self, now_s: i64) -> Result<Trusted, RepositoryError> {
        let first = self.first_root()?;
        let trusted = Trusted::from_root(Repo::Registry, first).map_err(RepositoryError::Verify)?;
        let mut refresh = Refresh::new(trusted, now_s).scope(Scope::Everything);
        while let Some(want) = refresh.next() {
            let path = self.files.metadata().join(&want.file_name);
            let fetched = files::read_bounded(&path)?.map_or(Fetched::NotFound, Fetched::Found);
            refresh.feed(fetched).map_err(RepositoryError::Verify)?;
        }
        refresh.finish().map_err(RepositoryError::Verify)
    }

    /// All metadata files that a reader needs, by file name: every root, and the newest of the
    /// others.
    ///
    /// # Errors
    /// [`RepositoryError::Read`].
    pub fn metadata_files(&self, now_s: i64) -> Result<Vec<(String, Vec<u8>)>, RepositoryError> {
        let mut all = self.files.roots()?;
        for (role, version, bytes) in self.trusted(now_s)?.files() {
            if role != ROOT {
                let path = self.files.published(role, version);
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                all.push((name, bytes.to_vec()));
            }
        }
        Ok(all)
    }

    /// A published target's bytes, by its path.
    ///
    /// # Errors
    /// [`RepositoryError`]; a target that is not named is [`RepositoryError::Target`].
    pub fn read_target(&self, trusted: &Trusted, path: &str) -> Result<Vec<u8>, RepositoryError> {
        let refuse = |reason: String| RepositoryError::Target { path: path.to_owned(), reason };
        let entry = trusted.target(path).ok_or_else(|| refuse("no role names it".to_owned()))?;
        let digest = entry.digest().ok_or_else(|| refuse("it has no sha256".to_owned()))?;
        let file = self.files.target(path, &digest.hex());
        let bytes = files::read_bounded(&file)?
            .ok_or_else(|| refuse(format!("{} is missing", file.display())))?;
        entry.verify(path, &bytes).map_err(RepositoryError::Verify)?;
        Ok(bytes)
    }

    /// Writes the next version of a role, without signatures.
    fn stage<B: Body>(&self, role: &str, body: &B) -> Result<(), RepositoryError> {
        body.check().map_err(|reason| RepositoryError::Change { role: role.to_owned(), reason })?;
        files::write(&self.files.staged(role), &envelope_bytes(role, body, Vec::new())?)
    }
}

fn envelope_bytes<B: Body>(
    role: &str,
    body: &B,
    signatures: Vec<Signature>,
) -> Result<Vec<u8>, RepositoryError> {
    let refuse = |e: serde_json::Error| RepositoryError::Change {
        role: role.to_owned(),
        reason: e.to_string(),
    };
    let signed = serde_json::to_value(body).map_err(refuse)?;
    serde_json::to_vec_pretty(&Envelope { signatures, signed }).map_err(refuse)
}

/// A rule that can be met.
fn rule_of(role: &str, keys: &[PublicKey], threshold: u64) -> Result<RoleKeys, RepositoryError> {
    let refuse = |reason: String| RepositoryError::Change { role: role.to_owned(), reason };
    let mut ids: Vec<_> = keys.iter().map(PublicKey::key_id).collect();
    ids.sort();
    ids.dedup();
    if let Some(key) = keys.iter().find(|key| !key.is_known()) {
        return Err(refuse(format!("key {} is of no kind that clients can check", key.key_id())));
    }
    if threshold == 0 || threshold > ids.len() as u64 {
        let found = ids.len();
        return Err(refuse(format!(
            "a threshold of {threshold} needs 1 to {found} of {found} keys"
        )));
    }
    Ok(RoleKeys::new(ids, threshold))
}

fn role_of<'a>(root: &'a Root, role: &str) -> Result<&'a RoleKeys, RepositoryError> {
    root.roles.get(role).ok_or_else(|| RepositoryError::NoSuchRole { role: role.to_owned() })
}

fn expiry_field(days: u32) -> Map<String, Value> {
    Map::from_iter([(EXPIRY_FIELD.to_owned(), Value::from(days))])
}

/// The root's field with the period of a role that is made by rule.
fn period_field(role: &str) -> String {
    format!("{EXPIRY_FIELD}-{role}")
}

fn signed_at(now_s: i64) -> Map<String, Value> {
    Map::from_iter([(super::SIGNED_AT_FIELD.to_owned(), Value::from(Date(now_s).to_string()))])
}

fn days_in(extra: &Map<String, Value>, field: &str, default: i64) -> i64 {
    extra.get(field).and_then(Value::as_i64).filter(|d| (1..=36_500).contains(d)).unwrap_or(default)
}

fn next_header<B: Body>(kind: &str, old: Option<&Loaded<B>>, root: &Root, now_s: i64) -> Header {
    let days = days_in(&root.extra, &period_field(kind), 180);
    let version = old.map_or(1, |old| old.version() + 1);
    Header { version, ..Header::first(kind, Date(now_s.saturating_add(days * DAY_S))) }
}
