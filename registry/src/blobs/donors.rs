//! Chunks that are on the device already: in another release's blob, or in the sound parts of one
//! that went to quarantine. An update fetches only what has changed, a repair only what is broken.
//!
//! A donor is not trusted: what is taken from it hashes to what the manifest says, like any bytes
//! from a network.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::{BlobError, Blobs, Expected, Incoming};
use crate::Digest;
use crate::manifest::{Chunk, ManifestFile};

/// Where chunks can be had on the device, by their digests.
#[derive(Debug, Default)]
pub struct Donors {
    chunks: HashMap<Digest, (PathBuf, Chunk)>,
}

impl Donors {
    /// Of a blob that is to come: the files of installed releases, and what is in quarantine of
    /// the blob itself.
    #[must_use]
    pub fn of<'a>(
        blobs: &Blobs,
        expected: &Expected,
        installed: impl IntoIterator<Item = &'a ManifestFile>,
    ) -> Self {
        let wanted: std::collections::HashSet<Digest> =
            expected.chunks.iter().map(|chunk| chunk.digest).collect();
        let mut chunks = HashMap::new();
        let mut give = |path: PathBuf, list: Vec<Chunk>| {
            if path.is_file() {
                let useful = list.into_iter().filter(|chunk| wanted.contains(&chunk.digest));
                chunks.extend(useful.map(|chunk| (chunk.digest, (path.clone(), chunk))));
            }
        };
        for file in installed {
            give(blobs.path(&file.digest), file.chunk_list());
        }
        give(blobs.quarantine_path(&expected.digest), expected.chunks.clone());
        Self { chunks }
    }

    /// Bytes of a blob that have to come over a network, where the first `present` are there.
    #[must_use]
    pub fn missing_bytes(&self, expected: &Expected, present: u64) -> u64 {
        if expected.chunks.is_empty() {
            return expected.size_bytes.saturating_sub(present);
        }
        let is_missing = |chunk: &&Chunk| {
            chunk.offset + chunk.size_bytes > present && !self.chunks.contains_key(&chunk.digest)
        };
        let begun = |chunk: &Chunk| chunk.size_bytes - present.saturating_sub(chunk.offset);
        expected.chunks.iter().filter(is_missing).map(begun).sum()
    }

    /// The bytes of a chunk, if a donor has them and they are sound.
    fn read(&self, chunk: &Chunk) -> Option<Vec<u8>> {
        let (path, place) = self.chunks.get(&chunk.digest)?;
        if place.size_bytes != chunk.size_bytes {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(chunk.size_bytes).ok()?];
        File::open(path).and_then(|file| file.read_exact_at(&mut bytes, place.offset)).ok()?;
        (Digest::of(&bytes) == chunk.digest).then_some(bytes)
    }
}

impl Incoming {
    /// Takes the chunks that donors have, up to the first that none has. Returns their bytes.
    /// Blocks.
    ///
    /// # Errors
    /// As [`Incoming::write`].
    pub fn fill(&mut self, donors: &Donors) -> Result<u64, BlobError> {
        let from = self.offset();
        while let Some(chunk) = self.next_chunk() {
            let Some(bytes) = donors.read(&chunk) else { break };
            self.write(&bytes)?;
        }
        Ok(self.offset() - from)
    }

    /// Where a fetch from here may end: where the next chunk begins that a donor should have.
    #[must_use]
    pub fn gap_end(&self, donors: &Donors) -> u64 {
        let expected = self.expected();
        let later = expected.chunks.iter().filter(|chunk| chunk.offset > self.offset());
        let given = later.into_iter().find(|chunk| donors.chunks.contains_key(&chunk.digest));
        given.map_or(expected.size_bytes, |chunk| chunk.offset)
    }

    /// The chunk that begins exactly here.
    fn next_chunk(&self) -> Option<Chunk> {
        let chunk = *self.expected().chunks.get(self.chunk_index())?;
        (chunk.offset == self.offset()).then_some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::Begin;
    use crate::manifest::FileRole;

    fn described(bytes: &[u8]) -> ManifestFile {
        let borders = (0..bytes.len() as u64).step_by(1 << 20).collect();
        ManifestFile::describe(&mut &bytes[..], borders, FileRole::Weights, "m", "x").unwrap()
    }

    fn weights() -> Vec<u8> {
        // No two chunks are alike.
        let byte = |i: u32| (i.wrapping_mul(2_654_435_761) >> 13).wrapping_add(i >> 20) as u8;
        (0..6 << 20).map(byte).collect()
    }

    fn begin(blobs: &Blobs, expected: &Expected) -> Box<Incoming> {
        match blobs.begin(expected).unwrap() {
            Begin::Incoming(incoming) => incoming,
            Begin::Present => panic!("it is there already"),
        }
    }

    #[test]
    fn an_update_takes_what_has_not_changed_from_the_release_before() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
        let before = weights();
        let old = described(&before);
        blobs.put_file(&old, &mut &before[..]).unwrap();
        let mut after = before;
        after[3 << 20] ^= 1;
        let new = described(&after);
        let expected = Expected::from(&new);
        let donors = Donors::of(&blobs, &expected, [&old]);
        assert_eq!(donors.missing_bytes(&expected, 0), 1 << 20);
        let mut incoming = begin(&blobs, &expected);
        assert_eq!(incoming.fill(&donors).unwrap(), 3 << 20);
        assert_eq!(incoming.gap_end(&donors), 4 << 20);
        incoming.write(&after[3 << 20..4 << 20]).unwrap();
        assert_eq!(incoming.fill(&donors).unwrap(), 2 << 20);
        incoming.commit().unwrap();
        blobs.open_verified(&new.digest).unwrap();
    }

    #[test]
    fn a_repair_takes_the_sound_chunks_out_of_quarantine_and_no_other() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
        let bytes = weights();
        let file = described(&bytes);
        blobs.put_file(&file, &mut &bytes[..]).unwrap();
        let path = blobs.path(&file.digest);
        let mut broken = bytes.clone();
        broken[2 << 20] ^= 4;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(&path, &broken).unwrap();
        assert!(matches!(blobs.open_verified(&file.digest), Err(BlobError::Corrupt { .. })));
        let expected = Expected::from(&file);
        let donors = Donors::of(&blobs, &expected, []);
        let mut incoming = begin(&blobs, &expected);
        assert_eq!(incoming.fill(&donors).unwrap(), 2 << 20);
        incoming.write(&bytes[2 << 20..3 << 20]).unwrap();
        assert_eq!(incoming.fill(&donors).unwrap(), 3 << 20);
        incoming.commit().unwrap();
        blobs.open_verified(&file.digest).unwrap();
    }
}
