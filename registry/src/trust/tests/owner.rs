//! Several people, teams, and keys that change.

use super::*;

#[test]
fn two_of_three_people_sign_one_at_a_time() {
    let (a, b, c, stranger) = (key(), key(), key(), key());
    let dir = tempfile::tempdir().unwrap();
    let public = [&a, &b, &c].map(|k| k.public().clone());
    let repository = Repository::init(dir.path(), &Plan::with_keys(&public, 2), NOW).unwrap();
    let progress = repository.sign(&[&a], NOW).unwrap();
    assert!(progress.published.is_empty());
    assert!(progress.missing.iter().any(|m| m.role == "root" && m.found == 1 && m.needed == 2));
    // Twice the same person, or a stranger, is not two people.
    assert!(repository.sign(&[&a, &stranger], NOW).unwrap().published.is_empty());
    let progress = repository.sign(&[&c], NOW).unwrap();
    assert_eq!(progress.missing, []);
    let roles: Vec<_> = progress.published.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(roles, ["root", "targets", "snapshot", "timestamp"]);
    repository.trusted(NOW).unwrap();
}

fn delegation(key: &Ed25519Key) -> Delegation {
    Delegation {
        from: "targets".into(),
        name: "team/vision".into(),
        paths: vec!["team/*/*".into()],
        keys: vec![key.public().clone()],
        threshold: 1,
        terminating: true,
        expiry_days: 365,
    }
}

#[test]
fn a_team_names_its_own_targets_and_no_others() {
    let (owner, team) = (Owner::new(), key());
    owner.repository.delegate(&delegation(&team), NOW).unwrap();
    let progress = owner.repository.sign(&[&owner.key], NOW).unwrap();
    assert!(progress.missing.iter().any(|m| m.role == "team/vision"));
    let published =
        owner.repository.publish_target("team/eye/latest.json", b"eye", None, None, NOW).unwrap();
    assert_eq!(published.role, "team/vision");
    owner.repository.sign(&[&team, &owner.key], NOW).unwrap();
    let trusted = owner.refresh(owner.bootstrap(), NOW).unwrap();
    assert_eq!(trusted.target("team/eye/latest.json").unwrap().length, 3);
    let repository = &owner.repository;
    assert!(repository.publish_target(PATH, b"x", None, Some("team/vision"), NOW).is_err());
    assert_eq!(repository.read_target(&trusted, "team/eye/latest.json").unwrap(), b"eye");
    assert_eq!(trusted.targets().count(), 1);
}

#[test]
fn a_revoked_team_key_signs_nothing_any_more() {
    let (owner, team, next) = (Owner::new(), key(), key());
    owner.repository.delegate(&delegation(&team), NOW).unwrap();
    owner.repository.publish_target("team/eye/latest.json", b"eye", None, None, NOW).unwrap();
    owner.repository.sign(&[&team, &owner.key], NOW).unwrap();
    let trusted = owner.refresh(owner.bootstrap(), NOW).unwrap();
    owner.repository.set_keys("team/vision", &[next.public().clone()], 1, NOW).unwrap();
    owner.repository.sign(&[&owner.key], NOW).unwrap();
    // The team's old file is not signed by its new key: it vouches for nothing, and holds up
    // nobody else.
    owner.repository.publish_target(PATH, b"manifest", None, None, NOW).unwrap();
    owner.repository.sign(&[&team, &owner.key], NOW).unwrap();
    let mut refresh = Refresh::new(trusted.clone(), NOW).scope(Scope::Everything);
    refresh.feed_all(|want| owner.fetch(want)).unwrap();
    assert!(matches!(refresh.refused(), [TrustError::Signatures { .. }]), "{refresh:?}");
    let without = refresh.finish().unwrap();
    assert!(without.target("team/eye/latest.json").is_none());
    assert!(without.target(PATH).is_some());
    owner.repository.sign(&[&next, &owner.key], NOW).unwrap();
    let trusted = owner.refresh(trusted, NOW).unwrap();
    assert!(trusted.target("team/eye/latest.json").is_some());
}

#[test]
fn a_chain_of_root_rotations_is_followed_and_a_stolen_old_key_is_worth_nothing() {
    let mut owner = Owner::new();
    let first = owner.bootstrap();
    let stolen = Ed25519Key::from_pkcs8(owner.key.to_pkcs8()).unwrap();
    for _ in 0..3 {
        let next = key();
        for role in ["root", "targets", "snapshot", "timestamp"] {
            owner.repository.set_keys(role, &[next.public().clone()], 1, NOW).unwrap();
        }
        let alone = owner.repository.sign(&[&next], NOW).unwrap();
        assert!(alone.missing.iter().any(|m| m.role == "root"), "the old key must sign too");
        owner.repository.sign(&[&owner.key, &next], NOW).unwrap();
        owner.key = next;
    }
    let trusted = owner.refresh(first, NOW).unwrap();
    assert_eq!(trusted.root_version(), 4);
    owner.publish(PATH, b"manifest", 1);
    assert!(owner.refresh(trusted, NOW).unwrap().target(PATH).is_some());
    owner.repository.renew("targets", NOW).unwrap();
    assert!(owner.repository.sign(&[&stolen], NOW).unwrap().published.is_empty());
}

#[test]
fn rotated_keys_undo_far_too_high_versions() {
    let (signer, trusted) = director();
    let far = Minting { generation: 1, serial: u64::MAX / 4, ..minting(1) };
    let trusted = take(&signer.mint("d1", &[], far).unwrap(), trusted, NOW).unwrap();
    let root = signer.root(NOW + 365 * DAY).unwrap();
    let next = DirectorSigner::new(key());
    let heir = Ed25519Key::generate().unwrap();
    let second = signer.next_root(&root, Some(&heir), NOW + 365 * DAY).unwrap();
    let heir = DirectorSigner::new(heir);
    let set = heir.mint("d1", &[], minting(2)).unwrap();
    let mut refresh = Refresh::new(trusted.clone(), NOW);
    let roots = BTreeMap::from([("2.root.json".to_owned(), second)]);
    refresh.feed_all(|want| set.fetch(want, &roots)).unwrap();
    assert_eq!(refresh.finish().unwrap().timestamp_version(), Some(2));
    // Nobody else can do that.
    let stranger = next.next_root(&root, None, NOW + 365 * DAY).unwrap();
    let mut refresh = Refresh::new(trusted, NOW);
    let refused = refresh.feed(Fetched::Found(stranger));
    assert!(matches!(refused, Err(TrustError::Signatures { .. })));
}

#[test]
fn a_new_root_is_published_only_with_what_holds_under_it() {
    let owner = Owner::new();
    owner.publish(PATH, b"manifest", 1);
    let trusted = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let next = key();
    for role in ["root", "targets", "snapshot", "timestamp"] {
        owner.repository.set_keys(role, &[next.public().clone()], 1, NOW).unwrap();
    }
    // The old key alone completes the root but not the rest: readers go on undisturbed.
    for keys in [vec![&owner.key as &dyn SigningKey], vec![&owner.key]] {
        let progress = owner.repository.sign(&keys, NOW).unwrap();
        assert_eq!(progress.published, []);
        assert!(progress.missing.iter().any(|m| m.role == "targets"), "{progress:?}");
        assert_eq!(owner.refresh(trusted.clone(), NOW).unwrap().root_version(), 1);
    }
    let progress = owner.repository.sign(&[&next], NOW).unwrap();
    assert_eq!(progress.missing, []);
    assert_eq!(progress.published.len(), 4);
    assert!(owner.refresh(trusted, NOW).unwrap().target(PATH).is_some());
    // A higher threshold for the targets waits for its second signature.
    let both = [owner.key.public().clone(), next.public().clone()];
    owner.repository.set_keys("targets", &both, 2, NOW).unwrap();
    assert_eq!(owner.repository.sign(&[&next], NOW).unwrap().published, []);
    owner.repository.trusted(NOW).unwrap();
    let progress = owner.repository.sign(&[&owner.key, &next], NOW).unwrap();
    assert_eq!(progress.missing, []);
    owner.repository.trusted(NOW).unwrap();
}

#[test]
fn people_on_other_machines_sign_one_file_each_and_what_came_back_is_merged() {
    use crate::trust::repository::SigningRequest;
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c) = (key(), key(), key());
    let plan = Plan::with_keys(&[&a, &b, &c].map(|key| key.public().clone()), 2);
    let repository = Repository::init(dir.path(), &plan, NOW).unwrap();
    let away = |signer: &Ed25519Key| {
        let bytes = repository.request().unwrap().to_bytes().unwrap();
        let mut request = SigningRequest::read(&bytes).unwrap();
        assert_eq!(request.sign(&[signer]).unwrap(), ["root", "targets"]);
        assert!(request.sign(&[signer, &key()]).unwrap().is_empty(), "once, and no stranger");
        request
    };
    // Both sign copies of the same file, neither sees the other's signature.
    let (by_b, by_c) = (away(&b), away(&c));
    assert_eq!(by_b.asked_for()[0].signed_by, [b.key_id()]);
    assert_eq!(repository.merge(&by_b, NOW).unwrap().published, []);
    let published = repository.merge(&by_c, NOW).unwrap().published;
    assert_eq!(published, [("root".to_owned(), 1), ("targets".to_owned(), 1)]);
    repository.sign(&[&a], NOW).unwrap();
    let root = repository.first_root().unwrap();

    // A signature over something else is refused, as is one over what changed since.
    repository.publish_target(PATH, b"one", None, None, NOW).unwrap();
    let mut request = repository.request().unwrap();
    request.sign(&[&b]).unwrap();
    let text = String::from_utf8(request.to_bytes().unwrap()).unwrap();
    let forged = text.replacen("\"sig\": \"", "\"sig\": \"00", 1);
    let refused = repository.merge(&SigningRequest::read(forged.as_bytes()).unwrap(), NOW);
    assert!(refused.unwrap_err().to_string().contains("is not over this"));
    repository.publish_target(PATH, b"two", None, None, NOW).unwrap();
    let refused = repository.merge(&request, NOW).unwrap_err();
    assert!(refused.to_string().contains("has changed since"), "{refused}");
    repository.sign(&[&a, &b], NOW).unwrap();
    assert!(repository.trusted(NOW).unwrap().target(PATH).is_some());
    assert_eq!(repository.first_root().unwrap(), root);
}

#[test]
fn a_folder_that_is_copied_back_over_a_published_one_changes_no_published_file() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c) = (key(), key(), key());
    let plan = Plan::with_keys(&[&a, &b, &c].map(|key| key.public().clone()), 2);
    let repository = Repository::init(dir.path(), &plan, NOW).unwrap();
    repository.sign(&[&a], NOW).unwrap();
    let staged = ["root", "targets"].map(|role| {
        let path = dir.path().join(format!("staged/{role}.json"));
        (std::fs::read(&path).unwrap(), path)
    });
    repository.sign(&[&b], NOW).unwrap();
    let root = repository.first_root().unwrap();
    for (bytes, path) in &staged {
        std::fs::write(path, bytes).unwrap();
    }
    let progress = repository.sign(&[&c], NOW).unwrap();
    assert_eq!((progress.published.len(), progress.missing.len()), (0, 0), "{progress:?}");
    assert_eq!(repository.first_root().unwrap(), root);
}
