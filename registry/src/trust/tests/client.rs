//! What the client refuses on its way through the metadata.

use super::*;

#[test]
fn older_metadata_is_refused_and_the_newer_kept() {
    let owner = Owner::new();
    let old = owner.freeze();
    owner.publish(PATH, b"manifest", 3);
    let trusted = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let refused = refresh_from(&old, trusted, NOW);
    assert!(
        matches!(&refused, Err(TrustError::Rollback { role, .. }) if role == "timestamp"),
        "{refused:?}"
    );
}

#[test]
fn a_director_that_mints_an_older_generation_is_refused() {
    let (signer, trusted) = director();
    let trusted = take(&signer.mint("d1", &[], minting(5)).unwrap(), trusted, NOW).unwrap();
    let older = Minting { generation: 4, serial: 6, ..minting(6) };
    let refused = take(&signer.mint("d1", &[], older).unwrap(), trusted.clone(), NOW);
    assert!(matches!(refused, Err(TrustError::Rollback { .. })));
    // The same generation again, for longer, is how it is renewed.
    let renewed = Minting { generation: 5, serial: 7, expires_s: NOW + 30 * DAY, ..minting(7) };
    let renewed = take(&signer.mint("d1", &[], renewed).unwrap(), trusted, NOW).unwrap();
    assert_eq!(renewed.targets_version(), Some(5));
    assert!(renewed.check_expiry(NOW + 29 * DAY).is_ok());
}

#[test]
fn the_same_key_under_two_ids_counts_once() {
    let key = key();
    let mut renamed = key.public().clone();
    renamed.extra.insert("x-note".into(), json!("another id, the same key"));
    assert_ne!(renamed.key_id(), key.key_id());
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan::with_keys(&[key.public().clone(), renamed.clone()], 2);
    let repository = Repository::init(dir.path(), &plan, NOW).unwrap();
    struct Renamed(Ed25519Key, PublicKey);
    impl SigningKey for Renamed {
        fn public(&self) -> &PublicKey {
            &self.1
        }
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
            self.0.sign(message)
        }
    }
    let same = Ed25519Key::from_pkcs8(key.to_pkcs8()).unwrap();
    let progress = repository.sign(&[&key, &Renamed(same, renamed)], NOW).unwrap();
    assert!(progress.published.is_empty(), "{progress:?}");
}

#[test]
fn a_delegation_by_hash_prefix_covers_what_hashes_so() {
    let role = DelegatedRole {
        name: "bin".into(),
        keys: RoleKeys::new(Vec::new(), 1),
        terminating: false,
        paths: None,
        path_hash_prefixes: Some(vec!["2c".into(), Digest::of(PATH.as_bytes()).hex()]),
    };
    // SHA-256 of "foo" begins with 2c26b4.
    assert!(role.covers("foo") && role.covers(PATH));
    assert!(!role.covers("bar"));
}

#[test]
fn a_flipped_bit_in_transit_is_found_wherever_it_is() {
    let (signer, trusted) = director();
    let set = signer.mint("d1", &[entry(b"manifest", 3)], minting(1)).unwrap();
    let sound = take(&set, trusted.clone(), NOW).unwrap();
    let files: [fn(&mut DirectorSet) -> &mut Vec<u8>; 3] =
        [|s| &mut s.targets, |s| &mut s.snapshot, |s| &mut s.timestamp];
    let (mut tried, mut harmless) = (0, 0);
    for file in files {
        let bits = file(&mut set.clone()).len() * 8;
        // A step without a common divisor with 8 meets every bit of a byte.
        for bit in (0..bits).step_by(5) {
            let mut flipped = set.clone();
            file(&mut flipped)[bit / 8] ^= 1 << (bit % 8);
            tried += 1;
            if let Ok(taken) = take(&flipped, trusted.clone(), NOW) {
                // Upper case in the hex of the timestamp's signature says the same.
                harmless += 1;
                assert_eq!(taken.target(PATH), sound.target(PATH));
                assert_eq!(taken.time(0), sound.time(0));
                assert_eq!(flipped.targets, set.targets);
                assert_eq!(flipped.snapshot, set.snapshot);
            }
        }
    }
    assert!(tried > 1_500 && harmless * 20 < tried, "{harmless} of {tried}");
}

#[test]
fn sha512_alone_is_enough_for_a_target_and_the_wrong_one_is_refused() {
    let sha512 = |bytes: &[u8]| hex::encode(ring::digest::digest(&ring::digest::SHA512, bytes));
    let entry = |hashes: serde_json::Value| -> TargetEntry {
        serde_json::from_value(json!({"length": 3, "hashes": hashes})).unwrap()
    };
    let good = sha512(b"abc");
    entry(json!({"sha512": good})).verify("a", b"abc").unwrap();
    let both = json!({"sha256": Digest::of(b"abc").hex(), "sha512": sha512(b"abd")});
    for hashes in [json!({"sha512": sha512(b"abd")}), both] {
        let refused = entry(hashes).verify("a", b"abc");
        assert!(matches!(refused, Err(TrustError::Content { kind: "sha512", .. })), "{refused:?}");
    }
    let unknown = entry(json!({"blake3": "00"})).verify("a", b"abc");
    assert!(matches!(unknown, Err(TrustError::HashUnknown { .. })));
}
