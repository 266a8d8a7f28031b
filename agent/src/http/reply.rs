//! What answers of all routes have in common.

use std::convert::Infallible;

use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use fulmar_inference::engine::{FinishReason, Logprobs, TopToken, Usage};
use serde_json::{Value, json};

/// Chunks as server-sent events, and OpenAI's own end mark after them.
pub(crate) fn events(receiver: tokio::sync::mpsc::Receiver<Value>) -> Response {
    let events = futures_util::stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        let (data, receiver) = match receiver.recv().await {
            Some(chunk) => (chunk.to_string(), Some(receiver)),
            None => ("[DONE]".to_owned(), None),
        };
        Some((Ok::<_, Infallible>(sse::Event::default().data(data)), receiver))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// OpenAI's word for an answer's end.
pub(crate) fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        // OpenAI knows no other word for an answer that was cut off.
        FinishReason::Length | FinishReason::Deadline | FinishReason::Cancelled => "length",
    }
}

/// Tokens, in OpenAI's words.
pub(crate) fn usage_object(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

/// How long it took, as llama.cpp's server says it.
pub(crate) fn timings(usage: &Usage) -> Value {
    json!({
        "queue_ms": usage.queue_ms,
        "prompt_ms": usage.prompt_ms,
        "decode_ms": usage.decode_us as f64 / 1000.0,
        "decode_tokens_per_s": tokens_per_s(usage),
    })
}

/// Tokens per second after the first; 0 when there were none.
pub(crate) fn tokens_per_s(usage: &Usage) -> f64 {
    if usage.decode_us == 0 || usage.completion_tokens < 2 {
        return 0.0;
    }
    f64::from(usage.completion_tokens - 1) * 1e6 / usage.decode_us as f64
}

/// A token's text; what is no whole character shows as a replacement mark.
pub(crate) fn token_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A token with its log-probability and the most likely ones, as chat completions and Ollama write it.
pub(crate) fn token_object(token: &Logprobs) -> Value {
    let top: Vec<Value> = token.top.iter().map(top_token).collect();
    json!({
        "token": token_text(&token.bytes),
        "logprob": token.chosen,
        "bytes": token.bytes,
        "top_logprobs": top,
    })
}

/// One of the most likely tokens.
fn top_token(token: &TopToken) -> Value {
    json!({ "token": token_text(&token.bytes), "logprob": token.logprob, "bytes": token.bytes })
}
