//! A fleet of one, made by the quickstart, whose processes a test starts, stops and kills one by
//! one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::process::{Process, json_of};
use crate::until;

/// Owner, control plane and device in one directory.
#[derive(Debug)]
pub struct Fleet {
    dir: tempfile::TempDir,
    /// What the quickstart said.
    pub facts: Value,
    ports: Value,
}

impl Fleet {
    /// Makes the fleet, has its model asked once, and leaves nothing running.
    ///
    /// # Panics
    /// When the quickstart fails.
    #[must_use]
    pub fn made() -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let place = dir.path().join("fleet");
        let facts = json_of(&["quickstart", "--once", "--json", "--dir", text(&place)]);
        let memory = std::fs::read(place.join("quickstart.json")).expect("it remembers its ports");
        let memory: Value = serde_json::from_slice(&memory).expect("its memory is JSON");
        Self { dir, facts, ports: memory["ports"].clone() }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("fleet")
    }

    /// The device's state directory.
    #[must_use]
    pub fn device_dir(&self) -> PathBuf {
        self.place().join("device")
    }

    /// The owner's directory: the registry, and the key that signs it.
    #[must_use]
    pub fn owner_dir(&self) -> PathBuf {
        self.place().join("owner")
    }

    /// The control plane's state directory.
    #[must_use]
    pub fn control_dir(&self) -> PathBuf {
        self.place().join("control")
    }

    fn port(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.ports[name])
    }

    /// Starts the control plane on the ports that the device knows.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start_control(&self) -> Process {
        Process::start(&[
            "control-plane",
            "serve",
            "--dir",
            text(&self.control_dir()),
            "--device-listen",
            &self.port("device"),
            "--console-listen",
            &self.port("console"),
            "--check-in-interval-ms",
            "300",
            "--ready-json",
            "--until-stdin-closes",
        ])
    }

    /// Starts the agent on the port that the quickstart chose.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start_agent(&self) -> Process {
        Process::start(&[
            "serve",
            "--dir",
            text(&self.device_dir()),
            "--listen",
            &self.port("api"),
            "--ready-json",
            "--until-stdin-closes",
        ])
    }

    /// The model's name.
    ///
    /// # Panics
    /// When the quickstart did not say it.
    #[must_use]
    pub fn model(&self) -> &str {
        self.facts["model"]["name"].as_str().expect("the quickstart names the model")
    }

    /// The app's token.
    ///
    /// # Panics
    /// When the quickstart did not say it.
    #[must_use]
    pub fn token(&self) -> &str {
        self.facts["api_token"].as_str().expect("the quickstart gives a token")
    }

    /// Asks the model; gives status and body.
    ///
    /// # Panics
    /// When the agent cannot be reached.
    #[must_use]
    pub fn ask_as(&self, token: &str, content: &str) -> (u16, Value) {
        let body = json!({
            "model": self.model(),
            "messages": [{ "role": "user", "content": content }],
            "temperature": 0,
            "max_tokens": 64,
        });
        let response = client()
            .post(format!("http://{}/v1/chat/completions", self.port("api")))
            .bearer_auth(token)
            .json(&body)
            .send()
            .expect("the agent can be reached");
        let status = response.status().as_u16();
        (status, response.json().expect("it answers in JSON"))
    }

    /// Asks the model with the app's token.
    #[must_use]
    pub fn ask(&self, content: &str) -> (u16, Value) {
        self.ask_as(self.token(), content)
    }

    /// What the running agent says about itself.
    #[must_use]
    pub fn status(&self) -> Value {
        json_of(&["status", "--json", "--dir", text(&self.device_dir())])
    }

    /// Waits until the running agent says something about itself.
    pub fn until_status(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(what, || Some(self.status()).filter(|status| holds(status)))
    }

    /// Asks the control plane as its operator.
    ///
    /// # Panics
    /// When it refuses.
    #[must_use]
    pub fn operator(&self, path: &str) -> Value {
        self.as_operator(path, None)
    }

    /// Has the control plane do something, as its operator.
    ///
    /// # Panics
    /// When it refuses.
    pub fn operate(&self, path: &str, body: &Value) -> Value {
        self.as_operator(path, Some(body))
    }

    fn as_operator(&self, path: &str, body: Option<&Value>) -> Value {
        let url = format!("http://{}/api/v1", self.port("console"));
        let credentials = json!({
            "name": self.facts["console_user"], "password": self.facts["console_password"],
        });
        let answer: Value = client()
            .post(format!("{url}/sign-in"))
            .json(&credentials)
            .send()
            .expect("the control plane can be reached")
            .json()
            .expect("it answers in JSON");
        let token = answer["token"].as_str().expect("the operator is let in");
        let request = match body {
            Some(body) => client().post(format!("{url}/{path}")).json(body),
            None => client().get(format!("{url}/{path}")),
        };
        let response = request.bearer_auth(token).send().expect("the control plane can be reached");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.json().expect("it answers in JSON")
    }
}

/// A path as text; test directories are plain.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are plain text")
}

/// A client for plain HTTP on loopback.
///
/// # Panics
/// When the library cannot make one.
#[must_use]
pub fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .timeout(Duration::from_secs(60))
        .build()
        .expect("a client can be made")
}
