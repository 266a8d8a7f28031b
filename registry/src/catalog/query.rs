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

type Raw = (String, Digest, Vec<u8>, String, Vec<u8>, i64, i64, Option<String>, Option<String>);

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
        row.get(5)?,
        row.get(6)?,
        row.get(7)?,
        row.get(8)?,
    ))
}

/// A row is believed only as far as its manifest hashes to its digest.
fn installed(raw: Raw) -> Result<Installed, CatalogError> {
    let (name, digest, bytes, authority, signature, installed_at_s, pinned, slot, failure) = raw;
    let damaged = |column| CatalogError::Damaged { name: name.clone(), column };
    if Digest::of(&bytes) != digest {
        return Err(damaged("manifest"));
    }
    let manifest = Manifest::parse(&bytes)?;
    if manifest.name.to_string() != name {
        return Err(damaged("name"));
    }
    let authority = parse_authority(&authority).ok_or_else(|| damaged("authority"))?;
    Ok(Installed {
        manifest,
        manifest_bytes: bytes,
        digest,
        authority,
        signature,
        slot: slot.as_deref().and_then(Slot::parse),
        pinned: pinned != 0,
        installed_at_s,
        failure,
    })
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

/// Installed releases by name, the active one first.
///
/// # Errors
/// [`CatalogError::Damaged`]; the database's.
pub fn list(connection: &Connection, filter: &Filter) -> Result<Vec<Installed>, CatalogError> {
    let order = "ORDER BY model.name,
        CASE slot WHEN 'active' THEN 0 WHEN 'candidate' THEN 1 WHEN 'previous' THEN 2 ELSE 3 END,
        release DESC, installed_at_s DESC, model.digest";
    let mut statement = connection.prepare(&format!("{SELECT} {order}"))?;
    let mut models = Vec::new();
    for row in statement.query_map([], raw)? {
        let model = installed(row?)?;
        let slot_fits = filter.slot.is_none() || filter.slot == model.slot;
        if slot_fits && filter.matches(&model.manifest) {
            models.push(model);
        }
    }
    Ok(models)
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

/// Releases that failed, with the reason.
///
/// # Errors
/// The database's; [`CatalogError::Damaged`].
pub fn failures(connection: &Connection) -> Result<Vec<(ModelName, Digest, String)>, CatalogError> {
    let mut statement =
        connection.prepare("SELECT name, digest, reason FROM model_failure ORDER BY name, at_s")?;
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, String>(2)?))
    })?;
    rows.map(|row| {
        let (name, digest, reason) = row?;
        let parsed = name.parse().map_err(|_| CatalogError::Damaged { name, column: "name" })?;
        Ok((parsed, digest, reason))
    })
    .collect()
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
