//! The rule of two repositories, and whoever holds only one of them.

use super::*;

#[test]
fn a_model_that_both_repositories_name_is_admitted() {
    let owner = Owner::new();
    owner.publish(PATH, b"manifest", 3);
    let registry = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let (signer, trusted) = director();
    let set = signer.mint("d1", &[entry(b"manifest", 3)], minting(5)).unwrap();
    let director = take(&set, trusted, NOW).unwrap();
    let admitted = admit(&registry, &director, PATH, &admission(NOW)).unwrap();
    assert_eq!(admitted.digest(), Digest::of(b"manifest"));
    assert_eq!((admitted.release(), admitted.director_version()), (3, 5));
    assert_eq!(admitted.active(), Active::Serve);
}

#[test]
fn with_the_director_alone_an_attacker_gets_nothing_unsigned_in() {
    let owner = Owner::new();
    owner.publish(PATH, b"manifest", 3);
    let registry = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let (signer, trusted) = director();
    let mint = |entries: &[DirectorEntry]| {
        let set = signer.mint("d1", entries, minting(1)).unwrap();
        take(&set, trusted.clone(), NOW).unwrap()
    };
    let evil = mint(&[entry(b"evil", 3)]);
    let refused = admit(&registry, &evil, PATH, &admission(NOW));
    assert!(matches!(refused, Err(Refused::Differ { .. })), "{refused:?}");
    let other = DirectorEntry { target_path: "library/other/latest.json".into(), ..entry(b"m", 1) };
    let path = other.target_path.clone();
    let refused = admit(&registry, &mint(&[other]), &path, &admission(NOW));
    assert!(matches!(refused, Err(Refused::NotNamed { repo: Repo::Registry, .. })));
    // A higher release for the owner's bytes is not the director's to say.
    let refused = admit(&registry, &mint(&[entry(b"manifest", 9)]), PATH, &admission(NOW));
    assert!(matches!(refused, Err(Refused::Entry { repo: Repo::Director, .. })));
}

#[test]
fn with_the_registry_alone_an_attacker_gets_nothing_onto_a_device() {
    let owner = Owner::new();
    owner.publish(PATH, b"manifest", 3);
    let registry = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let (signer, trusted) = director();
    let empty = take(&signer.mint("d1", &[], minting(1)).unwrap(), trusted.clone(), NOW).unwrap();
    let refused = admit(&registry, &empty, PATH, &admission(NOW));
    assert!(matches!(refused, Err(Refused::NotNamed { repo: Repo::Director, .. })));
    // The owner's own metadata does not pass for the director's.
    let mut posing = registry.clone();
    posing.repo = Repo::Director;
    assert!(admit(&registry, &posing, PATH, &admission(NOW)).is_err());
    // What another device was told does not count here.
    let set = signer.mint("d2", &[entry(b"manifest", 3)], minting(1)).unwrap();
    let refused = admit(&registry, &take(&set, trusted, NOW).unwrap(), PATH, &admission(NOW));
    assert!(matches!(refused, Err(Refused::Device { .. })));
}

#[test]
fn the_release_counter_does_not_go_back_and_is_not_used_twice() {
    let owner = Owner::new();
    let (signer, mut trusted) = director();
    let mut connection = database();
    let mut registry = owner.bootstrap();
    for (serial, bytes, release, admitted) in
        [(1, b"a", 3, true), (2, b"b", 2, false), (3, b"c", 3, false), (4, b"d", 4, true)]
    {
        owner.publish(PATH, bytes, release);
        registry = owner.refresh(registry, NOW).unwrap();
        let set = signer.mint("d1", &[entry(bytes, release)], minting(serial)).unwrap();
        trusted = take(&set, trusted, NOW).unwrap();
        let floor = release_floor(&connection, PATH).unwrap();
        let result =
            admit(&registry, &trusted, PATH, &Admission { release_floor: floor, ..admission(NOW) });
        assert_eq!(result.is_ok(), admitted, "{result:?}");
        if let Ok(result) = result {
            let tx = connection.transaction().unwrap();
            result.record(&tx).unwrap();
            tx.commit().unwrap();
        }
    }
}

#[test]
fn expired_metadata_admits_nothing_new() {
    let owner = Owner::new();
    owner.publish(PATH, b"manifest", 3);
    let registry = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let (signer, trusted) = director();
    let set = signer.mint("d1", &[entry(b"manifest", 3)], minting(1)).unwrap();
    let director = take(&set, trusted, NOW).unwrap();
    assert!(admit(&registry, &director, PATH, &admission(NOW + 6 * DAY)).is_ok());
    for late in [NOW + 7 * DAY, NOW + 3_650 * DAY, i64::MAX] {
        let refused = admit(&registry, &director, PATH, &admission(late));
        assert!(matches!(refused, Err(Refused::Metadata { .. })), "{late}");
    }
}

#[test]
fn lengths_and_digests_that_differ_are_refused_by_both_their_names() {
    let owner = Owner::new();
    owner.publish(PATH, b"manifest", 3);
    let registry = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let (signer, trusted) = director();
    for (length, digest) in [(7, Digest::of(b"manifest")), (8, Digest::of(b"Manifest"))] {
        let other = DirectorEntry { length, digest, ..entry(b"manifest", 3) };
        let set = signer.mint("d1", &[other], minting(1)).unwrap();
        let director = take(&set, trusted.clone(), NOW).unwrap();
        let refused = admit(&registry, &director, PATH, &admission(NOW)).unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, Refused::Differ { .. }), "{text}");
        assert!(text.contains("8 bytes") && text.contains(&format!("{length} bytes, {digest}")));
    }
    // Bytes that are not the admitted ones do not become a signed manifest.
    let set = signer.mint("d1", &[entry(b"manifest", 3)], minting(1)).unwrap();
    let director = take(&set, trusted, NOW).unwrap();
    let admitted = admit(&registry, &director, PATH, &admission(NOW)).unwrap();
    let refused = crate::Signed::admit(admitted, b"manifesT".to_vec()).unwrap_err();
    assert!(matches!(refused, crate::ManifestRefused::Differs { .. }));
}

#[test]
fn with_the_director_alone_no_older_release_comes_back() {
    let owner = Owner::new();
    owner.publish(PATH, b"old", 1);
    let old = owner.freeze();
    let before = owner.refresh(owner.bootstrap(), NOW).unwrap();
    owner.publish(PATH, b"new", 2);
    let registry = owner.refresh(before, NOW).unwrap();
    let (signer, trusted) = director();
    let floor = ReleaseFloor { release: 2, digest: Digest::of(b"new") };
    let floored = Admission { release_floor: Some(floor), ..admission(NOW) };
    // The attacker names the old release, which the owner did sign once.
    let set = signer.mint("d1", &[entry(b"old", 1)], minting(1)).unwrap();
    let director = take(&set, trusted.clone(), NOW).unwrap();
    let refused = admit(&registry, &director, PATH, &floored);
    assert!(matches!(refused, Err(Refused::Differ { .. })), "{refused:?}");
    // And serves the registry's files of that time beside it: the device knows newer ones.
    let refused = refresh_from(&old, registry, NOW).unwrap_err();
    assert!(matches!(refused, TrustError::Rollback { .. }), "{refused}");
    // Even a device that lost its registry metadata remembers the release that it had.
    let forgetful = refresh_from(&old, owner.bootstrap(), NOW).unwrap();
    let refused = admit(&forgetful, &director, PATH, &floored);
    assert!(matches!(refused, Err(Refused::ReleaseRollback { floor: 2, found: 1, .. })));
}

#[test]
fn with_the_registry_alone_no_older_release_comes_back() {
    let owner = Owner::new();
    owner.publish(PATH, b"new", 2);
    let (signer, trusted) = director();
    let set = signer.mint("d1", &[entry(b"new", 2)], minting(1)).unwrap();
    let director = take(&set, trusted, NOW).unwrap();
    let floor = ReleaseFloor { release: 2, digest: Digest::of(b"new") };
    let floored = Admission { release_floor: Some(floor), ..admission(NOW) };
    let mut registry = owner.refresh(owner.bootstrap(), NOW).unwrap();
    assert!(admit(&registry, &director, PATH, &floored).is_ok());
    // The attacker signs what he likes: an older release, the same one with other bytes, a newer.
    for (bytes, release) in [(&b"old"[..], 1), (b"evil", 2), (b"evil", 3)] {
        owner.publish(PATH, bytes, release);
        registry = owner.refresh(registry, NOW).unwrap();
        let refused = admit(&registry, &director, PATH, &floored);
        assert!(matches!(refused, Err(Refused::Differ { .. })), "{release}: {refused:?}");
    }
}

#[test]
fn a_damaged_record_of_a_release_shuts_no_newer_one_out() {
    let mut connection = database();
    let owner = Owner::new();
    let (signer, trusted) = director();
    let admitted = |release: u64| {
        owner.publish(PATH, b"manifest", release);
        let registry = owner.refresh(owner.bootstrap(), NOW).unwrap();
        let set = signer.mint("d1", &[entry(b"manifest", release)], minting(1)).unwrap();
        let director = take(&set, trusted.clone(), NOW).unwrap();
        admit(&registry, &director, PATH, &admission(NOW)).unwrap()
    };
    let tx = connection.transaction().unwrap();
    admitted(3).record(&tx).unwrap();
    for damage in ["release = release | 1099511627776", "digest = 'sha256:'"] {
        tx.execute(&format!("UPDATE trust_release SET {damage}"), []).unwrap();
        assert_eq!(release_floor(&tx, PATH).unwrap(), None, "{damage}");
        admitted(4).record(&tx).unwrap();
        assert_eq!(release_floor(&tx, PATH).unwrap().unwrap().release, 4, "{damage}");
    }
}
