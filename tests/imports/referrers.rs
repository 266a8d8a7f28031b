//! Publishers' signatures of models in OCI registries and Ollama stores.

use std::path::{Path, PathBuf};

use fulmar_tests::{client, text};
use serde_json::{Value, json};

use crate::servers::{Servers, model};
use crate::signing::signed;

/// As registries write it.
fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes)))
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A repository in the registry.
struct Repository<'a> {
    servers: &'a Servers,
    name: &'a str,
}

impl Repository<'_> {
    fn send(&self, post: bool, at: &str, kind: &str, body: Vec<u8>) -> reqwest::blocking::Response {
        let url = format!("http://{}{at}", self.servers.said("registry"));
        let request = if post { client().post(url) } else { client().put(url) };
        let (user, password) = (self.servers.said("user"), self.servers.said("password"));
        let request = request.basic_auth(user, Some(password)).header("content-type", kind);
        let answer = request.body(body).send().unwrap();
        assert!(answer.status().is_success(), "{at}: {}", answer.status());
        answer
    }

    fn blob(&self, bytes: &[u8], kind: &str, title: &str) -> Value {
        let begin = format!("/v2/{}/blobs/uploads/", self.name);
        let begun = self.send(true, &begin, "application/octet-stream", Vec::new());
        let place = begun.headers()["location"].to_str().unwrap().to_owned();
        let digest = sha256(bytes);
        self.send(
            false,
            &format!("{place}?digest={digest}"),
            "application/octet-stream",
            bytes.into(),
        );
        let annotations = json!({"org.cncf.model.filepath": title});
        json!({"mediaType": kind, "digest": digest, "size": bytes.len(), "annotations": annotations})
    }

    fn manifest(&self, tag: &str, kind: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let digest = sha256(&bytes);
        let tag = if tag.is_empty() { digest.clone() } else { tag.to_owned() };
        self.send(false, &format!("/v2/{}/manifests/{tag}", self.name), kind, bytes);
        digest
    }

    /// A model, with more layers.
    fn model(&self, more: &[Value]) -> String {
        let weights = std::fs::read(model()).unwrap();
        let kind = "application/vnd.cncf.model.weight.v1.raw";
        let mut layers = vec![self.blob(&weights, kind, "tiny-Q8_0.gguf")];
        layers.extend_from_slice(more);
        let config = self.blob(b"{}", "application/vnd.cncf.model.config.v1+json", "");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        });
        self.manifest("v1", MANIFEST, &manifest)
    }

    /// A bundle that refers to a manifest, as cosign's specification has it.
    fn refers(&self, subject: &str, bundle: &Path) -> Value {
        let layer = self.blob(&std::fs::read(bundle).unwrap(), BUNDLE, "");
        let config = self.blob(b"{}", "application/vnd.oci.empty.v1+json", "");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE, "config": config,
            "layers": [layer], "subject": {"mediaType": MANIFEST, "digest": subject, "size": 1},
        });
        let digest = self.manifest("", MANIFEST, &manifest);
        let size = manifest.to_string().len();
        json!({"mediaType": MANIFEST, "digest": digest, "size": size, "artifactType": BUNDLE})
    }
}

/// A device that trusts one key, or nobody, and logs in.
struct Device<'a> {
    servers: &'a Servers,
    dir: PathBuf,
    keys: String,
}

impl Device<'_> {
    fn settings(&self, trusting: bool) -> Vec<(&'static str, &str)> {
        let mut settings = vec![
            ("FULMAR_REGISTRY_USER", self.servers.said("user")),
            ("FULMAR_REGISTRY_PASSWORD", self.servers.said("password")),
        ];
        if trusting {
            settings.push(("FULMAR__REGISTRY__SIGNING_KEYS", self.keys.as_str()));
        }
        settings
    }

    fn pulled(&self, arguments: &[&str]) -> Value {
        let arguments = [&["pull", "--json"], arguments].concat();
        self.servers.json(&self.dir, &arguments, &self.settings(true))["publisher"].clone()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let arguments = [&["pull", "--json"], arguments].concat();
        self.servers.refused(&self.dir, &arguments, &self.settings(false))
    }
}

#[test]
fn a_bundle_is_found_by_what_refers_to_an_artifact_and_among_its_layers() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    signed(dir.path());
    let at = |name: &str| dir.path().join(name);
    let keys = format!("[\"{}\"]", text(&at("key.pem")));
    let device = Device { servers: &servers, dir: at("device"), keys };

    let api = Repository { servers: &servers, name: "basic/api" };
    let subject = api.model(&[]);
    // Signed by nobody who counts here, and about something else: neither stands in the way.
    api.refers(&subject, &at("chain.sig"));
    std::fs::write(at("provenance.sig"), b"{\"mediaType\": \"x\"}").unwrap();
    api.refers(&subject, &at("provenance.sig"));
    api.refers(&subject, &at("folder.sig"));

    let tags = Repository { servers: &servers, name: "basic/tags" };
    let subject = tags.model(&[]);
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [tags.refers(&subject, &at("folder.sig"))],
    });
    tags.manifest(&subject.replace(':', "-"), INDEX, &index);

    let layer = Repository { servers: &servers, name: "basic/layer" };
    let bundle = std::fs::read(at("folder.sig")).unwrap();
    let kind = "application/vnd.cncf.model.doc.v1.raw";
    let bundle = layer.blob(&bundle, kind, "model.sig");
    layer.model(&[bundle]);

    for repository in ["api", "tags", "layer"] {
        let place = format!("oci://{}/basic/{repository}:v1", servers.said("registry"));
        let refused = device.refused(&[&place]);
        assert!(refused.contains("trusted are none"), "{repository}: {refused}");
        assert_eq!(device.pulled(&[&place])["signature"], "verified", "{repository}");
    }

    let other = Repository { servers: &servers, name: "basic/other-api" };
    let subject = other.model(&[]);
    other.refers(&subject, &at("provenance.sig"));
    let place = format!("oci://{}/basic/other-api:v1", servers.said("registry"));
    assert_eq!(device.pulled(&[&place])["signature"], "absent");
    // A bundle that lies elsewhere can be named.
    let named = device.pulled(&[&place, "--signature", text(&at("folder.sig"))]);
    assert_eq!(named["signature"], "verified");
    let other = servers.refused(
        &device.dir,
        &["pull", &place, "--signature", text(&at("changed.sig"))],
        &device.settings(true),
    );
    assert!(other.contains("no trusted key made it"), "{other}");
}

#[test]
fn a_bundle_among_the_layers_of_an_ollama_store_is_found() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    signed(dir.path());
    let at = |name: &str| dir.path().join(name);
    let keys = format!("[\"{}\"]", text(&at("key.pem")));
    let device = Device { servers: &servers, dir: at("device"), keys };
    let manifests = at("store/manifests/registry.ollama.ai/library/tiny");
    std::fs::create_dir_all(&manifests).unwrap();
    std::fs::create_dir_all(at("store/blobs")).unwrap();
    let layer = |path: &Path, kind: &str| {
        let bytes = std::fs::read(path).unwrap();
        let digest = sha256(&bytes);
        std::fs::write(at("store/blobs").join(digest.replace(':', "-")), &bytes).unwrap();
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    let weights = layer(&model(), "application/vnd.ollama.image.model");
    let bundle = layer(&at("folder.sig"), BUNDLE);
    let put = |layers: Value| {
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers});
        std::fs::write(manifests.join("latest"), manifest.to_string()).unwrap();
    };
    let (store, pull) = (at("store"), "ollama://tiny");
    let pull = [pull, "--ollama-dir", text(&store)];
    put(json!([weights, bundle]));
    let refused = device.refused(&pull);
    assert!(refused.contains("trusted are none"), "{refused}");
    assert_eq!(device.pulled(&pull)["signature"], "verified");
    put(json!([weights]));
    assert_eq!(device.pulled(&pull)["signature"], "absent");
    let elsewhere = at("key.sig");
    let named = [&pull[..], &["--signature", text(&elsewhere)]].concat();
    assert_eq!(device.pulled(&named)["signature"], "verified");
    // Weights that nobody has named.
    let other = layer(&at("key.pem"), "application/vnd.ollama.image.model");
    put(json!([other, bundle]));
    let settings = device.settings(true);
    let refused = servers.refused(&device.dir, &[&["pull"], &pull[..]].concat(), &settings);
    assert!(refused.contains("is not among them"), "{refused}");
}
