//! What broke on the device is mended.

use std::path::Path;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_repaired_from_the_network() {
    let Fleet { plane: _plane, device, dir: _dir } = Fleet::wanting(&weights(100_000)).await;
    let running = Running::at_generation(&device, 2).await;
    flip_a_bit(&device);
    running.sync.reconcile();
    until_whole(&device, &running).await;
    running.end().await;
}

/// In the weights of the model; found before the model is used.
fn flip_a_bit(device: &Device) {
    let path =
        device.registry.verified_model(&NAME.parse().unwrap()).unwrap().weights.path().to_owned();
    flip(&path, 77);
    let found = device.registry.verified_model(&NAME.parse().unwrap());
    assert!(found.is_err(), "the flipped bit was not found");
}

/// Behind the store's back.
fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 4;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

async fn until_whole(device: &Device, running: &Running) {
    let whole = || device.registry.verified_model(&NAME.parse().unwrap()).is_ok();
    until_mended(running, whole).await;
}

async fn until_mended(running: &Running, mended: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !mended() {
        assert!(tokio::time::Instant::now() < deadline, "{:#?}", running.sync.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A device with two releases: the first went before the second, which serves.
async fn two_releases(first: &[u8], second: &[u8]) -> (Fleet, Digest) {
    let fleet = Fleet::joined().await;
    let previous = fleet.want(1, first);
    Running::at_generation(&fleet.device, 2).await.end().await;
    fleet.want(2, second);
    Running::at_generation(&fleet.device, 3).await.end().await;
    assert_eq!(active(&fleet.device), Some(2));
    (fleet, previous)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_release_before_is_found_by_the_scrub_and_repaired() {
    let before = weights(100_000);
    let (Fleet { plane, device, dir: _dir }, previous) =
        two_releases(&before, &weights(90_000)).await;
    let path = device.registry.blobs().path(&Digest::of(&before));
    flip(&path, 77);
    plane.script().blob_bytes_sent = 0;
    let scrubbed = device.sync_with(Checked::Healthy, |o| o.scrub_interval_s = 1);
    let running = Running::start(scrubbed);
    until_mended(&running, || std::fs::read(&path).is_ok_and(|now| now == before)).await;
    assert_eq!(plane.script().blob_bytes_sent, before.len());
    // A rollback finds it sound.
    let reference: ModelRef = format!("{NAME}@{previous}").parse().unwrap();
    device.registry.verified_model(&reference).unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_before_that_cannot_be_mended_is_told_and_holds_nothing_back() {
    let before = weights(100_000);
    let (Fleet { plane, device, dir: _dir }, previous) =
        two_releases(&before, &weights(90_000)).await;
    let digest = Digest::of(&before);
    plane.script().blobs.remove(&digest.to_string());
    std::fs::remove_file(device.registry.blobs().path(&digest)).unwrap();
    // A new generation that wants the same.
    plane.script().generation += 1;
    plane.mint();
    let running = Running::start(device.sync(Checked::Healthy));
    let told = |s: &Status| s.generation_applied == 4 && !s.troubles.is_empty();
    let status = running.until("the trouble", told).await;
    assert_eq!(status.troubles[0].digest, previous.to_string());
    running.end().await;
}

/// The length of the chunks that releases of these tests have.
const CHUNK: usize = 4 << 20;

/// No two chunks of it are alike, nor are those of different seeds.
fn chunks(count: usize, seed: u8) -> Vec<u8> {
    let byte = |i: usize| (i % 251) as u8 ^ (i / CHUNK) as u8 ^ seed;
    (0..count * CHUNK).map(byte).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_fetches_the_broken_chunk_and_has_all_others_on_the_device() {
    let bytes = chunks(3, 0);
    let Fleet { plane, device, dir: _dir } = Fleet::wanting(&bytes).await;
    let running = Running::at_generation(&device, 2).await;
    let path = device.registry.blobs().path(&Digest::of(&bytes));
    flip(&path, CHUNK + 77);
    {
        let mut script = plane.script();
        script.blob_bytes_sent = 0;
        script.only = Some(CHUNK..2 * CHUNK);
    }
    assert!(device.registry.verified_model(&NAME.parse().unwrap()).is_err());
    running.sync.reconcile();
    until_whole(&device, &running).await;
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(plane.script().blob_bytes_sent, CHUNK, "the rest was in quarantine");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_fetches_only_the_chunk_that_no_release_on_the_device_has() {
    let (before, mut after) = (chunks(3, 0), chunks(3, 0));
    after[CHUNK + 77] ^= 4;
    let (Fleet { plane, device, dir: _dir }, _) = two_releases(&before, &weights(1_000)).await;
    let entry = plane.publish(NAME, 3, &after);
    {
        let mut script = plane.script();
        script.blob_bytes_sent = 0;
        // The manifest is in the device's hands before the network goes.
        let manifest = script.blobs[&entry.digest.to_string()].clone();
        device.registry.blobs().put(&manifest).unwrap();
        script.only = Some(CHUNK..2 * CHUNK);
    }
    plane.assign(vec![entry]);
    let running = Running::at_generation(&device, 4).await;
    assert_eq!((active(&device), plane.script().blob_bytes_sent), (Some(3), CHUNK));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_release_has_is_mended_from_it_without_any_network() {
    let before = chunks(2, 0);
    let after = [before.clone(), chunks(1, 9)].concat();
    let (Fleet { plane, device, dir: _dir }, previous) = two_releases(&before, &after).await;
    drop(plane);
    let path = device.registry.blobs().path(&Digest::of(&before));
    std::fs::remove_file(&path).unwrap();
    let running = Running::start(device.sync(Checked::Healthy));
    until_mended(&running, || std::fs::read(&path).is_ok_and(|now| now == before)).await;
    let reference: ModelRef = format!("{NAME}@{previous}").parse().unwrap();
    device.registry.verified_model(&reference).unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_on_site_mends_a_release_long_after_the_fleets_word_has_expired() {
    let Fleet { plane, device, dir: _dir } = Fleet::wanting(&weights(100_000)).await;
    let running = Running::at_generation(&device, 2).await;
    running.end().await;
    let site = Site::of(&plane).await;
    drop(plane);
    device.clock.raise(device.clock.now_s() + 400 * 86_400);
    flip_a_bit(&device);
    let link = device.sync_with(Checked::Healthy, |o| o.blob_urls = vec![site.url.clone()]);
    let running = Running::start(link);
    until_whole(&device, &running).await;
    assert_eq!(active(&device), Some(1));
    assert!(matches!(running.sync.status().link, Link::Offline { .. }));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_in_the_database_are_mended_by_the_link() {
    let Fleet { plane, device, dir: _dir } = Fleet::wanting(&weights(1_000)).await;
    plane.policy(serde_json::json!({}));
    let running = Running::at_generation(&device, 2).await;
    running.end().await;
    let loads = || device.registry.verified_model(&NAME.parse().unwrap()).map(drop);
    loads().unwrap();
    for (table, column, condition) in [
        ("model", "manifest", "1"),
        ("trust_role", "bytes", "repo = 'registry' AND role = 'timestamp'"),
        ("trust_role", "bytes", "repo = 'director' AND role = 'snapshot'"),
        ("trust_role", "bytes", "repo = 'registry' AND role = 'targets'"),
        ("trust_role", "bytes", "repo = 'registry' AND role = 'root'"),
        ("trust_role", "bytes", "repo = 'director' AND role = 'root'"),
        ("trust_policy", "bytes", "1"),
    ] {
        spoil(&device, table, column, condition).await;
        let place = format!("{table} {condition}");
        let rests_on_it = table != "trust_role" || condition.ends_with("'root'");
        assert_eq!(loads().is_err(), rests_on_it, "{place}");
        let running = Running::start(device.sync(Checked::Healthy));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let whole = |connection: &rusqlite::Connection| {
            use fulmar_registry::trust::{Repo, Trusted, held_policy};
            let trusted = |repo| {
                Trusted::load(connection, repo).is_ok_and(|t| t.is_some_and(|t| !t.is_damaged()))
            };
            let trusted = trusted(Repo::Registry) && trusted(Repo::Director);
            let rows = catalog::damaged(connection).is_ok_and(|rows| rows.is_empty());
            Ok::<_, fulmar_store::StoreError>(trusted && rows && held_policy(connection).is_ok())
        };
        while !device.registry.store().read(whole).await.unwrap() || loads().is_err() {
            assert!(tokio::time::Instant::now() < deadline, "{place}: {:?}", running.sync.status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        running.end().await;
        assert_eq!(active(&device), Some(1), "{place}");
    }
}
