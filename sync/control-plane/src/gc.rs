//! Files of old releases: which nobody needs any more, said before they go.
//!
//! Kept is what any device or deployment may still want: every release that the registry's newest
//! metadata names; what a device should hold, says that it holds, or would go back to; what a
//! deployment under way names; targets that are no models; uploads not yet published; and
//! withdrawn releases for some days more, since an owner may change their mind. Releases stay
//! listed for ever; only their bytes go.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use fulmar_policy::audit::Outcome;
use fulmar_registry::Digest;
use fulmar_registry::blobs::Blobs;
use fulmar_store::Store;
use rusqlite::{Connection, Transaction};
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;
use crate::{Config, act, now_s, schema};

/// Uploads younger than that may be waiting for the metadata that names them.
const UPLOAD_KEPT: Duration = Duration::from_secs(86_400);

/// What a collection frees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Garbage {
    /// Files and their bytes.
    pub(crate) blobs: Vec<(Digest, u64)>,
    /// Bytes together.
    pub(crate) bytes: u64,
}

/// Releases that somebody may still want. `?1`: when a withdrawn one is old.
const NEEDED: &str = "
    SELECT b.digest FROM release_blob b JOIN release r ON r.id = b.release_id
    WHERE r.withdrawn_s IS NULL OR r.withdrawn_s > ?1
       OR EXISTS (SELECT 1 FROM desired d JOIN device v ON v.id = d.device_id
                  WHERE v.removed_s IS NULL AND d.model = r.model AND d.digest = r.digest)
       OR EXISTS (SELECT 1 FROM device_model m JOIN device v ON v.id = m.device_id
                  WHERE v.removed_s IS NULL AND m.name = r.model AND m.digest = r.digest)
       OR EXISTS (SELECT 1 FROM deployment d
                  WHERE d.stopped_s IS NULL AND d.model = r.model AND d.digest = r.digest
                    AND (d.scope = 'all' OR EXISTS (
                        SELECT 1 FROM deployment_device p WHERE p.deployment_id = d.id
                           AND p.done_s IS NULL AND p.ended IS NULL)))
       OR EXISTS (SELECT 1 FROM deployment_device p JOIN deployment d ON d.id = p.deployment_id
                  WHERE p.done_s IS NULL AND p.ended IS NULL AND d.model = r.model
                    AND json_extract(p.before, '$.digest') = r.digest)
    UNION SELECT digest FROM common_blob";

fn needed(connection: &Connection, withdrawn_before_s: i64) -> Result<BTreeSet<String>, Failure> {
    let mut statement = connection.prepare(NEEDED)?;
    let digests = statement.query_map([withdrawn_before_s], |row| row.get(0))?;
    Ok(digests.collect::<Result<_, _>>()?)
}

/// What a collection would free now; changes nothing.
pub(crate) fn plan(
    connection: &Connection,
    blobs: &Blobs,
    config: &Config,
    now_s: i64,
) -> Result<Garbage, Failure> {
    let withdrawn_before_s = now_s - i64::from(config.withdrawn_days_kept) * 86_400;
    let needed = needed(connection, withdrawn_before_s)?;
    let listed = blobs.list().map_err(|e| Failure::internal("list the blobs", e))?;
    let is_fresh = |digest: &Digest| {
        let modified = std::fs::metadata(blobs.path(digest)).and_then(|meta| meta.modified());
        let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        age.is_none_or(|age| age < UPLOAD_KEPT)
    };
    let known = known(connection)?;
    let blobs: Vec<(Digest, u64)> = listed
        .into_iter()
        .filter(|(digest, _)| !needed.contains(&digest.to_string()))
        // What was published once and is not needed goes; what was never published may be coming.
        .filter(|(digest, _)| known.contains(&digest.to_string()) || !is_fresh(digest))
        .collect();
    let bytes = blobs.iter().map(|(_, bytes)| bytes).sum();
    Ok(Garbage { blobs, bytes })
}

fn known(connection: &Connection) -> Result<BTreeSet<String>, Failure> {
    let mut statement = connection.prepare("SELECT DISTINCT digest FROM release_blob")?;
    let digests = statement.query_map([], |row| row.get(0))?;
    Ok(digests.collect::<Result<_, _>>()?)
}

/// Frees what [`plan`] names, in the transaction that holds off publishing, and records it. Files
/// go one by one; a crash in between leaves some for the next collection.
pub(crate) fn collect(
    tx: &Transaction<'_>,
    blobs: &Blobs,
    config: &Config,
    actor: &str,
    now_s: i64,
) -> Result<Garbage, Failure> {
    let garbage = plan(tx, blobs, config, now_s)?;
    if garbage.blobs.is_empty() {
        return Ok(garbage);
    }
    let detail = json!({ "bytes": garbage.bytes, "blobs": garbage.blobs.len() });
    act::append(tx, actor, "garbage.collect", "blobs", Outcome::Completed, detail)?;
    for (digest, _) in &garbage.blobs {
        blobs.remove(digest).map_err(|e| Failure::internal("free a blob", e))?;
    }
    Ok(garbage)
}

/// Whether files are freed or only named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Only named.
    DryRun,
    /// Freed.
    Free,
}

/// The command: works beside a serving control plane.
pub(crate) fn run(config: &Config, mode: Mode) -> anyhow::Result<Garbage> {
    let dir = config.dir.as_path();
    anyhow::ensure!(
        dir.join("control.db").exists(),
        "open a control plane in {}: there is none",
        dir.display()
    );
    let store = Store::open(&dir.join("control.db"), &schema::ALL)?;
    let blobs = Blobs::open(dir, config.blob_bytes_max)?;
    let (config, now_s) = (config.clone(), now_s());
    let garbage = match mode {
        Mode::DryRun => store.read_blocking(|c| plan(c, &blobs, &config, now_s)),
        Mode::Free => {
            store.write_blocking(move |tx| collect(tx, &blobs, &config, "command line", now_s))
        }
    };
    garbage.context("collect what nobody needs")
}
