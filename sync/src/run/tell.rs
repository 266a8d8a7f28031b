//! What the control plane is told of the device and of each model, over the link or by file.

use std::collections::BTreeMap;

use fulmar_policy::audit::{self, AuditError};
use fulmar_protocol::{AuditCheckpoint, CheckIn, DeviceFacts, ModelState, ModelStatus};
use fulmar_registry::catalog::{self, CatalogError, Filter, Slot};
use fulmar_registry::{Manifest, Registry};

use super::cycle::hex;
use crate::desired::{Desired, DesiredModel};
use crate::download::LinkCost;
use crate::state;
use crate::status::Trouble;

/// Longest reason in a check-in, in bytes; the whole one is in the reports.
const REASON_BYTES_MAX: usize = 1_000;
/// Models in a check-in at most.
const MODELS_MAX: usize = 256;

/// What a check-in is made of besides what the database knows.
pub(crate) struct Parts {
    pub(crate) models: Vec<ModelStatus>,
    pub(crate) free_bytes: u64,
    pub(crate) facts: Option<DeviceFacts>,
    pub(crate) clock_s: i64,
}

impl Parts {
    /// A check-in with the generations and the newest checkpoint as they are stored.
    ///
    /// # Errors
    /// The database's.
    pub(crate) fn check_in(
        self,
        connection: &rusqlite::Connection,
        boot_id: &str,
        cost: LinkCost,
    ) -> Result<CheckIn, AuditError> {
        let generations = state::generations(connection)?;
        let checkpoint = audit::last_checkpoint(connection)?;
        Ok(CheckIn {
            boot_id: boot_id.to_owned(),
            generation_seen: generations.seen,
            generation_applied: generations.applied,
            models: self.models,
            disk_free_bytes: self.free_bytes,
            clock_s: self.clock_s,
            link: cost.as_str().to_owned(),
            facts: self.facts,
            audit_checkpoint: checkpoint.map(|checkpoint| AuditCheckpoint {
                entries: checkpoint.entries,
                root: hex(&checkpoint.root),
                signature: hex(&checkpoint.signature),
            }),
        })
    }
}

/// Every installed and every desired model with its state.
pub(crate) fn models(
    connection: &rusqlite::Connection,
    registry: &Registry,
    desired: Option<&Desired>,
    troubles: &[Trouble],
) -> Result<Vec<ModelStatus>, CatalogError> {
    let mut models: BTreeMap<(String, String), ModelStatus> = BTreeMap::new();
    for model in catalog::list(connection, &Filter::default())? {
        let state = match (model.slot, &model.failure) {
            (Some(Slot::Active), _) => ModelState::Active,
            (_, Some(_)) => ModelState::Failed,
            _ => ModelState::Installed,
        };
        let (name, digest) = (model.name().to_string(), model.digest.to_string());
        let bytes_total = model.manifest.size_bytes();
        let bytes_done =
            model.manifest.files.iter().map(|f| registry.blobs().bytes_present(&f.digest)).sum();
        let reason = model.failure;
        let status = ModelStatus {
            name: name.clone(),
            digest: digest.clone(),
            state,
            bytes_done,
            bytes_total,
            reason,
        };
        models.insert((name, digest), status);
    }
    for model in desired.iter().flat_map(|desired| &desired.models) {
        let key = (model.name.to_string(), model.digest.to_string());
        let trouble = troubles.iter().find(|t| (&t.model, &t.digest) == (&key.0, &key.1));
        let status = models.entry(key.clone()).or_insert_with(|| {
            let (bytes_done, bytes_total) = on_the_way(registry, model);
            let state = ModelState::Downloading;
            let (name, digest) = key;
            ModelStatus { name, digest, state, bytes_done, bytes_total, reason: None }
        });
        if let Some(trouble) = trouble
            && status.state != ModelState::Active
        {
            status.state = ModelState::Failed;
            status.reason = Some(trouble.reason.clone());
        }
    }
    for status in models.values_mut() {
        status.reason = status.reason.take().map(|reason| cut(reason, REASON_BYTES_MAX));
    }
    Ok(models.into_values().take(MODELS_MAX).collect())
}

/// The beginning of a text that is too long for a check-in.
fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Bytes here and bytes in all of a model that is not installed; zeros before its manifest came.
fn on_the_way(registry: &Registry, model: &DesiredModel) -> (u64, u64) {
    let blobs = registry.blobs();
    let length_max = fulmar_registry::manifest::MANIFEST_BYTES_MAX;
    let manifest = blobs.read(&model.digest, length_max).ok();
    let Some(manifest) = manifest.and_then(|bytes| Manifest::parse(&bytes).ok()) else {
        return (0, 0);
    };
    let here = manifest.files.iter().map(|file| blobs.bytes_present(&file.digest)).sum();
    (here, manifest.size_bytes())
}
