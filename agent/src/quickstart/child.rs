//! A process that the quickstart starts, waits for and stops.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// How long a process may take until it says that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to drain.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A running process of this program.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    /// Held here: waiting for a child closes what is left in it.
    stdin: Option<ChildStdin>,
    /// What it said when it was ready.
    pub(crate) ready: Value,
}

impl Process {
    /// Starts this program with other arguments and waits for its line of JSON. Its log goes to
    /// `log`. It ends when its standard input closes, so it never outlives the quickstart.
    ///
    /// # Errors
    /// When it does not become ready; the end of its log is part of the error.
    pub(crate) async fn start(
        name: &'static str,
        arguments: &[std::ffi::OsString],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let log_file = std::fs::File::create(log)
            .with_context(|| format!("open the log {}", log.display()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start the {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("read from the process")?;
        let mut line = String::new();
        let read = BufReader::new(stdout);
        let mut read = read;
        let told = tokio::time::timeout(READY_TIMEOUT, read.read_line(&mut line)).await;
        let ready = match told {
            Ok(Ok(_)) => serde_json::from_str(&line).ok(),
            _ => None,
        };
        let Some(ready) = ready else {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            anyhow::bail!(
                "start the {name}: it did not become ready; it said:\n{}",
                tail.join("\n")
            );
        };
        Ok(Self { name, child, stdin, ready })
    }

    /// A field of the line of JSON.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn told(&self, field: &str) -> anyhow::Result<&Value> {
        self.ready
            .get(field)
            .with_context(|| format!("start the {}: it did not tell its {field}", self.name))
    }

    /// Waits until it ends by itself, which it should not.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => anyhow::anyhow!("keep the {} running: it ended with {status}", self.name),
            Err(error) => anyhow::anyhow!("keep the {} running: {error}", self.name),
        }
    }

    /// Asks it to stop and waits until it has drained.
    ///
    /// # Errors
    /// When it ends with a failure, or does not end in time.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        // Closing its standard input is the request; a signal may have reached it already.
        drop(self.stdin.take());
        let status = tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .with_context(|| format!("stop the {}: it did not end in time", self.name))?
            .with_context(|| format!("stop the {}", self.name))?;
        anyhow::ensure!(status.success(), "stop the {}: it ended with {status}", self.name);
        Ok(())
    }
}
