//! The link's life: check in, accept what is new, hand reports in, and carry plans out beside it.
//!
//! Two loops. One talks to the control plane on a schedule; the other brings the device to the
//! desired state, so that a download of hours holds up no check-in. Both live through a control
//! plane that is away, and through restarts: all they know is in the database.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fulmar_policy::audit;
use fulmar_protocol::{
    AuditCheckpoint, CheckIn, CheckInResponse, Command, DeviceFacts, ModelState, ModelStatus,
    OUTBOX_BATCH_LEN_MAX, OutboxBatch,
};
use fulmar_registry::catalog::{self, Filter, Slot};
use fulmar_registry::trust::{self, Repo, Trusted};
use fulmar_registry::{Manifest, Registry};
use fulmar_store::{Store, StoreError};
use tokio::sync::{Notify, RwLock, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::SignedClock;
use crate::desired::{self, Desired, in_words};
use crate::download::{Downloader, Limits, LinkCost};
use crate::enroll;
use crate::identity::Identity;
use crate::outbox;
use crate::reconcile::{Hooks, Reconciler, Retry};
use crate::refresh::{self, RefreshError};
use crate::schedule::{self, Schedule};
use crate::state;
use crate::status::{Link, Progress, Status, Trouble};
use crate::transport::{Transport, TransportError};

/// Bytes of reports in one batch, about.
const BATCH_BYTES: usize = fulmar_protocol::BODY_BYTES_MAX / 2;
/// Batches handed in after one check-in at most; the rest follows the next.
const BATCHES_MAX: usize = 64;

/// Longest reason in a check-in, in bytes; the whole one is in the reports.
const REASON_BYTES_MAX: usize = 1_000;
/// Models in a check-in at most.
const MODELS_MAX: usize = 256;

/// Settings of the link.
#[derive(Debug, Clone)]
pub struct Options {
    /// When to check in.
    pub schedule: schedule::Options,
    /// Limits of downloads.
    pub downloads: Limits,
    /// What the network costs.
    pub cost: LinkCost,
    /// How long between two scrubs of all blobs, in seconds; 0: never.
    pub scrub_interval_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schedule: schedule::Options::default(),
            downloads: Limits::default(),
            cost: LinkCost::default(),
            scrub_interval_s: 7 * 86_400,
        }
    }
}

/// What the link is made of.
#[derive(Debug)]
pub struct Deps {
    /// Who this device is.
    pub identity: Identity,
    /// Where that is written.
    pub identity_path: PathBuf,
    /// Tables, blobs and trust.
    pub registry: Registry,
    /// The time.
    pub clock: Arc<SignedClock>,
    /// What the device is.
    pub facts: DeviceFacts,
    /// What the agent does for the link.
    pub hooks: Hooks,
    /// Settings.
    pub options: Options,
}

/// Why the link could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// TLS with the device's identity.
    #[error("set the link up: {0}")]
    Transport(#[from] TransportError),
    /// The state of trust.
    #[error("set the link up: {0}")]
    Trust(#[from] Box<trust::TrustError>),
    /// The database.
    #[error("set the link up: {0}")]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for SyncError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Why a check-in failed.
#[derive(Debug, thiserror::Error)]
enum CycleError {
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

struct Inner {
    identity: RwLock<Identity>,
    identity_path: PathBuf,
    device_id: String,
    registry: Registry,
    store: Store,
    clock: Arc<SignedClock>,
    facts: DeviceFacts,
    options: Options,
    boot_id: String,
    transport: Transport,
    reconciler: Reconciler,
    nudge: Notify,
    changed: Notify,
    status: watch::Sender<Status>,
}

/// The link to the control plane; cloning is cheap.
#[derive(Clone)]
pub struct Sync {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Sync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sync").field("device_id", &self.inner.device_id).finish_non_exhaustive()
    }
}

impl Sync {
    /// Sets the link up; it does nothing before [`Sync::run`]. The store of `deps.registry` must
    /// have [`state::SCHEMA`] and the audit log's tables too.
    ///
    /// # Errors
    /// [`SyncError`].
    pub fn new(deps: Deps) -> Result<Self, SyncError> {
        let Deps { identity, identity_path, registry, clock, facts, hooks, options } = deps;
        let store = registry.store().clone();
        let (generations, signed_s, pending) = store.read_blocking(|connection| {
            let signed_s = trust::signed_time(connection).map_err(Box::new)?;
            let pending = outbox::pending(connection)?;
            Ok::<_, SyncError>((state::generations(connection)?, signed_s, pending))
        })?;
        clock.raise(signed_s);
        let transport = Transport::member(&identity, Arc::clone(&clock))?;
        let downloader =
            Downloader::new(transport.clone(), registry.blobs().clone(), options.downloads);
        let reconciler = Reconciler {
            registry: registry.clone(),
            transport: transport.clone(),
            downloader,
            clock: Arc::clone(&clock),
            hooks,
        };
        let status = Status {
            device_id: identity.device_id.clone(),
            url: identity.url.clone(),
            link: Link::Offline {
                since_s: clock.now_s(),
                reason: "not checked in since the agent started".to_owned(),
                failures: 0,
            },
            checked_in_at_s: None,
            generation_seen: generations.seen,
            generation_applied: generations.applied,
            outbox_pending: pending,
            fetching: None,
            troubles: Vec::new(),
            error: None,
        };
        let inner = Inner {
            device_id: identity.device_id.clone(),
            identity: RwLock::new(identity),
            identity_path,
            registry,
            store,
            clock,
            facts,
            options,
            boot_id: boot_id(),
            transport,
            reconciler,
            nudge: Notify::new(),
            changed: Notify::new(),
            status: watch::channel(status).0,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How the link stands now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.status.borrow().clone()
    }

    /// Hears of every change of the status.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.inner.status.subscribe()
    }

    /// Checks in now, and reconciles after.
    pub fn nudge(&self) {
        self.inner.nudge.notify_one();
    }

    /// Reconciles now: a model was found broken, or room was made.
    pub fn reconcile(&self) {
        self.inner.changed.notify_one();
    }

    /// Lives until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let talk = shutdown.run_until_cancelled(self.inner.talk());
        let act = shutdown.run_until_cancelled(self.inner.act());
        let scrub = shutdown.run_until_cancelled(self.inner.scrub());
        tokio::join!(talk, act, scrub);
    }
}

impl Inner {
    /// The loop that talks.
    async fn talk(&self) {
        let start = Instant::now();
        let now_ms = || u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut schedule = Schedule::new(self.options.schedule, now_ms());
        let mut facts = Some(self.facts.clone());
        loop {
            let wait = Duration::from_millis(schedule.wait_ms(now_ms()));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.nudge.notified() => {
                    schedule.nudged(now_ms());
                    self.changed.notify_one();
                }
            }
            match self.cycle(facts.as_ref()).await {
                Ok(next_ms) => {
                    facts = None;
                    schedule.succeeded(now_ms(), next_ms, schedule::jitter());
                    self.online();
                }
                Err(error) => {
                    schedule.failed(now_ms(), schedule::jitter());
                    self.offline(&error, schedule.failures());
                }
            }
        }
    }

    /// One check-in with all that follows from it; returns when to come again, in milliseconds.
    async fn cycle(&self, facts: Option<&DeviceFacts>) -> Result<u64, CycleError> {
        let check_in = self.check_in(facts.cloned()).await?;
        let checkpoint = check_in.audit_checkpoint.clone();
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
            Ok(true) => refresh::refresh(&self.transport, &self.store, &self.clock).await,
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
        let (generations, models, checkpoint) = self
            .store
            .read(move |connection| {
                let desired = desired::load(connection, &device_id, now_s).map_err(Box::new)?;
                let models = models(connection, &registry, desired.as_ref(), &troubles)?;
                let checkpoint = audit::last_checkpoint(connection)?;
                Ok::<_, CycleError>((state::generations(connection)?, models, checkpoint))
            })
            .await?;
        Ok(CheckIn {
            boot_id: self.boot_id.clone(),
            generation_seen: generations.seen,
            generation_applied: generations.applied,
            models,
            disk_free_bytes,
            clock_s: self.clock.now_s(),
            link: self.options.cost.as_str().to_owned(),
            facts,
            audit_checkpoint: checkpoint.map(|checkpoint| AuditCheckpoint {
                entries: checkpoint.entries,
                root: hex(&checkpoint.root),
                signature: hex(&checkpoint.signature),
            }),
        })
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
                let version = |repo| -> Result<_, CycleError> {
                    let trusted = Trusted::load(connection, repo).map_err(Box::new)?;
                    Ok(trusted.and_then(|trusted| trusted.timestamp_version()).unwrap_or(0))
                };
                Ok::<_, CycleError>((version(Repo::Registry)?, version(Repo::Director)?))
            })
            .await?;
        let offered = (response.registry_timestamp_version, response.director_timestamp_version);
        Ok(response.generation > seen || offered != known)
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

    fn online(&self) {
        let now_s = self.clock.now_s();
        self.status.send_modify(|status| {
            if matches!(status.link, Link::Offline { .. }) {
                tracing::info!(url = status.url, "online");
                status.link = Link::Online { since_s: now_s };
            }
            status.checked_in_at_s = Some(now_s);
            status.error = None;
        });
    }

    fn offline(&self, error: &CycleError, failures: u32) {
        let reason = in_words(error);
        let away = match error {
            CycleError::Transport(error) | CycleError::Refresh(RefreshError::Transport(error)) => {
                error.is_offline()
            }
            _ => false,
        };
        let now_s = self.clock.now_s();
        self.status.send_modify(|status| {
            if !away {
                tracing::warn!(reason, "a check-in failed");
                status.error = Some(reason.clone());
            }
            let since_s = match status.link {
                Link::Offline { since_s, .. } => since_s,
                Link::Online { .. } => {
                    tracing::warn!(reason, "offline");
                    now_s
                }
            };
            status.link = Link::Offline { since_s, reason, failures };
        });
    }

    /// The loop that acts.
    async fn act(&self) {
        let mut schedule = Schedule::new(self.options.schedule, 0);
        loop {
            let retry = match self.reconcile().await {
                Ok(retry) => retry,
                Err(error) => {
                    tracing::warn!(error, "the desired state was not reconciled");
                    Retry::Later
                }
            };
            match retry {
                Retry::No => {
                    schedule.succeeded(0, 0, 0.0);
                    self.changed.notified().await;
                }
                Retry::Later => {
                    schedule.failed(0, schedule::jitter());
                    let wait = Duration::from_millis(schedule.wait_ms(0));
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.changed.notified() => {}
                    }
                }
            }
        }
    }

    async fn reconcile(&self) -> Result<Retry, String> {
        let (device_id, now_s) = (self.device_id.clone(), self.clock.now_s());
        let desired: Option<Desired> = self
            .store
            .read(move |connection| {
                desired::load(connection, &device_id, now_s)
                    .map_err(|error| CycleError::from(Box::new(error)))
            })
            .await
            .map_err(|error| in_words(&error))?;
        let Some(desired) = desired else { return Ok(Retry::No) };
        let report = |progress: Option<Progress>| {
            self.status.send_modify(|status| status.fetching = progress);
        };
        let round = self
            .reconciler
            .round(&desired, self.options.cost, &report)
            .await
            .map_err(|error| in_words(&error))?;
        self.count_reports().await.map_err(|error| in_words(&error))?;
        let clean = round.troubles.is_empty() && round.retry == Retry::No;
        let before = self.status.borrow().troubles.clone();
        self.status.send_modify(|status| status.troubles.clone_from(&round.troubles));
        if clean {
            self.applied(desired.generation).await.map_err(|error| in_words(&error))?;
        } else if before != round.troubles {
            // Tell the control plane now, not with the next check-in.
            self.nudge_quietly();
        }
        Ok(round.retry)
    }

    async fn count_reports(&self) -> Result<(), CycleError> {
        let pending =
            self.store.read(|connection| Ok::<_, CycleError>(outbox::pending(connection)?)).await?;
        self.status.send_modify(|status| status.outbox_pending = pending);
        Ok(())
    }

    async fn applied(&self, generation: u64) -> Result<(), CycleError> {
        if self.status.borrow().generation_applied == generation {
            return Ok(());
        }
        self.store.write(move |tx| Ok::<_, CycleError>(state::applied(tx, generation)?)).await?;
        self.status.send_modify(|status| status.generation_applied = generation);
        self.nudge_quietly();
        Ok(())
    }

    /// Wakes the talking loop, which would wake the acting one in turn: once is enough.
    fn nudge_quietly(&self) {
        if matches!(self.status.borrow().link, Link::Online { .. }) {
            self.nudge.notify_one();
        }
    }

    /// Reads all blobs now and then; what is broken is fetched again.
    async fn scrub(&self) {
        if self.options.scrub_interval_s == 0 {
            return;
        }
        loop {
            tokio::time::sleep(Duration::from_secs(self.options.scrub_interval_s)).await;
            let blobs = self.registry.blobs().clone();
            // A pause after each blob leaves the disk to others.
            let pause = || {
                std::thread::sleep(Duration::from_millis(100));
                true
            };
            let scrubbed = tokio::task::spawn_blocking(move || blobs.scrub(pause)).await;
            match scrubbed {
                Ok(Ok(report)) if report.corrupt.is_empty() => {
                    tracing::info!(report.blobs, report.bytes, "all blobs are sound");
                }
                Ok(Ok(report)) => {
                    tracing::error!(corrupt = ?report.corrupt, "blobs are corrupt: fetched again");
                    self.changed.notify_one();
                }
                Ok(Err(error)) => tracing::warn!(%error, "the scrub did not end"),
                Err(_) => return,
            }
        }
    }
}

/// What the control plane is told of each model.
fn models(
    connection: &rusqlite::Connection,
    registry: &Registry,
    desired: Option<&Desired>,
    troubles: &[Trouble],
) -> Result<Vec<ModelStatus>, CycleError> {
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
fn on_the_way(registry: &Registry, model: &desired::DesiredModel) -> (u64, u64) {
    let blobs = registry.blobs();
    let length_max = fulmar_registry::manifest::MANIFEST_BYTES_MAX;
    let manifest = blobs.read(&model.digest, length_max).ok();
    let Some(manifest) = manifest.and_then(|bytes| Manifest::parse(&bytes).ok()) else {
        return (0, 0);
    };
    let here = manifest.files.iter().map(|file| blobs.bytes_present(&file.digest)).sum();
    (here, manifest.size_bytes())
}

/// New at every start.
fn boot_id() -> String {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 16];
    // Only told apart from the last one: the time does too.
    if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        bytes = since.unwrap_or_default().as_nanos().to_le_bytes();
    }
    hex(&bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
