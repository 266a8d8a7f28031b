//! What devices report: kept in the order in which each device said it, once.

use fulmar_policy::audit::{AuditKey, signature_holds};
use fulmar_protocol::{AuditCheckpoint, OUTBOX_BATCH_LEN_MAX, Report};
use rusqlite::{Connection, OptionalExtension as _, Transaction};
use serde::Serialize;

use crate::failure::Failure;
use crate::number::{from_sql, to_sql};
use crate::witness::{self, Head};

/// Checkpoints kept of each device.
const CHECKPOINTS_MAX: u32 = 100;
/// Reports forgotten in one transaction.
pub(crate) const PRUNED_MAX: usize = 10_000;

/// A report as operators see it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReportRow {
    /// Who reported.
    pub(crate) device_id: String,
    /// Number in the device's outbox.
    pub(crate) seq: u64,
    /// When it happened, by the device's clock.
    pub(crate) at_s: i64,
    /// When it arrived.
    pub(crate) received_s: i64,
    /// `audit`, `model`, `sync`, `error`.
    pub(crate) kind: String,
    /// The report itself.
    pub(crate) body: serde_json::Value,
}

/// Takes a batch in; returns through which number all is here. What is here already is passed
/// over, so a batch may come any number of times.
pub(crate) fn take(
    tx: &Transaction<'_>,
    device: &str,
    reports: &[Report],
    now_s: i64,
) -> Result<u64, Failure> {
    if reports.len() > OUTBOX_BATCH_LEN_MAX {
        return Err(Failure::invalid(
            "batch_too_long",
            format!("the batch has {} reports, the limit is {OUTBOX_BATCH_LEN_MAX}", reports.len()),
        ));
    }
    let mut through = acked_through(tx, device)?;
    let mut insert = tx.prepare_cached(
        "INSERT INTO report (device_id, seq, at_s, received_s, kind, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let mut before = 0;
    for report in reports {
        if report.seq <= before {
            return Err(Failure::invalid(
                "seq_not_rising",
                format!("report {} comes after report {before}: seq must rise from 1", report.seq),
            ));
        }
        before = report.seq;
        if report.seq <= through {
            continue;
        }
        // A gap: this control plane was restored from a backup, and the device has pruned what
        // was acknowledged since. Refusing would stop its outbox for good.
        if report.seq > through + 1 {
            tracing::warn!(device, from = through + 1, to = report.seq - 1, "reports are missing");
        }
        check_kind(&report.kind)?;
        let mut body = report.body.clone();
        if report.kind == "audit" {
            witness::take(tx, device, &mut body)?;
        }
        insert.execute((
            device,
            to_sql(report.seq),
            report.at_s,
            now_s,
            &report.kind,
            body.to_string(),
        ))?;
        through = report.seq;
    }
    tx.execute("UPDATE device SET acked_through = ?2 WHERE id = ?1", (device, to_sql(through)))?;
    Ok(through)
}

fn check_kind(kind: &str) -> Result<(), Failure> {
    let valid =
        (1..=32).contains(&kind.len()) && kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if valid {
        return Ok(());
    }
    Err(Failure::invalid("kind_invalid", format!("kind is {kind:?}, expected 1 to 32 of [a-z_]")))
}

fn acked_through(tx: &Transaction<'_>, device: &str) -> Result<u64, Failure> {
    let through = tx
        .prepare_cached("SELECT acked_through FROM device WHERE id = ?1")?
        .query_row([device], |row| row.get(0))?;
    Ok(from_sql(through))
}

/// Forgets reports that arrived before `before_s`, some at a time so that writers do not wait
/// long, and all but the newest checkpoints of each device. Returns how many reports went.
pub(crate) fn prune(tx: &Transaction<'_>, before_s: i64) -> Result<usize, Failure> {
    tx.execute(
        "DELETE FROM checkpoint WHERE (device_id, entries) IN (
            SELECT device_id, entries FROM (
                SELECT device_id, entries,
                    row_number() OVER (PARTITION BY device_id ORDER BY entries DESC) AS place
                FROM checkpoint)
            WHERE place > ?1)",
        [CHECKPOINTS_MAX],
    )?;
    Ok(tx.execute(
        "DELETE FROM report WHERE (device_id, seq) IN (
            SELECT device_id, seq FROM report WHERE received_s < ?1 LIMIT ?2)",
        (before_s, PRUNED_MAX as i64),
    )?)
}

/// Which reports to list, the newest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    /// Of this device only.
    pub(crate) device: Option<String>,
    /// Of this kind only.
    pub(crate) kind: Option<String>,
    /// Of one device: with a number below this one.
    pub(crate) before: Option<u64>,
    /// How many at most.
    pub(crate) len_max: u32,
}

/// Reports that match.
pub(crate) fn list(connection: &Connection, filter: &Filter) -> Result<Vec<ReportRow>, Failure> {
    let order = if filter.device.is_some() { "seq DESC" } else { "received_s DESC, seq DESC" };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT device_id, seq, at_s, received_s, kind, body FROM report
         WHERE (?1 IS NULL OR device_id = ?1) AND (?2 IS NULL OR kind = ?2)
           AND (?3 IS NULL OR seq < ?3)
         ORDER BY {order} LIMIT ?4"
    ))?;
    let mut rows = statement.query((
        &filter.device,
        &filter.kind,
        filter.before.map(to_sql),
        filter.len_max,
    ))?;
    let mut reports = Vec::new();
    while let Some(row) = rows.next()? {
        let body: String = row.get(5)?;
        reports.push(ReportRow {
            device_id: row.get(0)?,
            seq: from_sql(row.get(1)?),
            at_s: row.get(2)?,
            received_s: row.get(3)?,
            kind: row.get(4)?,
            body: serde_json::from_str(&body).map_err(|e| Failure::internal("read a report", e))?,
        });
    }
    Ok(reports)
}

/// Why a checkpoint was not co-signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CheckpointRefusal {
    /// The signature is not by the device's audit key.
    Signature,
    /// Fewer entries than were signed for before, or the same number with another root: the
    /// device's log was cut or rewritten.
    Rewritten,
    /// The entries handed in do not give this head, or are no log.
    Fault(String),
    /// Not the form of a checkpoint.
    Form,
}

impl CheckpointRefusal {
    /// For the audit log.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Fault(text) => text,
            Self::Signature => "the signature is not by the device's audit key",
            Self::Rewritten => "the device's audit log was cut or rewritten",
            Self::Form => "the checkpoint is malformed",
        }
    }
}

/// Co-signs a checkpoint that continues the device's earlier ones, and is over exactly the entries
/// that it handed in; returns the signature, hex. `None` inside: some entries have not come yet.
pub(crate) fn cosign(
    tx: &Transaction<'_>,
    cosigner: &AuditKey,
    device: &str,
    checkpoint: &AuditCheckpoint,
    now_s: i64,
) -> Result<Result<Option<String>, CheckpointRefusal>, Failure> {
    let audit_key: String = tx
        .prepare_cached("SELECT audit_key FROM device WHERE id = ?1")?
        .query_row([device], |row| row.get(0))?;
    let (Ok(key), Ok(root), Ok(signature)) = (
        hex::decode(&audit_key),
        hex::decode(&checkpoint.root),
        hex::decode(&checkpoint.signature),
    ) else {
        return Ok(Err(CheckpointRefusal::Form));
    };
    let Ok(root) = <[u8; 32]>::try_from(root) else { return Ok(Err(CheckpointRefusal::Form)) };
    // The device names itself by its audit key, before and after it joins.
    if !signature_holds(&key, &audit_key, checkpoint.entries, &root, &signature) {
        return Ok(Err(CheckpointRefusal::Signature));
    }
    let last = last_checkpoint(tx, device)?;
    if let Some(last) = last {
        if last.entries == checkpoint.entries && last.root == checkpoint.root {
            return Ok(Ok(Some(last.cosignature)));
        }
        if last.entries >= checkpoint.entries {
            let rewritten = CheckpointRefusal::Rewritten;
            witness::fault(tx, device, rewritten.as_str())?;
            return Ok(Err(rewritten));
        }
    }
    match witness::head(tx, device, checkpoint.entries)? {
        Head::NotYet => return Ok(Ok(None)),
        Head::Fault(text) => return Ok(Err(CheckpointRefusal::Fault(text))),
        Head::Root(found) if found != root => {
            let text = format!(
                "the head that it signed over {} entries is not that of the entries handed in",
                checkpoint.entries
            );
            witness::fault(tx, device, &text)?;
            return Ok(Err(CheckpointRefusal::Fault(text)));
        }
        Head::Root(_) => witness::advance(tx, device, checkpoint.entries)?,
    }
    let cosignature = hex::encode(cosigner.sign(&audit_key, checkpoint.entries, &root));
    tx.prepare_cached(
        "INSERT INTO checkpoint (device_id, entries, root, signature, cosignature, received_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute((
        device,
        to_sql(checkpoint.entries),
        &checkpoint.root,
        &checkpoint.signature,
        &cosignature,
        now_s,
    ))?;
    Ok(Ok(Some(cosignature)))
}

/// A co-signed state of a device's audit log.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Checkpoint {
    /// Entries covered.
    pub(crate) entries: u64,
    /// Root of the tree over them, hex.
    pub(crate) root: String,
    /// The control plane's signature, hex.
    pub(crate) cosignature: String,
}

/// The newest checkpoint of a device.
pub(crate) fn last_checkpoint(
    connection: &Connection,
    device: &str,
) -> Result<Option<Checkpoint>, Failure> {
    Ok(connection
        .prepare_cached(
            "SELECT entries, root, cosignature FROM checkpoint WHERE device_id = ?1
             ORDER BY entries DESC LIMIT 1",
        )?
        .query_row([device], |row| {
            Ok(Checkpoint {
                entries: from_sql(row.get(0)?),
                root: row.get(1)?,
                cosignature: row.get(2)?,
            })
        })
        .optional()?)
}

#[cfg(test)]
mod tests {
    use fulmar_store::Store;

    use super::*;
    use crate::schema;

    #[test]
    fn old_reports_and_all_but_the_newest_checkpoints_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("control.db"), &schema::ALL).unwrap();
        let pruned = store.write_blocking(|tx| {
            tx.execute(
                "INSERT INTO device (id, name, certificate_sha256, certificate_expires_s,
                    audit_key, facts, enrolled_s)
                 VALUES ('d-1', 'one', 'aa', 0, 'bb', '{}', 0)",
                [],
            )?;
            for seq in 1..=300_i64 {
                tx.execute("INSERT INTO report VALUES ('d-1', ?1, 0, ?1, 'sync', '{}')", [seq])?;
                tx.execute("INSERT INTO checkpoint VALUES ('d-1', ?1, '', '', '', 0)", [seq])?;
            }
            let pruned = prune(tx, 101)?;
            let rest: (i64, i64, i64) = tx.query_row(
                "SELECT (SELECT min(seq) FROM report), count(*), min(entries) FROM checkpoint",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?;
            Ok::<_, Failure>((pruned, rest))
        });
        assert_eq!(pruned.unwrap(), (100, (101, 100, 201)));
    }
}
