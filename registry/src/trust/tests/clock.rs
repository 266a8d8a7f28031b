//! Clocks that are wrong, and metadata that ends.

use super::*;

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
