//! The audit log: what was asked, by whom, and how it ended.
//!
//! Entries are appended in the transaction of what they record, hashed into a Merkle tree
//! (RFC 9162, section 2) whose head the device signs from time to time ([`checkpoint`]) and the
//! control plane co-signs when they meet ([`cosign`]). An entry is never changed: what begins and
//! ends is two entries, the second naming the first in [`Event::opened`].
//!
//! [`verify`] recomputes every hash from the entries themselves, so it finds a changed, removed,
//! inserted or reordered entry, a cut-off end (the signed head is longer), and a log that was
//! rewritten as a whole (the control plane's co-signature no longer fits).

mod merkle;
mod verify;
mod witness;
mod words;

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rusqlite::{Connection, OptionalExtension, Row, Transaction};
use serde::{Deserialize, Serialize};

use fulmar_store::Schema;

pub use merkle::{Hash, Proof};
pub use verify::{Verified, prove, verify};
pub use witness::{Reported, Tree, reported};
pub use words::reports_signature_holds;

use merkle::Peaks;

/// Longest `detail` of an entry, in bytes of JSON.
pub const DETAIL_BYTES_MAX: usize = 256 * 1024;

/// The log's tables.
pub const SCHEMA: Schema = Schema {
    name: "policy.audit",
    steps: &["
        CREATE TABLE audit_entry (
            seq INTEGER PRIMARY KEY,
            at_s INTEGER NOT NULL,
            actor TEXT NOT NULL,
            action TEXT NOT NULL,
            resource TEXT NOT NULL,
            outcome TEXT NOT NULL,
            opened INTEGER,
            detail TEXT NOT NULL,
            leaf BLOB NOT NULL
        ) STRICT;
        CREATE INDEX audit_entry_opened ON audit_entry (opened) WHERE opened IS NOT NULL;
        CREATE INDEX audit_entry_started ON audit_entry (seq) WHERE outcome = 'started';
        CREATE TRIGGER audit_entry_stays BEFORE DELETE ON audit_entry
            BEGIN SELECT RAISE(ABORT, 'audit entries are never removed'); END;
        CREATE TRIGGER audit_entry_is_never_changed BEFORE UPDATE ON audit_entry
            BEGIN SELECT RAISE(ABORT, 'audit entries are never changed'); END;
        CREATE TABLE audit_head (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            entries INTEGER NOT NULL,
            peaks BLOB NOT NULL
        ) STRICT;
        CREATE TABLE audit_checkpoint (
            entries INTEGER PRIMARY KEY,
            root BLOB NOT NULL,
            at_s INTEGER NOT NULL,
            signature BLOB NOT NULL,
            cosignature BLOB
        ) STRICT;
    "],
};

/// How what an entry records ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It began; another entry says how it ended.
    Started,
    /// It was done.
    Completed,
    /// It was refused by policy or by a check.
    Denied,
    /// It was allowed and went wrong.
    Failed,
}

impl Outcome {
    /// The outcome's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// What can go wrong with the log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// More detail than an entry holds.
    #[error(
        "append to the audit log: the detail has {found} bytes, the limit is {DETAIL_BYTES_MAX}"
    )]
    DetailTooLong {
        /// Bytes found.
        found: usize,
    },
    /// The head is not what this program writes.
    #[error(
        "read the audit log's head: {found} bytes of peaks for {entries} entries; restore the database from a backup"
    )]
    Head {
        /// Entries according to the head.
        entries: u64,
        /// Bytes found.
        found: usize,
    },
    /// An entry is missing or came from elsewhere.
    #[error("verify the audit log: expected entry {expected}, found {found}")]
    Gap {
        /// The number that should follow.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// An entry does not give the hash noted when it was written.
    #[error("verify the audit log: entry {seq} was changed after it was written")]
    Changed {
        /// The entry.
        seq: u64,
    },
    /// The tree over the entries is not the one noted.
    #[error("verify the audit log: {entries} entries give another tree than the head says")]
    Tree {
        /// Entries found.
        entries: u64,
    },
    /// Entries that were signed for are gone.
    #[error("verify the audit log: {signed} entries were signed for, {found} are there")]
    CutOff {
        /// Entries that a checkpoint covers.
        signed: u64,
        /// Entries found.
        found: u64,
    },
    /// A checkpoint does not fit the entries.
    #[error("verify the audit log: the checkpoint over {entries} entries is of another log")]
    Checkpoint {
        /// Entries that the checkpoint covers.
        entries: u64,
    },
    /// A signature is wrong.
    #[error("verify the audit log: the {who}'s signature over {entries} entries is wrong")]
    Signature {
        /// `device` or `control plane`.
        who: &'static str,
        /// Entries that the checkpoint covers.
        entries: u64,
    },
    /// There is no such entry.
    #[error("find audit entry {seq}: the log has {entries}")]
    NotFound {
        /// The entry asked for.
        seq: u64,
        /// Entries there.
        entries: u64,
    },
    /// The signing key could not be made or read.
    #[error("read the audit key: not an Ed25519 key in PKCS#8; restore it from a backup")]
    Key,
    /// A stored detail is not JSON.
    #[error("read audit entry {seq}: its detail is not JSON")]
    Detail {
        /// The entry.
        seq: u64,
    },
    /// The database refused.
    #[error("use the audit log's tables")]
    Store(#[from] fulmar_store::StoreError),
}

impl From<rusqlite::Error> for AuditError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Something to record.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// When, seconds since 1970, by the device's time.
    pub at_s: i64,
    /// Who: [`crate::Principal::audit_name`], or `system`.
    pub actor: &'a str,
    /// What: an action's name, or an event of the system (`agent.start`, `clock.jump`).
    pub action: &'a str,
    /// To what.
    pub resource: &'a str,
    /// How it ended.
    pub outcome: Outcome,
    /// The entry that began what this one ends.
    pub opened: Option<u64>,
    /// The rest: counts, digests, reasons. Text of prompts only where policy says so.
    pub detail: serde_json::Value,
}

/// A recorded entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<u64>,
    /// The rest.
    pub detail: serde_json::Value,
    /// Its leaf hash in the tree, hex.
    pub leaf: String,
}

/// What [`append`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The entry's number.
    pub seq: u64,
    /// Its leaf hash.
    pub leaf: Hash,
}

/// The bytes that an entry's leaf hash covers: a JSON array of its fields in this order, so that
/// no two different entries give the same bytes.
fn leaf_bytes(seq: u64, at_s: i64, texts: [&str; 4], opened: Option<u64>, detail: &str) -> Vec<u8> {
    let [actor, action, resource, outcome] = texts;
    serde_json::json!([seq, at_s, actor, action, resource, outcome, opened, detail])
        .to_string()
        .into_bytes()
}

/// Appends an entry. It is part of the log when `tx` commits.
///
/// # Errors
/// [`AuditError::DetailTooLong`], [`AuditError::Head`], or the database's. The caller then must
/// not do what it wanted to record.
pub fn append(tx: &Transaction<'_>, event: &Event<'_>) -> Result<Appended, AuditError> {
    let detail = event.detail.to_string();
    if detail.len() > DETAIL_BYTES_MAX {
        return Err(AuditError::DetailTooLong { found: detail.len() });
    }
    let mut peaks = load_peaks(tx)?;
    let seq = peaks.len() + 1;
    let texts = [event.actor, event.action, event.resource, event.outcome.as_str()];
    let leaf = merkle::leaf_hash(&leaf_bytes(seq, event.at_s, texts, event.opened, &detail));
    peaks.push(leaf);
    tx.prepare_cached(
        "INSERT INTO audit_entry
            (seq, at_s, actor, action, resource, outcome, opened, detail, leaf)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(rusqlite::params![
        to_sql(seq),
        event.at_s,
        texts[0],
        texts[1],
        texts[2],
        texts[3],
        event.opened.map(to_sql),
        detail,
        leaf,
    ])?;
    tx.prepare_cached(
        "INSERT INTO audit_head (one, entries, peaks) VALUES (1, ?1, ?2)
         ON CONFLICT (one) DO UPDATE SET entries = excluded.entries, peaks = excluded.peaks",
    )?
    .execute((to_sql(peaks.len()), peaks.to_bytes()))?;
    Ok(Appended { seq, leaf })
}

fn load_peaks(connection: &Connection) -> Result<Peaks, AuditError> {
    let head: Option<(i64, Vec<u8>)> = connection
        .prepare_cached("SELECT entries, peaks FROM audit_head")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((entries, bytes)) = head else { return Ok(Peaks::default()) };
    let entries = from_sql(entries);
    Peaks::from_bytes(entries, &bytes).ok_or(AuditError::Head { entries, found: bytes.len() })
}

/// Entries in the log, and the root of the tree over them.
///
/// # Errors
/// [`AuditError::Head`], or the database's.
pub fn head(connection: &Connection) -> Result<(u64, Hash), AuditError> {
    let peaks = load_peaks(connection)?;
    Ok((peaks.len(), peaks.root()))
}

/// Which entries [`list`] gives.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Only entries after this number; 0 for all.
    pub after: u64,
    /// How many at most.
    pub len_max: u32,
    /// The newest first.
    pub newest_first: bool,
}

/// Entries of the log.
///
/// # Errors
/// [`AuditError::Detail`], or the database's.
pub fn list(connection: &Connection, page: Page) -> Result<Vec<Entry>, AuditError> {
    let order = if page.newest_first { "DESC" } else { "ASC" };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT seq, at_s, actor, action, resource, outcome, opened, detail, leaf
         FROM audit_entry WHERE seq > ?1 ORDER BY seq {order} LIMIT ?2"
    ))?;
    let mut rows = statement.query((to_sql(page.after), page.len_max))?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(read_entry(row)?);
    }
    Ok(entries)
}

/// Entries that began something and never heard of its end: after a start, what a crash cut off.
///
/// # Errors
/// [`AuditError::Detail`], or the database's.
pub fn unfinished(connection: &Connection) -> Result<Vec<Entry>, AuditError> {
    let mut statement = connection.prepare(
        "SELECT seq, at_s, actor, action, resource, outcome, opened, detail, leaf
         FROM audit_entry AS began WHERE outcome = 'started'
         AND NOT EXISTS (SELECT 1 FROM audit_entry WHERE opened = began.seq) ORDER BY seq",
    )?;
    let mut rows = statement.query([])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(read_entry(row)?);
    }
    Ok(entries)
}

fn read_entry(row: &Row<'_>) -> Result<Entry, AuditError> {
    let seq = from_sql(row.get(0)?);
    let detail: String = row.get(7)?;
    Ok(Entry {
        seq,
        at_s: row.get(1)?,
        actor: row.get(2)?,
        action: row.get(3)?,
        resource: row.get(4)?,
        outcome: row.get(5)?,
        opened: row.get::<_, Option<i64>>(6)?.map(from_sql),
        detail: serde_json::from_str(&detail).map_err(|_| AuditError::Detail { seq })?,
        leaf: hex::encode(row.get::<_, Vec<u8>>(8)?),
    })
}

/// The device's key for checkpoints, Ed25519.
pub struct AuditKey {
    pkcs8: Vec<u8>,
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditKey").field("public", &hex::encode(self.public())).finish()
    }
}

impl AuditKey {
    /// A new key.
    ///
    /// # Errors
    /// [`AuditError::Key`] when the system gives no random numbers.
    pub fn generate() -> Result<Self, AuditError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| AuditError::Key)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// Reads a key as [`AuditKey::to_pkcs8`] gave it.
    ///
    /// # Errors
    /// [`AuditError::Key`].
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, AuditError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| AuditError::Key)?;
        Ok(Self { pkcs8: pkcs8.to_vec(), pair })
    }

    /// The key's bytes, a secret.
    #[must_use]
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public key, 32 bytes.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Signs a head of the log of `device`. The control plane co-signs the same words.
    #[must_use]
    pub fn sign(&self, device: &str, entries: u64, root: &Hash) -> Vec<u8> {
        self.pair.sign(&checkpoint_bytes(device, entries, root)).as_ref().to_vec()
    }
}

/// Whether `signature` by `public` (Ed25519, 32 bytes) is over this head of the log of `device`.
#[must_use]
pub fn signature_holds(
    public: &[u8],
    device: &str,
    entries: u64,
    root: &Hash,
    signature: &[u8],
) -> bool {
    UnparsedPublicKey::new(&ED25519, public)
        .verify(&checkpoint_bytes(device, entries, root), signature)
        .is_ok()
}

fn checkpoint_bytes(device: &str, entries: u64, root: &Hash) -> Vec<u8> {
    format!("fulmar audit checkpoint 1\n{device}\n{entries}\n{}\n", hex::encode(root)).into_bytes()
}

/// A signed head of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Entries covered.
    pub entries: u64,
    /// Root of the tree over them.
    pub root: Hash,
    /// The device's signature.
    pub signature: Vec<u8>,
    /// The control plane's, once they met.
    pub cosignature: Option<Vec<u8>>,
}

/// Signs the log's head, unless it is signed already. Of checkpoints that the control plane never
/// co-signed only the newest is kept.
///
/// # Errors
/// [`AuditError::Head`], or the database's.
pub fn checkpoint(
    tx: &Transaction<'_>,
    key: &AuditKey,
    device: &str,
    now_s: i64,
) -> Result<Checkpoint, AuditError> {
    if let Some(last) = last_checkpoint(tx)?
        && last.entries == load_peaks(tx)?.len()
    {
        return Ok(last);
    }
    let (entries, root) = head(tx)?;
    let signature = key.sign(device, entries, &root);
    tx.execute("DELETE FROM audit_checkpoint WHERE cosignature IS NULL", [])?;
    tx.execute(
        "INSERT INTO audit_checkpoint (entries, root, at_s, signature) VALUES (?1, ?2, ?3, ?4)",
        (to_sql(entries), root, now_s, &signature),
    )?;
    Ok(Checkpoint { entries, root, signature, cosignature: None })
}

/// Notes the control plane's co-signature of a checkpoint. One for a checkpoint that is no longer
/// there is ignored: a newer one covers it.
///
/// # Errors
/// The database's.
pub fn cosign(tx: &Transaction<'_>, entries: u64, cosignature: &[u8]) -> Result<(), AuditError> {
    tx.execute(
        "UPDATE audit_checkpoint SET cosignature = ?2 WHERE entries = ?1",
        (to_sql(entries), cosignature),
    )?;
    Ok(())
}

/// The newest checkpoint.
///
/// # Errors
/// The database's.
pub fn last_checkpoint(connection: &Connection) -> Result<Option<Checkpoint>, AuditError> {
    Ok(connection
        .prepare_cached(
            "SELECT entries, root, signature, cosignature FROM audit_checkpoint
             ORDER BY entries DESC LIMIT 1",
        )?
        .query_row([], read_checkpoint)
        .optional()?)
}

fn read_checkpoint(row: &Row<'_>) -> rusqlite::Result<Checkpoint> {
    Ok(Checkpoint {
        entries: from_sql(row.get(0)?),
        root: row.get(1)?,
        signature: row.get(2)?,
        cosignature: row.get(3)?,
    })
}

/// SQLite's integers are signed; entry numbers never come near the difference.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
