//! Where regrouped weights are kept between starts.

use std::path::{Path, PathBuf};

/// A folder for regrouped copies of weights, and the key that binds them to this device.
#[derive(Clone)]
pub struct WeightCopies {
    folder: PathBuf,
    key: [u8; Self::KEY_BYTES],
}

impl WeightCopies {
    /// Bytes of a key.
    pub const KEY_BYTES: usize = 32;

    /// Copies in `folder`, which is made when the first one comes. Whoever knows the key can make
    /// a copy that the engine takes for the model: it must not leave the device.
    #[must_use]
    pub fn new(folder: PathBuf, key: &[u8; Self::KEY_BYTES]) -> Self {
        Self { folder, key: *key }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn key(&self) -> &[u8; Self::KEY_BYTES] {
        &self.key
    }
}

impl std::fmt::Debug for WeightCopies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeightCopies").field("folder", &self.folder).finish_non_exhaustive()
    }
}
