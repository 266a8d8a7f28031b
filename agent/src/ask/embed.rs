//! Texts to vectors: the same way as a question, with one answer at once instead of a stream.

use std::sync::Arc;
use std::time::Instant;

use fulmar_inference::engine::{EmbedError, EmbedRequest, Embeddings, Prompt, Refused};
use fulmar_policy::Permit;
use fulmar_policy::audit::Outcome;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::record::Record;
use super::{AskError, Failure};
use crate::app::App;
use crate::models::LoadedModel;

/// Texts to turn into vectors, understood and permitted.
#[derive(Debug)]
pub(crate) struct EmbedQuestion {
    /// The route, for the audit log.
    pub(crate) endpoint: &'static str,
    /// One vector each.
    pub(crate) inputs: Vec<Prompt>,
    /// The inputs as the client sent them, for their digest and, where policy says so, the log.
    pub(crate) prompt: Value,
    /// When the vectors must be there.
    pub(crate) deadline: Option<Instant>,
}

/// Vectors, recorded.
#[derive(Debug)]
pub(crate) struct Embedded {
    /// The audit entry that records the question.
    pub(crate) entry: u64,
    /// The model that made them.
    pub(crate) model: Arc<LoadedModel>,
    /// The vectors and what they took.
    pub(crate) embeddings: Embeddings,
}

/// Makes vectors, within the permit.
///
/// # Errors
/// [`AskError`]; refusals and failures of the engine are recorded.
pub(crate) async fn embed(
    app: &Arc<App>,
    permit: &Permit,
    question: EmbedQuestion,
) -> Result<Embedded, AskError> {
    let in_flight = app.meter().begin(permit, app.state().monotonic_ms())?;
    let model = super::loaded(app, permit).await?;
    let mut record = Record::open(app, permit, question.endpoint, &question.prompt, &model).await?;
    let entry = record.entry;
    app.metrics().asked(&model.name);
    let request = EmbedRequest {
        model: model.engine_name.clone(),
        inputs: question.inputs,
        principal: permit.principal().subject.clone(),
        priority: super::engine_priority(permit),
        deadline_ms: question.deadline.map(super::left_ms),
    };
    // On a task of its own: the entry is completed also when the client goes away meanwhile.
    let (_client, gone) = oneshot::channel::<()>();
    let (app, resource, embedding) =
        (Arc::clone(app), permit.resource().to_owned(), Arc::clone(&model));
    let task = app.answers().clone().spawn(async move {
        let outcome = tokio::select! {
            outcome = vectors(&app, &resource, &embedding, request) => outcome,
            _ = gone => Err(EmbedError::Failed("the client went away".into())),
        };
        let (outcome, (ended, detail)) = match outcome {
            Ok(embeddings) => {
                let tokens = embeddings.prompt_tokens;
                in_flight.spend(u64::from(tokens), app.state().monotonic_ms());
                let detail = json!({ "usage": { "prompt_tokens": tokens } });
                (Ok(embeddings), (Outcome::Completed, detail))
            }
            Err(EmbedError::Refused(refused)) => {
                let detail = json!({ "reason": refused.to_string() });
                (Err(AskError::Refused(refused)), (Outcome::Denied, detail))
            }
            Err(error) => {
                let failure = match error {
                    EmbedError::Failed(reason) => Failure::Broken(reason),
                    _ => Failure::Late { tokens: 0 },
                };
                let detail = json!({ "reason": failure.to_string() });
                (Err(failure.into()), (Outcome::Failed, detail))
            }
        };
        record.close(ended, detail).await?;
        outcome
    });
    let embeddings =
        task.await.map_err(|_| Failure::Broken("the embedding was cut off".into()))??;
    Ok(Embedded { entry, model, embeddings })
}

/// Asks the engine; loads the model again, once, if it went away meanwhile.
async fn vectors(
    app: &Arc<App>,
    resource: &str,
    model: &LoadedModel,
    request: EmbedRequest,
) -> Result<Embeddings, EmbedError> {
    match app.engine().embed(request.clone()).await {
        Err(EmbedError::Refused(Refused::ModelNotLoaded { name })) => {
            if super::loaded_again(app, resource, model).await {
                app.engine().embed(request).await
            } else {
                Err(EmbedError::Refused(Refused::ModelNotLoaded { name }))
            }
        }
        outcome => outcome,
    }
}
