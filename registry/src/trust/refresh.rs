//! The client workflow of the TUF specification (1.0.x, section 5) as a state machine without I/O:
//! it says which file it wants, takes what was fetched, and verifies. Comments carry the
//! specification's step numbers.
//!
//! Invariants:
//! - The time is fixed when the refresh begins (5.1), and never earlier than the highest signed
//!   time seen; only a root with the owner's reset changes it.
//! - A refused file changes nothing. What was verified before it stays verified:
//!   [`Refresh::into_progress`] gives it out, and storing it keeps the protection against rollback
//!   that it brings.
//! - A refused delegated role ends the searches that need it, and no others: one team's mistake does
//!   not hold up the rest. It is told in [`Refresh::refused`].
//!
//! Deliberately absent: fetching, retries, mirrors.

use std::collections::BTreeSet;

use super::date::Date;
use super::envelope::Loaded;
use super::error::TrustError;
use super::metadata::{
    ROOT, Root, SNAPSHOT, Snapshot, TARGETS, TIMESTAMP, Targets, Timestamp, encoded,
};
use super::trusted::{Found, Repo, SEARCH_ROLES_MAX, Trusted, verify_top};

/// Longest files accepted, in bytes, and most roots in one refresh.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest root.
    pub root_length_max: u64,
    /// Longest timestamp.
    pub timestamp_length_max: u64,
    /// Longest snapshot.
    pub snapshot_length_max: u64,
    /// Longest targets metadata, top-level or delegated.
    pub targets_length_max: u64,
    /// New roots taken in one refresh.
    pub roots_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            root_length_max: 512_000,
            timestamp_length_max: 16_384,
            snapshot_length_max: 2_000_000,
            targets_length_max: 5_000_000,
            roots_max: 256,
        }
    }
}

/// How far a refresh goes beyond the four top-level roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Not at all.
    TopLevel,
    /// To the delegated roles that the search for these target paths meets.
    Paths(Vec<String>),
    /// To all delegated roles.
    Everything,
}

/// A file that the refresh needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Its name below the repository's metadata folder or URL; already percent-encoded.
    pub file_name: String,
    /// The fetcher stops after this many bytes and refuses the file as [`TrustError::TooLong`].
    pub length_max: u64,
}

/// How a fetch ended. A fetch that failed for another reason than absence is not fed at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The whole file.
    Found(Vec<u8>),
    /// The repository answered that there is no such file.
    NotFound,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Root { taken: usize },
    Timestamp,
    Snapshot,
    Targets,
    Delegated { role: String, parent: String },
    Done,
}

/// One run of the client workflow.
#[derive(Debug)]
pub struct Refresh {
    trusted: Trusted,
    clock_s: i64,
    now: Date,
    limits: Limits,
    scope: Scope,
    stage: Stage,
    refused: Vec<TrustError>,
    /// Delegations (role, delegating role) that are not tried again.
    skipped: BTreeSet<(String, String)>,
}

impl Refresh {
    /// Begins at the root. `now_s` is the clock, in seconds since 1970 (5.1: fixed from here on).
    #[must_use]
    pub fn new(trusted: Trusted, now_s: i64) -> Self {
        let now = Date(trusted.time(now_s));
        let (limits, scope) = (Limits::default(), Scope::TopLevel);
        let (refused, skipped) = (Vec::new(), BTreeSet::new());
        let stage = Stage::Root { taken: 0 };
        Self { trusted, clock_s: now_s, now, limits, scope, stage, refused, skipped }
    }

    /// Begins behind the top-level roles of a `trusted` that was refreshed just now, to search for
    /// more.
    ///
    /// # Errors
    /// [`TrustError::Incomplete`] or [`TrustError::Expired`]: a full refresh is needed.
    pub fn resume(trusted: Trusted, now_s: i64, scope: Scope) -> Result<Self, TrustError> {
        trusted.check_expiry(now_s)?;
        let mut refresh = Self { scope, stage: Stage::Done, ..Self::new(trusted, now_s) };
        refresh.enter_delegated();
        Ok(refresh)
    }

    /// With how far to go beyond the top-level roles.
    #[must_use]
    pub fn scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// With limits of the caller's choice.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The file to fetch next; `None` when the refresh is through.
    #[must_use]
    pub fn next(&self) -> Option<Want> {
        let consistent = self.trusted.root.body.consistent_snapshot;
        let versioned = |role: &str, version: u64| match consistent {
            true => format!("{version}.{}.json", encoded(role)),
            false => format!("{}.json", encoded(role)),
        };
        let targets = |role: &str| {
            let meta = self.trusted.listed(role)?;
            Some(Want {
                file_name: versioned(role, meta.version),
                length_max: meta.length.unwrap_or(u64::MAX).min(self.limits.targets_length_max),
            })
        };
        match &self.stage {
            // 5.3.3: roots always carry their version.
            Stage::Root { .. } => Some(Want {
                file_name: format!("{}.root.json", self.trusted.root_version().saturating_add(1)),
                length_max: self.limits.root_length_max,
            }),
            Stage::Timestamp => Some(Want {
                file_name: "timestamp.json".to_owned(),
                length_max: self.limits.timestamp_length_max,
            }),
            Stage::Snapshot => {
                let meta = self.trusted.timestamp.as_ref().and_then(|t| t.body.snapshot())?;
                Some(Want {
                    file_name: versioned(SNAPSHOT, meta.version),
                    length_max: meta
                        .length
                        .unwrap_or(u64::MAX)
                        .min(self.limits.snapshot_length_max),
                })
            }
            Stage::Targets => targets(TARGETS),
            Stage::Delegated { role, .. } => targets(role),
            Stage::Done => None,
        }
    }

    /// Whether the next file is a root.
    fn wants_root(&self) -> bool {
        matches!(self.stage, Stage::Root { .. })
    }

    /// Takes in what was fetched for [`Refresh::next`].
    ///
    /// # Errors
    /// What is wrong with the file; nothing of it was kept, and the refresh is still where it was.
    /// What is wrong with a delegated role goes to [`Refresh::refused`] instead.
    pub fn feed(&mut self, fetched: Fetched) -> Result<(), TrustError> {
        let delegated = match &self.stage {
            Stage::Delegated { role, parent } => Some((role.clone(), parent.clone())),
            _ => None,
        };
        match (self.take(fetched), delegated) {
            (Err(error), Some(delegated)) => {
                // 5.6.7: what cannot be downloaded or validated ends the search.
                self.refused.push(error);
                self.skipped.insert(delegated);
                self.enter_delegated();
                Ok(())
            }
            (taken, _) => taken,
        }
    }

    /// Why delegated roles that the scope asked for are not in use, if any are not.
    #[must_use]
    pub fn refused(&self) -> &[TrustError] {
        &self.refused
    }

    fn take(&mut self, fetched: Fetched) -> Result<(), TrustError> {
        let want = self.next().ok_or(TrustError::NotWanted)?;
        let bytes = match fetched {
            Fetched::NotFound if matches!(self.stage, Stage::Root { .. }) => {
                return self.roots_are_through();
            }
            Fetched::NotFound => return Err(TrustError::Missing { file: want.file_name }),
            Fetched::Found(bytes) if bytes.len() as u64 > want.length_max => {
                let (file, length_max) = (want.file_name, want.length_max);
                return Err(TrustError::TooLong { file, length_max });
            }
            Fetched::Found(bytes) => bytes,
        };
        match self.stage.clone() {
            Stage::Root { taken } => self.root(bytes, taken),
            Stage::Timestamp => self.timestamp(bytes),
            Stage::Snapshot => self.snapshot(bytes),
            Stage::Targets => self.targets(ROOT, TARGETS, bytes),
            Stage::Delegated { role, parent } => self.targets(&parent, &role, bytes),
            Stage::Done => Err(TrustError::NotWanted),
        }
    }

    /// Feeds all wanted files from `fetch`, for callers that have them at hand.
    ///
    /// # Errors
    /// As [`Refresh::feed`].
    pub fn feed_all(&mut self, mut fetch: impl FnMut(&Want) -> Fetched) -> Result<(), TrustError> {
        while let Some(want) = self.next() {
            self.feed(fetch(&want))?;
        }
        Ok(())
    }

    /// The refreshed state: the top-level roles, and all that the scope asked for but for what
    /// [`Refresh::refused`] tells. The registry's signed time is believed now, as far as its own
    /// roles bear it out; a director's never by itself ([`Trusted::believe_time`]).
    ///
    /// # Errors
    /// [`TrustError::Unfinished`] while a file is still wanted; [`TrustError::TimeAhead`].
    pub fn finish(mut self) -> Result<Trusted, TrustError> {
        if let Some(want) = self.next() {
            return Err(TrustError::Unfinished { file: want.file_name });
        }
        if self.trusted.repo == Repo::Registry {
            self.trusted.believe_own_time()?;
        }
        Ok(self.trusted)
    }

    /// The state as far as it was verified, also after a refused file. Worth storing: newer
    /// versions in it protect against rollback. It admits nothing unless it is complete.
    #[must_use]
    pub fn into_progress(self) -> Trusted {
        self.trusted
    }

    fn root(&mut self, bytes: Vec<u8>, taken: usize) -> Result<(), TrustError> {
        if taken >= self.limits.roots_max {
            return Err(TrustError::TooManyRoots { max: self.limits.roots_max });
        }
        let new: Loaded<Root> = Loaded::parse(ROOT, bytes)?;
        // 5.3.4: signed by a threshold of the trusted root's keys and of its own.
        verify_top(&new, ROOT, &self.trusted.root)?;
        verify_top(&new, ROOT, &new)?;
        // 5.3.5: exactly the next version.
        let expected = self.trusted.root_version().saturating_add(1);
        if new.version() != expected {
            return Err(TrustError::RootVersion { expected, found: new.version() });
        }
        if let Some(pin) = &self.trusted.pin {
            pin.check(self.trusted.repo, new.version(), &new.bytes)?;
        }
        // 5.3.6: an intermediate root may be expired. 5.3.7, 5.3.8: it is the trusted one now.
        let old = std::mem::replace(&mut self.trusted.root, new);
        self.recover_from_fast_forward(&old);
        self.trusted.follow_reset(&old);
        self.now = Date(self.trusted.time(self.clock_s));
        self.trusted.relink();
        // 5.3.9: again, until there is no next one.
        self.stage = Stage::Root { taken: taken + 1 };
        Ok(())
    }

    /// 5.3.11: rotated timestamp or snapshot keys undo an attacker's far too high versions. What
    /// the new root's keys do not sign any more is no ground to refuse its successor either.
    fn recover_from_fast_forward(&mut self, old: &Loaded<Root>) {
        let trusted = &mut self.trusted;
        let new = &trusted.root.body;
        let rotated = |role: &str| match (old.body.roles.get(role), new.roles.get(role)) {
            (Some(old), Some(new)) => old.keyids.iter().any(|id| !new.keyids.contains(id)),
            _ => true,
        };
        if rotated(TIMESTAMP) || rotated(SNAPSHOT) {
            trusted.timestamp = None;
            trusted.snapshot = None;
            trusted.floors.remove(TIMESTAMP);
            trusted.floors.remove(SNAPSHOT);
        }
        let root = &trusted.root;
        trusted.timestamp.take_if(|t| verify_top(t, TIMESTAMP, root).is_err());
        trusted.snapshot.take_if(|s| verify_top(s, SNAPSHOT, root).is_err());
    }

    fn roots_are_through(&mut self) -> Result<(), TrustError> {
        // 5.3.10: the final root must not be expired. 5.3.12: next() asks it for the file names.
        self.trusted.root.check_expiry(ROOT, self.now)?;
        self.trusted.refuse_below_floor(ROOT, self.trusted.root_version())?;
        self.trusted.floors.remove(ROOT);
        self.stage = Stage::Timestamp;
        Ok(())
    }

    fn timestamp(&mut self, bytes: Vec<u8>) -> Result<(), TrustError> {
        let new: Loaded<Timestamp> = Loaded::parse(TIMESTAMP, bytes)?;
        // 5.4.2
        verify_top(&new, TIMESTAMP, &self.trusted.root)?;
        if let Some(old) = &self.trusted.timestamp {
            // 5.4.3.1: no older version; at the same version the trusted one is kept.
            refuse_rollback(TIMESTAMP, old.version(), new.version())?;
            if new.version() == old.version() {
                old.check_expiry(TIMESTAMP, self.now)?;
                return self.enter_snapshot();
            }
            // 5.4.3.2: no older snapshot.
            if let (Some(old), Some(new)) = (old.body.snapshot(), new.body.snapshot()) {
                refuse_rollback(SNAPSHOT, old.version, new.version)?;
            }
        }
        self.trusted.refuse_below_floor(TIMESTAMP, new.version())?;
        // 5.4.4
        new.check_expiry(TIMESTAMP, self.now)?;
        // 5.4.5
        self.trusted.floors.remove(TIMESTAMP);
        self.trusted.timestamp = Some(new);
        self.enter_snapshot()
    }

    fn enter_snapshot(&mut self) -> Result<(), TrustError> {
        self.trusted.relink();
        if !self.trusted.snapshot_is_current() {
            self.stage = Stage::Snapshot;
            return Ok(());
        }
        // The trusted snapshot is the listed one; only its expiry can be new.
        if let Some(snapshot) = &self.trusted.snapshot {
            snapshot.check_expiry(SNAPSHOT, self.now)?;
        }
        self.enter_targets()
    }

    fn snapshot(&mut self, bytes: Vec<u8>) -> Result<(), TrustError> {
        // 5.6.1's twin for the snapshot, 5.5.2: hashes first, they come from a verified role.
        let listed = self.trusted.timestamp.as_ref().and_then(|t| t.body.snapshot()).cloned();
        let Some(listed) = listed else {
            let repo = self.trusted.repo.as_str();
            return Err(TrustError::Incomplete { repo, role: TIMESTAMP });
        };
        listed.verify("snapshot.json", &bytes)?;
        let new: Loaded<Snapshot> = Loaded::parse(SNAPSHOT, bytes)?;
        // 5.5.3
        verify_top(&new, SNAPSHOT, &self.trusted.root)?;
        // 5.5.4
        check_version(SNAPSHOT, TIMESTAMP, listed.version, new.version())?;
        // 5.5.5: no listed role goes back, none disappears.
        for (file, old) in self.trusted.snapshot.iter().flat_map(|s| &s.body.meta) {
            let Some(listed) = new.body.meta.get(file) else {
                return Err(TrustError::Removed { version: new.version(), file: file.clone() });
            };
            refuse_rollback(file, old.version, listed.version)?;
        }
        self.trusted.refuse_below_floor(SNAPSHOT, new.version())?;
        let version_of = |role: &str| Some(new.body.meta.get(&format!("{role}.json"))?.version);
        self.trusted.refuse_targets_below_floor(version_of, new.version())?;
        // 5.5.6
        new.check_expiry(SNAPSHOT, self.now)?;
        // 5.5.7
        self.trusted.floors.remove(SNAPSHOT);
        self.trusted.snapshot = Some(new);
        self.trusted.relink();
        self.enter_targets()
    }

    fn enter_targets(&mut self) -> Result<(), TrustError> {
        if let Some(targets) = self.trusted.usable(ROOT, TARGETS) {
            targets.check_expiry(TARGETS, self.now)?;
            self.enter_delegated();
            return Ok(());
        }
        if self.trusted.listed(TARGETS).is_none() {
            return Err(not_in_snapshot(TARGETS, ROOT));
        }
        self.stage = Stage::Targets;
        Ok(())
    }

    /// 5.6.1 to 5.6.6, for the top-level targets and the delegated roles alike.
    fn targets(&mut self, parent: &str, role: &str, bytes: Vec<u8>) -> Result<(), TrustError> {
        let listed = self.trusted.listed(role).ok_or_else(|| not_in_snapshot(role, parent))?;
        // 5.6.2
        listed.verify(&format!("{role}.json"), &bytes)?;
        let new: Loaded<Targets> = Loaded::parse(role, bytes)?;
        // 5.6.3
        self.trusted.verify_delegated(parent, role, &new)?;
        // 5.6.4
        check_version(role, SNAPSHOT, listed.version, new.version())?;
        // 5.6.5
        new.check_expiry(role, self.now)?;
        // 5.6.6
        self.trusted.floors.remove(role);
        self.trusted.targets.insert(role.to_owned(), new);
        self.trusted.relink();
        self.enter_delegated();
        Ok(())
    }

    /// 5.6.7: the next delegated role that the scope needs, if any.
    fn enter_delegated(&mut self) {
        let need = match self.scope.clone() {
            Scope::TopLevel => None,
            Scope::Paths(paths) => paths.iter().find_map(|path| self.need_for(path)),
            Scope::Everything => self.need_for_everything(),
        };
        self.stage = match need {
            Some((role, parent)) => Stage::Delegated { role, parent },
            None => Stage::Done,
        };
    }

    /// The role that the search for `path` needs next. A search that cannot go on is told once.
    fn need_for(&mut self, path: &str) -> Option<(String, String)> {
        let (need, error) = match self.trusted.search(path) {
            Found::Nothing => return None,
            Found::Target { chain, .. } => {
                let expired = self.trusted.check_chain_expiry(&chain, self.now).err()?;
                ((path.to_owned(), chain.join("/")), expired)
            }
            Found::TooManyRoles => {
                let (path, max) = (path.to_owned(), SEARCH_ROLES_MAX);
                ((path.clone(), String::new()), TrustError::TooManyRoles { path, max })
            }
            Found::Needs { role, parent } => {
                let listed = self.trusted.listed(&role).is_some();
                let error = not_in_snapshot(&role, &parent);
                let need = (role, parent);
                if listed {
                    return (!self.skipped.contains(&need)).then_some(need);
                }
                (need, error)
            }
        };
        if self.skipped.insert(need) {
            self.refused.push(error);
        }
        None
    }

    fn need_for_everything(&mut self) -> Option<(String, String)> {
        let delegations = self.trusted.delegations();
        if delegations.len() > SEARCH_ROLES_MAX * SEARCH_ROLES_MAX {
            let (path, max) = ("*".to_owned(), SEARCH_ROLES_MAX * SEARCH_ROLES_MAX);
            self.refused.push(TrustError::TooManyRoles { path, max });
            return None;
        }
        // A role that the snapshot does not list was never published: nothing to fetch yet.
        delegations.into_iter().find_map(|(parent, role)| {
            let wanted = self.trusted.usable(&parent, &role).is_none()
                && self.trusted.listed(&role).is_some();
            let need = (role, parent);
            (wanted && !self.skipped.contains(&need)).then_some(need)
        })
    }
}

impl Trusted {
    /// This state under the newest root that `fetch` has, whether it has ended or not: for whose
    /// key it is only. Nothing is stored.
    ///
    /// # Errors
    /// What is wrong with a root.
    pub fn follow_roots(
        self,
        now_s: i64,
        mut fetch: impl FnMut(&Want) -> Fetched,
    ) -> Result<Self, TrustError> {
        let mut refresh = Refresh::new(self, now_s);
        while let Some(want) = refresh.next().filter(|_| refresh.wants_root()) {
            match fetch(&want) {
                Fetched::NotFound => break,
                found => refresh.feed(found)?,
            }
        }
        Ok(refresh.into_progress())
    }
}

fn refuse_rollback(role: &str, trusted: u64, found: u64) -> Result<(), TrustError> {
    if found >= trusted {
        return Ok(());
    }
    Err(TrustError::Rollback { role: role.to_owned(), trusted, found })
}

fn check_version(
    role: &str,
    by: &'static str,
    expected: u64,
    found: u64,
) -> Result<(), TrustError> {
    if found == expected {
        return Ok(());
    }
    Err(TrustError::Version { role: role.to_owned(), by, expected, found })
}

fn not_in_snapshot(role: &str, parent: &str) -> TrustError {
    TrustError::NotInSnapshot { role: role.to_owned(), parent: parent.to_owned() }
}
