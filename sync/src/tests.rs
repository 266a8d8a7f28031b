//! The whole link against a scripted control plane.

mod bundles;
mod downloads;
mod joining;
mod refusals;
mod repair;

use std::time::Duration;

use fulmar_registry::{Digest, ModelRef, catalog};
use tokio_util::sync::CancellationToken;

use crate::testing::{ControlPlane, Device, Site};
use crate::{Checked, EnrollError, Link, LinkCost, Status, Sync, TransportError};

const NAME: &str = "acme/tiny:v1";

/// A running link; ends with the test.
struct Running {
    sync: Sync,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(sync: Sync) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(sync.clone().run(stop.clone()));
        Self { sync, stop, task }
    }

    /// The link of a device whose models are all healthy, once it has reached that generation.
    async fn at_generation(device: &Device, generation: u64) -> Self {
        let running = Self::start(device.sync(Checked::Healthy));
        running.until("the generation", |s| s.generation_applied == generation).await;
        running
    }

    /// Waits until the status is as wanted.
    async fn until(&self, what: &str, wanted: impl FnMut(&Status) -> bool) -> Status {
        let mut changes = self.sync.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), changes.wait_for(wanted)).await;
        let status = waited.map(|status| status.unwrap().clone());
        status.unwrap_or_else(|_| panic!("{what} did not come: {:#?}", self.sync.status()))
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// A control plane, and a device that joined it.
struct Fleet {
    plane: ControlPlane,
    device: Device,
    /// The device's state; goes with the test.
    dir: tempfile::TempDir,
}

impl Fleet {
    /// Release 1 of [`NAME`] is wanted, as generation 2.
    async fn wanting(weights: &[u8]) -> Self {
        let fleet = Self::joined().await;
        fleet.want(1, weights);
        fleet
    }

    /// Nothing is wanted yet.
    async fn joined() -> Self {
        let plane = ControlPlane::start().await;
        let dir = tempfile::tempdir().unwrap();
        let device = Device::open(dir.path());
        device.enroll(&plane).await;
        Self { plane, device, dir }
    }

    /// The owner signs a release of [`NAME`], and the fleet wants it alone; returns its digest.
    fn want(&self, release: u64, weights: &[u8]) -> Digest {
        let entry = self.plane.publish(NAME, release, weights);
        let digest = entry.digest;
        self.plane.assign(vec![entry]);
        digest
    }
}

fn weights(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 % 251) as u8).collect()
}

fn active(device: &Device) -> Option<u64> {
    let reference: ModelRef = NAME.parse().unwrap();
    device
        .registry
        .store()
        .read_blocking(|connection| catalog::find(connection, &reference))
        .ok()
        .map(|installed| installed.manifest.release)
}

fn trust_of_registry(device: &Device) -> Option<u64> {
    use fulmar_registry::trust::{Repo, Trusted};
    let load = |c: &rusqlite::Connection| Trusted::load(c, Repo::Registry);
    let trusted = device.registry.store().read_blocking(load).unwrap();
    trusted.map(|trusted| trusted.root_version())
}

fn held_policy(device: &Device) -> Option<u64> {
    let held = device.registry.store().read_blocking(fulmar_registry::trust::held_policy).unwrap();
    held.map(|held| held.policy.version())
}

/// Flips a bit in a text or blob of one row.
async fn spoil(
    device: &Device,
    table: &'static str,
    column: &'static str,
    condition: &'static str,
) {
    let work = move |tx: &rusqlite::Transaction<'_>| {
        let sql = format!("SELECT {column} FROM {table} WHERE {condition}");
        let mut bytes: Vec<u8> = tx.query_row(&sql, [], |row| row.get(0))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let sql = format!("UPDATE {table} SET {column} = ?1 WHERE {condition}");
        let changed = tx.execute(&sql, [bytes])?;
        assert_eq!(changed, 1, "{table}");
        Ok::<_, fulmar_store::StoreError>(())
    };
    device.registry.store().write(work).await.unwrap();
}
