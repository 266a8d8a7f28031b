//! `group`: groups of devices, beside a control plane that serves or does not.

use std::path::PathBuf;
use std::process::ExitCode;

use fulmar_policy::Action;
use fulmar_policy::audit::Outcome;
use serde_json::json;

use crate::carry::open_store;
use crate::groups::{self, Change, Changed};
use crate::{act, fleet, now_s};

/// Arguments of `group`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the groups, or the devices of one.
    List(List),
    /// Put devices into a group: they get what was deployed to it.
    Add(Members),
    /// Take devices out of a group: what they should hold stays as it is.
    Remove(Members),
}

#[derive(Debug, clap::Args)]
struct List {
    /// The state directory.
    #[arg(long)]
    dir: PathBuf,
    /// A group's name: lists its devices.
    group: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Members {
    /// The state directory.
    #[arg(long)]
    dir: PathBuf,
    /// The group's name, 1 to 63 of [a-z0-9-].
    group: String,
    /// Ids of devices, or names that one device alone has.
    #[arg(required = true)]
    devices: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::List(args) => list(args),
        Command::Add(args) => change(args, &Change::Join(args.group.clone())),
        Command::Remove(args) => change(args, &Change::Leave(args.group.clone())),
    }
}

fn list(args: &List) -> anyhow::Result<ExitCode> {
    let store = open_store(&args.dir)?;
    let Some(group) = args.group.clone() else {
        let groups = store.read_blocking(groups::list)?;
        if args.json {
            println!("{}", json!({ "groups": groups }));
        } else {
            for group in groups {
                println!("{}\t{}", group.name, group.devices);
            }
        }
        return Ok(ExitCode::SUCCESS);
    };
    let devices = store.read_blocking(|connection| {
        let ids = groups::members(connection, &group)?;
        ids.iter().map(|id| fleet::get(connection, id)).collect::<Result<Vec<_>, _>>()
    })?;
    let devices: Vec<_> = devices.into_iter().flatten().collect();
    if args.json {
        println!("{}", json!({ "devices": devices }));
    } else {
        for device in devices {
            println!("{}\t{}\t{}", device.id, device.name, device.groups.join(" "));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn change(args: &Members, change: &Change) -> anyhow::Result<ExitCode> {
    let store = open_store(&args.dir)?;
    let (devices, group, wanted) = (args.devices.clone(), args.group.clone(), change.clone());
    let changed = store.write_blocking(move |tx| {
        let at_s = now_s();
        let each = devices.iter().map(|device| groups::change(tx, device, &wanted, "local", at_s));
        let changed = each.collect::<Result<Vec<Changed>, _>>()?;
        let (action, detail) = (Action::DeviceGroup.as_str(), json!({ "devices": changed }));
        act::append(tx, "local", action, &group, Outcome::Completed, detail)?;
        Ok::<_, crate::failure::Failure>(changed)
    })?;
    if args.json {
        println!("{}", json!({ "devices": changed }));
        return Ok(ExitCode::SUCCESS);
    }
    for device in changed {
        let id = &device.device_id;
        match (device.added.as_slice(), device.removed.as_slice()) {
            ([], []) => println!("{id} is in {} already", args.group),
            ([], _) => println!("{id} left {}", args.group),
            _ => println!("{id} is in {}", args.group),
        }
        for deployment in &device.deployments {
            println!("  it gets deployment {deployment}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
