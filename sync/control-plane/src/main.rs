//! `fulmar-control`: the fleet's control plane.

use clap::Parser as _;

/// Knows the fleet, signs what each device should run, shows it to operators.
#[derive(Debug, clap::Parser)]
#[command(name = "fulmar-control", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    args: fulmar_control::cli::Args,
}

fn main() -> std::process::ExitCode {
    match fulmar_control::cli::run(Cli::parse().args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fulmar-control: failed to {}", fulmar_control::cli::why(error.as_ref()));
            std::process::ExitCode::FAILURE
        }
    }
}
