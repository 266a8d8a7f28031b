//! The client against our own repository side: what must be accepted, and every attack refused
//! with its own error. The same attacks against repositories made by another implementation are
//! in `tests/attacks`.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde_json::json;

use super::director::{DirectorEntry, DirectorSet, DirectorSigner, Minting};
use super::repository::{Delegation, Plan, Repository};
use super::*;
use crate::Digest;

mod admission;
mod client;
mod clock;
mod keys;
mod offers;
mod owner;
mod policy;
mod stored;

const NOW: i64 = 2_000_000_000;
const DAY: i64 = 86_400;
const PATH: &str = "library/demo/latest.json";

fn key() -> Ed25519Key {
    Ed25519Key::generate().unwrap()
}

/// An owner's repository with one key, published empty.
struct Owner {
    dir: tempfile::TempDir,
    key: Ed25519Key,
    repository: Repository,
}

impl Owner {
    fn new() -> Self {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let plan = Plan::with_keys(&[key.public().clone()], 1);
        let repository = Repository::init(&dir.path().join("r"), &plan, NOW).unwrap();
        let owner = Self { dir, key, repository };
        owner.sign(NOW);
        owner
    }

    fn sign(&self, now_s: i64) {
        let progress = self.repository.sign(&[&self.key], now_s).unwrap();
        assert_eq!(progress.missing, []);
    }

    fn publish(&self, path: &str, bytes: &[u8], release: u64) {
        let custom = json!({"fulmar": {"kind": "model", "release": release}});
        self.repository.publish_target(path, bytes, Some(custom), None, NOW).unwrap();
        self.sign(NOW);
    }

    fn bootstrap(&self) -> Trusted {
        Trusted::from_root(Repo::Registry, self.repository.first_root().unwrap()).unwrap()
    }

    fn fetch(&self, want: &Want) -> Fetched {
        let path = self.dir.path().join("r/metadata").join(&want.file_name);
        std::fs::read(path).map_or(Fetched::NotFound, Fetched::Found)
    }

    fn refresh(&self, trusted: Trusted, now_s: i64) -> Result<Trusted, TrustError> {
        let mut refresh = Refresh::new(trusted, now_s).scope(Scope::Everything);
        refresh.feed_all(|want| self.fetch(want))?;
        refresh.finish()
    }

    /// A copy of all published files, to be served again later.
    fn freeze(&self) -> BTreeMap<String, Vec<u8>> {
        let dir = std::fs::read_dir(self.dir.path().join("r/metadata")).unwrap();
        dir.map(|e| e.unwrap().path())
            .map(|p| {
                (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(p).unwrap())
            })
            .collect()
    }
}

fn database() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(&SCHEMA.steps.concat()).unwrap();
    connection
}

fn refresh_from(
    files: &BTreeMap<String, Vec<u8>>,
    trusted: Trusted,
    now_s: i64,
) -> Result<Trusted, TrustError> {
    let mut refresh = Refresh::new(trusted, now_s);
    refresh.feed_all(|want| {
        files.get(&want.file_name).cloned().map_or(Fetched::NotFound, Fetched::Found)
    })?;
    refresh.finish()
}

fn entry(bytes: &[u8], release: u64) -> DirectorEntry {
    DirectorEntry {
        target_path: PATH.to_owned(),
        length: bytes.len() as u64,
        digest: Digest::of(bytes),
        release,
        active: Active::Serve,
    }
}

fn minting(serial: u64) -> Minting {
    Minting { generation: serial, serial, signed_at_s: NOW, expires_s: NOW + 7 * DAY }
}

fn take(set: &DirectorSet, trusted: Trusted, now_s: i64) -> Result<Trusted, TrustError> {
    let mut refresh = Refresh::new(trusted, now_s);
    refresh.feed_all(|want| set.fetch(want, &BTreeMap::new()))?;
    refresh.finish()
}

/// A director with its trusted root at the device.
fn director() -> (DirectorSigner<Ed25519Key>, Trusted) {
    let signer = DirectorSigner::new(key());
    let root = signer.root(NOW + 365 * DAY).unwrap();
    (signer, Trusted::from_root(Repo::Director, root).unwrap())
}

fn admission(now_s: i64) -> Admission<'static> {
    Admission { now_s, device_id: Some("d1"), release_floor: None }
}
