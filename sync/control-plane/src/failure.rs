//! What a request can end with instead of an answer, as HTTP says it.

use axum::Json;
use axum::response::{IntoResponse, Response};
use fulmar_policy::Denied;
use fulmar_policy::audit::AuditError;
use fulmar_protocol::ApiError;
use fulmar_store::StoreError;
use http::StatusCode;

/// Why a request failed. The first two are the caller's to mend, the rest ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The request is not acceptable.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Stable, for programs.
        code: &'static str,
        /// For people.
        message: String,
    },
    /// Policy said no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The database failed.
    #[error("use the database")]
    Store(#[from] StoreError),
    /// The audit log failed; what was to be recorded did not happen.
    #[error("record what is done")]
    Audit(#[from] AuditError),
    /// Something else failed.
    #[error("{step}: {reason}")]
    Internal {
        /// What was tried.
        step: &'static str,
        /// What went wrong.
        reason: String,
    },
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Failure {
    /// A refusal with a status of the caller's choice.
    pub(crate) fn refused(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::Refused { status, code, message: message.into() }
    }

    /// 400: the request does not say what it should.
    pub(crate) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404: there is no such thing.
    pub(crate) fn not_found(what: &str, id: impl std::fmt::Display) -> Self {
        Self::refused(StatusCode::NOT_FOUND, "not_found", format!("there is no {what} {id}"))
    }

    /// 409: the state of things does not allow it.
    pub(crate) fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::refused(StatusCode::CONFLICT, code, message)
    }

    /// 500, with the reason in the log only.
    pub(crate) fn internal(step: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Internal { step, reason: error.to_string() }
    }

    /// The stable code.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Denied(_) => "denied",
            Self::Store(_) | Self::Audit(_) | Self::Internal { .. } => "internal",
        }
    }

    /// Status and words for the caller; what is ours to mend goes to the log instead.
    pub(crate) fn tell(&self) -> (StatusCode, ApiError) {
        let (status, message) = match self {
            Self::Refused { status, message, .. } => (*status, message.clone()),
            Self::Denied(denied) => (StatusCode::FORBIDDEN, denied.to_string()),
            Self::Store(_) | Self::Audit(_) | Self::Internal { .. } => {
                tracing::error!(error = %chain(self), "failed to answer a request");
                let message = "the control plane failed; its log says why".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, message)
            }
        };
        (status, ApiError { code: self.code().to_owned(), message })
    }
}

/// An error and its sources in one line. Many errors quote their source in their own words: what the
/// line ends with already is not said again.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = error.source();
    }
    text
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, error) = self.tell();
        (status, Json(error)).into_response()
    }
}
