//! The operator's part, over the control plane's JSON API on loopback.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_registry::Digest;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Map, Value, json};

use super::owner::Release;

/// A client for plain HTTP on loopback: it trusts no certificate at all, so it never speaks TLS.
///
/// # Errors
/// When the library cannot make one.
pub(crate) fn plain_client() -> anyhow::Result<Client> {
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .connect_timeout(std::time::Duration::from_secs(5))
        .build()
        .context("make an HTTP client")
}

/// A signed-in operator.
#[derive(Debug)]
pub(crate) struct Console {
    client: Client,
    url: String,
    token: String,
}

impl Console {
    /// Signs in with name and password.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn sign_in(url: &str, name: &str, password: &str) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        let mut console = Self { client: plain_client()?, url, token: String::new() };
        let credentials = json!({ "name": name, "password": password });
        let answer = console.send(Method::POST, "sign-in", &credentials).await?;
        console.token = super::text(&answer["token"])?;
        Ok(console)
    }

    /// Uploads what the release needs and then its metadata; what is there is left alone.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn publish(&self, release: &Release) -> anyhow::Result<()> {
        self.upload(&release.digest, release.manifest.clone()).await?;
        let weights = tokio::fs::read(&release.weights)
            .await
            .with_context(|| format!("read {}", release.weights.display()))?;
        self.upload(&release.weights_digest, weights).await?;
        let files: Map<String, Value> = release
            .metadata
            .iter()
            .map(|(name, bytes)| (name.clone(), STANDARD.encode(bytes).into()))
            .collect();
        self.send(Method::POST, "registry/metadata", &json!({ "files": files })).await?;
        Ok(())
    }

    async fn upload(&self, digest: &Digest, bytes: Vec<u8>) -> anyhow::Result<()> {
        let path = format!("blobs/{digest}");
        let there = self.request(Method::HEAD, &path).send().await.context("look for a blob")?;
        if there.status() == StatusCode::OK {
            return Ok(());
        }
        let response = self
            .request(Method::PUT, &path)
            .body(bytes)
            .send()
            .await
            .with_context(|| format!("upload {digest}"))?;
        read(response, &format!("upload {digest}")).await.map(drop)
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn join_token(&self, note: &str) -> anyhow::Result<String> {
        let answer = self.send(Method::POST, "join-tokens", &json!({ "note": note })).await?;
        super::text(&answer["token"])
    }

    /// Says that the device should serve the release, unless that was said before.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn deploy(&self, release: &Release, device_id: &str) -> anyhow::Result<()> {
        let digest = release.digest.to_string();
        let device = self.send(Method::GET, &format!("devices/{device_id}"), &Value::Null).await?;
        let desired = device["desired"].as_array().map(Vec::as_slice).unwrap_or_default();
        if desired.iter().any(|model| model["digest"] == digest.as_str()) {
            return Ok(());
        }
        let order = json!({
            "model": release.name.to_string(),
            "digest": digest,
            "devices": [device_id],
            "use_as": "active",
        });
        self.send(Method::POST, "deployments", &order).await?;
        Ok(())
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/api/v1/{path}", self.url)).bearer_auth(&self.token)
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let what = format!("ask the control plane for {method} {path}");
        let mut request = self.request(method, path);
        if !body.is_null() {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| what.clone())?;
        read(response, &what).await
    }
}

async fn read(response: reqwest::Response, what: &str) -> anyhow::Result<Value> {
    let status = response.status();
    let bytes = response.bytes().await.with_context(|| what.to_owned())?;
    let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    anyhow::ensure!(
        status.is_success(),
        "{what}: {status}: {}",
        value["message"].as_str().unwrap_or("no reason given")
    );
    Ok(value)
}
