//! The whole link against a scripted control plane.

use std::time::Duration;

use fulmar_registry::{ModelRef, catalog};
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

#[tokio::test(flavor = "multi_thread")]
async fn a_device_joins_and_brings_itself_to_the_desired_state() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(300_000));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the second generation", |s| s.generation_applied == 2).await;
    assert_eq!(active(&device), Some(1));
    device.registry.verified_model(&NAME.parse().unwrap()).unwrap();
    running
        .until("an empty outbox", |s| s.outbox_pending == 0 && s.checked_in_at_s.is_some())
        .await;
    running.end().await;
    let script = plane.script();
    let expected: Vec<u64> = (1..=script.reports.len() as u64).collect();
    assert_eq!(script.reports, expected, "reports are numbered without gaps");
    assert!(script.reports.len() >= 4, "enroll, accept, install, activate");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_contact_is_checked_against_the_tokens_ca() {
    let plane = ControlPlane::start().await;
    let other = ControlPlane::start().await;
    let mut token = fulmar_protocol::JoinToken::decode(&other.token()).unwrap();
    token.url = format!("https://{}", plane.address);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    let enrollment = device.enrollment(&token.encode());
    let refused = crate::enroll(device.registry.store(), device.clock.clone(), &enrollment).await;
    let Err(EnrollError::Transport(TransportError::Unreachable { reason, .. })) = refused else {
        panic!("{refused:?}")
    };
    assert!(reason.contains("does not show the CA"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_does_not_join_again() {
    let plane = ControlPlane::start().await;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let enrollment = device.enrollment(&plane.token());
    let refused = crate::enroll(device.registry.store(), device.clock.clone(), &enrollment).await;
    assert!(matches!(refused, Err(EnrollError::Member { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_names_no_root_lets_nobody_in_but_with_the_owners_root_by_hand() {
    let plane = ControlPlane::start().await;
    plane.script().token_pin = None;
    plane.script().registry_root = Some(Vec::new());
    let hidden = plane.hide_registry();
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    let enroll = |enrollment| async move {
        let (store, clock) = (device.registry.store(), device.clock.clone());
        let joined = crate::enroll(store, clock, &enrollment).await.map(|_| ());
        (device, joined)
    };
    let mut enrollment = Device::open(dir.path()).enrollment(&plane.token());
    let (device, refused) = enroll(enrollment.clone()).await;
    assert!(matches!(refused, Err(EnrollError::Unpinned)), "{refused:?}");
    enrollment.registry_root = Some(plane.owners_root());
    crate::enroll(device.registry.store(), device.clock.clone(), &enrollment).await.unwrap();
    // The registry's metadata comes later.
    plane.script().metadata.extend(hidden);
    let entry = plane.publish(NAME, 1, &weights(1_000));
    plane.assign(vec![entry]);
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the second generation", |s| s.generation_applied == 2).await;
    assert_eq!(active(&device), Some(1));
    running.end().await;
}

fn trust_of_registry(device: &Device) -> Option<u64> {
    use fulmar_registry::trust::{Repo, Trusted};
    let load = |c: &rusqlite::Connection| Trusted::load(c, Repo::Registry);
    let trusted = device.registry.store().read_blocking(load).unwrap();
    trusted.map(|trusted| trusted.root_version())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_in_an_attackers_hand_brings_no_owner_of_his_own_at_enrolment() {
    let plane = ControlPlane::start().await;
    let attacker = ControlPlane::start().await.owners_root();
    for lie in [attacker, Vec::new()] {
        let none = lie.is_empty();
        plane.script().registry_root = Some(lie);
        let dir = tempfile::tempdir().unwrap();
        let device = Device::open(dir.path());
        let enrollment = device.enrollment(&plane.token());
        let refused =
            crate::enroll(device.registry.store(), device.clock.clone(), &enrollment).await;
        match none {
            true => assert!(matches!(refused, Err(EnrollError::NoRegistryRoot { version: 1 }))),
            false => assert!(refused.unwrap_err().to_string().contains("names root version 1")),
        }
        assert_eq!(trust_of_registry(&device), None);
        assert!(!enrollment.identity_path.exists(), "it is a member");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_by_file_brings_no_other_owner_either() {
    let plane = ControlPlane::start().await;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    let enrollment = device.enrollment(&plane.token());
    let request = crate::enroll_request(&enrollment).unwrap().request;
    assert_eq!(request.registry_root_version, Some(1));
    let join = |answer: Vec<u8>| {
        let (store, clock, enrollment) =
            (device.registry.store().clone(), device.clock.clone(), enrollment.clone());
        async move { crate::enroll_by_answer(&store, clock, &enrollment, &answer).await }
    };
    plane.script().registry_root = Some(ControlPlane::start().await.owners_root());
    let refused = join(plane.answer(&request)).await.unwrap_err();
    assert!(refused.to_string().contains("names root version 1"), "{refused}");
    assert_eq!(trust_of_registry(&device), None);
    plane.script().registry_root = None;
    join(plane.answer(&request)).await.unwrap();
    assert_eq!(trust_of_registry(&device), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_was_rotated_between_token_and_enrolment_is_followed_from_the_named_one() {
    let plane = ControlPlane::start().await;
    let pin = plane.rotate_root();
    assert_eq!(pin.version, 2);
    plane.script().token_pin = Some(pin);
    let token = plane.token();
    plane.rotate_root();
    let entry = plane.publish(NAME, 1, &weights(1_000));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    let enrollment = device.enrollment(&token);
    crate::enroll(device.registry.store(), device.clock.clone(), &enrollment).await.unwrap();
    assert_eq!(trust_of_registry(&device), Some(2));
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
    running.end().await;
    assert_eq!(trust_of_registry(&device), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_that_was_forgotten_begins_again_with_the_pinned_root_only() {
    use fulmar_registry::trust::{Repo, Trusted};
    let plane = ControlPlane::start().await;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let forget = |tx: &rusqlite::Transaction<'_>| Trusted::forget(tx, Repo::Registry);
    device.registry.store().write(forget).await.unwrap();
    let attacker = ControlPlane::start().await.owners_root();
    let root = "registry/1.root.json".to_owned();
    let honest = plane.script().metadata.insert(root.clone(), attacker).unwrap();
    let running = Running::start(device.sync(Checked::Healthy));
    let status = running.until("the refusal", |s| s.error.is_some()).await;
    assert!(status.error.unwrap().contains("is not the owner's control plane"));
    assert_eq!(trust_of_registry(&device), None);
    plane.script().metadata.insert(root, honest);
    running.until("trust", |s| s.error.is_none() && s.checked_in_at_s.is_some()).await;
    assert_eq!(trust_of_registry(&device), Some(1));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_and_wrong_bytes_cost_only_what_was_wrong() {
    let plane = ControlPlane::start().await;
    let bytes = weights(9_000_000);
    let entry = plane.publish(NAME, 1, &bytes);
    plane.assign(vec![entry]);
    plane.script().cut_blobs = Some((3_000_000, 2));
    plane.script().spoil_blobs = 1;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
    running.end().await;
    device.registry.verified_model(&NAME.parse().unwrap()).unwrap();
    let sent = plane.script().blob_bytes_sent;
    assert!(sent < 2 * bytes.len(), "{sent} bytes were sent for {}", bytes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_lives_through_restarts_without_its_control_plane_and_catches_up() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(200_000));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
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
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
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
async fn an_unhealthy_release_does_not_replace_the_healthy_one() {
    let plane = ControlPlane::start().await;
    let first = plane.publish(NAME, 1, &weights(1_000));
    plane.assign(vec![first]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("release 1", |s| s.generation_applied == 2).await;
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
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("release 3", |s| s.generation_applied == 4).await;
    assert_eq!(active(&device), Some(3));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_owner_did_not_sign_is_not_installed_whatever_the_director_says() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    let forged = fulmar_registry::trust::director::DirectorEntry {
        digest: fulmar_registry::Digest::of(b"another manifest"),
        ..entry
    };
    plane.assign(vec![forged]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    let status = running.until("the trouble", |s| !s.troubles.is_empty()).await;
    assert!(status.troubles[0].reason.contains("different contents"), "{status:?}");
    assert_eq!(status.generation_applied, 0);
    assert_eq!(active(&device), None);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_generation_is_refused_and_what_is_there_goes_on() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
    plane.script().generation = 1;
    plane.mint();
    let status = running.until("the refusal", |s| s.error.is_some()).await;
    assert!(status.error.unwrap().contains("has seen generation 2"));
    assert_eq!(active(&device), Some(1));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_timestamp_is_refused_by_name() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    let old = plane.script().metadata["director/timestamp.json"].clone();
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
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
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
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
async fn a_flipped_bit_is_repaired_from_the_network() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(100_000));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
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
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(100_000));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
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
async fn on_a_metered_link_all_files_of_a_release_together_count() {
    let plane = ControlPlane::start().await;
    let (first, second) = (weights(100_000), weights(90_000));
    let entry = plane.publish_with(NAME, 1, &first, Some(&second));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
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

fn held_policy(device: &Device) -> Option<u64> {
    let held = device.registry.store().read_blocking(fulmar_registry::trust::held_policy).unwrap();
    held.map(|held| held.policy.version())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_model_leaves_service_and_does_not_come_back() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    let digest = entry.digest;
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
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
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    plane.assign(vec![entry]);
    plane.policy(serde_json::json!({}));
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_brings_what_the_network_would_and_an_older_one_undoes_nothing() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(100_000));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
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
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the third generation", |s| s.generation_applied == 3).await;
    assert_eq!(active(&device), Some(2));
    running.end().await;
    let refused = crate::import_bundle(&device.registry, &device.clock, id, &older).await;
    assert!(refused.unwrap_err().to_string().contains("its serial number is"));
    let others = crate::import_bundle(&device.registry, &device.clock, "d-2", &newer).await;
    assert!(others.unwrap_err().to_string().contains("it is for d-1"));
    assert_eq!(active(&device), Some(2));
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

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_in_the_database_are_mended_by_the_link() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    plane.policy(serde_json::json!({}));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
    let running = Running::start(device.sync(Checked::Healthy));
    running.until("the model", |s| s.generation_applied == 2).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_mends_damaged_roots_where_there_is_no_link() {
    let plane = ControlPlane::start().await;
    let entry = plane.publish(NAME, 1, &weights(1_000));
    plane.assign(vec![entry]);
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(dir.path());
    device.enroll(&plane).await;
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
