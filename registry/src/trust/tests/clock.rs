//! Clocks that are wrong, and metadata that ends.

use super::*;

/// What a device makes of a director's set under its owner's registry.
fn believing(
    set: &DirectorSet,
    trusted: Trusted,
    owner: &Trusted,
    now_s: i64,
) -> Result<Trusted, TrustError> {
    let mut taken = take(set, trusted, now_s)?;
    taken.believe_time(Some(owner))?;
    Ok(taken)
}

/// The registry of an owner, as a device holds it.
fn registry() -> (Owner, Trusted) {
    let owner = Owner::new();
    let trusted = owner.refresh(owner.bootstrap(), NOW).unwrap();
    (owner, trusted)
}

#[test]
fn a_clock_that_went_back_is_not_believed_below_the_highest_signed_time() {
    let (_, owner) = registry();
    let (signer, trusted) = director();
    // A device that wakes up in 1970 learns the time from the signed metadata.
    let set = signer.mint("d1", &[], minting(1)).unwrap();
    let trusted = believing(&set, trusted, &owner, 0).unwrap();
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

const TEN_YEARS: i64 = 3_650 * DAY;

#[test]
fn a_control_plane_ten_years_ahead_is_refused_by_name_and_harms_nothing() {
    let (_owner, registry) = registry();
    let (signer, director) = director();
    let honest = signer.mint("d1", &[], minting(1)).unwrap();
    let held = believing(&honest, director, &registry, NOW).unwrap();
    let ahead = Minting {
        signed_at_s: NOW + TEN_YEARS,
        expires_s: NOW + TEN_YEARS + 14 * DAY,
        ..minting(2)
    };
    let set = signer.mint("d1", &[], ahead).unwrap();
    let refused = believing(&set, held.clone(), &registry, NOW).unwrap_err();
    let said = refused.to_string();
    for part in ["director", "2043", "snapshot metadata ends at 2033", "the control plane is ahead"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Doctor says whose clock it is, and that nothing is lost.
    let mut connection = database();
    let tx = connection.transaction().unwrap();
    registry.store(&tx).unwrap();
    held.store(&tx).unwrap();
    note_time_refused(&tx, &refused, NOW).unwrap();
    tx.commit().unwrap();
    assert_eq!(signed_time(&connection).unwrap(), NOW);
    let told = |connection: &Connection| {
        let problem = |f: &Finding| f.severity == Severity::Problem;
        explain(connection, NOW).into_iter().find(problem)
    };
    let finding = told(&connection).unwrap();
    assert!(finding.says.contains("director metadata was refused"), "{finding:?}");
    let advice = finding.advice.unwrap();
    assert!(advice.contains("the control plane is 3650 days ahead: set it right"), "{advice}");
    // Set right, it goes on with the next serial number.
    let next = believing(&signer.mint("d1", &[], minting(3)).unwrap(), held, &registry, NOW);
    let tx = connection.transaction().unwrap();
    next.unwrap().store(&tx).unwrap();
    time_is_accepted(&tx).unwrap();
    tx.commit().unwrap();
    assert_eq!(told(&connection), None);
}

#[test]
fn without_an_owners_word_nobodys_time_is_believed() {
    let (signer, trusted) = director();
    let mut taken = take(&signer.mint("d1", &[], minting(1)).unwrap(), trusted, 0).unwrap();
    taken.believe_time(None).unwrap();
    assert_eq!(taken.time(0), 0);
}

#[test]
fn a_timestamp_key_alone_moves_the_time_no_further_than_the_other_keys_allow() {
    let (owner, trusted) = registry();
    let thief = NOW + TEN_YEARS;
    owner.repository.renew("timestamp", thief).unwrap();
    owner.sign(thief);
    let refused = owner.refresh(trusted.clone(), NOW).unwrap_err();
    let TrustError::TimeAhead { repo, role, .. } = &refused else { panic!("{refused}") };
    assert_eq!((*repo, role.as_str()), ("registry", "snapshot"));
    assert!(refused.to_string().contains("whoever signs the registry is ahead"), "{refused}");
    // What was verified on the way is worth keeping, its time is not.
    let mut refresh = Refresh::new(trusted, NOW);
    refresh.feed_all(|want| owner.fetch(want)).unwrap();
    let mut connection = database();
    let tx = connection.transaction().unwrap();
    refresh.into_progress().store(&tx).unwrap();
    assert_eq!(signed_time(&tx).unwrap(), NOW);
}

#[test]
fn the_owner_has_devices_forget_a_time_that_was_ahead_within_bounds() {
    let (owner, registry) = registry();
    let (signer, director) = director();
    let mut connection = database();
    let tx = connection.transaction().unwrap();
    let months = NOW + 100 * DAY;
    let ahead = Minting { signed_at_s: months, expires_s: months + 14 * DAY, ..minting(1) };
    let held =
        believing(&signer.mint("d1", &[], ahead).unwrap(), director, &registry, NOW).unwrap();
    registry.store(&tx).unwrap();
    held.store(&tx).unwrap();
    assert_eq!(signed_time(&tx).unwrap(), months);
    let first = explain(&tx, NOW).swap_remove(0);
    assert!(first.says.contains("metadata that the control plane signed"), "{first:?}");
    assert!(first.advice.unwrap().contains("fulmar registry reset-time"));
    // The control plane's clock is right again, and has ended by what it said before.
    let right = signer.mint("d1", &[], minting(2)).unwrap();
    let load = |tx: &Connection, repo| Trusted::load(tx, repo).unwrap().unwrap();
    assert!(take(&right, load(&tx, Repo::Director), NOW).is_err());
    owner.repository.reset_time(NOW + DAY).unwrap();
    owner.sign(NOW + DAY);
    let registry = owner.refresh(load(&tx, Repo::Registry), NOW + DAY).unwrap();
    assert_eq!(registry.time(0), NOW + DAY);
    let director = load(&tx, Repo::Director).under_time_of(&registry);
    let director = believing(&right, director, &registry, NOW + DAY).unwrap();
    registry.store(&tx).unwrap();
    director.store(&tx).unwrap();
    assert_eq!(signed_time(&tx).unwrap(), NOW + DAY);
    // Once: a later root with the same field takes nothing back.
    let later = Minting { signed_at_s: NOW + 5 * DAY, expires_s: NOW + 9 * DAY, ..minting(3) };
    let set = signer.mint("d1", &[], later).unwrap();
    believing(&set, director, &registry, NOW + 5 * DAY).unwrap().store(&tx).unwrap();
    owner.repository.renew("root", NOW + 6 * DAY).unwrap();
    owner.sign(NOW + 6 * DAY);
    let registry = owner.refresh(load(&tx, Repo::Registry), NOW).unwrap();
    assert_eq!((registry.root_version(), registry.time(0)), (3, NOW + 5 * DAY));
    registry.store(&tx).unwrap();
    assert_eq!(signed_time(&tx).unwrap(), NOW + 5 * DAY);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

    /// A clock that jumps as it likes: metadata is taken exactly when it had not ended by the later
    /// of the clock and the highest signed time, which never goes back.
    #[test]
    fn a_jumping_clock_changes_nothing_that_was_signed(
        jumps in proptest::collection::vec((-3_650_i64..3_650, -20_i64..20), 1..8),
    ) {
        let (_owner, registry) = registry();
        let (signer, mut trusted) = director();
        let mut floor = 0;
        for (serial, (clock, signed)) in (1_u64..).zip(jumps) {
            let (clock_s, signed_at_s) = (NOW + clock * DAY, NOW + signed * DAY);
            let expires_s = signed_at_s + 7 * DAY;
            let minting = Minting { generation: serial, serial, signed_at_s, expires_s };
            let set = signer.mint("d1", &[], minting).unwrap();
            let holds = expires_s > clock_s.max(floor);
            let taken = believing(&set, trusted.clone(), &registry, clock_s);
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
