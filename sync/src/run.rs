//! The link's life: check in, accept what is new, hand reports in, and carry plans out beside it.
//!
//! Two loops. One talks to the control plane on a schedule; the other brings the device to the
//! desired state, so that a download of hours holds up no check-in. Both live through a control
//! plane that is away, and through restarts: all they know is in the database.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fulmar_protocol::DeviceFacts;
use fulmar_registry::Registry;
use fulmar_registry::trust;
use fulmar_store::{Store, StoreError};
use tokio::sync::{Notify, RwLock, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::SignedClock;
use crate::desired::{self, Desired, in_words};
use crate::download::{Downloader, Limits, LinkCost};
use crate::identity::Identity;
use crate::mirror::Mirror;
use crate::outbox;
use crate::reconcile::{Hooks, Reconciler, Retry};
use crate::refresh::RefreshError;
use crate::schedule::{self, Schedule};
use crate::scrub::scrub;
use crate::state;
use crate::status::{Link, Progress, Status};
use crate::transport::{Transport, TransportError};

mod cycle;
mod tell;

use cycle::CycleError;
pub(crate) use cycle::{hex, unhex};
pub(crate) use tell::{Parts, models};

/// Settings of the link.
#[derive(Debug, Clone)]
pub struct Options {
    /// When to check in.
    pub schedule: schedule::Options,
    /// Limits of downloads.
    pub downloads: Limits,
    /// What the network costs.
    pub cost: LinkCost,
    /// Where blobs are asked for before the control plane, in this order.
    pub blob_urls: Vec<String>,
    /// How long between two scrubs of all blobs, in seconds; 0: never.
    pub scrub_interval_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schedule: schedule::Options::default(),
            downloads: Limits::default(),
            cost: LinkCost::default(),
            blob_urls: Vec::new(),
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
        let mirrors = Mirror::all(&options.blob_urls)?;
        let downloader =
            Downloader::new(transport.clone(), registry.blobs().clone(), options.downloads)
                .with_mirrors(mirrors);
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
        let before = self.status.borrow().troubles.clone();
        self.status.send_modify(|status| status.troubles.clone_from(&round.troubles));
        if round.reached {
            self.applied(desired.generation).await.map_err(|error| in_words(&error))?;
        }
        if before != round.troubles && !round.troubles.is_empty() {
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

    /// Reads all blobs now and then; what is broken leaves the engine, and is fetched again.
    async fn scrub(&self) {
        let blobs = self.registry.blobs().clone();
        let found = |corrupt| async move {
            (self.reconciler.hooks.damaged)(corrupt).await;
            self.changed.notify_one();
        };
        scrub(blobs, self.options.scrub_interval_s, found).await;
    }
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
    cycle::hex(&bytes)
}
