//! Chunks: pieces of a file with a digest each, cut at tensor borders where those are known.

use std::io::Read;

use ring::digest::{Context, SHA256};

use super::{FileRole, ManifestFile};
use crate::Digest;

/// Longest chunk accepted in a manifest, in bytes.
pub const CHUNK_BYTES_MAX: u64 = 64 << 20;
/// Longest chunk made here, in bytes.
const CHUNK_BYTES: u64 = 4 << 20;
/// A tensor border ends a chunk when it has at least that many bytes.
pub const CHUNK_BYTES_MIN: u64 = 1 << 20;

/// One chunk with its place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// First byte's place.
    pub offset: u64,
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the bytes.
    pub digest: Digest,
}

/// Hashes a file as a whole and chunk by chunk in one pass.
pub struct ChunkHasher {
    whole: Context,
    chunk: Context,
    chunk_len: u64,
    size_bytes: u64,
    borders: std::iter::Peekable<std::vec::IntoIter<u64>>,
    /// Where the first tensor begins: what is before it is a chunk of its own, so that a longer
    /// header moves no other cut.
    first: Option<u64>,
    digests: Vec<Digest>,
    sizes: Vec<u64>,
}

impl std::fmt::Debug for ChunkHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkHasher").field("size_bytes", &self.size_bytes).finish()
    }
}

impl ChunkHasher {
    /// `borders` are the places where tensors begin, in bytes from the file's start; may be empty.
    #[must_use]
    pub fn new(mut borders: Vec<u64>) -> Self {
        borders.sort_unstable();
        borders.dedup();
        Self {
            whole: Context::new(&SHA256),
            chunk: Context::new(&SHA256),
            chunk_len: 0,
            size_bytes: 0,
            first: borders.first().copied(),
            borders: borders.into_iter().peekable(),
            digests: Vec::new(),
            sizes: Vec::new(),
        }
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        while !bytes.is_empty() {
            let take = self.room().min(bytes.len() as u64) as usize;
            let (now, later) = bytes.split_at(take);
            self.chunk.update(now);
            self.chunk_len += take as u64;
            self.size_bytes += take as u64;
            bytes = later;
            if self.at_cut() {
                self.cut();
            }
        }
    }

    /// Bytes until the next place where a cut may fall.
    fn room(&mut self) -> u64 {
        while self.borders.next_if(|border| *border <= self.size_bytes).is_some() {}
        let to_limit = CHUNK_BYTES - self.chunk_len;
        match self.borders.peek() {
            Some(border) => to_limit.min(border - self.size_bytes),
            None => to_limit,
        }
    }

    fn at_cut(&mut self) -> bool {
        self.chunk_len == CHUNK_BYTES
            || self.first == Some(self.size_bytes)
            || (self.chunk_len >= CHUNK_BYTES_MIN && self.borders.peek() == Some(&self.size_bytes))
    }

    fn cut(&mut self) {
        let done = std::mem::replace(&mut self.chunk, Context::new(&SHA256)).finish();
        self.digests.push(digest(done.as_ref()));
        self.sizes.push(std::mem::take(&mut self.chunk_len));
    }

    /// Ends the file and describes it for a manifest.
    #[must_use]
    pub fn finish(mut self, role: FileRole, path: &str, media_type: &str) -> ManifestFile {
        if self.chunk_len > 0 {
            self.cut();
        }
        let all_but_last = self.sizes.split_last().map_or(&[][..], |(_, rest)| rest);
        let even = all_but_last.iter().all(|size| *size == CHUNK_BYTES);
        ManifestFile {
            role,
            path: path.to_owned(),
            media_type: media_type.to_owned(),
            size_bytes: self.size_bytes,
            digest: digest(self.whole.finish().as_ref()),
            chunk_bytes: CHUNK_BYTES,
            chunk_sizes: if even { Vec::new() } else { self.sizes },
            chunks: self.digests,
        }
    }
}

impl ManifestFile {
    /// Describes a file by reading all of it. `borders`: see [`ChunkHasher::new`].
    ///
    /// # Errors
    /// What reading returned.
    pub fn describe(
        reader: &mut impl Read,
        borders: Vec<u64>,
        role: FileRole,
        path: &str,
        media_type: &str,
    ) -> std::io::Result<Self> {
        let mut hasher = ChunkHasher::new(borders);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish(role, path, media_type)),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&buffer[..read]);
        }
    }
}

/// SHA-256 output is always 32 bytes.
fn digest(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(bytes);
    Digest::from_bytes(out)
}

/// Chunk digests are written as bare hex: the algorithm is the format's.
pub(super) mod bare_hex {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::Digest;

    pub(crate) fn serialize<S: Serializer>(list: &[Digest], to: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<String> = list.iter().map(Digest::hex).collect();
        texts.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Digest>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|t| Digest::from_hex(t).map_err(serde::de::Error::custom)).collect()
    }
}
