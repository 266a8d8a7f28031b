//! The command line: one module per command, each with its arguments and a `run`.

mod convert;
mod debug;
mod quantize;

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
    /// Make a GGUF file of a Hugging Face folder.
    Convert(convert::Args),
    /// Look inside: logits, tokens, templates, files.
    Debug(debug::Args),
    /// Make the weights of a GGUF file smaller.
    Quantize(quantize::Args),
}

/// Parses the arguments, runs the command, prints a failure with its causes.
pub(crate) fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Convert(args) => convert::run(args),
        Command::Debug(args) => debug::run(args),
        Command::Quantize(args) => quantize::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fulmar: failed to {error:#}");
            ExitCode::FAILURE
        }
    }
}
