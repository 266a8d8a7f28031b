//! What the link remembers: membership, generations of desired state, commands carried out.

use fulmar_store::Schema;
use rusqlite::{Connection, OptionalExtension as _, Transaction};

/// The link's tables.
pub const SCHEMA: Schema = Schema {
    name: "sync",
    steps: &[
        "
        CREATE TABLE sync_state (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            device_id TEXT NOT NULL,
            generation_seen INTEGER NOT NULL DEFAULT 0,
            generation_applied INTEGER NOT NULL DEFAULT 0,
            outbox_seq INTEGER NOT NULL DEFAULT 0,
            outbox_dropped INTEGER NOT NULL DEFAULT 0
        ) STRICT;
        CREATE TABLE sync_outbox (
            seq INTEGER PRIMARY KEY,
            at_s INTEGER NOT NULL,
            kind TEXT NOT NULL,
            body TEXT NOT NULL
        ) STRICT;
        CREATE TABLE sync_command (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE
        ) STRICT;
    ",
        "
        ALTER TABLE sync_state ADD COLUMN bundle_seen INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE sync_state ADD COLUMN report_serial INTEGER NOT NULL DEFAULT 0;
    ",
    ],
};

/// Commands remembered as carried out.
const COMMANDS_MAX: i64 = 1_000;

/// Generations of desired state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Generations {
    /// Made durable on this device.
    pub seen: u64,
    /// Fully applied.
    pub applied: u64,
}

/// Begins membership of a fleet; whether it is a new one. A device that joins anew under another id
/// begins anew.
pub(crate) fn begin(tx: &Transaction<'_>, device_id: &str) -> Result<bool, rusqlite::Error> {
    let before: Option<String> =
        tx.query_row("SELECT device_id FROM sync_state", [], |row| row.get(0)).optional()?;
    if before.as_deref() == Some(device_id) {
        return Ok(false);
    }
    tx.execute_batch("DELETE FROM sync_state; DELETE FROM sync_outbox; DELETE FROM sync_command")?;
    tx.execute("INSERT INTO sync_state (one, device_id) VALUES (1, ?1)", [device_id])?;
    Ok(true)
}

/// The generations noted; zeros on a device that belongs to no fleet.
///
/// # Errors
/// The database's.
pub fn generations(connection: &Connection) -> Result<Generations, rusqlite::Error> {
    let row: Option<(i64, i64)> = connection
        .query_row("SELECT generation_seen, generation_applied FROM sync_state", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let (seen, applied) = row.unwrap_or_default();
    Ok(Generations { seen: seen.max(0) as u64, applied: applied.max(0) as u64 })
}

/// Notes a generation whose metadata is stored in the same transaction. `Err` inside `Ok` is the
/// newer generation that is known already.
pub(crate) fn seen(
    tx: &Transaction<'_>,
    generation: u64,
) -> Result<Result<(), u64>, rusqlite::Error> {
    let known = generations(tx)?.seen;
    if generation < known {
        return Ok(Err(known));
    }
    let generation = i64::try_from(generation).unwrap_or(i64::MAX);
    tx.execute("UPDATE sync_state SET generation_seen = ?1", [generation])?;
    Ok(Ok(()))
}

/// The serial number of the newest bundle taken.
pub(crate) fn bundle_seen(connection: &Connection) -> Result<u64, rusqlite::Error> {
    let seen: Option<i64> = connection
        .query_row("SELECT bundle_seen FROM sync_state", [], |row| row.get(0))
        .optional()?;
    Ok(seen.unwrap_or(0).max(0) as u64)
}

/// Notes a bundle as taken. `Err` inside `Ok` is the newer one that was taken already.
pub(crate) fn note_bundle(
    tx: &Transaction<'_>,
    serial: u64,
) -> Result<Result<(), u64>, rusqlite::Error> {
    let known = bundle_seen(tx)?;
    if serial < known {
        return Ok(Err(known));
    }
    let serial = i64::try_from(serial).unwrap_or(i64::MAX);
    tx.execute("UPDATE sync_state SET bundle_seen = ?1", [serial])?;
    Ok(Ok(()))
}

/// The next file of reports gets this number.
pub(crate) fn next_report_file(tx: &Transaction<'_>) -> Result<u64, rusqlite::Error> {
    let serial: i64 = tx.query_row(
        "UPDATE sync_state SET report_serial = report_serial + 1 RETURNING report_serial",
        [],
        |row| row.get(0),
    )?;
    Ok(serial.max(0) as u64)
}

/// Notes that a generation is fully applied.
pub(crate) fn applied(tx: &Transaction<'_>, generation: u64) -> Result<(), rusqlite::Error> {
    let generation = i64::try_from(generation).unwrap_or(i64::MAX);
    tx.execute("UPDATE sync_state SET generation_applied = ?1", [generation])?;
    Ok(())
}

/// Notes a command as carried out; whether it is a new one.
pub(crate) fn command_is_new(tx: &Transaction<'_>, id: &str) -> Result<bool, rusqlite::Error> {
    let new = tx.execute("INSERT OR IGNORE INTO sync_command (id) VALUES (?1)", [id])? == 1;
    tx.execute(
        "DELETE FROM sync_command WHERE number <= (SELECT max(number) FROM sync_command) - ?1",
        [COMMANDS_MAX],
    )?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use fulmar_store::{Store, StoreError};

    use super::*;

    #[test]
    fn an_older_generation_is_refused_by_the_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db"), &[&SCHEMA]).unwrap();
        let outcomes = store
            .write_blocking(|tx| {
                begin(tx, "d-1")?;
                Ok::<_, StoreError>([seen(tx, 7)?, seen(tx, 7)?, seen(tx, 6)?])
            })
            .unwrap();
        assert_eq!(outcomes, [Ok(()), Ok(()), Err(7)]);
        let generations = store.read_blocking(|c| Ok::<_, StoreError>(generations(c)?)).unwrap();
        assert_eq!(generations, Generations { seen: 7, applied: 0 });
    }

    #[test]
    fn a_command_is_carried_out_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db"), &[&SCHEMA]).unwrap();
        let new = store
            .write_blocking(|tx| {
                Ok::<_, StoreError>([command_is_new(tx, "a")?, command_is_new(tx, "a")?])
            })
            .unwrap();
        assert_eq!(new, [true, false]);
    }

    #[test]
    fn joining_as_another_device_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db"), &[&SCHEMA]).unwrap();
        let after = store
            .write_blocking(|tx| {
                begin(tx, "d-1")?;
                seen(tx, 9)?.ok();
                begin(tx, "d-1")?;
                let same = generations(tx)?.seen;
                begin(tx, "d-2")?;
                Ok::<_, StoreError>((same, generations(tx)?.seen))
            })
            .unwrap();
        assert_eq!(after, (9, 0));
    }
}
