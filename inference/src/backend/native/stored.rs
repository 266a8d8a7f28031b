//! A copy of the regrouped weights on disk, made once and mapped from then on.
//!
//! The file's first page says what it is a copy of: the SHA-256 of the verified model file, the
//! layouts' version, the processor family and the length. It ends with an HMAC-SHA-256 over all
//! of that and over the SHA-256 of every part of the rest, with a key that only the device has.
//!
//! Invariant: not a byte of a copy is computed with before this process has checked the HMAC over
//! all of it. So whoever can write to the folder can make the copy useless, and then it is made
//! again from the model file, but cannot choose a weight: for that he needs the key. A file that
//! somebody else owns, or may write to, is not used either: it could change after the check.
//!
//! Deliberately absent: copies of models whose digest nobody verified, and a defence against
//! those who may read the device's key or write as the device's own user.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fulmar_kernels::LAYOUT_VERSION;
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::mapped::MappedFile;
use fulmar_kernels::team::Team;
use ring::{digest, hmac};
use rustix::fs::{FlockOperation, OFlags};

use crate::backend::WeightCopies;

/// Bytes in front of the weights: one page.
pub(super) const HEAD_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"fulmarw2";
/// Where the HMAC stands: at the head's end.
const MAC_AT: usize = HEAD_BYTES - digest::SHA256_OUTPUT_LEN;
/// Bytes that one thread hashes at a time.
const PART_BYTES: usize = 1 << 20;
/// Bytes that a new copy leaves free on the file system: the database and downloads live there too.
const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// What a stored copy has to be a copy of.
pub(super) struct Stored<'a> {
    copies: &'a WeightCopies,
    /// The part of the file's name that all copies of one model share.
    model: String,
    path: PathBuf,
    /// The head, without the HMAC at its end.
    head: Vec<u8>,
    bytes: usize,
}

impl<'a> Stored<'a> {
    /// The copy of `bytes` of regrouped weights of the model file that hashed to `sha256`.
    pub(super) fn new(copies: &'a WeightCopies, sha256: &[u8; 32], isa: Isa, bytes: usize) -> Self {
        let mut model: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        model.push('-');
        let name = format!("{model}{}-{LAYOUT_VERSION}.weights", isa.name());
        let mut head = MAGIC.to_vec();
        head.extend(sha256);
        head.extend(LAYOUT_VERSION.to_le_bytes());
        head.extend((bytes as u64).to_le_bytes());
        head.extend(isa.name().as_bytes());
        head.resize(MAC_AT, 0);
        Self { copies, model, path: copies.folder().join(name), head, bytes }
    }

    /// Maps the copy, if it is there and whole. `runs` are the lengths of its matrices.
    pub(super) fn open(&self, team: &Team, runs: &[usize]) -> Option<MappedFile> {
        let file = match open_own(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the stored weights are not used");
                return None;
            }
        };
        let map = MappedFile::open(&file).ok()?;
        if !self.holds(&map, team, runs) {
            tracing::warn!(path = %self.path.display(), "the stored weights are damaged: made again");
            return None;
        }
        self.remove_others();
        Some(map)
    }

    /// Whether the map is this copy, every byte of it.
    fn holds(&self, map: &MappedFile, team: &Team, runs: &[usize]) -> bool {
        if map.len() != HEAD_BYTES + self.bytes || !map.starts_with(&self.head) {
            return false;
        }
        map.advise_huge_pages();
        map.prefetch();
        let (head, mut rest) = map.split_at(HEAD_BYTES);
        let mut matrices = Vec::with_capacity(runs.len());
        for run in runs {
            let Some((bytes, after)) = rest.split_at_checked(*run) else { return false };
            matrices.push(bytes);
            rest = after;
        }
        let mut parts = Parts::default();
        parts.add(team, &matrices);
        let message = parts.message(&self.head);
        rest.is_empty() && hmac::verify(self.copies.key(), &message, &head[MAC_AT..]).is_ok()
    }

    /// Starts a new copy, to be filled from the first matrix on.
    pub(super) fn create(&self) -> io::Result<NewCopy<'_>> {
        let folder = self.copies.folder();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        self.remove_others();
        let part = self.path.with_extension(format!("{}.part", std::process::id()));
        let stat = rustix::fs::statvfs(folder)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed = (HEAD_BYTES + self.bytes) as u64;
        if free < needed + DISK_RESERVE_BYTES {
            let folder = folder.display();
            return Err(io::Error::other(format!(
                "{folder} needs {needed} bytes for them: the file system has {free} bytes free, \
                 of which {DISK_RESERVE_BYTES} are kept; make room or run fulmar gc"
            )));
        }
        // A name of this process's own: what is there under it was left by an earlier one.
        let _ = fs::remove_file(&part);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let mut file = options.open(&part)?;
        let copy = |file| NewCopy { stored: self, part, file, parts: Parts::default() };
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&[0; HEAD_BYTES])?;
        Ok(copy(file))
    }

    /// Removes copies of the same model for other layouts or processors, and what is left of
    /// those that were never finished.
    fn remove_others(&self) {
        let Ok(entries) = fs::read_dir(self.copies.folder()) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with(&self.model) || path == self.path || in_work(&path) {
                continue;
            }
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an old copy of weights stays");
            }
        }
    }
}

/// Whether somebody is writing the file now.
fn in_work(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "part")
        && File::open(path).is_ok_and(|file| {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
        })
}

/// Opens a file that nobody but this user can change.
fn open_own(path: &Path) -> io::Result<File> {
    let no_link = OFlags::NOFOLLOW.bits().cast_signed();
    let file = File::options().read(true).custom_flags(no_link).open(path)?;
    let metadata = file.metadata()?;
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != user {
        let reason = format!("it belongs to user {owner}, expected {user}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o022 != 0 {
        let reason = format!("others may write to it (mode {mode:03o}), expected 600");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    Ok(file)
}

/// A copy that is being written. Dropped without [`NewCopy::finish`], it is removed.
pub(super) struct NewCopy<'a> {
    stored: &'a Stored<'a>,
    part: PathBuf,
    file: File,
    parts: Parts,
}

impl NewCopy<'_> {
    /// Appends a matrix.
    pub(super) fn write(&mut self, team: &Team, bytes: &[u8]) -> io::Result<()> {
        self.parts.add(team, &[bytes]);
        self.file.write_all(bytes)
    }

    /// Writes the head, and gives the file its name when it is durable.
    pub(super) fn finish(mut self) -> io::Result<MappedFile> {
        let stored = self.stored;
        let mac = hmac::sign(stored.copies.key(), &self.parts.message(&stored.head));
        let head = [&stored.head, mac.as_ref()].concat();
        io::Seek::rewind(&mut self.file)?;
        self.file.write_all(&head)?;
        self.file.sync_all()?;
        fs::rename(&self.part, &stored.path)?;
        File::open(stored.copies.folder())?.sync_all()?;
        let map = MappedFile::open(&self.file)?;
        if map.len() != HEAD_BYTES + stored.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        map.advise_huge_pages();
        Ok(map)
    }
}

impl Drop for NewCopy<'_> {
    fn drop(&mut self) {
        // Gone already where it was finished.
        let _ = fs::remove_file(&self.part);
    }
}

/// SHA-256 of every part of the weights, in order.
#[derive(Default)]
struct Parts(Vec<u8>);

impl Parts {
    /// Adds matrices, on all threads: one by one they would leave most threads waiting, since a
    /// matrix is a few parts long.
    fn add(&mut self, team: &Team, matrices: &[&[u8]]) {
        let parts: Vec<&[u8]> = matrices.iter().flat_map(|m| m.chunks(PART_BYTES)).collect();
        let digests: Vec<OnceLock<digest::Digest>> =
            parts.iter().map(|_| OnceLock::new()).collect();
        team.for_each(parts.len(), 1, &|_, index| {
            digests[index].get_or_init(|| digest::digest(&digest::SHA256, parts[index]));
        });
        // `for_each` has visited every index.
        self.0.extend(digests.iter().filter_map(OnceLock::get).flat_map(AsRef::as_ref));
    }

    /// What the HMAC is over: a head of fixed length, then the digests.
    fn message(&self, head: &[u8]) -> Vec<u8> {
        [head, &self.0].concat()
    }
}

#[cfg(test)]
mod tests;
