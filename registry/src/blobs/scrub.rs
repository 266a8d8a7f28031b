//! Scrubbing: reading all blobs now and then, so that a flipped bit is found before it is needed.

use super::{BlobError, Blobs, hash, io};
use crate::Digest;

/// How one blob fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scrubbed {
    /// All bytes are as stored.
    Sound,
    /// Bytes changed; the blob is in quarantine now.
    Corrupt,
    /// It was removed meanwhile.
    Gone,
}

/// What a whole scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Blobs read.
    pub blobs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Blobs that were corrupt and are in quarantine now.
    pub corrupt: Vec<Digest>,
}

impl Blobs {
    /// Reads one blob whatever was verified before. Blocks.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn scrub_one(&self, digest: &Digest) -> Result<Scrubbed, BlobError> {
        let path = self.path(digest);
        let mut file = match self.open_blob(digest, &path) {
            Err(BlobError::Missing { .. }) => return Ok(Scrubbed::Gone),
            other => other?,
        };
        if hash(&mut file).map_err(io("read", &path))? == *digest {
            return Ok(Scrubbed::Sound);
        }
        self.quarantine(digest)?;
        Ok(Scrubbed::Corrupt)
    }

    /// Reads all blobs. Blocks; `between` runs after each and may sleep, or end it with `false`.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn scrub(&self, mut between: impl FnMut() -> bool) -> Result<ScrubReport, BlobError> {
        let mut report = ScrubReport::default();
        for (digest, size_bytes) in self.list()? {
            match self.scrub_one(&digest)? {
                Scrubbed::Gone => continue,
                Scrubbed::Sound => {}
                Scrubbed::Corrupt => report.corrupt.push(digest),
            }
            report.blobs += 1;
            report.bytes += size_bytes;
            if !between() {
                break;
            }
        }
        Ok(report)
    }
}
