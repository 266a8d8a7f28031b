//! The hub and the registry in a process beside the test, and what is done with them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fulmar_tests::{Output, client, python, root, text};
use serde_json::Value;

/// The weights that are pulled: no model at hand is smaller.
pub(crate) fn model() -> PathBuf {
    root().join("packaging/demo-model/fulmar-demo.gguf")
}

/// A running hub, its CDN and a registry.
pub(crate) struct Servers {
    child: Child,
    said: Value,
}

impl Servers {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(python())
            .arg(root().join("tests/imports/servers.py"))
            .arg(model())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = serde_json::from_str(&line).unwrap_or_else(|_| panic!("servers.py: {line:?}"));
        Self { child, said }
    }

    pub(crate) fn said(&self, what: &str) -> &str {
        self.said[what].as_str().unwrap()
    }

    pub(crate) fn size(&self) -> u64 {
        self.said["size"].as_u64().unwrap()
    }

    /// What the CDN has seen of `Authorization`, and which paths and ranges it was asked for.
    pub(crate) fn seen(&self) -> Value {
        let url = format!("http://{}/seen", self.said("cdn"));
        client().get(url).send().unwrap().json().unwrap()
    }

    /// `fulmar` of a device in `dir`, with the hub's address and token, to be started.
    pub(crate) fn command(&self, dir: &Path, arguments: &[&str], more: &[(&str, &str)]) -> Command {
        let mut command = Command::new(fulmar_tests::fulmar_bin());
        command
            .args(arguments)
            .args(["--dir", text(dir)])
            .env("HOME", dir)
            .env("NO_COLOR", "1")
            .env("HF_ENDPOINT", format!("http://{}", self.said("hub")))
            .env("HF_TOKEN", self.said("token"))
            .envs(more.iter().copied())
            .stdin(Stdio::null());
        command
    }

    /// [`Servers::command`], run to its end.
    pub(crate) fn fulmar(&self, dir: &Path, arguments: &[&str], more: &[(&str, &str)]) -> Output {
        let output = self.command(dir, arguments, more).output().unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command of [`Servers::fulmar`] that must succeed, and reads its JSON.
    pub(crate) fn json(&self, dir: &Path, arguments: &[&str], more: &[(&str, &str)]) -> Value {
        let output = self.fulmar(dir, arguments, more);
        assert_eq!(output.code, 0, "{arguments:?}: {}{}", output.stdout, output.stderr);
        serde_json::from_str(&output.stdout).unwrap()
    }

    /// Runs a command that must fail; gives what it said.
    pub(crate) fn refused(&self, dir: &Path, arguments: &[&str], more: &[(&str, &str)]) -> String {
        let output = self.fulmar(dir, arguments, more);
        assert_ne!(output.code, 0, "{arguments:?}: {}", output.stdout);
        output.stderr
    }

    /// Complete blobs on a device, and partial ones.
    pub(crate) fn blobs(dir: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let mut found = (Vec::new(), Vec::new());
        let mut folders = vec![dir.join("registry")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.starts_with(dir.join("registry/incoming")) {
                    found.1.push(path);
                } else if path.starts_with(dir.join("registry/blobs")) {
                    found.0.push(path);
                }
            }
        }
        found
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
