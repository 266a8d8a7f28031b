//! Answers as Ollama writes them: one JSON object, or one a line as they come.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use fulmar_inference::engine::Usage;
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::reply::{finish_name, token_object};
use crate::ask::{Answer, Part};

/// Where the text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// In `message`.
    Chat,
    /// In `response`.
    Generate,
}

/// Nanoseconds, Ollama's unit.
const NS_PER_MS: u64 = 1_000_000;
/// Nanoseconds, Ollama's unit.
const NS_PER_US: u64 = 1_000;

/// A part of an answer, or all of it.
#[derive(Debug, Default)]
struct Said {
    text: String,
    thinking: String,
    calls: Vec<Value>,
    /// Of the tokens, where they were asked for.
    logprobs: Vec<Value>,
}

impl Said {
    fn is_empty(&self) -> bool {
        self.text.is_empty()
            && self.thinking.is_empty()
            && self.calls.is_empty()
            && self.logprobs.is_empty()
    }

    /// Takes what a part says.
    fn take(&mut self, part: Part) {
        match part {
            Part::Text { text, logprobs } => {
                self.text += &text;
                self.logprobs.extend(logprobs.iter().map(token_object));
            }
            Part::Reasoning { text } => self.thinking += &text,
            Part::Call(call) => self
                .calls
                .push(json!({ "function": { "name": call.name, "arguments": call.arguments } })),
            Part::Done { .. } | Part::Failed { .. } => {}
        }
    }

    fn object(self, shape: Shape, model: &str) -> Value {
        let mut object =
            json!({ "model": model, "created_at": jiff::Timestamp::now().to_string() });
        match shape {
            Shape::Chat => {
                let mut message = json!({ "role": "assistant", "content": self.text });
                if !self.thinking.is_empty() {
                    message["thinking"] = self.thinking.into();
                }
                if !self.calls.is_empty() {
                    message["tool_calls"] = self.calls.into();
                }
                object["message"] = message;
            }
            Shape::Generate => {
                object["response"] = self.text.into();
                if !self.thinking.is_empty() {
                    object["thinking"] = self.thinking.into();
                }
            }
        }
        if !self.logprobs.is_empty() {
            object["logprobs"] = self.logprobs.into();
        }
        object["done"] = false.into();
        object
    }
}

fn finish(object: &mut Value, reason: &str, usage: &Usage) {
    let decode_ns = usage.decode_us * NS_PER_US;
    let total_ns = (usage.queue_ms + usage.prompt_ms) * NS_PER_MS + decode_ns;
    for (field, value) in [
        ("done", Value::Bool(true)),
        ("done_reason", reason.into()),
        ("total_duration", total_ns.into()),
        ("load_duration", 0.into()),
        ("prompt_eval_count", usage.prompt_tokens.into()),
        ("prompt_eval_duration", (usage.prompt_ms * NS_PER_MS).into()),
        ("eval_count", usage.completion_tokens.into()),
        ("eval_duration", decode_ns.into()),
    ] {
        object[field] = value;
    }
}

/// The answer to a request that only loads a model.
pub(super) fn loaded(shape: Shape, model: &str) -> Response {
    let mut object = Said::default().object(shape, model);
    finish(&mut object, "load", &Usage::default());
    Json(object).into_response()
}

/// Sends an answer, whole or line by line.
///
/// # Errors
/// 500, when the answer fails before anything was sent.
pub(super) async fn send(
    mut answer: Answer,
    shape: Shape,
    is_stream: bool,
) -> Result<Response, ApiError> {
    if is_stream {
        return Ok(stream(answer, shape));
    }
    let mut said = Said::default();
    loop {
        match answer.next().await {
            Some(Part::Done { reason, usage }) => {
                let mut object = said.object(shape, &answer.model.name);
                finish(&mut object, finish_name(reason), &usage);
                return Ok(Json(object).into_response());
            }
            Some(Part::Failed { failure }) => return Err(failure.into()),
            Some(part) => said.take(part),
            None => return Err(ApiError::broken("the answer ended without an end")),
        }
    }
}

fn stream(answer: Answer, shape: Shape) -> Response {
    // Dropped with the connection: then the answer is cancelled.
    let lines = futures_util::stream::unfold(Some(answer), move |answer| async move {
        let mut answer = answer?;
        loop {
            let (line, goes_on) = match answer.next().await? {
                Part::Done { reason, usage } => {
                    let mut object = Said::default().object(shape, &answer.model.name);
                    finish(&mut object, finish_name(reason), &usage);
                    (object, false)
                }
                Part::Failed { failure } => {
                    let error = ApiError::from(failure).body();
                    (json!({ "error": error["error"]["message"] }), false)
                }
                part => {
                    let mut said = Said::default();
                    said.take(part);
                    if said.is_empty() {
                        continue;
                    }
                    (said.object(shape, &answer.model.name), true)
                }
            };
            let next = goes_on.then_some(answer);
            return Some((Ok::<_, Infallible>(format!("{line}\n")), next));
        }
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
