//! Reading the catalog.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Row};

use super::{CatalogError, Slot};
use crate::admission::Authority;
use crate::facts::Facts;
use crate::manifest::{Manifest, SizeClass};
use crate::{Digest, ModelName, ModelRef};

/// An installed release.
#[derive(Debug, Clone)]
pub struct Installed {
    /// What it is.
    pub manifest: Manifest,
    /// The manifest's bytes as signed.
    pub manifest_bytes: Vec<u8>,
    /// The model's digest.
    pub digest: Digest,
    /// Who says that it may run here.
    pub authority: Authority,
    /// The local owner's signature over the manifest; empty under two repositories.
    pub signature: Vec<u8>,
    /// Its place, if it has one.
    pub slot: Option<Slot>,
    /// Whether a person keeps it from garbage collection.
    pub pinned: bool,
    /// When it was installed, seconds since 1970.
    pub installed_at_s: i64,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

impl Installed {
    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &ModelName {
        &self.manifest.name
    }
}

/// Which models to list; every field narrows, the default lists all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Part of the name, of the source or of an evaluation's task, in any case.
    pub text: Option<String>,
    /// Exactly this architecture.
    pub architecture: Option<String>,
    /// Exactly this size class.
    pub size_class: Option<SizeClass>,
    /// This quantisation, in any case.
    pub quantization: Option<String>,
    /// Part of the licence, in any case.
    pub license: Option<String>,
    /// At least this context.
    pub context_tokens_min: Option<u32>,
    /// At most this many bytes of memory; models that do not say are left out.
    pub memory_bytes_max: Option<u64>,
    /// Only this slot.
    pub slot: Option<Slot>,
}

impl Filter {
    /// Whether a manifest passes all but the slot.
    #[must_use]
    pub fn matches(&self, manifest: &Manifest) -> bool {
        self.fits(&manifest.name, Some(&Facts::of(manifest))) == Some(true)
    }

    /// Whether a model passes all but the slot, by what is known of it; `None` where that depends on
    /// facts that are not.
    #[must_use]
    pub fn fits(&self, name: &ModelName, facts: Option<&Facts>) -> Option<bool> {
        let part = self.text.as_deref().unwrap_or_default();
        let name_fits = contains(&name.to_string(), part);
        let Some(facts) = facts else {
            let asks_nothing = Self { text: None, slot: None, ..self.clone() } == Self::default();
            return if name_fits && !asks_nothing { None } else { Some(name_fits) };
        };
        let text_fits = name_fits
            || contains(&facts.source, part)
            || facts.evaluation.iter().any(|e| contains(&e.task, part));
        Some(text_fits && self.facts_fit(facts))
    }

    fn facts_fit(&self, facts: &Facts) -> bool {
        let memory_fits =
            self.memory_bytes_max.is_none_or(|max| (1..=max).contains(&facts.memory_bytes));
        let quantization = self.quantization.as_ref();
        memory_fits
            && self.architecture.as_ref().is_none_or(|a| *a == facts.architecture)
            && self.size_class.is_none_or(|class| class == facts.size_class)
            && quantization.is_none_or(|q| q.eq_ignore_ascii_case(&facts.quantization))
            && self.license.as_deref().is_none_or(|part| contains(&facts.license, part))
            && self.context_tokens_min.is_none_or(|min| facts.context_tokens >= min)
    }
}

/// Whether `text` has `part` in it, in any case.
fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}

const SELECT: &str = "
    SELECT model.name, model.digest, manifest, authority, signature, installed_at_s, pinned,
           slot, reason
    FROM model
    LEFT JOIN model_slot ON model_slot.name = model.name AND model_slot.digest = model.digest
    LEFT JOIN model_failure
           ON model_failure.name = model.name AND model_failure.digest = model.digest";

struct Raw {
    name: String,
    digest: Digest,
    manifest: Vec<u8>,
    authority: String,
    signature: Vec<u8>,
    installed_at_s: i64,
    pinned: i64,
    slot: Option<String>,
    failure: Option<String>,
}

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok(Raw {
        name: row.get(0)?,
        digest: row.get(1)?,
        manifest: row.get(2)?,
        authority: row.get(3)?,
        signature: row.get(4)?,
        installed_at_s: row.get(5)?,
        pinned: row.get(6)?,
        slot: row.get(7)?,
        failure: row.get(8)?,
    })
}

/// A row is believed only as far as its manifest hashes to its digest.
fn installed(raw: Raw) -> Result<Installed, CatalogError> {
    let damaged = |column| CatalogError::Damaged { name: raw.name.clone(), column };
    if Digest::of(&raw.manifest) != raw.digest {
        return Err(damaged("manifest"));
    }
    let manifest = Manifest::parse(&raw.manifest)?;
    if manifest.name.to_string() != raw.name {
        return Err(damaged("name"));
    }
    let authority = parse_authority(&raw.authority).ok_or_else(|| damaged("authority"))?;
    Ok(Installed {
        manifest,
        manifest_bytes: raw.manifest,
        digest: raw.digest,
        authority,
        signature: raw.signature,
        slot: raw.slot.as_deref().and_then(Slot::parse),
        pinned: raw.pinned != 0,
        installed_at_s: raw.installed_at_s,
        failure: raw.failure,
    })
}

/// A row of the catalog that does not hold what this program wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRow {
    /// The model, as far as it can be read.
    pub name: String,
    /// The release, where its digest can be read.
    pub digest: Option<Digest>,
    /// Its place, if it has one.
    pub slot: Option<Slot>,
    /// Whether a person keeps it from garbage collection.
    pub pinned: bool,
    /// Who said that it may run here, where that can be read.
    pub authority: Option<Authority>,
    /// The blobs that it named when it was installed.
    pub blobs: Vec<Digest>,
    /// What is wrong.
    pub reason: String,
}

/// Every row: an installed release, or what is left of one.
fn rows(connection: &Connection) -> Result<Vec<Result<Installed, DamagedRow>>, CatalogError> {
    let order = "ORDER BY model.name,
        CASE slot WHEN 'active' THEN 0 WHEN 'candidate' THEN 1 WHEN 'previous' THEN 2 ELSE 3 END,
        release DESC, installed_at_s DESC, model.digest";
    let mut statement = connection.prepare(&format!("{SELECT} {order}"))?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let read = raw(row).map_err(CatalogError::from).and_then(installed);
        all.push(match read {
            Ok(model) => Ok(model),
            Err(error) => Err(damaged_row(connection, row, &error)?),
        });
    }
    Ok(all)
}

fn damaged_row(
    connection: &Connection,
    row: &Row<'_>,
    error: &CatalogError,
) -> Result<DamagedRow, CatalogError> {
    let text = |column| {
        let bytes = row.get_ref(column).ok().and_then(|value| value.as_bytes_or_null().ok());
        bytes.flatten().map(String::from_utf8_lossy).unwrap_or_default().into_owned()
    };
    let blobs = connection
        .prepare_cached("SELECT blob FROM model_blob WHERE name = ?1 AND digest = ?2")?
        .query_map((text(0), text(1)), |row| Ok(row.get(0).ok()))?
        .collect::<Result<Vec<Option<Digest>>, _>>()?;
    Ok(DamagedRow {
        name: text(0),
        digest: text(1).parse().ok(),
        slot: Slot::parse(&text(7)),
        pinned: row.get::<_, i64>(6).is_ok_and(|pinned| pinned != 0),
        authority: parse_authority(&text(3)),
        blobs: blobs.into_iter().flatten().collect(),
        reason: error.to_string(),
    })
}

/// Rows that do not hold what this program wrote. [`list`] leaves them out; installing the release
/// again writes them anew.
///
/// # Errors
/// The database's.
pub fn damaged(connection: &Connection) -> Result<Vec<DamagedRow>, CatalogError> {
    Ok(rows(connection)?.into_iter().filter_map(Result::err).collect())
}

fn parse_authority(text: &str) -> Option<Authority> {
    let mut words = text.split(' ');
    let authority = match words.next()? {
        "two_repositories" => Authority::TwoRepositories {
            registry_version: words.next()?.parse().ok()?,
            director_version: words.next()?.parse().ok()?,
        },
        "local_owner" => Authority::LocalOwner { key_id: words.next()?.parse().ok()? },
        _ => return None,
    };
    words.next().is_none().then_some(authority)
}

/// The release that a reference means: the one with that digest, else the active one.
///
/// # Errors
/// [`CatalogError::NotInstalled`], [`CatalogError::NotActive`], [`CatalogError::Damaged`].
pub fn find(connection: &Connection, reference: &ModelRef) -> Result<Installed, CatalogError> {
    let name = reference.name.to_string();
    let found = match &reference.digest {
        Some(digest) => connection.query_row(
            &format!("{SELECT} WHERE model.name = ?1 AND model.digest = ?2"),
            (&name, digest),
            raw,
        ),
        None => connection.query_row(
            &format!("{SELECT} WHERE model.name = ?1 AND slot = 'active'"),
            [&name],
            raw,
        ),
    };
    if let Some(row) = found.optional()? {
        return installed(row);
    }
    let any = connection
        .query_row("SELECT 1 FROM model WHERE name = ?1", [&name], |_| Ok(()))
        .optional()?;
    match (any, reference.digest) {
        (Some(()), None) => Err(CatalogError::NotActive { name: reference.name.clone() }),
        _ => Err(CatalogError::NotInstalled { reference: reference.clone() }),
    }
}

/// Installed releases by name, the active one first. A row that is damaged costs its own release
/// only: it is left out, and told by [`damaged`].
///
/// # Errors
/// The database's.
pub fn list(connection: &Connection, filter: &Filter) -> Result<Vec<Installed>, CatalogError> {
    let mut models = Vec::new();
    for row in rows(connection)? {
        match row {
            Ok(model) => {
                let slot_fits = filter.slot.is_none() || filter.slot == model.slot;
                if slot_fits && filter.matches(&model.manifest) {
                    models.push(model);
                }
            }
            Err(DamagedRow { name, reason, .. }) => {
                tracing::warn!(model = name, reason, "a row of the catalog is damaged");
            }
        }
    }
    Ok(models)
}

/// Names that have an active release, whether its row is whole or not.
///
/// # Errors
/// The database's.
pub fn active_names(connection: &Connection) -> Result<Vec<String>, CatalogError> {
    let sql = "SELECT name FROM model_slot WHERE slot = 'active' ORDER BY name";
    let mut statement = connection.prepare_cached(sql)?;
    let names = statement.query_map([], |row| Ok(row.get(0).ok()))?;
    Ok(names.collect::<Result<Vec<Option<String>>, _>>()?.into_iter().flatten().collect())
}

/// The release in a slot.
///
/// # Errors
/// The database's.
pub fn slot(
    connection: &Connection,
    name: &ModelName,
    slot: Slot,
) -> Result<Option<Digest>, CatalogError> {
    Ok(connection
        .query_row(
            "SELECT digest FROM model_slot WHERE name = ?1 AND slot = ?2",
            (name.to_string(), slot.as_str()),
            |row| row.get(0),
        )
        .optional()?)
}

/// Releases that failed, with the reason; a damaged row is left out, so that what it spoke of is
/// tried again.
///
/// # Errors
/// The database's.
pub fn failures(connection: &Connection) -> Result<Vec<(ModelName, Digest, String)>, CatalogError> {
    let mut statement =
        connection.prepare("SELECT name, digest, reason FROM model_failure ORDER BY name, at_s")?;
    let mut rows = statement.query([])?;
    let mut failures = Vec::new();
    while let Some(row) = rows.next()? {
        let (name, digest) = (row.get::<_, String>(0), row.get(1));
        if let (Ok(Ok(name)), Ok(digest)) = (name.map(|name| name.parse()), digest) {
            failures.push((name, digest, row.get(2).unwrap_or_default()));
        }
    }
    Ok(failures)
}

/// Blobs that any installed release names.
///
/// # Errors
/// The database's.
pub fn blobs_in_use(connection: &Connection) -> Result<BTreeSet<Digest>, CatalogError> {
    let mut statement = connection.prepare("SELECT DISTINCT blob FROM model_blob")?;
    let blobs = statement.query_map([], |row| row.get(0))?;
    Ok(blobs.collect::<Result<_, _>>()?)
}
