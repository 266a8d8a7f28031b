//! `fulmar group`: groups of devices, at a control plane.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::output;
use super::publish::Access;

/// Arguments of `fulmar group`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the groups, or the devices of one.
    List(ListArgs),
    /// Put devices into a group: they get what was deployed to it.
    Add(MembersArgs),
    /// Take devices out of a group: what they should hold stays as it is.
    Remove(MembersArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// A group's name: lists its devices.
    group: Option<String>,
    #[command(flatten)]
    access: Access,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct MembersArgs {
    /// The group's name, 1 to 63 of [a-z0-9-].
    group: String,
    /// Ids of devices, or names that one device alone has.
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    access: Access,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::List(args) => list(args),
        Command::Add(args) => {
            let changed = super::runtime()?.block_on(async {
                args.access.sign_in().await?.group_add(&args.group, &args.devices).await
            })?;
            told(args, &changed)
        }
        Command::Remove(args) => {
            let changed = super::runtime()?.block_on(async {
                let console = args.access.sign_in().await?;
                let mut devices = Vec::new();
                for device in &args.devices {
                    let changed = console.group_remove(&args.group, device).await?;
                    devices.extend(changed["devices"].as_array().cloned().unwrap_or_default());
                }
                anyhow::Ok(json!({ "devices": devices }))
            })?;
            told(args, &changed)
        }
    }
}

fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let listed = super::runtime()?.block_on(async {
        let console = args.access.sign_in().await?;
        match &args.group {
            None => console.groups().await,
            Some(group) => console.group_devices(group).await,
        }
    })?;
    if args.json {
        output::json(&listed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = |field: &str| listed[field].as_array().cloned().unwrap_or_default();
    let mut table = match args.group {
        None => output::table(&["group", "devices"]),
        Some(_) => output::table(&["device", "name", "state"]),
    };
    for row in rows("groups") {
        table.add_row([word(&row["name"]), row["devices"].to_string()]);
    }
    for row in rows("devices") {
        table.add_row([word(&row["id"]), word(&row["name"]), word(&row["state"])]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

fn told(args: &MembersArgs, changed: &Value) -> anyhow::Result<ExitCode> {
    if args.json {
        output::json(changed)?;
        return Ok(ExitCode::SUCCESS);
    }
    for device in changed["devices"].as_array().into_iter().flatten() {
        let (id, group) = (word(&device["device_id"]), &args.group);
        let some = |field: &str| device[field].as_array().is_some_and(|list| !list.is_empty());
        match (some("added"), some("removed")) {
            (true, _) => println!("{id} is in {group}"),
            (false, true) => println!("{id} left {group}"),
            (false, false) => println!("{id} is in {group} already"),
        }
        for deployment in device["deployments"].as_array().into_iter().flatten() {
            println!("  it gets deployment {deployment}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
