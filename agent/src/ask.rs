//! Asking a model: budget, audit entry, engine, answer, audit entry.
//!
//! Invariants:
//! - No prompt reaches the engine before the entry that records it is durable.
//! - The client learns that an answer is complete only after the entry that completes it is
//!   durable; the same holds for failures and for clients that went away.

mod embed;
mod record;

use std::sync::Arc;
use std::time::Instant;

use fulmar_inference::chat::{Delta, OutputParser, ToolCall};
use fulmar_inference::engine::{
    Event, FinishReason, Generation, Logprobs, Refused, Request, Usage,
};
use fulmar_policy::audit::{AuditError, Outcome};
use fulmar_policy::budget::{Exceeded, InFlight};
use fulmar_policy::{LogContent, Permit};
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::app::App;
use crate::models::{LoadedModel, ModelError};
use record::Record;

pub(crate) use embed::{EmbedQuestion, embed};

/// Events that wait for a slow client; then the engine waits for it.
const EVENTS_WAITING_MAX: usize = 64;

/// A question, understood and permitted.
#[derive(Debug)]
pub(crate) struct Question {
    /// The route, for the audit log.
    pub(crate) endpoint: &'static str,
    /// What the engine is asked; `model`, `principal` and `priority` are filled in here.
    pub(crate) request: Request,
    /// The prompt as the client sent it, for its digest and, where policy says so, the log.
    pub(crate) prompt: Value,
    /// When the answer must be complete.
    pub(crate) deadline: Option<Instant>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The principal's budget is used up.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// The model is not there or must not run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine did not take the request.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// What cannot be recorded is not done.
    #[error("open the audit entry")]
    Audit(#[from] AuditError),
    /// The engine accepted it and failed; that is recorded.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Why a question that the engine accepted has no complete answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The question's time was over first.
    #[error("not complete in the time it was given: {tokens} tokens were there")]
    Late {
        /// Tokens of the answer until then.
        tokens: u64,
    },
    /// Something went wrong here.
    #[error("{0}")]
    Broken(String),
}

/// An answer under way; dropping it cancels.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The audit entry that records the question.
    pub(crate) entry: u64,
    /// The model that answers.
    pub(crate) model: Arc<LoadedModel>,
    events: mpsc::Receiver<Part>,
}

impl Answer {
    /// The next part; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Part> {
        self.events.recv().await
    }
}

/// A part of an answer.
#[derive(Debug)]
pub(crate) enum Part {
    /// Text that became certain, and the log-probabilities of the tokens since the last such part,
    /// where they were asked for.
    Text { text: String, logprobs: Vec<Logprobs> },
    /// More of what the model thinks before it answers.
    Reasoning { text: String },
    /// A call of a tool.
    Call(ToolCall),
    /// The answer is complete and recorded.
    Done { reason: FinishReason, usage: Usage },
    /// The answer failed; that is recorded.
    Failed { failure: Failure },
}

/// Asks, within the permit.
///
/// # Errors
/// [`AskError`]; a refusal by the engine is recorded.
pub(crate) async fn ask(
    app: &Arc<App>,
    permit: &Permit,
    question: Question,
) -> Result<Answer, AskError> {
    let in_flight = app.meter().begin(permit, app.state().monotonic_ms())?;
    let model = loaded(app, permit).await?;
    let mut record = Record::open(app, permit, question.endpoint, &question.prompt, &model).await?;
    let mut request = question.request;
    let limits = permit.limits();
    request.model.clone_from(&model.engine_name);
    request.principal.clone_from(&permit.principal().subject);
    request.priority = engine_priority(permit);
    let tokens_max = limits.max_tokens;
    request.max_tokens = Some(request.max_tokens.map_or(tokens_max, |n| n.min(tokens_max)));
    request.deadline_ms = question.deadline.map(left_ms);
    let mut generation = match generate(app, permit, &model, request).await {
        Ok(generation) => generation,
        Err(refused) => {
            record.close(Outcome::Denied, json!({ "reason": refused.to_string() })).await?;
            return Err(refused.into());
        }
    };
    let (sender, events) = mpsc::channel(EVENTS_WAITING_MAX);
    let entry = record.entry;
    app.metrics().asked(&model.name);
    let parser = generation.take_parser();
    let logprobs = Vec::new();
    let relay = Relay { app: Arc::clone(app), record, in_flight, parser, logprobs, sender };
    app.answers().spawn(relay.run(generation));
    Ok(Answer { entry, model, events })
}

/// The permitted model in the engine. That the owner's policy keeps it from running is recorded;
/// other failures are no decisions.
async fn loaded(app: &App, permit: &Permit) -> Result<Arc<LoadedModel>, AskError> {
    let error = match app.loaded(permit.resource()).await {
        Ok(model) => return Ok(model),
        Err(error) => error,
    };
    if let ModelError::Barred { barred, .. } = &error {
        record::barred(app, permit, barred).await?;
    }
    Err(error.into())
}

/// Gives the request to the engine; loads the model again, once, if it went away meanwhile.
async fn generate(
    app: &App,
    permit: &Permit,
    model: &LoadedModel,
    request: Request,
) -> Result<Generation, Refused> {
    match app.engine().generate(request.clone()).await {
        Err(Refused::ModelNotLoaded { name }) => {
            if loaded_again(app, permit.resource(), model).await {
                app.engine().generate(request).await
            } else {
                Err(Refused::ModelNotLoaded { name })
            }
        }
        outcome => outcome,
    }
}

/// Loads a model again that went out of the engine meanwhile. Another release may have become
/// active between the entry and now: the entry names this one, so this one answers or nobody does.
async fn loaded_again(app: &App, resource: &str, model: &LoadedModel) -> bool {
    app.models().forget(model);
    let again = app.loaded(resource).await;
    again.is_ok_and(|again| again.engine_name == model.engine_name)
}

/// Milliseconds until a moment.
fn left_ms(at: Instant) -> u64 {
    at.saturating_duration_since(Instant::now()).as_millis() as u64
}

/// The policy's priorities run from 0 to 9, the engine's from 0 to 255.
fn engine_priority(permit: &Permit) -> u8 {
    permit.limits().priority.saturating_mul(28)
}

/// Carries an answer from the engine to the client, and into the audit log.
struct Relay {
    app: Arc<App>,
    record: Record,
    in_flight: InFlight,
    parser: Option<OutputParser>,
    /// Of tokens whose text the parser still holds.
    logprobs: Vec<Logprobs>,
    sender: mpsc::Sender<Part>,
}

impl Relay {
    async fn run(mut self, mut generation: Generation) {
        let mut digest = Context::new(&SHA256);
        let mut text_kept = String::new();
        let mut tokens = 0_u64;
        let (mut usage, mut began) = (Usage::default(), Instant::now());
        let end = loop {
            let event = tokio::select! {
                event = generation.next() => event,
                () = self.sender.closed() => break End::ClientGone,
            };
            match event {
                Some(Event::Started { prompt_tokens, cached_tokens }) => {
                    usage = Usage { prompt_tokens, cached_tokens, ..usage };
                    began = Instant::now();
                }
                Some(Event::Token { text, mark, logprob, .. }) => {
                    tokens += 1;
                    if tokens == 1 {
                        usage.prompt_ms = millis_since(&mut began);
                    }
                    digest.update(text.as_bytes());
                    if self.record.content == LogContent::Full {
                        text_kept += &text;
                    }
                    let parts = self.taken_apart(text, mark, logprob);
                    if self.send(parts).await.is_err() {
                        break End::ClientGone;
                    }
                    if self.parser.as_ref().is_some_and(OutputParser::is_over) {
                        // No more calls are wanted: the generation is dropped, and cancelled.
                        usage.completion_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
                        usage.decode_us = began.elapsed().as_micros() as u64;
                        break End::Done { reason: FinishReason::Stop, usage };
                    }
                }
                Some(Event::Done { reason, usage }) => break End::Done { reason, usage },
                Some(Event::Failed { message }) => break End::Failed { message },
                None => break End::Failed { message: "the engine stopped".into() },
            }
        };
        // Dropped before the entry is written: a client that went away frees its place at once.
        drop(generation);
        let rest = self.rest();
        let sent = self.send(rest).await;
        let end = if sent.is_err() { End::ClientGone } else { end };
        let mut detail = end.detail(tokens);
        detail["answer_sha256"] = hex::encode(digest.finish()).into();
        if self.record.content == LogContent::Full {
            detail["answer"] = text_kept.into();
        }
        self.finish(end, tokens, detail).await;
    }

    /// Content, reasoning and calls. Log-probabilities go with the next text.
    fn taken_apart(
        &mut self,
        text: String,
        mark: Option<&str>,
        logprob: Option<Logprobs>,
    ) -> Vec<Part> {
        self.logprobs.extend(logprob);
        let deltas = match &mut self.parser {
            Some(parser) => {
                let mut deltas = parser.push(&text);
                deltas.extend(mark.into_iter().flat_map(|mark| parser.push_mark(mark)));
                deltas
            }
            None => vec![Delta::Content(text)],
        };
        self.parts(deltas)
    }

    /// What was held back, at the end of the answer.
    fn rest(&mut self) -> Vec<Part> {
        let deltas = self.parser.as_mut().map(OutputParser::finish).unwrap_or_default();
        let mut parts = self.parts(deltas);
        if !self.logprobs.is_empty() {
            let logprobs = std::mem::take(&mut self.logprobs);
            parts.push(Part::Text { text: String::new(), logprobs });
        }
        parts
    }

    fn parts(&mut self, deltas: Vec<Delta>) -> Vec<Part> {
        let part = |delta| match delta {
            Delta::Content(text) => {
                Part::Text { text, logprobs: std::mem::take(&mut self.logprobs) }
            }
            Delta::Reasoning(text) => Part::Reasoning { text },
            Delta::ToolCall(call) => Part::Call(call),
        };
        deltas.into_iter().map(part).collect()
    }

    async fn send(&self, parts: Vec<Part>) -> Result<(), mpsc::error::SendError<Part>> {
        for part in parts {
            self.sender.send(part).await?;
        }
        Ok(())
    }

    async fn finish(mut self, end: End, tokens: u64, detail: Value) {
        let now_ms = self.app.state().monotonic_ms();
        let spent = match &end {
            End::Done { usage, .. } => {
                self.app.metrics().answered(usage);
                u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens)
            }
            End::Failed { .. } | End::ClientGone => tokens,
        };
        self.in_flight.spend(spent, now_ms);
        let closed = self.record.close(end.outcome(), detail).await;
        let part = match (closed, end) {
            (Err(error), _) => {
                tracing::error!(%error, entry = self.record.entry, "an answer was not recorded");
                Part::Failed { failure: Failure::Broken("the answer could not be recorded".into()) }
            }
            (Ok(()), End::Done { reason: FinishReason::Deadline, .. }) => {
                Part::Failed { failure: Failure::Late { tokens } }
            }
            (Ok(()), End::Done { reason, usage }) => Part::Done { reason, usage },
            (Ok(()), End::Failed { message }) => Part::Failed { failure: Failure::Broken(message) },
            (Ok(()), End::ClientGone) => return,
        };
        // The client may have gone meanwhile; the entry says all there is to say.
        let _ = self.sender.send(part).await;
    }
}

/// Milliseconds since a moment, which becomes now.
fn millis_since(then: &mut Instant) -> u64 {
    let now = Instant::now();
    now.duration_since(std::mem::replace(then, now)).as_millis() as u64
}

enum End {
    Done { reason: FinishReason, usage: Usage },
    Failed { message: String },
    ClientGone,
}

impl End {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Done { reason: FinishReason::Stop | FinishReason::Length, .. } => {
                Outcome::Completed
            }
            _ => Outcome::Failed,
        }
    }

    fn detail(&self, tokens: u64) -> Value {
        match self {
            Self::Done { reason, usage } => json!({ "finish_reason": reason, "usage": usage }),
            Self::Failed { message } => json!({ "reason": message, "tokens": tokens }),
            Self::ClientGone => json!({ "reason": "the client went away", "tokens": tokens }),
        }
    }
}
