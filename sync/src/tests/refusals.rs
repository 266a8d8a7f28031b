//! What a device does not accept, and what goes on meanwhile.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_release_does_not_replace_the_healthy_one() {
    let Fleet { plane, device, dir: _dir } = Fleet::wanting(&weights(1_000)).await;
    let running = Running::at_generation(&device, 2).await;
    running.end().await;
    let second = plane.publish(NAME, 2, &weights(2_000));
    plane.assign(vec![second]);
    let sick = Checked::Unhealthy { reason: "0.1 tokens/s".to_owned() };
    let running = Running::start(device.sync(sick));
    let status = running.until("the trouble", |s| !s.troubles.is_empty()).await;
    assert!(status.troubles[0].reason.contains("0.1 tokens/s"), "{status:?}");
    assert_eq!(active(&device), Some(1));
    let told = |s: &Status| s.checked_in_at_s.is_some() && s.outbox_pending == 0;
    running.until("the report", told).await;
    running.end().await;
    // Told to, the device goes to a release that works.
    let third = plane.publish(NAME, 3, &weights(3_000));
    plane.assign(vec![third]);
    let running = Running::at_generation(&device, 4).await;
    assert_eq!(active(&device), Some(3));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_owner_did_not_sign_is_not_installed_whatever_the_director_says() {
    let Fleet { plane, device, dir: _dir } = Fleet::joined().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    let forged = fulmar_registry::trust::director::DirectorEntry {
        digest: fulmar_registry::Digest::of(b"another manifest"),
        ..entry
    };
    plane.assign(vec![forged]);
    let running = Running::start(device.sync(Checked::Healthy));
    let status = running.until("the trouble", |s| !s.troubles.is_empty()).await;
    assert!(status.troubles[0].reason.contains("different contents"), "{status:?}");
    assert_eq!(status.generation_applied, 0);
    assert_eq!(active(&device), None);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_generation_is_refused_and_what_is_there_goes_on() {
    let Fleet { plane, device, dir: _dir } = Fleet::wanting(&weights(1_000)).await;
    let running = Running::at_generation(&device, 2).await;
    plane.script().generation = 1;
    plane.mint();
    let status = running.until("the refusal", |s| s.error.is_some()).await;
    assert!(status.error.unwrap().contains("has seen generation 2"));
    assert_eq!(active(&device), Some(1));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_timestamp_is_refused_by_name() {
    let Fleet { plane, device, dir: _dir } = Fleet::joined().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    let old = plane.script().metadata["director/timestamp.json"].clone();
    plane.assign(vec![entry]);
    let running = Running::at_generation(&device, 2).await;
    plane.mint();
    plane.script().metadata.insert("director/timestamp.json".to_owned(), old);
    let status = running.until("the refusal", |s| s.error.is_some()).await;
    let error = status.error.unwrap();
    assert!(error.contains("director") && error.contains("timestamp"), "{error}");
    assert_eq!(active(&device), Some(1));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_ten_years_ahead_moves_no_clock_and_is_told_so() {
    let Fleet { plane, device, dir: _dir } = Fleet::wanting(&weights(1_000)).await;
    let running = Running::at_generation(&device, 2).await;
    let entry = plane.publish(NAME, 2, &weights(2_000));
    plane.script().ahead_s = 3_650 * 86_400;
    plane.assign(vec![entry]);
    let status = running.until("the refusal", |s| s.error.is_some()).await;
    let error = status.error.unwrap();
    assert!(error.contains("the clock of the control plane is ahead"), "{error}");
    let now_s = crate::SignedClock::new(0).now_s();
    assert!((device.clock.now_s() - now_s).abs() < 60, "the device's clock was moved");
    device.registry.verified_model(&NAME.parse().unwrap()).unwrap();
    let explained = |device: &Device| {
        let store = device.registry.store();
        let explain = |c: &rusqlite::Connection| {
            Ok::<_, fulmar_store::StoreError>(fulmar_registry::trust::explain(c, now_s))
        };
        format!("{:?}", store.read_blocking(explain).unwrap())
    };
    assert!(explained(&device).contains("3650 days ahead"), "{}", explained(&device));
    // Set right, it is followed again.
    plane.script().ahead_s = 0;
    plane.mint();
    running.until("release 2", |s| s.generation_applied == 3).await;
    assert_eq!(active(&device), Some(2));
    assert!(!explained(&device).contains("days ahead"));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_model_leaves_service_and_does_not_come_back() {
    let Fleet { plane, device, dir: _dir } = Fleet::joined().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    let digest = entry.digest;
    plane.assign(vec![entry]);
    let running = Running::at_generation(&device, 2).await;
    assert_eq!(held_policy(&device), None);
    let models = serde_json::json!({ digest.to_string(): "it leaks" });
    plane.policy(serde_json::json!({ "revoked": { "models": models } }));
    let status = running.until("the trouble", |s| !s.troubles.is_empty()).await;
    assert!(status.troubles[0].reason.contains("it leaks"), "{status:?}");
    assert_eq!((held_policy(&device), active(&device)), (Some(1), None));
    let reference: ModelRef = format!("{NAME}@{digest}").parse().unwrap();
    let refused = device.registry.verified_model(&reference).unwrap_err();
    assert!(matches!(refused, fulmar_registry::LoadError::Barred { .. }), "{refused}");
    // Its successor is not revoked.
    let next = plane.publish(NAME, 2, &weights(2_000));
    plane.assign(vec![next]);
    running.until("release 2", |s| s.generation_applied == 3).await;
    assert_eq!(active(&device), Some(2));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_withheld_or_changed_stops_the_refresh_and_the_old_one_holds() {
    let Fleet { plane, device, dir: _dir } = Fleet::wanting(&weights(1_000)).await;
    plane.policy(serde_json::json!({}));
    let running = Running::at_generation(&device, 2).await;
    assert_eq!(held_policy(&device), Some(1));
    let digest = plane.policy(serde_json::json!({ "max_offline_s": 600 })).to_string();
    let policy = plane.script().blobs.remove(&digest).unwrap();
    let named = |s: &Status| s.error.as_ref().is_some_and(|error| error.contains("blob_unknown"));
    running.until("the withheld policy", named).await;
    plane.script().blobs.insert(digest.clone(), b"{}".to_vec());
    let named = |s: &Status| s.error.as_ref().is_some_and(|e| e.contains("accept the policy"));
    running.until("the changed policy", named).await;
    assert_eq!((held_policy(&device), active(&device)), (Some(1), Some(1)));
    plane.script().blobs.insert(digest, policy);
    running.until("the right policy", |s| s.error.is_none()).await;
    assert_eq!(held_policy(&device), Some(2));
    running.end().await;
}
