//! The command line: one module per command, each with its arguments and a `run`.

mod debug;

use std::process::ExitCode;

use clap::Parser;

/// Runs small language models on a device, under rules that its owner signed.
#[derive(Debug, Parser)]
#[command(name = "fulmar", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Look inside: logits, tokens, templates, files.
    Debug(debug::Args),
}

/// Parses the arguments, runs the command, prints a failure with its causes.
pub(crate) fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Debug(args) => debug::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fulmar: failed to {error:#}");
            ExitCode::FAILURE
        }
    }
}
