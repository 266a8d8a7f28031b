//! The director's online key: where it lies, and its replacement by another.
//!
//! The newest director root in the database says which key signs. A rotation writes the next key to
//! `director.next.key`, commits a root that both keys signed, and then renames the file: whoever
//! finds the database ahead of the files completes that. So a crash at any instruction leaves the
//! old key or the new one in force, and a serving control plane takes the new one up by itself.
//!
//! Devices follow the roots. What a rotation can not undo is a root that a thief of the key had
//! devices take before: those enrol anew.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fulmar_policy::audit::Outcome;
use fulmar_registry::trust::director::DirectorSigner;
use fulmar_registry::trust::{Ed25519Key, Repo, SigningKey as _, Trusted};
use fulmar_store::{Store, StoreError};
use rusqlite::{Connection, OptionalExtension as _};
use serde::Serialize;

use crate::director::{Director, DirectorError, ROOT_EXPIRES_S};
use crate::failure::{Failure, chain};
use crate::number::from_sql;
use crate::{act, files, now_s, schema};

const KEY_FILE: &str = "director.key";
const NEXT_FILE: &str = "director.next.key";

pub(crate) type Signer = DirectorSigner<Ed25519Key>;

/// The key in force.
#[derive(Debug)]
pub(crate) struct DirectorKey {
    dir: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug, Clone)]
struct Held {
    signer: Arc<Signer>,
    /// The root that is known to name this key; 0 for none.
    root_version: u64,
}

impl DirectorKey {
    /// Makes the first key in `dir`.
    pub(crate) fn create(dir: &Path) -> Result<(), DirectorError> {
        let key = Ed25519Key::generate()?;
        files::write_secret(&dir.join(KEY_FILE), key.to_pem().as_bytes())?;
        Ok(())
    }

    /// Opens what is in `dir`; which key is in force says the database, when it is asked.
    pub(crate) fn open(dir: &Path) -> Result<Self, DirectorError> {
        let signer = Arc::new(read(&dir.join(KEY_FILE))?);
        let held = Mutex::new(Held { signer, root_version: 0 });
        Ok(Self { dir: dir.to_owned(), held })
    }

    /// The key that the newest root names.
    pub(crate) fn in_force(&self, connection: &Connection) -> Result<Arc<Signer>, Failure> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((version, root)) = newest_root(connection)? else {
            return Ok(Arc::clone(&held.signer));
        };
        if held.root_version != version {
            if !names(&root, &held.signer)? {
                held.signer = Arc::new(self.find(&root)?);
            }
            held.root_version = version;
        }
        Ok(Arc::clone(&held.signer))
    }

    /// The key in force when the database was last asked.
    pub(crate) fn last_in_force(&self) -> Arc<Signer> {
        Arc::clone(&self.held.lock().unwrap_or_else(PoisonError::into_inner).signer)
    }

    /// Looks for the key that a root names among the files, and completes a rotation.
    fn find(&self, root: &[u8]) -> Result<Signer, Failure> {
        let (path, next) = (self.dir.join(KEY_FILE), self.dir.join(NEXT_FILE));
        let unusable = |e: DirectorError| Failure::internal("read the director's key", chain(&e));
        if next.exists() {
            let signer = read(&next).map_err(unusable)?;
            if names(root, &signer)? {
                match files::replace(&next, &path) {
                    // Another process was faster.
                    Err(_) if !next.exists() => {}
                    replaced => replaced.map_err(|e| unusable(e.into()))?,
                }
                return Ok(signer);
            }
        }
        let signer = read(&path).map_err(unusable)?;
        if names(root, &signer)? {
            return Ok(signer);
        }
        Err(Failure::internal(
            "use the director's key",
            format!(
                "the newest root does not name the key in {}: restore the file of the last \
                 rotation from a backup",
                path.display()
            ),
        ))
    }
}

fn read(path: &Path) -> Result<Signer, DirectorError> {
    let text = files::read_text(path)?;
    Ok(DirectorSigner::new(Ed25519Key::from_file_text(&text, None)?))
}

fn newest_root(connection: &Connection) -> Result<Option<(u64, Vec<u8>)>, Failure> {
    let sql = "SELECT version, bytes FROM director_root ORDER BY version DESC LIMIT 1";
    Ok(connection.query_row(sql, [], |row| Ok((from_sql(row.get(0)?), row.get(1)?))).optional()?)
}

fn names(root: &[u8], signer: &Signer) -> Result<bool, Failure> {
    let trusted = Trusted::from_root(Repo::Director, root.to_vec())
        .map_err(|e| Failure::internal("read the director's root", chain(&e)))?;
    Ok(trusted.root().keys.contains_key(&signer.public().key_id()))
}

/// Why the director's key was not replaced. The one before is in force.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// No control plane there.
    #[error("rotate the director's key in {dir}: there is no control plane")]
    Absent {
        /// The directory.
        dir: PathBuf,
    },
    /// The key that is there.
    #[error("rotate the director's key: {0}")]
    Key(#[from] DirectorError),
    /// The database.
    #[error("rotate the director's key: {0}")]
    Store(#[from] StoreError),
    /// A step of it.
    #[error("rotate the director's key: {0}")]
    Step(String),
}

/// What a rotation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rotated {
    /// The director's root that hands over, which devices follow.
    pub root_version: u64,
    /// The id of the key that signed until now.
    pub old_key_id: String,
    /// The id of the key that signs from now on.
    pub new_key_id: String,
}

/// Replaces the director's key in the state directory `dir` by a new one. Works beside a serving
/// control plane. Blocks.
///
/// # Errors
/// [`RotateError`].
pub fn rotate_director_key(dir: &Path) -> Result<Rotated, RotateError> {
    if !dir.join("control.db").exists() {
        return Err(RotateError::Absent { dir: dir.to_owned() });
    }
    let store = Store::open(&dir.join("control.db"), &schema::ALL)?;
    let director = Director::open(dir)?;
    let folder = dir.to_owned();
    let rotated = store.write_blocking(move |tx| {
        let rotated = hand_over(tx, &director, &folder)?;
        let detail = serde_json::json!({
            "old_key_id": rotated.old_key_id, "new_key_id": rotated.new_key_id,
            "root_version": rotated.root_version,
        });
        act::append(tx, "local", "director.rotate_key", "-", Outcome::Completed, detail)?;
        Ok::<_, Failure>(rotated)
    });
    let rotated = rotated.map_err(|failure| RotateError::Step(chain(&failure)))?;
    // The database is ahead of the files: this takes them along.
    let key = DirectorKey::open(dir)?;
    store
        .read_blocking(move |connection| key.in_force(connection).map(|_| ()))
        .map_err(|failure| RotateError::Step(chain(&failure)))?;
    Ok(rotated)
}

fn hand_over(
    tx: &rusqlite::Transaction<'_>,
    director: &Director,
    dir: &Path,
) -> Result<Rotated, Failure> {
    let failed = |e: &dyn std::error::Error| Failure::internal("make the next key", chain(e));
    let now_s = now_s();
    director.ensure_root(tx, now_s)?;
    let old = director.key().in_force(tx)?;
    let (version, previous) = newest_root(tx)?
        .ok_or_else(|| Failure::internal("read the director's root", "there is none"))?;
    let next = Ed25519Key::generate().map_err(|e| failed(&e))?;
    let path = dir.join(NEXT_FILE);
    // One that a crash left behind before its root was stored never signed anything.
    files::remove(&path).map_err(|e| failed(&e))?;
    files::write_secret(&path, next.to_pem().as_bytes()).map_err(|e| failed(&e))?;
    let expires_s = now_s + ROOT_EXPIRES_S;
    let root = old.next_root(&previous, Some(&next), expires_s).map_err(|e| failed(&e))?;
    tx.execute(
        "INSERT INTO director_root (version, expires_s, bytes) VALUES (?1, ?2, ?3)",
        (crate::number::to_sql(version + 1), expires_s, root),
    )?;
    // All devices' metadata is signed anew when they next ask.
    tx.execute("UPDATE director_metadata SET renew_s = 0", [])?;
    Ok(Rotated {
        root_version: version + 1,
        old_key_id: old.public().key_id(),
        new_key_id: next.key_id(),
    })
}
