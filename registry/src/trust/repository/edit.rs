//! Changes of a repository. Each stages the next version of one role or more.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    DAY_S, EXPIRY_FIELD, Repository, RepositoryError, days_in, expiry_field, files, role_of,
    rule_of,
};
use crate::Digest;
use crate::trust::date::Date;
use crate::trust::key::PublicKey;
use crate::trust::metadata::{
    DelegatedRole, Delegations, Header, ROOT, RoleKeys, Root, SNAPSHOT, Snapshot, TARGETS,
    TIMESTAMP, TOP_LEVEL, TargetEntry, Targets, Timestamp,
};
use crate::trust::time::RESET_FIELD;

/// A published target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The role that names it now.
    pub role: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
}

/// A delegation to be made or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The role that delegates: `targets`, or another delegated role.
    pub from: String,
    /// The new role's name, as `team/vision`.
    pub name: String,
    /// Patterns of target paths; a `*` does not cross `/`.
    pub paths: Vec<String>,
    /// Who signs.
    pub keys: Vec<PublicKey>,
    /// How many must.
    pub threshold: u64,
    /// Whether nobody after it may name these paths.
    pub terminating: bool,
    /// For how many days a version of the new role holds.
    pub expiry_days: u32,
}

impl Repository {
    /// Puts `bytes` among the targets and stages the role that names them: `role`, or else the
    /// delegated role that a search would meet first, or else the top-level targets.
    ///
    /// # Errors
    /// [`RepositoryError::Target`] for a path that cannot be one or that the role may not name.
    pub fn publish_target(
        &self,
        path: &str,
        bytes: &[u8],
        custom: Option<Value>,
        role: Option<&str>,
        now_s: i64,
    ) -> Result<Published, RepositoryError> {
        let refuse = |reason: String| RepositoryError::Target { path: path.to_owned(), reason };
        let parts =
            path.split('/').all(|p| !p.is_empty() && p != "." && p != ".." && p.len() < 190);
        if !parts || path.contains(['\\', '\0']) || path.len() > 1_000 {
            return Err(refuse("it must be a relative path without empty, . and .. parts".into()));
        }
        let _lock = self.files.lock()?;
        let role = match role {
            Some(role) => role.to_owned(),
            None => self.role_for(path)?,
        };
        if role != TARGETS
            && !self.delegated_roles()?.iter().any(|(_, d)| d.name == role && d.covers(path))
        {
            return Err(refuse(format!("the role {role} is not delegated to name it")));
        }
        let digest = Digest::of(bytes);
        files::write(&self.files.target(path, &digest.hex()), bytes)?;
        let length = bytes.len() as u64;
        self.edit_targets(&role, now_s, |targets| {
            let entry = TargetEntry {
                length,
                hashes: BTreeMap::from([("sha256".to_owned(), digest.hex())]),
                custom,
                extra: Map::new(),
            };
            targets.targets.insert(path.to_owned(), entry);
            Ok(())
        })?;
        Ok(Published { role, digest, length })
    }

    /// Stages the removal of a target from every role that names it; its file stays, for readers of
    /// older snapshots.
    ///
    /// # Errors
    /// [`RepositoryError::Target`] when no role names it.
    pub fn remove_target(&self, path: &str, now_s: i64) -> Result<Vec<String>, RepositoryError> {
        let _lock = self.files.lock()?;
        let delegated = self.delegated_roles()?.into_iter().map(|(_, d)| d.name);
        let roles: BTreeSet<String> =
            std::iter::once(TARGETS.to_owned()).chain(delegated).collect();
        let mut removed = Vec::new();
        for role in roles {
            let names = self.draft_targets(&role)?.is_some_and(|t| t.targets.contains_key(path));
            if names {
                self.edit_targets(&role, now_s, |targets| {
                    targets.targets.remove(path);
                    Ok(())
                })?;
                removed.push(role);
            }
        }
        if removed.is_empty() {
            let reason = "no role names it".to_owned();
            return Err(RepositoryError::Target { path: path.to_owned(), reason });
        }
        Ok(removed)
    }

    /// Stages a delegation, and an empty first version of the role it leads to.
    ///
    /// # Errors
    /// [`RepositoryError::Change`] for names, keys or thresholds that cannot work.
    pub fn delegate(&self, delegation: &Delegation, now_s: i64) -> Result<(), RepositoryError> {
        let _lock = self.files.lock()?;
        let rule = rule_of(&delegation.name, &delegation.keys, delegation.threshold)?;
        let role = DelegatedRole {
            name: delegation.name.clone(),
            keys: rule,
            terminating: delegation.terminating,
            paths: Some(delegation.paths.clone()),
            path_hash_prefixes: None,
        };
        self.edit_targets(&delegation.from, now_s, |targets| {
            let delegations = targets.delegations.get_or_insert_with(|| Delegations {
                keys: BTreeMap::new(),
                roles: Vec::new(),
                extra: Map::new(),
            });
            delegations.keys.extend(delegation.keys.iter().map(|k| (k.key_id(), k.clone())));
            match delegations.roles.iter_mut().find(|r| r.name == role.name) {
                Some(old) => *old = role,
                None => delegations.roles.push(role),
            }
            drop_unused_keys(delegations);
            Ok(())
        })?;
        if self.draft_targets(&delegation.name)?.is_none() {
            let days = delegation.expiry_days;
            let first = Targets {
                header: Header::first(TARGETS, Date(now_s.saturating_add(i64::from(days) * DAY_S))),
                targets: BTreeMap::new(),
                delegations: None,
                extra: expiry_field(days),
            };
            self.stage(&delegation.name, &first)?;
        }
        Ok(())
    }

    /// Stages the keys and threshold of a role, top-level or delegated: adding, removing and
    /// rotating keys are all this. A top-level role's keys are the root's business, a delegated
    /// role's the delegating role's. Roles that the new keys must sign again are staged too.
    ///
    /// # Errors
    /// [`RepositoryError::NoSuchRole`], [`RepositoryError::Change`].
    pub fn set_keys(
        &self,
        role: &str,
        keys: &[PublicKey],
        threshold: u64,
        now_s: i64,
    ) -> Result<(), RepositoryError> {
        let rule = rule_of(role, keys, threshold)?;
        let named: BTreeMap<_, _> = keys.iter().map(|k| (k.key_id(), k.clone())).collect();
        let _lock = self.files.lock()?;
        if TOP_LEVEL.contains(&role) {
            self.edit_root(now_s, |root| {
                root.roles.insert(role.to_owned(), rule);
                root.keys.extend(named);
                let used: BTreeSet<_> =
                    root.roles.values().flat_map(|r| &r.keyids).cloned().collect();
                root.keys.retain(|id, _| used.contains(id));
                Ok(())
            })?;
            if role == TARGETS {
                self.edit_targets(TARGETS, now_s, |_| Ok(()))?;
            }
            return Ok(());
        }
        let parents: Vec<_> =
            self.delegated_roles()?.into_iter().filter(|(_, d)| d.name == role).collect();
        if parents.is_empty() {
            return Err(RepositoryError::NoSuchRole { role: role.to_owned() });
        }
        for (parent, _) in parents {
            self.edit_targets(&parent, now_s, |targets| {
                let Some(delegations) = &mut targets.delegations else { return Ok(()) };
                delegations.keys.extend(named.clone());
                for delegated in delegations.roles.iter_mut().filter(|d| d.name == role) {
                    delegated.keys = rule.clone();
                }
                drop_unused_keys(delegations);
                Ok(())
            })?;
        }
        self.edit_targets(role, now_s, |_| Ok(()))
    }

    /// The keys and threshold of a role, as staged or published.
    ///
    /// # Errors
    /// [`RepositoryError::NoSuchRole`].
    pub fn keys(&self, role: &str) -> Result<(Vec<PublicKey>, u64), RepositoryError> {
        let (names, rule) = match self.staged_rule(role)? {
            Some(found) => found,
            None => self
                .rule(role)?
                .ok_or_else(|| RepositoryError::NoSuchRole { role: role.to_owned() })?,
        };
        let keys = rule.keyids.iter().filter_map(|id| names.get(id).cloned()).collect();
        Ok((keys, rule.threshold))
    }

    /// Stages a new version of `role` with nothing changed but its expiry.
    ///
    /// # Errors
    /// [`RepositoryError::NoSuchRole`].
    pub fn renew(&self, role: &str, now_s: i64) -> Result<(), RepositoryError> {
        let _lock = self.files.lock()?;
        match role {
            ROOT => self.edit_root(now_s, |_| Ok(())),
            SNAPSHOT | TIMESTAMP => self.renew_listing(role, now_s),
            _ => self.edit_targets(role, now_s, |_| Ok(())),
        }
    }

    /// Stages a root that has every device forget, once, the signed times after `now_s`, and a
    /// timestamp signed then: the way back where somebody's clock was ahead.
    ///
    /// # Errors
    /// [`RepositoryError::NoSuchRole`] before the first publication.
    pub fn reset_time(&self, now_s: i64) -> Result<(), RepositoryError> {
        let _lock = self.files.lock()?;
        self.edit_root(now_s, |root| {
            root.extra.insert(RESET_FIELD.to_owned(), Value::from(Date(now_s).to_string()));
            Ok(())
        })?;
        for role in [SNAPSHOT, TIMESTAMP] {
            self.renew_listing(role, now_s)?;
        }
        Ok(())
    }

    fn renew_listing(&self, role: &str, now_s: i64) -> Result<(), RepositoryError> {
        let absent = || RepositoryError::NoSuchRole { role: role.to_owned() };
        let root = self.files.newest::<Root>(ROOT)?.ok_or_else(absent)?.body;
        if role == SNAPSHOT {
            let old = self.files.newest::<Snapshot>(SNAPSHOT)?.ok_or_else(absent)?;
            let header = super::next_header(SNAPSHOT, Some(&old), &root, now_s);
            return self.stage(SNAPSHOT, &Snapshot { header, ..old.body });
        }
        let old = self.files.newest::<Timestamp>(TIMESTAMP)?.ok_or_else(absent)?;
        let header = super::next_header(TIMESTAMP, Some(&old), &root, now_s);
        let extra = super::signed_at(now_s);
        self.stage(TIMESTAMP, &Timestamp { header, extra, ..old.body })
    }

    /// Every delegation of the staged or else published roles: who delegates, and what.
    pub(super) fn delegated_roles(&self) -> Result<Vec<(String, DelegatedRole)>, RepositoryError> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let mut queue = vec![TARGETS.to_owned()];
        while let Some(parent) = queue.pop() {
            if !seen.insert(parent.clone()) {
                continue;
            }
            let Some(targets) = self.draft_targets(&parent)? else { continue };
            for role in targets.delegations.into_iter().flat_map(|d| d.roles) {
                queue.push(role.name.clone());
                found.push((parent.clone(), role));
            }
        }
        Ok(found)
    }

    /// The published rule for a targets role or the root.
    pub(super) fn rule(&self, role: &str) -> Result<Option<Rule>, RepositoryError> {
        if TOP_LEVEL.contains(&role) {
            let Some(root) = self.files.newest::<Root>(ROOT)? else { return Ok(None) };
            let rule = role_of(&root.body, role)?.clone();
            return Ok(Some((root.body.keys, rule)));
        }
        for (parent, _) in self.delegated_roles()?.into_iter().filter(|(_, d)| d.name == role) {
            let published = self.files.newest::<Targets>(&parent)?.and_then(|l| l.body.delegations);
            if let Some(rule) = published.and_then(|d| rule_in(d, role)) {
                return Ok(Some(rule));
            }
        }
        Ok(None)
    }

    /// The rule that a staged role above would bring.
    pub(super) fn staged_rule(&self, role: &str) -> Result<Option<Rule>, RepositoryError> {
        if TOP_LEVEL.contains(&role) {
            let staged = self.files.read::<Root>(ROOT, &self.files.staged(ROOT))?;
            let Some(root) = staged else { return Ok(None) };
            let rule = role_of(&root.body, role)?.clone();
            return Ok(Some((root.body.keys, rule)));
        }
        for (parent, _) in self.delegated_roles()?.into_iter().filter(|(_, d)| d.name == role) {
            let staged = self.files.read::<Targets>(&parent, &self.files.staged(&parent))?;
            if let Some(rule) =
                staged.and_then(|l| l.body.delegations).and_then(|d| rule_in(d, role))
            {
                return Ok(Some(rule));
            }
        }
        Ok(None)
    }

    /// The role that a search for `path` would meet first among those that may name it.
    pub(super) fn role_for(&self, path: &str) -> Result<String, RepositoryError> {
        let mut role = TARGETS.to_owned();
        let mut seen = BTreeSet::new();
        while seen.insert(role.clone()) {
            let Some(targets) = self.draft_targets(&role)? else { break };
            if targets.targets.contains_key(path) {
                break;
            }
            let next =
                targets.delegations.into_iter().flat_map(|d| d.roles).find(|d| d.covers(path));
            match next {
                Some(next) => role = next.name,
                None => break,
            }
        }
        Ok(role)
    }

    /// A targets role's body: staged, or else published.
    pub(super) fn draft_targets(&self, role: &str) -> Result<Option<Targets>, RepositoryError> {
        if let Some(staged) = self.files.read::<Targets>(role, &self.files.staged(role))? {
            return Ok(Some(staged.body));
        }
        Ok(self.files.newest::<Targets>(role)?.map(|l| l.body))
    }

    fn edit_targets(
        &self,
        role: &str,
        now_s: i64,
        change: impl FnOnce(&mut Targets) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let mut body = self
            .draft_targets(role)?
            .ok_or_else(|| RepositoryError::NoSuchRole { role: role.to_owned() })?;
        let published = self.files.newest::<Targets>(role)?.map_or(0, |l| l.version());
        change(&mut body)?;
        body.header.version = published + 1;
        body.header.expires =
            Date(now_s.saturating_add(days_in(&body.extra, EXPIRY_FIELD, 365) * DAY_S));
        self.stage(role, &body)
    }

    fn edit_root(
        &self,
        now_s: i64,
        change: impl FnOnce(&mut Root) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let staged = self.files.read::<Root>(ROOT, &self.files.staged(ROOT))?;
        let published = self.files.newest::<Root>(ROOT)?;
        let version = published.as_ref().map_or(0, |l| l.version());
        let mut body = staged
            .or(published)
            .ok_or_else(|| RepositoryError::NoSuchRole { role: ROOT.to_owned() })?
            .body;
        change(&mut body)?;
        body.header.version = version + 1;
        body.header.expires =
            Date(now_s.saturating_add(days_in(&body.extra, EXPIRY_FIELD, 730) * DAY_S));
        self.stage(ROOT, &body)
    }
}

/// Keys by id, and who of them signs.
pub(super) type Rule = (BTreeMap<String, PublicKey>, RoleKeys);

fn rule_in(delegations: Delegations, role: &str) -> Option<Rule> {
    let rule = delegations.roles.iter().find(|d| d.name == role)?.keys.clone();
    Some((delegations.keys, rule))
}

fn drop_unused_keys(delegations: &mut Delegations) {
    let used: BTreeSet<_> =
        delegations.roles.iter().flat_map(|d| &d.keys.keyids).cloned().collect();
    delegations.keys.retain(|id, _| used.contains(id));
}
