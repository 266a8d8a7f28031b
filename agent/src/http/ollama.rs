//! Ollama's API, as far as it is served: the same way from request to answer as OpenAI's routes,
//! with the same tokens, permits and audit entries.
//!
//! Deliberately absent: pulling, pushing, creating and deleting models over HTTP (what runs here is
//! signed), and images.

mod answer;
pub(super) mod request;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use fulmar_inference::engine::KeepAlive;
use fulmar_policy::Action;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::Caller;
use super::deadline::Deadline;
use super::error::{self, ApiError, FieldNames, Said};
use super::{body, local};
use crate::app::App;
use crate::ask::{self, EmbedQuestion, Question};
use crate::models::{Installed, LoadedModel};
use answer::Shape;
use request::{ChatRequest, EmbedRequest, GenerateRequest};

/// Its routes.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/version", get(version))
        .route("/api/tags", get(tags))
        .route("/api/ps", get(ps))
        .route("/api/show", post(show))
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/embed", post(embed))
        .method_not_allowed_fallback(error::method_not_allowed)
        .route("/api/{*route}", any(not_served))
        .layer(axum::middleware::map_response(in_ollamas_shape))
}

/// An error in Ollama's shape: `{"error": "…"}`. Status and headers stay: what to do about an error
/// does not depend on its shape.
async fn in_ollamas_shape(response: Response) -> Response {
    let Some(Said(message)) = response.extensions().get().cloned() else { return response };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(axum::http::header::CONTENT_LENGTH);
    (parts, Json(json!({ "error": message }))).into_response()
}

/// What Ollama has and this agent has not, or nobody has.
async fn not_served(Path(route): Path<String>) -> ApiError {
    let instead = match route.split('/').next().unwrap_or_default() {
        "pull" | "push" | "create" | "copy" | "delete" | "blobs" => {
            "what runs here is signed: models come and go by `fulmar pull` and `fulmar rm`, or by \
             the fleet"
        }
        "embeddings" => "send `model` and `input` to /api/embed",
        _ => {
            "there are /api/chat, /api/generate, /api/embed, /api/tags, /api/show, /api/ps and \
             /api/version"
        }
    };
    ApiError::no_route(&format!("/api/{route}"), instead)
}

/// `/api/version`.
async fn version(Caller(_): Caller) -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// `/api/tags`: the models that the caller may see.
async fn tags(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
) -> Result<Json<Value>, ApiError> {
    app.policy().decide(&principal, Action::ModelList, "-")?;
    let models = app.models().installed().await?;
    let seen: Vec<Value> = models
        .iter()
        .filter(|model| app.policy().decide(&principal, Action::ModelShow, &model.name).is_ok())
        .map(|model| {
            json!({
                "name": model.name,
                "model": model.name,
                "modified_at": time(model.installed_at_s),
                "size": model.facts.size_bytes,
                "digest": model.digest.trim_start_matches("sha256:"),
                "details": details(model),
            })
        })
        .collect();
    Ok(Json(json!({ "models": seen })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowRequest {
    model: String,
    #[serde(default, rename = "verbose")]
    _verbose: Option<bool>,
}

/// `/api/show`: one model.
async fn show(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let request: ShowRequest = body::fields(body::object(&body)?)?;
    let name = app.models().resolve(&request.model).await?;
    app.policy().decide(&principal, Action::ModelShow, &name)?;
    let model = app.models().find(&name).await?;
    let architecture = &model.facts.architecture;
    Ok(Json(json!({
        "modified_at": time(model.installed_at_s),
        "license": model.facts.license,
        "details": details(&model),
        "model_info": {
            "general.architecture": architecture,
            "general.parameter_count": model.facts.parameters,
            (format!("{architecture}.context_length")): model.facts.context_tokens,
        },
        "capabilities": ["completion", "tools", "embedding"],
    })))
}

/// `/api/ps`: the models in memory.
async fn ps(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
) -> Result<Json<Value>, ApiError> {
    app.policy().decide(&principal, Action::ModelList, "-")?;
    let now_s = app.state().clock().now_s();
    let mut loaded = Vec::new();
    for status in app.engine().status().models {
        let Some((name, digest)) = status.info.name.split_once('@') else { continue };
        if app.policy().decide(&principal, Action::ModelShow, name).is_err() {
            continue;
        }
        let model = app.models().find(&status.info.name).await?;
        let planned = status.info.planned;
        let size = planned.weights_bytes + planned.kv_bytes + planned.scratch_bytes;
        let expires_at = status.expires_in_ms.map(|ms| time(now_s + (ms / 1000).cast_signed()));
        loaded.push(json!({
            "name": name,
            "model": name,
            "size": size,
            "size_vram": 0,
            "digest": digest.trim_start_matches("sha256:"),
            "details": details(&model),
            "expires_at": expires_at,
            "context_length": status.info.context_tokens,
        }));
    }
    Ok(Json(json!({ "models": loaded })))
}

/// `/api/embed`: texts to vectors.
async fn embed(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    Deadline(deadline): Deadline,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let begun = std::time::Instant::now();
    let request = EmbedRequest::parse(&body)?;
    let (inputs, prompt) = request.inputs()?;
    let keep_alive = request.keep_alive()?;
    let permit = local::permit(&app, &principal, request.model()).await?;
    let question = EmbedQuestion { endpoint: "/api/embed", inputs, prompt, deadline };
    let names = FieldNames { prompt: "input", constraint: "input" };
    let embedded =
        ask::embed(&app, &permit, question).await.map_err(|e| ApiError::of_ask(e, names))?;
    keep(&app, &embedded.model, keep_alive).await;
    Ok(Json(json!({
        "model": embedded.model.name,
        "embeddings": embedded.embeddings.vectors,
        "total_duration": u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX),
        "load_duration": 0,
        "prompt_eval_count": embedded.embeddings.prompt_tokens,
    })))
}

/// `/api/chat`: the next message of a conversation.
async fn chat(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    Deadline(deadline): Deadline,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request = ChatRequest::parse(&body)?;
    let permit = local::permit(&app, &principal, request.model()).await?;
    if request.is_load() {
        let model = app.loaded(permit.resource()).await?;
        keep(&app, &model, request.keep_alive()).await;
        return Ok(answer::loaded(Shape::Chat, &model.name));
    }
    let question = Question {
        endpoint: "/api/chat",
        request: request.to_engine(app.config().engine.context_tokens_max)?,
        prompt: request.prompt(),
        deadline,
    };
    let names = FieldNames { prompt: "messages", constraint: "format" };
    let answer = ask::ask(&app, &permit, question).await.map_err(|e| ApiError::of_ask(e, names))?;
    keep(&app, &answer.model, request.keep_alive()).await;
    answer::send(answer, Shape::Chat, request.is_stream()).await
}

/// `/api/generate`: an answer to one prompt.
async fn generate(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    Deadline(deadline): Deadline,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request = GenerateRequest::parse(&body)?;
    let permit = local::permit(&app, &principal, request.model()).await?;
    if request.is_load() {
        let model = app.loaded(permit.resource()).await?;
        keep(&app, &model, request.keep_alive()).await;
        return Ok(answer::loaded(Shape::Generate, &model.name));
    }
    let question = Question {
        endpoint: "/api/generate",
        request: request.to_engine(app.config().engine.context_tokens_max)?,
        prompt: request.prompt(),
        deadline,
    };
    let names = FieldNames { prompt: "prompt", constraint: "format" };
    let answer = ask::ask(&app, &permit, question).await.map_err(|e| ApiError::of_ask(e, names))?;
    keep(&app, &answer.model, request.keep_alive()).await;
    answer::send(answer, Shape::Generate, request.is_stream()).await
}

/// From now on the model stays loaded for as long as the caller wishes. A wish and no more: a model
/// that has gone meanwhile, or an engine under orders, leave the answer as it is.
async fn keep(app: &App, model: &LoadedModel, wish: Option<KeepAlive>) {
    let Some(wish) = wish else { return };
    if let Err(error) = app.engine().keep_alive(&model.engine_name, wish).await {
        tracing::debug!(model = %model.name, %error, "keep_alive not taken");
    }
}

fn details(model: &Installed) -> Value {
    let parameters = match model.facts.parameters {
        0..1_000_000_000 => format!("{:.1}M", model.facts.parameters as f64 / 1e6),
        more => format!("{:.1}B", more as f64 / 1e9),
    };
    json!({
        "format": "gguf",
        "family": model.facts.architecture,
        "families": [model.facts.architecture],
        "parameter_size": parameters,
        "quantization_level": model.facts.quantization,
    })
}

/// Seconds since 1970 as RFC 3339.
fn time(at_s: i64) -> String {
    jiff::Timestamp::from_second(at_s).unwrap_or_default().to_string()
}
