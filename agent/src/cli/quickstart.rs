//! `fulmar quickstart`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::Place;
use crate::quickstart::{self, Format, Options, Ports, Stay};

/// Arguments of `fulmar quickstart`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Stop after the answer.
    #[arg(long)]
    once: bool,
    /// Print one JSON object instead of prose.
    #[arg(long)]
    json: bool,
    /// Port for apps; default: a free one.
    #[arg(long)]
    api_port: Option<u16>,
    /// Port of the console; default: a free one.
    #[arg(long)]
    console_port: Option<u16>,
    /// Port where devices meet the control plane; default: a free one.
    #[arg(long)]
    device_port: Option<u16>,
}

/// Runs the quickstart.
pub(crate) fn run(place: &Place, args: &Args) -> anyhow::Result<ExitCode> {
    let dir: PathBuf = match place.dir() {
        Some(dir) => dir.to_owned(),
        None => crate::config::user_data_dir()
            .context("choose a directory: neither --dir, XDG_DATA_HOME nor HOME is set")?
            .join("quickstart"),
    };
    let dir = std::path::absolute(&dir).with_context(|| format!("find {}", dir.display()))?;
    let options = Options {
        dir,
        stay: if args.once { Stay::Once } else { Stay::UntilInterrupted },
        format: if args.json { Format::Json } else { Format::Prose },
        ports: Ports { api: args.api_port, console: args.console_port, device: args.device_port },
    };
    super::runtime()?.block_on(quickstart::run(options))?;
    Ok(ExitCode::SUCCESS)
}
