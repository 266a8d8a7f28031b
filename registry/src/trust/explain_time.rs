//! The device's time in plain words: what the clock says, what was signed, and whose clock is wrong
//! where the two do not fit.

use rusqlite::Connection;

use super::date::Date;
use super::error::{TrustError, ahead};
use super::explain::{DAY_S, Finding};
use super::time::{Ahead, signed_time, time_refused};
use super::trusted::{Repo, Trusted};

/// A clock this far behind the signed time is wrong, or the other one is.
const CLOCK_SLACK_S: i64 = 3_600;
/// fulmar itself is younger than this: a clock before 2026-01-01 is wrong for certain.
const CERTAINLY_WRONG_S: i64 = 1_767_225_600;

/// The findings on the time at `now_s`, the clock.
pub(super) fn explain_time(connection: &Connection, now_s: i64) -> Vec<Finding> {
    let found = signed_time(connection).and_then(|signed_s| {
        let mut findings = vec![explain_floor(connection, signed_s, now_s)];
        findings.extend(time_refused(connection)?.map(|refused| explain_refused(&refused)));
        Ok(findings)
    });
    found.unwrap_or_else(|error| vec![unreadable(&error)])
}

fn unreadable(error: &TrustError) -> Finding {
    Finding::problem(
        format!("The highest signed time cannot be read: {error}."),
        "Check the disk, then restore the state directory from a backup.",
    )
}

fn explain_floor(connection: &Connection, signed_s: i64, now_s: i64) -> Finding {
    let (clock, signed) = (Date(now_s), Date(signed_s));
    if signed_s == 0 {
        return Finding::fine(format!(
            "The clock says {clock}; nobody has signed a time yet, so it is believed."
        ));
    }
    if now_s.saturating_add(CLOCK_SLACK_S) >= signed_s {
        return Finding::fine(format!(
            "The clock says {clock}, not before the highest signed time, {signed}."
        ));
    }
    let says = format!(
        "The clock says {clock}, but metadata that {} signed at {signed} has been seen. Expiry is \
         held against the later one.",
        signer(connection, signed_s)
    );
    if now_s < CERTAINLY_WRONG_S {
        return Finding::notice(
            says,
            "The clock is wrong: set it, or give the device a time source; it works on meanwhile.",
        );
    }
    Finding::notice(
        says,
        "If the clock is wrong, set it, or give the device a time source; it works on meanwhile. If \
         it is right, the signer's was ahead: have that set right, then the owner lets devices \
         forget the time (`fulmar registry reset-time`), and the device syncs or takes a bundle.",
    )
}

/// Who signed the highest time, as far as what is trusted now tells.
fn signer(connection: &Connection, signed_s: i64) -> &'static str {
    let signed_by = |repo| {
        let trusted = Trusted::load(connection, repo).ok().flatten()?;
        trusted.signed_at_s().filter(|at_s| *at_s >= signed_s)
    };
    match (signed_by(Repo::Registry), signed_by(Repo::Director)) {
        (Some(_), _) => "the owner's registry",
        (None, Some(_)) => "the control plane",
        (None, None) => "the fleet",
    }
}

/// Whoever's time is far from this device's own is the likelier to be wrong.
fn explain_refused(refused: &Ahead) -> Finding {
    let Ahead { repo, signed_s, role, ends_s, seen_s } = refused;
    let whose = ahead(repo);
    let says = format!(
        "At {}, {repo} metadata was refused that says it was signed at {}: the owner's {role} \
         metadata ends at {}, and no time beyond that is believed. Nothing new is taken; what is \
         installed goes on running as long as policy allows.",
        Date(*seen_s),
        Date(*signed_s),
        Date(*ends_s),
    );
    let ahead_s = signed_s.saturating_sub(*seen_s);
    if ahead_s > DAY_S {
        let advice = format!(
            "By this device's clock, that of {whose} is {} days ahead: set it right. If this \
             device's is wrong, set it, and the owner renews the registry.",
            ahead_s.saturating_add(DAY_S / 2) / DAY_S
        );
        return Finding::problem(says, &advice);
    }
    Finding::problem(
        says,
        "The owner's metadata has ended: the owner renews it (`fulmar registry renew`, then `sign`) \
         and uploads it to the control plane.",
    )
}
