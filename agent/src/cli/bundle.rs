//! `fulmar bundle`: what the fleet wants, from a file instead of a network.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use fulmar_policy::{Action, Principal};
use fulmar_registry::bundle::Bundle;
use fulmar_registry::{Options, Registry};
use fulmar_sync::Identity;
use serde_json::json;

use super::{Place, output};
use crate::state::State;

/// Arguments of `fulmar bundle`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Take a bundle that `fulmar control-plane bundle` made for this device.
    Import(FileArgs),
    /// Say what a bundle holds and whom it is for; nothing is believed of it.
    Show(FileArgs),
}

#[derive(Debug, clap::Args)]
struct FileArgs {
    /// The bundle.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(place: &Place, args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Import(args) => import(place, args),
        Command::Show(args) => show(args),
    }
}

fn import(place: &Place, args: &FileArgs) -> anyhow::Result<ExitCode> {
    let (config, dir) = place.load()?;
    let _log = super::quiet_log(&config, &dir)?;
    let state = State::open(&dir)?;
    let file = args.file.display().to_string();
    state.policy()?.decide(&Principal::local(), Action::SyncNow, &file)?;
    let identity = Identity::load(&state.identity_path())?
        .context("take a bundle: this device belongs to no fleet; enroll it first")?;
    let limits = Options { blob_bytes_max: config.registry.blobs_bytes_max };
    let registry = Registry::open(&state.registry_dir(), state.store().clone(), &limits)?;
    let import =
        fulmar_sync::import_bundle(&registry, state.clock(), &identity.device_id, &args.file);
    let carried = super::runtime()?.block_on(import)?;
    state.sign_audit_log_blocking()?;
    if args.json {
        output::json(&carried)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "generation {} of the desired state, {} of model files",
        carried.generation,
        output::size(carried.blob_bytes)
    );
    for model in &carried.models {
        println!("  {model}");
    }
    println!("a running agent installs it after `fulmar sync`, a stopped one when it starts");
    Ok(ExitCode::SUCCESS)
}

fn show(args: &FileArgs) -> anyhow::Result<ExitCode> {
    let bundle = Bundle::open(&args.file)?;
    let header = bundle.header();
    let devices: Vec<&str> = header.devices().collect();
    let bytes: u64 = header.blobs().iter().map(|(_, size)| size).sum();
    if args.json {
        output::json(&json!({
            "created_at_s": header.created_at_s,
            "devices": devices,
            "blobs": header.blobs().len(),
            "bytes": bytes,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("made {}", output::time(header.created_at_s));
    println!("for {}", devices.join(", "));
    println!("{} files, {}", header.blobs().len(), output::size(bytes));
    Ok(ExitCode::SUCCESS)
}
