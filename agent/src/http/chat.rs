//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fulmar_inference::chat::ToolCall;
use fulmar_inference::engine::Logprobs;
use serde_json::{Value, json};

use super::auth::Caller;
use super::deadline::Deadline;
use super::error::ApiError;
use super::openai::ChatRequest;
use super::reply::{events, finish_name, timings, token_object, usage_object};
use crate::app::App;
use crate::ask::{self, Answer, Part, Question};

/// Answers a conversation, whole or as a stream of events.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    Deadline(deadline): Deadline,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request = ChatRequest::parse(&body)?;
    let permit = super::local::permit(&app, &principal, request.model()).await?;
    let question = Question {
        endpoint: "/v1/chat/completions",
        request: request.to_engine()?,
        prompt: request.prompt(),
        deadline,
    };
    let names = request.field_names();
    let answer = ask::ask(&app, &permit, question).await.map_err(|e| ApiError::of_ask(e, names))?;
    let frame = Frame::new(&answer, app.state().clock().now_s(), request.wants_logprobs());
    if request.generation.is_stream() {
        Ok(stream(answer, frame, request.generation.stream_usage()))
    } else {
        whole(answer, frame).await
    }
}

/// What all objects of one answer have in common.
struct Frame {
    id: String,
    created_s: i64,
    model: String,
    entry: u64,
    logprobs: bool,
}

impl Frame {
    fn new(answer: &Answer, created_s: i64, logprobs: bool) -> Self {
        Self {
            id: format!("chatcmpl-{}", uuid::Uuid::now_v7().simple()),
            created_s,
            model: answer.model.name.clone(),
            entry: answer.entry,
            logprobs,
        }
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
            // Where the answer stands in the audit log.
            "fulmar": { "audit_entry": self.entry },
        })
    }

    fn chunk(&self, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let choice =
            json!({ "index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        self.object("chat.completion.chunk", json!([choice]))
    }
}

async fn whole(mut answer: Answer, frame: Frame) -> Result<Response, ApiError> {
    let mut text = String::new();
    let mut reasoning = String::new();
    let mut calls = Vec::new();
    let mut logprobs = Vec::new();
    while let Some(part) = answer.next().await {
        match part {
            Part::Text { text: more, logprobs: of_more } => {
                logprobs.extend(of_more);
                text += &more;
            }
            Part::Reasoning { text: more } => reasoning += &more,
            Part::Call(call) => calls.push(call_object(&call, calls.len())),
            Part::Done { reason, usage } => {
                let logprobs =
                    if frame.logprobs { logprobs_object(&logprobs) } else { Value::Null };
                let finish = if calls.is_empty() { finish_name(reason) } else { "tool_calls" };
                let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
                if !reasoning.is_empty() {
                    message["reasoning_content"] = reasoning.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                let choice = json!({
                    "index": 0,
                    "message": message,
                    "logprobs": logprobs,
                    "finish_reason": finish,
                });
                let mut object = frame.object("chat.completion", json!([choice]));
                object["usage"] = usage_object(&usage);
                object["timings"] = timings(&usage);
                return Ok(Json(object).into_response());
            }
            Part::Failed { failure } => return Err(failure.into()),
        }
    }
    Err(ApiError::broken("the answer ended without an end"))
}

fn stream(mut answer: Answer, frame: Frame, with_usage: bool) -> Response {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Value>(1);
    tokio::spawn(async move {
        let role = json!({ "role": "assistant", "content": "", "refusal": null });
        let mut next = Some(frame.chunk(role, Value::Null, None));
        let mut calls = 0;
        loop {
            // A failed send is a client that went away: dropping the answer cancels it.
            if let Some(chunk) = next.take()
                && sender.send(chunk).await.is_err()
            {
                return;
            }
            let part = tokio::select! {
                part = answer.next() => part,
                () = sender.closed() => return,
            };
            match part {
                Some(Part::Text { text, logprobs }) if text.is_empty() && logprobs.is_empty() => {}
                Some(Part::Text { text, logprobs }) => {
                    let logprobs = match logprobs.as_slice() {
                        [] => Value::Null,
                        logprobs => logprobs_object(logprobs),
                    };
                    next = Some(frame.chunk(json!({ "content": text }), logprobs, None));
                }
                Some(Part::Reasoning { text }) => {
                    let delta = json!({ "reasoning_content": text });
                    next = Some(frame.chunk(delta, Value::Null, None));
                }
                Some(Part::Call(call)) => {
                    let mut object = call_object(&call, calls);
                    object["index"] = calls.into();
                    calls += 1;
                    next = Some(frame.chunk(json!({ "tool_calls": [object] }), Value::Null, None));
                }
                Some(Part::Done { reason, usage }) => {
                    let finish = if calls == 0 { finish_name(reason) } else { "tool_calls" };
                    let mut last = frame.chunk(json!({}), Value::Null, Some(finish));
                    last["timings"] = timings(&usage);
                    let _ = sender.send(last).await;
                    if with_usage {
                        let mut object = frame.object("chat.completion.chunk", json!([]));
                        object["usage"] = usage_object(&usage);
                        let _ = sender.send(object).await;
                    }
                    return;
                }
                Some(Part::Failed { failure }) => {
                    let _ = sender.send(ApiError::from(failure).body()).await;
                    return;
                }
                None => return,
            }
        }
    });
    events(receiver)
}

/// A call of a tool as OpenAI writes it: the arguments as text.
fn call_object(call: &ToolCall, number: usize) -> Value {
    json!({
        "id": format!("call_{number}_{}", uuid::Uuid::now_v7().simple()),
        "type": "function",
        "function": { "name": call.name, "arguments": call.arguments.to_string() },
    })
}

/// The log-probabilities of tokens, as chat completions write them.
fn logprobs_object(logprobs: &[Logprobs]) -> Value {
    json!({ "content": logprobs.iter().map(token_object).collect::<Vec<_>>() })
}
