//! A blob on its way: written in order, hashed on the way, checked chunk by chunk, taken up again
//! where it stopped, also after a crash.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use ring::digest::{Context, SHA256};
use rustix::fs::FlockOperation;

use super::{BlobError, Blobs, finish, io, locked};
use crate::Digest;
use crate::manifest::{Chunk, ManifestFile};

/// What a blob will be when it is complete.
#[derive(Debug, Clone)]
pub struct Expected {
    /// SHA-256 of all of it.
    pub digest: Digest,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Its chunks in order, covering it exactly; may be empty where they are not known.
    pub chunks: Vec<Chunk>,
}

impl From<&ManifestFile> for Expected {
    fn from(file: &ManifestFile) -> Self {
        Self { digest: file.digest, size_bytes: file.size_bytes, chunks: file.chunk_list() }
    }
}

/// How a blob begins.
#[derive(Debug)]
pub enum Begin {
    /// It is complete already.
    Present,
    /// Bytes from [`Incoming::offset`] on are wanted.
    Incoming(Box<Incoming>),
}

/// A blob on its way. Dropped before [`Incoming::commit`], its bytes stay for the next time.
pub struct Incoming {
    blobs: Blobs,
    expected: Expected,
    path: PathBuf,
    file: File,
    offset: u64,
    whole: Context,
    chunk: Context,
    /// `whole` as it was where the chunk under way begins.
    whole_at_chunk: Context,
    /// Index of the chunk under way.
    chunk_index: usize,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("path", &self.path).field("offset", &self.offset).finish()
    }
}

impl Blobs {
    /// Begins a blob or takes it up again: what an earlier writer left is hashed anew, chunk by
    /// chunk, and cut off at the first byte that cannot be trusted. Reserves the rest. Blocks.
    ///
    /// # Errors
    /// [`BlobError::Busy`], [`BlobError::OverLimit`], [`BlobError::DiskFull`], [`BlobError::Io`].
    pub fn begin(&self, expected: &Expected) -> Result<Begin, BlobError> {
        if self.contains(&expected.digest, expected.size_bytes) {
            return Ok(Begin::Present);
        }
        let digest = expected.digest;
        let path = self.incoming_path(&digest);
        // Whoever looks for writers that are gone must not be in the way.
        let alone = self.lock_promises()?;
        let file = self.inner.files.open_incoming(&path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| BlobError::Busy { digest })?;
        drop(alone);
        // Between opening and locking, the writer before us may have renamed the file away.
        if self.contains(&digest, expected.size_bytes) {
            return Ok(Begin::Present);
        }
        let mut incoming = Box::new(Incoming {
            blobs: self.clone(),
            expected: expected.clone(),
            path,
            file,
            offset: 0,
            whole: Context::new(&SHA256),
            chunk: Context::new(&SHA256),
            whole_at_chunk: Context::new(&SHA256),
            chunk_index: 0,
        });
        incoming.resume()?;
        incoming.reserve()?;
        Ok(Begin::Incoming(incoming))
    }
}

impl Incoming {
    /// The blob that it will be.
    #[must_use]
    pub fn expected(&self) -> &Expected {
        &self.expected
    }

    /// How many bytes are there: the next write goes on from here.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Index of the chunk under way.
    pub(super) fn chunk_index(&self) -> usize {
        self.chunk_index
    }

    /// Bytes still to come.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.expected.size_bytes - self.offset
    }

    /// Throws away what is there and begins at offset 0.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn restart(&mut self) -> Result<(), BlobError> {
        self.offset = 0;
        self.whole = Context::new(&SHA256);
        self.chunk = Context::new(&SHA256);
        self.whole_at_chunk = Context::new(&SHA256);
        self.chunk_index = 0;
        self.cut_to_offset()?;
        self.keep_room()
    }

    /// Takes the next bytes. A chunk that turns out wrong is cut off again: the bytes before it
    /// stay good, and [`Incoming::offset`] says where to go on.
    ///
    /// # Errors
    /// [`BlobError::TooLong`], [`BlobError::Chunk`], [`BlobError::Io`]. After the last the writer
    /// is of no more use; begin anew.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), BlobError> {
        if bytes.len() as u64 > self.remaining() {
            let (digest, size_bytes) = (self.expected.digest, self.expected.size_bytes);
            return Err(BlobError::TooLong { digest, size_bytes });
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(self.to_chunk_end(bytes.len()));
            self.blobs.inner.files.write(&mut self.file, &self.path, now)?;
            self.take(now)?;
            bytes = later;
        }
        locked(&self.blobs.inner.reserved).insert(self.expected.digest, self.remaining());
        Ok(())
    }

    /// Makes the blob complete, durable and visible, in this order.
    ///
    /// # Errors
    /// [`BlobError::TooShort`] leaves it to be gone on with later; [`BlobError::Mismatch`] throws
    /// it away; [`BlobError::Io`].
    pub fn commit(mut self) -> Result<(), BlobError> {
        let Expected { digest, size_bytes, .. } = self.expected;
        if self.offset != size_bytes {
            return Err(BlobError::TooShort { digest, found: self.offset, size_bytes });
        }
        let whole = std::mem::replace(&mut self.whole, Context::new(&SHA256));
        let found = finish(whole);
        let files = &self.blobs.inner.files;
        if found != digest {
            files.remove(&self.path)?;
            return Err(BlobError::Mismatch { expected: digest, found });
        }
        let read_only = std::fs::Permissions::from_mode(0o444);
        self.file.set_permissions(read_only).map_err(io("protect", &self.path))?;
        files.sync(&self.file, &self.path)?;
        let hex = digest.hex();
        files.create_dirs(
            &self.blobs.inner.dir,
            &["blobs/sha256", &hex[..2]].iter().collect::<PathBuf>(),
        )?;
        files.rename(&self.path, &self.blobs.path(&digest))
    }

    /// Bytes up to the end of the chunk under way, `most` at most.
    fn to_chunk_end(&self, most: usize) -> usize {
        let Some(chunk) = self.expected.chunks.get(self.chunk_index) else { return most };
        let rest = (chunk.offset + chunk.size_bytes).saturating_sub(self.offset);
        // A chunk list with gaps must not stall the writer.
        rest.clamp(1, most as u64) as usize
    }

    /// Hashes bytes that are in the file already, and checks the chunk that they complete.
    fn take(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.whole.update(bytes);
        self.chunk.update(bytes);
        self.offset += bytes.len() as u64;
        let Some(chunk) = self.expected.chunks.get(self.chunk_index).copied() else {
            return Ok(());
        };
        if self.offset < chunk.offset + chunk.size_bytes {
            return Ok(());
        }
        let found = finish(std::mem::replace(&mut self.chunk, Context::new(&SHA256)));
        if found == chunk.digest {
            self.whole_at_chunk = self.whole.clone();
            self.chunk_index += 1;
            return Ok(());
        }
        self.whole = self.whole_at_chunk.clone();
        self.offset = chunk.offset;
        self.cut_to_offset()?;
        self.keep_room()?;
        Err(BlobError::Chunk {
            digest: self.expected.digest,
            index: self.chunk_index,
            offset: chunk.offset,
            expected: chunk.digest,
            found,
        })
    }

    fn cut_to_offset(&mut self) -> Result<(), BlobError> {
        self.blobs.inner.files.truncate(&self.file, &self.path, self.offset)?;
        self.file.seek(SeekFrom::Start(self.offset)).map_err(io("seek in", &self.path))?;
        Ok(())
    }

    /// Hashes what an earlier writer left. It may not have been synced: a lost page shows as a
    /// wrong chunk, and all from there on is cut off.
    fn resume(&mut self) -> Result<(), BlobError> {
        let left = self.file.metadata().map_err(io("stat", &self.path))?.len();
        let usable = left.min(self.expected.size_bytes);
        let mut buffer = vec![0; 256 << 10];
        while self.offset < usable {
            let most = (usable - self.offset).min(buffer.len() as u64) as usize;
            let want = self.to_chunk_end(most);
            self.file.read_exact(&mut buffer[..want]).map_err(io("read", &self.path))?;
            match self.take(&buffer[..want]) {
                Ok(()) => {}
                Err(error @ BlobError::Chunk { .. }) => {
                    tracing::warn!(%error, "taking up a blob from its last good chunk");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        if left > usable { self.cut_to_offset() } else { Ok(()) }
    }

    /// Promises the rest of the bytes to this writer, within the store's limit and the disk's.
    fn reserve(&mut self) -> Result<(), BlobError> {
        let (digest, needed) = (self.expected.digest, self.remaining());
        let blobs = &self.blobs;
        // Both held over the check, so that no two writers are promised the same room.
        let mut reserved = locked(&blobs.inner.reserved);
        let _alone = blobs.lock_promises()?;
        blobs.end_promises_of_the_dead(&reserved)?;
        let room = blobs.room(&reserved)?;
        if needed > room.in_limit {
            let (limit, free) = (blobs.inner.limit_bytes, room.in_limit);
            return Err(BlobError::OverLimit { digest, needed, limit, free });
        }
        if needed > room.on_disk {
            return Err(BlobError::DiskFull { digest, needed, free: blobs.disk_free()? });
        }
        blobs.inner.files.reserve(&self.file, &self.path, self.offset, needed)?;
        reserved.insert(digest, needed);
        Ok(())
    }

    /// Reserves again what cutting the file has given back to the file system. Nothing before
    /// [`Incoming::reserve`] has promised it.
    fn keep_room(&self) -> Result<(), BlobError> {
        let (digest, remaining) = (&self.expected.digest, self.remaining());
        let mut reserved = locked(&self.blobs.inner.reserved);
        let Some(promised) = reserved.get_mut(digest) else { return Ok(()) };
        *promised = remaining;
        self.blobs.inner.files.reserve(&self.file, &self.path, self.offset, remaining)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let promised = locked(&self.blobs.inner.reserved).remove(&self.expected.digest);
        // Cutting a file at its end gives back what is reserved behind it. Where that fails, the next
        // writer of any blob does it.
        if promised.is_some_and(|bytes| bytes > 0) {
            let _ = self.blobs.inner.files.truncate(&self.file, &self.path, self.offset);
        }
    }
}
