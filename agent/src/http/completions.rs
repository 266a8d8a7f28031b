//! `/v1/completions`: prompts that the model goes on from, without a chat template.
//!
//! `echo` and `suffix` are refused; several prompts run at once, each with its own audit entry,
//! and are answered in order.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fulmar_inference::engine::{FinishReason, LOGPROBS_MAX, Logprobs, Prompt, Request, Usage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::auth::Caller;
use super::body;
use super::deadline::Deadline;
use super::error::{ApiError, FieldNames};
use super::generation::Generation;
use super::prompts::Prompts;
use super::reply::{events, finish_name, timings, token_text, usage_object};
use crate::app::App;
use crate::ask::{self, Answer, Part, Question};

/// Prompts of one request at most; the principal's limit on requests in flight holds as well.
const PROMPTS_MAX: usize = 64;
/// Tokens of an answer where the request names none: OpenAI's.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// A request to `/v1/completions`.
#[derive(Debug, Clone)]
pub(super) struct CompletionRequest {
    generation: Generation,
    own: Own,
}

/// The fields that only completions have.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    model: String,
    prompt: Prompts,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    logprobs: Option<u8>,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(default)]
    suffix: Option<String>,
    #[serde(default)]
    best_of: Option<u32>,
}

impl CompletionRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut object = body::object(body)?;
        let generation = Generation::take(&mut object)?;
        let own: Own = body::fields(object)?;
        let refused = |field, reason: String| Err(ApiError::invalid(Some(field), reason));
        if own.echo == Some(true) {
            return refused("echo", "echo is true; the prompt is not given back".into());
        }
        if own.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return refused("suffix", "suffix is set; text is only added at the end".into());
        }
        if let Some(n) = own.best_of.filter(|n| *n != 1) {
            return refused("best_of", format!("best_of is {n}; only 1 is served"));
        }
        if own.max_tokens == Some(0) {
            return refused("max_tokens", "max_tokens is 0; expected 1 or more".into());
        }
        if let Some(n) = own.logprobs.filter(|n| *n > LOGPROBS_MAX) {
            return refused("logprobs", format!("logprobs is {n}; expected 0 to {LOGPROBS_MAX}"));
        }
        Ok(Self { generation, own })
    }

    /// One prompt per choice, each with what the audit log's digest covers.
    pub(super) fn prompts(&self) -> Result<Vec<(Prompt, Value)>, ApiError> {
        let each = self.own.prompt.each().into_iter();
        let prompts: Vec<_> =
            each.map(|(prompt, sent)| (prompt, json!({ "prompt": sent }))).collect();
        match prompts.len() {
            0 => Err(ApiError::invalid(Some("prompt"), "prompt is empty; expected one or more")),
            found if found > PROMPTS_MAX => Err(ApiError::invalid(
                Some("prompt"),
                format!("prompt has {found} entries; expected at most {PROMPTS_MAX}"),
            )),
            _ => Ok(prompts),
        }
    }

    pub(super) fn to_engine(&self, prompt: Prompt) -> Result<Request, ApiError> {
        Ok(Request {
            prompt,
            sampling: self.generation.sampling()?,
            max_tokens: Some(self.own.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT)),
            stop: self.generation.stops(),
            constraint: self.generation.constraint()?,
            logprobs: self.own.logprobs,
            ..Request::default()
        })
    }
}

/// Goes on from prompts, whole or as a stream of events.
pub(crate) async fn complete(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    Deadline(deadline): Deadline,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request = CompletionRequest::parse(&body)?;
    let prompts = request.prompts()?;
    let permit = super::local::permit(&app, &principal, &request.own.model).await?;
    let constraint = request.generation.constraint_field();
    let names = FieldNames { prompt: "prompt", constraint };
    // One that is refused takes back those before it: dropped answers are cancelled.
    let mut answers = Vec::with_capacity(prompts.len());
    for (prompt, recorded) in prompts {
        let question = Question {
            endpoint: "/v1/completions",
            request: request.to_engine(prompt)?,
            prompt: recorded,
            deadline,
        };
        let answer = ask::ask(&app, &permit, question).await;
        answers.push(answer.map_err(|error| ApiError::of_ask(error, names))?);
    }
    let frame = Frame::new(&answers, app.state().clock().now_s());
    if request.generation.is_stream() {
        Ok(stream(answers, frame, request.generation.stream_usage()))
    } else {
        whole(answers, &frame).await
    }
}

/// What all objects of one request's answers have in common.
struct Frame {
    id: String,
    created_s: i64,
    model: String,
    entries: Vec<u64>,
}

impl Frame {
    fn new(answers: &[Answer], created_s: i64) -> Self {
        Self {
            id: format!("cmpl-{}", uuid::Uuid::now_v7().simple()),
            created_s,
            model: answers.first().map(|answer| answer.model.name.clone()).unwrap_or_default(),
            entries: answers.iter().map(|answer| answer.entry).collect(),
        }
    }

    fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
            // Where the answers stand in the audit log.
            "fulmar": { "audit_entries": self.entries },
        })
    }
}

/// The log-probabilities of tokens, side by side as completions write them.
#[derive(Debug, Default)]
struct Columns {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Value>,
    /// In characters from the answer's beginning.
    text_offset: Vec<usize>,
    characters: usize,
}

impl Columns {
    fn extend(&mut self, logprobs: &[Logprobs]) {
        for token in logprobs {
            let text = token_text(&token.bytes);
            self.text_offset.push(self.characters);
            self.characters += text.chars().count();
            self.tokens.push(text);
            self.token_logprobs.push(token.chosen);
            let top: Map<String, Value> = token
                .top
                .iter()
                // Two tokens may read alike; the likelier one stands first and stays.
                .rev()
                .map(|top| (token_text(&top.bytes), top.logprob.into()))
                .collect();
            self.top_logprobs.push(Value::Object(top));
        }
    }

    /// What came since the last call; null where nothing did.
    fn take(&mut self) -> Value {
        if self.tokens.is_empty() {
            return Value::Null;
        }
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.token_logprobs),
            "top_logprobs": std::mem::take(&mut self.top_logprobs),
            "text_offset": std::mem::take(&mut self.text_offset),
        })
    }
}

fn choice(index: usize, text: &str, logprobs: Value, finish: Option<FinishReason>) -> Value {
    json!({
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish.map(finish_name),
    })
}

/// The tokens of several answers; the times of the slowest.
fn add(total: &mut Usage, usage: &Usage) {
    total.prompt_tokens += usage.prompt_tokens;
    total.completion_tokens += usage.completion_tokens;
    total.cached_tokens += usage.cached_tokens;
    total.queue_ms = total.queue_ms.max(usage.queue_ms);
    total.prompt_ms = total.prompt_ms.max(usage.prompt_ms);
    total.decode_us = total.decode_us.max(usage.decode_us);
}

async fn whole(answers: Vec<Answer>, frame: &Frame) -> Result<Response, ApiError> {
    let mut choices = Vec::with_capacity(answers.len());
    let mut total = Usage::default();
    for (index, mut answer) in answers.into_iter().enumerate() {
        let (mut text, mut columns) = (String::new(), Columns::default());
        let reason = loop {
            match answer.next().await {
                Some(Part::Text { text: more, logprobs }) => {
                    columns.extend(&logprobs);
                    text += &more;
                }
                // Nothing is taken apart without a chat template.
                Some(Part::Reasoning { .. } | Part::Call(_)) => {}
                Some(Part::Done { reason, usage }) => {
                    add(&mut total, &usage);
                    break reason;
                }
                Some(Part::Failed { failure }) => return Err(failure.into()),
                None => return Err(ApiError::broken("the answer ended without an end")),
            }
        };
        choices.push(choice(index, &text, columns.take(), Some(reason)));
    }
    let mut object = frame.object(choices);
    object["usage"] = usage_object(&total);
    object["timings"] = timings(&total);
    Ok(Json(object).into_response())
}

fn stream(answers: Vec<Answer>, frame: Frame, with_usage: bool) -> Response {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Value>(1);
    tokio::spawn(async move {
        let mut total = Usage::default();
        for (index, mut answer) in answers.into_iter().enumerate() {
            let mut columns = Columns::default();
            loop {
                // A closed channel is a client that went away: dropping the answers cancels them.
                let part = tokio::select! {
                    part = answer.next() => part,
                    () = sender.closed() => return,
                };
                let (choice, ended) = match part {
                    Some(Part::Text { text, logprobs }) => {
                        columns.extend(&logprobs);
                        let logprobs = columns.take();
                        if text.is_empty() && logprobs.is_null() {
                            continue;
                        }
                        (choice(index, &text, logprobs, None), false)
                    }
                    Some(Part::Reasoning { .. } | Part::Call(_)) => continue,
                    Some(Part::Done { reason, usage }) => {
                        add(&mut total, &usage);
                        (choice(index, "", Value::Null, Some(reason)), true)
                    }
                    Some(Part::Failed { failure }) => {
                        let _ = sender.send(ApiError::from(failure).body()).await;
                        return;
                    }
                    None => return,
                };
                if sender.send(frame.object(vec![choice])).await.is_err() {
                    return;
                }
                if ended {
                    break;
                }
            }
        }
        if with_usage {
            let mut object = frame.object(Vec::new());
            object["usage"] = usage_object(&total);
            object["timings"] = timings(&total);
            let _ = sender.send(object).await;
        }
    });
    events(receiver)
}

#[cfg(test)]
mod tests {
    use fulmar_inference::engine::TopToken;

    use super::*;

    fn parse(fields: &str) -> Result<CompletionRequest, ApiError> {
        let body = format!(r#"{{"model":"m","prompt":"a"{fields}}}"#);
        let request = CompletionRequest::parse(body.as_bytes())?;
        for (prompt, _) in request.prompts()? {
            request.to_engine(prompt)?;
        }
        Ok(request)
    }

    #[test]
    fn what_is_not_served_is_refused_by_its_field() {
        for (fields, param) in [
            (r#","echo":true"#, "echo"),
            (r#","suffix":"b""#, "suffix"),
            (r#","best_of":3"#, "best_of"),
            (r#","n":3"#, "n"),
            (r#","max_tokens":0"#, "max_tokens"),
            (r#","logprobs":21"#, "logprobs"),
            (r#","logprobs":true"#, "logprobs"),
            (r#","temperature":"hot""#, "temperature"),
            (r#","messages":[]"#, "messages"),
        ] {
            let body = parse(fields).unwrap_err().body();
            assert_eq!(body["error"]["param"], param, "{body}");
            assert!(body["error"]["message"].as_str().unwrap().contains(param), "{body}");
        }
        assert!(parse(r#","echo":false,"suffix":null,"best_of":1,"n":1,"user":"u""#).is_ok());
    }

    #[test]
    fn every_shape_of_prompt_is_understood() {
        for (prompt, count) in
            [(r#""a""#, 1), (r#"["a","b"]"#, 2), ("[1,2]", 1), ("[[1],[2,3],[4]]", 3)]
        {
            let body = format!(r#"{{"model":"m","prompt":{prompt}}}"#);
            let request = CompletionRequest::parse(body.as_bytes()).unwrap();
            assert_eq!(request.prompts().unwrap().len(), count, "{prompt}");
        }
        let none = CompletionRequest::parse(br#"{"model":"m","prompt":[]}"#).unwrap();
        assert_eq!(none.prompts().unwrap_err().body()["error"]["param"], "prompt");
    }

    #[test]
    fn log_probabilities_stand_side_by_side_and_go_on_across_chunks() {
        let token = |text: &str| Logprobs {
            chosen: -0.5,
            bytes: text.into(),
            top: vec![TopToken { id: 1, logprob: -0.5, bytes: text.into() }],
        };
        let mut columns = Columns::default();
        columns.extend(&[token("né"), token("x")]);
        let first = columns.take();
        assert_eq!(first["tokens"], json!(["né", "x"]));
        assert_eq!(first["text_offset"], json!([0, 2]));
        assert_eq!(first["top_logprobs"][0], json!({ "né": -0.5 }));
        assert!(columns.take().is_null());
        columns.extend(&[token("y")]);
        assert_eq!(columns.take()["text_offset"], json!([3]));
    }

    proptest::proptest! {
        #[test]
        fn any_body_is_read_or_refused(body in crate::http::body::any::body()) {
            let body = crate::http::body::any::only(&body, &["prompt"]);
            if let Ok(request) = CompletionRequest::parse(&body) {
                for (prompt, _) in request.prompts().unwrap_or_default() {
                    let _ = request.to_engine(prompt);
                }
            }
        }
    }
}
