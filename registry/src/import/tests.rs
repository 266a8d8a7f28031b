//! Imports against servers of our own: a hub, a registry, an Ollama store.

use serde_json::json;
use wiremock::matchers::{header, method, path, path_regex};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use super::hugging_face::{self, Hub};
use super::*;
use crate::fetch::Pace;
use crate::{Digest, Options, SCHEMAS};

fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let store = fulmar_store::Store::open(&dir.path().join("state.db"), &SCHEMAS).unwrap();
    let registry = Registry::open(dir.path(), store, &Options::default()).unwrap();
    (dir, registry)
}

fn weights() -> Vec<u8> {
    (0..200_000_u32).map(|i| (i * 7 % 251) as u8).collect()
}

/// Bytes with `Range`.
struct Ranged(Vec<u8>);

impl Respond for Ranged {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let range = request.headers.get("range").and_then(|value| value.to_str().ok());
        let Some(from) = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')) else {
            return ResponseTemplate::new(200).set_body_bytes(self.0.clone());
        };
        let from: usize = from.parse().unwrap();
        let range = format!("bytes {from}-{}/{}", self.0.len() - 1, self.0.len());
        ResponseTemplate::new(206)
            .insert_header("content-range", range.as_str())
            .set_body_bytes(self.0[from..].to_vec())
    }
}

async fn get(server: &MockServer, at: &str, response: impl Respond + 'static) {
    Mock::given(method("GET")).and(path(at)).respond_with(response).mount(server).await;
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one repository that wants a token.
async fn hub(bytes: Vec<u8>) -> (MockServer, Hub) {
    let server = MockServer::start().await;
    let oid = Digest::of(&bytes).hex();
    let info = json!({ "sha": COMMIT, "cardData": {"license": "apache-2.0"} });
    Mock::given(method("GET"))
        .and(path("/api/models/Acme/Tiny-GGUF/revision/main"))
        .and(header("authorization", "Bearer secret"))
        .respond_with(ResponseTemplate::new(200).set_body_json(info))
        .mount(&server)
        .await;
    let tree = json!([
        { "type": "directory", "path": "sub" },
        { "type": "file", "path": "README.md", "size": 5 },
        { "type": "file", "path": "tiny-Q8_0.gguf", "size": bytes.len(),
          "lfs": { "oid": oid, "size": bytes.len(), "pointerSize": 130 } },
    ]);
    let at = format!("/api/models/Acme/Tiny-GGUF/tree/{COMMIT}");
    get(&server, &at, ResponseTemplate::new(200).set_body_json(tree)).await;
    get(&server, &format!("/Acme/Tiny-GGUF/resolve/{COMMIT}/tiny-Q8_0.gguf"), Ranged(bytes)).await;
    let hub =
        Hub { endpoint: server.uri(), token: Some("secret".to_owned()), network: Network::Allowed };
    (server, hub)
}

fn tiny() -> hugging_face::Reference {
    hugging_face::Reference::parse("hf.co/Acme/Tiny-GGUF:Q8_0").unwrap()
}

#[tokio::test]
async fn a_hub_model_is_pinned_fetched_checked_and_signed() {
    let (_dir, registry) = registry();
    let (_server, hub) = hub(weights()).await;
    let resolved = hugging_face::resolve(&hub, &tiny()).await.unwrap();
    assert_eq!(resolved.name.to_string(), "acme/tiny-gguf:Q8_0");
    assert_eq!(resolved.license, "apache-2.0");
    assert!(resolved.source.ends_with(COMMIT));
    // A part is there from before: only the rest is fetched.
    let file = resolved.weights().unwrap();
    let expected = crate::blobs::Expected {
        digest: file.digest,
        size_bytes: file.size_bytes,
        chunks: Vec::new(),
    };
    let crate::blobs::Begin::Incoming(mut incoming) = registry.blobs().begin(&expected).unwrap()
    else {
        panic!()
    };
    incoming.write(&weights()[..150_000]).unwrap();
    drop(incoming);
    let remote = hub.remote().unwrap();
    let hold = remote.fetch_all(&registry, &resolved, &Pace::new(0)).await.unwrap();
    let facts = ModelFacts { architecture: "qwen3".into(), ..ModelFacts::default() };
    let name = resolved.name.clone();
    let imported = complete(&registry, &resolved, &name, &facts, hold).unwrap();
    let manifest = imported.signed.manifest();
    assert_eq!((manifest.license.as_str(), &manifest.source), ("apache-2.0", &resolved.source));
    assert_eq!(manifest.weights().unwrap().digest, Digest::of(&weights()));
}

#[tokio::test]
async fn bytes_that_the_index_does_not_name_are_refused() {
    let (_dir, registry) = registry();
    let (server, hub) = hub(weights()).await;
    let resolved = hugging_face::resolve(&hub, &tiny()).await.unwrap();
    server.reset().await;
    let mut wrong = weights();
    wrong[0] ^= 1;
    Mock::given(path_regex("resolve")).respond_with(Ranged(wrong)).mount(&server).await;
    let remote = hub.remote().unwrap();
    let refused = remote.fetch_all(&registry, &resolved, &Pace::new(0)).await.unwrap_err();
    assert!(refused.to_string().contains("verify incoming blob"), "{refused}");
    assert!(registry.blobs().list().unwrap().is_empty());
}

#[tokio::test]
async fn without_token_or_network_the_refusal_says_what_to_do() {
    let (_server, hub) = hub(weights()).await;
    let anonymous = Hub { token: None, ..hub.clone() };
    let refused = hugging_face::resolve(&anonymous, &tiny()).await.unwrap_err();
    assert!(refused.to_string().contains("private ones want a token"), "{refused}");
    let offline = Hub { network: Network::Forbidden, ..hub };
    let refused = hugging_face::resolve(&offline, &tiny()).await.unwrap_err();
    assert!(matches!(refused, RemoteError::Offline { .. }));
}

#[tokio::test]
async fn several_sources_are_tried_in_order() {
    let (_dir, registry) = registry();
    let (server, hub) = hub(weights()).await;
    let mut resolved = hugging_face::resolve(&hub, &tiny()).await.unwrap();
    resolved.files[0].urls.insert(0, format!("{}/gone", server.uri()));
    let remote = hub.remote().unwrap();
    remote.fetch_all(&registry, &resolved, &Pace::new(0)).await.unwrap();
    registry.blobs().open_verified(&Digest::of(&weights())).unwrap();
}

#[tokio::test]
async fn an_oci_artifact_is_fetched_with_the_token_that_its_registry_hands_out() {
    let (_dir, registry) = registry();
    let server = MockServer::start().await;
    let host = server.address().to_string();
    let bytes = weights();
    let digest = Digest::of(&bytes);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "layers": [
            { "mediaType": "application/vnd.cncf.model.weight.v1.raw", "size": bytes.len(),
              "digest": digest, "annotations": {"org.cncf.model.filepath": "tiny.gguf"} },
        ],
    });
    let manifest = manifest.to_string();
    Mock::given(path("/v2/team/tiny/manifests/v1"))
        .and(header("authorization", "Bearer handed-out"))
        .respond_with(ResponseTemplate::new(200).set_body_string(manifest.clone()))
        .mount(&server)
        .await;
    let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"x\"");
    let unauthorized =
        ResponseTemplate::new(401).insert_header("www-authenticate", challenge.as_str());
    Mock::given(path("/v2/team/tiny/manifests/v1"))
        .respond_with(unauthorized)
        .with_priority(9)
        .mount(&server)
        .await;
    let token = json!({ "token": "handed-out" });
    get(&server, "/token", ResponseTemplate::new(200).set_body_json(token)).await;
    Mock::given(path(format!("/v2/team/tiny/blobs/{digest}")))
        .and(header("authorization", "Bearer handed-out"))
        .respond_with(Ranged(bytes))
        .mount(&server)
        .await;
    let reference = oci::Reference::parse(&format!("oci://{host}/team/tiny:v1")).unwrap();
    let (remote, resolved) = oci::resolve(Network::Allowed, None, &reference).await.unwrap();
    assert_eq!(resolved.name.to_string(), "team/tiny:v1");
    assert!(resolved.source.ends_with(&Digest::of(manifest.as_bytes()).to_string()));
    remote.fetch_all(&registry, &resolved, &Pace::new(0)).await.unwrap();
    registry.blobs().open_verified(&digest).unwrap();
}

#[tokio::test]
async fn an_oci_digest_pins_the_manifest() {
    let server = MockServer::start().await;
    let host = server.address().to_string();
    let pinned = Digest::of(b"another manifest");
    let anything = ResponseTemplate::new(200).set_body_string("{}");
    get(&server, &format!("/v2/team/tiny/manifests/{pinned}"), anything).await;
    let reference = oci::Reference::parse(&format!("oci://{host}/team/tiny@{pinned}")).unwrap();
    let refused = oci::resolve(Network::Allowed, None, &reference).await.unwrap_err();
    assert!(refused.to_string().contains("expected a manifest with digest"), "{refused}");
}

#[test]
fn an_ollama_store_is_read_in_place_and_verified() {
    let (_dir, registry) = registry();
    let store = tempfile::tempdir().unwrap();
    let bytes = weights();
    let digest = Digest::of(&bytes);
    let manifests = store.path().join("manifests/registry.ollama.ai/library/tiny");
    std::fs::create_dir_all(&manifests).unwrap();
    std::fs::create_dir_all(store.path().join("blobs")).unwrap();
    let manifest = json!({ "layers": [
        { "mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": bytes.len() },
    ] });
    std::fs::write(manifests.join("latest"), manifest.to_string()).unwrap();
    let blob = store.path().join("blobs").join(format!("sha256-{}", digest.hex()));
    std::fs::write(&blob, &bytes).unwrap();
    let resolved = ollama::resolve(store.path(), "tiny").unwrap();
    assert_eq!(resolved.name.to_string(), "library/tiny:latest");
    let hold = ollama::copy_all(&registry, &resolved).unwrap();
    let facts = ModelFacts { architecture: "qwen3".into(), ..ModelFacts::default() };
    complete(&registry, &resolved, &resolved.name, &facts, hold).unwrap();
    registry.blobs().open_verified(&digest).unwrap();
    registry.blobs().remove(&digest).unwrap();
    std::fs::write(&blob, vec![0; bytes.len()]).unwrap();
    let refused = ollama::copy_all(&registry, &resolved).unwrap_err();
    assert!(matches!(refused, RemoteError::Blobs(BlobError::Mismatch { .. })), "{refused}");
    assert!(ollama::resolve(store.path(), "../tiny").is_err());
}
