//! Copies that the engine derives from blobs (weights regrouped for a processor): `regrouped/`.
//!
//! The engine writes and checks them; the store knows only that a name starts with the digest of
//! the blob it was made from, so that a copy goes when its blob goes.

use std::path::PathBuf;

use super::{BlobError, Blobs, entries};
use crate::Digest;

impl Blobs {
    /// The folder of copies that were derived from blobs. Each is named `DIGEST-…`, with the hex
    /// digits of the blob's digest; the folder may be missing.
    #[must_use]
    pub fn copies_dir(&self) -> PathBuf {
        self.dir().join("regrouped")
    }

    /// All files in the folder of copies, by name, with their lengths in bytes.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn list_copies(&self) -> Result<Vec<(String, u64)>, BlobError> {
        let dir = self.copies_dir();
        if !dir.is_dir() {
            return Ok(Vec::new());
        }
        let sized = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.to_owned();
            let meta = std::fs::symlink_metadata(&path).ok().filter(|meta| !meta.is_dir())?;
            Some((name, meta.len()))
        };
        let mut list: Vec<_> = entries(&dir)?.into_iter().filter_map(sized).collect();
        list.sort_unstable();
        Ok(list)
    }

    /// Removes a copy by its name in the folder.
    ///
    /// # Errors
    /// [`BlobError::Io`]; a copy that is not there is no error.
    pub fn remove_copy(&self, name: &str) -> Result<(), BlobError> {
        self.inner.files.remove(&self.copies_dir().join(name))
    }
}

/// The blob that a copy of that name was made from; none for a foreign file.
#[must_use]
pub fn copy_of(name: &str) -> Option<Digest> {
    Digest::from_hex(name.split_once('-')?.0).ok()
}
