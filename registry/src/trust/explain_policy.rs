//! The owner's policy in plain words: what holds, what was taken back, and how long the device may
//! go on without a word from its fleet.

use rusqlite::Connection;

use super::date::Date;
use super::error::TrustError;
use super::explain::{DAY_S, Finding};
use super::policy::{HeldPolicy, held_policy};
use super::time::signed_time;
use super::trusted::{Repo, Trusted};
use crate::catalog::{self, Filter};
use crate::standing::{Barred, Standing};

const ASK_OWNER: &str = "Ask the owner why; models run here again when a newer policy no longer \
                         revokes this device.";
const SYNC: &str = "Let the device sync (`fulmar sync`), or import a bundle; if the clock is wrong, \
                    set it.";

/// The findings on the policy at `now_s`, the clock.
pub(super) fn explain_policy(connection: &Connection, now_s: i64) -> Vec<Finding> {
    match findings(connection, now_s) {
        Ok(findings) => findings,
        Err(error) => vec![Finding::problem(
            format!("The owner's policy cannot be read, so no model runs: {error}."),
            "Let the device sync (`fulmar sync`), or import a bundle: that brings the policy again.",
        )],
    }
}

fn findings(connection: &Connection, now_s: i64) -> Result<Vec<Finding>, TrustError> {
    let Some(held) = held_policy(connection)? else {
        return Ok(vec![Finding::fine(
            "The owner signed no policy: the built-in roles hold, nothing is revoked, and no time \
             offline ends anything."
                .to_owned(),
        )]);
    };
    let standing = Standing::load(connection)?;
    let now_s = now_s.max(signed_time(connection)?);
    let mut findings = vec![Finding::fine(holds(&held))];
    findings.extend(pending(connection, &held, now_s)?);
    findings.extend(revoked_models(connection, &standing));
    findings.extend(device(&standing, now_s));
    Ok(findings)
}

fn holds(held: &HeldPolicy) -> String {
    let policy = &held.policy;
    let counts: Vec<String> = policy
        .revoked()
        .lists()
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{} {name}", list.len()))
        .collect();
    let revoked = if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") };
    format!(
        "The owner's policy version {} holds, taken {} from the registry's role {}; it revokes \
         {revoked}.",
        policy.version(),
        Date(held.taken_at_s),
        held.role,
    )
}

/// What the registry names now, where that is not what is held.
fn pending(
    connection: &Connection,
    held: &HeldPolicy,
    now_s: i64,
) -> Result<Option<Finding>, TrustError> {
    let Some(registry) = Trusted::load(connection, Repo::Registry)? else { return Ok(None) };
    Ok(match registry.named_policy(now_s) {
        Ok(Some(named)) if named.is_held(Some(held)) => None,
        Ok(Some(_)) => Some(Finding::notice(
            "The registry names another policy than the one held.".to_owned(),
            "Let the device sync (`fulmar sync`), or import a bundle.",
        )),
        Ok(None) => Some(Finding::notice(
            "The registry names no policy any more; the one held goes on holding.".to_owned(),
            "The owner ends a policy by publishing another one, not by taking it away.",
        )),
        Err(refused) => Some(Finding::notice(
            format!("The policy that the registry names is not taken: {refused}."),
            "The owner publishes it again (`fulmar registry policy`); the one held goes on holding.",
        )),
    })
}

fn revoked_models(connection: &Connection, standing: &Standing) -> Vec<Finding> {
    // The catalog's own troubles are told where models are.
    let models = catalog::list(connection, &Filter::default()).unwrap_or_default();
    models
        .iter()
        .filter_map(|model| {
            let files = model.manifest.files.iter().map(|file| &file.digest);
            let barred = standing.check_model(std::iter::once(&model.digest).chain(files)).err()?;
            Some(Finding::problem(
                format!("{} does not run here: {barred}.", model.name()),
                "Wait for its successor, or roll back to a release that is not revoked (`fulmar \
                 rollback`).",
            ))
        })
        .collect()
}

fn device(standing: &Standing, now_s: i64) -> Option<Finding> {
    let says = |barred: &Barred| format!("No model runs here: {barred}.");
    match standing.check_device(now_s) {
        Err(barred @ Barred::Device { .. }) => Some(Finding::problem(says(&barred), ASK_OWNER)),
        Err(barred) => Some(Finding::problem(says(&barred), SYNC)),
        Ok(()) => offline(standing, now_s),
    }
}

fn offline(standing: &Standing, now_s: i64) -> Option<Finding> {
    let silent_s = standing.silent_s(now_s)?;
    let heard = standing.heard_s().map(|at_s| Date(at_s).to_string()).unwrap_or_default();
    let Some(max_s) = standing.policy().max_offline_s() else {
        return Some(Finding::fine(format!(
            "The fleet was last heard of at {heard}; the policy sets no end to a time offline."
        )));
    };
    let left_s = max_s.saturating_sub(silent_s);
    let text = format!(
        "The fleet was last heard of at {heard}; of the {} that the policy allows without a word \
         from it, {} are left. Then no model runs until the device hears from it.",
        span(max_s),
        span(left_s),
    );
    Some(match left_s < max_s / 4 {
        true => Finding::notice(text, SYNC),
        false => Finding::fine(text),
    })
}

/// A span of time for people.
fn span(seconds: u64) -> String {
    let day_s = DAY_S.unsigned_abs();
    match seconds {
        s if s >= 2 * day_s => format!("{} days", s / day_s),
        s if s >= 7_200 => format!("{} hours", s / 3_600),
        s if s >= 120 => format!("{} minutes", s / 60),
        s => format!("{s} seconds"),
    }
}
