//! A file instead of a link.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_brings_what_the_network_would_and_an_older_one_undoes_nothing() {
    let Fleet { plane, device, dir } = Fleet::wanting(&weights(100_000)).await;
    let older = plane.bundle(&dir.path().join("1.bundle"));
    let entry = plane.publish(NAME, 2, &weights(120_000));
    plane.assign(vec![entry]);
    plane.policy(serde_json::json!({ "max_offline_s": 3_600 }));
    let newer = plane.bundle(&dir.path().join("2.bundle"));
    // From here on there is no link.
    drop(plane);
    let id = crate::testing::DEVICE_ID;
    let taken = crate::import_bundle(&device.registry, &device.clock, id, &newer).await.unwrap();
    assert_eq!((taken.generation, taken.models), (3, vec![NAME.to_owned()]));
    assert!(taken.blob_bytes > 120_000);
    assert_eq!(held_policy(&device), Some(1), "the policy came in the file");
    let running = Running::at_generation(&device, 3).await;
    assert_eq!(active(&device), Some(2));
    running.end().await;
    let refused = crate::import_bundle(&device.registry, &device.clock, id, &older).await;
    assert!(refused.unwrap_err().to_string().contains("its serial number is"));
    let others = crate::import_bundle(&device.registry, &device.clock, "d-2", &newer).await;
    assert!(others.unwrap_err().to_string().contains("it is for d-1"));
    assert_eq!(active(&device), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_mends_damaged_roots_where_there_is_no_link() {
    let Fleet { plane, device, dir } = Fleet::wanting(&weights(1_000)).await;
    let id = crate::testing::DEVICE_ID;
    let bundle = plane.bundle(&dir.path().join("1.bundle"));
    crate::import_bundle(&device.registry, &device.clock, id, &bundle).await.unwrap();
    for condition in ["repo = 'director' AND role = 'root'", "repo = 'registry' AND role = 'root'"]
    {
        spoil(&device, "trust_role", "bytes", condition).await;
        let load = |c: &rusqlite::Connection| fulmar_registry::Standing::load(c).map(drop);
        assert!(device.registry.store().read(load).await.is_err(), "{condition}");
        crate::import_bundle(&device.registry, &device.clock, id, &bundle).await.unwrap();
        device.registry.store().read(load).await.unwrap();
    }
}
