//! Schemas and their versions. Each crate's tables move forward on their own, step by step; the
//! versions live in the table `schema_version`.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use crate::StoreError;

/// The tables of one crate.
#[derive(Debug)]
pub struct Schema {
    /// The crate's name for its tables, unique in the file.
    pub name: &'static str,
    /// SQL that leads from version `i` to version `i + 1`. Steps are only ever appended.
    pub steps: &'static [&'static str],
}

pub(crate) fn migrate(
    connection: &mut Connection,
    path: &Path,
    schema: &Schema,
) -> Result<(), StoreError> {
    // Immediate: two processes that open the file at once must not both see the old version.
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_version (
            name TEXT PRIMARY KEY, version INTEGER NOT NULL
         ) STRICT",
    )?;
    let found: u32 = tx
        .query_row("SELECT version FROM schema_version WHERE name = ?1", [schema.name], |row| {
            row.get(0)
        })
        .optional()?
        .unwrap_or(0);
    let (found, known) = (found as usize, schema.steps.len());
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), schema: schema.name, found, known });
    }
    for (step, sql) in schema.steps.iter().enumerate().skip(found) {
        tx.execute_batch(sql).map_err(|source| StoreError::Migrate {
            schema: schema.name,
            version: step + 1,
            source,
        })?;
    }
    tx.execute(
        "INSERT INTO schema_version (name, version) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET version = excluded.version",
        (schema.name, known as i64),
    )?;
    tx.commit()?;
    Ok(())
}
