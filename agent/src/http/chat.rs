//! `/v1/chat/completions`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use fulmar_inference::chat::ToolCall;
use fulmar_inference::engine::{FinishReason, Logprobs, Usage};
use fulmar_policy::Action;
use serde_json::{Value, json};

use super::auth::Caller;
use super::error::ApiError;
use super::openai::ChatRequest;
use crate::app::App;
use crate::ask::{self, Answer, Part, Question};

/// Answers a conversation, whole or as a stream of events.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request = ChatRequest::parse(&body)?;
    let model = app.models().resolve(&request.model).await?;
    let permit = match app.policy().decide(&principal, Action::ModelRun, &model) {
        Ok(permit) => permit,
        Err(denied) => {
            super::local::record_denied(&app, &principal, &denied).await?;
            return Err(denied.into());
        }
    };
    let question = Question {
        endpoint: "/v1/chat/completions",
        request: request.to_engine()?,
        prompt: request.prompt(),
    };
    let answer = ask::ask(&app, &permit, question).await?;
    let frame = Frame::new(&answer, app.state().clock().now_s(), request.wants_logprobs());
    if request.stream == Some(true) {
        Ok(stream(answer, frame, request.stream_usage()))
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
            Part::Text { text: more, logprob } => {
                if let Some(logprob) = logprob {
                    logprobs.push(logprob_entry(&more, &logprob));
                }
                text += &more;
            }
            Part::Reasoning { text: more } => reasoning += &more,
            Part::Call(call) => calls.push(call_object(&call, calls.len())),
            Part::Done { reason, usage } => {
                let logprobs =
                    if frame.logprobs { json!({ "content": logprobs }) } else { Value::Null };
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
            Part::Failed { message } => return Err(failed(message)),
        }
    }
    Err(failed("the answer ended without an end".into()))
}

fn failed(message: String) -> ApiError {
    ApiError::internal("generate the answer", &std::io::Error::other(message))
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
                Some(Part::Text { text, .. }) if text.is_empty() && !frame.logprobs => {}
                Some(Part::Text { text, logprob }) => {
                    let logprobs = logprob.map_or(
                        Value::Null,
                        |logprob| json!({ "content": [logprob_entry(&text, &logprob)] }),
                    );
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
                Some(Part::Failed { message }) => {
                    let _ = sender.send(failed(message).body()).await;
                    return;
                }
                None => return,
            }
        }
    });
    Sse::new(events(receiver)).keep_alive(KeepAlive::default()).into_response()
}

/// The chunks as server-sent events, and OpenAI's own end mark after them.
fn events(
    receiver: tokio::sync::mpsc::Receiver<Value>,
) -> impl futures_util::Stream<Item = Result<sse::Event, Infallible>> {
    futures_util::stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(chunk) => {
                Some((Ok(sse::Event::default().data(chunk.to_string())), Some(receiver)))
            }
            None => Some((Ok(sse::Event::default().data("[DONE]")), None)),
        }
    })
}

fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        // OpenAI knows no other word for an answer that was cut off.
        FinishReason::Length | FinishReason::Deadline | FinishReason::Cancelled => "length",
    }
}

/// A call of a tool as OpenAI writes it: the arguments as text.
fn call_object(call: &ToolCall, number: usize) -> Value {
    json!({
        "id": format!("call_{number}_{}", uuid::Uuid::now_v7().simple()),
        "type": "function",
        "function": { "name": call.name, "arguments": call.arguments.to_string() },
    })
}

fn usage_object(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

/// How long it took, as llama.cpp's server says it.
fn timings(usage: &Usage) -> Value {
    json!({
        "queue_ms": usage.queue_ms,
        "prompt_ms": usage.prompt_ms,
        "decode_ms": usage.decode_ms,
        "decode_tokens_per_s": tokens_per_s(usage),
    })
}

/// Tokens per second after the first; 0 when there were none.
pub(crate) fn tokens_per_s(usage: &Usage) -> f64 {
    if usage.decode_ms == 0 || usage.completion_tokens < 2 {
        return 0.0;
    }
    f64::from(usage.completion_tokens - 1) * 1000.0 / usage.decode_ms as f64
}

fn logprob_entry(text: &str, logprob: &Logprobs) -> Value {
    let top: Vec<Value> = logprob
        .top
        .iter()
        .map(|token| {
            json!({
                "token": String::from_utf8_lossy(&token.bytes),
                "logprob": token.logprob,
                "bytes": token.bytes,
            })
        })
        .collect();
    json!({ "token": text, "logprob": logprob.chosen, "bytes": text.as_bytes(), "top_logprobs": top })
}
