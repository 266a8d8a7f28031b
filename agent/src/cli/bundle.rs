//! `fulmar bundle`: what the fleet wants, and what the device reports, by file instead of a network.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use fulmar_policy::{Action, Principal};
use fulmar_registry::bundle::Bundle;
use fulmar_registry::{Options, Registry};
use fulmar_sync::Identity;
use serde_json::json;

use super::publish::Access;
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
    /// Take a bundle that `fulmar bundle export` or `fulmar-control bundle` made for this device.
    Import(FileArgs),
    /// Say what a bundle holds and whom it is for; nothing is believed of it.
    Show(FileArgs),
    /// Write this device's state, reports and audit entries to a file for the control plane, which
    /// takes it with `fulmar control-plane reports`. What was taken is said in the next bundle.
    Report(ReportArgs),
    /// Write what devices should hold to one signed file, at the control plane.
    #[cfg(feature = "control-plane")]
    Export(fulmar_control::cli::Bundle),
    /// Hand a device's file of reports to a control plane.
    HandIn(HandInArgs),
}

#[derive(Debug, clap::Args)]
struct ReportArgs {
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct HandInArgs {
    /// The file that the device wrote.
    file: PathBuf,
    #[command(flatten)]
    access: Access,
    /// Print JSON.
    #[arg(long)]
    json: bool,
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
        Command::Report(args) => report(place, args),
        #[cfg(feature = "control-plane")]
        Command::Export(args) => fulmar_control::cli::bundle(args),
        Command::HandIn(args) => hand_in(args),
    }
}

fn report(place: &Place, args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let (config, dir) = place.load()?;
    let state = State::open(&dir)?;
    state.policy()?.decide(&Principal::local(), Action::SyncNow, "reports")?;
    let identity = Identity::load(&state.identity_path())?
        .context("write a file of reports: this device belongs to no fleet; enroll it first")?;
    let limits = Options { blob_bytes_max: config.registry.blobs_bytes_max };
    let registry = Registry::open(&state.registry_dir(), state.store().clone(), &limits)?;
    // The checkpoint that the control plane holds against the entries is over all of them.
    state.sign_audit_log_blocking()?;
    let (file, reported) = fulmar_sync::export_reports(
        &registry,
        state.clock(),
        &identity.device_id,
        crate::link::facts(),
        &|bytes| state.audit_key().sign_reports(bytes),
    )?;
    let bytes = serde_json::to_vec(&file).context("write a file of reports")?;
    write_whole(&args.out, &bytes)?;
    if args.json {
        output::json(&reported)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{}: {} reports of device {}",
        args.out.display(),
        reported.reports,
        identity.device_id
    );
    if reported.left > 0 {
        println!("{} more follow when a bundle says that these were taken", reported.left);
    }
    println!("at the control plane: fulmar control-plane reports --dir DIR {}", args.out.display());
    println!("or over its console: fulmar bundle hand-in {} --console URL", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes a file whole and synced under its name, or not at all.
fn write_whole(path: &std::path::Path, bytes: &[u8]) -> anyhow::Result<()> {
    let draft = path.with_extension("unfinished");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&draft)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

fn hand_in(args: &HandInArgs) -> anyhow::Result<ExitCode> {
    let bytes =
        std::fs::read(&args.file).with_context(|| format!("read {}", args.file.display()))?;
    let taken =
        super::runtime()?.block_on(async { args.access.sign_in().await?.hand_in(bytes).await })?;
    if args.json {
        output::json(&taken)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{}: {} reports, {} of them known already",
        taken["device_id"].as_str().unwrap_or_default(),
        taken["reports"],
        taken["known"]
    );
    println!("the next bundle for it says that they are here");
    if let Some(fault) = taken["fault"].as_str() {
        println!("its audit log is not what it was: {fault}");
    }
    Ok(ExitCode::SUCCESS)
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
    if carried.acked_through > 0 {
        println!("reports up to number {} have arrived", carried.acked_through);
    }
    for model in &carried.models {
        println!("  {model}");
    }
    println!("a running agent installs it within seconds, a stopped one when it starts");
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
            "serial": header.serial,
            "devices": devices,
            "groups": header.groups().collect::<Vec<_>>(),
            "blobs": header.blobs().len(),
            "bytes": bytes,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("number {}, made {}", header.serial, output::time(header.created_at_s));
    println!("for {}", header.addressees());
    println!("{} files, {}", header.blobs().len(), output::size(bytes));
    Ok(ExitCode::SUCCESS)
}
