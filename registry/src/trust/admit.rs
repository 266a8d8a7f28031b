//! The rule of two repositories: a model is admitted only when the registry (the owner's offline
//! keys) and the director (the control plane's online key) name the same bytes for it, neither has
//! expired, and its release counter does not go back.
//!
//! Invariant: an [`Admitted`] comes out of [`admit`] only.

use rusqlite::{Connection, OptionalExtension, Transaction};
use serde_json::Value;

use super::date::Date;
use super::error::TrustError;
use super::metadata::TargetEntry;
use super::trusted::{Found, Repo, Trusted};
use crate::{Digest, ModelName};

/// What an admission is held against besides the two repositories.
#[derive(Debug, Clone)]
pub struct Admission<'a> {
    /// The clock, in seconds since 1970; never believed below the highest signed time.
    pub now_s: i64,
    /// This device's id: director metadata minted for another device is refused.
    pub device_id: Option<&'a str>,
    /// The highest release of this target admitted before; see [`release_floor`].
    pub release_floor: Option<ReleaseFloor>,
}

/// The highest release of a target that was ever recorded here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseFloor {
    /// Its counter.
    pub release: u64,
    /// The digest it had.
    pub digest: Digest,
}

/// A target that both repositories vouch for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    target_path: String,
    name: ModelName,
    length: u64,
    digest: Digest,
    release: u64,
    active: Active,
    custom: Value,
    registry_version: u64,
    director_version: u64,
}

/// What the director wants of an admitted model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Active {
    /// Serve it.
    Serve,
    /// Only keep it.
    Hold,
}

/// Why a target was not admitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// A repository's metadata is not fit for use.
    #[error("admit {target_path}")]
    Metadata {
        /// The target.
        target_path: String,
        /// Why.
        #[source]
        source: Box<TrustError>,
    },
    /// A repository does not name the target.
    #[error("admit {target_path}: the {} repository does not name it{}", .repo.as_str(), unnamed_hint(*.repo))]
    NotNamed {
        /// The target.
        target_path: String,
        /// The repository.
        repo: Repo,
    },
    /// The two name different bytes.
    #[error(
        "admit {target_path}: the repositories name different contents: registry {registry}, \
         director {director}; the director may only choose among what the owner signed"
    )]
    Differ {
        /// The target.
        target_path: String,
        /// Length and digest in the registry.
        registry: String,
        /// Length and digest in the director's metadata.
        director: String,
    },
    /// An entry is not one of a model.
    #[error("admit {target_path}: the {} repository's entry {reason}", .repo.as_str())]
    Entry {
        /// The target.
        target_path: String,
        /// The repository.
        repo: Repo,
        /// What is wrong with it.
        reason: String,
    },
    /// The director's metadata is another device's.
    #[error(
        "admit {target_path}: the director's metadata is for device {found:?}, this is {expected:?}"
    )]
    Device {
        /// The target.
        target_path: String,
        /// This device.
        expected: String,
        /// The device named.
        found: String,
    },
    /// The release counter goes back.
    #[error(
        "admit {target_path}: its release is {found}, and {floor} was admitted before; to go back, \
         publish the older content again under a higher release"
    )]
    ReleaseRollback {
        /// The target.
        target_path: String,
        /// The highest release seen.
        floor: u64,
        /// The release named now.
        found: u64,
    },
    /// The same release with other bytes.
    #[error(
        "admit {target_path}: release {release} was admitted before with digest {before}, now it has \
         {found}; new content needs a higher release"
    )]
    ReleaseReused {
        /// The target.
        target_path: String,
        /// The release.
        release: u64,
        /// The digest recorded.
        before: Digest,
        /// The digest named now.
        found: Digest,
    },
}

fn unnamed_hint(repo: Repo) -> &'static str {
    match repo {
        Repo::Registry => ": the owner has not signed it",
        Repo::Director => ": the control plane has not assigned it to this device",
    }
}

/// Admits `target_path` if both repositories name it alike and nothing speaks against it.
///
/// # Errors
/// [`Refused`], naming the rule that was broken.
pub fn admit(
    registry: &Trusted,
    director: &Trusted,
    target_path: &str,
    admission: &Admission<'_>,
) -> Result<Admitted, Refused> {
    let path = || target_path.to_owned();
    let refuse = |repo, reason| Refused::Entry { target_path: path(), repo, reason };
    // Expired metadata admits nothing new, whatever the clock says.
    let owned = entry(registry, Repo::Registry, target_path, admission.now_s)?;
    let chosen = entry(director, Repo::Director, target_path, admission.now_s)?;
    if let Some(expected) = admission.device_id {
        let found = director.device_id().unwrap_or_default();
        if found != expected {
            let (expected, found) = (expected.to_owned(), found.to_owned());
            return Err(Refused::Device { target_path: path(), expected, found });
        }
    }
    let digest = owned.digest().ok_or_else(|| refuse(Repo::Registry, "has no sha256".into()))?;
    if owned.length != chosen.length || chosen.digest() != Some(digest) {
        let say = |e: &TargetEntry| {
            let digest = e.digest().map_or("no sha256".to_owned(), |d| d.to_string());
            format!("{} bytes, {digest}", e.length)
        };
        let (registry, director) = (say(owned), say(chosen));
        return Err(Refused::Differ { target_path: path(), registry, director });
    }
    let release = release_of(owned).map_err(|reason| refuse(Repo::Registry, reason))?;
    let directed = release_of(chosen).map_err(|reason| refuse(Repo::Director, reason))?;
    if release != directed {
        let reason = format!("says release {directed}, the registry's says {release}");
        return Err(refuse(Repo::Director, reason));
    }
    check_release(target_path, release, digest, admission.release_floor.as_ref())?;
    let name = ModelName::from_target_path(target_path)
        .map_err(|e| refuse(Repo::Registry, e.to_string()))?;
    let active = match field(chosen, "active").and_then(Value::as_bool) {
        Some(true) => Active::Serve,
        Some(false) | None => Active::Hold,
    };
    Ok(Admitted {
        target_path: path(),
        name,
        length: owned.length,
        digest,
        release,
        active,
        custom: owned.custom.clone().unwrap_or(Value::Null),
        registry_version: registry.targets_version().unwrap_or_default(),
        director_version: director.targets_version().unwrap_or_default(),
    })
}

fn entry<'a>(
    trusted: &'a Trusted,
    repo: Repo,
    target_path: &str,
    now_s: i64,
) -> Result<&'a TargetEntry, Refused> {
    let refuse = |source| Refused::Metadata {
        target_path: target_path.to_owned(),
        source: Box::new(source),
    };
    let unnamed = || Refused::NotNamed { target_path: target_path.to_owned(), repo };
    if trusted.repo() != repo {
        return Err(unnamed());
    }
    trusted.check_expiry(now_s).map_err(refuse)?;
    let Found::Target { entry, chain } = trusted.search(target_path) else { return Err(unnamed()) };
    trusted.check_chain_expiry(&chain, Date(trusted.time(now_s))).map_err(refuse)?;
    Ok(entry)
}

fn field<'a>(entry: &'a TargetEntry, name: &str) -> Option<&'a Value> {
    entry.custom.as_ref()?.get("fulmar")?.get(name)
}

fn release_of(entry: &TargetEntry) -> Result<u64, String> {
    if field(entry, "kind").and_then(Value::as_str) != Some("model") {
        return Err("is not of kind \"model\" (custom.fulmar.kind)".to_owned());
    }
    field(entry, "release")
        .and_then(Value::as_u64)
        .filter(|release| i64::try_from(*release).is_ok())
        .ok_or_else(|| "has no release counter (custom.fulmar.release)".to_owned())
}

fn check_release(
    target_path: &str,
    release: u64,
    digest: Digest,
    floor: Option<&ReleaseFloor>,
) -> Result<(), Refused> {
    let Some(floor) = floor else { return Ok(()) };
    let target_path = target_path.to_owned();
    if release < floor.release {
        return Err(Refused::ReleaseRollback { target_path, floor: floor.release, found: release });
    }
    if release == floor.release && digest != floor.digest {
        let before = floor.digest;
        return Err(Refused::ReleaseReused { target_path, release, before, found: digest });
    }
    Ok(())
}

impl Admitted {
    /// The TUF target path.
    #[must_use]
    pub fn target_path(&self) -> &str {
        &self.target_path
    }

    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &ModelName {
        &self.name
    }

    /// The manifest's length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The manifest's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The release counter.
    #[must_use]
    pub fn release(&self) -> u64 {
        self.release
    }

    /// Whether the director wants it served or only kept.
    #[must_use]
    pub fn active(&self) -> Active {
        self.active
    }

    /// What the owner says about the target.
    #[must_use]
    pub fn custom(&self) -> &Value {
        &self.custom
    }

    /// Version of the registry's top-level targets that vouch for it.
    #[must_use]
    pub fn registry_version(&self) -> u64 {
        self.registry_version
    }

    /// Version of the director's targets that chose it: the generation.
    #[must_use]
    pub fn director_version(&self) -> u64 {
        self.director_version
    }

    /// Records this release, so that no older one is admitted after it. To be called in the
    /// transaction that installs it.
    ///
    /// # Errors
    /// What the database says.
    pub fn record(&self, tx: &Transaction<'_>) -> Result<(), TrustError> {
        let known = release_floor(tx, &self.target_path)?;
        if known.is_some_and(|known| known.release >= self.release) {
            return Ok(());
        }
        let release = self.release as i64;
        tx.execute(
            "INSERT OR REPLACE INTO trust_release (target_path, release, digest, inverse)
             VALUES (?1, ?2, ?3, ?4)",
            (&self.target_path, release, self.digest, !release),
        )?;
        Ok(())
    }
}

/// The highest release recorded for `target_path`. A row that was damaged says nothing: the catalog
/// keeps the counter of the name besides, and each covers for the other.
///
/// # Errors
/// What the database says.
pub fn release_floor(
    connection: &Connection,
    target_path: &str,
) -> Result<Option<ReleaseFloor>, TrustError> {
    let row: Option<(i64, String, Option<i64>)> = connection
        .query_row(
            "SELECT release, digest, inverse FROM trust_release WHERE target_path = ?1",
            [target_path],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    let Some((release, digest, inverse)) = row else { return Ok(None) };
    match digest.parse() {
        Ok(digest) if inverse.is_none_or(|inverse| inverse == !release) => {
            Ok(Some(ReleaseFloor { release: release.max(0) as u64, digest }))
        }
        _ => {
            tracing::warn!(target_path, "the release recorded for a target was damaged");
            Ok(None)
        }
    }
}
