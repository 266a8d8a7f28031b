//! The state in the database, and in words.

use super::*;

#[test]
fn the_state_survives_the_database_and_is_verified_again() {
    let owner = Owner::new();
    owner.publish(PATH, b"manifest", 3);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.db");
    let store = fulmar_store::Store::open(&file, &[&SCHEMA]).unwrap();
    let root = owner.repository.first_root().unwrap();
    let trusted =
        store.write_blocking(move |tx| Trusted::bootstrap(tx, Repo::Registry, &root, NOW)).unwrap();
    let early = trusted.clone();
    let trusted = owner.refresh(trusted, NOW).unwrap();
    store.write_blocking(move |tx| trusted.store(tx)).unwrap();
    let loaded = store.read_blocking(|c| Trusted::load(c, Repo::Registry)).unwrap().unwrap();
    assert!(loaded.target(PATH).is_some());
    assert_eq!(loaded.time(0), NOW);
    assert!(store.read_blocking(|c| Trusted::load(c, Repo::Director)).unwrap().is_none());
    // A slower refresh that began earlier does not win by being last.
    let refused = store.write_blocking(move |tx| early.store(tx));
    assert!(matches!(refused, Err(TrustError::Older { .. })));
}

/// Flips one bit in a stored role's bytes.
fn flip(connection: &Connection, repo: Repo, role: &str) {
    let sql = "SELECT bytes FROM trust_role WHERE repo = ?1 AND role = ?2";
    let key = (repo.as_str(), role);
    let mut bytes: Vec<u8> = connection.query_row(sql, key, |row| row.get(0)).unwrap();
    let at = bytes.windows(9).position(|w| w == b"\"expires\"").unwrap() + 14;
    bytes[at] ^= 1;
    let sql = "UPDATE trust_role SET bytes = ?3 WHERE repo = ?1 AND role = ?2";
    connection.execute(sql, (repo.as_str(), role, bytes)).unwrap();
}

#[test]
fn a_flipped_bit_in_a_stored_role_admits_nothing_and_is_mended_by_the_next_refresh() {
    let owner = Owner::new();
    let old = owner.freeze();
    owner.publish(PATH, b"manifest", 3);
    let trusted = owner.refresh(owner.bootstrap(), NOW).unwrap();
    for role in ["targets", "snapshot", "timestamp"] {
        let mut connection = database();
        let tx = connection.transaction().unwrap();
        trusted.store(&tx).unwrap();
        flip(&tx, Repo::Registry, role);
        let load = || Trusted::load(&tx, Repo::Registry).unwrap().unwrap();
        assert!(load().is_damaged() && load().target(PATH).is_none(), "{role}");
        assert!(explain(&tx, NOW).iter().any(|f| f.severity == Severity::Problem), "{role}");
        // It is no way back to what was before.
        let refused = refresh_from(&old, load(), NOW);
        assert!(matches!(refused, Err(TrustError::Rollback { .. })), "{role}: {refused:?}");
        let mut refresh = Refresh::new(load(), NOW);
        assert!(
            refresh
                .feed_all(|want| {
                    old.get(&want.file_name).cloned().map_or(Fetched::NotFound, Fetched::Found)
                })
                .is_err()
        );
        refresh.into_progress().store(&tx).unwrap();
        assert!(refresh_from(&old, load(), NOW).is_err(), "{role}: the floor was lost");
        let mended = owner.refresh(load(), NOW).unwrap();
        assert!(!mended.is_damaged() && mended.target(PATH).is_some(), "{role}");
        mended.store(&tx).unwrap();
        assert!(!load().is_damaged(), "{role}");
    }
}

#[test]
fn a_damaged_root_is_followed_anew_from_where_trust_began_and_up_to_where_it_was() {
    let owner = Owner::new();
    let mut connection = database();
    let tx = connection.transaction().unwrap();
    let first = owner.repository.first_root().unwrap();
    Trusted::bootstrap(&tx, Repo::Registry, &first, NOW).unwrap();
    let old = owner.freeze();
    owner.repository.renew("root", NOW).unwrap();
    owner.publish(PATH, b"manifest", 3);
    owner.refresh(owner.bootstrap(), NOW).unwrap().store(&tx).unwrap();
    flip(&tx, Repo::Registry, "root");
    let damaged = Trusted::load(&tx, Repo::Registry).unwrap_err();
    assert!(damaged.is_damage());
    let said = explain(&tx, NOW).into_iter().map(|f| format!("{f:?}")).collect::<String>();
    assert!(said.contains("No model of the fleet is loaded until this is mended"), "{said}");
    let beginning = Beginning::of(&tx, Repo::Registry).unwrap().unwrap();
    assert_eq!(beginning.file_name, "1.root.json");
    let foreign = Owner::new().repository.first_root().unwrap();
    let refused = beginning.again(&tx, Repo::Registry, foreign);
    assert!(matches!(refused, Err(TrustError::Pinned { .. })));
    let again = || beginning.again(&tx, Repo::Registry, first.clone()).unwrap();
    // A chain that ends before the root that was trusted is too short.
    let refused = refresh_from(&old, again(), NOW);
    assert!(matches!(&refused, Err(TrustError::Rollback { role, .. }) if role == "root"));
    assert!(again().store(&tx).is_err(), "an older root is not stored over a newer one");
    let mended = owner.refresh(again(), NOW).unwrap();
    mended.store(&tx).unwrap();
    let loaded = Trusted::load(&tx, Repo::Registry).unwrap().unwrap();
    assert_eq!((loaded.root_version(), loaded.is_damaged()), (2, false));
    assert!(loaded.target(PATH).is_some());
    // Joining anew mends it as well.
    flip(&tx, Repo::Registry, "root");
    let joined = Trusted::bootstrap(&tx, Repo::Registry, &first, NOW).unwrap();
    assert_eq!(joined.root_version(), 1);
}

#[test]
fn a_damaged_signed_time_is_said_again_by_what_is_trusted() {
    let owner = Owner::new();
    let mut connection = database();
    let tx = connection.transaction().unwrap();
    owner.refresh(owner.bootstrap(), NOW).unwrap().store(&tx).unwrap();
    for bit in [0, 7, 31, 40, 61] {
        let sql = "UPDATE trust_time SET signed_s = (signed_s | ?1) - (signed_s & ?1)";
        tx.execute(sql, [1_i64 << bit]).unwrap();
        assert_eq!(signed_time(&tx).unwrap(), NOW, "bit {bit}");
        tx.execute(sql, [1_i64 << bit]).unwrap();
    }
    assert_eq!(signed_time(&tx).unwrap(), NOW);
}

#[test]
fn another_root_does_not_replace_the_trusted_one() {
    let (a, b) = (Owner::new(), Owner::new());
    let mut connection = database();
    let tx = connection.transaction().unwrap();
    let root = |owner: &Owner| owner.repository.first_root().unwrap();
    Trusted::bootstrap(&tx, Repo::Registry, &root(&a), NOW).unwrap();
    Trusted::bootstrap(&tx, Repo::Registry, &root(&a), NOW).unwrap();
    let refused = Trusted::bootstrap(&tx, Repo::Registry, &root(&b), NOW);
    assert!(matches!(refused, Err(TrustError::AlreadyTrusted { trusted: 1, .. })));
    // The first root stays welcome when its successors are trusted.
    for role in ["root", "timestamp"] {
        a.repository.renew(role, NOW).unwrap();
    }
    a.sign(NOW);
    a.refresh(a.bootstrap(), NOW).unwrap().store(&tx).unwrap();
    let trusted = Trusted::bootstrap(&tx, Repo::Registry, &root(&a), NOW).unwrap();
    assert_eq!(trusted.root_version(), 2);
    assert!(Trusted::bootstrap(&tx, Repo::Registry, &root(&b), NOW).is_err());
    Trusted::forget(&tx, Repo::Registry).unwrap();
    Trusted::bootstrap(&tx, Repo::Registry, &root(&b), NOW).unwrap();
}

#[test]
fn the_state_of_trust_is_explained_in_words() {
    let mut connection = database();
    let worst = |c: &Connection, now_s| explain(c, now_s).iter().map(|f| f.severity).max();
    assert_eq!(worst(&connection, NOW), Some(Severity::Notice), "no root is no fault");
    let owner = Owner::new();
    let (signer, director) = director();
    let tx = connection.transaction().unwrap();
    owner.refresh(owner.bootstrap(), NOW).unwrap().store(&tx).unwrap();
    let set = signer.mint("d1", &[], minting(1)).unwrap();
    take(&set, director, NOW).unwrap().store(&tx).unwrap();
    tx.commit().unwrap();
    assert_eq!(worst(&connection, NOW), Some(Severity::Fine), "{:?}", explain(&connection, NOW));
    // A clock of 1970 is noticed, and harms nothing.
    let early = explain(&connection, 0);
    assert!(early[0].says.contains("1970-01-01"), "{early:?}");
    assert_eq!(worst(&connection, 0), Some(Severity::Notice));
    let late = explain(&connection, NOW + 8 * DAY);
    let ended = late.iter().find(|f| f.severity == Severity::Problem).unwrap();
    assert!(ended.says.contains("director") && ended.says.contains("24 hours ago"), "{ended:?}");
    connection.execute("UPDATE trust_role SET bytes = x'00' WHERE role = 'snapshot'", []).unwrap();
    assert_eq!(worst(&connection, NOW), Some(Severity::Problem));
}
