//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use fulmar_inference::engine::Refused;
use fulmar_policy::Denied;
use fulmar_policy::budget::Exceeded;
use fulmar_policy::token::TokenError;
use fulmar_registry::Barred;
use serde_json::json;

use super::deadline::HEADER;
use crate::ask::{AskError, Failure};
use crate::causes;
use crate::models::ModelError;

/// An error's words, beside its response: for routes that put them in another shape.
#[derive(Debug, Clone)]
pub(crate) struct Said(pub(crate) String);

/// A refusal or failure on its way to the client.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    /// OpenAI's class of errors.
    kind: &'static str,
    /// Stable, for programs.
    code: &'static str,
    message: String,
    /// The request's field at fault.
    param: Option<String>,
    retry_after_ms: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        Self { status, kind, code, message, param: None, retry_after_ms: None }
    }

    /// A request that cannot be understood: 400.
    pub(crate) fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_request", message.into());
        error.param = param.map(str::to_owned);
        error
    }

    /// No proof of who asks: 401.
    pub(crate) fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_token", message.into())
    }

    /// A path that is not there: 404. `instead` says what is.
    pub(crate) fn no_route(path: &str, instead: &str) -> Self {
        let message = format!("no route {path}; {instead}");
        Self::new(StatusCode::NOT_FOUND, "route_not_found", message)
    }

    /// Something here went wrong: 500. The cause goes to the log, not to the client.
    pub(crate) fn internal(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %causes::line(error), "failed to {what}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            format!("failed to {what}; the agent's log says why"),
        )
    }

    /// What the client sees.
    pub(crate) fn body(&self) -> serde_json::Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        response.extensions_mut().insert(Said(self.message));
        if let Some(wait_ms) = self.retry_after_ms {
            // Whole seconds, rounded up: RFC 9110, section 10.2.3.
            let seconds = HeaderValue::from(wait_ms.div_ceil(1000).max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"fulmar\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        Self::new(StatusCode::FORBIDDEN, "denied", denied.to_string())
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Store(error) => Self::internal("look the token up", &error),
            TokenError::Expired { .. } => {
                Self::new(StatusCode::UNAUTHORIZED, "token_expired", error.to_string())
            }
            TokenError::Revoked { .. }
            | TokenError::RevokedByOwner { .. }
            | TokenError::KeyRevoked { .. } => {
                Self::new(StatusCode::UNAUTHORIZED, "token_revoked", error.to_string())
            }
            error => Self::unauthenticated(error.to_string()),
        }
    }
}

impl From<Exceeded> for ApiError {
    fn from(exceeded: Exceeded) -> Self {
        let mut error =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "budget_exceeded", exceeded.to_string());
        error.retry_after_ms = Some(exceeded.retry_after_ms());
        error
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Late { .. } => {
                let text = format!("the answer was {failure} ({HEADER})");
                Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", text)
            }
            Failure::Broken(reason) => {
                Self::internal("generate the answer", &std::io::Error::other(reason))
            }
        }
    }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        let text = causes::line(&error);
        match error {
            ModelError::Name { .. } | ModelError::NotInstalled { .. } => {
                let mut error = Self::new(StatusCode::NOT_FOUND, "model_not_found", text);
                error.param = Some("model".into());
                error
            }
            ModelError::NoRoom { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_room", text)
            }
            ModelError::Load { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_not_loadable", text)
            }
            ModelError::Barred { barred, .. } => {
                let code = match barred {
                    Barred::Model { .. } => "model_revoked",
                    Barred::Device { .. } => "device_revoked",
                    Barred::Offline { .. } => "offline_too_long",
                    Barred::Unreadable { .. } => "trust_unreadable",
                };
                Self::new(StatusCode::FORBIDDEN, code, text)
            }
            ModelError::Verify { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_not_verified", text)
            }
            ModelError::Store(error) => Self::internal("look the model up", &error),
        }
    }
}

/// Which fields of a request hold what the engine may refuse.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FieldNames {
    /// The prompt.
    pub(crate) prompt: &'static str,
    /// What the answer must look like.
    pub(crate) constraint: &'static str,
}

impl ApiError {
    /// Why a question was not answered, in the words of the request that asked it.
    pub(crate) fn of_ask(error: AskError, names: FieldNames) -> Self {
        match error {
            AskError::Exceeded(exceeded) => exceeded.into(),
            AskError::Model(error) => error.into(),
            AskError::Refused(refused) => Self::of_refused(refused, names),
            AskError::Audit(error) => Self::internal("open the audit entry", &error),
            AskError::Failed(failure) => failure.into(),
        }
    }

    /// An answer that was begun and is not whole.
    pub(crate) fn broken(reason: impl Into<String>) -> Self {
        Failure::Broken(reason.into()).into()
    }

    fn of_refused(refused: Refused, names: FieldNames) -> Self {
        let text = causes::line(&refused);
        match refused {
            Refused::QueueFull { retry_after_ms, .. }
            | Refused::QueueBytes { retry_after_ms, .. } => {
                let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", text);
                error.retry_after_ms = Some(retry_after_ms);
                error
            }
            Refused::ModelNotLoaded { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_not_loaded", text)
            }
            Refused::PromptTooLong { .. } => {
                let mut error = Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", text);
                error.param = Some(names.prompt.into());
                error
            }
            Refused::Invalid { field: "prompt", reason } => {
                let field = names.prompt;
                Self::invalid(Some(field), format!("{field}: {reason}"))
            }
            Refused::Invalid { field, .. } => Self::invalid(Some(field), text),
            Refused::Constraint(_) => Self::invalid(Some(names.constraint), text),
            Refused::Template(_) => Self::invalid(Some(names.prompt), text),
            Refused::ShuttingDown => {
                let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", text);
                error.retry_after_ms = Some(5_000);
                error
            }
        }
    }
}

/// A path that is not there: 404.
pub(crate) async fn not_found(uri: Uri) -> ApiError {
    let there = "there are /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings, \
                 Ollama's below /api, /health and /metrics";
    ApiError::no_route(uri.path(), there)
}

/// A path that is there, asked for in the wrong way: 405.
pub(crate) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// A bug in a handler ends its request, not the agent.
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> Response {
    tracing::error!("a request handler panicked");
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "failed to answer; the agent's log says why".into(),
    )
    .into_response()
}
