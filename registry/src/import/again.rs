//! The files of an installed model once more, from where its manifest says that it came: for a device
//! without a fleet whose disk broke one. The manifest names the bytes, so the source chooses nothing.

use super::hugging_face::{self, Hub};
use super::{Packing, Remote, RemoteError, RemoteFile, Resolved, oci};
use crate::blobs::Blobs;
use crate::{Manifest, ManifestFile};

/// Finds the files of `manifest` that are not in the store, at the pinned place that its source names;
/// `None` where it names none that can be asked. Where the weights are packed, their archive is
/// found: [`super::unpack`] gives them, and [`check`] says whether they are the same.
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
        let may_be = |found: &&RemoteFile| {
            found.digest == file.digest
                || (found.packing != Packing::Bare && found.role == file.role)
        };
        let found = resolved.files.iter().find(may_be);
        files.push(found.ok_or_else(|| gone(manifest, file))?.clone());
    }
    Ok(Some((remote, Resolved { files, ..resolved })))
}

/// Refuses where a file of `manifest` has not come: what was unpacked is another one.
///
/// # Errors
/// [`RemoteError::Answer`].
pub fn check(blobs: &Blobs, manifest: &Manifest) -> Result<(), RemoteError> {
    let missing = |file: &&ManifestFile| !blobs.contains(&file.digest, file.size_bytes);
    manifest.files.iter().find(missing).map_or(Ok(()), |file| Err(gone(manifest, file)))
}

fn gone(manifest: &Manifest, file: &ManifestFile) -> RemoteError {
    let reason = format!("{} with digest {} is not there", file.path, file.digest);
    RemoteError::Answer { url: manifest.source.clone(), reason }
}
