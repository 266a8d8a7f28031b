//! How blobs come: cut, spoiled, after restarts, on a metered link.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_and_wrong_bytes_cost_only_what_was_wrong() {
    let bytes = weights(9_000_000);
    let Fleet { plane, device, dir: _dir } = Fleet::wanting(&bytes).await;
    plane.script().cut_blobs = Some((3_000_000, 2));
    plane.script().spoil_blobs = 1;
    let running = Running::at_generation(&device, 2).await;
    running.end().await;
    device.registry.verified_model(&NAME.parse().unwrap()).unwrap();
    let sent = plane.script().blob_bytes_sent;
    assert!(sent < 2 * bytes.len(), "{sent} bytes were sent for {}", bytes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_lives_through_restarts_without_its_control_plane_and_catches_up() {
    let Fleet { plane, device, dir } = Fleet::wanting(&weights(200_000)).await;
    // Half of the model comes, then the device is switched off.
    plane.script().cut_blobs = Some((50_000, 1));
    plane.script().gone_after_cuts = Some(());
    let running = Running::start(device.sync(Checked::Healthy));
    let status = running.until("the trouble", |s| !s.troubles.is_empty()).await;
    assert!(status.troubles[0].reason.contains("blob_unknown"), "{status:?}");
    running.end().await;
    assert_eq!(device.registry.blobs().list_incoming().unwrap()[0].1, 50_000);
    drop(device);
    plane.script().cut_blobs = None;
    let device = Device::open(dir.path());
    let running = Running::at_generation(&device, 2).await;
    running.end().await;
    let manifest_bytes = 3_000;
    assert!(plane.script().blob_bytes_sent < 200_000 + manifest_bytes, "only the rest came");
    // The control plane goes away; the device starts again and serves all the same.
    let address = plane.address;
    drop(plane);
    drop(device);
    let device = Device::open(dir.path());
    let running = Running::start(device.sync(Checked::Healthy));
    let failed = |s: &Status| matches!(&s.link, Link::Offline { failures, .. } if *failures > 1);
    let status = running.until("two failures", failed).await;
    assert_eq!((status.generation_seen, status.generation_applied), (2, 2));
    let Link::Offline { reason, .. } = status.link else { panic!() };
    assert!(reason.contains(&address.to_string()), "{reason}");
    device.registry.verified_model(&NAME.parse().unwrap()).unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_metered_link_all_files_of_a_release_together_count() {
    let Fleet { plane, device, dir: _dir } = Fleet::joined().await;
    let (first, second) = (weights(100_000), weights(90_000));
    let entry = plane.publish_with(NAME, 1, &first, Some(&second));
    plane.assign(vec![entry]);
    let metered = |limit| {
        device.sync_with(Checked::Healthy, move |options| {
            options.cost = LinkCost::Metered;
            options.downloads.metered_bytes_max = limit;
        })
    };
    let running = Running::start(metered(150_000));
    let status = running.until("the refusal", |s| !s.troubles.is_empty()).await;
    let reason = &status.troubles[0].reason;
    assert!(reason.contains("190000 bytes are missing") && reason.contains("150000"), "{reason}");
    assert!(device.registry.blobs().list_incoming().unwrap().is_empty(), "nothing was fetched");
    running.end().await;
    let running = Running::start(metered(200_000));
    running.until("the model", |s| s.generation_applied == 2).await;
    running.end().await;
}
