//! One check-in and all that follows from it: commands, a new desired state, reports, a new
//! certificate.

use std::sync::Arc;

use fulmar_policy::audit;
use fulmar_protocol::{
    AuditCheckpoint, CheckIn, CheckInResponse, Command, DeviceFacts, OUTBOX_BATCH_LEN_MAX,
    OutboxBatch,
};
use fulmar_registry::catalog;
use fulmar_registry::trust::{self, Repo, Trusted};
use fulmar_store::StoreError;

use super::Inner;
use super::tell::{Parts, models};
use crate::desired::{self, in_words};
use crate::refresh::{self, RefreshError, Source};
use crate::transport::TransportError;
use crate::{enroll, outbox, state};

/// Bytes of reports in one batch, about.
const BATCH_BYTES: usize = fulmar_protocol::BODY_BYTES_MAX / 2;
/// Batches handed in after one check-in at most; the rest follows the next.
const BATCHES_MAX: usize = 64;

/// Why a check-in failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CycleError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Refresh(#[from] RefreshError),
    #[error(transparent)]
    Catalog(#[from] catalog::CatalogError),
    #[error(transparent)]
    Blobs(#[from] fulmar_registry::BlobError),
    #[error(transparent)]
    Trust(#[from] Box<trust::TrustError>),
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for CycleError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Inner {
    /// One check-in with all that follows from it; returns when to come again, in milliseconds.
    pub(super) async fn cycle(&self, facts: Option<&DeviceFacts>) -> Result<u64, CycleError> {
        let check_in = self.check_in(facts.cloned()).await?;
        let checkpoint = check_in.audit_checkpoint.clone();
        // First the entries that the checkpoint is over: the control plane holds it against them.
        self.drain().await?;
        let response = self.transport.check_in(&check_in).await?;
        self.keep_cosignature(checkpoint, &response).await?;
        let again = self.commands(&response).await?;
        // Reports leave even while the new desired state is refused: they say why.
        let refreshed = self.refresh(&response, check_in.generation_seen).await;
        self.drain().await?;
        self.renew().await;
        refreshed?;
        Ok(if again { 0 } else { response.next_check_in_ms })
    }

    /// Accepts what is new; a refusal is recorded once.
    async fn refresh(&self, response: &CheckInResponse, seen: u64) -> Result<(), CycleError> {
        let refreshed = match self.is_news(response, seen).await {
            Ok(false) => return Ok(()),
            Ok(true) => {
                refresh::refresh(Source::Network(&self.transport), &self.store, &self.clock).await
            }
            Err(CycleError::Refresh(error)) => Err(error),
            Err(error) => return Err(error),
        };
        match refreshed {
            Ok(refreshed) => {
                self.status.send_modify(|status| status.generation_seen = refreshed.generation);
                self.changed.notify_one();
                Ok(())
            }
            Err(error) => {
                let reason = in_words(&error);
                let known = self.status.borrow().error.as_ref() == Some(&reason);
                if error.is_refusal() && !known {
                    self.record_refusal(reason).await?;
                }
                Err(error.into())
            }
        }
    }

    async fn record_refusal(&self, reason: String) -> Result<(), CycleError> {
        let at_s = self.clock.now_s();
        self.store
            .write(move |tx| {
                let event = audit::Event {
                    at_s,
                    actor: "control-plane",
                    action: "desired.refuse",
                    resource: "desired",
                    outcome: audit::Outcome::Denied,
                    opened: None,
                    detail: serde_json::json!({ "reason": reason }),
                };
                outbox::record(tx, &event)?;
                Ok::<_, CycleError>(())
            })
            .await
    }

    async fn check_in(&self, facts: Option<DeviceFacts>) -> Result<CheckIn, CycleError> {
        let blobs = self.registry.blobs().clone();
        let disk_free_bytes = blobs.usage()?.free_bytes;
        let (device_id, now_s) = (self.device_id.clone(), self.clock.now_s());
        let troubles = self.status.borrow().troubles.clone();
        let registry = self.registry.clone();
        let (boot_id, cost) = (self.boot_id.clone(), self.options.cost);
        self.store
            .read(move |connection| {
                let desired = match desired::load(connection, &device_id, now_s) {
                    // What follows mends it.
                    Err(error) if error.is_damage() => None,
                    desired => desired.map_err(Box::new)?,
                };
                let models = models(connection, &registry, desired.as_ref(), &troubles)?;
                let parts = Parts { models, free_bytes: disk_free_bytes, facts, clock_s: now_s };
                Ok::<_, CycleError>(parts.check_in(connection, &boot_id, cost)?)
            })
            .await
    }

    async fn keep_cosignature(
        &self,
        checkpoint: Option<AuditCheckpoint>,
        response: &CheckInResponse,
    ) -> Result<(), CycleError> {
        let (Some(checkpoint), Some(text)) = (checkpoint, &response.audit_cosignature) else {
            return Ok(());
        };
        let Some(signature) = unhex(text) else {
            tracing::warn!("the control plane's co-signature is not hex: not kept");
            return Ok(());
        };
        self.store.write(move |tx| Ok(audit::cosign(tx, checkpoint.entries, &signature)?)).await
    }

    /// Whether a new command wants another check-in at once.
    async fn commands(&self, response: &CheckInResponse) -> Result<bool, CycleError> {
        let ids: Vec<String> =
            response.commands.iter().map(|Command::SyncNow { id }| id.clone()).collect();
        if ids.is_empty() {
            return Ok(false);
        }
        self.store
            .write(move |tx| {
                let mut new = false;
                for id in &ids {
                    new |= state::command_is_new(tx, id)?;
                }
                Ok(new)
            })
            .await
    }

    /// Whether either repository has something that this device has not.
    async fn is_news(&self, response: &CheckInResponse, seen: u64) -> Result<bool, CycleError> {
        if response.generation < seen {
            let found = response.generation;
            return Err(RefreshError::OlderGeneration { found, seen }.into());
        }
        let known = self
            .store
            .read(|connection| {
                if trust::held_policy(connection).is_err_and(|error| error.is_damage()) {
                    return Ok(None);
                }
                let version = |repo| match Trusted::load(connection, repo) {
                    Err(error) if error.is_damage() => Ok(None),
                    Err(error) => Err(CycleError::from(Box::new(error))),
                    Ok(Some(trusted)) if trusted.is_damaged() => Ok(None),
                    Ok(trusted) => {
                        Ok(Some(trusted.and_then(|t| t.timestamp_version()).unwrap_or(0)))
                    }
                };
                let (registry, director) = (version(Repo::Registry)?, version(Repo::Director)?);
                Ok::<_, CycleError>(registry.zip(director))
            })
            .await?;
        let offered = (response.registry_timestamp_version, response.director_timestamp_version);
        // What was damaged is fetched again, whether it is new or not.
        Ok(response.generation > seen || Some(offered) != known)
    }

    /// Hands reports in, batch by batch, until none wait.
    async fn drain(&self) -> Result<(), CycleError> {
        for _ in 0..BATCHES_MAX {
            let reports = self
                .store
                .read(|connection| {
                    Ok::<_, CycleError>(outbox::batch(
                        connection,
                        OUTBOX_BATCH_LEN_MAX,
                        BATCH_BYTES,
                    )?)
                })
                .await?;
            let Some(last) = reports.last().map(|report| report.seq) else { break };
            let ack = self.transport.outbox(&OutboxBatch { reports }).await?;
            // More than was handed in cannot be durable there.
            let through = ack.acked_through.min(last);
            let pending = self
                .store
                .write(move |tx| {
                    outbox::acked(tx, through)?;
                    Ok::<_, CycleError>(outbox::pending(tx)?)
                })
                .await?;
            self.status.send_modify(|status| status.outbox_pending = pending);
            if through < last {
                break;
            }
        }
        Ok(())
    }

    /// A new certificate in time.
    async fn renew(&self) {
        let mut identity = self.identity.write().await;
        let now_s = self.clock.now_s();
        match enroll::renew(&identity, &self.identity_path, &self.transport, now_s).await {
            Ok(None) => {}
            Ok(Some(renewed)) => {
                tracing::info!("the device's certificate was renewed");
                *identity = renewed;
                if let Err(error) = self.transport.renewed(&identity, Arc::clone(&self.clock)) {
                    tracing::error!(error = in_words(&error), "the new certificate is not usable");
                }
            }
            Err(error) => {
                tracing::warn!(error = in_words(&error), "the device's certificate was not renewed")
            }
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
