//! Checkpoints: repositories without a GGUF file, whose safetensors are converted on the device.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::{Entry, Hub, Listing, PREFERRED, bundle, checked, encoded, model_name};
use crate::import::remote::{Packing, Remote, RemoteError, RemoteFile, Resolved, accepted};
use crate::manifest::FileRole;

/// What a conversion reads besides the weights, where it is there.
const READ: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "chat_template.jinja",
];
/// Copies of the weights, and additions to other weights, in bytes that no conversion reads.
const NOT_READ: [&str; 2] = ["consolidated.safetensors", "adapter_model.safetensors"];
/// Longest file that the index has no SHA-256 for, in bytes.
const SMALL_BYTES_MAX: u64 = 64 << 20;
/// Media type of what is fetched to be converted.
const MEDIA_TYPE: &str = "application/octet-stream";

/// The files of a checkpoint at a pinned commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Those with a SHA-256 in the index, weights among them, by their names in the repository; the
    /// name that the converted model gets.
    pub large: Resolved,
    /// Names and contents of the others, which are as the index' SHA-1 says.
    pub small: Vec<(String, Vec<u8>)>,
    /// The quantisation that is wanted, in capitals.
    pub quantization: String,
}

/// Whether a repository has what can be converted.
pub(super) fn is_there(entries: &[Entry]) -> bool {
    let has = |fits: &dyn Fn(&str) -> bool| {
        entries.iter().any(|entry| entry.kind == "file" && fits(&entry.path))
    };
    has(&|path| path == "config.json") && has(&is_weights)
}

fn is_weights(path: &str) -> bool {
    !path.contains('/') && path.ends_with(".safetensors") && !NOT_READ.contains(&path)
}

/// Lists a checkpoint's files and fetches the small ones.
pub(super) async fn resolve(
    hub: &Hub,
    remote: &Remote,
    listing: &Listing,
    wanted: Option<&str>,
) -> Result<Checkpoint, RemoteError> {
    let quantization = wanted.unwrap_or(PREFERRED[0]).to_uppercase();
    let Listing { entries, repository, commit, from, .. } = listing;
    let url =
        |path: &str| format!("{}/{repository}/resolve/{commit}/{}", hub.endpoint, encoded(path));
    let (mut files, mut small) = (Vec::new(), Vec::new());
    for entry in entries.iter().filter(|entry| entry.kind == "file") {
        let path = entry.path.as_str();
        if !is_weights(path) && !READ.contains(&path) {
            continue;
        }
        if entry.lfs.is_none() && !is_weights(path) {
            let answer = accepted(&url(path), remote.ask(&url(path), &[]).await?)?;
            let bytes = Remote::body(answer, SMALL_BYTES_MAX).await?;
            small.push((path.to_owned(), as_listed(entry, bytes, from)?));
            continue;
        }
        let (digest, size_bytes) = checked(entry, from)?;
        files.push(RemoteFile {
            role: if is_weights(path) { FileRole::Weights } else { FileRole::Other },
            path: path.to_owned(),
            media_type: MEDIA_TYPE.to_owned(),
            size_bytes,
            digest,
            urls: vec![url(path)],
            packing: Packing::Bare,
        });
    }
    let first = files.iter().find(|file| file.role == FileRole::Weights);
    let first = first.map_or("", |file| file.path.as_str());
    let found = bundle(hub, remote, entries, first, repository, commit).await?;
    let large = Resolved {
        source: from.clone(),
        name: model_name(repository, &quantization, from)?,
        license: listing.license.clone(),
        files,
        bundles: found.into_iter().collect(),
    };
    Ok(Checkpoint { large, small, quantization })
}

/// A small file that is what the index says: git's SHA-1 over its length and its bytes.
fn as_listed(entry: &Entry, bytes: Vec<u8>, from: &str) -> Result<Vec<u8>, RemoteError> {
    let mut object = format!("blob {}\0", bytes.len()).into_bytes();
    object.extend_from_slice(&bytes);
    let found = hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &object));
    if found == entry.oid {
        return Ok(bytes);
    }
    let reason = format!(
        "{} has git's SHA-1 {found}, expected {}; fetch it again",
        entry.path,
        if entry.oid.is_empty() { "one in the index" } else { &entry.oid }
    );
    Err(RemoteError::Answer { url: from.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, oid: &str) -> Entry {
        let (kind, path, oid) = ("file".into(), path.into(), oid.into());
        Entry { kind, path, size: 1, lfs: None, oid }
    }

    #[test]
    fn a_checkpoint_has_a_configuration_and_weights_beside_it() {
        let of = |paths: &[&str]| {
            is_there(&paths.iter().map(|path| entry(path, "")).collect::<Vec<_>>())
        };
        assert!(of(&["README.md", "config.json", "model-00001-of-00002.safetensors"]));
        assert!(!of(&["config.json", "pytorch_model.bin"]));
        assert!(!of(&["config.json", "onnx/model.safetensors"]));
        assert!(!of(&["config.json", "adapter_model.safetensors"]));
        assert!(!of(&["model.safetensors"]));
    }

    #[test]
    fn a_small_file_is_held_against_gits_own_digest() {
        // `printf hello | git hash-object --stdin`
        let listed = entry("config.json", "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0");
        assert_eq!(as_listed(&listed, b"hello".to_vec(), "x").unwrap(), b"hello");
        let refused = as_listed(&listed, b"hellp".to_vec(), "x").unwrap_err().to_string();
        assert!(refused.contains("config.json") && refused.contains("b6fc4c62"), "{refused}");
        assert!(as_listed(&entry("config.json", ""), b"hello".to_vec(), "x").is_err());
    }
}
