//! A device without a link: a desired state and its blobs out of a bundle, reports and audit
//! entries into a file. The same checks as over the network; what a bundle brings is installed by
//! the reconciler, which needs no link for it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use fulmar_policy::audit::{self, AuditError};
use fulmar_protocol::{
    DeviceFacts, REPORT_FILE_BYTES_MAX, REPORT_FILE_LEN_MAX, ReportFile, ReportFileBody,
    ReportFileError,
};
use fulmar_registry::bundle::{Bundle, BundleError, Header};
use fulmar_registry::catalog::CatalogError;
use fulmar_registry::trust::{Repo, TrustError};
use fulmar_registry::{BlobError, Digest, Manifest, Registry, gc, manifest};
use fulmar_store::StoreError;
use serde::Serialize;

use crate::clock::SignedClock;
use crate::desired;
use crate::download::LinkCost;
use crate::refresh::{self, RefreshError, Source};
use crate::run::{Parts, hex, models, unhex};
use crate::{outbox, state};

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
    /// The audit log.
    #[error("carry reports: {0}")]
    Audit(#[from] AuditError),
    /// The models on this device.
    #[error("carry reports: {0}")]
    Models(#[from] CatalogError),
    /// The store of blobs.
    #[error("carry reports: {0}")]
    Blobs(#[from] BlobError),
    /// The file of reports.
    #[error(transparent)]
    File(#[from] ReportFileError),
    /// The database.
    #[error("carry a bundle: {0}")]
    Store(#[from] StoreError),
    /// The process is ending.
    #[error("take a bundle: stopped")]
    Stopped,
}

impl From<rusqlite::Error> for CarryError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
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
    /// Reports of this device that the control plane has made durable: up to this number.
    pub acked_through: u64,
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
    let mut bundle = Bundle::open(path)?;
    bundle.check_device(device_id)?;
    check_maker(registry, clock, device_id, &bundle).await?;
    let checked = tokio::task::spawn_blocking(move || bundle.check_blobs().map(|()| bundle));
    let mut bundle = checked.await.map_err(|_| CarryError::Stopped)??;
    let header = bundle.header().clone();
    let source = Source::Bundle { header: &header, device_id };
    let refreshed = refresh::refresh(source, registry.store(), clock).await?;
    let acked = take_acks(registry, device_id, &header).await?;
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
    let blobs = registry.blobs().clone();
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
        blob_bytes += bundle.take_blobs(&blobs, &files)?;
        Ok::<_, CarryError>(blob_bytes)
    });
    let blob_bytes = taken.await.map_err(|_| CarryError::Stopped)??;
    Ok(Carried { generation: refreshed.generation, blob_bytes, models, acked_through: acked })
}

/// Refuses what the director did not sign, and what is older than a bundle that was taken.
async fn check_maker(
    registry: &Registry,
    clock: &Arc<SignedClock>,
    device_id: &str,
    bundle: &Bundle,
) -> Result<(), CarryError> {
    let seen = registry.store().read(|c| Ok::<_, CarryError>(state::bundle_seen(c)?)).await?;
    let source = Source::Bundle { header: bundle.header(), device_id };
    let director = crate::refresh::load(source, registry.store(), Repo::Director).await?;
    let director = director.ok_or(RefreshError::NoRoot { repo: Repo::Director.as_str() })?;
    bundle.check_signature(director, device_id, clock.now_s())?;
    Ok(bundle.check_serial(seen)?)
}

/// Forgets the reports that the control plane has made durable, and keeps its co-signature.
async fn take_acks(
    registry: &Registry,
    device_id: &str,
    header: &Header,
) -> Result<u64, CarryError> {
    let Some(ack) = header.ack(device_id).cloned() else { return Ok(0) };
    registry
        .store()
        .write(move |tx| {
            outbox::acked(tx, ack.acked_through)?;
            if let Some(signature) = unhex(&ack.audit_cosignature).filter(|s| !s.is_empty()) {
                audit::cosign(tx, ack.audit_entries, &signature)?;
            }
            Ok(ack.acked_through)
        })
        .await
}

/// Signs what a file of reports says.
pub type SignReports<'a> = &'a (dyn Fn(&[u8]) -> Vec<u8> + Send + Sync);

/// What a device without a link hands in, as a file for the control plane: its state, the reports
/// that wait, and the newest checkpoint of its audit log. `sign` signs with the device's audit key.
///
/// # Errors
/// [`CarryError`].
pub fn export_reports(
    registry: &Registry,
    clock: &SignedClock,
    device_id: &str,
    facts: DeviceFacts,
    sign: SignReports<'_>,
) -> Result<(ReportFile, Reported), CarryError> {
    let free_bytes = registry.blobs().usage()?.free_bytes;
    let (id, now_s, shared) = (device_id.to_owned(), clock.now_s(), registry.clone());
    let (body, pending) = registry.store().write_blocking(move |tx| {
        let desired = desired::load(tx, &id, now_s).map_err(Box::new)?;
        let models = models(tx, &shared, desired.as_ref(), &[])?;
        let parts = Parts { models, free_bytes, facts: Some(facts), clock_s: now_s };
        let check_in = parts.check_in(tx, "by file", LinkCost::default())?;
        let reports = outbox::batch(tx, REPORT_FILE_LEN_MAX, REPORT_FILE_BYTES_MAX / 2)?;
        let serial = state::next_report_file(tx)?;
        let body = ReportFileBody { device_id: id, serial, check_in, reports };
        Ok::<_, CarryError>((body, outbox::pending(tx)?))
    })?;
    let file = ReportFile::make(&body, |bytes| hex(&sign(bytes)))?;
    let reports = body.reports.len() as u64;
    Ok((file, Reported { serial: body.serial, reports, left: pending.saturating_sub(reports) }))
}

/// What a file of reports holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// The file's number.
    pub serial: u64,
    /// Reports in it.
    pub reports: u64,
    /// Reports that wait besides: for the next file, once these are acknowledged.
    pub left: u64,
}
