//! The audit entries of a question: one before it, one after.

use std::sync::Arc;

use fulmar_policy::audit::{self, AuditError, Outcome};
use fulmar_policy::{LogContent, Permit};
use fulmar_registry::Barred;
use ring::digest::SHA256;
use serde_json::{Value, json};

use crate::app::App;
use crate::models::LoadedModel;
use crate::state;

/// The audit entries of one question.
#[derive(Debug)]
pub(super) struct Record {
    app: Arc<App>,
    actor: String,
    resource: String,
    pub(super) content: LogContent,
    pub(super) entry: u64,
}

impl Record {
    /// Records that the question was permitted, before the engine sees it.
    ///
    /// # Errors
    /// When that is not durable.
    pub(super) async fn open(
        app: &Arc<App>,
        permit: &Permit,
        endpoint: &'static str,
        prompt: &Value,
        model: &LoadedModel,
    ) -> Result<Self, AuditError> {
        let mut record = Self {
            app: Arc::clone(app),
            actor: permit.principal().audit_name(),
            resource: model.name.clone(),
            content: permit.log_content(),
            entry: 0,
        };
        let digest = ring::digest::digest(&SHA256, prompt.to_string().as_bytes());
        let mut detail = json!({
            "endpoint": endpoint,
            "model_digest": model.digest.to_string(),
            "weights_digest": model.weights_digest.to_string(),
            "authority": model.authority,
            "policy_version": permit.policy_version(),
            "prompt_sha256": hex::encode(digest),
        });
        if record.content == LogContent::Full {
            detail["prompt"] = prompt.clone();
        }
        record.entry = record.append(Outcome::Started, None, detail).await?;
        Ok(record)
    }

    /// Records how it ended.
    ///
    /// # Errors
    /// When that is not durable.
    pub(super) async fn close(
        &mut self,
        outcome: Outcome,
        detail: Value,
    ) -> Result<(), AuditError> {
        self.append(outcome, Some(self.entry), detail).await.map(|_| ())
    }

    async fn append(
        &self,
        outcome: Outcome,
        opened: Option<u64>,
        detail: Value,
    ) -> Result<u64, AuditError> {
        let whose = (self.actor.clone(), self.resource.clone());
        write(&self.app, whose, outcome, opened, detail).await
    }
}

/// Writes an entry about the run of a model.
async fn write(
    app: &App,
    (actor, resource): (String, String),
    outcome: Outcome,
    opened: Option<u64>,
    detail: Value,
) -> Result<u64, AuditError> {
    let at_s = app.state().clock().now_s();
    app.state()
        .store()
        .write(move |tx| {
            let event = audit::Event {
                at_s,
                actor: &actor,
                action: fulmar_policy::Action::ModelRun.as_str(),
                resource: &resource,
                outcome,
                opened,
                detail,
            };
            state::record(tx, &event)
        })
        .await
}

/// Records that the owner's policy keeps a model from running.
///
/// # Errors
/// When that is not durable.
pub(super) async fn barred(app: &App, permit: &Permit, barred: &Barred) -> Result<(), AuditError> {
    let whose = (permit.principal().audit_name(), permit.resource().to_owned());
    let detail = json!({
        "reason": barred.to_string(), "policy_version": permit.policy_version(),
    });
    write(app, whose, Outcome::Denied, None, detail).await.map(drop)
}
