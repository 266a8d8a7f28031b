//! The device's SQLite file: open, migrate, one writer thread with group commit, readers,
//! backup, integrity check.
//!
//! It knows no domain. Each crate brings its own [`Schema`] and its own SQL; its functions take a
//! `&Transaction`, so the caller decides what is atomic with what.
//!
//! Invariants:
//! - A value returned by [`Store::write`] is durable: `synchronous = FULL`, and the reply is sent
//!   after the commit.
//! - One writer: all writes go through one thread in the order in which they were queued. Writes
//!   that wait together are committed together; one that fails is rolled back alone.
//! - The queue is bounded ([`Options::queue_len_max`]); a full queue makes writers wait, it never
//!   grows.
//!
//! Deliberately absent: an ORM, a connection pool crate, a trait over databases.

mod migrate;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction};

pub use migrate::Schema;

/// Limits of a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a connection waits for a lock held by another process, in milliseconds.
    pub busy_timeout_ms: u64,
    /// Writes that may wait for the writer thread.
    pub queue_len_max: usize,
    /// Writes committed together at most.
    pub group_len_max: usize,
    /// Idle reader connections kept open.
    pub readers_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { busy_timeout_ms: 5_000, queue_len_max: 256, group_len_max: 64, readers_max: 4 }
    }
}

/// What can go wrong with the store itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be opened or set up.
    #[error("open database {path}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A migration step failed; the file is as it was before.
    #[error("migrate {schema} to version {version}")]
    Migrate {
        /// The schema's name.
        schema: &'static str,
        /// The version that the failing step leads to.
        version: usize,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file was written by a newer program.
    #[error(
        "database {path} has version {found} of the {schema} tables, this program knows {known}: \
         install the newer fulmar, or restore a backup"
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// The schema's name.
        schema: &'static str,
        /// The version found.
        found: usize,
        /// The newest version this program knows.
        known: usize,
    },
    /// SQLite refused a statement.
    #[error("run a database statement")]
    Sqlite(#[from] rusqlite::Error),
    /// The writer thread could not be started.
    #[error("start the database writer thread")]
    Spawn(#[source] std::io::Error),
    /// The writer thread is gone: the process is shutting down, or a write panicked.
    #[error("the database writer has stopped")]
    Stopped,
}

struct Inner {
    path: PathBuf,
    options: Options,
    writer: writer::Writer,
    readers: Mutex<Vec<Connection>>,
}

/// A handle to one SQLite file. Cloning is cheap; the file closes with the last clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.inner.path).finish()
    }
}

impl Store {
    /// Opens the file at `path`, creating it if missing, and brings every schema up to date in
    /// one transaction each.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Migrate`] or [`StoreError::Newer`]; the file is
    /// unchanged then.
    pub fn open(path: &Path, schemas: &[&Schema]) -> Result<Self, StoreError> {
        Self::open_with(path, schemas, Options::default())
    }

    /// [`Store::open`] with limits of the caller's choice.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(
        path: &Path,
        schemas: &[&Schema],
        options: Options,
    ) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(open)?;
        connection.busy_timeout(Duration::from_millis(options.busy_timeout_ms)).map_err(open)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(open)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(open)?;
        connection.pragma_update(None, "trusted_schema", false).map_err(open)?;
        for schema in schemas {
            migrate::migrate(&mut connection, path, schema)?;
        }
        let writer =
            writer::Writer::start(connection, options.queue_len_max, options.group_len_max)
                .map_err(StoreError::Spawn)?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                options,
                writer,
                readers: Mutex::new(Vec::new()),
            }),
        })
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Runs `work` on the writer thread inside a transaction and waits until it is durable. An
    /// `Err` from `work` rolls back all that it wrote, and nothing else.
    ///
    /// # Errors
    /// What `work` returned, or [`StoreError`] when the commit itself failed.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let (job, reply) = writer::Job::new(work);
        // A full queue must not block the runtime's thread.
        let writer = self.inner.writer.clone();
        match writer.try_send(job) {
            Ok(()) => {}
            Err(Some(job)) => tokio::task::spawn_blocking(move || writer.send(job))
                .await
                .map_err(|_| StoreError::Stopped)?
                .map_err(|()| StoreError::Stopped)?,
            Err(None) => return Err(StoreError::Stopped.into()),
        }
        reply.await.unwrap_or_else(|_| Err(StoreError::Stopped.into()))
    }

    /// [`Store::write`] for callers outside a runtime; blocks the calling thread.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn write_blocking<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let (job, reply) = writer::Job::new(work);
        self.inner.writer.send(job).map_err(|()| StoreError::Stopped)?;
        reply.blocking_recv().unwrap_or_else(|_| Err(StoreError::Stopped.into()))
    }

    /// Runs `work` on a read-only connection, off the runtime's threads. It sees one snapshot per
    /// statement; open a transaction inside for more.
    ///
    /// # Errors
    /// What `work` returned, or [`StoreError`] when no connection could be opened.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.read_blocking(work))
            .await
            .unwrap_or_else(|_| Err(StoreError::Stopped.into()))
    }

    /// [`Store::read`] for callers outside a runtime; blocks the calling thread.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read_blocking<T, E, F>(&self, work: F) -> Result<T, E>
    where
        E: From<StoreError>,
        F: FnOnce(&Connection) -> Result<T, E>,
    {
        let idle = self.readers().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.open_reader()?,
        };
        let result = work(&connection);
        let mut readers = self.readers();
        if readers.len() < self.inner.options.readers_max {
            readers.push(connection);
        }
        result
    }

    /// Copies the database, as of one moment, to `target`, while writers go on.
    ///
    /// # Errors
    /// What SQLite's backup interface said.
    pub fn backup(&self, target: &Path) -> Result<(), StoreError> {
        self.read_blocking(|source| {
            source
                .backup("main", target, None::<fn(rusqlite::backup::Progress)>)
                .map_err(StoreError::from)
        })
    }

    /// SQLite's own integrity check: an empty list means sound.
    ///
    /// # Errors
    /// When the check itself could not run.
    pub fn integrity_check(&self) -> Result<Vec<String>, StoreError> {
        self.read_blocking(|connection| {
            let mut statement = connection.prepare("PRAGMA integrity_check")?;
            let lines = statement
                .query_map([], |row| row.get::<_, String>(0))?
                .collect::<Result<Vec<_>, _>>()?;
            Ok(lines.into_iter().filter(|line| line != "ok").collect())
        })
    }

    fn readers(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // The list is valid after any panic: pushes and pops are single operations.
        self.inner.readers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn open_reader(&self) -> Result<Connection, StoreError> {
        let path = self.path();
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        // A read-only flag would refuse to create the WAL's shared memory; query_only does not.
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::default() & !OpenFlags::SQLITE_OPEN_CREATE,
        )
        .map_err(open)?;
        connection
            .busy_timeout(Duration::from_millis(self.inner.options.busy_timeout_ms))
            .map_err(open)?;
        connection.pragma_update(None, "query_only", true).map_err(open)?;
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: Schema = Schema {
        name: "notes",
        steps: &["CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT"],
    };

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db"), &[&NOTES]).unwrap();
        (dir, store)
    }

    fn insert(store: &Store, text: &'static str) -> Result<(), StoreError> {
        store.write_blocking(move |tx| {
            tx.execute("INSERT INTO note (text) VALUES (?1)", [text])?;
            Ok(())
        })
    }

    fn texts(store: &Store) -> Vec<String> {
        store
            .read_blocking(|c| {
                let mut s = c.prepare("SELECT text FROM note ORDER BY id")?;
                let rows = s.query_map([], |r| r.get(0))?.collect::<Result<Vec<_>, _>>()?;
                Ok::<_, StoreError>(rows)
            })
            .unwrap()
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let (dir, store) = store();
        insert(&store, "one").unwrap();
        drop(store);
        let store = Store::open(&dir.path().join("state.db"), &[&NOTES]).unwrap();
        assert_eq!(texts(&store), ["one"]);
    }

    #[test]
    fn a_failing_write_rolls_back_alone() {
        let (_dir, store) = store();
        insert(&store, "one").unwrap();
        let failed: Result<(), StoreError> = store.write_blocking(|tx| {
            tx.execute("INSERT INTO note (text) VALUES ('two')", [])?;
            tx.execute("INSERT INTO note (text) VALUES ('one')", [])?;
            Ok(())
        });
        assert!(matches!(failed, Err(StoreError::Sqlite(_))));
        insert(&store, "three").unwrap();
        assert_eq!(texts(&store), ["one", "three"]);
    }

    #[tokio::test]
    async fn many_writers_at_once_are_all_committed() {
        let (_dir, store) = store();
        let writes = (0..500).map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .write(move |tx| {
                        tx.execute("INSERT INTO note (text) VALUES (?1)", [i.to_string()])?;
                        Ok::<_, StoreError>(())
                    })
                    .await
            })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap().unwrap();
        }
        assert_eq!(texts(&store).len(), 500);
    }

    #[test]
    fn a_panicking_write_takes_nothing_with_it() {
        let (_dir, store) = store();
        let lost: Result<(), StoreError> = store.write_blocking(|tx| {
            tx.execute("INSERT INTO note (text) VALUES ('half')", [])?;
            panic!("a bug in a caller")
        });
        assert!(matches!(lost, Err(StoreError::Stopped)));
        insert(&store, "after").unwrap();
        assert_eq!(texts(&store), ["after"]);
    }

    #[test]
    fn a_file_of_a_newer_program_is_refused_unchanged() {
        let (dir, store) = store();
        insert(&store, "one").unwrap();
        drop(store);
        let older = Schema { name: "notes", steps: &[] };
        let refused = Store::open(&dir.path().join("state.db"), &[&older]);
        assert!(matches!(refused, Err(StoreError::Newer { found: 1, known: 0, .. })));
    }

    #[test]
    fn a_reader_cannot_write() {
        let (_dir, store) = store();
        let refused = store
            .read_blocking(|c| Ok::<_, StoreError>(c.execute("DELETE FROM note", []).is_err()));
        assert!(refused.unwrap());
    }

    #[test]
    fn a_backup_opens_as_a_store_of_its_own() {
        let (dir, store) = store();
        insert(&store, "one").unwrap();
        store.backup(&dir.path().join("copy.db")).unwrap();
        insert(&store, "two").unwrap();
        let copy = Store::open(&dir.path().join("copy.db"), &[&NOTES]).unwrap();
        assert_eq!(texts(&copy), ["one"]);
        assert_eq!(copy.integrity_check().unwrap(), Vec::<String>::new());
    }
}
