//! JSON bodies, with errors that name the field.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use http::{StatusCode, header};
use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// A JSON body of type `T`. Its limit is the route's body limit.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let is_json = kind
            .and_then(|kind| kind.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            return Err(Failure::refused(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media_type",
                format!("the body is {kind:?}, expected application/json"),
            ));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(body_failure)?;
        read(&bytes).map(Self)
    }
}

/// Reads the bytes of a body.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|e| Failure::invalid("body_invalid", format!("read the JSON body: {e}")))
}

/// Why a body could not be taken in.
pub(crate) fn body_failure(rejection: BytesRejection) -> Failure {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return too_large();
    }
    Failure::refused(rejection.status(), "body_incomplete", rejection.body_text())
}

/// 413, with the limit.
pub(crate) fn too_large() -> Failure {
    Failure::refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        format!("the body is larger than {} bytes", fulmar_protocol::BODY_BYTES_MAX),
    )
}
