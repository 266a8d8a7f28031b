//! What the registry does when the plug is pulled and when disks fail: a worker that downloads,
//! verifies, installs, activates and collects garbage without end, and tests that kill it, break
//! its disk, take its room and flip its bits.
//!
//! After each fault: old state or new state, never neither; no partial blob; the audit log whole
//! and saying what the slots say; serving again in time.

mod disk;
mod flips;
mod kill;
mod random;
mod server;
mod syscalls;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Pulls the plug and breaks disks.
#[derive(Debug, Parser)]
struct Args {
    /// All rounds: 1000 kills, every operation and system call failing, 64 budgets, 10000 flips
    /// in files, 10000 in transit and 2000 over HTTP.
    #[arg(long)]
    full: bool,
    /// Begins the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Works in this folder until killed; what the tests start.
    #[arg(long, hide = true)]
    worker: Option<PathBuf>,
    /// Brings a release into this folder; what the tests start.
    #[arg(long, hide = true)]
    one_cycle: Option<PathBuf>,
    /// Which one.
    #[arg(long, hide = true, default_value_t = 2)]
    release: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (&args.worker, &args.one_cycle) {
        (Some(dir), _) => work::forever(dir),
        (None, Some(dir)) => work::one(dir, args.release),
        (None, None) => all(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn all(args: &Args) -> anyhow::Result<()> {
    let rounds = |full, few| if args.full { full } else { few };
    println!("seed {}", args.seed);
    disk::every_operation_fails()?;
    syscalls::every_call_fails(if args.full { 1 } else { 12 })?;
    disk::budgets(rounds(64, 16))?;
    flips::in_files(rounds(10_000, 300), args.seed)?;
    flips::in_transit(rounds(10_000, 300), args.seed)?;
    flips::over_http(rounds(2_000, 60), args.seed)?;
    kill::rounds(rounds(1_000, 40), args.seed)
}
