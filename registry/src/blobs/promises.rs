//! Room that was promised to writers and is not written yet, by this process and by others.
//!
//! This process knows its own promises. Those of others it sees on the file system: each writer
//! reserves its room behind its incoming file's end (`fallocate`), and gives back what it leaves.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::FlockOperation;

use super::{BlobError, Blobs, DISK_RESERVE_BYTES, io};
use crate::Digest;

/// Bytes used and bytes left.
pub(super) struct Room {
    pub(super) used: u64,
    /// Bytes of partial blobs.
    pub(super) incoming: u64,
    pub(super) in_limit: u64,
    pub(super) on_disk: u64,
}

impl Blobs {
    /// What may still be promised beside `reserved`.
    pub(super) fn room(&self, reserved: &HashMap<Digest, u64>) -> Result<Room, BlobError> {
        let sum = |list: Vec<(Digest, u64)>| list.iter().map(|(_, size)| size).sum::<u64>();
        let incoming = self.list_incoming()?;
        let promised_elsewhere: u64 = incoming
            .iter()
            .filter(|(digest, _)| !reserved.contains_key(digest))
            .map(|(digest, _)| self.promised(digest))
            .sum();
        let (used, incoming) = (sum(self.list()?), sum(incoming));
        let reserved: u64 = reserved.values().sum();
        let in_limit =
            self.inner.limit_bytes.saturating_sub(used + incoming + reserved + promised_elsewhere);
        // Where the file system reserves for us, its promises are counted twice; that errs on the
        // side of keeping room.
        let on_disk = self.disk_free()?.saturating_sub(DISK_RESERVE_BYTES).saturating_sub(reserved);
        Ok(Room { used, incoming, in_limit, on_disk })
    }

    pub(super) fn disk_free(&self) -> Result<u64, BlobError> {
        let stat = rustix::fs::statvfs(&self.inner.dir)
            .map_err(|errno| io("stat file system of", &self.inner.dir)(errno.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Bytes that a partial blob has on the file system behind those that are written of it.
    pub(super) fn promised(&self, digest: &Digest) -> u64 {
        std::fs::metadata(self.incoming_path(digest)).map_or(0, |meta| {
            // `st_blocks` counts 512 bytes each, whatever the file system's blocks are (stat(3type)).
            let written = meta.len().next_multiple_of(meta.blksize().max(1));
            (meta.blocks() * 512).saturating_sub(written)
        })
    }

    /// Gives back what is reserved behind partial blobs that nobody writes any more: their writers
    /// were killed. What was written stays. The promises must be locked.
    pub(super) fn end_promises_of_the_dead(
        &self,
        ours: &HashMap<Digest, u64>,
    ) -> Result<(), BlobError> {
        for (digest, _) in self.list_incoming()? {
            if ours.contains_key(&digest) || self.promised(&digest) == 0 {
                continue;
            }
            let path = self.incoming_path(&digest);
            // Collected meanwhile, or not ours to write: nothing to give back here.
            let Ok(file) = File::options().write(true).open(&path) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let len = file.metadata().map_err(io("stat", &path))?.len();
                self.inner.files.truncate(&file, &path, len)?;
            }
        }
        Ok(())
    }

    /// While it is held, no other process is promised room in this store.
    pub(super) fn lock_promises(&self) -> Result<File, BlobError> {
        let dir = self.inner.dir.join("incoming");
        let folder = File::open(&dir).map_err(io("open", &dir))?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)
            .map_err(|errno| io("lock", &dir)(errno.into()))?;
        Ok(folder)
    }
}
