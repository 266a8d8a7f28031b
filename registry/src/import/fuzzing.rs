//! Doors for the fuzz target `imports` to the parsers of what registries, hubs and stores answer.
//! Not part of the library: only there with the feature `fuzzing`.

use reqwest::Url;

use super::oci::{self, ImageManifest};
use super::{hub_search, hugging_face, model_signing, remote, sigstore, tar};

/// A manifest of an OCI registry or an Ollama store.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = serde_json::from_slice::<ImageManifest>(bytes) else { return };
    let _ = manifest.license();
    if let Ok(layers) = manifest.model_layers("here") {
        for layer in &layers {
            assert!(!layer.path.contains('/'), "a layer's path is a file's name");
            let same = layers.iter().filter(|other| other.path == layer.path);
            assert_eq!(same.count(), 1, "two files of one name");
        }
    }
}

/// A layer that is an archive.
pub fn archive(bytes: &[u8]) {
    let Ok(files) = tar::files(&mut std::io::Cursor::new(bytes)) else { return };
    for file in files {
        let end = file.offset.checked_add(file.size_bytes);
        assert!(end.is_some_and(|end| end <= bytes.len() as u64), "{file:?}");
    }
}

/// A challenge to show a token, and the service that it names.
pub fn challenge(text: &str) {
    oci::login::try_challenge(text);
}

/// A file of credentials.
pub fn credentials(bytes: &[u8]) {
    let _ = oci::login::in_bytes(bytes, "registry.example", "team/model");
}

/// A hub's listing of a repository, its card, and where the next page is.
pub fn listing(text: &str) {
    let (listing, wanted) = text.split_once('\0').unwrap_or((text, ""));
    hugging_face::try_listing(listing, Some(wanted).filter(|wanted| !wanted.is_empty()));
    let here = Url::parse("https://hub.example/api/models/a/b/tree/main").expect("an address");
    if let Some(next) = remote::next_in(text, &here) {
        assert!(next.starts_with("https://hub.example/"), "a page elsewhere: {next}");
    }
}

/// A hub's answer to a search.
pub fn found(bytes: &[u8]) {
    hub_search::try_answer(bytes);
}

/// The header that says where a part of a file begins.
pub fn content_range(text: &str) {
    let _ = crate::fetch::first_byte(text);
}

/// A publisher's signature, and the statement in one.
pub fn signature(bytes: &[u8], signers: &model_signing::TrustedSigners) {
    let _ = model_signing::verify(bytes, signers, 4_102_444_800);
    let _ = model_signing::files(bytes);
}

/// Parts of a keyless signature that lie behind other signatures.
pub fn keyless(bytes: &[u8]) {
    sigstore::try_parts(bytes);
}
