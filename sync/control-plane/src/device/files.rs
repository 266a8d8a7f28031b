//! Metadata and blobs, as bytes.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use fulmar_registry::Digest;
use http::{HeaderMap, StatusCode, header};
use rusqlite::Connection;

use super::peer::Device;
use crate::app::App;
use crate::failure::Failure;
use crate::{blob, director, mirror, now_s};

/// Longest name of a metadata file, in bytes.
const NAME_BYTES_MAX: usize = 200;

/// `GET /device/v1/registry/{file}`.
pub(super) async fn registry(
    State(app): State<Arc<App>>,
    _device: Device,
    Path(file): Path<String>,
) -> Result<Response, Failure> {
    if file.len() > NAME_BYTES_MAX {
        return Err(unknown(&file[..0]));
    }
    let name = file.clone();
    let bytes = app.store.read(move |c| mirror::file(c, &name)).await?;
    bytes.map(metadata).ok_or_else(|| unknown(&file))
}

/// `GET /device/v1/director/{file}`: this device's own and no other's.
pub(super) async fn director(
    State(app): State<Arc<App>>,
    device: Device,
    Path(file): Path<String>,
) -> Result<Response, Failure> {
    if let Some(version) = file.strip_suffix(".root.json") {
        let version: u64 = version.parse().map_err(|_| unknown(&file))?;
        let bytes = app.store.read(move |c| director::root(c, Some(version))).await?;
        return bytes.map(metadata).ok_or_else(|| unknown(&file));
    }
    if !["timestamp.json", "snapshot.json", "targets.json"].contains(&file.as_str()) {
        return Err(unknown(&file));
    }
    let worker = Arc::clone(&app);
    let minted = app.store.write(move |tx| worker.director.minted(tx, &device.id, now_s())).await?;
    Ok(metadata(match file.as_str() {
        "timestamp.json" => minted.timestamp,
        "snapshot.json" => minted.snapshot,
        _ => minted.targets,
    }))
}

/// `GET /device/v1/blobs/{digest}`: of what this device should hold, and of what all may.
pub(super) async fn blob(
    State(app): State<Arc<App>>,
    device: Device,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let digest: Digest =
        digest.parse().map_err(|e| Failure::invalid("digest_invalid", format!("{e}")))?;
    let assigned = app.store.read(move |c| is_assigned(c, &device.id, &digest)).await?;
    if !assigned {
        return Err(Failure::refused(
            StatusCode::NOT_FOUND,
            "blob_not_assigned",
            format!("blob {digest} is not part of what this device should hold"),
        ));
    }
    blob::serve(&app.blobs, digest, &headers).await
}

fn is_assigned(connection: &Connection, device: &str, digest: &Digest) -> Result<bool, Failure> {
    Ok(connection
        .prepare_cached(
            "SELECT EXISTS (
                SELECT 1 FROM release_blob b
                JOIN release r ON r.id = b.release_id
                JOIN desired d ON d.model = r.model AND d.digest = r.digest
                WHERE b.digest = ?2 AND d.device_id = ?1)
             OR EXISTS (SELECT 1 FROM common_blob WHERE digest = ?2)",
        )?
        .query_row((device, digest.to_string()), |row| row.get(0))?)
}

fn metadata(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], bytes)
        .into_response()
}

fn unknown(file: &str) -> Failure {
    Failure::refused(
        StatusCode::NOT_FOUND,
        "metadata_unknown",
        format!("there is no metadata file {file:?}"),
    )
}
