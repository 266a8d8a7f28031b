//! The state of trust in SQLite: every repository's roles as the exact bytes that were verified,
//! the highest signed time, the highest release of every model that was admitted, and the owner's
//! policy.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Transaction};

use super::envelope::Loaded;
use super::error::TrustError;
use super::metadata::{Body, ROOT, SNAPSHOT, TARGETS, TIMESTAMP};
use super::pin::RootPin;
use super::time::signed_time;
use super::trusted::{Repo, Trusted, verify_top};
use crate::Digest;
use fulmar_store::Schema;

/// The tables of trust.
pub const SCHEMA: Schema = Schema {
    name: "trust",
    steps: &[
        "
        CREATE TABLE trust_role (
            repo TEXT NOT NULL,
            role TEXT NOT NULL,
            version INTEGER NOT NULL,
            bytes BLOB NOT NULL,
            PRIMARY KEY (repo, role)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE trust_time (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            signed_s INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE trust_release (
            target_path TEXT PRIMARY KEY,
            release INTEGER NOT NULL,
            digest TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
    ",
        "
        CREATE TABLE trust_first_root (
            repo TEXT PRIMARY KEY,
            digest TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
    ",
        "
        CREATE TABLE trust_policy (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            version INTEGER NOT NULL,
            digest TEXT NOT NULL,
            bytes BLOB NOT NULL,
            role TEXT NOT NULL,
            taken_at_s INTEGER NOT NULL
        ) STRICT;
        -- How long the agent ran since the fleet was last heard of.
        CREATE TABLE trust_run (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            heard_s INTEGER NOT NULL,
            ran_s INTEGER NOT NULL
        ) STRICT;
    ",
        "
        -- The last signed time that the owner's metadata did not bear out.
        CREATE TABLE trust_time_refused (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            repo TEXT NOT NULL,
            signed_s INTEGER NOT NULL,
            role TEXT NOT NULL,
            ends_s INTEGER NOT NULL,
            seen_s INTEGER NOT NULL
        ) STRICT;
    ",
        "
        -- The bitwise inverse of the signed time: neither is believed without the other.
        ALTER TABLE trust_time ADD COLUMN inverse_s INTEGER;
        -- The same for the highest release of a target.
        ALTER TABLE trust_release ADD COLUMN inverse INTEGER;
        CREATE TABLE trust_pin (
            repo TEXT PRIMARY KEY,
            version INTEGER NOT NULL,
            digest TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
    ",
    ],
};

impl Trusted {
    /// Sets the first trusted root of `repo`, which came out of band, and stores it. The root that
    /// trust began with, or the one trusted now, may come again (a second enrolment brings it), and so
    /// may a pinned one that is yet to come. `now_s` in seconds since 1970 is the clock, kept as no
    /// floor: nobody signed it.
    ///
    /// # Errors
    /// [`TrustError::AlreadyTrusted`] when another root is trusted, [`TrustError::Pinned`] when
    /// another is pinned, or the root is not sound.
    pub fn bootstrap(
        tx: &Transaction<'_>,
        repo: Repo,
        root: &[u8],
        _now_s: i64,
    ) -> Result<Self, TrustError> {
        let mut new = Self::from_root(repo, root.to_vec())?;
        let pin = RootPin::load(tx, repo)?;
        let trusted = match Self::load(tx, repo) {
            // Whoever joins anew begins anew where nothing can be read any more.
            Err(TrustError::Damaged { .. }) => {
                Self::forget(tx, repo)?;
                None
            }
            loaded => loaded?,
        };
        if let Some(trusted) = trusted {
            let first = first_root(tx, repo)?;
            // A pin ahead of the chain: the next refresh must come by it.
            let ahead = pin
                .is_some_and(|pin| pin == new.root_pin() && pin.version > trusted.root_version());
            let known = trusted.root.bytes == root || first == Some(Digest::of(root));
            return match known || ahead {
                true => Ok(trusted),
                false => Err(TrustError::AlreadyTrusted {
                    repo: repo.as_str(),
                    trusted: trusted.root_version(),
                }),
            };
        }
        if let Some(pin) = pin {
            pin.check_first(repo, root)?;
        }
        new.pin = pin;
        tx.execute(
            "INSERT INTO trust_first_root (repo, digest) VALUES (?1, ?2)",
            (repo.as_str(), Digest::of(root)),
        )?;
        new.time_floor_s = signed_time(tx)?;
        new.store(tx)?;
        Ok(new)
    }

    /// Reads the state of `repo` and verifies it anew; `None` when no root was ever set.
    ///
    /// # Errors
    /// [`TrustError::Damaged`] when the stored root does not verify. Any other role that does not is
    /// left out, and its version is a floor for the one to come.
    pub fn load(connection: &Connection, repo: Repo) -> Result<Option<Self>, TrustError> {
        Self::load_under(connection, repo, signed_time(connection)?)
    }

    /// The same under a signed time of the caller's.
    pub(super) fn load_under(
        connection: &Connection,
        repo: Repo,
        time_floor_s: i64,
    ) -> Result<Option<Self>, TrustError> {
        let mut roles = read_roles(connection, repo)?;
        let Some((_, root)) = roles.remove(ROOT) else { return Ok(None) };
        let mut trusted = Self::from_root(repo, root).map_err(|source| TrustError::Damaged {
            repo: repo.as_str(),
            role: ROOT.to_owned(),
            source: Box::new(source),
        })?;
        trusted.time_floor_s = time_floor_s;
        trusted.pin = RootPin::load(connection, repo)?;
        let (timestamp, snapshot) = (roles.remove(TIMESTAMP), roles.remove(SNAPSHOT));
        trusted.timestamp = trusted.whole(TIMESTAMP, timestamp);
        trusted.snapshot = trusted.whole(SNAPSHOT, snapshot);
        for (role, (version, bytes)) in roles {
            match Loaded::parse(&role, bytes) {
                Ok(loaded) => trusted.targets.insert(role, loaded).map(drop),
                Err(_) => trusted.floors.insert(role, version).map(drop),
            };
        }
        // Targets roles whose signatures do not hold, or that the snapshot does not list, stay
        // unlinked and unused: the snapshot alone protects them against rollback.
        trusted.relink();
        Ok(Some(trusted))
    }

    /// A stored role of the top level, if it is whole; else its version is a floor from now on.
    fn whole<B: Body>(&mut self, role: &str, stored: Option<(u64, Vec<u8>)>) -> Option<Loaded<B>> {
        let (version, bytes) = stored?;
        let loaded = Loaded::parse(role, bytes)
            .and_then(|loaded| verify_top(&loaded, role, &self.root).map(|()| loaded));
        loaded.map_err(|_| self.floors.insert(role.to_owned(), version)).ok()
    }

    /// Stores all roles, and the signed time, in the caller's transaction.
    ///
    /// # Errors
    /// [`TrustError::Older`] when a newer state was stored since this one was read.
    pub fn store(&self, tx: &Transaction<'_>) -> Result<(), TrustError> {
        let repo = self.repo.as_str();
        self.refuse_if_older(tx)?;
        tx.execute("DELETE FROM trust_role WHERE repo = ?1", [repo])?;
        let mut insert = tx.prepare_cached(
            "INSERT INTO trust_role (repo, role, version, bytes) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for (role, version, bytes) in self.files() {
            // A delegated role that the snapshot dropped is of no use to anybody.
            if self.targets.contains_key(role) && role != TARGETS && self.listed(role).is_none() {
                continue;
            }
            insert.execute((repo, role, version as i64, bytes))?;
        }
        // What was damaged stays a floor until it was fetched again.
        let held: BTreeSet<&str> = self.files().map(|(role, ..)| role).collect();
        for (role, floor) in self.floors.iter().filter(|(role, _)| !held.contains(role.as_str())) {
            insert.execute((repo, role, *floor as i64, &[][..]))?;
        }
        self.store_time(tx)
    }

    /// Two refreshes may run at once; the one that began with less must not win by being last.
    fn refuse_if_older(&self, tx: &Transaction<'_>) -> Result<(), TrustError> {
        let older = |role: &str, stored, found| TrustError::Older {
            repo: self.repo.as_str(),
            role: role.to_owned(),
            stored,
            found,
        };
        let stored_root = stored_version(tx, self.repo, ROOT)?.unwrap_or(0);
        if stored_root > self.root_version() {
            return Err(older(ROOT, stored_root, self.root_version()));
        }
        // Under a newer root, versions may have gone back: that is the recovery of 5.3.11.
        if stored_root < self.root_version() {
            return Ok(());
        }
        for (role, found) in
            [(TIMESTAMP, self.timestamp_version()), (SNAPSHOT, self.snapshot_version())]
        {
            let found = found.or(self.floors.get(role).copied()).unwrap_or(0);
            let stored = stored_version(tx, self.repo, role)?.unwrap_or(0);
            if stored > found {
                return Err(older(role, stored, found));
            }
        }
        Ok(())
    }

    /// Forgets all trust in `repo`: the way out when its keys are lost. Until the next bootstrap
    /// nothing new is admitted. The signed time, the releases seen and the pin stay; the registry's policy
    /// goes with it.
    ///
    /// # Errors
    /// What the database says.
    pub fn forget(tx: &Transaction<'_>, repo: Repo) -> Result<(), TrustError> {
        tx.execute("DELETE FROM trust_role WHERE repo = ?1", [repo.as_str()])?;
        tx.execute("DELETE FROM trust_first_root WHERE repo = ?1", [repo.as_str()])?;
        if repo == Repo::Registry {
            tx.execute("DELETE FROM trust_policy", [])?;
        }
        Ok(())
    }
}

/// The root that trust in `repo` began with.
fn first_root(connection: &Connection, repo: Repo) -> Result<Option<Digest>, TrustError> {
    Ok(connection
        .query_row("SELECT digest FROM trust_first_root WHERE repo = ?1", [repo.as_str()], |row| {
            row.get(0)
        })
        .optional()?)
}

fn read_roles(
    connection: &Connection,
    repo: Repo,
) -> Result<BTreeMap<String, (u64, Vec<u8>)>, TrustError> {
    let mut statement =
        connection.prepare_cached("SELECT role, version, bytes FROM trust_role WHERE repo = ?1")?;
    let rows = statement.query_map([repo.as_str()], |row| {
        Ok((row.get(0)?, (row.get::<_, i64>(1)?.max(0) as u64, row.get(2)?)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The version of a stored role: as its bytes say, if they can be read.
fn stored_version(
    connection: &Connection,
    repo: Repo,
    role: &str,
) -> Result<Option<u64>, TrustError> {
    let stored = read_roles(connection, repo)?.remove(role);
    Ok(stored.map(|(noted, bytes)| {
        let said = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
        said.and_then(|said| said.pointer("/signed/version")?.as_u64()).unwrap_or(noted)
    }))
}
