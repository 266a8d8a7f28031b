//! The client against our own repository side: what must be accepted, and every attack refused
//! with its own error. The same attacks against repositories made by another implementation are
//! in `tests/attacks`.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde_json::json;

use super::director::{DirectorEntry, DirectorSet, DirectorSigner, Minting};
use super::repository::{Delegation, Plan, Repository};
use super::*;
use crate::Digest;

const NOW: i64 = 2_000_000_000;
const DAY: i64 = 86_400;
const PATH: &str = "library/demo/latest.json";

fn key() -> Ed25519Key {
    Ed25519Key::generate().unwrap()
}

/// An owner's repository with one key, published empty.
struct Owner {
    dir: tempfile::TempDir,
    key: Ed25519Key,
    repository: Repository,
}

impl Owner {
    fn new() -> Self {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let plan = Plan::with_keys(&[key.public().clone()], 1);
        let repository = Repository::init(&dir.path().join("r"), &plan, NOW).unwrap();
        let owner = Self { dir, key, repository };
        owner.sign(NOW);
        owner
    }

    fn sign(&self, now_s: i64) {
        let progress = self.repository.sign(&[&self.key], now_s).unwrap();
        assert_eq!(progress.missing, []);
    }

    fn publish(&self, path: &str, bytes: &[u8], release: u64) {
        let custom = json!({"fulmar": {"kind": "model", "release": release}});
        self.repository.publish_target(path, bytes, Some(custom), None, NOW).unwrap();
        self.sign(NOW);
    }

    fn bootstrap(&self) -> Trusted {
        Trusted::from_root(Repo::Registry, self.repository.first_root().unwrap()).unwrap()
    }

    fn fetch(&self, want: &Want) -> Fetched {
        let path = self.dir.path().join("r/metadata").join(&want.file_name);
        std::fs::read(path).map_or(Fetched::NotFound, Fetched::Found)
    }

    fn refresh(&self, trusted: Trusted, now_s: i64) -> Result<Trusted, TrustError> {
        let mut refresh = Refresh::new(trusted, now_s).scope(Scope::Everything);
        refresh.feed_all(|want| self.fetch(want))?;
        refresh.finish()
    }

    /// A copy of all published files, to be served again later.
    fn freeze(&self) -> BTreeMap<String, Vec<u8>> {
        let dir = std::fs::read_dir(self.dir.path().join("r/metadata")).unwrap();
        dir.map(|e| e.unwrap().path())
            .map(|p| {
                (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(p).unwrap())
            })
            .collect()
    }
}

fn database() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(&SCHEMA.steps.concat()).unwrap();
    connection
}

fn refresh_from(
    files: &BTreeMap<String, Vec<u8>>,
    trusted: Trusted,
    now_s: i64,
) -> Result<Trusted, TrustError> {
    let mut refresh = Refresh::new(trusted, now_s);
    refresh.feed_all(|want| {
        files.get(&want.file_name).cloned().map_or(Fetched::NotFound, Fetched::Found)
    })?;
    refresh.finish()
}

fn entry(bytes: &[u8], release: u64) -> DirectorEntry {
    DirectorEntry {
        target_path: PATH.to_owned(),
        length: bytes.len() as u64,
        digest: Digest::of(bytes),
        release,
        active: Active::Serve,
    }
}

fn minting(serial: u64) -> Minting {
    Minting { generation: serial, serial, signed_at_s: NOW, expires_s: NOW + 7 * DAY }
}

fn take(set: &DirectorSet, trusted: Trusted, now_s: i64) -> Result<Trusted, TrustError> {
    let mut refresh = Refresh::new(trusted, now_s);
    refresh.feed_all(|want| set.fetch(want, &BTreeMap::new()))?;
    refresh.finish()
}

/// A director with its trusted root at the device.
fn director() -> (DirectorSigner<Ed25519Key>, Trusted) {
    let signer = DirectorSigner::new(key());
    let root = signer.root(NOW + 365 * DAY).unwrap();
    (signer, Trusted::from_root(Repo::Director, root).unwrap())
}

fn admission(now_s: i64) -> Admission<'static> {
    Admission { now_s, device_id: Some("d1"), release_floor: None }
}

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
fn a_clock_that_went_back_is_not_believed_below_the_highest_signed_time() {
    let (signer, trusted) = director();
    // A device that wakes up in 1970 learns the time from the signed metadata.
    let set = signer.mint("d1", &[], minting(1)).unwrap();
    let trusted = take(&set, trusted, 0).unwrap();
    assert_eq!(trusted.time(0), NOW);
    assert_eq!(trusted.time(i64::MIN), NOW);
    assert_eq!(trusted.time(NOW + 1), NOW + 1);
    // So metadata that ended before that time is refused, though the clock says 1970.
    let old = Minting { signed_at_s: NOW - 9 * DAY, expires_s: NOW - DAY, ..minting(2) };
    let refused = take(&signer.mint("d1", &[], old).unwrap(), trusted.clone(), 0);
    assert!(matches!(refused, Err(TrustError::Expired { .. })));
    // A clock ten years ahead refuses all, and harms nothing: set right, it goes on.
    let set = signer.mint("d1", &[], minting(3)).unwrap();
    assert!(take(&set, trusted.clone(), NOW + 3_650 * DAY).is_err());
    assert_eq!(take(&set, trusted, NOW).unwrap().targets_version(), Some(3));
}

#[test]
fn a_signed_time_after_the_metadatas_own_end_is_not_taken() {
    let (signer, trusted) = director();
    let wrong = Minting { signed_at_s: NOW + 900 * DAY, ..minting(1) };
    let trusted = take(&signer.mint("d1", &[], wrong).unwrap(), trusted, NOW).unwrap();
    assert_eq!(trusted.time(0), 0);
}

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
fn renewal_carries_a_repository_over_its_expiry() {
    let owner = Owner::new();
    owner.publish(PATH, b"manifest", 3);
    let trusted = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let later = NOW + 200 * DAY;
    let frozen = owner.refresh(trusted.clone(), later);
    assert!(matches!(&frozen, Err(TrustError::Expired { role, .. }) if role == "timestamp"));
    for role in ["snapshot", "timestamp"] {
        owner.repository.renew(role, later).unwrap();
    }
    owner.sign(later);
    let trusted = owner.refresh(trusted, later).unwrap();
    assert_eq!((trusted.snapshot_version(), trusted.timestamp_version()), (Some(3), Some(3)));
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

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// A clock that jumps as it likes: metadata is taken exactly when it had not ended by the later
    /// of the clock and the highest signed time, which never goes back.
    #[test]
    fn a_jumping_clock_changes_nothing_that_was_signed(
        jumps in proptest::collection::vec((-3_650_i64..3_650, -20_i64..20), 1..8),
    ) {
        let (signer, mut trusted) = director();
        let mut floor = 0;
        for (serial, (clock, signed)) in (1_u64..).zip(jumps) {
            let (clock_s, signed_at_s) = (NOW + clock * DAY, NOW + signed * DAY);
            let expires_s = signed_at_s + 7 * DAY;
            let minting = Minting { generation: serial, serial, signed_at_s, expires_s };
            let set = signer.mint("d1", &[], minting).unwrap();
            let holds = expires_s > clock_s.max(floor);
            let taken = take(&set, trusted.clone(), clock_s);
            // The root of this director ends a year after NOW.
            let root_holds = NOW + 365 * DAY > clock_s.max(floor);
            proptest::prop_assert_eq!(taken.is_ok(), holds && root_holds);
            if let Ok(taken) = taken {
                floor = floor.max(signed_at_s);
                trusted = taken;
            }
            proptest::prop_assert_eq!(trusted.time(0), floor);
        }
    }
}
