//! The owner's policy: taken with its metadata, never older, and what it ends.

use fulmar_policy::{Action, Policy, Principal, Role, Via};
use serde_json::Value;

use super::*;
use crate::standing::{self, Barred, Standing};

impl Owner {
    /// Publishes a policy with these fields; returns its text.
    fn policy(&self, policy: Value) -> Vec<u8> {
        self.repository.publish_policy(policy, None, NOW).unwrap();
        self.sign(NOW);
        self.repository.draft_policy().unwrap().unwrap()
    }

    /// Publishes bytes as the policy, past the checks of the owner's side.
    fn forced_policy(&self, bytes: &[u8], kind: &str, version: u64) {
        let custom = json!({"fulmar": {"kind": kind, "version": version}});
        self.repository.publish_target(POLICY_PATH, bytes, Some(custom), None, NOW).unwrap();
        self.sign(NOW);
    }

    fn named(&self) -> Result<Option<NamedPolicy>, PolicyRefused> {
        self.refresh(self.bootstrap(), NOW).unwrap().named_policy(NOW)
    }
}

fn keep(connection: &mut Connection, signed: &SignedPolicy) -> Result<(), PolicyRefused> {
    let tx = connection.transaction().unwrap();
    signed.store(&tx, NOW).unwrap()?;
    tx.commit().unwrap();
    Ok(())
}

fn text(version: u64, more: &str) -> Vec<u8> {
    format!(r#"{{"schema":1,"version":{version}{more}}}"#).into_bytes()
}

#[test]
fn a_policy_is_taken_and_the_next_one_replaces_it() {
    let owner = Owner::new();
    assert_eq!(owner.named().unwrap(), None);
    let mut connection = database();
    let roles = json!({"app": {"actions": ["model.run"], "models": ["plant/*"]}});
    for (version, policy) in [(1, json!({})), (2, json!({ "roles": roles }))] {
        let bytes = owner.policy(policy);
        let named = owner.named().unwrap().unwrap();
        let held = held_policy(&connection).unwrap();
        assert!(!named.is_held(held.as_ref()));
        keep(&mut connection, &named.accept(bytes, held.as_ref().map(HeldPolicy::floor)).unwrap())
            .unwrap();
        let held = held_policy(&connection).unwrap().unwrap();
        assert!(named.is_held(Some(&held)));
        assert_eq!((held.policy.version(), held.role.as_str()), (version, "targets"));
    }
    let standing = Standing::load(&connection).unwrap();
    let app = Principal { subject: "a".into(), roles: vec![Role::App], via: Via::Local };
    let may = |model| standing.policy().decide(&app, Action::ModelRun, model).is_ok();
    assert!(may("plant/pumps:1") && !may("office/chat:1"));
}

#[test]
fn wrong_older_and_foreign_policies_are_refused_by_name_and_the_old_one_holds() {
    let owner = Owner::new();
    let mut connection = database();
    owner.policy(json!({}));
    let old = owner.named().unwrap().unwrap();
    let first = owner.repository.draft_policy().unwrap().unwrap();
    let bytes = owner.policy(json!({"max_offline_s": 600}));
    let named = owner.named().unwrap().unwrap();
    let (older_text, newest_text) = (first.clone(), bytes.clone());
    keep(&mut connection, &named.accept(bytes.clone(), None).unwrap()).unwrap();
    let held = held_policy(&connection).unwrap();
    let floor = held.as_ref().map(HeldPolicy::floor);

    let older = old.accept(first.clone(), floor);
    assert!(matches!(older, Err(PolicyRefused::Older { held: 2, found: 1 })), "{older:?}");
    // What went on in another process meanwhile counts too.
    let raced = old.accept(first.clone(), None).unwrap();
    assert!(matches!(keep(&mut connection, &raced), Err(PolicyRefused::Older { .. })));
    for wrong in [first, Vec::new(), bytes[1..].to_vec()] {
        assert!(matches!(named.accept(wrong, floor), Err(PolicyRefused::Content(_))));
    }
    for (policy, version, expected) in [
        (text(2, r#","max_offline_s":60"#), 2, "Reused"),
        (text(1_000_003, ""), 1_000_003, "Leap"),
        (text(4, ""), 3, "Entry"),
        (text(3, r#","surprise":1"#), 3, "Policy"),
        (text(3, r#","roles":{"app":{"actions":["token.mint"]}}"#), 3, "Policy"),
        (b"{".to_vec(), 3, "Policy"),
    ] {
        owner.forced_policy(&policy, "policy", version);
        let refused = owner.named().unwrap().unwrap().accept(policy, floor).unwrap_err();
        assert!(format!("{refused:?}").starts_with(expected), "{expected}: {refused:?}");
        assert!(refused.to_string().starts_with("accept the policy policy/fleet.json"));
    }
    owner.forced_policy(b"{}", "model", 3);
    assert!(matches!(owner.named(), Err(PolicyRefused::Entry { .. })));
    let held = held_policy(&connection).unwrap().unwrap();
    assert_eq!((held.policy.version(), held.policy.max_offline_s()), (2, Some(600)));
    // A registry that names none takes none away.
    owner.repository.remove_target(POLICY_PATH, NOW).unwrap();
    owner.sign(NOW);
    assert_eq!(owner.named().unwrap(), None);
    connection.execute("UPDATE trust_policy SET bytes = x'7b7d'", []).unwrap();
    assert!(matches!(held_policy(&connection), Err(TrustError::PolicyDamaged { .. })));
    let damage = Standing::load(&connection).expect_err("by a damaged policy nothing runs");
    assert!(damage.is_damage());
    let barred = Standing::unreadable(&damage).check_device(NOW).unwrap_err();
    assert!(matches!(barred, Barred::Unreadable { .. }), "{barred}");
    // It is taken anew, and nothing older in its place.
    let floor = policy_floor(&connection).unwrap();
    assert!(matches!(old.accept(older_text, floor), Err(PolicyRefused::Older { held: 2, .. })));
    let again = named.accept(newest_text, floor).unwrap();
    keep(&mut connection, &again).unwrap();
    assert_eq!(held_policy(&connection).unwrap().unwrap().policy.version(), 2);
}

#[test]
fn the_owners_side_refuses_a_policy_that_no_device_would_follow() {
    let owner = Owner::new();
    for (policy, field) in [
        (json!({"roles": {"app": {"actions": ["token.mint"]}}}), "token.mint"),
        (json!({"max_offline_s": 1}), "max_offline_s"),
        (json!({"revoked": {"models": {"acme/tiny:v1": "x"}}}), "revoked.models"),
    ] {
        let refused = owner.repository.publish_policy(policy, None, NOW).unwrap_err();
        assert!(refused.to_string().contains(field), "{refused}");
    }
}

/// A device that took the owner's policy, and heard of its director at `NOW`.
fn device(policy: Value) -> Connection {
    let owner = Owner::new();
    let bytes = owner.policy(policy);
    let mut connection = database();
    let registry = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let (signer, director) = director();
    let director = take(&signer.mint("d1", &[], minting(1)).unwrap(), director, NOW).unwrap();
    let signed = registry.named_policy(NOW).unwrap().unwrap().accept(bytes, None).unwrap();
    let tx = connection.transaction().unwrap();
    registry.store(&tx).unwrap();
    director.store(&tx).unwrap();
    signed.store(&tx, NOW).unwrap().unwrap();
    tx.commit().unwrap();
    connection
}

#[test]
fn revoked_models_and_devices_are_barred_whatever_the_clock_says() {
    let (manifest, file) = (Digest::of(b"manifest"), Digest::of(b"weights"));
    for revoked in [manifest, file] {
        let connection = device(json!({"revoked": {"models": {revoked.to_string(): "leaks"}}}));
        let standing = Standing::load(&connection).unwrap();
        let barred = standing.check_model([&manifest, &file]).unwrap_err();
        assert!(matches!(barred, Barred::Model { policy_version: 1, .. }));
        assert!(barred.to_string().contains("leaks"));
        standing.check_model([&Digest::of(b"another")]).unwrap();
        standing.check_device(NOW).unwrap();
    }
    let connection = device(json!({"revoked": {"devices": {"d1": "stolen", "d9": ""}}}));
    for now_s in [0, NOW, NOW + 3_650 * DAY, i64::MAX] {
        let barred = Standing::load(&connection).unwrap().check_device(now_s).unwrap_err();
        assert!(matches!(barred, Barred::Device { .. }), "{barred}");
    }
    let said = explain(&connection, NOW);
    assert!(said.iter().any(|f| f.says.contains("stolen") && f.severity == Severity::Problem));
}

#[test]
fn max_offline_ends_what_runs_and_a_word_from_the_fleet_lets_it_go_on() {
    let mut connection = device(json!({"max_offline_s": 10 * DAY}));
    let check = |c: &Connection, now_s| Standing::load(c).unwrap().check_device(now_s);
    // A clock at 1970 or any time before the last word is no silence, one far ahead is.
    for now_s in [i64::MIN, -1, 0, NOW - 1, NOW, NOW + 10 * DAY] {
        check(&connection, now_s).unwrap();
    }
    for now_s in [NOW + 10 * DAY + 1, NOW + 3_650 * DAY, i64::MAX] {
        let barred = check(&connection, now_s).unwrap_err();
        assert!(matches!(barred, Barred::Offline { max_s: 864_000, .. }), "{barred}");
    }
    // It jumps forth and back again: nothing of it stays.
    check(&connection, NOW).unwrap();

    // A clock that is set back every day does not prolong anything: the agent's own time counts.
    for _ in 0..11 {
        let tx = connection.transaction().unwrap();
        standing::note_running(&tx, NOW, DAY as u64).unwrap();
        tx.commit().unwrap();
    }
    assert!(matches!(check(&connection, 0), Err(Barred::Offline { silent_s: 950_400, .. })));
    let said = explain(&connection, 0);
    assert!(said.iter().any(|f| f.says.contains("max_offline_s")), "{said:?}");
    // What was noted under an older word counts no more.
    let tx = connection.transaction().unwrap();
    standing::note_running(&tx, NOW + DAY, 5).unwrap();
    tx.commit().unwrap();
    check(&connection, 0).unwrap();
}

#[test]
fn a_director_alone_keeps_a_device_going_only_until_the_owners_metadata_end() {
    let connection = device(json!({"max_offline_s": DAY}));
    // The registry's timestamp holds for 180 days; the director goes on signing for years.
    let (registry, director) = (Repo::Registry, Repo::Director);
    let mut registry = Trusted::load(&connection, registry).unwrap().unwrap();
    let expires_s = registry.expires_s().unwrap();
    assert_eq!(expires_s, NOW + 180 * DAY);
    let director = Trusted::load(&connection, director).unwrap().unwrap();
    let standing = |registry: &Trusted, signed_at_s| {
        let mut director = director.clone();
        let timestamp = director.timestamp.as_mut().unwrap();
        let at = Date(signed_at_s).to_string();
        timestamp.body.extra.insert(SIGNED_AT_FIELD.to_owned(), at.into());
        timestamp.body.header.expires = Date(i64::MAX);
        crate::standing::heard_s(&director, Some(registry))
    };
    assert_eq!(standing(&registry, NOW + 100 * DAY), NOW + 100 * DAY);
    assert_eq!(standing(&registry, NOW + 400 * DAY), expires_s);
    registry.timestamp = None;
    assert_eq!(standing(&registry, NOW + 5), NOW + 5);
}

#[test]
fn every_state_of_the_policy_is_explained_in_words() {
    let says = |c: &Connection, now_s| {
        let found: Vec<String> = explain(c, now_s)
            .into_iter()
            .map(|f| format!("{:?} {} {}", f.severity, f.says, f.advice.unwrap_or_default()))
            .collect();
        found.join("\n")
    };
    assert!(says(&database(), NOW).contains("Fine The owner signed no policy"));
    let c = device(json!({"max_offline_s": 8 * DAY, "revoked": {"tokens": {"t": ""}}}));
    let now = says(&c, NOW);
    assert!(now.contains("Fine The owner's policy version 1 holds"), "{now}");
    assert!(now.contains("it revokes 1 tokens") && now.contains("8 days are left"), "{now}");
    let late = says(&c, NOW + 7 * DAY - 3_600);
    assert!(late.contains("Notice The fleet was last heard of"), "{late}");
    let over = says(&c, NOW + 9 * DAY);
    assert!(over.contains("Problem No model runs here") && over.contains("fulmar sync"), "{over}");
    c.execute("DELETE FROM trust_policy", []).unwrap();
    let other = Policy::parse(&text(1, "")).unwrap();
    let bytes = serde_json::to_vec(&other).unwrap();
    c.execute(
        "INSERT INTO trust_policy VALUES (1, 1, ?1, ?2, 'targets', 0)",
        (Digest::of(&bytes), &bytes),
    )
    .unwrap();
    assert!(says(&c, NOW).contains("Notice The registry names another policy"));
    c.execute("UPDATE trust_policy SET digest = 'x'", []).unwrap();
    assert!(says(&c, NOW).contains("Problem The owner's policy cannot be read"));
}
