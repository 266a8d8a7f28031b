//! Running the built program.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// Its exit status; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `fulmar` to its end.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn fulmar<A: AsRef<OsStr>>(arguments: &[A]) -> Output {
    let output = Command::new(crate::fulmar_bin())
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .expect("fulmar can be started");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `fulmar`, which must succeed, and gives its standard output.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn fulmar_ok<A: AsRef<OsStr> + std::fmt::Debug>(arguments: &[A]) -> String {
    let output = fulmar(arguments);
    assert_eq!(output.code, 0, "fulmar {arguments:?}: {}{}", output.stdout, output.stderr);
    output.stdout
}

/// Runs `fulmar`, which must succeed, and reads its standard output as JSON.
///
/// # Panics
/// When it fails, or says something else.
#[must_use]
pub fn json_of<A: AsRef<OsStr> + std::fmt::Debug>(arguments: &[A]) -> Value {
    let text = fulmar_ok(arguments);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("fulmar {arguments:?} said: {text}"))
}

/// A running process that says one line of JSON when it is ready. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    /// What it said.
    pub ready: Value,
}

impl Process {
    /// Starts `fulmar` and waits for its line.
    ///
    /// # Panics
    /// When it ends first, or says something that is no JSON.
    #[must_use]
    pub fn start<A: AsRef<OsStr> + std::fmt::Debug>(arguments: &[A]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// Starts `fulmar` with more variables in its environment.
    ///
    /// # Panics
    /// When it ends first, or says something that is no JSON.
    #[must_use]
    pub fn start_with<A: AsRef<OsStr> + std::fmt::Debug>(
        arguments: &[A],
        variables: &[(&str, &str)],
    ) -> Self {
        let mut child = Command::new(crate::fulmar_bin())
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("fulmar can be started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output is piped");
        BufReader::new(stdout).read_line(&mut line).expect("its output can be read");
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| {
            let _ = child.kill();
            panic!("fulmar {arguments:?} said {line:?} instead of being ready")
        });
        let stdin = child.stdin.take();
        Self { child, stdin, ready }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL: the plug is pulled.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it has ended");
    }

    /// Sends a signal by its name.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.id().to_string()])
            .status()
            .expect("kill can be started");
        assert!(status.success());
    }

    /// Asks it to stop and waits until it has; gives its exit status.
    ///
    /// # Panics
    /// When it cannot be waited for.
    #[must_use]
    pub fn stop(mut self) -> i32 {
        self.signal("TERM");
        self.child.wait().expect("it has ended").code().unwrap_or(-1)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
