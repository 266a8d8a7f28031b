//! Reports that wait for the control plane: numbered without gaps, written in the transaction of
//! what they report, kept until they are acknowledged.
//!
//! A device that belongs to no fleet keeps none. The outbox is bounded: when it is full, reports
//! are counted instead of kept, and the count is the first report that fits again.

use fulmar_policy::audit::{self, AuditError, Event, Reported};
use fulmar_protocol::Report;
use rusqlite::{Connection, OptionalExtension as _, Transaction};
use serde_json::{Value, json};

/// Reports kept at most.
pub const LEN_MAX: u64 = 200_000;

/// Appends an audit entry, and a report of it if the device belongs to a fleet, in the caller's
/// transaction. Returns the entry's number.
///
/// # Errors
/// [`AuditError`]; the caller then must not do what it wanted to record.
pub fn record(tx: &Transaction<'_>, event: &Event<'_>) -> Result<u64, AuditError> {
    let appended = audit::append(tx, event)?;
    let entry = Reported {
        seq: appended.seq,
        leaf: hex(&appended.leaf),
        at_s: event.at_s,
        actor: event.actor.to_owned(),
        action: event.action.to_owned(),
        resource: event.resource.to_owned(),
        outcome: event.outcome.as_str().to_owned(),
        opened: event.opened,
        detail_json: event.detail.to_string(),
    };
    push(tx, event.at_s, "audit", &json!(entry))?;
    Ok(appended.seq)
}

/// Reports the entries that the log has already, in the caller's transaction: a control plane that
/// knows a log from its first entry on can hold the signed head against all of it.
///
/// # Errors
/// [`AuditError`].
pub(crate) fn record_earlier(tx: &Transaction<'_>) -> Result<(), AuditError> {
    let mut after = 0;
    loop {
        let entries = audit::reported(tx, after, 1_000)?;
        let Some(last) = entries.last().map(|entry| entry.seq) else { return Ok(()) };
        for entry in entries {
            push(tx, entry.at_s, "audit", &json!(entry))?;
        }
        after = last;
    }
}

/// Adds a report, in the caller's transaction; nothing on a device that belongs to no fleet.
/// `kind`: see [`Report::kind`].
///
/// # Errors
/// The database's.
pub fn push(
    tx: &Transaction<'_>,
    at_s: i64,
    kind: &str,
    body: &Value,
) -> Result<(), rusqlite::Error> {
    let state: Option<(i64, i64)> = tx
        .query_row("SELECT outbox_seq, outbox_dropped FROM sync_state", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((mut seq, dropped)) = state else { return Ok(()) };
    if pending(tx)? >= LEN_MAX {
        tx.execute("UPDATE sync_state SET outbox_dropped = outbox_dropped + 1", [])?;
        return Ok(());
    }
    let mut insert = tx.prepare_cached(
        "INSERT INTO sync_outbox (seq, at_s, kind, body) VALUES (?1, ?2, ?3, ?4)",
    )?;
    if dropped > 0 {
        seq += 1;
        let gap = json!({ "event": "reports_dropped", "reports": dropped, "limit": LEN_MAX });
        insert.execute((seq, at_s, "error", gap.to_string()))?;
    }
    seq += 1;
    insert.execute((seq, at_s, kind, body.to_string()))?;
    tx.execute("UPDATE sync_state SET outbox_seq = ?1, outbox_dropped = 0", [seq])?;
    Ok(())
}

/// The oldest reports that wait, `len_max` at most and about `bytes_max` of JSON together.
///
/// # Errors
/// The database's.
pub fn batch(
    connection: &Connection,
    len_max: usize,
    bytes_max: usize,
) -> Result<Vec<Report>, rusqlite::Error> {
    let mut statement = connection
        .prepare_cached("SELECT seq, at_s, kind, body FROM sync_outbox ORDER BY seq LIMIT ?1")?;
    let mut rows = statement.query([i64::try_from(len_max).unwrap_or(i64::MAX)])?;
    let (mut reports, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let body: String = row.get(3)?;
        bytes += body.len() + 100;
        if bytes > bytes_max && !reports.is_empty() {
            break;
        }
        let seq: i64 = row.get(0)?;
        reports.push(Report {
            seq: seq.max(0) as u64,
            at_s: row.get(1)?,
            kind: row.get(2)?,
            // Damaged text still has to leave, or it would block all that follow.
            body: serde_json::from_str(&body).unwrap_or(Value::String(body)),
        });
    }
    Ok(reports)
}

/// Forgets what the control plane has made durable; never what was not written yet.
///
/// # Errors
/// The database's.
pub fn acked(tx: &Transaction<'_>, through: u64) -> Result<(), rusqlite::Error> {
    let through = i64::try_from(through).unwrap_or(i64::MAX);
    tx.execute("DELETE FROM sync_outbox WHERE seq <= ?1", [through])?;
    Ok(())
}

/// How many reports wait.
///
/// # Errors
/// The database's.
pub fn pending(connection: &Connection) -> Result<u64, rusqlite::Error> {
    // The numbers have no gaps: no need to count rows.
    let span: Option<(Option<i64>, Option<i64>)> = connection
        .query_row("SELECT min(seq), max(seq) FROM sync_outbox", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(match span {
        Some((Some(first), Some(last))) => (last - first + 1).max(0) as u64,
        _ => 0,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use fulmar_store::{Store, StoreError};

    use super::*;
    use crate::state;

    fn store(enrolled: bool) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db"), &[&state::SCHEMA]).unwrap();
        if enrolled {
            store.write_blocking(|tx| Ok::<_, StoreError>(state::begin(tx, "d-1")?)).unwrap();
        }
        (dir, store)
    }

    fn add(store: &Store, number: u64) {
        store
            .write_blocking(move |tx| {
                Ok::<_, StoreError>(push(tx, 5, "sync", &json!({ "n": number }))?)
            })
            .unwrap();
    }

    fn waiting(store: &Store, len_max: usize) -> Vec<u64> {
        let reports =
            store.read_blocking(|c| Ok::<_, StoreError>(batch(c, len_max, 1 << 20)?)).unwrap();
        reports.iter().map(|report| report.seq).collect()
    }

    #[test]
    fn reports_are_numbered_on_without_gaps_after_all_were_acked() {
        let (_dir, store) = store(true);
        (0..3).for_each(|n| add(&store, n));
        assert_eq!(waiting(&store, 2), [1, 2]);
        store.write_blocking(|tx| Ok::<_, StoreError>(acked(tx, 3)?)).unwrap();
        assert!(waiting(&store, 9).is_empty());
        add(&store, 9);
        assert_eq!(waiting(&store, 9), [4]);
    }

    #[test]
    fn a_rolled_back_write_leaves_no_gap() {
        let (_dir, store) = store(true);
        let failed: Result<(), StoreError> = store.write_blocking(|tx| {
            push(tx, 5, "sync", &json!({}))?;
            Err(StoreError::Stopped)
        });
        assert!(failed.is_err());
        add(&store, 1);
        assert_eq!(waiting(&store, 9), [1]);
    }

    #[test]
    fn a_device_without_a_fleet_keeps_nothing() {
        let (_dir, store) = store(false);
        add(&store, 1);
        assert!(waiting(&store, 9).is_empty());
    }

    #[test]
    fn a_batch_is_bounded_in_bytes_and_never_empty() {
        let (_dir, store) = store(true);
        (0..5).for_each(|n| add(&store, n));
        let reports = store.read_blocking(|c| Ok::<_, StoreError>(batch(c, 9, 1)?)).unwrap();
        assert_eq!(reports.len(), 1);
    }
}
