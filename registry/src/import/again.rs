//! The files of an installed model once more, from where its manifest says that it came: for a device
//! without a fleet whose disk broke one. The manifest names the bytes, so the source chooses nothing.

use super::hugging_face::{self, Hub};
use super::{Remote, RemoteError, RemoteFile, Resolved, oci};
use crate::Manifest;
use crate::blobs::Blobs;

/// Finds the files of `manifest` that are not in the store, at the pinned place that its source names;
/// `None` where it names none that can be asked.
///
/// # Errors
/// [`RemoteError`]; [`RemoteError::Answer`] where other files are there now.
pub async fn resolve(
    blobs: &Blobs,
    hub: &Hub,
    manifest: &Manifest,
) -> Result<Option<(Remote, Resolved)>, RemoteError> {
    let source = &manifest.source;
    let file = manifest.weights().map_or("", |weights| weights.path.as_str());
    let (remote, resolved) = if oci::Reference::is_one(source) {
        let reference = oci::Reference::parse(source)?;
        let credentials = oci::find_credentials(None, reference.host(), reference.repository())?;
        oci::resolve(hub.network, credentials, &reference).await?
    } else if let Some(reference) = hugging_face::Reference::of_source(hub, source, file) {
        (hub.remote()?, hugging_face::resolve(hub, &reference).await?)
    } else {
        return Ok(None);
    };
    let mut files = Vec::new();
    for file in &manifest.files {
        if blobs.contains(&file.digest, file.size_bytes) {
            continue;
        }
        let same = |found: &&RemoteFile| found.digest == file.digest;
        let Some(found) = resolved.files.iter().find(same) else {
            let reason = format!("{} with digest {} is not there", file.path, file.digest);
            return Err(RemoteError::Answer { url: source.clone(), reason });
        };
        files.push(found.clone());
    }
    Ok(Some((remote, Resolved { files, ..resolved })))
}
