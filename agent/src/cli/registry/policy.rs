//! The owner's policy: who may do what on devices, what was taken back, and how long a device may
//! go on without a word from its fleet.

use std::path::PathBuf;

use anyhow::{Context, bail};
use fulmar_policy::Policy;
use fulmar_registry::trust::repository::Repository;
use fulmar_registry::{Digest, ModelRef};
use serde_json::{Map, Value, json};

use super::{Target, now_s};
use crate::cli::output;

#[derive(Debug, clap::Args)]
pub(super) struct PolicyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the policy as it stands, staged or published.
    Show {
        /// The registry's folder.
        registry: PathBuf,
    },
    /// Replace the policy by that of a file. Its version is counted up here.
    Set {
        #[command(flatten)]
        target: Target,
        /// The policy (JSON).
        policy: PathBuf,
        /// The role that names it; the one that it is delegated to if not given.
        #[arg(long)]
        role: Option<String>,
    },
    /// Take models, tokens, keys or devices back.
    Revoke {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        what: What,
        /// Why; devices tell whoever asks.
        #[arg(long)]
        reason: String,
    },
    /// Let what was taken back hold again.
    Restore {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        what: What,
    },
    /// Set how long a device may go on running models without a word from its fleet.
    MaxOffline {
        #[command(flatten)]
        target: Target,
        /// How long: `30d`, `12h`, `90m`, or `never` for no end.
        time: String,
    },
}

/// What is taken back, or restored.
#[derive(Debug, clap::Args)]
struct What {
    /// A model: NAME for the release that the registry names now, or the sha256:… of a manifest or
    /// of one of its files. May be repeated.
    #[arg(long = "model", value_name = "NAME|NAME@DIGEST|DIGEST")]
    models: Vec<String>,
    /// The id of an app token (`fulmar token list`). May be repeated.
    #[arg(long = "token", value_name = "ID")]
    tokens: Vec<String>,
    /// The id of a device's token key (`kid` in its tokens). May be repeated.
    #[arg(long = "token-key", value_name = "ID")]
    token_keys: Vec<String>,
    /// A device's id. May be repeated.
    #[arg(long = "device", value_name = "ID")]
    devices: Vec<String>,
}

pub(super) fn run(args: &PolicyArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Show { registry } => show(&Repository::open(registry)?),
        Command::Set { target, policy, role } => {
            let text = std::fs::read(policy)
                .with_context(|| format!("read the policy {}", policy.display()))?;
            let policy = serde_json::from_slice(&text)
                .with_context(|| format!("read the policy {}", policy.display()))?;
            publish(target, policy, role.as_deref())
        }
        Command::Revoke { target, what, reason } => edit(target, |repository, policy| {
            for (list, id) in what.ids(repository)? {
                println!("Revoked in {list}: {id}");
                revoked(policy, list)?.insert(id, reason.as_str().into());
            }
            Ok(())
        }),
        Command::Restore { target, what } => edit(target, |repository, policy| {
            for (list, id) in what.ids(repository)? {
                if revoked(policy, list)?.remove(&id).is_none() {
                    bail!("restore {id}: the policy does not revoke it");
                }
                println!("Restored in {list}: {id}");
            }
            Ok(())
        }),
        Command::MaxOffline { target, time } => {
            let seconds = seconds(time)?;
            edit(target, |_, policy| {
                policy["max_offline_s"] = json!(seconds);
                if seconds.is_none() {
                    policy.as_object_mut().map(|fields| fields.remove("max_offline_s"));
                }
                Ok(())
            })
        }
    }
}

fn show(repository: &Repository) -> anyhow::Result<()> {
    match repository.draft_policy()? {
        Some(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
        None => output::json(&Policy::builtin())?,
    }
    Ok(())
}

/// Changes the policy as it stands, or the one that says nothing.
fn edit(
    target: &Target,
    change: impl FnOnce(&Repository, &mut Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let repository = target.open()?;
    let mut policy = match repository.draft_policy()? {
        Some(bytes) => serde_json::from_slice(&bytes).context("read the policy as it stands")?,
        None => json!({}),
    };
    change(&repository, &mut policy)?;
    publish(target, policy, None)
}

fn publish(target: &Target, policy: Value, role: Option<&str>) -> anyhow::Result<()> {
    let repository = target.open()?;
    if !policy.is_object() {
        bail!("publish the policy: expected a JSON object");
    }
    let (published, version) = repository.publish_policy(policy, role, now_s())?;
    println!("Staged policy version {version} in {}: {}", published.role, published.digest);
    target.finish(&repository)?;
    println!("Hand it to the control plane with `fulmar publish`; devices take it from there.");
    Ok(())
}

fn revoked<'a>(
    policy: &'a mut Value,
    list: &'static str,
) -> anyhow::Result<&'a mut Map<String, Value>> {
    let lists = policy["revoked"].as_object_mut().map(|_| ());
    if lists.is_none() {
        policy["revoked"] = json!({});
    }
    let ids = &mut policy["revoked"][list];
    if ids.is_null() {
        *ids = json!({});
    }
    ids.as_object_mut().with_context(|| format!("read the policy: revoked.{list} is no object"))
}

impl What {
    fn ids(&self, repository: &Repository) -> anyhow::Result<Vec<(&'static str, String)>> {
        let mut ids = Vec::new();
        for model in &self.models {
            ids.push(("models", digest_of(repository, model)?));
        }
        for (list, given) in
            [("tokens", &self.tokens), ("keys", &self.token_keys), ("devices", &self.devices)]
        {
            ids.extend(given.iter().map(|id| (list, id.clone())));
        }
        if ids.is_empty() {
            bail!(
                "change the policy: name something with --model, --token, --token-key or --device"
            );
        }
        Ok(ids)
    }
}

/// A digest as it is, or that of the release which the registry names.
fn digest_of(repository: &Repository, text: &str) -> anyhow::Result<String> {
    if let Ok(digest) = text.parse::<Digest>() {
        return Ok(digest.to_string());
    }
    let model: ModelRef = text.parse().with_context(|| format!("read {text:?} as a model"))?;
    if let Some(digest) = model.digest {
        return Ok(digest.to_string());
    }
    let name = model.name;
    let trusted = repository.trusted(now_s())?;
    let entry = trusted.target(&name.target_path());
    let digest = entry.and_then(|entry| entry.digest());
    digest.map(|digest| digest.to_string()).with_context(|| {
        format!("find {name}: the registry does not name it; give the release's digest")
    })
}

/// `30d`, `12h`, `90m`, `45s`, or `never`.
fn seconds(text: &str) -> anyhow::Result<Option<u64>> {
    if text == "never" {
        return Ok(None);
    }
    let unit = text.chars().last().and_then(|unit| match unit {
        's' => Some(1_u64),
        'm' => Some(60),
        'h' => Some(3_600),
        'd' => Some(86_400),
        _ => None,
    });
    let number = text.get(..text.len().saturating_sub(1)).and_then(|n| n.parse::<u64>().ok());
    match (number, unit) {
        (Some(number), Some(unit)) => Ok(Some(number.saturating_mul(unit))),
        _ => bail!("read the time {text:?}: expected 30d, 12h, 90m, 45s or never"),
    }
}
