//! A copy of the regrouped weights on disk, made once and read into memory from then on.
//!
//! The file's first page says what it is a copy of: the SHA-256 of the verified model file, the
//! layouts' version, the processor family and the length. The weights behind it are sealed part by
//! part (AES-256-GCM where the processor has instructions for it, else ChaCha20-Poly1305: RFC 5116,
//! RFC 8439); the parts' tags end the file. The key is drawn from one that only the device has, 32
//! random bytes of the copy's own and the whole head (HKDF-SHA-256, RFC 5869), so it seals one copy
//! and a part's number is a nonce that never comes twice under it. An AEAD opens several times as
//! many bytes a second as SHA-256 digests, and that is most of a start.
//!
//! Invariant: not a byte of a copy is computed with unless this process opened its part, in memory
//! of its own, where nobody can change it afterwards. So whoever can write to the folder can make
//! the copy useless, and then it is made again from the model file, but cannot choose a weight: for
//! that he needs the key. A file that somebody else owns, or may write to, is not used either.
//!
//! Deliberately absent: copies of models whose digest nobody verified, and a defence against
//! those who may read the device's key or write as the device's own user.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fulmar_kernels::LAYOUT_VERSION;
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::memory::Buffer;
use fulmar_kernels::team::Team;
use ring::aead::{self, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{FlockOperation, OFlags};

use crate::backend::WeightCopies;

/// Bytes in front of the weights: one page.
const HEAD_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"fulmarw3";
const SALT_BYTES: usize = 32;
/// Where the copy's own random bytes stand: at the head's end.
const SALT_AT: usize = HEAD_BYTES - SALT_BYTES;
const TAG_BYTES: usize = 16;
/// Bytes that one thread seals or opens at a time: they stay in its cache.
const PART_BYTES: usize = 256 << 10;
/// Bytes that a new copy leaves free on the file system: the database and downloads live there too.
const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// What a stored copy has to be a copy of.
pub(super) struct Stored<'a> {
    copies: &'a WeightCopies,
    /// The part of the file's name that all copies of one model share.
    model: String,
    path: PathBuf,
    /// The head, without the random bytes at its end.
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
        head.push(b' ');
        head.extend(if seals_with_aes() {
            b"aes-256-gcm".as_slice()
        } else {
            b"chacha20-poly1305"
        });
        head.resize(SALT_AT, 0);
        Self { copies, model, path: copies.folder().join(name), head, bytes }
    }

    /// Reads the copy into memory, if it is there and whole. `runs` are the lengths of its matrices.
    pub(super) fn open(&self, team: &Team, runs: &[usize]) -> Option<Buffer> {
        let file = match open_own(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the stored weights are not used");
                return None;
            }
        };
        match self.read(&file, team, runs) {
            Ok(Some(weights)) => {
                self.remove_others();
                Some(weights)
            }
            Ok(None) => {
                tracing::warn!(path = %self.path.display(), "the stored weights are damaged: made again");
                None
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the stored weights cannot be read");
                None
            }
        }
    }

    /// The weights, if the file is this copy, every byte of it.
    fn read(&self, file: &File, team: &Team, runs: &[usize]) -> io::Result<Option<Buffer>> {
        let parts: usize = runs.iter().map(|run| run.div_ceil(PART_BYTES)).sum();
        let whole = HEAD_BYTES + self.bytes + parts * TAG_BYTES;
        if runs.iter().sum::<usize>() != self.bytes || file.metadata()?.len() != whole as u64 {
            return Ok(None);
        }
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0)?;
        let (said, salt) = head.split_at(SALT_AT);
        if said != self.head {
            return Ok(None);
        }
        let seal = Seal::new(self.copies, salt, said);
        let mut tags = vec![0; parts * TAG_BYTES];
        file.read_exact_at(&mut tags, (HEAD_BYTES + self.bytes) as u64)?;
        let mut weights = Buffer::zeroed(self.bytes)?;
        let (mut jobs, mut rest, mut at) =
            (Vec::with_capacity(parts), &mut weights[..], HEAD_BYTES);
        for run in runs {
            let (matrix, after) = rest.split_at_mut(*run);
            for part in matrix.chunks_mut(PART_BYTES) {
                let from = at;
                at += part.len();
                jobs.push((from, part));
            }
            rest = after;
        }
        let sound = AtomicBool::new(true);
        team.for_each_mut(&mut jobs, &|index, (at, part)| {
            let tag = &tags[index * TAG_BYTES..][..TAG_BYTES];
            let read = file.read_exact_at(part, *at as u64).is_ok();
            if !(read && seal.open(index, part, tag)) {
                sound.store(false, Ordering::Relaxed);
            }
        });
        Ok(sound.into_inner().then_some(weights))
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
        let mut salt = [0; SALT_BYTES];
        let filled = SystemRandom::new().fill(&mut salt);
        filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
        // A name of this process's own: what is there under it was left by an earlier one.
        let _ = fs::remove_file(&part);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&part)?;
        let seal = Seal::new(self.copies, &salt, &self.head);
        let mut copy = NewCopy { stored: self, part, file, seal, tags: Vec::new() };
        rustix::fs::flock(&copy.file, FlockOperation::NonBlockingLockExclusive)?;
        copy.file.write_all(&self.head)?;
        copy.file.write_all(&salt)?;
        Ok(copy)
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
    seal: Seal,
    tags: Vec<u8>,
}

impl NewCopy<'_> {
    /// Appends a matrix, and leaves it sealed.
    pub(super) fn write(&mut self, team: &Team, matrix: &mut [u8]) -> io::Result<()> {
        let first = self.tags.len() / TAG_BYTES;
        let mut jobs: Vec<_> = matrix.chunks_mut(PART_BYTES).map(|part| (part, None)).collect();
        let seal = &self.seal;
        team.for_each_mut(&mut jobs, &|index, (part, tag)| *tag = seal.seal(first + index, part));
        for (_, tag) in jobs {
            let tag = tag.ok_or_else(|| io::Error::other("a part of the weights is not sealed"))?;
            self.tags.extend(tag.as_ref());
        }
        self.file.write_all(matrix)
    }

    /// Writes the tags, and gives the file its name when it is durable.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let stored = self.stored;
        self.file.write_all(&self.tags)?;
        self.file.sync_all()?;
        fs::rename(&self.part, &stored.path)?;
        File::open(stored.copies.folder())?.sync_all()
    }
}

impl Drop for NewCopy<'_> {
    fn drop(&mut self) {
        // Gone already where it was finished.
        let _ = fs::remove_file(&self.part);
    }
}

/// Whether the processor has instructions for AES-GCM: without them it is the slower one by far.
fn seals_with_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// What seals and opens the parts of one copy.
struct Seal(LessSafeKey);

impl Seal {
    /// For the copy that has these random bytes and this head.
    fn new(copies: &WeightCopies, salt: &[u8], head: &[u8]) -> Self {
        let algorithm =
            if seals_with_aes() { &aead::AES_256_GCM } else { &aead::CHACHA20_POLY1305 };
        let drawn = Salt::new(HKDF_SHA256, salt).extract(copies.key());
        let mut key = [0; 32];
        // Both algorithms take keys of as many bytes as one round of HKDF-SHA-256 gives.
        let filled = drawn.expand(&[head], HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
        let key = filled.and_then(|()| UnboundKey::new(algorithm, &key));
        Self(LessSafeKey::new(key.expect("a key of 32 bytes")))
    }

    /// Seals a part in place and gives its tag; none where it is too long to be sealed.
    fn seal(&self, index: usize, part: &mut [u8]) -> Option<Tag> {
        self.0.seal_in_place_separate_tag(nonce(index), Aad::empty(), part).ok()
    }

    /// Opens a part in place. False, and what is there of no use, where it is not what was sealed.
    fn open(&self, index: usize, part: &mut [u8], tag: &[u8]) -> bool {
        let Ok(tag) = Tag::try_from(tag) else { return false };
        self.0.open_in_place_separate_tag(nonce(index), Aad::empty(), tag, part, 0..).is_ok()
    }
}

/// The nonce of a copy's part.
fn nonce(index: usize) -> Nonce {
    let mut bytes = [0; aead::NONCE_LEN];
    bytes[..8].copy_from_slice(&(index as u64).to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests;
