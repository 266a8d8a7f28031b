//! What a repository lacks, and how long it holds.

use super::{Repository, RepositoryError};
use crate::trust::date::Date;
use crate::trust::metadata::{
    ROOT, RoleKeys, Root, SNAPSHOT, Snapshot, TARGETS, TIMESTAMP, Targets, Timestamp,
};

/// What a round of signing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Role and version of what is published now.
    pub published: Vec<(String, u64)>,
    /// What is still staged, and why.
    pub missing: Vec<Missing>,
}

/// Why a role is still staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The role.
    pub role: String,
    /// The staged version; 0 when it waits for another role.
    pub version: u64,
    /// Valid signatures so far.
    pub found: usize,
    /// The threshold.
    pub needed: u64,
    /// Ids of the keys that may sign and have not.
    pub open_key_ids: Vec<String>,
}

impl Missing {
    pub(super) fn signatures(role: &str, version: u64, rule: &RoleKeys, by: &[String]) -> Self {
        let open = rule.keyids.iter().filter(|id| !by.contains(id)).cloned().collect();
        let (found, needed) = (by.len(), rule.threshold);
        Self { role: role.to_owned(), version, found, needed, open_key_ids: open }
    }

    pub(super) fn waits(role: &str) -> Self {
        Self { role: role.to_owned(), version: 0, found: 0, needed: 0, open_key_ids: Vec::new() }
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.needed == 0 {
            return write!(f, "{} waits until the role above it is published", self.role);
        }
        let keys: Vec<_> =
            self.open_key_ids.iter().map(|id| crate::trust::envelope::short(id)).collect();
        write!(
            f,
            "{} version {} has {} of {} signatures; may still sign: {}",
            self.role,
            self.version,
            self.found,
            self.needed,
            keys.join(", ")
        )
    }
}

/// A role as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleStatus {
    /// The role.
    pub role: String,
    /// Its published version, if any.
    pub version: Option<u64>,
    /// When that ends.
    pub expires: Option<Date>,
    /// How many keys must sign.
    pub threshold: u64,
    /// Ids of the keys that may.
    pub key_ids: Vec<String>,
    /// Whether a next version is staged.
    pub staged: bool,
}

impl Repository {
    /// All roles, the top-level ones first.
    ///
    /// # Errors
    /// [`RepositoryError`] for files that cannot be read.
    pub fn status(&self) -> Result<Vec<RoleStatus>, RepositoryError> {
        let published = self.files.newest::<Root>(ROOT)?;
        let staged = self.files.read::<Root>(ROOT, &self.files.staged(ROOT))?;
        let Some(root) = published.as_ref().or(staged.as_ref()) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        let mut push = |role: &str, rule: &RoleKeys, at: Option<(u64, Date)>| {
            all.push(RoleStatus {
                role: role.to_owned(),
                version: at.map(|a| a.0),
                expires: at.map(|a| a.1),
                threshold: rule.threshold,
                key_ids: rule.keyids.clone(),
                staged: self.files.staged(role).exists(),
            });
        };
        let at_root = published.as_ref().map(|l| (l.version(), l.expires()));
        let timestamp =
            self.files.newest::<Timestamp>(TIMESTAMP)?.map(|l| (l.version(), l.expires()));
        let snapshot = self.files.newest::<Snapshot>(SNAPSHOT)?.map(|l| (l.version(), l.expires()));
        let targets = self.files.newest::<Targets>(TARGETS)?.map(|l| (l.version(), l.expires()));
        for (role, at) in
            [(ROOT, at_root), (TIMESTAMP, timestamp), (SNAPSHOT, snapshot), (TARGETS, targets)]
        {
            push(role, super::role_of(&root.body, role)?, at);
        }
        for (_, delegated) in self.delegated_roles()? {
            let at =
                self.files.newest::<Targets>(&delegated.name)?.map(|l| (l.version(), l.expires()));
            push(&delegated.name, &delegated.keys, at);
        }
        Ok(all)
    }
}
