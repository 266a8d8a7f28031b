//! Publishers' signatures of models in OCI registries: a Sigstore bundle that refers to the model's
//! manifest, as cosign's bundle specification stores one, or a layer of the model itself.
//!
//! Asked are the referrers API and, where a registry does not have it, the index under the tag
//! `sha256-DIGEST`. Of what refers to a model, only bundles of OpenSSF model signing are taken:
//! provenance and signatures of other kinds say nothing about its files.
//!
//! Deliberately absent: cosign's older tag `sha256-DIGEST.sig`, whose signatures are of a manifest
//! and not of files.

use std::collections::BTreeMap;

use reqwest::StatusCode;
use serde::Deserialize;

use super::{ACCEPT, ImageManifest, MANIFEST_BYTES_MAX, ModelLayer};
use crate::Digest;
use crate::import::model_signing::{self, BUNDLE_BYTES_MAX};
use crate::import::remote::{FoundBundle, Remote, RemoteError, accepted};

/// Begins the media types of all versions.
const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Where an index says what a bundle is about.
const PREDICATE: &str = "dev.sigstore.bundle.predicateType";
/// Referring bundles that are looked into: anybody who may push can add some.
const REFERRERS_MAX: usize = 16;

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Referrer>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    digest: String,
    #[serde(default)]
    artifact_type: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Referrer {
    fn may_be_one(&self) -> bool {
        self.artifact_type.starts_with(BUNDLE_TYPE)
            && self.annotations.get(PREDICATE).is_none_or(|p| p == model_signing::PREDICATE_TYPE)
    }
}

impl ImageManifest {
    /// Layers that are bundles: by their type, or by the name that the `model-signing` package
    /// gives to what it makes.
    pub(in crate::import) fn bundles(
        &self,
        weights: &ModelLayer,
    ) -> Result<Vec<Digest>, RemoteError> {
        let own = format!("{}.sig", weights.path);
        let is_one = |title: &str| {
            let name = title.rsplit('/').next().unwrap_or(title);
            name == "model.sig" || name == own
        };
        self.layers
            .iter()
            .filter(|layer| {
                layer.media_type.starts_with(BUNDLE_TYPE) || layer.title().is_some_and(is_one)
            })
            .map(|layer| digest_of(&layer.digest, "a layer of the model"))
            .collect()
    }
}

fn digest_of(text: &str, from: &str) -> Result<Digest, RemoteError> {
    text.parse().map_err(|_| RemoteError::Answer {
        url: from.to_owned(),
        reason: format!("digest {text:?} is no SHA-256"),
    })
}

/// Finds the bundles of a model, those in it first.
pub(super) async fn find(
    remote: &Remote,
    base: &str,
    manifest: &ImageManifest,
    digest: &Digest,
    weights: &ModelLayer,
) -> Result<Vec<FoundBundle>, RemoteError> {
    let found = |bytes, from| FoundBundle { bytes, from, weights_path: weights.title.clone() };
    let mut bundles = Vec::new();
    for layer in manifest.bundles(weights)? {
        let url = format!("{base}/blobs/{layer}");
        let bytes = get(remote, &url, "*/*", BUNDLE_BYTES_MAX, &layer).await?;
        bundles.push(found(bytes, url));
    }
    let all = referrers(remote, base, digest).await?;
    for referrer in all.iter().filter(|r| r.may_be_one()).take(REFERRERS_MAX) {
        let url = format!("{base}/manifests/{}", referrer.digest);
        let named = digest_of(&referrer.digest, base)?;
        let bytes = get(remote, &url, ACCEPT, MANIFEST_BYTES_MAX, &named).await?;
        let referring: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| RemoteError::Answer { url, reason: error.to_string() })?;
        let Some(layer) = referring.layers.iter().find(|l| l.media_type.starts_with(BUNDLE_TYPE))
        else {
            continue;
        };
        let named = digest_of(&layer.digest, base)?;
        let url = format!("{base}/blobs/{named}");
        let bytes = get(remote, &url, "*/*", BUNDLE_BYTES_MAX, &named).await?;
        if model_signing::is_one(&bytes) {
            bundles.push(found(bytes, url));
        }
    }
    Ok(bundles)
}

/// What refers to a manifest, by the API or by the tag that stands in for it.
async fn referrers(
    remote: &Remote,
    base: &str,
    digest: &Digest,
) -> Result<Vec<Referrer>, RemoteError> {
    let accept = [("accept", INDEX_TYPE.to_owned())];
    let mut url = format!("{base}/referrers/{digest}");
    let mut answer = remote.ask(&url, &accept).await?;
    let unknown = matches!(
        answer.status(),
        StatusCode::NOT_FOUND
            | StatusCode::BAD_REQUEST
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED
    );
    // Some answer with a page where they do not know the address.
    let other = answer.status() == StatusCode::OK
        && !answer
            .headers()
            .get("content-type")
            .is_some_and(|kind| kind.to_str().is_ok_and(|kind| kind.starts_with(INDEX_TYPE)));
    if unknown || other {
        url = format!("{base}/manifests/sha256-{}", digest.hex());
        answer = remote.ask(&url, &accept).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
    }
    let bytes = Remote::body(accepted(&url, answer)?, MANIFEST_BYTES_MAX).await?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|error| RemoteError::Answer { url, reason: error.to_string() })?;
    Ok(index.manifests)
}

/// A small blob or manifest whose digest is known.
async fn get(
    remote: &Remote,
    url: &str,
    accept: &str,
    limit: u64,
    expected: &Digest,
) -> Result<Vec<u8>, RemoteError> {
    let answer = remote.ask(url, &[("accept", accept.to_owned())]).await?;
    let bytes = Remote::body(accepted(url, answer)?, limit).await?;
    let found = Digest::of(&bytes);
    if found != *expected {
        let reason = format!("expected {expected}, found {found}");
        return Err(RemoteError::Answer { url: url.to_owned(), reason });
    }
    Ok(bytes)
}
