//! A control plane on free ports, an owner with a registry, and devices that speak TLS.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_control::{Config, InitOptions, InitReport, Running};
use fulmar_protocol::{
    CheckIn, CheckInResponse, DeviceFacts, EnrollRequest, EnrollResponse, JoinToken, ModelState,
    ModelStatus,
};
use fulmar_registry::trust::repository::{Plan, Repository};
use fulmar_registry::trust::{Ed25519Key, SigningKey as _};
use fulmar_registry::{Digest, Manifest};
use rcgen::{CertificateParams, KeyPair};
use reqwest::{Method, Response, StatusCode};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::sync::oneshot;

pub const MODEL: &str = "acme/tiny:v1";

pub fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

pub struct Plane {
    pub dir: tempfile::TempDir,
    pub report: InitReport,
    pub running: Option<Running>,
    pub device_url: String,
    pub console_url: String,
    pub http: reqwest::Client,
    pub token: String,
    pub owner: Owner,
    stop: Option<oneshot::Sender<()>>,
}

/// The registry's owner: the only one with the keys.
pub struct Owner {
    pub key: Ed25519Key,
    pub repository: Repository,
    _dir: tempfile::TempDir,
}

impl Owner {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = Ed25519Key::generate().unwrap();
        let plan = Plan::with_keys(&[key.public().clone()], 1);
        let repository = Repository::init(dir.path(), &plan, now_s()).unwrap();
        repository.sign(&[&key], now_s()).unwrap();
        Self { key, repository, _dir: dir }
    }

    /// Signs a release of `weights`; returns the manifest's bytes.
    pub fn release(&self, number: u64, weights: &[u8]) -> Vec<u8> {
        let manifest = manifest(number, weights);
        let custom = json!({ "fulmar": { "kind": "model", "release": number } });
        self.repository
            .publish_target("acme/tiny/v1.json", &manifest, Some(custom), None, now_s())
            .unwrap();
        self.repository.sign(&[&self.key], now_s()).unwrap();
        manifest
    }

    pub fn files(&self) -> Value {
        let files = self.repository.metadata_files(now_s()).unwrap();
        let files: serde_json::Map<String, Value> = files
            .into_iter()
            .map(|(name, bytes)| (name, Value::from(STANDARD.encode(bytes))))
            .collect();
        json!({ "files": files })
    }
}

pub fn manifest(number: u64, weights: &[u8]) -> Vec<u8> {
    let digest = Digest::of(weights);
    let json = json!({
        "schema": 1, "name": MODEL, "release": number, "created_at": "2026-01-01T00:00:00Z",
        "files": [{
            "role": "weights", "path": "tiny.gguf", "media_type": "application/vnd.fulmar.gguf",
            "size_bytes": weights.len(), "digest": digest, "chunk_bytes": 65536,
            "chunks": weights.chunks(65536).map(|c| Digest::of(c).hex()).collect::<Vec<_>>(),
        }],
        "architecture": "qwen3", "parameters": 1000, "size_class": "tiny",
        "quantization": "Q8_0", "context_tokens": 512,
    });
    let mut json = json;
    json["size_class"] =
        serde_json::to_value(fulmar_registry::manifest::SizeClass::of(1000)).unwrap();
    Manifest::parse(&serde_json::to_vec(&json).unwrap()).unwrap().to_bytes().unwrap()
}

impl Plane {
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner::new();
        let options = InitOptions {
            registry_root: Some(owner.repository.first_root().unwrap()),
            password_rounds: NonZeroU32::new(1_000).unwrap(),
            ..InitOptions::default()
        };
        let report = fulmar_control::init(&dir.path().join("cp"), &options).unwrap();
        let mut plane = Self {
            dir,
            report,
            running: None,
            device_url: String::new(),
            console_url: String::new(),
            http: reqwest::Client::new(),
            token: String::new(),
            owner,
            stop: None,
        };
        plane.serve().await;
        plane.token = plane.sign_in("admin", &plane.report.admin_password).await;
        plane
    }

    /// A token for an operator's programs.
    pub async fn sign_in(&self, name: &str, password: &str) -> String {
        let request = self
            .http
            .post(self.url("/api/v1/sign-in"))
            .json(&json!({ "name": name, "password": password }));
        let signed_in: Value = request.send().await.unwrap().json().await.unwrap();
        signed_in["token"].as_str().unwrap().to_owned()
    }

    pub async fn serve(&mut self) {
        let mut config = Config { dir: self.report.dir.clone(), ..Config::default() };
        config.device.listen = "127.0.0.1:0".parse().unwrap();
        config.console.listen = "127.0.0.1:0".parse().unwrap();
        config.limits.drain_timeout_ms = 1_000;
        let (stop, stopped) = oneshot::channel();
        let running = fulmar_control::serve(config, async {
            let _ = stopped.await;
        })
        .await
        .unwrap();
        self.device_url = running.device_url.clone();
        self.console_url = running.console_url.clone();
        (self.running, self.stop) = (Some(running), Some(stop));
    }

    pub async fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.running.take().unwrap().stopped().await.unwrap();
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.console_url)
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let mut request = self.http.request(method, self.url(path)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.call(Method::GET, path, None).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    /// Sends JSON and expects success.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.call(Method::POST, path, Some(body)).await;
        let status = answer.status();
        let value: Value = answer.json().await.unwrap_or(Value::Null);
        assert!(status.is_success(), "{path}: {status} {value}");
        value
    }

    pub async fn put_blob(&self, bytes: &[u8]) -> StatusCode {
        self.http
            .put(self.url(&format!("/api/v1/blobs/{}", Digest::of(bytes))))
            .bearer_auth(&self.token)
            .body(bytes.to_vec())
            .send()
            .await
            .unwrap()
            .status()
    }

    /// Publishes a release as the owner and the operator do together.
    pub async fn publish(&self, number: u64, weights: &[u8]) -> Digest {
        let manifest = self.owner.release(number, weights);
        assert_eq!(self.put_blob(weights).await, StatusCode::CREATED);
        assert_eq!(self.put_blob(&manifest).await, StatusCode::CREATED);
        self.post("/api/v1/registry/metadata", self.owner.files()).await;
        Digest::of(&manifest)
    }

    pub async fn join_token(&self) -> JoinToken {
        let made = self.post("/api/v1/join-tokens", json!({ "note": "test" })).await;
        JoinToken::decode(made["token"].as_str().unwrap()).unwrap()
    }

    pub fn ca(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(Path::new(&self.report.dir).join("ca.pem")).unwrap()
    }

    pub async fn device(&self, name: &str) -> Device {
        let token = self.join_token().await;
        Device::enroll(self, &token.secret, name).await.unwrap()
    }
}

/// A client of the device port.
pub fn client(ca: CertificateDer<'static>, identity: Option<(&str, &KeyPair)>) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((pem, key)) => {
            let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    reqwest::Client::builder().tls_backend_preconfigured(config).build().unwrap()
}

pub struct Device {
    pub id: String,
    pub url: String,
    pub http: reqwest::Client,
    pub key: KeyPair,
    pub joined: EnrollResponse,
    pub audit_key: fulmar_policy::audit::AuditKey,
}

pub fn enroll_request(secret: &str, name: &str, key: &KeyPair, audit_key: &[u8]) -> EnrollRequest {
    let csr = CertificateParams::default().serialize_request(key).unwrap();
    EnrollRequest {
        secret: secret.to_owned(),
        name: name.to_owned(),
        csr_pem: csr.pem().unwrap(),
        audit_key: hex::encode(audit_key),
        facts: DeviceFacts {
            arch: "x86_64".into(),
            os: "Test 1".into(),
            agent_version: "0.1.0".into(),
            cpus: 4,
            memory_bytes: 1 << 30,
        },
        registry_root_version: None,
    }
}

impl Device {
    pub async fn enroll(plane: &Plane, secret: &str, name: &str) -> Result<Self, (u16, String)> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let audit_key = fulmar_policy::audit::AuditKey::generate().unwrap();
        let request = enroll_request(secret, name, &key, audit_key.public());
        let answer = client(plane.ca(), None)
            .post(format!("{}/device/v1/enroll", plane.device_url))
            .json(&request)
            .send()
            .await
            .unwrap();
        if answer.status() != StatusCode::OK {
            return Err(code(answer).await);
        }
        let joined: EnrollResponse = answer.json().await.unwrap();
        let http = client(plane.ca(), Some((&joined.certificate_pem, &key)));
        let (id, url) = (joined.device_id.clone(), plane.device_url.clone());
        Ok(Self { id, url, http, key, joined, audit_key })
    }

    pub fn at(&self, path: &str) -> String {
        format!("{}/device/v1/{path}", self.url)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.http.get(self.at(path)).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &impl serde::Serialize) -> Response {
        self.http.post(self.at(path)).json(body).send().await.unwrap()
    }

    pub async fn check_in(&self, request: &CheckIn) -> CheckInResponse {
        let answer = self.post("check-in", request).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.unwrap()
    }
}

pub fn check_in(generation: u64) -> CheckIn {
    CheckIn {
        boot_id: "boot".into(),
        generation_seen: generation,
        generation_applied: generation,
        models: Vec::new(),
        disk_free_bytes: 1 << 30,
        clock_s: now_s(),
        link: "unmetered".into(),
        facts: None,
        audit_checkpoint: None,
    }
}

pub fn holds(digest: &Digest, state: ModelState) -> ModelStatus {
    ModelStatus {
        name: MODEL.into(),
        digest: digest.to_string(),
        state,
        bytes_done: 10,
        bytes_total: 10,
        reason: None,
    }
}

/// Status and code of a refusal.
pub async fn code(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let error: Value = answer.json().await.unwrap();
    (status, error["code"].as_str().unwrap().to_owned())
}

/// Sends a form, as a browser that follows no redirect.
pub async fn send(
    plane: &Plane,
    browser: &reqwest::Client,
    path: &str,
    cookie: &str,
    form: &[(&str, &str)],
) -> Response {
    let request = browser.post(plane.url(path)).header("cookie", cookie);
    let request = request.header("origin", &plane.console_url);
    let kind = "application/x-www-form-urlencoded";
    let field = |(name, value): &(&str, &str)| {
        format!("{name}={}", value.replace(' ', "+").replace('/', "%2F").replace(':', "%3A"))
    };
    let body = form.iter().map(field).collect::<Vec<_>>().join("&");
    request.header("content-type", kind).body(body).send().await.unwrap()
}

/// A page, which has to be there.
pub async fn read(plane: &Plane, browser: &reqwest::Client, path: &str, cookie: &str) -> String {
    let answer = browser.get(plane.url(path)).header("cookie", cookie).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.text().await.unwrap()
}
