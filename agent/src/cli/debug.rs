//! `fulmar debug`: looks inside models, tokenizers and templates.
//!
//! Everything here runs below the engine: no queue, no permit, no audit entry. It is for comparing
//! this program with others and for finding out what a file is, on a machine one owns: a device of a
//! fleet refuses what would compute with a file that its owner did not sign.

mod check;
mod generate;
mod greedy;
mod lines;
mod logits;
mod model;
mod npz;
mod prompts;
mod render;
mod sample;
mod tokens;

use std::process::ExitCode;

use super::Place;
use crate::import;

/// Arguments of `fulmar debug`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Compute the logits of given tokens and write them as a NumPy archive.
    Logits(logits::Args),
    /// Continue prompts by the likeliest token: JSON lines in and out.
    Greedy(prompts::Args),
    /// Continue prompts by the likeliest token through the whole engine: JSON lines in and out.
    Generate(prompts::Args),
    /// Read, plan and load a model file and compute one step; exit 1 and say why if it is refused.
    Check(check::Args),
    /// Text to token ids: JSON lines `{text}` in, `{ids}` out; no specials added, none parsed.
    Tokenize(tokens::Args),
    /// Token ids to text: JSON lines `{ids}` in, `{text}` out.
    Detokenize(tokens::Args),
    /// Conversations to prompts: JSON lines `{messages, tools, kwargs, add_generation_prompt}` in,
    /// `{text}` or `{error}` out.
    Render(render::Args),
    /// Write a small model with random weights.
    Sample(sample::Args),
}

impl Command {
    /// Whether it runs a model, and does not only read one.
    fn computes(&self) -> bool {
        matches!(self, Self::Logits(_) | Self::Greedy(_) | Self::Generate(_) | Self::Check(_))
    }
}

/// Runs the command.
pub(crate) fn run(place: &Place, args: Args) -> anyhow::Result<ExitCode> {
    if args.command.computes() {
        let (config, dir) = place.load()?;
        import::check_unsigned(&config, &dir)?;
    }
    match args.command {
        Command::Logits(args) => logits::run(args),
        Command::Greedy(args) => greedy::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Check(args) => check::run(args),
        Command::Tokenize(args) => tokens::tokenize(args),
        Command::Detokenize(args) => tokens::detokenize(args),
        Command::Render(args) => render::run(args),
        Command::Sample(args) => sample::run(args),
    }
}
