//! Metadata and blobs, as bytes.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use fulmar_registry::{Digest, trust};
use http::{HeaderMap, StatusCode, header};
use rusqlite::Connection;

use super::peer::Device;
use crate::app::App;
use crate::failure::{Failure, chain};
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
    let is_due = move |c: &Connection| {
        Ok::<_, Failure>(is_assigned(c, &device.id, &digest)? || is_held(c, &device.id, &digest)?)
    };
    if !app.store.read(is_due).await? {
        return Err(Failure::refused(
            StatusCode::NOT_FOUND,
            "blob_not_assigned",
            format!(
                "blob {digest} is not part of what this device should hold, or holds by a deployment"
            ),
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

/// Whether a blob is of a release that the device says it has, which was deployed to it once and is
/// not taken back: the release before the one that it should hold, say, to be mended there.
fn is_held(connection: &Connection, device: &str, digest: &Digest) -> Result<bool, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT r.id FROM release_blob b
         JOIN release r ON r.id = b.release_id
         JOIN device_model m ON m.name = r.model AND m.digest = r.digest
         WHERE b.digest = ?2 AND m.device_id = ?1 AND m.state IN ('active', 'installed')
           AND EXISTS (
             SELECT 1 FROM deployment_device x JOIN deployment d ON d.id = x.deployment_id
             WHERE x.device_id = ?1 AND d.model = r.model AND d.digest = r.digest)",
    )?;
    let releases = statement
        .query_map((device, digest.to_string()), |row| row.get::<_, i64>(0))?
        .collect::<Result<Vec<_>, _>>()?;
    if releases.is_empty() {
        return Ok(false);
    }
    let policy = trust::held_policy(connection)
        .map_err(|e| Failure::internal("read the owner's policy", chain(&e)))?;
    let Some(policy) = policy else { return Ok(true) };
    let revoked = &policy.policy.revoked().models;
    let mut files =
        connection.prepare_cached("SELECT digest FROM release_blob WHERE release_id = ?1")?;
    for release in releases {
        let digests =
            files.query_map([release], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
        if !digests.iter().any(|digest| revoked.contains_key(digest)) {
            return Ok(true);
        }
    }
    Ok(false)
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
