//! What broke on the device is mended.

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
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[77] ^= 4;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let found = device.registry.verified_model(&NAME.parse().unwrap());
    assert!(found.is_err(), "the flipped bit was not found");
}

async fn until_whole(device: &Device, running: &Running) {
    let mut waited = 0;
    while device.registry.verified_model(&NAME.parse().unwrap()).is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        waited += 1;
        assert!(waited < 500, "not repaired: {:?}", running.sync.status());
    }
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
