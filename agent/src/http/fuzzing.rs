//! What reads requests, for the fuzz target: each as far as it goes without a model.

use super::body;
use super::completions::CompletionRequest;
use super::embeddings::EmbeddingsRequest;
use super::ollama::ShowRequest;
use super::ollama::request::{ChatRequest, EmbedRequest, GenerateRequest};
use super::{deadline, openai};

/// Tokens of context, as on a small device.
const CONTEXT_TOKENS_MAX: usize = 4096;

/// A body of `/v1/chat/completions`.
pub fn chat(bytes: &[u8]) {
    if let Ok(request) = openai::ChatRequest::parse(bytes) {
        let _ = (request.to_engine(), request.prompt(), request.field_names());
    }
}

/// A body of `/v1/completions`.
pub fn completion(bytes: &[u8]) {
    if let Ok(request) = CompletionRequest::parse(bytes)
        && let Ok(prompts) = request.prompts()
    {
        for (prompt, _) in prompts {
            let _ = request.to_engine(prompt);
        }
    }
}

/// A body of `/v1/embeddings`.
pub fn embeddings(bytes: &[u8]) {
    if let Ok(request) = EmbeddingsRequest::parse(bytes) {
        let _ = request.inputs();
    }
}

/// A body of `/api/chat`.
pub fn ollama_chat(bytes: &[u8]) {
    if let Ok(request) = ChatRequest::parse(bytes) {
        let _ = (request.to_engine(CONTEXT_TOKENS_MAX), request.prompt(), request.keep_alive());
    }
}

/// A body of `/api/generate`.
pub fn ollama_generate(bytes: &[u8]) {
    if let Ok(request) = GenerateRequest::parse(bytes) {
        let _ = (request.to_engine(CONTEXT_TOKENS_MAX), request.prompt(), request.keep_alive());
    }
}

/// A body of `/api/embed`.
pub fn ollama_embed(bytes: &[u8]) {
    if let Ok(request) = EmbedRequest::parse(bytes) {
        let _ = (request.inputs(), request.keep_alive());
    }
}

/// A body of `/api/show`.
pub fn ollama_show(bytes: &[u8]) {
    let _ = body::object(bytes).and_then(body::fields::<ShowRequest>);
}

/// The header `X-Request-Timeout`.
pub fn patience(text: &str) {
    let _ = deadline::patience(text);
}
