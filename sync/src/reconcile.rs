//! Carrying a plan out: fetch, install, check, activate, remove, collect garbage. Every change is
//! one transaction with its audit entry and its report.
//!
//! A step that fails ends that model's part; the others go on. What went wrong for good is noted in
//! the catalog, everything else is tried again later.

use std::collections::BTreeSet;
use std::sync::Arc;

use fulmar_policy::audit::{AuditError, Event, Outcome};
use fulmar_registry::blobs::{Donors, Expected};
use fulmar_registry::catalog::{self, CatalogError, DamagedRow, Filter};
use fulmar_registry::gc::{self, Garbage, GcError, Keep};
use fulmar_registry::trust::{Admitted, TrustError};
use fulmar_registry::{
    Authority, Blobs, Digest, Manifest, ModelName, ModelRef, Registry, Signed, Standing,
    VerifiedModel,
};
use fulmar_store::StoreError;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::clock::SignedClock;
use crate::desired::{Desired, in_words};
use crate::download::{DownloadError, Downloader, LinkCost};
use crate::outbox;
use crate::plan::{Actual, Files, Held, Origin, Plan, Step, plan};
use crate::status::{Progress, Trouble};
use crate::transport::{Transport, TransportError};

/// What a model showed on this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// It keeps its health contract.
    Healthy,
    /// It does not: never to be activated by itself again.
    Unhealthy {
        /// What it showed, in words.
        reason: String,
    },
    /// It could not be tried now: no room, engine busy.
    NotNow {
        /// Why, in words.
        reason: String,
    },
}

/// What the agent does for the link.
pub struct Hooks {
    /// Tries a model out before it serves: loads it, asks its golden prompts.
    pub check: Box<dyn Fn(VerifiedModel) -> BoxFuture<'static, Checked> + Send + Sync>,
    /// Slots have changed: serve what is active now, drop what is not.
    pub changed: Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
    /// These blobs were found broken: what the engine made of them leaves it, before they are fetched
    /// again.
    pub damaged: Box<dyn Fn(Vec<Digest>) -> BoxFuture<'static, ()> + Send + Sync>,
    /// Releases that the engine holds, and their files; garbage collection spares them.
    pub running: Box<dyn Fn() -> BTreeSet<Digest> + Send + Sync>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The manifest did not come.
    #[error("fetch the manifest: {0}")]
    Manifest(#[from] TransportError),
    /// The manifest is not the admitted one.
    #[error(transparent)]
    Refused(#[from] fulmar_registry::ManifestRefused),
    /// A blob did not come.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The store of blobs.
    #[error(transparent)]
    Blobs(#[from] fulmar_registry::BlobError),
    /// A collection is under way.
    #[error(transparent)]
    Lock(#[from] gc::LockError),
    /// The owner's policy.
    #[error(transparent)]
    Trust(#[from] Box<TrustError>),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] fulmar_registry::LoadError),
    /// It does not keep its health contract.
    #[error("activate: it is not healthy on this device: {reason}")]
    Unhealthy {
        /// What it showed.
        reason: String,
    },
    /// It could not be tried out.
    #[error("activate: it cannot be tried out now: {reason}")]
    NotNow {
        /// Why.
        reason: String,
    },
    /// The audit log refused; so nothing was done.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Garbage.
    #[error(transparent)]
    Gc(#[from] GcError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The process is ending.
    #[error("stopped")]
    Stopped,
}

impl StepError {
    /// Whether only the way to the control plane is to blame.
    fn is_offline(&self) -> bool {
        match self {
            Self::Manifest(error) => error.is_offline(),
            Self::Download(error) => error.is_offline(),
            _ => false,
        }
    }
}

/// How a round ended.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Models that do not come on.
    pub(crate) troubles: Vec<Trouble>,
    /// Whether the desired state is reached; a release beside it that could not be mended leaves it
    /// so.
    pub(crate) reached: bool,
    /// Whether trying again by itself may help.
    pub(crate) retry: Retry,
}

/// Whether a round is worth repeating.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// All is done, or waits for somebody.
    #[default]
    No,
    /// Something may go better later.
    Later,
}

/// Carries plans out.
#[derive(Debug)]
pub(crate) struct Reconciler {
    pub(crate) registry: Registry,
    pub(crate) transport: Transport,
    pub(crate) downloader: Downloader,
    pub(crate) clock: Arc<SignedClock>,
    pub(crate) hooks: Hooks,
}

/// The device's models, as the planner wants them.
pub(crate) fn actual(
    connection: &rusqlite::Connection,
    blobs: &Blobs,
    standing: &Standing,
) -> Result<Actual, CatalogError> {
    let mut held: Vec<Held> = catalog::list(connection, &Filter::default())?
        .into_iter()
        .map(|model| {
            let complete =
                model.manifest.files.iter().all(|f| blobs.contains(&f.digest, f.size_bytes));
            Held {
                digest: model.digest,
                slot: model.slot,
                files: if complete { Files::Complete } else { Files::Missing },
                origin: match model.authority {
                    Authority::TwoRepositories { .. } => Origin::Fleet,
                    Authority::LocalOwner { .. } => Origin::Local,
                },
                pinned: model.pinned,
                revoked: standing
                    .check_model(
                        model.manifest.files.iter().map(|f| &f.digest).chain([&model.digest]),
                    )
                    .is_err(),
                name: model.manifest.name,
            }
        })
        .collect();
    held.extend(catalog::damaged(connection)?.into_iter().filter_map(damaged));
    Ok(Actual { held, failed: catalog::failures(connection)? })
}

/// What is left of a release whose row is damaged: to be installed again, or removed.
fn damaged(row: DamagedRow) -> Option<Held> {
    Some(Held {
        name: row.name.parse().ok()?,
        digest: row.digest?,
        slot: row.slot,
        files: Files::Unknown,
        origin: match row.authority {
            Some(Authority::LocalOwner { .. }) => Origin::Local,
            _ => Origin::Fleet,
        },
        pinned: row.pinned,
        revoked: false,
    })
}

impl Reconciler {
    /// One round: plans, and carries out what can be. `report` hears of downloads.
    pub(crate) async fn round(
        &self,
        desired: &Desired,
        cost: LinkCost,
        report: &(dyn Fn(Option<Progress>) + Send + Sync),
    ) -> Result<Round, StepError> {
        let Plan { steps, blocked } = self.plan(desired).await?;
        let mut round = Round { reached: blocked.is_empty(), ..Round::default() };
        for blocked in blocked {
            round.troubles.push(Trouble {
                model: blocked.name.to_string(),
                digest: blocked.digest.to_string(),
                reason: blocked.reason,
            });
        }
        let mut stuck: BTreeSet<ModelName> = BTreeSet::new();
        let acted = !steps.is_empty();
        for step in steps {
            let (name, digest) = subject(&step);
            // Mending a release that is not the desired one waits for nothing.
            let beside = matches!(step, Step::Repair { .. })
                && digest.is_some_and(|digest| !desired.wants(&name, &digest));
            if stuck.contains(&name) && !beside {
                continue;
            }
            let Err(error) = self.step(step, cost, report).await else { continue };
            report(None);
            if matches!(error, StepError::Stopped) {
                return Err(error);
            }
            let reason = in_words(&error);
            tracing::warn!(model = %name, reason, "a model does not come on");
            // A model that failed for good waits for somebody; all else is worth another try.
            if !matches!(error, StepError::Unhealthy { .. }) {
                round.retry = Retry::Later;
            }
            if !error.is_offline() {
                let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
                round.troubles.push(Trouble { model: name.to_string(), digest, reason });
            }
            if !beside {
                round.reached = false;
                stuck.insert(name);
            }
        }
        if acted && let Err(error) = self.collect(desired).await {
            tracing::warn!(error = in_words(&error), "garbage was not collected");
        }
        Ok(round)
    }

    async fn plan(&self, desired: &Desired) -> Result<Plan, StepError> {
        let (blobs, desired) = (self.registry.blobs().clone(), desired.clone());
        self.registry
            .store()
            .read(move |connection| {
                let standing = Standing::load(connection).map_err(Box::new)?;
                Ok::<_, StepError>(plan(&desired, &actual(connection, &blobs, &standing)?))
            })
            .await
    }

    async fn step(
        &self,
        step: Step,
        cost: LinkCost,
        report: &(dyn Fn(Option<Progress>) + Send + Sync),
    ) -> Result<(), StepError> {
        match step {
            Step::Install(admitted) => {
                let done = self.install(*admitted, cost, report).await;
                report(None);
                done
            }
            Step::Repair { name, digest } => {
                let done = self.repair(name, digest, cost, report).await;
                report(None);
                done
            }
            Step::Activate { name, digest } => self.activate(name, digest).await,
            Step::Deactivate { name } => self.deactivate(name).await,
            Step::Remove { name, digest } => self.remove(name, digest).await,
        }
    }

    async fn install(
        &self,
        admitted: Admitted,
        cost: LinkCost,
        report: &(dyn Fn(Option<Progress>) + Send + Sync),
    ) -> Result<(), StepError> {
        let blobs = self.registry.blobs().clone();
        let _hold = gc::hold(&blobs)?;
        let digest = admitted.digest();
        let bytes = self.manifest_bytes(&admitted).await?;
        let signed = Signed::admit(admitted, bytes)?;
        self.fetch(signed.manifest(), digest, cost, report).await?;
        let at_s = self.clock.now_s();
        let store_blobs = blobs.clone();
        let name = signed.name().clone();
        self.write(move |tx| {
            catalog::install(tx, &signed, &store_blobs, at_s)?;
            let detail = json!({
                "digest": digest,
                "release": signed.manifest().release,
                "bytes": signed.manifest().size_bytes(),
                "authority": signed.authority(),
            });
            done(tx, at_s, "model.install", &name, Outcome::Completed, detail)
        })
        .await
    }

    /// Fetches what is gone of an installed release, as its manifest in the catalog names it.
    async fn repair(
        &self,
        name: ModelName,
        digest: Digest,
        cost: LinkCost,
        report: &(dyn Fn(Option<Progress>) + Send + Sync),
    ) -> Result<(), StepError> {
        let _hold = gc::hold(self.registry.blobs())?;
        let reference = ModelRef { name: name.clone(), digest: Some(digest) };
        let installed = self.registry.store().read(move |c| catalog::find(c, &reference)).await?;
        self.fetch(&installed.manifest, digest, cost, report).await?;
        let at_s = self.clock.now_s();
        self.write(move |tx| {
            let detail = json!({ "digest": digest });
            done(tx, at_s, "model.repair", &name, Outcome::Completed, detail)
        })
        .await?;
        (self.hooks.changed)().await;
        Ok(())
    }

    /// Brings a release's files in, as far as they are not here. What all of them cost on a metered
    /// link is known before the first byte is fetched.
    async fn fetch(
        &self,
        manifest: &Manifest,
        digest: Digest,
        cost: LinkCost,
        report: &(dyn Fn(Option<Progress>) + Send + Sync),
    ) -> Result<(), StepError> {
        let blobs = self.registry.blobs();
        let progress = || Progress {
            model: manifest.name.to_string(),
            digest: digest.to_string(),
            bytes_done: manifest.files.iter().map(|f| blobs.bytes_present(&f.digest)).sum(),
            bytes_total: manifest.size_bytes(),
        };
        let (mut wanted, mut missing_bytes) = (Vec::new(), 0);
        for file in &manifest.files {
            let expected = Expected::from(file);
            let donors = self.donors(&expected).await?;
            missing_bytes += donors.missing_bytes(&expected, blobs.bytes_present(&file.digest));
            wanted.push((expected, donors));
        }
        self.downloader.check_cost(&manifest.name, missing_bytes, cost)?;
        for (expected, donors) in &wanted {
            let fetch = self.downloader.fetch(expected, donors, cost);
            tokio::pin!(fetch);
            let mut tick = tokio::time::interval(std::time::Duration::from_millis(500));
            loop {
                tokio::select! {
                    fetched = &mut fetch => { fetched?; break }
                    _ = tick.tick() => report(Some(progress())),
                }
            }
        }
        Ok(())
    }

    /// What the device has already of a blob: in other releases, in quarantine.
    async fn donors(&self, expected: &Expected) -> Result<Arc<Donors>, StepError> {
        let (blobs, expected) = (self.registry.blobs().clone(), expected.clone());
        let read = move |connection: &rusqlite::Connection| {
            let installed = catalog::list(connection, &Filter::default())?;
            let files = installed.iter().flat_map(|model| &model.manifest.files);
            Ok::<_, StepError>(Arc::new(Donors::of(&blobs, &expected, files)))
        };
        self.registry.store().read(read).await
    }

    /// From the store where an earlier try left it, else from the control plane.
    async fn manifest_bytes(&self, admitted: &Admitted) -> Result<Vec<u8>, StepError> {
        let (digest, length) = (admitted.digest(), admitted.length());
        let blobs = self.registry.blobs().clone();
        if blobs.contains(&digest, length)
            && let Ok(bytes) = blobs.read(&digest, length)
        {
            return Ok(bytes);
        }
        let bytes = self.transport.small_blob(&digest, length).await?;
        if Digest::of(&bytes) == digest {
            let copy = bytes.clone();
            blocking(move || blobs.put(&copy)).await??;
        }
        Ok(bytes)
    }

    async fn activate(&self, name: ModelName, digest: Digest) -> Result<(), StepError> {
        let registry = self.registry.clone();
        let reference = ModelRef { name: name.clone(), digest: Some(digest) };
        let verified = blocking(move || registry.verified_model(&reference)).await??;
        let at_s = self.clock.now_s();
        match (self.hooks.check)(verified).await {
            Checked::Healthy => {}
            Checked::NotNow { reason } => return Err(StepError::NotNow { reason }),
            Checked::Unhealthy { reason } => {
                let told = reason.clone();
                self.write(move |tx| {
                    catalog::fail(tx, &name, &digest, &told, at_s)?;
                    let detail = json!({ "digest": digest, "reason": told });
                    done(tx, at_s, "model.activate", &name, Outcome::Failed, detail)
                })
                .await?;
                return Err(StepError::Unhealthy { reason });
            }
        }
        self.write(move |tx| {
            let activated = catalog::activate(tx, &name, &digest, at_s)?;
            let previous = match activated {
                catalog::Activated::Already => return Ok(()),
                catalog::Activated::Now { previous } => previous,
            };
            let detail = json!({ "digest": digest, "previous": previous });
            done(tx, at_s, "model.activate", &name, Outcome::Completed, detail)
        })
        .await?;
        (self.hooks.changed)().await;
        Ok(())
    }

    async fn deactivate(&self, name: ModelName) -> Result<(), StepError> {
        let at_s = self.clock.now_s();
        self.write(move |tx| {
            let Some(digest) = catalog::deactivate(tx, &name, at_s)? else { return Ok(()) };
            let detail = json!({ "digest": digest });
            done(tx, at_s, "model.deactivate", &name, Outcome::Completed, detail)
        })
        .await?;
        (self.hooks.changed)().await;
        Ok(())
    }

    async fn remove(&self, name: ModelName, digest: Digest) -> Result<(), StepError> {
        let at_s = self.clock.now_s();
        self.write(move |tx| {
            catalog::remove(tx, &name, &digest)?;
            done(tx, at_s, "model.remove", &name, Outcome::Completed, json!({ "digest": digest }))
        })
        .await
    }

    /// Frees what neither the catalog nor the desired state needs.
    async fn collect(&self, desired: &Desired) -> Result<(), StepError> {
        let blobs = self.registry.blobs().clone();
        let lock = match gc::lock(&blobs) {
            Ok(lock) => lock,
            // Somebody imports a model: the next round will do.
            Err(gc::LockError::Installing) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let keep = wanted(&blobs, desired, (self.hooks.running)());
        let at_s = self.clock.now_s();
        let shared = blobs.clone();
        let (garbage, lock) = self
            .registry
            .store()
            .write(move |tx| {
                let garbage = gc::collect(tx, &shared, &keep, &lock)?;
                if garbage != Garbage::default() {
                    let detail = json!({
                        "bytes": garbage.bytes(),
                        "models": garbage.models,
                        "blobs": garbage.blobs.len(),
                    });
                    let event = event(at_s, "garbage.collect", "blobs", Outcome::Completed, detail);
                    outbox::record(tx, &event)?;
                }
                Ok::<_, StepError>((garbage, lock))
            })
            .await?;
        blocking(move || garbage.sweep(&blobs, &lock)).await??;
        Ok(())
    }

    async fn write(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), StepError> + Send + 'static,
    ) -> Result<(), StepError> {
        self.registry.store().write(work).await
    }
}

/// What garbage collection has to spare besides what the catalog says: the desired releases, their
/// manifests and the files that these name, and the releases that the engine holds.
#[must_use]
pub fn wanted(blobs: &Blobs, desired: &Desired, running: BTreeSet<Digest>) -> Keep {
    let mut keep = Keep { blobs: running.clone(), models: running };
    for model in &desired.models {
        keep.models.insert(model.digest);
        keep.blobs.insert(model.digest);
        // A manifest that has come already says which files are on their way.
        let length_max = fulmar_registry::manifest::MANIFEST_BYTES_MAX;
        if let Ok(bytes) = blobs.read(&model.digest, length_max)
            && let Ok(manifest) = Manifest::parse(&bytes)
        {
            keep.blobs.extend(manifest.files.iter().map(|file| file.digest));
        }
    }
    keep
}

fn subject(step: &Step) -> (ModelName, Option<Digest>) {
    match step {
        Step::Install(admitted) => (admitted.name().clone(), Some(admitted.digest())),
        Step::Repair { name, digest }
        | Step::Activate { name, digest }
        | Step::Remove { name, digest } => (name.clone(), Some(*digest)),
        Step::Deactivate { name } => (name.clone(), None),
    }
}

fn event<'a>(
    at_s: i64,
    action: &'a str,
    resource: &'a str,
    outcome: Outcome,
    detail: Value,
) -> Event<'a> {
    Event { at_s, actor: "control-plane", action, resource, outcome, opened: None, detail }
}

/// Records a step, in its transaction.
fn done(
    tx: &rusqlite::Transaction<'_>,
    at_s: i64,
    action: &str,
    name: &ModelName,
    outcome: Outcome,
    detail: Value,
) -> Result<(), StepError> {
    let name = name.to_string();
    outbox::record(tx, &event(at_s, action, &name, outcome, detail))?;
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StepError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StepError::Stopped)
}
