//! Content-addressed files: `blobs/sha256/ab/abcd…`, and `incoming/` for what is on its way.
//!
//! Invariants:
//! - A file under `blobs/` was complete, hashed to its name and was synced to the disk before it
//!   was renamed there; nothing partial is ever visible under a digest.
//! - [`Blobs::open_verified`] hands out an open file whose every byte was hashed by this process
//!   since the file last changed (device, inode, length, mtime, ctime).
//! - The store never grows past its limit in bytes, promises to writers under way included, those of
//!   other processes too: a promise is room that the incoming file has on the file system from its
//!   start (`fallocate`), and one writer at a time is promised some (a lock on the folder). Where a
//!   file system cannot reserve, another process's promises count as they become bytes.
//! - One writer per digest, across processes too (advisory lock on the incoming file).
//!
//! Deliberately absent: who needs which blob (the catalog and gc know), and networks.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::digest::{Context, SHA256};

use crate::Digest;
use crate::manifest::ManifestFile;

mod chunked;
mod copies;
mod donors;
mod faults;
mod files;
mod incoming;
mod promises;
mod scrub;

pub use chunked::FileInParts;
pub use copies::copy_of;
pub use donors::Donors;
pub use faults::{Fault, Faults, Op};
pub use incoming::{Begin, Expected, Incoming};
pub use scrub::{ScrubReport, Scrubbed};

use files::Files;

/// Bytes that are left free on the file system whatever the store's own limit says: the database
/// and the logs live there too.
const DISK_RESERVE_BYTES: u64 = 16 << 20;

/// What can go wrong with blobs.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The operating system refused an operation.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried, as `sync`.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store's own limit does not leave room.
    #[error(
        "reserve {needed} bytes for {digest}: the blob store's limit of {limit} bytes leaves \
         {free}; remove models, run fulmar gc, or raise registry.blob_bytes_max"
    )]
    OverLimit {
        /// The blob.
        digest: Digest,
        /// Bytes still to come.
        needed: u64,
        /// The store's limit in bytes.
        limit: u64,
        /// What it leaves.
        free: u64,
    },
    /// The file system does not leave room.
    #[error(
        "reserve {needed} bytes for {digest}: the file system has {free} bytes free, of which \
         {DISK_RESERVE_BYTES} are kept; remove models, run fulmar gc, or make room"
    )]
    DiskFull {
        /// The blob.
        digest: Digest,
        /// Bytes still to come.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// No such blob.
    #[error("open blob {digest}: it is not in the store; download or import it again")]
    Missing {
        /// The blob.
        digest: Digest,
    },
    /// The bytes on the disk are not those that were stored.
    #[error(
        "verify blob {expected}: its bytes hash to {found}; the file was moved to quarantine/ \
         and must be downloaded or imported again"
    )]
    Corrupt {
        /// The digest that names it.
        expected: Digest,
        /// The digest of what is there.
        found: Digest,
    },
    /// The file changed while it was read.
    #[error("verify blob {digest}: the file changed while it was read")]
    Unsteady {
        /// The blob.
        digest: Digest,
    },
    /// A chunk's bytes are wrong; the bytes before it are kept.
    #[error(
        "verify chunk {index} of blob {digest}: expected {expected}, found {found}; the bytes \
         before offset {offset} are kept"
    )]
    Chunk {
        /// The blob.
        digest: Digest,
        /// Which chunk, from 0.
        index: usize,
        /// Where it begins.
        offset: u64,
        /// The chunk's digest by the manifest.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The complete file hashes to something else; it was thrown away.
    #[error("verify incoming blob: expected {expected}, found {found}; its bytes were dropped")]
    Mismatch {
        /// The digest by the manifest.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// More bytes than were announced.
    #[error("write blob {digest}: more than its {size_bytes} bytes came")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// Its length by the manifest.
        size_bytes: u64,
    },
    /// Committed too early.
    #[error("commit blob {digest}: only {found} of {size_bytes} bytes came")]
    TooShort {
        /// The blob.
        digest: Digest,
        /// Bytes there.
        found: u64,
        /// Its length by the manifest.
        size_bytes: u64,
    },
    /// Another writer has it under way.
    #[error("begin blob {digest}: another writer has it under way")]
    Busy {
        /// The blob.
        digest: Digest,
    },
}

/// How full the store is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Complete blobs.
    pub used_bytes: u64,
    /// Partial blobs.
    pub incoming_bytes: u64,
    /// Copies that the engine derived from blobs; outside the limit, since they are made only where
    /// the file system has room and can be made again.
    pub copies_bytes: u64,
    /// Promised to writers under way and not yet written.
    pub reserved_bytes: u64,
    /// The store's own limit.
    pub limit_bytes: u64,
    /// What may still be promised: within the limit and on the file system.
    pub free_bytes: u64,
}

/// Who a file is to the operating system; changes when its bytes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// An open blob whose bytes this process has verified.
#[derive(Debug)]
pub struct VerifiedFile {
    /// Open for reading, at the start.
    pub file: File,
    /// What it hashed to.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
    /// Where it lies, for messages; read through `file`.
    pub path: PathBuf,
}

struct Inner {
    dir: PathBuf,
    limit_bytes: u64,
    files: Files,
    verified: Mutex<HashMap<Digest, Identity>>,
    /// What was verified by chunks, and by which list of them.
    chunked: Mutex<HashMap<Digest, (Digest, Identity)>>,
    reserved: Mutex<HashMap<Digest, u64>>,
}

/// A handle to a blob store; cloning is cheap.
#[derive(Clone)]
pub struct Blobs {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Blobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs").field("dir", &self.inner.dir).finish()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Both maps are valid after any panic: they change by single inserts and removes.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blobs {
    /// Opens the store under `dir`, making it if missing. It will hold `limit_bytes` at most.
    ///
    /// # Errors
    /// [`BlobError::Io`] where the folders cannot be made.
    pub fn open(dir: &Path, limit_bytes: u64) -> Result<Self, BlobError> {
        Self::open_with_faults(dir, limit_bytes, Faults::none())
    }

    /// [`Blobs::open`] with failures injected into its file operations, for tests.
    ///
    /// # Errors
    /// As [`Blobs::open`].
    pub fn open_with_faults(
        dir: &Path,
        limit_bytes: u64,
        faults: Faults,
    ) -> Result<Self, BlobError> {
        let files = Files::new(faults);
        for sub in ["blobs/sha256", "incoming", "quarantine"] {
            files.create_dirs(dir, Path::new(sub))?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                limit_bytes,
                files,
                verified: Mutex::default(),
                chunked: Mutex::default(),
                reserved: Mutex::default(),
            }),
        })
    }

    /// The store's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Where a blob lies when it is there.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.inner.dir.join("blobs/sha256").join(&hex[..2]).join(&hex)
    }

    fn incoming_path(&self, digest: &Digest) -> PathBuf {
        self.inner.dir.join("incoming").join(format!("{}.part", digest.hex()))
    }

    fn quarantine_path(&self, digest: &Digest) -> PathBuf {
        self.inner.dir.join("quarantine").join(digest.hex())
    }

    /// Whether a complete blob of that length is there. Its bytes are verified by
    /// [`Blobs::open_verified`] only.
    #[must_use]
    pub fn contains(&self, digest: &Digest, size_bytes: u64) -> bool {
        std::fs::metadata(self.path(digest)).is_ok_and(|m| m.is_file() && m.len() == size_bytes)
    }

    /// Bytes of a blob that are on the device, partial ones included, for progress.
    #[must_use]
    pub fn bytes_present(&self, digest: &Digest) -> u64 {
        std::fs::metadata(self.path(digest))
            .or_else(|_| std::fs::metadata(self.incoming_path(digest)))
            .map_or(0, |meta| meta.len())
    }

    /// Opens a blob after verifying all of its bytes, once per process and file identity. A blob
    /// that fails is moved to `quarantine/`. Blocks while it reads.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Corrupt`], [`BlobError::Unsteady`], [`BlobError::Io`].
    pub fn open_verified(&self, digest: &Digest) -> Result<VerifiedFile, BlobError> {
        let path = self.path(digest);
        let mut file = self.open_blob(digest, &path)?;
        let before = Identity::of(&file).map_err(io("stat", &path))?;
        if locked(&self.inner.verified).get(digest) != Some(&before) {
            self.verify(digest, &mut file, &path, before)?;
        }
        Ok(VerifiedFile { file, digest: *digest, size_bytes: before.size, path })
    }

    /// The whole of a small blob, verified. `size_bytes_max` bounds what is read.
    ///
    /// # Errors
    /// As [`Blobs::open_verified`]; [`BlobError::TooLong`].
    pub fn read(&self, digest: &Digest, size_bytes_max: u64) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest);
        let file = self.open_blob(digest, &path)?;
        let mut bytes = Vec::new();
        file.take(size_bytes_max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(io("read", &path))?;
        if bytes.len() as u64 > size_bytes_max {
            return Err(BlobError::TooLong { digest: *digest, size_bytes: size_bytes_max });
        }
        let found = Digest::of(&bytes);
        if found != *digest {
            self.quarantine(digest)?;
            return Err(BlobError::Corrupt { expected: *digest, found });
        }
        Ok(bytes)
    }

    fn open_blob(&self, digest: &Digest, path: &Path) -> Result<File, BlobError> {
        File::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => BlobError::Missing { digest: *digest },
            _ => io("open", path)(source),
        })
    }

    fn verify(
        &self,
        digest: &Digest,
        file: &mut File,
        path: &Path,
        before: Identity,
    ) -> Result<(), BlobError> {
        let found = hash(file).map_err(io("read", path))?;
        std::io::Seek::rewind(file).map_err(io("rewind", path))?;
        // Bytes that changed while they were hashed prove nothing.
        if Identity::of(file).map_err(io("stat", path))? != before {
            return Err(BlobError::Unsteady { digest: *digest });
        }
        if found != *digest {
            self.quarantine(digest)?;
            return Err(BlobError::Corrupt { expected: *digest, found });
        }
        locked(&self.inner.verified).insert(*digest, before);
        Ok(())
    }

    /// Takes a blob that failed out of sight; kept (one per digest) for whoever wants to know why.
    fn quarantine(&self, digest: &Digest) -> Result<(), BlobError> {
        locked(&self.inner.verified).remove(digest);
        let (from, to) = (self.path(digest), self.quarantine_path(digest));
        tracing::error!(%digest, path = %to.display(), "a blob is corrupt: moved to quarantine");
        self.inner.files.rename(&from, &to)
    }

    /// Puts a small file that is at hand into the store, and makes it durable.
    ///
    /// # Errors
    /// As [`Blobs::begin`] and [`Incoming::commit`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        let size_bytes = bytes.len() as u64;
        match self.begin(&Expected { digest, size_bytes, chunks: Vec::new() })? {
            Begin::Present => {}
            Begin::Incoming(mut incoming) => {
                incoming.restart()?;
                incoming.write(bytes)?;
                incoming.commit()?;
            }
        }
        Ok(digest)
    }

    /// Copies a reader's bytes into the store; what is there already of it is read over.
    ///
    /// # Errors
    /// As [`Blobs::begin`], [`Incoming::write`] and [`Incoming::commit`]; reading's own failures.
    pub fn put_file(&self, file: &ManifestFile, reader: &mut impl Read) -> Result<(), BlobError> {
        let mut incoming = match self.begin(&Expected::from(file))? {
            Begin::Present => return Ok(()),
            Begin::Incoming(incoming) => incoming,
        };
        incoming.restart()?;
        let read_failed = io("read", Path::new(&file.path));
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return incoming.commit(),
                Ok(read) => incoming.write(&buffer[..read])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_failed(error)),
            }
        }
    }

    /// Removes a blob, and what is under way of it. The file's space is free when the last reader
    /// has closed it.
    ///
    /// # Errors
    /// [`BlobError::Io`]; a blob that is not there is no error.
    pub fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
        locked(&self.inner.verified).remove(digest);
        self.inner.files.remove(&self.incoming_path(digest))?;
        self.inner.files.remove(&self.path(digest))
    }

    /// All complete blobs with their lengths in bytes.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        let mut list = Vec::new();
        for folder in entries(&self.inner.dir.join("blobs/sha256"))? {
            for path in entries(&folder)? {
                list.extend(sized(&path, ""));
            }
        }
        list.sort_unstable();
        Ok(list)
    }

    /// All partial blobs with the bytes they have.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn list_incoming(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        let paths = entries(&self.inner.dir.join("incoming"))?;
        Ok(paths.iter().filter_map(|path| sized(path, ".part")).collect())
    }

    /// Blobs that failed verification, with their bytes.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn list_quarantined(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        let paths = entries(&self.inner.dir.join("quarantine"))?;
        Ok(paths.iter().filter_map(|path| sized(path, "")).collect())
    }

    /// Frees a blob that failed verification.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn remove_quarantined(&self, digest: &Digest) -> Result<(), BlobError> {
        self.inner.files.remove(&self.quarantine_path(digest))
    }

    /// How full the store is.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn usage(&self) -> Result<Usage, BlobError> {
        let reserved = locked(&self.inner.reserved);
        let room = self.room(&reserved)?;
        Ok(Usage {
            used_bytes: room.used,
            incoming_bytes: room.incoming,
            copies_bytes: self.list_copies()?.iter().map(|(_, size_bytes)| size_bytes).sum(),
            reserved_bytes: reserved.values().sum(),
            limit_bytes: self.inner.limit_bytes,
            free_bytes: room.in_limit.min(room.on_disk),
        })
    }
}

fn io<'a>(op: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> BlobError + 'a {
    move |source| BlobError::Io { op, path: path.to_owned(), source }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, BlobError> {
    let failed = io("list", dir);
    std::fs::read_dir(dir)
        .map_err(&failed)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(&failed))
        .collect()
}

/// The digest and length of a file that is named by its digest; foreign files are passed over.
fn sized(path: &Path, suffix: &str) -> Option<(Digest, u64)> {
    let digest = Digest::from_hex(path.file_name()?.to_str()?.strip_suffix(suffix)?).ok()?;
    Some((digest, std::fs::metadata(path).ok()?.len()))
}

fn hash(reader: &mut impl Read) -> std::io::Result<Digest> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(finish(context)),
            Ok(read) => context.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn finish(context: Context) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Digest::from_bytes(bytes)
}

#[cfg(test)]
mod tests;
