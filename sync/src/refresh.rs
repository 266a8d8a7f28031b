//! Bringing both repositories' metadata up to date, and accepting a new desired state: one
//! transaction, and never an older one.

use std::sync::Arc;

use fulmar_policy::audit::{AuditError, Event, Outcome};
use fulmar_registry::Digest;
use fulmar_registry::bundle::Header;
use fulmar_registry::trust::{
    self, Beginning, Fetched, NamedPolicy, POLICY_PATH, PolicyRefused, Refresh, Repo, RootPin,
    Scope, SignedPolicy, TrustError, Trusted, Want,
};
use fulmar_store::{Store, StoreError};
use serde_json::{Value, json};

use crate::clock::SignedClock;
use crate::outbox;
use crate::state;
use crate::transport::{Transport, TransportError};

/// Where metadata come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// The control plane.
    Network(&'a Transport),
    /// A file that somebody carried here, for the device with this id.
    Bundle {
        /// What it holds.
        header: &'a Header,
        /// This device.
        device_id: &'a str,
    },
}

impl Source<'_> {
    async fn metadata(self, repo: Repo, want: &Want) -> Result<Fetched, TransportError> {
        match (self, repo) {
            (Self::Network(transport), _) => transport.metadata(repo, want).await,
            (Self::Bundle { header, .. }, Repo::Registry) => Ok(header.registry_file(want)),
            (Self::Bundle { header, device_id }, Repo::Director) => {
                Ok(header.director_file(device_id, want))
            }
        }
    }

    /// The policy's bytes; in a bundle, they are among its header's files.
    async fn policy(self, named: &NamedPolicy) -> Result<Vec<u8>, TransportError> {
        match self {
            Self::Network(transport) => transport.small_blob(&named.digest, named.length).await,
            // What is not there does not have the named digest either, which says so.
            Self::Bundle { header, .. } => Ok(header.policy().unwrap_or_default()),
        }
    }

    /// A bundle's serial number, to be noted with what it brings.
    fn bundle_serial(self) -> Option<u64> {
        match self {
            Self::Network(_) => None,
            Self::Bundle { header, .. } => Some(header.serial),
        }
    }

    /// For the audit log.
    fn actor(self) -> &'static str {
        match self {
            Self::Network(_) => "control-plane",
            Self::Bundle { .. } => "bundle",
        }
    }
}

/// Longest first root, in bytes.
const ROOT_BYTES_MAX: u64 = 512_000;

/// Why the desired state could not be refreshed.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The network or the control plane.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A file was refused.
    #[error("refresh the {repo} repository: {source}")]
    Trust {
        /// Which repository.
        repo: &'static str,
        /// Why.
        source: Box<TrustError>,
    },
    /// No root was ever trusted.
    #[error("refresh the {repo} repository: no root is trusted; enroll this device again")]
    NoRoot {
        /// Which repository.
        repo: &'static str,
    },
    /// The desired state is older than one that this device has seen.
    #[error(
        "accept generation {found} of the desired state: this device has seen generation {seen}; \
         the control plane was set back, or somebody replays old metadata"
    )]
    OlderGeneration {
        /// The generation offered.
        found: u64,
        /// The newest seen.
        seen: u64,
    },
    /// A newer bundle was taken meanwhile.
    #[error("take bundle {found}: this device has taken bundle {seen}; use the newer one")]
    OlderBundle {
        /// The serial number offered.
        found: u64,
        /// The newest taken.
        seen: u64,
    },
    /// The policy that the registry names was not taken, and nothing else with it: a new state
    /// without its policy would hide what was revoked.
    #[error(transparent)]
    Policy(#[from] Box<PolicyRefused>),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<PolicyRefused> for RefreshError {
    fn from(refused: PolicyRefused) -> Self {
        Self::Policy(Box::new(refused))
    }
}

impl From<rusqlite::Error> for RefreshError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl RefreshError {
    /// Whether something was offered that this device must not accept.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Trust { .. } | Self::OlderGeneration { .. } | Self::Policy(_))
    }

    fn trust(repo: Repo) -> impl Fn(TrustError) -> Self {
        move |source| Self::Trust { repo: repo.as_str(), source: Box::new(source) }
    }
}

/// How a refresh ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refreshed {
    /// The generation of the desired state now.
    pub(crate) generation: u64,
}

/// Refreshes the owner's registry, then the director under the time that the owner bears out, then
/// the registry as far as the director's targets need it; stores both with the new generation.
pub(crate) async fn refresh(
    source: Source<'_>,
    store: &Store,
    clock: &Arc<SignedClock>,
) -> Result<Refreshed, RefreshError> {
    let refreshed = take(source, store, clock).await;
    if let Err(RefreshError::Trust { source, .. }) = &refreshed {
        note_refusal(store, source, clock.clock_s()).await;
    }
    let (refreshed, signed_s) = refreshed?;
    clock.follow(signed_s);
    Ok(refreshed)
}

async fn take(
    source: Source<'_>,
    store: &Store,
    clock: &Arc<SignedClock>,
) -> Result<(Refreshed, i64), RefreshError> {
    let registry = match advance(source, store, clock, Repo::Registry, None).await {
        Ok(registry) => Some(registry),
        // A fleet without a registry yet: nothing is admitted, everything else goes on.
        Err(RefreshError::NoRoot { .. }) => None,
        Err(error) => return Err(error),
    };
    let mut director = advance(source, store, clock, Repo::Director, registry.as_ref()).await?;
    director.believe_time(registry.as_ref()).map_err(RefreshError::trust(Repo::Director))?;
    let registry = match registry {
        Some(registry) => Some(search(source, registry, &director, clock).await?),
        None => None,
    };
    let policy = match &registry {
        // Neither a clock nor the director keeps policies of the past alive.
        Some(registry) => {
            let now_s = director.time(clock.clock_s());
            new_policy(source, store, registry, now_s).await?
        }
        None => None,
    };
    keep(source, store, clock, registry, director, policy).await
}

/// Goes on in the registry to what the director's targets need.
async fn search(
    source: Source<'_>,
    registry: Trusted,
    director: &Trusted,
    clock: &SignedClock,
) -> Result<Trusted, RefreshError> {
    let mut paths: Vec<String> = director.targets().map(|(path, _)| path.to_owned()).collect();
    paths.push(POLICY_PATH.to_owned());
    let refuse = RefreshError::trust(Repo::Registry);
    let now_s = director.time(clock.clock_s());
    let mut refresh = Refresh::resume(registry, now_s, Scope::Paths(paths)).map_err(&refuse)?;
    feed(source, Repo::Registry, &mut refresh).await?;
    refresh.finish().map_err(refuse)
}

/// Stores all that was taken, in one transaction; the highest signed time comes back with it.
async fn keep(
    source: Source<'_>,
    store: &Store,
    clock: &SignedClock,
    registry: Option<Trusted>,
    director: Trusted,
    policy: Option<SignedPolicy>,
) -> Result<(Refreshed, i64), RefreshError> {
    let generation = director.targets_version().unwrap_or_default();
    let (at_s, actor) = (clock.now_s(), source.actor());
    let bundle_serial = source.bundle_serial();
    store
        .write(move |tx| {
            if let Some(registry) = &registry {
                registry.store(tx).map_err(RefreshError::trust(Repo::Registry))?;
            }
            director.store(tx).map_err(RefreshError::trust(Repo::Director))?;
            let time = RefreshError::trust(Repo::Director);
            trust::time_is_accepted(tx).map_err(&time)?;
            if let Some(serial) = bundle_serial
                && let Err(seen) = state::note_bundle(tx, serial)?
            {
                return Err(RefreshError::OlderBundle { found: serial, seen });
            }
            if let Some(policy) = &policy {
                take_policy(tx, policy, at_s, actor)?;
            }
            let before = state::generations(tx)?.seen;
            if let Err(seen) = state::seen(tx, generation)? {
                return Err(RefreshError::OlderGeneration { found: generation, seen });
            }
            if generation > before {
                record_desired(tx, at_s, actor, before, registry.as_ref(), &director)?;
            }
            Ok((Refreshed { generation }, trust::signed_time(tx).map_err(time)?))
        })
        .await
}

fn record_desired(
    tx: &rusqlite::Transaction<'_>,
    at_s: i64,
    actor: &str,
    before: u64,
    registry: Option<&Trusted>,
    director: &Trusted,
) -> Result<(), RefreshError> {
    let generation = director.targets_version().unwrap_or_default();
    let detail = json!({
        "generation": generation,
        "before": before,
        "registry_targets": registry.and_then(Trusted::targets_version),
        "models": director.targets().map(|(path, _)| path).collect::<Vec<_>>(),
    });
    record(tx, at_s, actor, ("desired.accept", &format!("generation/{generation}")), detail)
}

/// Records that an action on a resource was done.
fn record(
    tx: &rusqlite::Transaction<'_>,
    at_s: i64,
    actor: &str,
    (action, resource): (&str, &str),
    detail: Value,
) -> Result<(), RefreshError> {
    let (outcome, opened) = (Outcome::Completed, None);
    outbox::record(tx, &Event { at_s, actor, action, resource, outcome, opened, detail })?;
    Ok(())
}

/// For `fulmar doctor`: a time that was refused, and whose it is.
async fn note_refusal(store: &Store, error: &TrustError, clock_s: i64) {
    let TrustError::TimeAhead { repo, version, signed_at, ref role, ends_at } = *error else {
        return;
    };
    let error = TrustError::TimeAhead { repo, version, signed_at, role: role.clone(), ends_at };
    let noted: Result<(), TrustError> =
        store.write(move |tx| trust::note_time_refused(tx, &error, clock_s)).await;
    if let Err(error) = noted {
        tracing::warn!(%error, "a refused time was not noted");
    }
}

/// The policy that the registry names, if it is another than the one held.
async fn new_policy(
    source: Source<'_>,
    store: &Store,
    registry: &Trusted,
    now_s: i64,
) -> Result<Option<SignedPolicy>, RefreshError> {
    let Some(named) = registry.named_policy(now_s)? else { return Ok(None) };
    let (held, floor) = store
        .read(|c| {
            let refuse = RefreshError::trust(Repo::Registry);
            let floor = trust::policy_floor(c).map_err(&refuse)?;
            // A damaged one is fetched again.
            Ok::<_, RefreshError>((trust::held_policy(c).ok().flatten(), floor))
        })
        .await?;
    if named.is_held(held.as_ref()) {
        return Ok(None);
    }
    let bytes = source.policy(&named).await?;
    Ok(Some(named.accept(bytes, floor)?))
}

fn take_policy(
    tx: &rusqlite::Transaction<'_>,
    policy: &SignedPolicy,
    at_s: i64,
    actor: &str,
) -> Result<(), RefreshError> {
    policy.store(tx, at_s).map_err(RefreshError::trust(Repo::Registry))??;
    let revoked = policy.policy().revoked();
    let counts: serde_json::Map<_, _> = revoked
        .lists()
        .into_iter()
        .map(|(name, list)| (name.to_owned(), list.len().into()))
        .collect();
    let version = policy.policy().version();
    let detail = json!({
        "version": version,
        "digest": policy.digest(),
        "max_offline_s": policy.policy().max_offline_s(),
        "revoked": counts,
    });
    record(tx, at_s, actor, ("policy.accept", &format!("policy/{version}")), detail)
}

/// Runs one repository's client workflow over its top-level roles, under the time that `owner`, the
/// registry refreshed before it, leaves in force. What was verified before a failure is stored all
/// the same: newer versions in it protect against rollback.
async fn advance(
    source: Source<'_>,
    store: &Store,
    clock: &SignedClock,
    repo: Repo,
    owner: Option<&Trusted>,
) -> Result<Trusted, RefreshError> {
    let trusted = match load(source, store, repo).await? {
        Some(trusted) => trusted,
        None => first_root(source, store, clock, repo).await?,
    };
    let trusted = match owner {
        Some(owner) => trusted.under_time_of(owner),
        None => trusted,
    };
    let mut refresh = Refresh::new(trusted, clock.clock_s());
    let fed = feed(source, repo, &mut refresh).await;
    match fed {
        Ok(()) => refresh.finish().map_err(RefreshError::trust(repo)),
        Err(error) => {
            let progress = refresh.into_progress();
            let kept: Result<(), RefreshError> =
                store.write(move |tx| progress.store(tx).map_err(RefreshError::trust(repo))).await;
            if let Err(error) = kept {
                tracing::warn!(%error, "a refresh's progress was not kept");
            }
            Err(error)
        }
    }
}

/// What is trusted; where its root was damaged, trust as it begins again.
pub(crate) async fn load(
    source: Source<'_>,
    store: &Store,
    repo: Repo,
) -> Result<Option<Trusted>, RefreshError> {
    let loaded: Result<_, RefreshError> = store
        .read(move |connection| Trusted::load(connection, repo).map_err(RefreshError::trust(repo)))
        .await;
    let damage = match loaded {
        Err(RefreshError::Trust { source, .. }) if source.is_damage() => source,
        loaded => return loaded,
    };
    let refuse = RefreshError::trust(repo);
    let beginning =
        store.read(move |c| Beginning::of(c, repo).map_err(RefreshError::trust(repo))).await?;
    let Some(beginning) = beginning else { return Err(refuse(*damage)) };
    let file_name = beginning.file_name.clone();
    let want = Want { file_name, length_max: ROOT_BYTES_MAX };
    let Fetched::Found(root) = source.metadata(repo, &want).await? else {
        return Err(refuse(*damage));
    };
    tracing::warn!(repo = repo.as_str(), error = %damage, "trust begins again with its first root");
    store
        .read(move |c| beginning.again(c, repo, root).map_err(RefreshError::trust(repo)))
        .await
        .map(Some)
}

/// The registry's first root, where trust in it was forgotten since this device joined: the one that
/// was pinned then, and no other.
async fn first_root(
    source: Source<'_>,
    store: &Store,
    clock: &SignedClock,
    repo: Repo,
) -> Result<Trusted, RefreshError> {
    if repo != Repo::Registry {
        return Err(RefreshError::NoRoot { repo: repo.as_str() });
    }
    let pin: Option<RootPin> = store
        .read(move |connection| RootPin::load(connection, repo).map_err(RefreshError::trust(repo)))
        .await?;
    let Some(pin) = pin else { return Err(RefreshError::NoRoot { repo: repo.as_str() }) };
    let file_name = format!("{}.root.json", pin.version);
    let want = Want { file_name, length_max: ROOT_BYTES_MAX };
    let Fetched::Found(root) = source.metadata(repo, &want).await? else {
        return Err(RefreshError::NoRoot { repo: repo.as_str() });
    };
    let (at_s, actor) = (clock.now_s(), source.actor());
    store
        .write(move |tx| {
            let trusted =
                Trusted::bootstrap(tx, repo, &root, at_s).map_err(RefreshError::trust(repo))?;
            let detail =
                json!({ "root_digest": Digest::of(&root), "version": trusted.root_version() });
            record(tx, at_s, actor, ("trust.bootstrap", repo.as_str()), detail)?;
            Ok(trusted)
        })
        .await
}

async fn feed(source: Source<'_>, repo: Repo, refresh: &mut Refresh) -> Result<(), RefreshError> {
    while let Some(want) = refresh.next() {
        let fetched = source.metadata(repo, &want).await?;
        refresh.feed(fetched).map_err(RefreshError::trust(repo))?;
    }
    Ok(())
}
