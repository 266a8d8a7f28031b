//! `fulmar config`: what the configuration is, and whether it holds.

use std::process::ExitCode;

use super::Place;

/// Arguments of `fulmar config`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, clap::Subcommand)]
enum Command {
    /// Say whether the configuration can be used; exit 1 and one line of reason when not.
    Check,
    /// Print the configuration in force, defaults and environment included, as TOML.
    Show,
}

/// Runs the command.
pub(crate) fn run(place: &Place, args: &Args) -> anyhow::Result<ExitCode> {
    let (config, dir) = place.load()?;
    config.check()?;
    match args.command {
        Command::Check => println!("the configuration holds; state directory {}", dir.display()),
        Command::Show => print!("{}", toml::to_string_pretty(&config)?),
    }
    Ok(ExitCode::SUCCESS)
}
