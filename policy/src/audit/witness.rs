//! A log seen from outside: what a device hands in of its entries, hashed anew by whoever takes
//! them, so that the head it signs can be held against them.

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::merkle::{Hash, Peaks, leaf_hash};
use super::{AuditError, from_sql, leaf_bytes, to_sql};

/// An entry as it is handed in. The detail is the text that was hashed, byte for byte: the order of
/// its fields and the form of its numbers count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reported {
    /// Its number, from 1.
    pub seq: u64,
    /// When, seconds since 1970.
    pub at_s: i64,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// To what.
    pub resource: String,
    /// How it ended.
    pub outcome: String,
    /// The entry that began it.
    #[serde(default)]
    pub opened: Option<u64>,
    /// The rest, as the text of its JSON.
    pub detail_json: String,
    /// Its leaf hash as the device noted it, hex.
    pub leaf: String,
}

impl Reported {
    /// The leaf hash that these fields give.
    #[must_use]
    pub fn leaf_hash(&self) -> Hash {
        let texts = [&self.actor, &self.action, &self.resource, &self.outcome];
        let texts = texts.map(String::as_str);
        leaf_hash(&leaf_bytes(self.seq, self.at_s, texts, self.opened, &self.detail_json))
    }
}

/// A tree that grows leaf by leaf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(Peaks);

impl Tree {
    /// As [`Tree::to_bytes`] wrote it; `None` when these are no peaks of so many entries.
    #[must_use]
    pub fn from_bytes(entries: u64, bytes: &[u8]) -> Option<Self> {
        Peaks::from_bytes(entries, bytes).map(Self)
    }

    /// All that going on needs: 32 bytes for each bit that is set in the number of entries.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes()
    }

    /// Appends a leaf.
    pub fn push(&mut self, leaf: Hash) {
        self.0.push(leaf);
    }

    /// Entries so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.0.len()
    }

    /// The root over them.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.0.root()
    }
}

/// Entries after number `after`, as they are handed in; `len_max` at most.
///
/// # Errors
/// The database's.
pub fn reported(
    connection: &Connection,
    after: u64,
    len_max: u32,
) -> Result<Vec<Reported>, AuditError> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, at_s, actor, action, resource, outcome, opened, detail, leaf
         FROM audit_entry WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let rows = statement.query_map((to_sql(after), len_max), |row| {
        Ok(Reported {
            seq: from_sql(row.get(0)?),
            at_s: row.get(1)?,
            actor: row.get(2)?,
            action: row.get(3)?,
            resource: row.get(4)?,
            outcome: row.get(5)?,
            opened: row.get::<_, Option<i64>>(6)?.map(from_sql),
            detail_json: row.get(7)?,
            leaf: hex::encode(row.get::<_, Vec<u8>>(8)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
