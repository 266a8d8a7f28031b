//! Bundles for devices without a link: what they would fetch, in one file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use fulmar_policy::audit::{AuditKey, Outcome};
use fulmar_protocol::{EnrollAnswerFile, EnrollRequestFile, EnrollResponse, REPORT_FILE_BYTES_MAX};
use fulmar_registry::Digest;
use fulmar_registry::blobs::Blobs;
use fulmar_registry::bundle::{self, Ack, Header};
use fulmar_registry::trust;
use fulmar_store::Store;
use rusqlite::Transaction;
use serde::Serialize;

use crate::ca::Ca;
use crate::director::{self, Director};
use crate::failure::Failure;
use crate::init::AUDIT_KEY_FILE;
use crate::number::from_sql;
use crate::{Config, act, device, files, fleet, groups, hand_in, now_s, reports, schema};

/// What was exported.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Exported {
    /// The devices that the bundle is for, by id.
    pub(crate) devices: Vec<String>,
    /// The groups that it was made for: their members are among the devices.
    pub(crate) groups: Vec<String>,
    /// Blobs in it.
    pub(crate) blobs: usize,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// Whom a bundle is for; for all if nobody is named.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Devices, by id or by a name that is theirs alone.
    pub(crate) devices: Vec<String>,
    /// Groups: whoever is in them now.
    pub(crate) groups: Vec<String>,
}

/// Writes a bundle. Works beside a serving control plane.
pub(crate) fn export(config: &Config, wanted: Wanted, out: &Path) -> anyhow::Result<Exported> {
    let dir = &config.dir;
    let store = open_store(dir)?;
    let blobs = Blobs::open(dir, config.blob_bytes_max)?;
    let director = Arc::new(Director::open(dir)?);
    let signer = Arc::clone(&director);
    let there: BTreeMap<Digest, u64> = blobs.list()?.into_iter().collect();
    let groups = wanted.groups.clone();
    let (header, devices) = store
        .write_blocking(move |tx| header(tx, &director, &wanted, &there))
        .context("collect what the devices should hold")?;
    bundle::write(out, &header, &blobs, signer.key().last_in_force().key())?;
    Ok(Exported {
        devices,
        groups,
        blobs: header.blobs().len(),
        bytes: header.blobs().iter().map(|(_, size)| size).sum(),
    })
}

/// Takes a device's file of reports in. Works beside a serving control plane.
pub(crate) fn hand_in(config: &Config, file: &Path) -> anyhow::Result<hand_in::HandedIn> {
    let dir = &config.dir;
    let store = open_store(dir)?;
    let cosigner = AuditKey::from_pkcs8(&files::read(&dir.join(AUDIT_KEY_FILE))?)?;
    let size_bytes = std::fs::metadata(file).map(|data| data.len()).unwrap_or(0);
    anyhow::ensure!(
        size_bytes <= REPORT_FILE_BYTES_MAX as u64,
        "read {}: {size_bytes} bytes, at most {REPORT_FILE_BYTES_MAX}",
        file.display()
    );
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    hand_in::take(&store, &cosigner, "local", &bytes)
        .with_context(|| format!("take {}", file.display()))
}

/// Lets a device join by the request that it wrote to a file; returns the answer for it. Works
/// beside a serving control plane.
pub(crate) fn admit(config: &Config, request: &[u8]) -> anyhow::Result<(String, EnrollAnswerFile)> {
    let dir = &config.dir;
    let store = open_store(dir)?;
    let (ca, director) = (Ca::open(dir)?, Director::open(dir)?);
    let cosigner = AuditKey::from_pkcs8(&files::read(&dir.join(AUDIT_KEY_FILE))?)?;
    let now_s = now_s();
    let certified = device::certify(&ca, EnrollRequestFile::read(request)?, now_s)?;
    let signer = Ca::open(dir)?;
    let joined = store.write_blocking(move |tx| {
        device::admit(tx, &ca, &director, &certified, "by file", now_s)
    })?;
    let response = EnrollResponse { audit_cosign_key: hex::encode(cosigner.public()), ..joined };
    let answer = EnrollAnswerFile::make(&response, |words| signer.sign(words).map(hex::encode))?;
    Ok((response.device_id, answer))
}

pub(crate) fn open_store(dir: &Path) -> anyhow::Result<Store> {
    anyhow::ensure!(
        dir.join("control.db").exists(),
        "open a control plane in {}: there is none",
        dir.display()
    );
    Ok(Store::open(&dir.join("control.db"), &schema::ALL)?)
}

fn header(
    tx: &Transaction<'_>,
    director: &Director,
    wanted: &Wanted,
    there: &BTreeMap<Digest, u64>,
) -> Result<(Header, Vec<String>), Failure> {
    let now_s = now_s();
    let devices = resolve(tx, wanted)?;
    let mut header = Header::new(now_s, next_serial(tx, now_s)?);
    for group in &wanted.groups {
        header.add_group(group, &groups::members(tx, group)?);
    }
    let mut registry = tx.prepare("SELECT file, bytes FROM registry_metadata")?;
    let mut rows = registry.query([])?;
    while let Some(row) = rows.next()? {
        header.add_registry(&row.get::<_, String>(0)?, &row.get::<_, Vec<u8>>(1)?);
    }
    if let Some(held) = trust::held_policy(tx)
        .map_err(|e| Failure::internal("read the owner's policy", crate::failure::chain(&e)))?
    {
        header.set_policy(&held.bytes);
    }
    director.ensure_root(tx, now_s)?;
    for device in &devices {
        let mut version = 1;
        while let Some(root) = director::root(tx, Some(version))? {
            header.add_director(device, &format!("{version}.root.json"), &root);
            version += 1;
        }
        let minted = director.minted(tx, device, now_s)?;
        header.add_director(device, "timestamp.json", &minted.timestamp);
        header.add_director(device, "snapshot.json", &minted.snapshot);
        header.add_director(device, "targets.json", &minted.targets);
        header.add_ack(device, ack(tx, device)?);
        for digest in assigned(tx, device)? {
            let size_bytes = there.get(&digest).copied().ok_or_else(|| {
                let reason = format!("blob {digest} is not in the store: upload it first");
                Failure::internal("carry a blob", reason)
            })?;
            header.add_blob(digest, size_bytes);
        }
        let detail =
            serde_json::json!({ "generation": minted.generation, "groups": wanted.groups });
        act::append(tx, "local", "bundle.export", device, Outcome::Completed, detail)?;
    }
    Ok((header, devices))
}

/// The devices that a bundle is for, by id.
fn resolve(tx: &Transaction<'_>, wanted: &Wanted) -> Result<Vec<String>, Failure> {
    if wanted.devices.is_empty() && wanted.groups.is_empty() {
        return column(tx, "SELECT id FROM device WHERE removed_s IS NULL ORDER BY id", "");
    }
    let mut devices = BTreeSet::new();
    for device in &wanted.devices {
        devices.insert(fleet::find(tx, device)?);
    }
    for group in &wanted.groups {
        devices.extend(groups::members(tx, group)?);
    }
    Ok(devices.into_iter().collect())
}

/// Counts up with every bundle, and with time: a control plane that was restored from a backup does
/// not begin below what devices have taken.
fn next_serial(tx: &Transaction<'_>, now_s: i64) -> Result<u64, Failure> {
    let serial: i64 = tx.query_row(
        "INSERT INTO setting (key, value) VALUES ('bundle_serial', ?1)
         ON CONFLICT (key) DO UPDATE
         SET value = max(CAST(value AS INTEGER) + 1, CAST(excluded.value AS INTEGER))
         RETURNING CAST(value AS INTEGER)",
        [now_s.to_string()],
        |row| row.get(0),
    )?;
    Ok(from_sql(serial))
}

/// What became of a device's reports.
fn ack(tx: &Transaction<'_>, device: &str) -> Result<Ack, Failure> {
    let acked: i64 = tx
        .prepare_cached("SELECT acked_through FROM device WHERE id = ?1")?
        .query_row([device], |row| row.get(0))?;
    let checkpoint = reports::last_checkpoint(tx, device)?;
    let (audit_entries, audit_cosignature) =
        checkpoint.map(|c| (c.entries, c.cosignature)).unwrap_or_default();
    Ok(Ack { acked_through: from_sql(acked), audit_entries, audit_cosignature })
}

/// Manifests and files of what a device should hold.
fn assigned(tx: &Transaction<'_>, device: &str) -> Result<BTreeSet<Digest>, Failure> {
    let sql = "
        SELECT digest FROM desired WHERE device_id = ?1
        UNION
        SELECT b.digest FROM release_blob b
        JOIN release r ON r.id = b.release_id
        JOIN desired d ON d.model = r.model AND d.digest = r.digest
        WHERE d.device_id = ?1";
    let texts = column(tx, sql, device)?;
    Ok(texts.iter().filter_map(|text| text.parse().ok()).collect())
}

fn column(tx: &Transaction<'_>, sql: &str, parameter: &str) -> Result<Vec<String>, Failure> {
    let mut statement = tx.prepare(sql)?;
    let parameters: &[&str] = if parameter.is_empty() { &[] } else { &[parameter] };
    let rows = statement.query_map(rusqlite::params_from_iter(parameters), |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
