//! Devices: joining, being seen, being removed.

use fulmar_protocol::{Command, DeviceFacts, ModelState, ModelStatus};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction};
use serde::Serialize;

use crate::ca::Issued;
use crate::failure::Failure;
use crate::number::{from_sql, to_sql};

/// A device is called online while its last check-in is at most this many intervals old.
const ONLINE_INTERVALS: u64 = 3;

/// A device as operators see it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeviceRow {
    /// Its id.
    pub(crate) id: String,
    /// Its name, for people.
    pub(crate) name: String,
    /// What it is.
    pub(crate) facts: DeviceFacts,
    /// When it joined.
    pub(crate) enrolled_s: i64,
    /// When it was taken out of the fleet.
    pub(crate) removed_s: Option<i64>,
    /// When it checked in last.
    pub(crate) seen_s: Option<i64>,
    /// From where.
    pub(crate) address: Option<String>,
    /// The generation of desired state that is wanted.
    pub(crate) generation: u64,
    /// The one that it has made durable.
    pub(crate) generation_seen: u64,
    /// The one that it has applied.
    pub(crate) generation_applied: u64,
    /// Bytes free for models.
    pub(crate) disk_free_bytes: Option<u64>,
    /// Its clock at the last check-in.
    pub(crate) clock_s: Option<i64>,
    /// Its link.
    pub(crate) link: Option<String>,
    /// Reports received.
    pub(crate) reports: u64,
    /// End of its certificate.
    pub(crate) certificate_expires_s: i64,
    /// The groups that it belongs to, by name.
    pub(crate) groups: Vec<String>,
}

impl DeviceRow {
    /// `removed`, `new`, `online` or `offline`.
    pub(crate) fn state(&self, now_s: i64, interval_ms: u64) -> &'static str {
        match (self.removed_s, self.seen_s) {
            (Some(_), _) => "removed",
            (None, None) => "new",
            (None, Some(seen_s)) if seen_s >= online_since_s(now_s, interval_ms) => "online",
            (None, Some(_)) => "offline",
        }
    }
}

/// A device seen since then is online.
pub(crate) fn online_since_s(now_s: i64, interval_ms: u64) -> i64 {
    now_s - to_sql((interval_ms.saturating_mul(ONLINE_INTERVALS) / 1_000).max(5))
}

/// What a new device brings.
pub(crate) struct NewDevice<'a> {
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) audit_key: &'a str,
    pub(crate) facts: &'a DeviceFacts,
    pub(crate) certificate: &'a Issued,
}

/// Makes a device a member.
pub(crate) fn insert(tx: &Transaction<'_>, new: &NewDevice<'_>, now_s: i64) -> Result<(), Failure> {
    tx.execute(
        "INSERT INTO device
            (id, name, certificate_sha256, certificate_expires_s, audit_key, facts, enrolled_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (
            new.id,
            new.name,
            &new.certificate.fingerprint,
            new.certificate.expires_s,
            new.audit_key,
            facts_json(new.facts)?,
            now_s,
        ),
    )?;
    Ok(())
}

/// The member that a certificate belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) removed: bool,
    /// The certificate is the one before the last renewal.
    pub(crate) by_certificate_before: bool,
}

/// The device whose certificate has this SHA-256.
pub(crate) fn by_certificate(
    connection: &Connection,
    fingerprint: &str,
) -> Result<Option<Member>, Failure> {
    let member = connection
        .prepare_cached(
            "SELECT id, removed_s IS NOT NULL, certificate_sha256 <> ?1 FROM device
             WHERE certificate_sha256 = ?1 OR certificate_before_sha256 = ?1",
        )?
        .query_row([fingerprint], |row| {
            Ok(Member { id: row.get(0)?, removed: row.get(1)?, by_certificate_before: row.get(2)? })
        })
        .optional()?;
    Ok(member)
}

/// Notes a renewed certificate; the present one stays good until the new one is first used.
pub(crate) fn renew(tx: &Transaction<'_>, id: &str, issued: &Issued) -> Result<(), Failure> {
    tx.execute(
        "UPDATE device SET certificate_before_sha256 = certificate_sha256,
                certificate_sha256 = ?2, certificate_expires_s = ?3
         WHERE id = ?1",
        (id, &issued.fingerprint, issued.expires_s),
    )?;
    Ok(())
}

/// Renews once more, asked by the certificate before: the one in between was never used.
pub(crate) fn renew_again(tx: &Transaction<'_>, id: &str, issued: &Issued) -> Result<(), Failure> {
    tx.execute(
        "UPDATE device SET certificate_sha256 = ?2, certificate_expires_s = ?3 WHERE id = ?1",
        (id, &issued.fingerprint, issued.expires_s),
    )?;
    Ok(())
}

/// The new certificate was used: the one before is good no longer.
pub(crate) fn renewed(tx: &Transaction<'_>, id: &str) -> Result<(), Failure> {
    tx.execute(
        "UPDATE device SET certificate_before_sha256 = NULL
         WHERE id = ?1 AND certificate_before_sha256 IS NOT NULL",
        [id],
    )?;
    Ok(())
}

/// Takes a device out of the fleet: its certificate is refused from now on.
pub(crate) fn remove(tx: &Transaction<'_>, id: &str, now_s: i64) -> Result<(), Failure> {
    let changed = tx.execute(
        "UPDATE device SET removed_s = ?2 WHERE id = ?1 AND removed_s IS NULL",
        (id, now_s),
    )?;
    if changed == 0 {
        return Err(match get(tx, id)? {
            Some(_) => {
                Failure::conflict("device_removed", format!("device {id} was removed already"))
            }
            None => Failure::not_found("device", id),
        });
    }
    tx.execute("DELETE FROM desired WHERE device_id = ?1", [id])?;
    tx.execute("DELETE FROM director_metadata WHERE device_id = ?1", [id])?;
    tx.execute("DELETE FROM device_group WHERE device_id = ?1", [id])?;
    tx.execute(
        "UPDATE deployment_device SET ended = 'removed'
         WHERE device_id = ?1 AND done_s IS NULL AND ended IS NULL",
        [id],
    )?;
    Ok(())
}

/// One device, removed ones too.
pub(crate) fn get(connection: &Connection, id: &str) -> Result<Option<DeviceRow>, Failure> {
    connection
        .prepare_cached(&format!("{SELECT} WHERE id = ?1"))?
        .query_row([id], read)
        .optional()?
        .transpose()
}

/// Devices by id, removed ones left out; with `group`, its members.
pub(crate) fn list(
    connection: &Connection,
    after: &str,
    group: Option<&str>,
    len_max: u32,
) -> Result<Vec<DeviceRow>, Failure> {
    let mut statement = connection.prepare_cached(&format!(
        "{SELECT} WHERE removed_s IS NULL AND id > ?1
           AND (?3 IS NULL OR id IN (SELECT device_id FROM device_group WHERE name = ?3))
         ORDER BY id LIMIT ?2"
    ))?;
    statement.query_map((after, len_max, group), read)?.map(|row| row?).collect()
}

/// The id of the member that `text` means: its id, or a name that one member alone has.
pub(crate) fn find(connection: &Connection, text: &str) -> Result<String, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM device WHERE (id = ?1 OR name = ?1) AND removed_s IS NULL
         ORDER BY id <> ?1, id LIMIT 2",
    )?;
    let ids: Vec<String> =
        statement.query_map([text], |row| row.get(0))?.collect::<Result<_, _>>()?;
    match ids.as_slice() {
        [] => Err(Failure::not_found("device", text)),
        [first, ..] if first == text => Ok(first.clone()),
        [only] => Ok(only.clone()),
        _ => Err(Failure::conflict(
            "device_ambiguous",
            format!("more than one device has the name {text}: say which by its id"),
        )),
    }
}

const SELECT: &str = "SELECT id, name, facts, enrolled_s, removed_s, seen_s, address, generation,
        generation_seen, generation_applied, disk_free_bytes, clock_s, link, acked_through,
        certificate_expires_s,
        (SELECT group_concat(name, ' ') FROM device_group g WHERE g.device_id = device.id)
     FROM device";

fn read(row: &Row<'_>) -> rusqlite::Result<Result<DeviceRow, Failure>> {
    let facts: String = row.get(2)?;
    let facts = match serde_json::from_str(&facts) {
        Ok(facts) => facts,
        Err(error) => return Ok(Err(Failure::internal("read a device's facts", error))),
    };
    Ok(Ok(DeviceRow {
        id: row.get(0)?,
        name: row.get(1)?,
        facts,
        enrolled_s: row.get(3)?,
        removed_s: row.get(4)?,
        seen_s: row.get(5)?,
        address: row.get(6)?,
        generation: from_sql(row.get(7)?),
        generation_seen: from_sql(row.get(8)?),
        generation_applied: from_sql(row.get(9)?),
        disk_free_bytes: row.get::<_, Option<i64>>(10)?.map(from_sql),
        clock_s: row.get(11)?,
        link: row.get(12)?,
        reports: from_sql(row.get(13)?),
        certificate_expires_s: row.get(14)?,
        groups: crate::groups::names(row.get::<_, Option<String>>(15)?.as_deref()),
    }))
}

/// Replaces the facts of a device.
pub(crate) fn set_facts(
    tx: &Transaction<'_>,
    id: &str,
    facts: &DeviceFacts,
) -> Result<(), Failure> {
    tx.execute("UPDATE device SET facts = ?2 WHERE id = ?1", (id, facts_json(facts)?))?;
    Ok(())
}

/// Asks a device to sync at its next check-in; asked twice, it does so once.
pub(crate) fn request_sync(tx: &Transaction<'_>, id: &str) -> Result<(), Failure> {
    let changed = tx.execute(
        "UPDATE device SET sync_requested_id = lower(hex(randomblob(8)))
         WHERE id = ?1 AND removed_s IS NULL",
        [id],
    )?;
    if changed == 0 { Err(Failure::not_found("device", id)) } else { Ok(()) }
}

/// What a device is to do once; told once.
pub(crate) fn take_commands(tx: &Transaction<'_>, id: &str) -> Result<Vec<Command>, Failure> {
    let requested: Option<String> = tx
        .prepare_cached("SELECT sync_requested_id FROM device WHERE id = ?1")?
        .query_row([id], |row| row.get(0))?;
    let Some(requested) = requested else { return Ok(Vec::new()) };
    tx.execute("UPDATE device SET sync_requested_id = NULL WHERE id = ?1", [id])?;
    Ok(vec![Command::SyncNow { id: requested }])
}

fn facts_json(facts: &DeviceFacts) -> Result<String, Failure> {
    serde_json::to_string(facts).map_err(|e| Failure::internal("write a device's facts", e))
}

/// What a device says it holds replaces what it said before.
pub(crate) fn set_models(
    tx: &Transaction<'_>,
    id: &str,
    models: &[ModelStatus],
    now_s: i64,
) -> Result<(), Failure> {
    tx.execute("DELETE FROM device_model WHERE device_id = ?1", [id])?;
    let mut insert = tx.prepare_cached(
        "INSERT OR REPLACE INTO device_model
            (device_id, name, digest, state, bytes_done, bytes_total, reason, updated_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for model in models {
        insert.execute((
            id,
            &model.name,
            &model.digest,
            state_str(model.state),
            to_sql(model.bytes_done),
            to_sql(model.bytes_total),
            &model.reason,
            now_s,
        ))?;
    }
    Ok(())
}

/// What a device said last it holds.
pub(crate) fn models(connection: &Connection, id: &str) -> Result<Vec<ModelStatus>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT name, digest, state, bytes_done, bytes_total, reason FROM device_model
         WHERE device_id = ?1 ORDER BY name, digest",
    )?;
    let rows = statement.query_map([id], |row| {
        let state: String = row.get(2)?;
        Ok(ModelStatus {
            name: row.get(0)?,
            digest: row.get(1)?,
            state: match state.as_str() {
                "downloading" => ModelState::Downloading,
                "installed" => ModelState::Installed,
                "active" => ModelState::Active,
                _ => ModelState::Failed,
            },
            bytes_done: from_sql(row.get(3)?),
            bytes_total: from_sql(row.get(4)?),
            reason: row.get(5)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A model state's name, the same in JSON, SQL and the console.
pub(crate) fn state_str(state: ModelState) -> &'static str {
    match state {
        ModelState::Downloading => "downloading",
        ModelState::Installed => "installed",
        ModelState::Active => "active",
        ModelState::Failed => "failed",
    }
}
