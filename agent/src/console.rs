//! The operator's part, over the control plane's JSON API: what the console in the browser does,
//! for commands.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_registry::Digest;
use reqwest::{Body, Client, Method, RequestBuilder, StatusCode};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value, json};
use tokio::io::AsyncSeekExt as _;
use tokio_util::io::ReaderStream;

/// Says where an upload goes on, in bytes.
const OFFSET: &str = "upload-offset";
/// Says how long the whole blob is, in bytes.
const LENGTH: &str = "upload-length";

/// A client for plain HTTP on loopback: it trusts no certificate at all, so it never speaks TLS.
///
/// # Errors
/// When the library cannot make one.
pub(crate) fn plain_client() -> anyhow::Result<Client> {
    client_with(RootCertStore::empty())
}

fn client_with(roots: RootCertStore) -> anyhow::Result<Client> {
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .connect_timeout(std::time::Duration::from_secs(10))
        .build()
        .context("make an HTTP client")
}

/// A client for the console at `url`: with `ca` it trusts that certificate only, without it the
/// system's.
fn client_for(url: &str, ca: Option<&Path>) -> anyhow::Result<Client> {
    anyhow::ensure!(
        url.starts_with("http://") || url.starts_with("https://"),
        "connect to {url:?}: give the console's address as http://127.0.0.1:PORT or https://HOST:PORT"
    );
    if let Some(rest) = url.strip_prefix("http://") {
        let host = rest.split(['/', ':']).next().unwrap_or_default();
        let loopback = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            || rest.starts_with("[::1]");
        anyhow::ensure!(
            loopback,
            "connect to {url}: without TLS only to this machine; give an https:// address"
        );
        return plain_client();
    }
    let Some(ca) = ca else {
        return Client::builder().https_only(true).build().context("make an HTTP client");
    };
    let read = || format!("read the certificate {}", ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(read)? {
        roots.add(certificate.with_context(read)?).with_context(read)?;
    }
    anyhow::ensure!(!roots.is_empty(), "{}: no certificate in it", read());
    client_with(roots)
}

/// The bytes of a blob.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// At hand.
    Bytes(Vec<u8>),
    /// In a file.
    File(PathBuf),
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
    pub(crate) async fn sign_in(
        url: &str,
        ca: Option<&Path>,
        name: &str,
        password: &str,
    ) -> anyhow::Result<Self> {
        let mut console = Self::with_token(url, ca, String::new())?;
        let credentials = json!({ "name": name, "password": password });
        let answer = console.send(Method::POST, "sign-in", &credentials).await?;
        console.token = text(&answer, "token")?;
        Ok(console)
    }

    /// Takes a token that an earlier sign-in gave.
    ///
    /// # Errors
    /// When `url` or `ca` is of no use.
    pub(crate) fn with_token(url: &str, ca: Option<&Path>, token: String) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { client: client_for(&url, ca)?, url, token })
    }

    /// Uploads blobs, then the metadata that names them; what is there is left alone. Returns the
    /// models that have a new release.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn publish(
        &self,
        blobs: &[(Digest, Source)],
        metadata: &[(String, Vec<u8>)],
    ) -> anyhow::Result<Vec<String>> {
        for (digest, source) in blobs {
            self.upload(digest, source).await.with_context(|| format!("upload {digest}"))?;
        }
        let files: Map<String, Value> = metadata
            .iter()
            .map(|(name, bytes)| (name.clone(), STANDARD.encode(bytes).into()))
            .collect();
        let taken =
            self.send(Method::POST, "registry/metadata", &json!({ "files": files })).await?;
        serde_json::from_value(taken["published"].clone()).context("read the answer's `published`")
    }

    /// Whether the control plane has a blob already.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn has(&self, digest: &Digest) -> anyhow::Result<bool> {
        Ok(self.bytes_there(digest).await?.is_none())
    }

    /// Bytes of a blob that are there, or none when it is complete.
    async fn bytes_there(&self, digest: &Digest) -> anyhow::Result<Option<u64>> {
        let answer = self
            .request(Method::HEAD, &format!("blobs/{digest}"))
            .send()
            .await
            .context("look for a blob")?;
        let offset = answer.headers().get(OFFSET).and_then(|v| v.to_str().ok()?.parse().ok());
        match answer.status() {
            StatusCode::OK => Ok(None),
            StatusCode::NOT_FOUND => Ok(Some(offset.unwrap_or(0))),
            status => anyhow::bail!("look for blob {digest}: the control plane answered {status}"),
        }
    }

    async fn upload(&self, digest: &Digest, source: &Source) -> anyhow::Result<()> {
        let Some(there) = self.bytes_there(digest).await? else { return Ok(()) };
        let request = self.request(Method::PUT, &format!("blobs/{digest}"));
        let request = match source {
            Source::Bytes(bytes) => request.body(bytes.clone()),
            Source::File(path) => {
                let read = || format!("read {}", path.display());
                let mut file = tokio::fs::File::open(path).await.with_context(read)?;
                let length = file.metadata().await.with_context(read)?.len();
                // Goes on where an earlier upload was cut off.
                let offset = if there < length { there } else { 0 };
                file.seek(std::io::SeekFrom::Start(offset)).await.with_context(read)?;
                request
                    .header(LENGTH, length)
                    .header(OFFSET, offset)
                    .body(Body::wrap_stream(ReaderStream::with_capacity(file, 256 << 10)))
            }
        };
        let answer = request.send().await.context("send it")?;
        read(answer, "send it").await.map(drop)
    }

    /// Makes a join token, good for `hours` if given, into these groups.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn join_token(
        &self,
        note: &str,
        hours: Option<u32>,
        groups: &[String],
    ) -> anyhow::Result<JoinToken> {
        let mut request = json!({ "note": note, "groups": groups });
        if let Some(hours) = hours {
            request["life_s"] = (i64::from(hours) * 3_600).into();
        }
        let answer = self.send(Method::POST, "join-tokens", &request).await?;
        let expires_s = answer["expires_s"].as_i64().context("read the answer's `expires_s`")?;
        Ok(JoinToken { token: text(&answer, "token")?, expires_s })
    }

    /// The fleet's groups.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn groups(&self) -> anyhow::Result<Value> {
        self.send(Method::GET, "groups", &Value::Null).await
    }

    /// The devices of a group, all pages of them.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn group_devices(&self, group: &str) -> anyhow::Result<Value> {
        let (group, mut after, mut devices) = (segment(group), String::new(), Vec::new());
        loop {
            let path = format!("devices?group={group}&after={after}&limit=500");
            let mut page = self.send(Method::GET, &path, &Value::Null).await?;
            if let Value::Array(more) = page["devices"].take() {
                devices.extend(more);
            }
            match page["next_after"].as_str() {
                Some(next) => after = next.to_owned(),
                None => return Ok(json!({ "devices": devices })),
            }
        }
    }

    /// Puts devices into a group.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn group_add(&self, group: &str, devices: &[String]) -> anyhow::Result<Value> {
        let path = format!("groups/{}/devices", segment(group));
        self.send(Method::POST, &path, &json!({ "devices": devices })).await
    }

    /// Takes a device out of a group.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn group_remove(&self, group: &str, device: &str) -> anyhow::Result<Value> {
        let path = format!("groups/{}/devices/{}", segment(group), segment(device));
        self.send(Method::DELETE, &path, &Value::Null).await
    }

    /// Says that `devices` (`"all"`, a list of ids, or `{"groups": […]}`) should serve a model; returns the
    /// deployment's number.
    ///
    /// # Errors
    /// What the control plane said.
    pub(crate) async fn deploy(
        &self,
        model: &str,
        digest: Option<&Digest>,
        devices: Value,
    ) -> anyhow::Result<i64> {
        let mut order = json!({ "model": model, "devices": devices, "use_as": "active" });
        if let Some(digest) = digest {
            order["digest"] = digest.to_string().into();
        }
        let answer = self.send(Method::POST, "deployments", &order).await?;
        answer["id"].as_i64().context("read the answer's `id`")
    }

    /// What the control plane knows of a device.
    ///
    /// # Errors
    /// What the control plane said.
    #[cfg(all(feature = "control-plane", feature = "demo-model"))]
    pub(crate) async fn device(&self, device_id: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, &format!("devices/{device_id}"), &Value::Null).await
    }

    /// Hands in a device's file of reports.
    ///
    /// # Errors
    /// What the control plane says.
    pub(crate) async fn hand_in(&self, file: Vec<u8>) -> anyhow::Result<Value> {
        let request = self.request(Method::POST, "report-files").body(file);
        read(request.send().await.map_err(|error| self.unreachable(error))?, "hand in reports")
            .await
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
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        read(response, &what).await
    }

    /// What to do where nobody answers, and the library's reason.
    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let what = format!("reach the console at {} (is the control plane running?)", self.url);
        anyhow::Error::new(error.without_url()).context(what)
    }
}

/// A join token, a secret.
pub(crate) struct JoinToken {
    /// What to enter on the device.
    pub(crate) token: String,
    /// Until when it is good, seconds since 1970.
    pub(crate) expires_s: i64,
}

/// What a person typed, as one segment of a path.
fn segment(text: &str) -> String {
    let quoted = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(quoted).collect()
}

fn text(answer: &Value, field: &str) -> anyhow::Result<String> {
    let text = answer[field].as_str();
    Ok(text.with_context(|| format!("read the answer's `{field}`"))?.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_does_not_cross_a_network_in_clear() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for url in ["http://127.0.0.1:7480", "http://localhost:1", "http://[::1]:7480"] {
            client_for(url, None).unwrap();
        }
        for url in ["http://10.0.0.1:7480", "http://fleet.example", "http://127.0.0.1.evil.example"]
        {
            let refused = client_for(url, None).unwrap_err();
            assert!(refused.to_string().contains("without TLS"), "{url}: {refused}");
        }
    }
}
