//! `fulmar serve`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::Place;
use crate::logging::{self, Console};
use crate::serve;

/// Arguments of `fulmar serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Serve this GGUF file or Hugging Face folder, without a fleet: it is imported under this
    /// device's own key.
    #[arg(long, value_name = "FILE.gguf|FOLDER")]
    model: Option<PathBuf>,
    /// A small model of the same vocabulary that guesses ahead for it: faster, and the same answers.
    #[arg(long, value_name = "FILE.gguf|FOLDER", requires = "model")]
    draft_model: Option<PathBuf>,
    /// Address to listen on instead of the configured ones; port 0 takes a free one.
    #[arg(long)]
    listen: Vec<std::net::SocketAddr>,
    /// When ready, print one line of JSON to standard output: api_urls and device.
    #[arg(long)]
    ready_json: bool,
    /// Stop when standard input closes: for a process that must not outlive the one that starts it.
    #[arg(long)]
    until_stdin_closes: bool,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(place: &Place, args: Args) -> anyhow::Result<ExitCode> {
    let (mut config, dir) = place.load()?;
    if !args.listen.is_empty() {
        config.http.listen = args.listen;
    }
    std::fs::create_dir_all(&dir)?;
    let _log = logging::start(&config.log, &dir, Console::Same)?;
    let lifetime = if args.until_stdin_closes {
        serve::Lifetime::StandardInput
    } else {
        serve::Lifetime::Service
    };
    let options = serve::Options {
        config,
        dir,
        model: args.model,
        draft_model: args.draft_model,
        ready_json: args.ready_json,
        lifetime,
    };
    super::runtime()?.block_on(serve::run(options))?;
    Ok(ExitCode::SUCCESS)
}
