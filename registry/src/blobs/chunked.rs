//! Verification by chunks: the same bytes as the whole digest's, but on all processors at once.
//!
//! A signed manifest names a file's digest and the digests of its chunks, so either says whether
//! the bytes are those that were signed. What was verified by chunks counts for that list of chunks
//! alone: another manifest that names the same digest with other chunks is verified anew.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ring::digest::{Context, SHA256};

use super::{BlobError, Blobs, Identity, VerifiedFile, io, locked};
use crate::Digest;
use crate::manifest::{Chunk, ManifestFile};

/// Files smaller than this are hashed as a whole: threads would cost more than they save.
const PARALLEL_BYTES_MIN: u64 = 16 << 20;
/// Threads that hash at most: beyond that the memory is the limit.
const THREADS_MAX: usize = 16;

impl Blobs {
    /// [`Blobs::open_verified`] for a file that a verified manifest describes: by its chunks on all
    /// processors where it is large. What does not hash as said is left to
    /// [`Blobs::open_verified`], which judges by the whole digest.
    ///
    /// # Errors
    /// As [`Blobs::open_verified`].
    pub fn open_verified_file(&self, file: &ManifestFile) -> Result<VerifiedFile, BlobError> {
        if file.size_bytes < PARALLEL_BYTES_MIN {
            return self.open_verified(&file.digest);
        }
        let (digest, path) = (file.digest, self.path(&file.digest));
        let open = self.open_blob(&digest, &path)?;
        let before = Identity::of(&open).map_err(io("stat", &path))?;
        let list = list_digest(file);
        let known = locked(&self.inner.chunked).get(&digest) == Some(&(list, before));
        if !known {
            let chunks = file.chunk_list();
            if !cover(&chunks, before.size, file) || !hold(&open, &chunks) {
                return self.open_verified(&digest);
            }
            // Bytes that changed while they were hashed prove nothing.
            if Identity::of(&open).map_err(io("stat", &path))? != before {
                return Err(BlobError::Unsteady { digest });
            }
            locked(&self.inner.chunked).insert(digest, (list, before));
        }
        Ok(VerifiedFile { file: open, digest, size_bytes: before.size, path })
    }
}

impl Blobs {
    /// Opens a file that a verified manifest describes, to be verified chunk by chunk before its
    /// bytes are used. One too small for that, and one whose chunks do not cover it, is verified
    /// whole at once.
    ///
    /// # Errors
    /// As [`Blobs::open_verified`].
    pub fn open_in_parts(&self, file: &ManifestFile) -> Result<FileInParts, BlobError> {
        let (digest, path) = (file.digest, self.path(&file.digest));
        let open = self.open_blob(&digest, &path)?;
        let identity = Identity::of(&open).map_err(io("stat", &path))?;
        let chunks = file.chunk_list();
        let large = file.size_bytes >= PARALLEL_BYTES_MIN;
        let known =
            locked(&self.inner.chunked).get(&digest) == Some(&(list_digest(file), identity));
        let in_parts = large && !known && cover(&chunks, identity.size, file);
        let open = if in_parts { open } else { self.open_verified_file(file)?.file };
        let sound = chunks.iter().map(|_| AtomicBool::new(!in_parts)).collect();
        let blobs = self.clone();
        let parts = Parts { blobs, file: open, path, digest, identity, chunks, sound };
        Ok(FileInParts { inner: Arc::new(parts) })
    }
}

/// An open blob of which this process verifies the chunks that are used, before they are used.
/// Clones share what was verified.
#[derive(Debug, Clone)]
pub struct FileInParts {
    inner: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    blobs: Blobs,
    file: File,
    path: PathBuf,
    digest: Digest,
    identity: Identity,
    /// In the file's order, without gaps.
    chunks: Vec<Chunk>,
    /// Which of them hashed as the manifest says.
    sound: Vec<AtomicBool>,
}

impl FileInParts {
    /// The digest that names the blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// Its length.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.inner.identity.size
    }

    /// Where it lies, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The open file. Only ranges that [`FileInParts::verify`] took may be used.
    ///
    /// # Errors
    /// The system's, when it has no more files to give.
    pub fn file(&self) -> std::io::Result<File> {
        self.inner.file.try_clone()
    }

    /// Verifies the chunks that cover some ranges of bytes, on all processors, those once verified
    /// not again.
    ///
    /// # Errors
    /// As [`Blobs::open_verified`], which judges by the whole digest where a chunk does not hold;
    /// the blob is in quarantine then.
    pub fn verify(&self, ranges: &[Range<u64>]) -> Result<(), BlobError> {
        let Parts { blobs, file, path, digest, identity, chunks, sound } = &*self.inner;
        let wanted: Vec<usize> = (0..chunks.len())
            .filter(|index| !sound[*index].load(Ordering::Acquire))
            .filter(|index| {
                let (from, to) =
                    (chunks[*index].offset, chunks[*index].offset + chunks[*index].size_bytes);
                ranges.iter().any(|range| range.start < to && from < range.end)
            })
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let list: Vec<Chunk> = wanted.iter().map(|index| chunks[*index]).collect();
        let held = hold(file, &list);
        // Bytes that changed while they were hashed prove nothing.
        if Identity::of(file).map_err(io("stat", path))? != *identity {
            return Err(BlobError::Unsteady { digest: *digest });
        }
        if !held {
            // The whole digest has the last word, on the file that is there under the name now.
            let judged = blobs.open_verified(digest)?;
            if Identity::of(&judged.file).map_err(io("stat", path))? != *identity {
                return Err(BlobError::Unsteady { digest: *digest });
            }
            sound.iter().for_each(|sound| sound.store(true, Ordering::Release));
        }
        wanted.iter().for_each(|index| sound[*index].store(true, Ordering::Release));
        Ok(())
    }
}

/// Whether a file's chunks are all of it, and it is as long as its manifest says.
fn cover(chunks: &[Chunk], size_bytes: u64, file: &ManifestFile) -> bool {
    size_bytes == file.size_bytes
        && chunks.iter().map(|chunk| chunk.size_bytes).sum::<u64>() == size_bytes
}

/// A digest of what a manifest says about a file's chunks.
fn list_digest(file: &ManifestFile) -> Digest {
    let mut bytes = Vec::new();
    for chunk in file.chunk_list() {
        bytes.extend(chunk.size_bytes.to_le_bytes());
        bytes.extend(chunk.digest.as_bytes());
    }
    Digest::of(&bytes)
}

/// Whether every chunk hashes as said. An error while reading is a no.
fn hold(file: &File, chunks: &[Chunk]) -> bool {
    let (next, sound) = (AtomicUsize::new(0), AtomicBool::new(true));
    let work = || {
        let mut buffer = vec![0; 256 << 10];
        while sound.load(Ordering::Relaxed) {
            let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            if !matches!(hash(file, chunk, &mut buffer), Ok(found) if found == chunk.digest) {
                sound.store(false, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 1..threads.min(THREADS_MAX).min(chunks.len()) {
            scope.spawn(work);
        }
        work();
    });
    // The scope has joined all threads; one that panicked would have panicked here.
    sound.into_inner() && next.into_inner() >= chunks.len()
}

fn hash(file: &File, chunk: &Chunk, buffer: &mut [u8]) -> std::io::Result<Digest> {
    let mut context = Context::new(&SHA256);
    let (mut at, end) = (chunk.offset, chunk.offset + chunk.size_bytes);
    while at < end {
        let room = (end - at).min(buffer.len() as u64) as usize;
        match file.read_at(&mut buffer[..room], at) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                context.update(&buffer[..read]);
                at += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(super::finish(context))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init)] // One range is a list of ranges as well.
    use super::*;
    use crate::manifest::FileRole;

    fn described(bytes: &[u8]) -> ManifestFile {
        let (role, media_type) = (FileRole::Weights, "application/vnd.fulmar.gguf");
        ManifestFile::describe(&mut &bytes[..], Vec::new(), role, "w.gguf", media_type).unwrap()
    }

    fn large() -> Vec<u8> {
        (0..PARALLEL_BYTES_MIN as usize + 12_345).map(|i| (i * 7 / 3) as u8).collect()
    }

    #[test]
    fn a_large_file_is_verified_by_chunks_and_a_flipped_bit_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
        let bytes = large();
        let file = described(&bytes);
        blobs.put(&bytes).unwrap();
        assert_eq!(blobs.open_verified_file(&file).unwrap().digest, file.digest);
        assert!(locked(&blobs.inner.chunked).contains_key(&file.digest));
        blobs.open_verified_file(&file).unwrap();
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(blobs.path(&file.digest), &damaged).unwrap();
            let refused = blobs.open_verified_file(&file);
            assert!(matches!(refused, Err(BlobError::Corrupt { .. })), "byte {at}");
            blobs.put(&bytes).unwrap();
            blobs.open_verified_file(&file).unwrap();
        }
    }

    #[test]
    fn of_a_file_in_parts_what_is_asked_for_is_verified_and_a_flipped_bit_in_it_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
        let bytes = large();
        let file = described(&bytes);
        blobs.put(&bytes).unwrap();
        let path = blobs.path(&file.digest);
        let last = bytes.len() as u64 - 1;
        let mut damaged = bytes.clone();
        damaged[last as usize] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let parts = blobs.open_in_parts(&file).unwrap();
        parts.verify(&[0..10, 70..71]).unwrap();
        assert_eq!(parts.inner.sound.iter().filter(|s| s.load(Ordering::Relaxed)).count(), 1);
        let refused = parts.verify(&[5..6, last..last + 1]);
        assert!(matches!(refused, Err(BlobError::Corrupt { .. })), "{refused:?}");
        assert!(!path.exists(), "the damaged file is in quarantine");
        blobs.put(&bytes).unwrap();
        let parts = blobs.open_in_parts(&file).unwrap();
        parts.verify(&[0..last + 1]).unwrap();
        assert!(parts.inner.sound.iter().all(|s| s.load(Ordering::Relaxed)));
    }

    #[test]
    fn a_file_in_parts_that_changes_after_it_was_opened_is_unsteady() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
        let bytes = large();
        let file = described(&bytes);
        blobs.put(&bytes).unwrap();
        let parts = blobs.open_in_parts(&file).unwrap();
        std::fs::write(blobs.path(&file.digest), [&bytes[..], &[0]].concat()).unwrap();
        let refused = parts.verify(&[0..1]);
        assert!(matches!(refused, Err(BlobError::Unsteady { .. })), "{refused:?}");
    }

    #[test]
    fn a_small_file_in_parts_is_verified_when_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
        let file = described(b"small");
        blobs.put(b"small").unwrap();
        blobs.open_in_parts(&file).unwrap().verify(&[0..5]).unwrap();
        std::fs::write(blobs.path(&file.digest), b"smell").unwrap();
        let refused = blobs.open_in_parts(&file);
        assert!(matches!(refused, Err(BlobError::Corrupt { .. })));
    }

    #[test]
    fn chunks_that_another_manifest_signed_say_nothing_about_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
        let bytes = large();
        blobs.put(&bytes).unwrap();
        let mut other = bytes.clone();
        other[99] ^= 1;
        // Names the first file's digest over the other one's chunks, and finds those on the disk.
        let lying = ManifestFile { digest: Digest::of(&bytes), ..described(&other) };
        std::fs::write(blobs.path(&lying.digest), &other).unwrap();
        blobs.open_verified_file(&lying).unwrap();
        let refused = blobs.open_verified_file(&described(&bytes));
        assert!(matches!(refused, Err(BlobError::Corrupt { .. })));
    }
}
