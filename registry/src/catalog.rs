//! Which models are on the device, who says that they may be, and which one of each name serves.
//!
//! Per name there are three slots. `active` serves; `previous` served before it and is what a
//! rollback goes to; `candidate` is installed and has not served yet. Several releases of a name
//! may be installed besides; they are garbage unless pinned.
//!
//! Invariants:
//! - Functions that write take a `&Transaction`: what happens to slots and what the caller records
//!   of it (audit, outbox) are one.
//! - Only [`Signed`] manifests come in, and only when their blobs are complete.
//! - The release counter of a name never goes back, whatever was removed meanwhile.
//!
//! Deliberately absent: bytes of models (blobs), and whether the engine has a model loaded.

use fulmar_store::{Schema, StoreError};
use rusqlite::{OptionalExtension, Transaction};

use crate::admission::{Authority, Signed};
use crate::blobs::Blobs;
use crate::manifest::ManifestError;
use crate::trust::TrustError;
use crate::{Digest, ModelName, ModelRef, ReferenceError};

mod names;
mod query;

pub use names::resolve;
pub use query::{
    DamagedRow, Filter, Installed, active_names, blobs_in_use, damaged, failures, find, list, slot,
};

/// The catalog's tables.
pub const SCHEMA: Schema = Schema {
    name: "registry.catalog",
    steps: &[
        "
        CREATE TABLE model (
            name TEXT NOT NULL,
            digest TEXT NOT NULL,
            release INTEGER NOT NULL,
            manifest BLOB NOT NULL,
            authority TEXT NOT NULL,
            signature BLOB NOT NULL,
            installed_at_s INTEGER NOT NULL,
            pinned INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (name, digest)
        ) STRICT;
        CREATE TABLE model_blob (
            name TEXT NOT NULL,
            digest TEXT NOT NULL,
            blob TEXT NOT NULL,
            FOREIGN KEY (name, digest) REFERENCES model (name, digest) ON DELETE CASCADE
        ) STRICT;
        CREATE INDEX model_blob_of_model ON model_blob (name, digest);
        CREATE TABLE model_slot (
            name TEXT NOT NULL,
            slot TEXT NOT NULL CHECK (slot IN ('active', 'previous', 'candidate')),
            digest TEXT NOT NULL,
            since_s INTEGER NOT NULL,
            PRIMARY KEY (name, slot),
            UNIQUE (name, digest),
            FOREIGN KEY (name, digest) REFERENCES model (name, digest)
        ) STRICT;
        CREATE TABLE model_release_floor (
            name TEXT PRIMARY KEY,
            release INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE model_failure (
            name TEXT NOT NULL,
            digest TEXT NOT NULL,
            reason TEXT NOT NULL,
            at_s INTEGER NOT NULL,
            PRIMARY KEY (name, digest)
        ) STRICT;
    ",
        "
        -- The bitwise inverse of the counter: neither is believed without the other.
        ALTER TABLE model_release_floor ADD COLUMN inverse INTEGER;
    ",
    ],
};

/// Longest reason kept of a failure, in bytes.
const REASON_BYTES_MAX: usize = 2_000;

/// A place that a release of a model can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// Serves.
    Active,
    /// Served before; a rollback goes here.
    Previous,
    /// Installed, has not served yet.
    Candidate,
}

impl Slot {
    /// As in the tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Previous => "previous",
            Self::Candidate => "candidate",
        }
    }

    /// The slot that a word means: as [`Slot::as_str`] says it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Previous, Self::Candidate].into_iter().find(|s| s.as_str() == text)
    }
}

/// Why the catalog refused.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No such model, or none with that digest.
    #[error("find model {reference}: it is not installed; fulmar list shows what is")]
    NotInstalled {
        /// What was asked for.
        reference: ModelRef,
    },
    /// No reference.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// A short name that several models go by.
    #[error("find model {text}: {} go by that name; write one of them in full", names.join(", "))]
    Ambiguous {
        /// As it was written.
        text: String,
        /// Their full names.
        names: Vec<String>,
    },
    /// Installed, yet none of its releases is active.
    #[error(
        "find model {name}: it is installed and not active; activate it, or name one release \
         with @sha256:…"
    )]
    NotActive {
        /// The model.
        name: ModelName,
    },
    /// A blob that the manifest names is not complete.
    #[error("install model {name}: blob {blob} of {path} is not complete in the store")]
    BlobMissing {
        /// The model.
        name: ModelName,
        /// The blob.
        blob: Digest,
        /// The file's path in the manifest.
        path: String,
    },
    /// The release counter would go back.
    #[error(
        "install model {name}: release {release} is older than release {floor}, which this \
         device had; publish a higher release"
    )]
    Older {
        /// The model.
        name: ModelName,
        /// The release offered.
        release: u64,
        /// The highest release the device ever had.
        floor: u64,
    },
    /// Nothing to go back to.
    #[error("roll back model {name}: no previous release is installed")]
    NoPrevious {
        /// The model.
        name: ModelName,
    },
    /// A row does not hold what this program wrote.
    #[error("read model {name} from the catalog: its {column} is damaged; install it again")]
    Damaged {
        /// The model.
        name: String,
        /// The column.
        column: &'static str,
    },
    /// The manifest in a row does not parse.
    #[error("read a model's manifest from the catalog: {0}")]
    Manifest(#[from] ManifestError),
    /// The release could not be recorded for later admissions.
    #[error("record an admission: {0}")]
    Trust(#[from] Box<TrustError>),
    /// The database refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for CatalogError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What an activation changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activated {
    /// It was active already.
    Already,
    /// It is now; what served before, if any, is the previous one.
    Now {
        /// What served before.
        previous: Option<Digest>,
    },
}

/// What a rollback changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    /// What served and does no longer.
    pub from: Digest,
    /// What serves now.
    pub to: Digest,
}

/// Installs a release whose blobs are complete. It becomes the candidate of its name unless it
/// has a slot already; installing what is installed changes who says so, and writes anew what was
/// damaged.
///
/// # Errors
/// [`CatalogError::BlobMissing`], [`CatalogError::Older`].
pub fn install(
    tx: &Transaction<'_>,
    signed: &Signed,
    blobs: &Blobs,
    at_s: i64,
) -> Result<(), CatalogError> {
    let (manifest, digest) = (signed.manifest(), signed.digest());
    let name = &manifest.name;
    for file in &manifest.files {
        if !blobs.contains(&file.digest, file.size_bytes) {
            let path = file.path.clone();
            return Err(CatalogError::BlobMissing { name: name.clone(), blob: file.digest, path });
        }
    }
    raise_floor(tx, signed)?;
    if let Some(admitted) = signed.admitted() {
        admitted.record(tx).map_err(Box::new)?;
    }
    // Checked on the way in: both fit SQLite's signed integers.
    tx.execute(
        "INSERT INTO model (name, digest, release, manifest, authority, signature, installed_at_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (name, digest) DO UPDATE
         SET release = excluded.release, manifest = excluded.manifest,
             authority = excluded.authority, signature = excluded.signature",
        rusqlite::params![
            name.to_string(),
            digest,
            manifest.release as i64,
            signed.bytes(),
            authority_text(signed.authority()),
            signed.signature(),
            at_s
        ],
    )?;
    tx.execute("DELETE FROM model_blob WHERE name = ?1 AND digest = ?2", key(name, &digest))?;
    for file in &manifest.files {
        tx.execute(
            "INSERT INTO model_blob (name, digest, blob) VALUES (?1, ?2, ?3)",
            (name.to_string(), digest, file.digest),
        )?;
    }
    if slot_of(tx, name, &digest)?.is_none() {
        set_slot(tx, name, Slot::Candidate, &digest, at_s)?;
    }
    Ok(())
}

/// A release below the highest that the device ever had is refused; the same release again is
/// fine, also with other bytes: that is what signing it anew means.
fn raise_floor(tx: &Transaction<'_>, signed: &Signed) -> Result<(), CatalogError> {
    let (name, release) = (signed.name(), signed.manifest().release);
    let floor = release_floor(tx, name)?;
    if release < floor {
        return Err(CatalogError::Older { name: name.clone(), release, floor });
    }
    let counter = release as i64;
    tx.execute(
        "INSERT OR REPLACE INTO model_release_floor (name, release, inverse) VALUES (?1, ?2, ?3)",
        (name.to_string(), counter, !counter),
    )?;
    Ok(())
}

/// The highest release of a name that this device ever had; 0 for none, and where the counter was
/// damaged: what was admitted is recorded besides.
///
/// # Errors
/// The database's.
pub fn release_floor(
    connection: &rusqlite::Connection,
    name: &ModelName,
) -> Result<u64, CatalogError> {
    let floor: Option<(i64, Option<i64>)> = connection
        .query_row(
            "SELECT release, inverse FROM model_release_floor WHERE name = ?1",
            [name.to_string()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    Ok(match floor {
        Some((release, inverse)) if inverse.is_none_or(|inverse| inverse == !release) => {
            release.max(0) as u64
        }
        Some(_) => {
            tracing::warn!(%name, "the release counter of a model was damaged");
            0
        }
        None => 0,
    })
}

/// Makes an installed release the active one of its name; the one that was active becomes the
/// previous one. Clears a failure noted earlier: whoever activates means it.
///
/// # Errors
/// [`CatalogError::NotInstalled`].
pub fn activate(
    tx: &Transaction<'_>,
    name: &ModelName,
    digest: &Digest,
    at_s: i64,
) -> Result<Activated, CatalogError> {
    require_installed(tx, name, digest)?;
    tx.execute("DELETE FROM model_failure WHERE name = ?1 AND digest = ?2", key(name, digest))?;
    let active = slot(tx, name, Slot::Active)?;
    if active == Some(*digest) {
        return Ok(Activated::Already);
    }
    clear_digest(tx, name, digest)?;
    if let Some(active) = active {
        clear_digest(tx, name, &active)?;
        set_slot(tx, name, Slot::Previous, &active, at_s)?;
    }
    set_slot(tx, name, Slot::Active, digest, at_s)?;
    Ok(Activated::Now { previous: active })
}

/// Takes a name out of service; the release that served stays installed as the previous one.
///
/// # Errors
/// The database's.
pub fn deactivate(
    tx: &Transaction<'_>,
    name: &ModelName,
    at_s: i64,
) -> Result<Option<Digest>, CatalogError> {
    let Some(active) = slot(tx, name, Slot::Active)? else { return Ok(None) };
    clear_digest(tx, name, &active)?;
    set_slot(tx, name, Slot::Previous, &active, at_s)?;
    Ok(Some(active))
}

/// Goes back to the previous release. The one that served is noted as failed for `reason`, so
/// that nobody but a person activates it again, and becomes the candidate.
///
/// # Errors
/// [`CatalogError::NoPrevious`]; [`CatalogError::NotActive`] where nothing serves.
pub fn rollback(
    tx: &Transaction<'_>,
    name: &ModelName,
    reason: &str,
    at_s: i64,
) -> Result<RolledBack, CatalogError> {
    let to = slot(tx, name, Slot::Previous)?
        .ok_or_else(|| CatalogError::NoPrevious { name: name.clone() })?;
    let from = slot(tx, name, Slot::Active)?
        .ok_or_else(|| CatalogError::NotActive { name: name.clone() })?;
    clear_digest(tx, name, &to)?;
    clear_digest(tx, name, &from)?;
    set_slot(tx, name, Slot::Active, &to, at_s)?;
    set_slot(tx, name, Slot::Candidate, &from, at_s)?;
    fail(tx, name, &from, reason, at_s)?;
    Ok(RolledBack { from, to })
}

/// Notes that a release failed (to install, or its health contract). Known even after it was
/// removed, so that it is not fetched again and again.
///
/// # Errors
/// The database's.
pub fn fail(
    tx: &Transaction<'_>,
    name: &ModelName,
    digest: &Digest,
    reason: &str,
    at_s: i64,
) -> Result<(), CatalogError> {
    let reason: String = reason.chars().take(REASON_BYTES_MAX / 4).collect();
    tx.execute(
        "INSERT INTO model_failure (name, digest, reason, at_s) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name, digest) DO UPDATE SET reason = excluded.reason, at_s = excluded.at_s",
        (name.to_string(), digest, reason, at_s),
    )?;
    Ok(())
}

/// Keeps a release from garbage collection.
///
/// # Errors
/// [`CatalogError::NotInstalled`].
pub fn pin(tx: &Transaction<'_>, name: &ModelName, digest: &Digest) -> Result<(), CatalogError> {
    set_pinned(tx, name, digest, 1)
}

/// Undoes [`pin`].
///
/// # Errors
/// [`CatalogError::NotInstalled`].
pub fn unpin(tx: &Transaction<'_>, name: &ModelName, digest: &Digest) -> Result<(), CatalogError> {
    set_pinned(tx, name, digest, 0)
}

fn set_pinned(
    tx: &Transaction<'_>,
    name: &ModelName,
    digest: &Digest,
    pinned: i64,
) -> Result<(), CatalogError> {
    require_installed(tx, name, digest)?;
    tx.execute(
        "UPDATE model SET pinned = ?3 WHERE name = ?1 AND digest = ?2",
        (name.to_string(), digest, pinned),
    )?;
    Ok(())
}

/// Forgets an installed release, whatever slot it has. Its blobs go with the next garbage
/// collection; the release counter stays.
///
/// # Errors
/// [`CatalogError::NotInstalled`].
pub fn remove(tx: &Transaction<'_>, name: &ModelName, digest: &Digest) -> Result<(), CatalogError> {
    require_installed(tx, name, digest)?;
    clear_digest(tx, name, digest)?;
    tx.execute("DELETE FROM model WHERE name = ?1 AND digest = ?2", key(name, digest))?;
    Ok(())
}

fn key(name: &ModelName, digest: &Digest) -> (String, Digest) {
    (name.to_string(), *digest)
}

fn require_installed(
    tx: &Transaction<'_>,
    name: &ModelName,
    digest: &Digest,
) -> Result<(), CatalogError> {
    let there = tx
        .query_row("SELECT 1 FROM model WHERE name = ?1 AND digest = ?2", key(name, digest), |_| {
            Ok(())
        })
        .optional()?;
    there.ok_or_else(|| CatalogError::NotInstalled {
        reference: ModelRef { name: name.clone(), digest: Some(*digest) },
    })
}

fn slot_of(
    tx: &Transaction<'_>,
    name: &ModelName,
    digest: &Digest,
) -> Result<Option<Slot>, CatalogError> {
    let text: Option<String> = tx
        .query_row(
            "SELECT slot FROM model_slot WHERE name = ?1 AND digest = ?2",
            key(name, digest),
            |row| row.get(0),
        )
        .optional()?;
    Ok(text.as_deref().and_then(Slot::parse))
}

fn clear_digest(
    tx: &Transaction<'_>,
    name: &ModelName,
    digest: &Digest,
) -> Result<(), CatalogError> {
    tx.execute("DELETE FROM model_slot WHERE name = ?1 AND digest = ?2", key(name, digest))?;
    Ok(())
}

/// Whatever had the slot loses it.
fn set_slot(
    tx: &Transaction<'_>,
    name: &ModelName,
    slot: Slot,
    digest: &Digest,
    at_s: i64,
) -> Result<(), CatalogError> {
    tx.execute(
        "INSERT INTO model_slot (name, slot, digest, since_s) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name, slot) DO UPDATE
         SET digest = excluded.digest, since_s = excluded.since_s",
        (name.to_string(), slot.as_str(), digest, at_s),
    )?;
    Ok(())
}

fn authority_text(authority: &Authority) -> String {
    match authority {
        Authority::TwoRepositories { registry_version, director_version } => {
            format!("two_repositories {registry_version} {director_version}")
        }
        Authority::LocalOwner { key_id } => format!("local_owner {key_id}"),
    }
}

#[cfg(test)]
mod tests;
