//! The pin: which root a repository must have at one version, as somebody said out of band (a join
//! token, or the owner's own file).
//!
//! Trust begins with the pinned root, and follows the chain of roots from there. Where it began
//! before, the chain must come by the pinned one. The pin outlives the trust: whoever makes a device
//! forget that gets no other owner in.

use rusqlite::{Connection, OptionalExtension as _, Transaction};

use super::error::TrustError;
use super::trusted::{Repo, Trusted};
use crate::Digest;

/// One root, by version and digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootPin {
    /// The root's version.
    pub version: u64,
    /// The digest of its file.
    pub digest: Digest,
}

impl RootPin {
    /// The pin of a root's bytes, which must be signed by its own threshold of keys.
    ///
    /// # Errors
    /// [`TrustError::Parse`] or [`TrustError::Signatures`].
    pub fn of(repo: Repo, root: &[u8]) -> Result<Self, TrustError> {
        Ok(Trusted::from_root(repo, root.to_vec())?.root_pin())
    }

    /// Refuses another root of the pinned version; says nothing about other versions.
    ///
    /// # Errors
    /// [`TrustError::Pinned`].
    pub(super) fn check(&self, repo: Repo, version: u64, root: &[u8]) -> Result<(), TrustError> {
        let found = Digest::of(root);
        if version != self.version || found == self.digest {
            return Ok(());
        }
        Err(TrustError::Pinned {
            repo: repo.as_str(),
            version,
            expected: self.digest,
            found: format!("version {version}, {found}"),
        })
    }

    /// Refuses every other root: trust begins with this one.
    ///
    /// # Errors
    /// [`TrustError::Pinned`], [`TrustError::Parse`].
    pub fn check_first(&self, repo: Repo, root: &[u8]) -> Result<(), TrustError> {
        let found = Self::of(repo, root)?;
        if found == *self {
            return Ok(());
        }
        Err(TrustError::Pinned {
            repo: repo.as_str(),
            version: self.version,
            expected: self.digest,
            found: format!("version {}, {}", found.version, found.digest),
        })
    }

    /// Stores the pin. One that was stored before gives way: a device joins anew.
    ///
    /// # Errors
    /// What the database says.
    pub fn store(&self, tx: &Transaction<'_>, repo: Repo) -> Result<(), TrustError> {
        tx.execute(
            "INSERT OR REPLACE INTO trust_pin (repo, version, digest) VALUES (?1, ?2, ?3)",
            (repo.as_str(), self.version as i64, self.digest),
        )?;
        Ok(())
    }

    /// The pin of a repository; `None` where nobody pinned one.
    ///
    /// # Errors
    /// What the database says.
    pub fn load(connection: &Connection, repo: Repo) -> Result<Option<Self>, TrustError> {
        let sql = "SELECT version, digest FROM trust_pin WHERE repo = ?1";
        Ok(connection
            .query_row(sql, [repo.as_str()], |row| {
                let version: i64 = row.get(0)?;
                Ok(Self { version: version.max(0) as u64, digest: row.get(1)? })
            })
            .optional()?)
    }
}

impl Trusted {
    /// The root trusted now, as a pin for others.
    #[must_use]
    pub fn root_pin(&self) -> RootPin {
        RootPin { version: self.root_version(), digest: Digest::of(&self.root.bytes) }
    }
}
