//! Releases: blobs first, then the metadata that names them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_policy::Action;
use fulmar_policy::audit::Outcome;
use fulmar_registry::Digest;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::page_len;
use crate::app::App;
use crate::auth::Operator;
use crate::body::Body;
use crate::failure::Failure;
use crate::{act, blob, mirror, now_s, rollout};

/// Says where an upload begins and goes on, in bytes.
const OFFSET: &str = "upload-offset";
/// Says how long the whole blob is, in bytes.
const LENGTH: &str = "upload-length";

fn digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|e| Failure::invalid("digest_invalid", format!("{e}")))
}

fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| {
        Failure::invalid("header_invalid", format!("{name} is {value:?}, expected a number"))
    })
}

/// `PUT /api/v1/blobs/{digest}`: `Content-Length` for the whole at once; or `Upload-Length` and
/// `Upload-Offset` to go on.
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(text): Path<String>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let digest = digest(&text)?;
    act::decide(&app, &operator.principal, Action::ReleasePublish, &text).await?;
    let headers = request.headers();
    let offset = number(headers, OFFSET)?.unwrap_or(0);
    let size_bytes = match number(headers, LENGTH)? {
        Some(length) => length,
        None => number(headers, header::CONTENT_LENGTH.as_str())?.ok_or_else(|| {
            Failure::refused(
                StatusCode::LENGTH_REQUIRED,
                "length_required",
                "send Content-Length, or Upload-Length",
            )
        })?,
    };
    let size_bytes_max = app.config.limits.blob_upload_bytes_max;
    if size_bytes > size_bytes_max {
        return Err(Failure::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "blob_too_large",
            format!("the blob has {size_bytes} bytes, the limit is {size_bytes_max}"),
        ));
    }
    let body = request.into_body().into_data_stream();
    blob::take(app.blobs.clone(), digest, size_bytes, offset, body).await?;
    let actor = operator.principal.audit_name();
    let detail = json!({ "size_bytes": size_bytes });
    act::note(&app, &actor, "release.upload", &text, Outcome::Completed, detail).await?;
    Ok(StatusCode::CREATED)
}

/// `HEAD /api/v1/blobs/{digest}`: 200 when it is here, else 404 with `Upload-Offset`.
pub(super) async fn upload_state(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(text): Path<String>,
) -> Result<Response, Failure> {
    let digest = digest(&text)?;
    act::decide(&app, &operator.principal, Action::ReleasePublish, &text).await?;
    let status = match tokio::fs::try_exists(app.blobs.path(&digest)).await {
        Ok(true) => StatusCode::OK,
        Ok(false) => StatusCode::NOT_FOUND,
        Err(error) => return Err(Failure::internal("look for a blob", error)),
    };
    let offset = [(OFFSET, app.blobs.bytes_present(&digest).to_string())];
    Ok((status, offset).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    /// Base64 of each file, by its name in the repository.
    files: BTreeMap<String, String>,
}

/// `POST /api/v1/registry/metadata`: verified and switched to as a whole.
pub(super) async fn publish(
    State(app): State<Arc<App>>,
    operator: Operator,
    Body(request): Body<Metadata>,
) -> Result<Json<mirror::Taken>, Failure> {
    if request.files.len() > mirror::FILES_MAX {
        return Err(Failure::invalid(
            "files_too_many",
            format!("{} files, the limit is {}", request.files.len(), mirror::FILES_MAX),
        ));
    }
    let mut files = BTreeMap::new();
    for (name, text) in request.files {
        let bytes = STANDARD.decode(text).map_err(|e| {
            Failure::invalid("file_encoding", format!("files.{name} is not base64: {e}"))
        })?;
        files.insert(name, bytes);
    }
    let by = operator.principal.subject.clone();
    let blobs = app.blobs.clone();
    let taken =
        act::change(&app, &operator.principal, Action::ReleasePublish, "registry", move |tx| {
            let taken = mirror::take(tx, &blobs, &files, &by, now_s())?;
            let detail = json!(taken);
            Ok((taken, detail))
        })
        .await?;
    Ok(Json(taken))
}

/// `GET /api/v1/registry/metadata/{file}`: what is mirrored.
pub(super) async fn metadata(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(file): Path<String>,
) -> Result<Response, Failure> {
    let name = file.clone();
    let bytes = act::read(&app, &operator.principal, Action::FleetRead, "registry", move |c| {
        mirror::file(c, &name)
    })
    .await?
    .ok_or_else(|| Failure::not_found("metadata file", &file))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    model: Option<String>,
    limit: Option<u32>,
}

/// `GET /api/v1/releases?model=&limit=`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    operator: Operator,
    Query(which): Query<Which>,
) -> Result<Json<Value>, Failure> {
    let model = which
        .model
        .map(|text| text.parse::<fulmar_registry::ModelName>())
        .transpose()
        .map_err(|e| Failure::invalid("model_invalid", format!("model: {e}")))?
        .map(|name| name.to_string());
    let releases = act::read(&app, &operator.principal, Action::FleetRead, "-", move |c| {
        rollout::releases(c, model.as_deref(), page_len(which.limit))
    })
    .await?;
    Ok(Json(json!({ "releases": releases })))
}
