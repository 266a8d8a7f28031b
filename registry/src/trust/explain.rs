//! The state of trust in plain words, for `fulmar doctor`.

use rusqlite::Connection;
use serde::Serialize;

use super::date::Date;
use super::envelope::short;
use super::error::TrustError;
use super::explain_policy::explain_policy;
use super::explain_time::explain_time;
use super::metadata::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP};
use super::trusted::{Repo, Trusted};

pub(super) const DAY_S: i64 = 86_400;
/// From this long before its end, a role's expiry is worth a word.
const SOON_S: i64 = 14 * DAY_S;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Fine,
    /// Will need somebody soon.
    Notice,
    /// Nothing new is admitted until somebody acts.
    Problem,
}

/// One thing to know about the state of trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is so.
    pub says: String,
    /// What to do, where there is something to do.
    pub advice: Option<String>,
}

impl Finding {
    pub(super) fn fine(says: String) -> Self {
        Self { severity: Severity::Fine, says, advice: None }
    }

    pub(super) fn notice(says: String, advice: &str) -> Self {
        Self { severity: Severity::Notice, says, advice: Some(advice.to_owned()) }
    }

    pub(super) fn problem(says: String, advice: &str) -> Self {
        Self { severity: Severity::Problem, says, advice: Some(advice.to_owned()) }
    }
}

/// The findings on clock, registry, director and the owner's policy at `now_s` (the clock, in seconds since 1970). A
/// database that cannot be read is a finding too.
#[must_use]
pub fn explain(connection: &Connection, now_s: i64) -> Vec<Finding> {
    let mut findings = explain_time(connection, now_s);
    for repo in [Repo::Registry, Repo::Director] {
        match Trusted::load(connection, repo) {
            Ok(Some(trusted)) => explain_repo(&trusted, now_s, &mut findings),
            Ok(None) => findings.push(absent(repo)),
            Err(error) => findings.push(broken(repo, &error)),
        }
    }
    findings.extend(explain_policy(connection, now_s));
    findings
}

fn absent(repo: Repo) -> Finding {
    let says = format!("No root is trusted for the {} repository.", repo.as_str());
    match repo {
        Repo::Registry => Finding::notice(
            says,
            "On a device of a fleet, enrol it (`fulmar enroll`): that brings the owner's root. \
             Without a fleet, models are signed by this device's own key.",
        ),
        Repo::Director => Finding::notice(
            says,
            "The device belongs to no fleet. Enrol it (`fulmar enroll`) to be given models.",
        ),
    }
}

fn broken(repo: Repo, error: &TrustError) -> Finding {
    let mut says = format!("The trust in the {} repository cannot be read: {error}", repo.as_str());
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        says.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    says.push('.');
    Finding::problem(
        says,
        "The database was damaged or changed by hand. No model of the fleet is loaded until this is \
         mended. Let the device sync (`fulmar sync`), or import a bundle: it follows the roots anew \
         from the one that it trusted first, and takes nothing older than it had. Where that fails, \
         enrol anew: remove identity.json from the state directory, then `fulmar enroll`.",
    )
}

fn explain_repo(trusted: &Trusted, now_s: i64, findings: &mut Vec<Finding>) {
    let repo = trusted.repo().as_str();
    let keys = |role: &str| {
        trusted.root().roles.get(role).map_or(String::new(), |rule| {
            let ids: Vec<_> = rule.keyids.iter().map(|id| short(id)).collect();
            format!("{} of the keys {}", rule.threshold, ids.join(", "))
        })
    };
    findings.push(Finding::fine(format!(
        "The {repo} repository is trusted from root version {}: roots are signed by {}, targets by \
         {}.",
        trusted.root_version(),
        keys(ROOT),
        keys(TARGETS),
    )));
    if let Err(error) = trusted.check_complete() {
        findings.push(Finding::problem(
            format!("The {repo} repository's metadata is not whole: {error}."),
            "Let the device sync once with a link (`fulmar sync`), or import a bundle. Installed models \
             go on running meanwhile as long as policy allows; nothing new is admitted.",
        ));
        return;
    }
    let now_s = trusted.time(now_s);
    let top = [
        (ROOT, Some(trusted.root.expires())),
        (TIMESTAMP, trusted.timestamp.as_ref().map(|l| l.expires())),
        (SNAPSHOT, trusted.snapshot.as_ref().map(|l| l.expires())),
        (TARGETS, trusted.targets.get(TARGETS).map(|l| l.expires())),
    ];
    for (role, expires) in top.into_iter().filter_map(|(role, at)| at.map(|at| (role, at))) {
        findings.extend(explain_expiry(trusted.repo(), role, expires, now_s));
    }
    let delegated = trusted.targets.iter().filter(|(role, _)| role.as_str() != TARGETS);
    for (role, loaded) in delegated {
        findings.extend(explain_expiry(trusted.repo(), role, loaded.expires(), now_s));
    }
    findings.push(Finding::fine(format!(
        "The {repo} repository names {} targets (targets version {}, snapshot {}, timestamp {}).",
        trusted.targets().count(),
        trusted.targets_version().unwrap_or(0),
        trusted.snapshot_version().unwrap_or(0),
        trusted.timestamp_version().unwrap_or(0),
    )));
}

fn explain_expiry(repo: Repo, role: &str, expires: Date, now_s: i64) -> Option<Finding> {
    let left_s = expires.0.saturating_sub(now_s);
    let name = repo.as_str();
    let remedy = match repo {
        Repo::Registry => {
            "The owner renews it (`fulmar registry renew`, then `sign`) and uploads it to the \
             control plane; then the device syncs."
        }
        Repo::Director => {
            "The control plane renews it by itself: let the device sync (`fulmar sync`), or import \
             a bundle. If that changes nothing, the control plane's clock or director is at fault."
        }
    };
    if left_s <= 0 {
        return Some(Finding::problem(
            format!(
                "The {name} repository's {role} ended at {expires}, {} hours ago: nothing new is \
                 admitted. What is installed goes on running as long as policy allows.",
                left_s.saturating_neg() / 3_600
            ),
            remedy,
        ));
    }
    // A director's metadata is meant to be short-lived: half a day is soon enough there.
    let soon_s = if repo == Repo::Director && role != ROOT { DAY_S / 2 } else { SOON_S };
    (left_s < soon_s).then(|| {
        Finding::notice(
            format!(
                "The {name} repository's {role} ends at {expires}, in {} hours.",
                left_s / 3_600
            ),
            remedy,
        )
    })
}
