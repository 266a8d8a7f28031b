//! The way of every operator action: decide, do, record — the last two in one transaction.

use std::sync::Arc;

use fulmar_policy::audit::{self, Event, Outcome};
use fulmar_policy::{Action, Permit, Principal};
use rusqlite::{Connection, Transaction};
use serde_json::Value;

use crate::app::App;
use crate::failure::Failure;
use crate::now_s;

/// Decides; a refusal is recorded before it is told.
pub(crate) async fn decide(
    app: &Arc<App>,
    principal: &Principal,
    action: Action,
    resource: &str,
) -> Result<Permit, Failure> {
    match app.policy.decide(principal, action, resource) {
        Ok(permit) => Ok(permit),
        Err(denied) => {
            let detail = serde_json::json!({ "reason": denied.reason });
            let actor = principal.audit_name();
            note(app, &actor, action.as_str(), resource, Outcome::Denied, detail).await?;
            Err(denied.into())
        }
    }
}

/// Decides and reads. Reading leaves no audit entry unless it was refused.
pub(crate) async fn read<T, F>(
    app: &Arc<App>,
    principal: &Principal,
    action: Action,
    resource: &str,
    work: F,
) -> Result<T, Failure>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
{
    decide(app, principal, action, resource).await?;
    app.store.read(work).await
}

/// Decides, does and records. `work` gives its result and the entry's detail; when it is refused,
/// an entry says so and nothing else of it stays.
pub(crate) async fn change<T, F>(
    app: &Arc<App>,
    principal: &Principal,
    action: Action,
    resource: &str,
    work: F,
) -> Result<T, Failure>
where
    T: Send + 'static,
    F: FnOnce(&Transaction<'_>) -> Result<(T, Value), Failure> + Send + 'static,
{
    let permit = decide(app, principal, action, resource).await?;
    let actor = principal.audit_name();
    let entry = (actor.clone(), permit.resource().to_owned());
    let result: Result<T, Failure> = app
        .store
        .write(move |tx| {
            let (result, detail) = work(tx)?;
            let (actor, resource) = entry;
            append(tx, &actor, action.as_str(), &resource, Outcome::Completed, detail)?;
            Ok(result)
        })
        .await;
    if let Err(failure) = &result {
        let detail = serde_json::json!({ "code": failure.code(), "reason": failure.to_string() });
        note(app, &actor, action.as_str(), resource, Outcome::Failed, detail).await?;
    }
    result
}

/// Appends one entry in the caller's transaction.
pub(crate) fn append(
    tx: &Transaction<'_>,
    actor: &str,
    action: &str,
    resource: &str,
    outcome: Outcome,
    detail: Value,
) -> Result<(), Failure> {
    audit::append(
        tx,
        &Event { at_s: now_s(), actor, action, resource, outcome, opened: None, detail },
    )?;
    Ok(())
}

/// Appends one entry in a transaction of its own: for what was refused.
pub(crate) async fn note(
    app: &Arc<App>,
    actor: &str,
    action: &str,
    resource: &str,
    outcome: Outcome,
    detail: Value,
) -> Result<(), Failure> {
    let (actor, action, resource) = (actor.to_owned(), action.to_owned(), resource.to_owned());
    app.store.write(move |tx| append(tx, &actor, &action, &resource, outcome, detail)).await
}
