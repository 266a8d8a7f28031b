//! A device without a fleet that serves one model.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process::{Process, fulmar_ok};
use crate::{client, python, root, text};

/// A running agent of its own, and a token for it.
#[derive(Debug)]
pub struct Device {
    dir: tempfile::TempDir,
    _agent: Process,
    /// `http://127.0.0.1:…/v1`.
    pub url: String,
    /// An app's token.
    pub token: String,
    /// The model's full name.
    pub model: String,
}

impl Device {
    /// Serves `model`, with more arguments to `fulmar serve`.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn serving(model: &Path, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let place = dir.path().join("device");
        let mut arguments = vec!["serve", "--dir", text(&place), "--model", text(model)];
        arguments.extend(["--listen", "127.0.0.1:0", "--ready-json", "--until-stdin-closes"]);
        arguments.extend(more);
        let agent = Process::start(&arguments);
        let url = agent.ready["api_urls"][0].as_str().expect("it says where").to_owned();
        let token = fulmar_ok(&["token", "mint", "--dir", text(&place)]).trim().to_owned();
        let stem = model.file_stem().expect("a file's name").to_string_lossy().to_lowercase();
        Self { dir, _agent: agent, url, token, model: format!("local/{stem}:latest") }
    }

    /// Its state directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("device")
    }

    /// Posts JSON; gives status and body.
    ///
    /// # Panics
    /// When the agent cannot be reached or does not answer in JSON.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = client()
            .post(format!("{}/{path}", self.url))
            .bearer_auth(&self.token)
            .json(body)
            .send()
            .expect("the agent can be reached");
        let status = response.status().as_u16();
        (status, response.json().expect("it answers in JSON"))
    }

    /// Runs a Python client of `tests/functional` against it.
    ///
    /// # Panics
    /// When the client fails.
    pub fn run_client(&self, script: &str) {
        self.run_client_with(script, &[]);
    }

    /// Runs a Python client with more variables in its environment.
    ///
    /// # Panics
    /// When the client fails.
    pub fn run_client_with(&self, script: &str, variables: &[(&str, &str)]) {
        let output = Command::new(python())
            .arg(root().join("tests/functional").join(script))
            .envs(variables.iter().copied())
            .env("BASE_URL", &self.url)
            .env("API_KEY", &self.token)
            .env("MODEL", &self.model)
            .output()
            .expect("python can be started");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
