//! The mirror of the owner's registry repository.
//!
//! What is uploaded goes through the same trust client that devices use: signatures, thresholds,
//! versions, expiry. Only a whole, newer state is taken, in one transaction with the releases that
//! follow from it; a release is listed only when its manifest and all its blobs are here.

use std::collections::BTreeMap;

use fulmar_protocol::RegistryRoot;
use fulmar_registry::blobs::Blobs;
use fulmar_registry::manifest::MANIFEST_BYTES_MAX;
use fulmar_registry::trust::{
    self, Fetched, POLICY_BYTES_MAX, POLICY_PATH, Refresh, Repo, Scope, TargetEntry, TrustError,
    Trusted,
};
use fulmar_registry::{Digest, Manifest, ModelName};
use http::StatusCode;
use rusqlite::{Connection, OptionalExtension as _, Transaction};
use serde::Serialize;

use crate::director;
use crate::failure::{Failure, chain};
use crate::number::to_sql;

/// Files in one upload.
pub(crate) const FILES_MAX: usize = 512;
/// Files that a newer one replaced stay for devices in mid-refresh, in seconds.
const SUPERSEDED_KEPT_S: i64 = 86_400;

/// What an upload changed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Taken {
    /// Version of the registry's timestamp now.
    pub(crate) timestamp_version: u64,
    /// Version of its targets.
    pub(crate) targets_version: u64,
    /// Models that have a new release.
    pub(crate) published: Vec<String>,
    /// Models that the owner withdrew.
    pub(crate) withdrawn: Vec<String>,
}

/// Sets the registry's first root, brought out of band.
pub(crate) fn bootstrap(tx: &Transaction<'_>, root: &[u8], now_s: i64) -> Result<(), Failure> {
    let trusted = Trusted::bootstrap(tx, Repo::Registry, root, now_s).map_err(refused)?;
    let file = format!("{}.root.json", trusted.root_version());
    tx.execute(
        "INSERT OR IGNORE INTO registry_metadata (file, bytes) VALUES (?1, ?2)",
        (file, root),
    )?;
    Ok(())
}

/// Takes uploaded metadata in if, together with what is here, it verifies as a state that is not
/// older. Nothing is kept of an upload that does not.
pub(crate) fn take(
    tx: &Transaction<'_>,
    blobs: &Blobs,
    files: &BTreeMap<String, Vec<u8>>,
    by: &str,
    now_s: i64,
) -> Result<Taken, Failure> {
    if Trusted::load(tx, Repo::Registry).map_err(damaged)?.is_none() {
        let root = files.get("1.root.json").ok_or_else(|| {
            Failure::conflict(
                "registry_root_unknown",
                "no registry root is trusted yet: the first upload must hold 1.root.json",
            )
        })?;
        bootstrap(tx, root, now_s)?;
    }
    let trusted = Trusted::load(tx, Repo::Registry)
        .map_err(damaged)?
        .ok_or_else(|| Failure::internal("read the registry's root", "it is gone"))?;
    let mut refresh = Refresh::new(trusted, now_s).scope(Scope::Everything);
    let mut used: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    while let Some(want) = refresh.next() {
        let bytes = match files.get(&want.file_name) {
            Some(bytes) => Some(bytes.clone()),
            None => file(tx, &want.file_name)?,
        };
        let fetched = match bytes {
            Some(bytes) => {
                used.insert(want.file_name.clone(), bytes.clone());
                Fetched::Found(bytes)
            }
            None => Fetched::NotFound,
        };
        refresh.feed(fetched).map_err(refused)?;
    }
    let trusted = refresh.finish().map_err(refused)?;
    trusted.check_expiry(now_s).map_err(refused)?;
    trusted.store(tx).map_err(refused)?;
    keep_files(tx, &used, now_s)?;
    let (published, withdrawn) = list_releases(tx, blobs, &trusted, by, now_s)?;
    Ok(Taken {
        timestamp_version: trusted.timestamp_version().unwrap_or(0),
        targets_version: trusted.targets_version().unwrap_or(0),
        published,
        withdrawn,
    })
}

fn keep_files(
    tx: &Transaction<'_>,
    used: &BTreeMap<String, Vec<u8>>,
    now_s: i64,
) -> Result<(), Failure> {
    tx.execute(
        "UPDATE registry_metadata SET superseded_s = ?1
         WHERE superseded_s IS NULL AND file NOT LIKE '%.root.json'",
        [now_s],
    )?;
    let mut insert = tx.prepare_cached(
        "INSERT INTO registry_metadata (file, bytes) VALUES (?1, ?2)
         ON CONFLICT (file) DO UPDATE SET bytes = excluded.bytes, superseded_s = NULL",
    )?;
    for (file, bytes) in used {
        insert.execute((file, bytes))?;
    }
    tx.execute(
        "DELETE FROM registry_metadata WHERE superseded_s < ?1",
        [now_s - SUPERSEDED_KEPT_S],
    )?;
    Ok(())
}

/// One file of the mirror.
pub(crate) fn file(connection: &Connection, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    Ok(connection
        .prepare_cached("SELECT bytes FROM registry_metadata WHERE file = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?)
}

/// The root trusted now, for a join token to name.
pub(crate) fn root_pin(connection: &Connection) -> Result<Option<RegistryRoot>, Failure> {
    let trusted = Trusted::load(connection, Repo::Registry).map_err(damaged)?;
    Ok(trusted.map(|trusted| {
        let pin = trusted.root_pin();
        RegistryRoot { version: pin.version, sha256: pin.digest.hex() }
    }))
}

/// The root that a device is to begin its trust with: the one that its join token names.
pub(crate) fn root(connection: &Connection, version: Option<u64>) -> Result<Vec<u8>, Failure> {
    let found = file(connection, &format!("{}.root.json", version.unwrap_or(1)))?;
    match (found, version) {
        (Some(root), _) => Ok(root),
        (None, None) => Ok(Vec::new()),
        (None, Some(version)) => Err(Failure::conflict(
            "registry_root_unknown",
            format!(
                "the join token names root version {version} of the registry, which is not here: \
                 it is of another control plane, or this one was set back"
            ),
        )),
    }
}

/// Version of the registry's timestamp; 0 while there is none.
pub(crate) fn timestamp_version(connection: &Connection) -> Result<u64, Failure> {
    let trusted = Trusted::load(connection, Repo::Registry).map_err(damaged)?;
    Ok(trusted.and_then(|t| t.timestamp_version()).unwrap_or(0))
}

/// Brings the releases in line with the targets; returns models published and withdrawn.
fn list_releases(
    tx: &Transaction<'_>,
    blobs: &Blobs,
    trusted: &Trusted,
    by: &str,
    now_s: i64,
) -> Result<(Vec<String>, Vec<String>), Failure> {
    tx.execute("DELETE FROM common_blob", [])?;
    let mut current: Vec<(String, String)> = Vec::new();
    let mut published = Vec::new();
    for (path, entry) in trusted.targets() {
        let digest = entry.digest().ok_or_else(|| {
            Failure::invalid("target_digest", format!("target {path} has no sha256"))
        })?;
        if !is_model(entry) {
            common_blob(tx, blobs, path, entry, &digest)?;
            if path == POLICY_PATH {
                policy(tx, blobs, trusted, now_s)?;
            }
            continue;
        }
        let (model, is_new) = model(tx, blobs, path, entry, &digest, by, now_s)?;
        if is_new {
            published.push(model.clone());
        }
        current.push((model, digest.to_string()));
    }
    let mut withdrawn = Vec::new();
    let mut statement =
        tx.prepare_cached("SELECT model, digest FROM release WHERE withdrawn_s IS NULL")?;
    let listed = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
        .collect::<Result<Vec<_>, _>>()?;
    for release in listed {
        if !current.contains(&release) {
            tx.execute(
                "UPDATE release SET withdrawn_s = ?3 WHERE model = ?1 AND digest = ?2",
                (&release.0, &release.1, now_s),
            )?;
            if !current.iter().any(|(model, _)| *model == release.0) {
                withdrawn.push(release.0);
            }
        }
    }
    Ok((published, withdrawn))
}

fn is_model(entry: &TargetEntry) -> bool {
    let kind = entry.custom.as_ref().and_then(|c| c.pointer("/fulmar/kind"));
    kind.and_then(serde_json::Value::as_str) == Some("model")
}

fn common_blob(
    tx: &Transaction<'_>,
    blobs: &Blobs,
    path: &str,
    entry: &TargetEntry,
    digest: &Digest,
) -> Result<(), Failure> {
    present(blobs, digest, entry.length, path)?;
    tx.execute(
        "INSERT INTO common_blob (path, digest, size_bytes) VALUES (?1, ?2, ?3)",
        (path, digest.to_string(), to_sql(entry.length)),
    )?;
    Ok(())
}

/// Takes the owner's policy as a device would, so that a mistake in it is found here and not on
/// every device. It rules devices; operators here keep the built-in roles.
fn policy(
    tx: &Transaction<'_>,
    blobs: &Blobs,
    trusted: &Trusted,
    now_s: i64,
) -> Result<(), Failure> {
    let refuse = |error: &dyn std::error::Error| {
        let code = "policy_refused";
        Failure::refused(StatusCode::UNPROCESSABLE_ENTITY, code, chain(error))
    };
    let held = trust::held_policy(tx).map_err(damaged)?;
    let Some(named) = trusted.named_policy(now_s).map_err(|e| refuse(&e))? else { return Ok(()) };
    if named.is_held(held.as_ref()) {
        return Ok(());
    }
    let bytes = blobs.read(&named.digest, POLICY_BYTES_MAX).map_err(|e| refuse(&e))?;
    let signed =
        named.accept(bytes, held.as_ref().map(trust::HeldPolicy::floor)).map_err(|e| refuse(&e))?;
    signed.store(tx, now_s).map_err(damaged)?.map_err(|e| refuse(&e))?;
    director::renew_within(tx, signed.policy().max_offline_s(), now_s)
}

/// Lists the release that a target names, if it is new; returns its model and whether it is.
fn model(
    tx: &Transaction<'_>,
    blobs: &Blobs,
    path: &str,
    entry: &TargetEntry,
    digest: &Digest,
    by: &str,
    now_s: i64,
) -> Result<(String, bool), Failure> {
    let invalid = |reason: String| {
        Failure::invalid("release_invalid", format!("publish target {path}: {reason}"))
    };
    let name = ModelName::from_target_path(path).map_err(|e| invalid(chain(&e)))?;
    let known: Option<i64> = tx
        .query_row(
            "SELECT id FROM release WHERE model = ?1 AND digest = ?2",
            (name.to_string(), digest.to_string()),
            |row| row.get(0),
        )
        .optional()?;
    if let Some(id) = known {
        // The files of one that was withdrawn long ago may have been freed.
        for (digest, size_bytes) in release_blobs(tx, id)? {
            present(blobs, &digest, size_bytes, path)?;
        }
        tx.execute("UPDATE release SET withdrawn_s = NULL WHERE id = ?1", [id])?;
        return Ok((name.to_string(), false));
    }
    present(blobs, digest, entry.length, path)?;
    let bytes = blobs.read(digest, MANIFEST_BYTES_MAX).map_err(|e| invalid(chain(&e)))?;
    let manifest = Manifest::parse(&bytes).map_err(|e| invalid(chain(&e)))?;
    if manifest.name != name {
        return Err(invalid(format!("its manifest is of {}", manifest.name)));
    }
    let release = entry.custom.as_ref().and_then(|c| c.pointer("/fulmar/release"));
    if release.and_then(serde_json::Value::as_u64) != Some(manifest.release) {
        return Err(invalid(format!(
            "the target says release {release:?}, its manifest {}",
            manifest.release
        )));
    }
    let text = String::from_utf8(bytes).map_err(|e| invalid(e.to_string()))?;
    tx.execute(
        "INSERT INTO release (model, digest, length, number, manifest, published_s, published_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (
            name.to_string(),
            digest.to_string(),
            to_sql(entry.length),
            to_sql(manifest.release),
            text,
            now_s,
            by,
        ),
    )?;
    let id = tx.last_insert_rowid();
    let mut insert = tx.prepare_cached(
        "INSERT OR IGNORE INTO release_blob (digest, release_id, size_bytes) VALUES (?1, ?2, ?3)",
    )?;
    insert.execute((digest.to_string(), id, to_sql(entry.length)))?;
    for file in &manifest.files {
        present(blobs, &file.digest, file.size_bytes, path)?;
        insert.execute((file.digest.to_string(), id, to_sql(file.size_bytes)))?;
    }
    Ok((name.to_string(), true))
}

fn release_blobs(tx: &Transaction<'_>, release: i64) -> Result<Vec<(Digest, u64)>, Failure> {
    let mut statement =
        tx.prepare_cached("SELECT digest, size_bytes FROM release_blob WHERE release_id = ?1")?;
    let rows = statement.query_map([release], |row| {
        Ok((row.get::<_, Digest>(0)?, crate::number::from_sql(row.get(1)?)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn present(blobs: &Blobs, digest: &Digest, size_bytes: u64, path: &str) -> Result<(), Failure> {
    if blobs.contains(digest, size_bytes) {
        return Ok(());
    }
    Err(Failure::conflict(
        "blob_missing",
        format!(
            "publish target {path}: blob {digest} of {size_bytes} bytes is not here; upload it \
             first (PUT /api/v1/blobs/{digest})"
        ),
    ))
}

fn refused(error: TrustError) -> Failure {
    Failure::refused(
        StatusCode::UNPROCESSABLE_ENTITY,
        "metadata_refused",
        format!("take the registry's metadata: {}", chain(&error)),
    )
}

fn damaged(error: TrustError) -> Failure {
    Failure::internal("read the registry's trusted metadata", chain(&error))
}
