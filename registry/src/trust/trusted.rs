//! The state of trust in one repository, and the search for a target in it.
//!
//! Invariants:
//! - Root, timestamp and snapshot here were verified in this process: on the way in, or again when
//!   they were loaded from the database.
//! - A targets role is used only when the snapshot lists exactly its version and bytes, and its
//!   signatures were verified against the keys that the role *on the path of this search* names
//!   for it (`links`).
//! - All roles of a repository are stored in one transaction, and never over a newer state.

use std::collections::{BTreeMap, BTreeSet};

use super::date::Date;
use super::envelope::Loaded;
use super::error::TrustError;
use super::metadata::{
    DelegatedRole, FileMeta, ROOT, Root, SNAPSHOT, Snapshot, TARGETS, TIMESTAMP, TargetEntry,
    Targets, Timestamp,
};
use super::pin::RootPin;
use super::time::Learned;

/// Roles that one search visits at most.
pub const SEARCH_ROLES_MAX: usize = 64;

/// The two repositories a device listens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Repo {
    /// The owner's: what may run anywhere. Offline keys.
    Registry,
    /// The control plane's: what this device should run. An online key.
    Director,
}

impl Repo {
    /// The name in tables, files and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Repo::Registry => "registry",
            Repo::Director => "director",
        }
    }
}

/// Verified metadata of one repository.
#[derive(Debug, Clone)]
pub struct Trusted {
    pub(crate) repo: Repo,
    pub(crate) root: Loaded<Root>,
    pub(crate) timestamp: Option<Loaded<Timestamp>>,
    pub(crate) snapshot: Option<Loaded<Snapshot>>,
    pub(crate) targets: BTreeMap<String, Loaded<Targets>>,
    /// Pairs (delegating role, role) whose signatures hold.
    links: BTreeSet<(String, String)>,
    /// The highest signed time seen by the whole device, in seconds since 1970.
    pub(crate) time_floor_s: i64,
    pub(crate) learned: Learned,
    /// What the root of one version must be.
    pub(crate) pin: Option<RootPin>,
    /// Versions of roles that were trusted and were damaged since.
    pub(crate) floors: BTreeMap<String, u64>,
}

/// How a search ended with what is at hand.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// Named by the last of `chain`.
    Target { entry: &'a TargetEntry, chain: Vec<String> },
    /// No role that may name it does.
    Nothing,
    /// `role`, delegated to by `parent`, has to be fetched first.
    Needs { role: String, parent: String },
    /// The limit of roles was met.
    TooManyRoles,
}

impl Trusted {
    /// A state with nothing but `root`, which must be signed by its own threshold of keys.
    ///
    /// # Errors
    /// [`TrustError::Parse`] or [`TrustError::Signatures`].
    pub fn from_root(repo: Repo, root: Vec<u8>) -> Result<Self, TrustError> {
        // 5.2: the trusted root came out of band; its expiry does not matter yet.
        let root: Loaded<Root> = Loaded::parse(ROOT, root)?;
        verify_top(&root, ROOT, &root)?;
        Ok(Self {
            repo,
            root,
            timestamp: None,
            snapshot: None,
            targets: BTreeMap::new(),
            links: BTreeSet::new(),
            time_floor_s: 0,
            learned: Learned::default(),
            pin: None,
            floors: BTreeMap::new(),
        })
    }

    /// Which repository this is.
    #[must_use]
    pub fn repo(&self) -> Repo {
        self.repo
    }

    /// The trusted root.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root.body
    }

    /// The trusted root's version.
    #[must_use]
    pub fn root_version(&self) -> u64 {
        self.root.version()
    }

    /// The trusted timestamp's version.
    #[must_use]
    pub fn timestamp_version(&self) -> Option<u64> {
        self.timestamp.as_ref().map(Loaded::version)
    }

    /// The trusted snapshot's version.
    #[must_use]
    pub fn snapshot_version(&self) -> Option<u64> {
        self.snapshot.as_ref().map(Loaded::version)
    }

    /// The version of the top-level targets that are in use. For the director this is the
    /// generation of the desired state.
    #[must_use]
    pub fn targets_version(&self) -> Option<u64> {
        self.usable(ROOT, TARGETS).map(Loaded::version)
    }

    /// The device that these targets were minted for, where they say so.
    #[must_use]
    pub fn device_id(&self) -> Option<&str> {
        self.usable(ROOT, TARGETS)?.body.extra.get(super::DEVICE_FIELD)?.as_str()
    }

    /// Whether one of the keys that sign this repository's timestamp made `signature` over
    /// `message`.
    #[must_use]
    pub fn timestamp_key_signed(&self, keyid: &str, message: &[u8], signature: &[u8]) -> bool {
        let root = &self.root.body;
        let may = root.roles.get(TIMESTAMP).is_some_and(|r| r.keyids.iter().any(|id| id == keyid));
        let verifier = root.keys.get(keyid).filter(|_| may).and_then(|key| key.verifier());
        verifier.is_some_and(|verifier| verifier.verify(message, signature))
    }

    /// All files held, exactly as they were verified: role name, version, bytes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64, &[u8])> {
        let root = std::iter::once((ROOT, self.root.version(), self.root.bytes.as_slice()));
        let timestamp = self.timestamp.iter().map(|l| (TIMESTAMP, l.version(), l.bytes.as_slice()));
        let snapshot = self.snapshot.iter().map(|l| (SNAPSHOT, l.version(), l.bytes.as_slice()));
        let targets =
            self.targets.iter().map(|(n, l)| (n.as_str(), l.version(), l.bytes.as_slice()));
        root.chain(timestamp).chain(snapshot).chain(targets)
    }

    /// Whether the four top-level roles are there and fit together.
    ///
    /// # Errors
    /// [`TrustError::Incomplete`] with the first role that does not fit.
    pub fn check_complete(&self) -> Result<(), TrustError> {
        let incomplete = |role| TrustError::Incomplete { repo: self.repo.as_str(), role };
        self.timestamp.as_ref().ok_or_else(|| incomplete(TIMESTAMP))?;
        if !self.snapshot_is_current() {
            return Err(incomplete(SNAPSHOT));
        }
        self.usable(ROOT, TARGETS).map(|_| ()).ok_or_else(|| incomplete(TARGETS))
    }

    /// Whether none of the top-level roles is expired at `now_s` or the signed time floor.
    ///
    /// # Errors
    /// [`TrustError::Expired`] or [`TrustError::Incomplete`].
    pub fn check_expiry(&self, now_s: i64) -> Result<(), TrustError> {
        self.check_complete()?;
        let now = Date(self.time(now_s));
        self.root.check_expiry(ROOT, now)?;
        self.timestamp.iter().try_for_each(|l| l.check_expiry(TIMESTAMP, now))?;
        self.snapshot.iter().try_for_each(|l| l.check_expiry(SNAPSHOT, now))?;
        self.targets.get(TARGETS).map_or(Ok(()), |l| l.check_expiry(TARGETS, now))
    }

    /// What is signed about `path`, as far as the roles at hand say; `None` too when a delegated
    /// role that might name it is not at hand. Says nothing about expiry.
    #[must_use]
    pub fn target(&self, path: &str) -> Option<&TargetEntry> {
        match self.search(path) {
            Found::Target { entry, .. } => Some(entry),
            _ => None,
        }
    }

    /// All targets that [`Trusted::target`] would find, by path.
    pub fn targets(&self) -> impl Iterator<Item = (&str, &TargetEntry)> {
        let paths: BTreeSet<&str> = self
            .targets
            .values()
            .flat_map(|role| role.body.targets.keys())
            .map(String::as_str)
            .collect();
        paths.into_iter().filter_map(|path| self.target(path).map(|entry| (path, entry)))
    }

    /// Expiry of the roles of a search's chain at `now`.
    pub(crate) fn check_chain_expiry(&self, chain: &[String], now: Date) -> Result<(), TrustError> {
        chain
            .iter()
            .filter_map(|role| self.targets.get(role).map(|loaded| (role, loaded)))
            .try_for_each(|(role, loaded)| loaded.check_expiry(role, now))
    }

    /// 5.6.7: pre-order depth-first search, beginning with the top-level targets.
    pub(crate) fn search(&self, path: &str) -> Found<'_> {
        // To visit, the next one last: role and the chain that leads to it.
        let mut stack = vec![vec![TARGETS.to_owned()]];
        let mut visited = BTreeSet::new();
        while let Some(chain) = stack.pop() {
            let (role, parent) = match chain.as_slice() {
                [.., parent, role] => (role.clone(), parent.clone()),
                [role] => (role.clone(), ROOT.to_owned()),
                [] => continue,
            };
            // 5.6.7.1: a role visited before is skipped, so cycles end.
            if visited.contains(&role) {
                continue;
            }
            if visited.len() >= SEARCH_ROLES_MAX {
                return Found::TooManyRoles;
            }
            let Some(loaded) = self.usable(&parent, &role) else {
                return Found::Needs { role, parent };
            };
            if let Some(entry) = loaded.body.targets.get(path) {
                return Found::Target { entry, chain };
            }
            visited.insert(role);
            let Some(delegations) = &loaded.body.delegations else { continue };
            // 5.6.7.2: in order of appearance; after a terminating one, no other role is asked.
            let mut children = Vec::new();
            for child in delegations.roles.iter().filter(|child| child.covers(path)) {
                children.push([chain.as_slice(), std::slice::from_ref(&child.name)].concat());
                if child.terminating {
                    stack.clear();
                    break;
                }
            }
            stack.extend(children.into_iter().rev());
        }
        Found::Nothing
    }

    /// Every delegation of the roles in use, as (delegating role, role); roles in use only.
    pub(crate) fn delegations(&self) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        let mut reached = BTreeSet::from([TARGETS.to_owned()]);
        let mut queue: Vec<String> =
            self.usable(ROOT, TARGETS).map(|_| TARGETS.to_owned()).into_iter().collect();
        while let Some(parent) = queue.pop() {
            let delegations = self.targets.get(&parent).and_then(|l| l.body.delegations.as_ref());
            for child in delegations.iter().flat_map(|d| &d.roles) {
                pairs.push((parent.clone(), child.name.clone()));
                if self.usable(&parent, &child.name).is_some() && reached.insert(child.name.clone())
                {
                    queue.push(child.name.clone());
                }
            }
        }
        pairs
    }

    /// The targets metadata of `role`, if the snapshot lists it as it is here and its signatures
    /// hold under `parent`'s keys.
    pub(crate) fn usable(&self, parent: &str, role: &str) -> Option<&Loaded<Targets>> {
        let linked = self.links.contains(&(parent.to_owned(), role.to_owned()));
        if linked { self.targets.get(role) } else { None }
    }

    /// Delegated roles whose metadata are not here, or not as the snapshot lists them.
    #[must_use]
    pub fn roles_not_held(&self) -> usize {
        let delegations = self.delegations().into_iter();
        let missing = delegations.filter(|(parent, role)| self.usable(parent, role).is_none());
        missing.map(|(_, role)| role).collect::<BTreeSet<_>>().len()
    }

    /// What the snapshot says about a targets role.
    pub(crate) fn listed(&self, role: &str) -> Option<&FileMeta> {
        self.snapshot.as_ref()?.body.meta.get(&format!("{role}.json"))
    }

    pub(crate) fn snapshot_is_current(&self) -> bool {
        let meta = self.timestamp.as_ref().and_then(|t| t.body.snapshot());
        match (meta, &self.snapshot) {
            (Some(meta), Some(snapshot)) => {
                meta.version == snapshot.version() && meta.verify(SNAPSHOT, &snapshot.bytes).is_ok()
            }
            _ => false,
        }
    }

    /// Checks the signatures of `loaded` as `role` against the keys that `parent` names for it.
    pub(crate) fn verify_delegated(
        &self,
        parent: &str,
        role: &str,
        loaded: &Loaded<Targets>,
    ) -> Result<(), TrustError> {
        if parent == ROOT {
            return verify_top(loaded, role, &self.root);
        }
        let refuse =
            || TrustError::NotInSnapshot { role: role.to_owned(), parent: parent.to_owned() };
        let delegations = self
            .targets
            .get(parent)
            .and_then(|p| p.body.delegations.as_ref())
            .ok_or_else(refuse)?;
        let DelegatedRole { keys, .. } =
            delegations.roles.iter().find(|r| r.name == role).ok_or_else(refuse)?;
        loaded.verify(role, parent, &delegations.keys, keys)
    }

    /// Whether the snapshot lists `loaded` as it is here.
    fn is_listed(&self, role: &str, loaded: &Loaded<Targets>) -> bool {
        self.listed(role).is_some_and(|meta| {
            meta.version == loaded.version() && meta.verify(role, &loaded.bytes).is_ok()
        })
    }

    /// Recomputes which delegations hold. Called whenever any role changed.
    pub(crate) fn relink(&mut self) {
        let mut links = BTreeSet::new();
        if !self.snapshot_is_current() {
            self.links = links;
            return;
        }
        let listed: BTreeSet<&String> = self
            .targets
            .iter()
            .filter(|(role, l)| self.is_listed(role, l))
            .map(|(r, _)| r)
            .collect();
        let mut edges = vec![(ROOT.to_owned(), TARGETS.to_owned())];
        for (parent, loaded) in &self.targets {
            let children = loaded.body.delegations.iter().flat_map(|d| &d.roles);
            edges.extend(children.map(|child| (parent.clone(), child.name.clone())));
        }
        for (parent, role) in edges {
            let Some(loaded) = self.targets.get(&role).filter(|_| listed.contains(&role)) else {
                continue;
            };
            if self.verify_delegated(&parent, &role, loaded).is_ok() {
                links.insert((parent, role));
            }
        }
        self.links = links;
    }
}

/// Checks the signatures of a top-level role against `root`.
pub(crate) fn verify_top<B: super::metadata::Body>(
    loaded: &Loaded<B>,
    role: &str,
    root: &Loaded<Root>,
) -> Result<(), TrustError> {
    let rule = root.body.roles.get(role).ok_or_else(|| TrustError::Parse {
        role: ROOT.to_owned(),
        reason: format!("field roles: {role} is missing"),
    })?;
    loaded.verify(role, &format!("root version {}", root.version()), &root.body.keys, rule)
}
