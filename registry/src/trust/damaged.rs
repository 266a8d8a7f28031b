//! What becomes of trust whose rows were damaged: by a worn-out disk, or by hand.
//!
//! What does not verify any more counts as absent: it admits nothing, and the next refresh fetches
//! it again. The version noted beside it stays a floor, so that damage opens no door to a rollback.
//! A damaged root ends everything that rests on it until the chain of roots was followed anew, from
//! the very root that trust began with and at least up to the one that was damaged.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _};

use super::error::TrustError;
use super::metadata::{ROOT, SNAPSHOT, TIMESTAMP};
use super::pin::RootPin;
use super::time::signed_time;
use super::trusted::{Repo, Trusted};
use crate::Digest;

/// The root that trust in a repository begins with, where it has to begin again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// Its name below the repository's metadata.
    pub file_name: String,
    digest: Digest,
}

impl Beginning {
    /// As it was pinned, or as trust began before; `None` where it never did.
    ///
    /// # Errors
    /// What the database says.
    pub fn of(connection: &Connection, repo: Repo) -> Result<Option<Self>, TrustError> {
        if let Some(pin) = RootPin::load(connection, repo)? {
            let file_name = format!("{}.root.json", pin.version);
            return Ok(Some(Self { file_name, digest: pin.digest }));
        }
        let sql = "SELECT digest FROM trust_first_root WHERE repo = ?1";
        let digest = connection.query_row(sql, [repo.as_str()], |row| row.get(0)).optional()?;
        Ok(digest.map(|digest| Self { file_name: "1.root.json".to_owned(), digest }))
    }

    /// Trust as it begins again: with this root, and with what was trusted before as floors. It is
    /// stored when a refresh has brought it up to them.
    ///
    /// # Errors
    /// [`TrustError::Pinned`] for another root; [`TrustError::Parse`], [`TrustError::Signatures`].
    pub fn again(
        &self,
        connection: &Connection,
        repo: Repo,
        root: Vec<u8>,
    ) -> Result<Trusted, TrustError> {
        let found = Digest::of(&root);
        let mut trusted = Trusted::from_root(repo, root)?;
        if found != self.digest {
            return Err(TrustError::Pinned {
                repo: repo.as_str(),
                version: trusted.root_version(),
                expected: self.digest,
                found: found.to_string(),
            });
        }
        trusted.time_floor_s = signed_time(connection)?;
        trusted.pin = RootPin::load(connection, repo)?;
        trusted.floors = versions(connection, repo)?;
        Ok(trusted)
    }
}

fn versions(connection: &Connection, repo: Repo) -> Result<BTreeMap<String, u64>, TrustError> {
    let sql = "SELECT role, version FROM trust_role WHERE repo = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement
        .query_map([repo.as_str()], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.max(0) as u64)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl TrustError {
    /// Whether stored trust was damaged, rather than something refused.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::PolicyDamaged { .. })
    }
}

impl Trusted {
    /// Whether a role that was trusted cannot be read any more.
    pub(crate) fn lost_something(&self) -> bool {
        !self.floors.is_empty()
    }

    /// Whether something that was trusted is to be fetched again.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.lost_something() || (self.snapshot_is_current() && self.targets_version().is_none())
    }

    /// Refuses what is older than a role that was damaged.
    pub(super) fn refuse_below_floor(&self, role: &str, found: u64) -> Result<(), TrustError> {
        match self.floors.get(role) {
            Some(floor) if found < *floor => {
                Err(TrustError::Rollback { role: role.to_owned(), trusted: *floor, found })
            }
            _ => Ok(()),
        }
    }

    /// The same for all targets that a new snapshot lists; also those that are whole, while the
    /// snapshot that listed them is not.
    pub(super) fn refuse_targets_below_floor(
        &self,
        listed: impl Fn(&str) -> Option<u64>,
        version: u64,
    ) -> Result<(), TrustError> {
        let damaged = self.floors.iter().map(|(role, floor)| (role, *floor));
        let whole = self.targets.iter().map(|(role, loaded)| (role, loaded.version()));
        let whole = whole.filter(|_| self.floors.contains_key(SNAPSHOT));
        for (role, floor) in damaged.chain(whole) {
            if [ROOT, TIMESTAMP, SNAPSHOT].contains(&role.as_str()) {
                continue;
            }
            match listed(role) {
                Some(found) if found < floor => {
                    return Err(TrustError::Rollback { role: role.clone(), trusted: floor, found });
                }
                Some(_) => {}
                None => {
                    return Err(TrustError::Removed { version, file: format!("{role}.json") });
                }
            }
        }
        Ok(())
    }
}
