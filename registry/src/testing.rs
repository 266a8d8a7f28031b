//! What the crate's own tests share.

use fulmar_store::Store;
use rusqlite::Transaction;

use crate::blobs::Blobs;
use crate::catalog::{self, CatalogError};
use crate::manifest::{FileRole, Health, Manifest, ManifestFile, SizeClass};
use crate::{Digest, OwnerKey};

/// A device with a store, blobs and an owner's key, in a folder of its own.
pub(crate) struct Device {
    _dir: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) owner: OwnerKey,
}

impl Device {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            store: Store::open(
                &dir.path().join("state.db"),
                &[&catalog::SCHEMA, &crate::trust::SCHEMA],
            )
            .unwrap(),
            blobs: Blobs::open(dir.path(), 1 << 30).unwrap(),
            owner: OwnerKey::open_or_create(&dir.path().join("owner.key")).unwrap(),
            _dir: dir,
        }
    }

    pub(crate) fn try_write<T: Send + 'static, E>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        E: From<fulmar_store::StoreError> + Send + 'static,
    {
        self.store.write_blocking(work)
    }

    pub(crate) fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, CatalogError> + Send + 'static,
    ) -> T {
        self.try_write(work).unwrap()
    }

    /// Installs a release signed by the local owner.
    pub(crate) fn install(&self, name: &str, release: u64, weights: &[u8]) -> Digest {
        self.blobs.put(weights).unwrap();
        let signed = self.owner.sign(&manifest(name, release, weights)).unwrap();
        let blobs = self.blobs.clone();
        self.write(move |tx| catalog::install(tx, &signed, &blobs, 10).map(|()| signed.digest()))
    }

    pub(crate) fn activate(&self, name: &str, digest: Digest) {
        let name = name.parse().unwrap();
        self.write(move |tx| catalog::activate(tx, &name, &digest, 20));
    }
}

/// A manifest of one file with these bytes as weights.
pub(crate) fn manifest(name: &str, release: u64, weights: &[u8]) -> Manifest {
    let file = ManifestFile::describe(
        &mut &weights[..],
        Vec::new(),
        FileRole::Weights,
        "model.gguf",
        "application/vnd.fulmar.gguf",
    )
    .unwrap();
    Manifest {
        schema: 1,
        name: name.parse().unwrap(),
        release,
        created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        files: vec![file],
        architecture: "qwen3".into(),
        parameters: 5_000_000,
        size_class: SizeClass::of(5_000_000),
        quantization: "Q8_0".into(),
        context_tokens: 512,
        license: "MIT".into(),
        source: String::new(),
        template: String::new(),
        evaluation: Vec::new(),
        memory_bytes: 0,
        health: Health::default(),
        draft: None,
    }
}
