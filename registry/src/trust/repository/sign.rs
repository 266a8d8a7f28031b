//! Signing what is staged, and publishing what has its threshold, in the order that keeps readers
//! safe: roots, targets, snapshot, timestamp.

use std::collections::BTreeMap;

use serde_json::Map;

use super::status::{Missing, Progress};
use super::{Repository, RepositoryError, envelope_bytes, files, next_header, role_of, signed_at};
use crate::trust::envelope::{Loaded, Signature};
use crate::trust::key::PublicKey;
use crate::trust::metadata::{
    Body, FileMeta, ROOT, RoleKeys, Root, SNAPSHOT, Snapshot, TARGETS, TIMESTAMP, Targets,
    Timestamp,
};
use crate::trust::signing::SigningKey;
use crate::trust::trusted::verify_top;

impl Repository {
    /// Adds the signatures that `keys` may give to whatever is staged, publishes what has its
    /// threshold, and says what is missing.
    ///
    /// # Errors
    /// [`RepositoryError`]; what was published until then stays published.
    pub fn sign(&self, keys: &[&dyn SigningKey], now_s: i64) -> Result<Progress, RepositoryError> {
        let _lock = self.files.lock()?;
        self.drop_stale()?;
        let mut progress = Progress::default();
        self.sign_root(keys, &mut progress)?;
        // A role's delegations become visible when it is published, so those below may follow.
        let mut tried = Vec::new();
        loop {
            let staged = self.files.staged_roles()?;
            let next = staged.into_iter().find(|role| {
                !matches!(role.as_str(), ROOT | SNAPSHOT | TIMESTAMP) && !tried.contains(role)
            });
            let Some(role) = next else { break };
            if self.sign_targets(&role, keys, &mut progress)? {
                tried.clear();
            }
            tried.push(role);
        }
        if self.files.newest::<Root>(ROOT)?.is_some() {
            self.sign_snapshot(keys, now_s, &mut progress)?;
        }
        let mut told = Vec::new();
        progress.missing.retain(|missing| {
            let new = !told.contains(missing);
            told.push(missing.clone());
            new
        });
        Ok(progress)
    }

    /// Signs a staged root, and publishes it when it can go: a root that the published metadata
    /// does not hold under would stop every reader until the rest is signed.
    fn sign_root(
        &self,
        keys: &[&dyn SigningKey],
        progress: &mut Progress,
    ) -> Result<(), RepositoryError> {
        let Some(staged) = self.files.read::<Root>(ROOT, &self.files.staged(ROOT))? else {
            return Ok(());
        };
        let old = self.files.newest::<Root>(ROOT)?;
        let new_rule = (&staged.body.keys, role_of(&staged.body, ROOT)?);
        let mut rules = vec![new_rule];
        if let Some(old) = &old {
            rules.push((&old.body.keys, role_of(&old.body, ROOT)?));
        }
        let signed = self.add_signatures(ROOT, &staged, &rules, keys)?;
        let complete = missing_in(ROOT, &signed, &rules, progress);
        if complete && (old.is_none() || self.rest_holds_under(&signed, keys, progress)?) {
            self.publish(ROOT, &signed, progress)?;
        }
        Ok(())
    }

    /// Whether targets, snapshot and timestamp hold under `root`, or can be made to with what is
    /// staged and the keys at hand.
    fn rest_holds_under(
        &self,
        root: &Loaded<Root>,
        keys: &[&dyn SigningKey],
        progress: &mut Progress,
    ) -> Result<bool, RepositoryError> {
        let newest = self.files.newest::<Targets>(TARGETS)?;
        let targets_hold = newest.is_some_and(|t| verify_top(&t, TARGETS, root).is_ok());
        if !targets_hold {
            let staged = self.files.read::<Targets>(TARGETS, &self.files.staged(TARGETS))?;
            let Some(staged) = staged else {
                progress.missing.push(Missing::waits(TARGETS));
                return Ok(false);
            };
            let rules = [(&root.body.keys, role_of(&root.body, TARGETS)?)];
            let signed = self.add_signatures(TARGETS, &staged, &rules, keys)?;
            if !missing_in(TARGETS, &signed, &rules, progress) {
                return Ok(false);
            }
        }
        let snapshot = self.files.newest::<Snapshot>(SNAPSHOT)?;
        let timestamp = self.files.newest::<Timestamp>(TIMESTAMP)?;
        let lists = snapshot.as_ref().is_some_and(|s| verify_top(s, SNAPSHOT, root).is_ok())
            && timestamp.as_ref().is_some_and(|t| verify_top(t, TIMESTAMP, root).is_ok());
        if targets_hold && lists {
            return Ok(true);
        }
        // New ones are made in this round, so their keys must be here.
        let mut all = true;
        let versions = [snapshot.map_or(0, |s| s.version()), timestamp.map_or(0, |t| t.version())];
        for (role, version) in [SNAPSHOT, TIMESTAMP].into_iter().zip(versions) {
            let rule = role_of(&root.body, role)?;
            let mut here: Vec<_> = keys.iter().map(|key| key.key_id()).collect();
            here.retain(|id| rule.keyids.contains(id));
            here.sort();
            here.dedup();
            if (here.len() as u64) < rule.threshold {
                progress.missing.push(Missing::signatures(role, version + 1, rule, &here));
                all = false;
            }
        }
        Ok(all)
    }

    /// Signs a staged targets role; whether it was published.
    fn sign_targets(
        &self,
        role: &str,
        keys: &[&dyn SigningKey],
        progress: &mut Progress,
    ) -> Result<bool, RepositoryError> {
        let Some(staged) = self.files.read::<Targets>(role, &self.files.staged(role))? else {
            return Ok(false);
        };
        let published = self.rule(role)?;
        let ahead = self.staged_rule(role)?;
        match (published, ahead) {
            // A staged root that changes who signs the targets: they go together with it.
            (Some(now), Some(then)) if role == TARGETS && now.1 != then.1 => {
                let rules = [(&then.0, &then.1)];
                let signed = self.add_signatures(role, &staged, &rules, keys)?;
                missing_in(role, &signed, &rules, progress);
                Ok(false)
            }
            (Some((names, rule)), _) => {
                let rules = [(&names, &rule)];
                let signed = self.add_signatures(role, &staged, &rules, keys)?;
                let complete = missing_in(role, &signed, &rules, progress);
                if complete {
                    self.publish(role, &signed, progress)?;
                }
                Ok(complete)
            }
            // Its delegation, or the first root, is not published yet: sign ahead.
            (None, Some((names, rule))) => {
                self.add_signatures(role, &staged, &[(&names, &rule)], keys)?;
                progress.missing.push(Missing::waits(role));
                Ok(false)
            }
            (None, None) => Ok(false),
        }
    }

    fn publish<B: Body>(
        &self,
        role: &str,
        signed: &Loaded<B>,
        progress: &mut Progress,
    ) -> Result<(), RepositoryError> {
        let path = self.files.published(role, signed.version());
        if role != TIMESTAMP && path.exists() {
            let reason = format!("version {} is published already", signed.version());
            return Err(RepositoryError::Change { role: role.to_owned(), reason });
        }
        files::write(&path, &signed.bytes)?;
        files::remove(&self.files.staged(role))?;
        progress.published.push((role.to_owned(), signed.version()));
        Ok(())
    }

    fn add_signatures<B: Body>(
        &self,
        role: &str,
        staged: &Loaded<B>,
        rules: &[(&BTreeMap<String, PublicKey>, &RoleKeys)],
        keys: &[&dyn SigningKey],
    ) -> Result<Loaded<B>, RepositoryError> {
        let path = self.files.staged(role);
        let metadata = |source| RepositoryError::Metadata { path: path.clone(), source };
        let mut signatures = staged.signatures().to_vec();
        for key in keys {
            let id = key.key_id();
            let may = rules.iter().any(|(_, rule)| rule.keyids.contains(&id));
            if may && !signatures.iter().any(|s| s.keyid == id) {
                let sig = key
                    .sign(staged.canonical())
                    .map_err(|source| RepositoryError::Sign { role: role.to_owned(), source })?;
                signatures.push(Signature { keyid: id, sig: hex::encode(sig) });
            }
        }
        let bytes = envelope_bytes(role, &staged.body, signatures)?;
        if bytes != staged.bytes {
            files::write(&path, &bytes)?;
        }
        Loaded::parse(role, bytes).map_err(metadata)
    }

    /// Snapshot and timestamp follow what is published.
    fn sign_snapshot(
        &self,
        keys: &[&dyn SigningKey],
        now_s: i64,
        progress: &mut Progress,
    ) -> Result<(), RepositoryError> {
        let Some(root) = self.files.newest::<Root>(ROOT)? else { return Ok(()) };
        let Some(meta) = self.targets_meta()? else { return Ok(()) };
        let old = self.files.newest::<Snapshot>(SNAPSHOT)?;
        let holds = old
            .as_ref()
            .is_some_and(|s| s.body.meta == meta && verify_top(s, SNAPSHOT, &root).is_ok());
        if !holds || self.files.staged(SNAPSHOT).exists() {
            let header = next_header(SNAPSHOT, old.as_ref(), &root.body, now_s);
            let staged = self.files.read::<Snapshot>(SNAPSHOT, &self.files.staged(SNAPSHOT))?;
            // Signatures gathered so far stay good while nothing else changed.
            if !staged.is_some_and(|s| s.body.meta == meta && s.version() == header.version) {
                self.stage(SNAPSHOT, &Snapshot { header, meta, extra: Map::new() })?;
            }
            self.sign_top::<Snapshot>(SNAPSHOT, &root, keys, progress)?;
        }
        let Some(snapshot) = self.files.newest::<Snapshot>(SNAPSHOT)? else { return Ok(()) };
        let listed = FileMeta::of(snapshot.version(), &snapshot.bytes);
        let meta = BTreeMap::from([("snapshot.json".to_owned(), listed)]);
        let old = self.files.newest::<Timestamp>(TIMESTAMP)?;
        let holds = old
            .as_ref()
            .is_some_and(|t| t.body.meta == meta && verify_top(t, TIMESTAMP, &root).is_ok());
        if !holds || self.files.staged(TIMESTAMP).exists() {
            let header = next_header(TIMESTAMP, old.as_ref(), &root.body, now_s);
            let staged = self.files.read::<Timestamp>(TIMESTAMP, &self.files.staged(TIMESTAMP))?;
            if !staged.is_some_and(|t| t.body.meta == meta && t.version() == header.version) {
                self.stage(TIMESTAMP, &Timestamp { header, meta, extra: signed_at(now_s) })?;
            }
            self.sign_top::<Timestamp>(TIMESTAMP, &root, keys, progress)?;
        }
        Ok(())
    }

    fn sign_top<B: Body>(
        &self,
        role: &str,
        root: &Loaded<Root>,
        keys: &[&dyn SigningKey],
        progress: &mut Progress,
    ) -> Result<(), RepositoryError> {
        let Some(staged) = self.files.read::<B>(role, &self.files.staged(role))? else {
            return Ok(());
        };
        let rules = [(&root.body.keys, role_of(&root.body, role)?)];
        let signed = self.add_signatures(role, &staged, &rules, keys)?;
        match missing_in(role, &signed, &rules, progress) {
            true => self.publish(role, &signed, progress),
            false => Ok(()),
        }
    }

    /// What the next snapshot lists: the newest published version of every targets role that a
    /// published role delegates to; `None` while the top-level targets are not published.
    fn targets_meta(&self) -> Result<Option<BTreeMap<String, FileMeta>>, RepositoryError> {
        let mut meta = BTreeMap::new();
        let mut queue = vec![TARGETS.to_owned()];
        while let Some(role) = queue.pop() {
            let file = format!("{role}.json");
            if meta.contains_key(&file) {
                continue;
            }
            let Some(loaded) = self.files.newest::<Targets>(&role)? else { continue };
            meta.insert(file, FileMeta::of(loaded.version(), &loaded.bytes));
            let delegations = loaded.body.delegations.iter().flat_map(|d| &d.roles);
            queue.extend(delegations.map(|d| d.name.clone()));
        }
        Ok(meta.contains_key("targets.json").then_some(meta))
    }
}

/// Whether `signed` meets every rule's threshold; what it lacks is noted.
fn missing_in<B: Body>(
    role: &str,
    signed: &Loaded<B>,
    rules: &[(&BTreeMap<String, PublicKey>, &RoleKeys)],
    progress: &mut Progress,
) -> bool {
    let mut complete = true;
    for (names, rule) in rules {
        let by = signed.signed_by(names, rule);
        if (by.len() as u64) < rule.threshold {
            complete = false;
            progress.missing.push(Missing::signatures(role, signed.version(), rule, &by));
        }
    }
    complete
}
