//! Models out of a local Ollama store: `manifests/HOST/NAMESPACE/NAME/TAG` and
//! `blobs/sha256-…`. Nothing is fetched; files are copied and verified on the way.
//!
//! The store has no place for a publisher's signature beside a model: a stray file among the
//! manifests is a model to Ollama, one among the blobs is cleaned away. So one is found where it is
//! a layer of the model, as in registries.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::model_signing::BUNDLE_BYTES_MAX;
use super::oci::{ImageManifest, name};
use super::remote::{FoundBundle, RemoteError, RemoteFile, Resolved};
use crate::blobs::{Begin, Expected};
use crate::gc::{self, Hold};
use crate::manifest::FileRole;
use crate::{Digest, Registry};

const EXPECTED: &str = "[HOST/][NAMESPACE/]NAME[:TAG]";
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// Where Ollama keeps its models: `OLLAMA_MODELS`, the user's folder, or the service's.
#[must_use]
pub fn default_dir() -> Option<PathBuf> {
    let own = std::env::var_os("OLLAMA_MODELS").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".ollama/models"));
    let service = PathBuf::from("/usr/share/ollama/.ollama/models");
    [own, home, Some(service)].into_iter().flatten().find(|dir| dir.join("manifests").is_dir())
}

/// Finds a model in the store at `dir`. The file's "URL" is its path.
///
/// # Errors
/// [`RemoteError`].
pub fn resolve(dir: &Path, reference: &str) -> Result<Resolved, RemoteError> {
    let refuse = || RemoteError::Reference { found: reference.to_owned(), expected: EXPECTED };
    let (path, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
    let parts: Vec<&str> = path.split('/').collect();
    let (host, namespace, model) = match parts.as_slice() {
        [model] => ("registry.ollama.ai", "library", *model),
        [namespace, model] => ("registry.ollama.ai", *namespace, *model),
        [host, namespace, model] => (*host, *namespace, *model),
        _ => return Err(refuse()),
    };
    let fits = |part: &str| {
        !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0', '/'])
    };
    if ![host, namespace, model, tag].into_iter().all(fits) {
        return Err(refuse());
    }
    let path: PathBuf = [dir.join("manifests").as_path()]
        .into_iter()
        .chain([host, namespace, model, tag].map(Path::new))
        .collect();
    let failed = |source| RemoteError::File { path: path.clone(), source };
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(failed)?;
    let source = format!("ollama://{host}/{namespace}/{model}@{}", Digest::of(&bytes));
    let manifest: ImageManifest = serde_json::from_slice(&bytes).map_err(|error| {
        RemoteError::Answer { url: path.display().to_string(), reason: error.to_string() }
    })?;
    let layers = manifest.model_layers(&source)?;
    let mut bundles = Vec::new();
    if let Some(weights) = layers.iter().find(|layer| layer.role == FileRole::Weights) {
        for layer in manifest.bundles(weights)? {
            bundles.push(bundle(dir, &layer, weights.title.clone())?);
        }
    }
    let files = layers
        .into_iter()
        .map(|layer| {
            let blob = blob(dir, &layer.digest);
            RemoteFile {
                role: layer.role,
                path: layer.path,
                media_type: layer.media_type,
                size_bytes: layer.size_bytes,
                digest: layer.digest,
                urls: vec![blob.display().to_string()],
                packing: layer.packing,
            }
        })
        .collect();
    let name = name(&format!("{namespace}/{model}"), tag).ok_or_else(refuse)?;
    Ok(Resolved { source, name, license: String::new(), files, bundles })
}

fn blob(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs").join(format!("sha256-{}", digest.hex()))
}

/// A publisher's signature among the layers.
fn bundle(
    dir: &Path,
    digest: &Digest,
    weights_path: Option<String>,
) -> Result<FoundBundle, RemoteError> {
    let path = blob(dir, digest);
    let failed = |source| RemoteError::File { path: path.clone(), source };
    let file = File::open(&path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(BUNDLE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    let from = path.display().to_string();
    let found = Digest::of(&bytes);
    if found != *digest {
        let reason = format!("expected {digest}, found {found} (at most {BUNDLE_BYTES_MAX} bytes)");
        return Err(RemoteError::Answer { url: from, reason });
    }
    Ok(FoundBundle { bytes, from, weights_path })
}

/// Copies all files of a model found by [`resolve`] into the registry's store. Blocks.
///
/// # Errors
/// [`RemoteError`]; a file that does not hash to its name is refused.
pub fn copy_all(registry: &Registry, resolved: &Resolved) -> Result<Hold, RemoteError> {
    let hold = gc::hold(registry.blobs())?;
    for file in &resolved.files {
        let (digest, size_bytes) = (file.digest, file.size_bytes);
        let expected = Expected { digest, size_bytes, chunks: Vec::new() };
        let Begin::Incoming(mut incoming) = registry.blobs().begin(&expected)? else { continue };
        incoming.restart()?;
        for path in file.urls.iter().map(PathBuf::from) {
            let failed = |source| RemoteError::File { path: path.clone(), source };
            let mut from = File::open(&path).map_err(failed)?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                match from.read(&mut buffer).map_err(failed)? {
                    0 => break,
                    read => incoming.write(&buffer[..read])?,
                }
            }
        }
        incoming.commit()?;
    }
    Ok(hold)
}
