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
        Ok(progress)
    }

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
        self.sign_one(ROOT, &staged, &rules, keys, progress).map(|_| ())
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
        match self.rule(role)? {
            Some((names, rule)) => self.sign_one(role, &staged, &[(&names, &rule)], keys, progress),
            None => {
                // Its delegation, or the first root, is not published yet: sign ahead if we can.
                let Some((names, rule)) = self.staged_rule(role)? else { return Ok(false) };
                self.add_signatures(role, &staged, &[(&names, &rule)], keys)?;
                progress.missing.push(Missing::waits(role));
                Ok(false)
            }
        }
    }

    /// Adds signatures, and publishes when every rule's threshold is met.
    fn sign_one<B: Body>(
        &self,
        role: &str,
        staged: &Loaded<B>,
        rules: &[(&BTreeMap<String, PublicKey>, &RoleKeys)],
        keys: &[&dyn SigningKey],
        progress: &mut Progress,
    ) -> Result<bool, RepositoryError> {
        let signed = self.add_signatures(role, staged, rules, keys)?;
        let mut complete = true;
        for (names, rule) in rules {
            let by = signed.signed_by(names, rule);
            if (by.len() as u64) < rule.threshold {
                complete = false;
                progress.missing.push(Missing::signatures(role, signed.version(), rule, &by));
            }
        }
        if complete {
            files::write(&self.files.published(role, signed.version()), &signed.bytes)?;
            files::remove(&self.files.staged(role))?;
            progress.published.push((role.to_owned(), signed.version()));
        }
        Ok(complete)
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
        let rule = (&root.body.keys, role_of(&root.body, role)?);
        self.sign_one(role, &staged, &[rule], keys, progress).map(|_| ())
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
