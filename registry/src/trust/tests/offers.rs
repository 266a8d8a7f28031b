//! What verified metadata offer, found without a link.

use super::*;
use crate::catalog::{self, Filter};
use crate::facts::{Facts, model_custom};
use crate::manifest::{Evaluation, SizeClass};
use crate::offer::{self, Here, Offers, Source};
use crate::testing::{Device, manifest};

fn names(offers: &Offers) -> Vec<String> {
    offers.models.iter().map(|offer| offer.name.to_string()).collect()
}

fn search(connection: &Connection, filter: &Filter) -> Offers {
    offer::search(connection, filter).unwrap()
}

#[test]
fn signed_targets_carry_facts_that_come_back_as_the_manifest_has_them() {
    let mut manifest = manifest("acme/pumps:1", 3, b"weights");
    let measured = |value| Evaluation {
        task: "held-out commands".into(),
        metric: "exact_match".into(),
        value,
        cases: 100,
    };
    manifest.evaluation = vec![measured(0.93), measured(-1.5e-7)];
    let custom = model_custom(&manifest);
    // Canonical JSON refuses fractions: measured values travel as text.
    let text = canonical_json(&custom).unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).unwrap(), custom);
    assert_eq!(Facts::of_custom(Some(&custom)), Some(Facts::of(&manifest)));
    assert_eq!(custom["fulmar"]["release"], 3);
    for other in [json!({}), json!({"fulmar": {"kind": "model"}}), json!({"fulmar": {"facts": 7}})]
    {
        assert_eq!(Facts::of_custom(Some(&other)), None, "{other}");
    }
}

#[test]
fn what_the_registry_offers_is_found_by_name_and_facts_with_its_age() {
    let owner = Owner::new();
    let wanted = manifest("acme/pumps:1", 1, b"weights");
    let mut large = manifest("acme/chat:1", 1, b"more weights");
    (large.architecture, large.parameters) = ("llama".into(), 8_000_000_000);
    (large.size_class, large.memory_bytes) = (SizeClass::Small, 6 << 30);
    for manifest in [&wanted, &large] {
        let (path, custom) = (manifest.name.target_path(), model_custom(manifest));
        let bytes = manifest.to_bytes().unwrap();
        owner.repository.publish_target(&path, &bytes, Some(custom), None, NOW).unwrap();
    }
    owner.publish("acme/old/1.json", b"published before facts were", 1);
    owner.repository.publish_policy(json!({}), None, NOW).unwrap();
    owner.sign(NOW);
    let registry = owner.refresh(owner.bootstrap(), NOW).unwrap();
    let (signer, director) = director();
    let bytes = wanted.to_bytes().unwrap();
    let entry = DirectorEntry { target_path: wanted.name.target_path(), ..entry(&bytes, 1) };
    let director = take(&signer.mint("d1", &[entry], minting(1)).unwrap(), director, NOW).unwrap();
    let mut connection = database();
    connection.execute_batch(&catalog::SCHEMA.steps.concat()).unwrap();
    let tx = connection.transaction().unwrap();
    registry.store(&tx).unwrap();
    director.store(&tx).unwrap();
    tx.commit().unwrap();

    let all = search(&connection, &Filter::default());
    assert_eq!(names(&all), ["acme/chat:1", "acme/old:1", "acme/pumps:1"]);
    let Source::Registry { signed_at_s, expires_s, roles_not_held } = all.source else {
        panic!("{:?}", all.source)
    };
    assert_eq!((signed_at_s, roles_not_held), (Some(NOW), 0));
    assert!(expires_s.is_some_and(|at_s| at_s > NOW));
    let pumps = &all.models[2];
    assert_eq!((pumps.digest, pumps.release), (Digest::of(&bytes), Some(1)));
    assert_eq!((pumps.here, pumps.wanted), (Here::Absent, true));
    assert!(!all.models[0].wanted && all.models[1].facts.is_none());

    let filter = Filter { text: Some("PUMP".into()), ..Filter::default() };
    assert_eq!(names(&search(&connection, &filter)), ["acme/pumps:1"]);
    let filter = Filter { size_class: Some(SizeClass::Small), ..Filter::default() };
    let small = search(&connection, &filter);
    assert_eq!((names(&small), small.unknown), (vec!["acme/chat:1".to_owned()], 1));
    let filter = Filter { memory_bytes_max: Some(8 << 30), ..Filter::default() };
    assert_eq!(names(&search(&connection, &filter)), ["acme/chat:1"], "the others do not say");
    let filter = Filter { text: Some("old".into()), ..Filter::default() };
    assert_eq!(names(&search(&connection, &filter)), ["acme/old:1"], "as far as it is known");
}

#[test]
fn a_device_of_no_fleet_finds_what_is_installed() {
    let device = Device::new();
    let digest = device.install("acme/tiny:v1", 1, b"one");
    device.activate("acme/tiny:v1", digest);
    let newer = device.install("acme/tiny:v1", 2, b"two");
    let found = device.store.read_blocking(|c| offer::search(c, &Filter::default())).unwrap();
    assert_eq!(found.source, Source::Local);
    let here: Vec<_> = found.models.iter().map(|offer| (offer.digest, offer.here)).collect();
    assert_eq!(
        here,
        [(digest, Here::In(catalog::Slot::Active)), (newer, Here::In(catalog::Slot::Candidate))]
    );
}
