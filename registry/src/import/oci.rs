//! Models out of OCI registries: ModelPack and Ollama artifacts, and bare GGUF layers.
//!
//! `oci://HOST/REPOSITORY[:TAG | @sha256:…]`. The manifest's bytes are hashed, layers are blobs by
//! digest; a pinned digest is checked. Loopback hosts are spoken to over plain HTTP, all others
//! over TLS.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::GGUF_MEDIA_TYPE;
use super::remote::{
    Network, Packing, Remote, RemoteError, RemoteFile, Resolved, accepted, name_part,
};
use super::tar;
use crate::manifest::FileRole;
use crate::{Digest, ModelName};

pub(in crate::import) mod login;
mod signatures;

pub use login::{Credentials, find as find_credentials};

pub(super) use login::Login;

const EXPECTED: &str = "oci://HOST[:PORT]/REPOSITORY[:TAG or @sha256:DIGEST]";
/// Longest manifest, in bytes: the distribution specification's own limit.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// ModelPack's weights in an archive; the compressed ones go on with `+`.
const TAR: &str = "application/vnd.cncf.model.weight.v1.tar";
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json";

/// A reference into a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    host: String,
    repository: String,
    tag: String,
    digest: Option<Digest>,
}

impl Reference {
    /// Whether a text means a registry.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        text.starts_with("oci://")
    }

    /// Reads a reference.
    ///
    /// # Errors
    /// [`RemoteError::Reference`].
    pub fn parse(text: &str) -> Result<Self, RemoteError> {
        let refuse = || RemoteError::Reference { found: text.to_owned(), expected: EXPECTED };
        let rest = text.strip_prefix("oci://").ok_or_else(refuse)?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| refuse())?)),
            None => (rest, None),
        };
        let (host, path) = rest.split_once('/').ok_or_else(refuse)?;
        let (repository, tag) = path.split_once(':').unwrap_or((path, "latest"));
        let part_fits = |part: &str| {
            !part.is_empty()
                && part != ".."
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
        };
        let tag_fits = (1..=128).contains(&tag.len())
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let host_fits = !host.is_empty()
            && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
        if !host_fits || !tag_fits || !repository.split('/').all(part_fits) {
            return Err(refuse());
        }
        let (host, repository, tag) = (host.to_owned(), repository.to_owned(), tag.to_owned());
        Ok(Self { host, repository, tag, digest })
    }

    /// The registry's name, with its port where one is given.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's path in the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    fn origin(&self) -> String {
        let scheme = if is_loopback(&self.host) { "http" } else { "https" };
        format!("{scheme}://{}", self.host)
    }

    fn base(&self) -> String {
        format!("{}/v2/{}", self.origin(), self.repository)
    }
}

/// Hosts that nobody between can listen to.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_address = |name: &str| name.parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback());
    matches!(name, "localhost" | "[::1]") || is_address(name)
}

/// An image manifest, as far as models need it; Ollama's is one too.
#[derive(Debug, Deserialize)]
pub(super) struct ImageManifest {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Layer {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Layer {
    /// The file that it was made of.
    fn title(&self) -> Option<&str> {
        ["org.cncf.model.filepath", "org.opencontainers.image.title"]
            .into_iter()
            .find_map(|name| self.annotations.get(name))
            .map(String::as_str)
    }
}

/// A layer that fulmar has a use for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelLayer {
    pub(super) role: FileRole,
    pub(super) path: String,
    /// Its path in what was packed, where that is said.
    pub(super) title: Option<String>,
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    pub(super) packing: Packing,
}

impl ImageManifest {
    /// The licence, where an annotation says it.
    pub(super) fn license(&self) -> String {
        let license = self.annotations.get("org.opencontainers.image.licenses");
        license.cloned().unwrap_or_default()
    }

    /// The layers that make up a model: exactly one of weights.
    pub(super) fn model_layers(&self, from: &str) -> Result<Vec<ModelLayer>, RemoteError> {
        let mut layers: Vec<ModelLayer> = Vec::new();
        for layer in &self.layers {
            let Some((role, default_path)) = role_of(layer) else { continue };
            let digest = layer.digest.parse().map_err(|_| RemoteError::Answer {
                url: from.to_owned(),
                reason: format!("layer digest {:?} is no SHA-256", layer.digest),
            })?;
            let title = layer.title().map(str::to_owned);
            let path = title.as_deref().unwrap_or(default_path);
            let path = path.rsplit('/').next().unwrap_or(default_path).to_owned();
            let media_type = match role {
                FileRole::Weights | FileRole::Projector => GGUF_MEDIA_TYPE,
                _ => "text/plain",
            };
            // Two files of one name would be one in an export.
            let path = match layers.iter().filter(|other| other.path == path).count() {
                0 => path,
                others => format!("{others}-{path}"),
            };
            let packing = if layer.media_type == TAR { Packing::Tar } else { Packing::Bare };
            let (media_type, size_bytes) = (media_type.to_owned(), layer.size);
            layers.push(ModelLayer { role, path, title, media_type, digest, size_bytes, packing });
        }
        let weights = layers.iter().filter(|layer| layer.role == FileRole::Weights).count();
        if weights == 1 {
            return Ok(layers);
        }
        let found: Vec<&str> = self.layers.iter().map(|l| l.media_type.as_str()).collect();
        let compressed = found.iter().any(|kind| kind.starts_with(TAR) && *kind != TAR);
        let index = self.media_type.contains("index") || self.media_type.contains("list");
        Err(RemoteError::NoModel {
            from: from.to_owned(),
            reason: match (index, weights) {
                (true, _) => "this is an index of several: name one by its digest".to_owned(),
                (false, 0) if compressed => {
                    "the weights are in a compressed archive, and only .raw, .gguf and .tar layers \
                     are read: push it without compression"
                        .to_owned()
                }
                (false, 0) => "no layer holds GGUF weights".to_owned(),
                (false, _) => format!("{weights} layers hold weights, expected one"),
            },
            found: if found.is_empty() { "no layers".to_owned() } else { found.join(", ") },
        })
    }
}

/// What a layer is for, and its file's name where nothing else is said.
fn role_of(layer: &Layer) -> Option<(FileRole, &'static str)> {
    let title = layer.annotations.get("org.cncf.model.filepath");
    let is_gguf = title.is_none_or(|title| title.to_lowercase().ends_with(".gguf"));
    Some(match layer.media_type.as_str() {
        "application/vnd.ollama.image.model"
        | "application/vnd.docker.ai.gguf.v3"
        | GGUF_MEDIA_TYPE => (FileRole::Weights, "model.gguf"),
        "application/vnd.cncf.model.weight.v1.raw"
        | "application/vnd.cncf.model.weight.v1.gguf"
            if is_gguf =>
        {
            (FileRole::Weights, "model.gguf")
        }
        TAR if tar::may_hold_gguf(layer.title()) => (FileRole::Weights, "model.gguf"),
        "application/vnd.ollama.image.projector" => (FileRole::Projector, "projector.gguf"),
        "application/vnd.ollama.image.adapter" => (FileRole::Adapter, "adapter.gguf"),
        // Ollama's own template language: kept for people.
        "application/vnd.ollama.image.template" => (FileRole::Other, "template.txt"),
        "application/vnd.ollama.image.license" => (FileRole::License, "LICENSE"),
        _ => return None,
    })
}

/// Finds the model that a reference means; returns a client that may fetch it, too.
///
/// # Errors
/// [`RemoteError`].
pub async fn resolve(
    network: Network,
    credentials: Option<Credentials>,
    reference: &Reference,
) -> Result<(Remote, Resolved), RemoteError> {
    let base = reference.base();
    let wanted = reference.digest.map_or(reference.tag.clone(), |digest| digest.to_string());
    let url = format!("{base}/manifests/{wanted}");
    let accept = [("accept", ACCEPT.to_owned())];
    let login = Login::new(&reference.host, &reference.repository, credentials);
    let remote = Remote::new(network)?.with_login(&reference.origin(), login);
    let answer = remote.ask(&url, &accept).await?;
    let bytes = Remote::body(accepted(&url, answer)?, MANIFEST_BYTES_MAX).await?;
    let found = Digest::of(&bytes);
    if let Some(expected) = reference.digest
        && expected != found
    {
        let reason = format!("expected a manifest with digest {expected}, found {found}");
        return Err(RemoteError::Answer { url, reason });
    }
    let manifest: ImageManifest = serde_json::from_slice(&bytes)
        .map_err(|error| RemoteError::Answer { url: url.clone(), reason: error.to_string() })?;
    let source = format!("oci://{}/{}@{found}", reference.host, reference.repository);
    let layers = manifest.model_layers(&source)?;
    let mut bundles = Vec::new();
    if let Some(weights) = layers.iter().find(|layer| layer.role == FileRole::Weights) {
        bundles = signatures::find(&remote, &base, &manifest, &found, weights).await?;
    }
    let files = layers
        .into_iter()
        .map(|layer| RemoteFile {
            role: layer.role,
            path: layer.path,
            media_type: layer.media_type,
            size_bytes: layer.size_bytes,
            digest: layer.digest,
            urls: vec![format!("{base}/blobs/{}", layer.digest)],
            packing: layer.packing,
        })
        .collect();
    let name = name(&reference.repository, &reference.tag)
        .ok_or(RemoteError::Reference { found: source.clone(), expected: EXPECTED })?;
    Ok((remote, Resolved { source, name, license: manifest.license(), files, bundles }))
}

/// `library/tiny:v1` of a repository's path and a tag.
pub(super) fn name(repository: &str, tag: &str) -> Option<ModelName> {
    let (namespace, name) = repository.rsplit_once('/').unwrap_or(("library", repository));
    let tag = if tag.len() <= 64 { tag } else { "latest" };
    let tag = if tag.starts_with(|c: char| c.is_ascii_alphanumeric()) { tag } else { "latest" };
    ModelName::new(&name_part(namespace), &name_part(name), &tag.replace("..", "-")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_with_tag_or_digest() {
        let plain = Reference::parse("oci://127.0.0.1:5000/team/tiny").unwrap();
        assert_eq!(plain.base(), "http://127.0.0.1:5000/v2/team/tiny");
        assert_eq!(plain.tag, "latest");
        let tagged = Reference::parse("oci://example.com/tiny:Q8_0").unwrap();
        assert_eq!(
            (tagged.base().as_str(), tagged.tag.as_str()),
            ("https://example.com/v2/tiny", "Q8_0")
        );
        let digest = Digest::of(b"x");
        let pinned = Reference::parse(&format!("oci://example.com/tiny@{digest}")).unwrap();
        assert_eq!(pinned.digest, Some(digest));
        for bad in ["oci://h", "oci:///a", "oci://h/a/../b", "oci://h/A", "oci://h/a:b:c", "h/a"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    fn manifest(layers: &str) -> Result<Vec<ModelLayer>, RemoteError> {
        let text = format!("{{\"layers\": [{layers}]}}");
        serde_json::from_str::<ImageManifest>(&text).unwrap().model_layers("x")
    }

    fn layer(media_type: &str, title: &str) -> String {
        let digest = Digest::of(media_type.as_bytes());
        format!(
            r#"{{"mediaType":"{media_type}","digest":"{digest}","size":5,
                "annotations":{{"org.cncf.model.filepath":"{title}"}}}}"#
        )
    }

    #[test]
    fn ollama_and_modelpack_layers_are_known() {
        let ollama = [
            layer("application/vnd.ollama.image.model", "m.gguf"),
            layer("application/vnd.ollama.image.license", "LICENSE"),
            layer("application/vnd.ollama.image.params", "params"),
        ];
        let layers = manifest(&ollama.join(",")).unwrap();
        assert_eq!(layers.len(), 2);
        assert_eq!(layers[0].role, FileRole::Weights);
        let pack = layer("application/vnd.cncf.model.weight.v1.raw", "sub/m.gguf");
        assert_eq!(manifest(&pack).unwrap()[0].path, "m.gguf");
    }

    #[test]
    fn an_archive_of_weights_is_known_and_a_compressed_one_refused_by_its_type() {
        for title in ["m.gguf", "models/m", "m.tar"] {
            let layers = manifest(&layer(TAR, title)).unwrap();
            assert_eq!((layers[0].role, layers[0].packing), (FileRole::Weights, Packing::Tar));
        }
        assert!(manifest(&layer(TAR, "m.safetensors")).is_err());
        for kind in ["gzip", "zstd"] {
            let refused = manifest(&layer(&format!("{TAR}+{kind}"), "m.gguf")).unwrap_err();
            let refused = refused.to_string();
            assert!(refused.contains("compressed") && refused.contains(kind), "{refused}");
        }
    }

    #[test]
    fn without_exactly_one_file_of_weights_it_is_no_model() {
        assert!(manifest(&layer("application/vnd.oci.image.layer.v1.tar", "x")).is_err());
        let safetensors = layer("application/vnd.cncf.model.weight.v1.raw", "m.safetensors");
        assert!(manifest(&safetensors).is_err());
        let two = [
            layer("application/vnd.ollama.image.model", "a.gguf"),
            layer("application/vnd.docker.ai.gguf.v3", "b.gguf"),
        ];
        assert!(manifest(&two.join(",")).is_err_and(|e| e.to_string().contains("2 layers")));
    }
}
