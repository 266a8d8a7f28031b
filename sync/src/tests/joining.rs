//! Joining a fleet: whom a device believes from its first contact on.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_device_joins_and_brings_itself_to_the_desired_state() {
    let Fleet { plane, device, dir: _dir } = Fleet::wanting(&weights(300_000)).await;
    let running = Running::at_generation(&device, 2).await;
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
    let Fleet { plane, device, dir: _dir } = Fleet::joined().await;
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
    let running = Running::at_generation(&device, 2).await;
    assert_eq!(active(&device), Some(1));
    running.end().await;
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
    let running = Running::at_generation(&device, 2).await;
    running.end().await;
    assert_eq!(trust_of_registry(&device), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_that_was_forgotten_begins_again_with_the_pinned_root_only() {
    use fulmar_registry::trust::{Repo, Trusted};
    let Fleet { plane, device, dir: _dir } = Fleet::joined().await;
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
