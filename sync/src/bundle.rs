//! A desired state and its blobs out of a bundle, for devices without a link. The same checks as
//! over the network; what it brings is installed by the reconciler, which needs no link for it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use fulmar_registry::bundle::{Bundle, BundleError};
use fulmar_registry::trust::TrustError;
use fulmar_registry::{Digest, Manifest, Registry, gc, manifest};
use fulmar_store::StoreError;
use serde::Serialize;

use crate::clock::SignedClock;
use crate::desired;
use crate::refresh::{self, RefreshError, Source};

/// Why a bundle was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// The file.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its metadata.
    #[error("take a bundle: {0}")]
    Refresh(#[from] RefreshError),
    /// The state of trust.
    #[error("take a bundle: {0}")]
    Trust(#[from] Box<TrustError>),
    /// Garbage is being collected.
    #[error("take a bundle: {0}")]
    Lock(#[from] gc::LockError),
    /// The database.
    #[error("take a bundle: {0}")]
    Store(#[from] StoreError),
    /// The process is ending.
    #[error("take a bundle: stopped")]
    Stopped,
}

/// What a bundle brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// The generation of the desired state now.
    pub generation: u64,
    /// Bytes of blobs that came in.
    pub blob_bytes: u64,
    /// Models that the desired state names.
    pub models: Vec<String>,
}

/// Takes a bundle's metadata, then the blobs that the new desired state needs.
///
/// # Errors
/// [`CarryError`]; an older bundle than what this device has seen is refused by its versions.
pub async fn import_bundle(
    registry: &Registry,
    clock: &Arc<SignedClock>,
    device_id: &str,
    path: &Path,
) -> Result<Carried, CarryError> {
    let bundle = Bundle::open(path)?;
    bundle.check_device(device_id)?;
    let header = bundle.header().clone();
    let source = Source::Bundle { header: &header, device_id };
    let refreshed = refresh::refresh(source, registry.store(), clock).await?;
    let (id, now_s) = (device_id.to_owned(), clock.now_s());
    let desired = registry
        .store()
        .read(move |connection| {
            desired::load(connection, &id, now_s).map_err(|e| CarryError::from(Box::new(e)))
        })
        .await?
        .unwrap_or_default();
    let models = desired.models.iter().map(|model| model.name.to_string()).collect();
    let manifests: BTreeSet<Digest> = desired.models.iter().map(|model| model.digest).collect();
    let (blobs, path) = (registry.blobs().clone(), path.to_owned());
    let taken = tokio::task::spawn_blocking(move || {
        let _hold = gc::hold(&blobs)?;
        // Twice through the file: the manifests say which of the rest is wanted.
        let mut blob_bytes = bundle.take_blobs(&blobs, &manifests)?;
        let mut files = BTreeSet::new();
        for digest in &manifests {
            if let Ok(bytes) = blobs.read(digest, manifest::MANIFEST_BYTES_MAX)
                && let Ok(manifest) = Manifest::parse(&bytes)
            {
                files.extend(manifest.files.iter().map(|file| file.digest));
            }
        }
        blob_bytes += Bundle::open(&path)?.take_blobs(&blobs, &files)?;
        Ok::<_, CarryError>(blob_bytes)
    });
    let blob_bytes = taken.await.map_err(|_| CarryError::Stopped)??;
    Ok(Carried { generation: refreshed.generation, blob_bytes, models })
}
