//! `fulmar debug`: looks inside models, tokenizers and templates.

use std::process::ExitCode;

/// Arguments of `fulmar debug`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("run debug: no sub-command is built in yet")
}
