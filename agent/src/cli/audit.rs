//! `fulmar audit`: what happened, and proof of it.

use std::process::ExitCode;

use anyhow::Context as _;
use fulmar_policy::audit::{self, Page};
use serde_json::json;

use super::{Place, output};

/// Arguments of `fulmar audit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read every entry against its hashes and signatures.
    Verify {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List entries, newest first.
    List {
        /// How many at most.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Print JSON, one entry a line.
        #[arg(long)]
        json: bool,
    },
    /// Show one entry.
    Show {
        /// The entry's number.
        seq: u64,
        /// With the proof that it is part of the log.
        #[arg(long)]
        proof: bool,
    },
    /// Write all entries as JSON lines to standard output.
    Export {
        /// Only entries after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
}

/// Entries read at a time.
const PAGE_LEN: u32 = 1000;

/// Runs the command.
pub(crate) fn run(place: &Place, args: Args) -> anyhow::Result<ExitCode> {
    let state = place.open()?;
    let store = state.store();
    match args.command {
        Command::Verify { json } => {
            let control_plane = state.control_plane_audit_key()?;
            let verified = store.read_blocking(|connection| {
                let key = state.audit_key().public();
                audit::verify(connection, &state.device(), key, control_plane.as_deref())
            })?;
            if json {
                output::json(&verified)?;
            } else {
                println!("{} entries, each as it was written", verified.entries);
                println!("{} signed by this device", verified.signed_entries);
                println!("{} co-signed by the control plane", verified.cosigned_entries);
                println!("root {}", verified.root);
            }
        }
        Command::List { limit, json } => {
            let page = Page { after: 0, len_max: limit, newest_first: true };
            let entries = store.read_blocking(|connection| audit::list(connection, page))?;
            if json {
                for entry in &entries {
                    println!("{}", serde_json::to_string(entry)?);
                }
                return Ok(ExitCode::SUCCESS);
            }
            let mut table =
                output::table(&["seq", "time", "actor", "action", "resource", "outcome", "ends"]);
            for entry in entries {
                table.add_row([
                    entry.seq.to_string(),
                    output::time(entry.at_s),
                    entry.actor,
                    entry.action,
                    entry.resource,
                    entry.outcome,
                    entry.opened.map_or_else(String::new, |seq| seq.to_string()),
                ]);
            }
            println!("{table}");
        }
        Command::Show { seq, proof } => show(&state, seq, proof)?,
        Command::Export { after } => export(&state, after)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(state: &crate::state::State, seq: u64, with_proof: bool) -> anyhow::Result<()> {
    let page = Page { after: seq.saturating_sub(1), len_max: 1, newest_first: false };
    let found = state.store().read_blocking(|connection| audit::list(connection, page))?;
    let entry = found.into_iter().find(|entry| entry.seq == seq);
    let entry = entry.with_context(|| format!("find audit entry {seq}: the log has none"))?;
    if !with_proof {
        return output::json(&entry);
    }
    let proof = state.store().read_blocking(|connection| audit::prove(connection, seq))?;
    let path: Vec<String> = proof.path.iter().map(hex::encode).collect();
    let (_, root) = state.store().read_blocking(audit::head)?;
    output::json(&json!({
        "entry": entry,
        "proof": { "entries": proof.entries, "leaf": hex::encode(proof.leaf), "path": path },
        "root": hex::encode(root),
        "holds": proof.holds(&root),
    }))
}

fn export(state: &crate::state::State, mut after: u64) -> anyhow::Result<()> {
    loop {
        let page = Page { after, len_max: PAGE_LEN, newest_first: false };
        let entries = state.store().read_blocking(|connection| audit::list(connection, page))?;
        let Some(last) = entries.last() else { return Ok(()) };
        after = last.seq;
        for entry in &entries {
            println!("{}", serde_json::to_string(entry)?);
        }
    }
}
