//! The file operations that blobs are made of; the one place where failures are injected.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use rustix::fs::FallocateFlags;

use super::{BlobError, Faults, Op, io};

pub(super) struct Files {
    faults: Faults,
}

impl Files {
    pub(super) fn new(faults: Faults) -> Self {
        Self { faults }
    }

    fn run<T>(
        &self,
        op: Op,
        words: &'static str,
        path: &Path,
        work: impl FnOnce() -> std::io::Result<T>,
    ) -> Result<T, BlobError> {
        self.faults.check(op).and_then(|()| work()).map_err(io(words, path))
    }

    /// Makes `base/sub` durably: every folder made is synced into its parent.
    pub(super) fn create_dirs(&self, base: &Path, sub: &Path) -> Result<(), BlobError> {
        if !base.is_dir() {
            self.run(Op::Create, "create folder", base, || std::fs::create_dir_all(base))?;
        }
        let mut path = base.to_owned();
        for part in sub.components() {
            let parent = path.clone();
            path.push(part);
            if path.is_dir() {
                continue;
            }
            self.run(Op::Create, "create folder", &path, || match std::fs::create_dir(&path) {
                // Another writer was faster.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                other => other,
            })?;
            self.sync_dir(&parent)?;
        }
        Ok(())
    }

    pub(super) fn open_incoming(&self, path: &Path) -> Result<File, BlobError> {
        self.run(Op::Create, "create", path, || {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        })
    }

    /// Reserves room past the file's end, without changing its length. File systems that cannot
    /// do so are left to fail when they are full.
    pub(super) fn reserve(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        len: u64,
    ) -> Result<(), BlobError> {
        if len == 0 {
            return Ok(());
        }
        self.run(Op::Reserve, "reserve room in", path, || {
            match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        })
    }

    pub(super) fn write(
        &self,
        file: &mut File,
        path: &Path,
        bytes: &[u8],
    ) -> Result<(), BlobError> {
        self.run(Op::Write, "write", path, || file.write_all(bytes))
    }

    pub(super) fn truncate(&self, file: &File, path: &Path, len: u64) -> Result<(), BlobError> {
        self.run(Op::Truncate, "cut", path, || file.set_len(len))
    }

    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<(), BlobError> {
        self.run(Op::Sync, "sync", path, || file.sync_all())
    }

    /// Renames and makes the name durable in its folder.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), BlobError> {
        self.run(Op::Rename, "rename", from, || std::fs::rename(from, to))?;
        to.parent().map_or(Ok(()), |dir| self.sync_dir(dir))
    }

    /// A file that is not there is no error.
    pub(super) fn remove(&self, path: &Path) -> Result<(), BlobError> {
        self.run(Op::Remove, "remove", path, || match std::fs::remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        })
    }

    pub(super) fn sync_dir(&self, dir: &Path) -> Result<(), BlobError> {
        self.run(Op::SyncDir, "sync folder", dir, || File::open(dir)?.sync_all())
    }
}
