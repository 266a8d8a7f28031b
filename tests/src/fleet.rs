//! A fleet of one, made by the quickstart, whose processes a test starts, stops and kills one by
//! one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::process::{Process, fulmar_ok, json_of};
use crate::until;

/// Owner, control plane and device in one directory.
#[derive(Debug)]
pub struct Fleet {
    dir: tempfile::TempDir,
    /// What the quickstart said.
    pub facts: Value,
    /// What it remembers: ports, and who signs in to the console.
    memory: Value,
    token: String,
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
        let memory = serde_json::from_slice(&memory).expect("its memory is JSON");
        let token = fulmar_ok(&["token", "mint", "--dir", text(&place.join("device"))]);
        Self { dir, facts, memory, token: token.trim().to_owned() }
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
        format!("127.0.0.1:{}", self.memory["ports"][name])
    }

    /// The owner signs the default model under another name, with more arguments to `fulmar registry
    /// publish`, and the operator deploys it to all.
    pub fn release(&self, name: &str, more: &[&str]) {
        let model = crate::demo_model();
        let (registry, key) =
            (self.owner_dir().join("registry"), self.owner_dir().join("registry.key"));
        let sign = ["registry", "publish", text(&registry), text(&model), "--name", name, "--key"];
        let _ = fulmar_ok(&[&sign[..], &[text(&key)], more].concat());
        let hand_in = ["publish", text(&registry), "--file", text(&model), "--deploy", "all"];
        let _ = fulmar_ok(&[&hand_in[..], &self.console_access()].concat());
    }

    /// Starts the control plane on the ports that the device knows.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start_control(&self) -> Process {
        self.start_control_checked_in_every("300")
    }

    /// Starts the control plane, which asks devices to come again after so many milliseconds.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start_control_checked_in_every(&self, interval_ms: &str) -> Process {
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
            interval_ms,
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

    /// An app's token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Who signs in to the console: name and password.
    ///
    /// # Panics
    /// When the quickstart did not remember them.
    #[must_use]
    pub fn operator_credentials(&self) -> (&str, &str) {
        let remembered = |name: &str| self.memory[name].as_str().expect("the quickstart keeps it");
        (remembered("admin"), remembered("admin_password"))
    }

    /// The options of the owner's commands that say where the console is and how to sign in.
    ///
    /// # Panics
    /// When the quickstart did not say it.
    #[must_use]
    pub fn console_access(&self) -> [&str; 4] {
        let url = self.facts["console_url"].as_str().expect("the quickstart names the console");
        ["--console", url, "--password", self.operator_credentials().1]
    }

    /// Asks the model; gives status and body.
    #[must_use]
    pub fn ask_as(&self, token: &str, content: &str) -> (u16, Value) {
        self.ask_model(token, self.model(), content)
    }

    /// Asks a model of this name; gives status and body.
    ///
    /// # Panics
    /// When the agent cannot be reached.
    #[must_use]
    pub fn ask_model(&self, token: &str, model: &str, content: &str) -> (u16, Value) {
        let body = json!({
            "model": model,
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
        let (name, password) = self.operator_credentials();
        let credentials = json!({ "name": name, "password": password });
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
