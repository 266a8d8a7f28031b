//! `fulmar list`, `show` and `rm`: the catalog, with or without a running agent.

use std::process::ExitCode;

use anyhow::Context as _;
use fulmar_policy::audit::{Event, Outcome};
use fulmar_policy::{Action, Principal};
use fulmar_registry::catalog::{self, CatalogError, Filter, Slot};
use fulmar_registry::manifest::Evaluation;
use fulmar_registry::{ModelRef, Standing};
use serde_json::json;

use super::{Place, output};
use crate::models::Installed;
use crate::search::Wanted;
use crate::state::{self, State};

/// Arguments of `fulmar list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only models whose name, source or evaluation holds this text.
    text: Option<String>,
    #[command(flatten)]
    wanted: Wanted,
    /// Only this slot: active, candidate, previous.
    #[arg(long, value_parser = slot)]
    slot: Option<Slot>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Lists installed models.
pub(crate) fn list(place: &Place, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let state = place.open()?;
    let wanted = Wanted { text: args.text.clone(), ..args.wanted.clone() };
    let filter = Filter { slot: args.slot, ..wanted.filter() };
    let found: Vec<Installed> = state
        .store()
        .read_blocking(|connection| catalog::list(connection, &filter))?
        .into_iter()
        .map(Installed::from)
        .collect();
    if args.json {
        output::json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() && filter != Filter::default() {
        println!("no model on this device is like that; fulmar list shows all");
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        println!("no models; a fleet sends them, `fulmar pull` brings one in");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = output::table(&[
        "name",
        "digest",
        "slot",
        "params",
        "quant",
        "size",
        "signed by",
        "installed",
    ]);
    for model in &found {
        table.add_row([
            model.name.clone(),
            output::short_digest(&model.digest),
            model.slot.map_or("-", Slot::as_str).to_owned(),
            output::count(model.facts.parameters),
            model.facts.quantization.clone(),
            output::size(model.facts.size_bytes),
            signed_by(model).to_owned(),
            output::time(model.installed_at_s),
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

fn slot(text: &str) -> Result<Slot, String> {
    Slot::parse(text).ok_or_else(|| format!("{text:?} is none of active, candidate, previous"))
}

fn signed_by(model: &Installed) -> &'static str {
    match model.authority {
        fulmar_registry::Authority::TwoRepositories { .. } => "owner and director",
        fulmar_registry::Authority::LocalOwner { .. } => "local owner",
    }
}

/// Arguments of `fulmar show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// A model's name, or NAME@sha256:… for one release.
    name: ModelArg,
    /// Print the manifest as it was signed.
    #[arg(long)]
    manifest: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A model's name on the command line, as it was written.
#[derive(Debug, Clone)]
struct ModelArg(String);

impl std::str::FromStr for ModelArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed: Result<ModelRef, _> = text.parse();
        parsed.map(|_| Self(text.to_owned())).map_err(|error| error.to_string())
    }
}

impl ModelArg {
    /// The model that it means here.
    fn resolve(&self, state: &State) -> Result<ModelRef, CatalogError> {
        state.store().read_blocking(|connection| catalog::resolve(connection, &self.0))
    }
}

/// Shows one model.
pub(crate) fn show(place: &Place, args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let state = place.open()?;
    let reference = args.name.resolve(&state)?;
    let found = state.store().read_blocking(|c| catalog::find(c, &reference))?;
    if args.manifest {
        print!("{}", String::from_utf8_lossy(&found.manifest_bytes));
        return Ok(ExitCode::SUCCESS);
    }
    let words = found.authority.describe();
    let model = Installed::from(found);
    if args.json {
        output::json(&model)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = output::table(&["field", "value"]);
    for (field, value) in [
        ("name", model.name),
        ("digest", model.digest),
        ("weights", model.weights_digest),
        ("release", model.release.to_string()),
        ("slot", model.slot.map_or("-", Slot::as_str).to_owned()),
        ("may run here by", words),
        ("architecture", model.facts.architecture),
        (
            "parameters",
            format!("{} ({})", output::count(model.facts.parameters), model.facts.size_class),
        ),
        ("quantization", model.facts.quantization),
        ("context", format!("{} tokens", model.facts.context_tokens)),
        ("size", output::size(model.facts.size_bytes)),
        ("memory", memory(model.facts.memory_bytes)),
        ("template", or_dash(model.facts.template)),
        ("evaluation", measured(&model.facts.evaluation)),
        ("license", or_dash(model.facts.license)),
        ("source", or_dash(model.facts.source)),
        ("installed", output::time(model.installed_at_s)),
        ("failure", model.failure.unwrap_or_else(|| "-".into())),
    ] {
        table.add_row([field.to_owned(), value]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// What a model needs; the size of its files says less.
fn memory(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        bytes => format!("{} with its whole context", output::size(bytes)),
    }
}

fn measured(evaluation: &[Evaluation]) -> String {
    or_dash(evaluation.iter().map(Evaluation::to_string).collect::<Vec<_>>().join("\n"))
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Arguments of `fulmar rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// A model's name, or NAME@sha256:… for one release.
    name: ModelArg,
}

/// Takes a model off the device. Its files go with the next garbage collection.
pub(crate) fn rm(place: &Place, args: &RmArgs) -> anyhow::Result<ExitCode> {
    let state = place.open()?;
    let principal = Principal::local();
    let (reference, at_s) = (args.name.resolve(&state)?, state.clock().now_s());
    state.policy()?.decide(&principal, Action::ModelRemove, &reference.name.to_string())?;
    let removed = state.store().write_blocking::<_, anyhow::Error, _>(move |tx| {
        let digest = match catalog::find(tx, &reference) {
            Ok(found) => found.digest,
            // What is left of a release whose row is damaged goes, too.
            Err(CatalogError::Damaged { .. }) => match reference.digest {
                Some(digest) => digest,
                None => catalog::slot(tx, &reference.name, Slot::Active)?
                    .with_context(|| format!("remove {}: it is not active", reference.name))?,
            },
            Err(error) => return Err(error.into()),
        };
        catalog::remove(tx, &reference.name, &digest)?;
        let event = Event {
            at_s,
            actor: &principal.audit_name(),
            action: Action::ModelRemove.as_str(),
            resource: &reference.name.to_string(),
            outcome: Outcome::Completed,
            opened: None,
            detail: json!({ "digest": digest.to_string() }),
        };
        state::record(tx, &event)?;
        Ok(format!("{}@{digest}", reference.name))
    })?;
    state.sign_audit_log_blocking()?;
    println!("removed {removed}");
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `fulmar rollback`.
#[derive(Debug, clap::Args)]
pub(crate) struct RollbackArgs {
    /// A model's name, or NAME@sha256:… for the release that must be the one before.
    name: ModelArg,
    /// Why, for the audit log and for whoever wonders later.
    #[arg(long, default_value = "rolled back by hand")]
    reason: String,
}

/// Lets the previous release serve again. The one that served is not activated again by itself.
pub(crate) fn rollback(place: &Place, args: &RollbackArgs) -> anyhow::Result<ExitCode> {
    let state = place.open()?;
    let principal = Principal::local();
    let ModelRef { name, digest: wanted } = args.name.resolve(&state)?;
    state.policy()?.decide(&principal, Action::ModelActivate, &name.to_string())?;
    let (reason, at_s) = (args.reason.clone(), state.clock().now_s());
    let back = state.store().write_blocking::<_, anyhow::Error, _>(move |tx| {
        let back: Result<_, CatalogError> = catalog::rollback(tx, &name, &reason, at_s);
        let back = back?;
        // Nothing has happened yet: the transaction ends with the error.
        anyhow::ensure!(
            wanted.is_none_or(|wanted| wanted == back.to),
            "go back to {}: the release before the active one is {}",
            wanted.map(|wanted| wanted.to_string()).unwrap_or_default(),
            back.to
        );
        let reference = ModelRef { name: name.clone(), digest: Some(back.to) };
        let to: Result<_, CatalogError> = catalog::find(tx, &reference);
        let to = to?;
        let files = to.manifest.files.iter().map(|file| &file.digest);
        Standing::load(tx)?
            .check_model(std::iter::once(&to.digest).chain(files))
            .with_context(|| format!("go back to release {} of {name}", to.manifest.release))?;
        let event = Event {
            at_s,
            actor: &principal.audit_name(),
            action: "model.rollback",
            resource: &name.to_string(),
            outcome: Outcome::Completed,
            opened: None,
            detail: json!({ "from": back.from, "to": back.to, "reason": reason }),
        };
        state::record(tx, &event)?;
        Ok(back)
    })?;
    state.sign_audit_log_blocking()?;
    println!("{} serves again; {} does not", back.to, back.from);
    println!("a running agent takes it up with the next request");
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `fulmar pin`.
#[derive(Debug, clap::Args)]
pub(crate) struct PinArgs {
    /// A model's name, or NAME@sha256:… for one release.
    name: ModelArg,
    /// Let it go again.
    #[arg(long)]
    remove: bool,
}

/// Keeps a release from garbage collection, or lets it go again.
pub(crate) fn pin(place: &Place, args: &PinArgs) -> anyhow::Result<ExitCode> {
    let state = place.open()?;
    let principal = Principal::local();
    let reference = args.name.resolve(&state)?;
    state.policy()?.decide(&principal, Action::ModelRemove, &reference.name.to_string())?;
    let (remove, at_s) = (args.remove, state.clock().now_s());
    let action = if remove { "model.unpin" } else { "model.pin" };
    state.store().write_blocking::<_, anyhow::Error, _>(move |tx| {
        let changed = catalog::find(tx, &reference).and_then(|found| {
            let (name, digest) = (found.name().clone(), found.digest);
            let done = if remove {
                catalog::unpin(tx, &name, &digest)
            } else {
                catalog::pin(tx, &name, &digest)
            };
            done.map(|()| (name, digest))
        });
        let (name, digest) = changed?;
        let event = Event {
            at_s,
            actor: &principal.audit_name(),
            action,
            resource: &name.to_string(),
            outcome: Outcome::Completed,
            opened: None,
            detail: json!({ "digest": digest }),
        };
        state::record(tx, &event)?;
        Ok(())
    })?;
    state.sign_audit_log_blocking()?;
    Ok(ExitCode::SUCCESS)
}
