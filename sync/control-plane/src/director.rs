//! The director: says, signed, what each device should run.
//!
//! Desired state is rows; metadata is minted from them when a device asks, so that a deployment to
//! a whole fleet costs one statement and not a signature per device. Each minting has a serial
//! that never goes back, kept in the same transaction.
//!
//! The key is online by design. It can only choose among models that the registry's owner signed.

use std::path::Path;

use fulmar_registry::Digest;
use fulmar_registry::trust::director::{DirectorEntry, Minting};
use fulmar_registry::trust::{self, Active, KeyError};
use rusqlite::{Connection, OptionalExtension as _, Transaction};

use crate::director_key::DirectorKey;
use crate::failure::Failure;
use crate::files;
use crate::number::{from_sql, to_sql};

/// How long minted metadata is good, in seconds: a device that hears nothing for so long admits
/// nothing new.
const EXPIRES_S: i64 = 14 * 86_400;
/// Age at which metadata is minted anew although nothing changed, in seconds.
const RENEW_S: i64 = 86_400;
/// How long a root is good, in seconds.
pub(crate) const ROOT_EXPIRES_S: i64 = 3 * 365 * 86_400;
/// A root with less time left than this gets a successor, in seconds.
const ROOT_RENEW_S: i64 = 2 * 365 * 86_400;

/// Why the director's key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum DirectorError {
    /// The file.
    #[error("read or write the director's key")]
    File(#[from] files::FileError),
    /// The key.
    #[error("use the director's key")]
    Key(#[from] KeyError),
}

/// The director of this fleet.
#[derive(Debug)]
pub(crate) struct Director {
    key: DirectorKey,
}

/// One device's metadata as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Minted {
    pub(crate) generation: u64,
    pub(crate) serial: u64,
    pub(crate) targets: Vec<u8>,
    pub(crate) snapshot: Vec<u8>,
    pub(crate) timestamp: Vec<u8>,
}

impl Director {
    /// Makes the key `director.key` in `dir`.
    pub(crate) fn create(dir: &Path) -> Result<(), DirectorError> {
        DirectorKey::create(dir)
    }

    /// Opens the key that [`Director::create`] made, or the one that replaced it.
    pub(crate) fn open(dir: &Path) -> Result<Self, DirectorError> {
        Ok(Self { key: DirectorKey::open(dir)? })
    }

    /// The online key.
    pub(crate) fn key(&self) -> &DirectorKey {
        &self.key
    }

    /// Makes sure that there is a root with enough time left.
    pub(crate) fn ensure_root(&self, tx: &Transaction<'_>, now_s: i64) -> Result<(), Failure> {
        let last: Option<(i64, i64, Vec<u8>)> = tx
            .query_row(
                "SELECT version, expires_s, bytes FROM director_root
                 ORDER BY version DESC LIMIT 1",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?;
        let expires_s = now_s + ROOT_EXPIRES_S;
        let fail = |e| Failure::internal("sign the director's root", e);
        let (version, bytes) = match last {
            Some((_, until_s, _)) if until_s - now_s > ROOT_RENEW_S => return Ok(()),
            Some((version, _, bytes)) => {
                let signer = self.key.in_force(tx)?;
                (version + 1, signer.next_root(&bytes, None, expires_s).map_err(fail)?)
            }
            None => (1, self.key.in_force(tx)?.root(expires_s).map_err(fail)?),
        };
        tx.execute(
            "INSERT INTO director_root (version, expires_s, bytes) VALUES (?1, ?2, ?3)",
            (version, expires_s, bytes),
        )?;
        Ok(())
    }

    /// The metadata of `device_id`, minted anew if its desired state changed or time is up.
    pub(crate) fn minted(
        &self,
        tx: &Transaction<'_>,
        device_id: &str,
        now_s: i64,
    ) -> Result<Minted, Failure> {
        let wanted = wanted_generation(tx, device_id)?;
        let last = load(tx, device_id)?;
        if let Some((minted, renew_s)) = &last
            && minted.generation == wanted
            && now_s < *renew_s
        {
            return Ok(minted.clone());
        }
        let serial = last.map_or(1, |(minted, _)| minted.serial + 1);
        let minting = Minting {
            generation: wanted,
            serial,
            signed_at_s: now_s,
            expires_s: now_s + EXPIRES_S,
        };
        let entries = entries(tx, device_id)?;
        let signer = self.key.in_force(tx)?;
        let set = signer
            .mint(device_id, &entries, minting)
            .map_err(|e| Failure::internal("sign a device's desired state", e))?;
        tx.execute(
            "INSERT OR REPLACE INTO director_metadata
                (device_id, generation, serial, renew_s, targets, snapshot, timestamp)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (
                device_id,
                to_sql(wanted),
                to_sql(serial),
                now_s + renew_after_s(tx)?,
                &set.targets,
                &set.snapshot,
                &set.timestamp,
            ),
        )?;
        Ok(Minted {
            generation: wanted,
            serial,
            targets: set.targets,
            snapshot: set.snapshot,
            timestamp: set.timestamp,
        })
    }
}

/// Age at which metadata is minted anew: soon enough for devices that may be offline for a short
/// time only.
fn renew_after_s(connection: &Connection) -> Result<i64, Failure> {
    let held = trust::held_policy(connection)
        .map_err(|e| Failure::internal("read the owner's policy", e))?;
    Ok(within(held.and_then(|held| held.policy.max_offline_s())))
}

fn within(max_offline_s: Option<u64>) -> i64 {
    let quarter = max_offline_s.and_then(|s| i64::try_from(s / 4).ok()).unwrap_or(RENEW_S);
    quarter.clamp(1, RENEW_S)
}

/// Has metadata that was minted under another policy renewed in time for this one.
pub(crate) fn renew_within(
    tx: &Transaction<'_>,
    max_offline_s: Option<u64>,
    now_s: i64,
) -> Result<(), Failure> {
    tx.execute(
        "UPDATE director_metadata SET renew_s = min(renew_s, ?1)",
        [now_s + within(max_offline_s)],
    )?;
    Ok(())
}

/// A root by version, or the newest.
pub(crate) fn root(
    connection: &Connection,
    version: Option<u64>,
) -> Result<Option<Vec<u8>>, Failure> {
    Ok(connection
        .query_row(
            "SELECT bytes FROM director_root WHERE version = coalesce(?1, version)
             ORDER BY version DESC LIMIT 1",
            [version.map(to_sql)],
            |row| row.get(0),
        )
        .optional()?)
}

/// Raises the generation of a device whose desired state changed; returns the new one.
pub(crate) fn raise(tx: &Transaction<'_>, device_id: &str) -> Result<u64, Failure> {
    let generation = tx.query_row(
        "UPDATE device SET generation = generation + 1 WHERE id = ?1 RETURNING generation",
        [device_id],
        |row| row.get(0),
    )?;
    Ok(from_sql(generation))
}

fn wanted_generation(connection: &Connection, device_id: &str) -> Result<u64, Failure> {
    let generation = connection
        .prepare_cached("SELECT generation FROM device WHERE id = ?1")?
        .query_row([device_id], |row| row.get(0))?;
    Ok(from_sql(generation))
}

fn load(connection: &Connection, device_id: &str) -> Result<Option<(Minted, i64)>, Failure> {
    Ok(connection
        .prepare_cached(
            "SELECT generation, serial, targets, snapshot, timestamp, renew_s
             FROM director_metadata WHERE device_id = ?1",
        )?
        .query_row([device_id], |row| {
            let minted = Minted {
                generation: from_sql(row.get(0)?),
                serial: from_sql(row.get(1)?),
                targets: row.get(2)?,
                snapshot: row.get(3)?,
                timestamp: row.get(4)?,
            };
            Ok((minted, row.get(5)?))
        })
        .optional()?)
}

fn entries(connection: &Connection, device_id: &str) -> Result<Vec<DirectorEntry>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT model, digest, length, number, active FROM desired
         WHERE device_id = ?1 ORDER BY model",
    )?;
    let mut rows = statement.query([device_id])?;
    let mut entries = Vec::new();
    let damaged = |e: &dyn std::fmt::Display| Failure::internal("read the desired state", e);
    while let Some(row) = rows.next()? {
        let (model, digest): (String, String) = (row.get(0)?, row.get(1)?);
        let model: fulmar_registry::ModelName = model.parse().map_err(|e| damaged(&e))?;
        let digest: Digest = digest.parse().map_err(|e| damaged(&e))?;
        entries.push(DirectorEntry {
            target_path: model.target_path(),
            length: from_sql(row.get(2)?),
            digest,
            release: from_sql(row.get(3)?),
            active: if row.get(4)? { Active::Serve } else { Active::Hold },
        });
    }
    Ok(entries)
}
