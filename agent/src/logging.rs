//! Structured logs: JSON lines in files that rotate by day and are limited in number, and short
//! lines for people on standard error.
//!
//! Log lines never hold tokens, prompts or answers; those belong to the audit log, if at all.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Logs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as
    /// `info,fulmar_sync=debug`. The variable FULMAR_LOG goes before it.
    pub(crate) level: String,
    /// Directory of the JSON files; default: `log` in the state directory.
    pub(crate) dir: Option<PathBuf>,
    /// Daily files kept.
    pub(crate) files_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".into(), dir: None, files_max: 14 }
    }
}

impl Config {
    /// Refuses a level that cannot be read.
    ///
    /// # Errors
    /// Names it.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        // The library reads a word that is no level as the name of a part that logs everything.
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let mut words = self.level.split(',').map(str::trim).filter(|word| !word.contains('='));
        if let Some(word) =
            words.find(|w| !levels.iter().any(|level| w.eq_ignore_ascii_case(level)))
        {
            anyhow::bail!(
                "read log.level {:?}: {word:?} is none of {}",
                self.level,
                levels.join(", ")
            );
        }
        self.filter().map(drop)
    }

    fn filter(&self) -> anyhow::Result<EnvFilter> {
        EnvFilter::try_new(&self.level).with_context(|| format!("read log.level {:?}", self.level))
    }
}

/// How much of the log goes to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Console {
    /// As much as into the files: for a service.
    Same,
    /// Warnings and errors: for commands whose output people read.
    Quiet,
}

/// Starts logging. Lines are written as long as the guard lives.
///
/// # Errors
/// When the directory cannot be made or the filter cannot be read.
pub(crate) fn start(
    config: &Config,
    state_dir: &Path,
    console: Console,
) -> anyhow::Result<WorkerGuard> {
    let dir = config.dir.clone().unwrap_or_else(|| state_dir.join("log"));
    std::fs::create_dir_all(&dir)
        .with_context(|| format!("make the log directory {}", dir.display()))?;
    let files = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("fulmar")
        .filename_suffix("jsonl")
        .max_log_files(config.files_max.max(1))
        .build(&dir)
        .with_context(|| format!("open a log file in {}", dir.display()))?;
    // Lossy: a full disk or a slow one must not stop requests.
    let (writer, guard) = tracing_appender::non_blocking(files);
    let quiet = EnvFilter::new("warn");
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .with_filter(match console {
            Console::Same => filter(config)?,
            Console::Quiet => quiet,
        });
    let json = tracing_subscriber::fmt::layer().json().with_writer(writer);
    // A subscriber that is there already (in tests) stays.
    let _ = tracing_subscriber::registry()
        .with(json.with_filter(filter(config)?))
        .with(stderr)
        .try_init();
    Ok(guard)
}

fn filter(config: &Config) -> anyhow::Result<EnvFilter> {
    if let Ok(filter) = EnvFilter::try_from_env("FULMAR_LOG") {
        return Ok(filter);
    }
    config.filter()
}
