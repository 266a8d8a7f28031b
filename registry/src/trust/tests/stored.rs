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
    // One flipped bit in any stored role is found.
    let flip = |role: &'static str| {
        store.write_blocking(move |tx| {
            let sql = "SELECT bytes FROM trust_role WHERE role = ?1";
            let mut bytes: Vec<u8> = tx.query_row(sql, [role], |row| row.get(0))?;
            let at = bytes.windows(9).position(|w| w == b"\"expires\"").unwrap() + 14;
            bytes[at] ^= 1;
            tx.execute("UPDATE trust_role SET bytes = ?2 WHERE role = ?1", (role, bytes))?;
            Ok::<_, TrustError>(())
        })
    };
    for role in ["targets", "snapshot", "timestamp", "root"] {
        flip(role).unwrap();
        let loaded = store.read_blocking(|c| Trusted::load(c, Repo::Registry));
        match role {
            "targets" => assert!(loaded.unwrap().unwrap().target(PATH).is_none()),
            _ => assert!(matches!(loaded, Err(TrustError::Damaged { .. }))),
        }
        flip(role).unwrap();
    }
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
