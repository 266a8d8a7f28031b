//! Files of reports, from devices without a link: taken in as if they had come over it, any number
//! of times.

use fulmar_policy::audit::reports_signature_holds;
use fulmar_protocol::{OUTBOX_BATCH_LEN_MAX, ReportFile, ReportFileBody};
use fulmar_store::Store;
use rusqlite::{Connection, OptionalExtension as _, Transaction};
use serde::Serialize;

use crate::device::{Told, take_state};
use crate::failure::Failure;
use crate::number::{from_sql, to_sql};
use crate::{act, fleet, now_s, reports, witness};
use fulmar_policy::audit::{AuditKey, Outcome};

/// What became of a file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HandedIn {
    /// Whose it is.
    pub(crate) device_id: String,
    /// Reports in it.
    pub(crate) reports: u64,
    /// Of those, how many were here already.
    pub(crate) known: u64,
    /// All reports of the device up to this number are durable: the next bundle tells it so.
    pub(crate) acked_through: u64,
    /// Whether its checkpoint was co-signed.
    pub(crate) cosigned: bool,
    /// What is wrong with the device's audit log, if something is.
    pub(crate) fault: Option<String>,
}

/// The body of a file whose signature is the device's.
pub(crate) fn open(connection: &Connection, bytes: &[u8]) -> Result<ReportFileBody, Failure> {
    let invalid = |e| Failure::invalid("report_file_invalid", format!("{e}"));
    let file = ReportFile::read(bytes).map_err(invalid)?;
    let device = fleet::get(connection, &file.device_id)?
        .ok_or_else(|| Failure::not_found("device", &file.device_id))?;
    if device.removed_s.is_some() {
        let text = format!("device {} was removed from the fleet", device.id);
        return Err(Failure::invalid("device_removed", text));
    }
    let key: String = connection
        .prepare_cached("SELECT audit_key FROM device WHERE id = ?1")?
        .query_row([&device.id], |row| row.get(0))?;
    let holds = |bytes: &[u8], signature: &str| {
        let (key, signature) = (hex::decode(&key), hex::decode(signature));
        match (key, signature) {
            (Ok(key), Ok(signature)) if reports_signature_holds(&key, bytes, &signature) => Ok(()),
            _ => Err(format!("its signature is not by device {}'s audit key", device.id)),
        }
    };
    file.open(holds).map_err(invalid)
}

/// Takes a file in: its reports batch by batch, then the device's state.
pub(crate) fn take(
    store: &Store,
    cosigner: &AuditKey,
    actor: &str,
    bytes: &[u8],
) -> Result<HandedIn, Failure> {
    let body = store.read_blocking(|connection| open(connection, bytes))?;
    let (id, now_s) = (body.device_id.clone(), now_s());
    crate::device::check(&body.check_in)?;
    let before = store.read_blocking(|connection| acked_through(connection, &id))?;
    for batch in body.reports.chunks(OUTBOX_BATCH_LEN_MAX) {
        let (id, batch) = (id.clone(), batch.to_vec());
        store.write_blocking(move |tx| reports::take(tx, &id, &batch, now_s).map(drop))?;
    }
    let seqs = body.reports.iter().map(|report| report.seq);
    let known = seqs.filter(|seq| *seq <= before).count() as u64;
    let reports = body.reports.len() as u64;
    let public = AuditKey::from_pkcs8(cosigner.to_pkcs8())
        .map_err(|e| Failure::internal("use the co-signing key", e))?;
    let actor = actor.to_owned();
    store.write_blocking(move |tx| {
        let cosigned = state(tx, &public, &body, now_s)?;
        let acked_through = acked_through(tx, &id)?;
        let detail = serde_json::json!({
            "serial": body.serial, "reports": reports, "known": known,
        });
        act::append(tx, &actor, "reports.hand_in", &id, Outcome::Completed, detail)?;
        let fault = witness::of(tx, &id)?.fault;
        Ok(HandedIn { device_id: id, reports, known, acked_through, cosigned, fault })
    })
}

/// The device's state, where nothing newer is known of it; whether its checkpoint is co-signed.
fn state(
    tx: &Transaction<'_>,
    cosigner: &AuditKey,
    body: &ReportFileBody,
    now_s: i64,
) -> Result<bool, Failure> {
    let id = &body.device_id;
    let newer = tx.execute(
        "UPDATE device SET report_serial = ?2
         WHERE id = ?1 AND report_serial < ?2 AND coalesce(clock_s, 0) <= ?3",
        (id, to_sql(body.serial), body.check_in.clock_s),
    )? == 1;
    let told = Told { device_id: id, address: "by file", check_in: &body.check_in, now_s };
    if newer {
        take_state(tx, &told)?;
    }
    let Some(checkpoint) = &body.check_in.audit_checkpoint else { return Ok(false) };
    let cosigned = crate::device::cosign(tx, cosigner, id, checkpoint, now_s)?;
    Ok(cosigned.is_some())
}

fn acked_through(connection: &Connection, device: &str) -> Result<u64, Failure> {
    let through: Option<i64> = connection
        .prepare_cached("SELECT acked_through FROM device WHERE id = ?1")?
        .query_row([device], |row| row.get(0))
        .optional()?;
    Ok(through.map_or(0, from_sql))
}
