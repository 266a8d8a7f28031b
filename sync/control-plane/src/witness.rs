//! The control plane as witness of devices' audit logs: every entry that comes in is hashed anew,
//! and a head that a device signed is co-signed only where the entries handed in give it.
//!
//! Invariants: what was co-signed is never hashed again, so nothing can change it; a fault is
//! written once, the first one, and stays until the device joins anew. While there is one, nothing
//! is co-signed.

use fulmar_policy::audit::{Hash, Reported, Tree};
use rusqlite::{Connection, OptionalExtension as _, Transaction};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::number::{from_sql, to_sql};

/// How a device's log stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Witness {
    /// Entries handed in, each with the hash that its fields give.
    pub(crate) entries: u64,
    /// Entries that a head signed by the device was found to be over.
    pub(crate) verified_entries: u64,
    /// The first thing that was not as it had been.
    pub(crate) fault: Option<String>,
}

/// What the entries handed in say of a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Head {
    /// They give this root.
    Root(Hash),
    /// Some have not come yet.
    NotYet,
    /// They are not a log.
    Fault(String),
}

/// How a device's log stands; with zeros while nothing came.
pub(crate) fn of(connection: &Connection, device: &str) -> Result<Witness, Failure> {
    let base: Option<(i64, Option<String>)> = connection
        .prepare_cached("SELECT entries, fault FROM audit_witness WHERE device_id = ?1")?
        .query_row([device], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (verified, fault) = base.unwrap_or_default();
    let last: Option<i64> = connection
        .prepare_cached("SELECT max(seq) FROM audit_leaf WHERE device_id = ?1")?
        .query_row([device], |row| row.get(0))?;
    let verified_entries = from_sql(verified);
    let entries = last.map_or(verified_entries, from_sql).max(verified_entries);
    Ok(Witness { entries, verified_entries, fault })
}

/// Takes an entry in, as a report has it; puts its detail back as JSON for those who read reports.
pub(crate) fn take(tx: &Transaction<'_>, device: &str, body: &mut Value) -> Result<(), Failure> {
    let entry: Reported = match serde_json::from_value(body.clone()) {
        Ok(entry) => entry,
        Err(error) => {
            return fault(tx, device, &format!("a report is no audit entry: {error}"));
        }
    };
    if let Some(fields) = body.as_object_mut() {
        fields.remove("detail_json");
        let detail = serde_json::from_str(&entry.detail_json);
        fields.insert("detail".to_owned(), detail.unwrap_or(Value::Null));
    }
    let known = of(tx, device)?.entries;
    let (seq, leaf) = (entry.seq, entry.leaf_hash());
    if hex::encode(leaf) != entry.leaf {
        return fault(tx, device, &format!("entry {seq} is not the one that its hash is of"));
    }
    if seq > known + 1 {
        let text = format!("entries {} to {} were never handed in", known + 1, seq - 1);
        return fault(tx, device, &text);
    }
    if seq <= known {
        let stored: Option<Vec<u8>> = tx
            .prepare_cached("SELECT leaf FROM audit_leaf WHERE device_id = ?1 AND seq = ?2")?
            .query_row((device, to_sql(seq)), |row| row.get(0))
            .optional()?;
        return match stored.is_some_and(|stored| stored == leaf) {
            true => Ok(()),
            false => fault(tx, device, &format!("entry {seq} was handed in again as another")),
        };
    }
    tx.prepare_cached("INSERT INTO audit_leaf (device_id, seq, leaf) VALUES (?1, ?2, ?3)")?
        .execute((device, to_sql(seq), leaf.as_slice()))?;
    Ok(())
}

/// Notes what is wrong with a device's log; the first fault stays.
pub(crate) fn fault(tx: &Transaction<'_>, device: &str, text: &str) -> Result<(), Failure> {
    tracing::error!(device, fault = text, "a device's audit log is not what it was");
    tx.prepare_cached(
        "INSERT INTO audit_witness (device_id, entries, peaks, fault) VALUES (?1, 0, x'', ?2)
         ON CONFLICT (device_id) DO UPDATE SET fault = coalesce(fault, excluded.fault)",
    )?
    .execute((device, text))?;
    Ok(())
}

/// The root over the first `entries` entries that were handed in.
pub(crate) fn head(tx: &Transaction<'_>, device: &str, entries: u64) -> Result<Head, Failure> {
    let known = of(tx, device)?;
    if let Some(fault) = known.fault {
        return Ok(Head::Fault(fault));
    }
    if entries > known.entries {
        return Ok(Head::NotYet);
    }
    let mut tree = base(tx, device)?;
    if entries < tree.entries() {
        return Ok(Head::NotYet);
    }
    grow(tx, device, &mut tree, entries)?;
    Ok(Head::Root(tree.root()))
}

/// Notes that the head over `entries` entries was found to be right: from here on, later ones are
/// added to it.
pub(crate) fn advance(tx: &Transaction<'_>, device: &str, entries: u64) -> Result<(), Failure> {
    let mut tree = base(tx, device)?;
    if entries <= tree.entries() {
        return Ok(());
    }
    grow(tx, device, &mut tree, entries)?;
    tx.execute(
        "INSERT INTO audit_witness (device_id, entries, peaks) VALUES (?1, ?2, ?3)
         ON CONFLICT (device_id) DO UPDATE SET entries = excluded.entries, peaks = excluded.peaks",
        (device, to_sql(tree.entries()), tree.to_bytes()),
    )?;
    tx.execute(
        "DELETE FROM audit_leaf WHERE device_id = ?1 AND seq <= ?2",
        (device, to_sql(entries)),
    )?;
    Ok(())
}

fn base(connection: &Connection, device: &str) -> Result<Tree, Failure> {
    let row: Option<(i64, Vec<u8>)> = connection
        .prepare_cached("SELECT entries, peaks FROM audit_witness WHERE device_id = ?1")?
        .query_row([device], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((entries, peaks)) = row else { return Ok(Tree::default()) };
    Tree::from_bytes(from_sql(entries), &peaks)
        .ok_or_else(|| Failure::internal("read a device's audit tree", "its peaks do not fit"))
}

fn grow(
    connection: &Connection,
    device: &str,
    tree: &mut Tree,
    entries: u64,
) -> Result<(), Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT leaf FROM audit_leaf WHERE device_id = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq",
    )?;
    let from = to_sql(tree.entries());
    let mut rows = statement.query((device, from, to_sql(entries)))?;
    while let Some(row) = rows.next()? {
        tree.push(row.get(0)?);
    }
    match tree.entries() == entries {
        true => Ok(()),
        false => Err(Failure::internal("read a device's audit leaves", "some are missing")),
    }
}
