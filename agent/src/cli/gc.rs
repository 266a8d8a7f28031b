//! `fulmar gc`: frees what no model needs, and says before what that is.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use fulmar_policy::audit::{Event, Outcome};
use fulmar_policy::{Action, Principal};
use fulmar_registry::gc::{self, Garbage, Keep};
use fulmar_registry::{Digest, Options, Registry};
use fulmar_sync::Identity;
use hyper::Method;
use serde_json::{Value, json};

use super::{Place, output};
use crate::state::{self, State};

/// Arguments of `fulmar gc`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only say what would be freed.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Frees, or says what would be freed.
pub(crate) fn run(place: &Place, args: &Args) -> anyhow::Result<ExitCode> {
    let (config, dir) = place.load()?;
    let state = State::open(&dir)?;
    let limits = Options { blob_bytes_max: config.registry.blobs_bytes_max };
    let registry = Registry::open(&state.registry_dir(), state.store().clone(), &limits)?;
    let keep = keep(&state, &registry, running(place)?)?;
    let garbage = if args.dry_run {
        let blobs = registry.blobs();
        state.store().read_blocking(|connection| gc::plan(connection, blobs, &keep))?
    } else {
        collect(&state, &registry, keep)?
    };
    print(&garbage, args)?;
    Ok(ExitCode::SUCCESS)
}

/// What the running agent's engine holds: releases and their files. An agent that is there and does
/// not say so has the collection refused; what it runs must not go.
fn running(place: &Place) -> anyhow::Result<BTreeSet<Digest>> {
    let socket = place.socket()?;
    if UnixStream::connect(&socket).is_err() {
        return Ok(BTreeSet::new());
    }
    let asked = crate::client::call(&socket, Method::GET, "/fulmar/v1/ps");
    let ps = super::runtime()?.block_on(asked).context("ask the agent which models run")?;
    let models = ps["models"].as_array().context("ask the agent which models run")?;
    let digests = models.iter().flat_map(|model| model["digests"].as_array().into_iter().flatten());
    let digest = |text: &Value| -> anyhow::Result<Digest> {
        Ok(text.as_str().context("ask the agent which models run")?.parse()?)
    };
    digests.map(digest).collect()
}

/// What runs is spared, and what the fleet wants of this device, also while it is on its way.
fn keep(
    state: &Arc<State>,
    registry: &Registry,
    running: BTreeSet<Digest>,
) -> anyhow::Result<Keep> {
    let Some(identity) = Identity::load(&state.identity_path())? else {
        return Ok(Keep { blobs: running.clone(), models: running });
    };
    let now_s = state.clock().now_s();
    let desired = state
        .store()
        .read_blocking(|connection| {
            fulmar_sync::desired(connection, &identity.device_id, now_s).map_err(anyhow::Error::new)
        })?
        .unwrap_or_default();
    Ok(fulmar_sync::wanted(registry.blobs(), &desired, running))
}

fn collect(state: &Arc<State>, registry: &Registry, keep: Keep) -> anyhow::Result<Garbage> {
    let principal = Principal::local();
    state.policy()?.decide(&principal, Action::ModelRemove, "blobs")?;
    let blobs = registry.blobs().clone();
    let lock = gc::lock(&blobs)?;
    let at_s = state.clock().now_s();
    let (garbage, lock) = state.store().write_blocking::<_, anyhow::Error, _>(move |tx| {
        let garbage = gc::collect(tx, &blobs, &keep, &lock)?;
        if garbage != Garbage::default() {
            let event = Event {
                at_s,
                actor: &principal.audit_name(),
                action: "garbage.collect",
                resource: "blobs",
                outcome: Outcome::Completed,
                opened: None,
                detail: json!({ "bytes": garbage.bytes(), "models": garbage.models }),
            };
            state::record(tx, &event)?;
        }
        Ok((garbage, lock))
    })?;
    garbage.sweep(registry.blobs(), &lock)?;
    state.sign_audit_log_blocking()?;
    Ok(garbage)
}

fn print(garbage: &Garbage, args: &Args) -> anyhow::Result<()> {
    if args.json {
        let bytes = garbage.bytes();
        return output::json(
            &json!({ "dry_run": args.dry_run, "bytes": bytes, "garbage": garbage }),
        );
    }
    for model in &garbage.models {
        let digest = output::short_digest(&model.digest.to_string());
        println!("release {} {digest} ({})", model.name, output::size(model.size_bytes));
    }
    let lists: [(&str, &Vec<(Digest, u64)>); 3] = [
        ("file", &garbage.blobs),
        ("unfinished file", &garbage.incoming),
        ("damaged file", &garbage.quarantine),
    ];
    for (what, list) in lists {
        for (digest, bytes) in list {
            println!(
                "{what} {} ({})",
                output::short_digest(&digest.to_string()),
                output::size(*bytes)
            );
        }
    }
    for (name, bytes) in &garbage.copies {
        let model = name.split('-').next().unwrap_or(name);
        println!("regrouped copy of {} ({})", output::short_digest(model), output::size(*bytes));
    }
    let verb = if args.dry_run { "would be" } else { "are" };
    println!("{} {verb} freed", output::size(garbage.bytes()));
    Ok(())
}
