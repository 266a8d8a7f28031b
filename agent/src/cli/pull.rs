//! `fulmar pull`: bringing a model in from elsewhere under the local owner's key. On an enrolled
//! device it is refused: there, the fleet's owner decides.

mod checkpoint;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fulmar_policy::audit::{Event, Outcome};
use fulmar_policy::{Action, Permit, Principal};
use fulmar_registry::fetch::Pace;
use fulmar_registry::gc::Hold;
use fulmar_registry::import::hugging_face::{self, Checkpoint, Found, Hub};
use fulmar_registry::import::{
    self, FoundBundle, Imported, Network, Remote, Resolved, oci, ollama,
};
use fulmar_registry::manifest::FileRole;
use fulmar_registry::{ModelName, Options, Registry};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Place, output};
use crate::config::SyncConfig;
use crate::signing::{self, Rules, Signing};
use crate::state::{self, State};
use crate::{import as local, models};

/// Arguments of `fulmar pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// hf.co/ORG/REPO:QUANT[@REVISION] (safetensors are converted where there is no GGUF file),
    /// oci://HOST/REPO[:TAG|@sha256:…], ollama://NAME[:TAG] (its local store), or a GGUF file.
    model: String,
    /// The name it gets here; default: after where it comes from.
    #[arg(long)]
    name: Option<String>,
    /// An Ollama store's folder, where it is not in its usual place.
    #[arg(long, value_name = "DIR")]
    ollama_dir: Option<PathBuf>,
    /// A file of registries' credentials, as docker and podman write it; default: their usual
    /// places. FULMAR_REGISTRY_USER and FULMAR_REGISTRY_PASSWORD go before it.
    #[arg(long, value_name = "FILE")]
    auth_file: Option<PathBuf>,
    /// The publisher's signature (model.sig), where it lies elsewhere: held against the model
    /// instead of one that is found with it.
    #[arg(long, value_name = "FILE", conflicts_with = "ignore_signature")]
    signature: Option<PathBuf>,
    /// Import although the publisher's signature cannot be verified; that is recorded.
    #[arg(long)]
    ignore_signature: bool,
    #[command(flatten)]
    signers: signing::Named,
    /// Bytes per second at most; 0: as fast as it goes.
    #[arg(long, default_value_t = 0)]
    bytes_per_s_max: u64,
    /// Fetch it all although the link is metered (sync.link_cost).
    #[arg(long)]
    metered: bool,
    /// Use no network.
    #[arg(long)]
    offline: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Pulls a model and makes it active.
pub(crate) fn run(place: &Place, args: &Args) -> anyhow::Result<ExitCode> {
    let (config, dir) = place.load()?;
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let _log = super::quiet_log(&config, &dir)?;
    let state = State::open(&dir)?;
    let limits = Options { blob_bytes_max: config.registry.blobs_bytes_max };
    let registry = Registry::open(&state.registry_dir(), state.store().clone(), &limits)?;
    let permit = state.policy()?.decide(&Principal::local(), Action::ModelInstall, &args.model)?;
    if let Err(refused) = registry.check_local_import() {
        record_refusal(&state, &permit, &args.model, &refused.to_string())?;
        return Err(refused.into());
    }
    let mut rules = Rules::of(&args.signers.added_to(&config.registry)?)?;
    if args.ignore_signature {
        rules = rules.ignoring()?;
    }
    let now_s = state.clock().now_s();
    let imported = super::runtime()?.block_on(async {
        let asked = Asked { args, link: &config.sync, rules: &rules, now_s, dir: state.dir() };
        let (imported, signing) = bring_in(&registry, &asked).await?;
        let told = json!({
            "publisher": signing,
            "name": imported.signed.name(),
            "digest": imported.signed.digest(),
            "bytes": imported.signed.manifest().size_bytes(),
            "source": imported.signed.manifest().source,
        });
        local::install_active(&state, &registry, &permit, imported, &signing).await?;
        Ok::<_, anyhow::Error>(told)
    })?;
    state.sign_audit_log_blocking()?;
    if args.json {
        output::json(&imported)?;
    } else {
        let name = imported["name"].as_str().unwrap_or_default();
        println!("{name} is active, signed by this device's local owner");
        println!(
            "publisher's signature: {}",
            imported["publisher"]["words"].as_str().unwrap_or("-")
        );
        println!("try it: fulmar run {name} \"Hello\"");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is asked for, and under which rules.
struct Asked<'a> {
    args: &'a Args,
    link: &'a SyncConfig,
    rules: &'a Rules,
    now_s: i64,
    /// The state directory.
    dir: &'a Path,
}

/// Fetches, reads and signs.
async fn bring_in(registry: &Registry, asked: &Asked<'_>) -> anyhow::Result<(Imported, Signing)> {
    let Asked { args, link, rules, now_s, .. } = *asked;
    let given = args.signature.as_deref().map(signing::bundle_at).transpose()?;
    // Before a byte of the weights is fetched: their digest is known.
    let check = |resolved: &Resolved| {
        let weights = resolved.weights().context("find the weights among the model's files")?;
        let bundles = given.as_ref().map_or(resolved.bundles.as_slice(), std::slice::from_ref);
        signing::check(bundles, &weights.digest, rules, now_s)
    };
    let check_cost = |resolved: &Resolved| match args.metered {
        true => Ok(()),
        false => local::check_cost(registry, resolved, link)
            .with_context(|| format!("pull {}; --metered fetches it all the same", args.model)),
    };
    let pace = Pace::new(args.bytes_per_s_max);
    let named = args.name.as_deref().map(str::parse::<ModelName>).transpose()?;
    let (resolved, hold, signing) = if hugging_face::Reference::is_one(&args.model) {
        let reference = hugging_face::Reference::parse(&args.model)?;
        let mut hub = Hub::from_environment();
        if args.offline {
            hub.network = Network::Forbidden;
        }
        let remote = hub.remote()?;
        let resolved = match hugging_face::find(&hub, &reference).await? {
            Found::Model(resolved) => resolved,
            Found::Checkpoint(checkpoint) => {
                check_cost(&checkpoint.large)?;
                return convert(registry, checkpoint, asked, given, named, (&remote, &pace)).await;
            }
        };
        let signing = check(&resolved)?;
        check_cost(&resolved)?;
        let hold = with_bar(registry, &resolved, remote.fetch_all(registry, &resolved, &pace));
        let hold = hold.await?;
        (resolved, hold, signing)
    } else if oci::Reference::is_one(&args.model) {
        let reference = oci::Reference::parse(&args.model)?;
        let network = if args.offline { Network::Forbidden } else { Network::Allowed };
        let credentials = credentials(args, &reference)?;
        let (remote, resolved) = oci::resolve(network, credentials, &reference).await?;
        // Of weights in an archive, the digest that was signed is known once they are unpacked;
        // that nobody signed them is known before.
        let is_signed = given.is_some() || !resolved.bundles.is_empty();
        let known = if resolved.is_packed() && is_signed { None } else { Some(check(&resolved)?) };
        check_cost(&resolved)?;
        let hold = with_bar(registry, &resolved, remote.fetch_all(registry, &resolved, &pace));
        let hold = hold.await?;
        let resolved = unpacked(registry, resolved).await?;
        let signing = known.map_or_else(|| check(&resolved), Ok)?;
        (resolved, hold, signing)
    } else if let Some(name) = args.model.strip_prefix("ollama://") {
        let dir = args.ollama_dir.clone().or_else(ollama::default_dir);
        let dir = dir.context("find an Ollama store; name it with --ollama-dir")?;
        let resolved = ollama::resolve(&dir, name)?;
        let signing = check(&resolved)?;
        let (registry, files) = (registry.clone(), resolved.clone());
        let copy = move || ollama::copy_all(&registry, &files);
        let hold = tokio::task::spawn_blocking(copy).await??;
        (resolved, hold, signing)
    } else {
        let path = Path::new(&args.model);
        let imported = file(registry, path, named).await?;
        let signing = match &given {
            Some(_) => {
                let weights = imported.signed.manifest().weights().context("find the weights")?;
                signing::check(given.as_slice(), &weights.digest, rules, now_s)?
            }
            None => signing::check_imported(path, &imported, rules, now_s)?,
        };
        return Ok((imported, signing));
    };
    let name = named.unwrap_or_else(|| resolved.name.clone());
    Ok((sign(registry.clone(), resolved, name, hold).await?, signing))
}

/// Makes a model of a checkpoint.
async fn convert(
    registry: &Registry,
    checkpoint: Checkpoint,
    asked: &Asked<'_>,
    given: Option<FoundBundle>,
    named: Option<ModelName>,
    (remote, pace): (&Remote, &Pace),
) -> anyhow::Result<(Imported, Signing)> {
    let mix = checkpoint::mix(&checkpoint)?;
    let bundle = given.or_else(|| checkpoint.large.bundles.first().cloned());
    let name = named.unwrap_or_else(|| checkpoint.large.name.clone());
    let Asked { rules, now_s, dir, .. } = *asked;
    // Before a byte of the weights is fetched: their digests are known. The other files follow.
    for file in checkpoint.large.files.iter().filter(|file| file.role == FileRole::Weights) {
        let called =
            |bundle: FoundBundle| FoundBundle { weights_path: Some(file.path.clone()), ..bundle };
        let bundle: Vec<FoundBundle> = bundle.clone().map(called).into_iter().collect();
        signing::check(&bundle, &file.digest, rules, now_s)?;
    }
    let conversion =
        checkpoint::Conversion { registry, checkpoint, mix, name, bundle, rules, now_s, dir };
    conversion.run(remote, pace).await
}

/// The files as they are once their archives are opened.
async fn unpacked(registry: &Registry, resolved: Resolved) -> anyhow::Result<Resolved> {
    let registry = registry.clone();
    Ok(tokio::task::spawn_blocking(move || import::unpack(&registry, resolved)).await??)
}

/// Who asks a registry: the environment says, else a file of credentials.
fn credentials(
    args: &Args,
    reference: &oci::Reference,
) -> anyhow::Result<Option<oci::Credentials>> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (variable("FULMAR_REGISTRY_USER"), variable("FULMAR_REGISTRY_PASSWORD")) {
        (Some(user), Some(password)) => Ok(Some(oci::Credentials::Password { user, password })),
        (None, None) => Ok(oci::find_credentials(
            args.auth_file.as_deref(),
            reference.host(),
            reference.repository(),
        )?),
        _ => anyhow::bail!(
            "read the registry's credentials: FULMAR_REGISTRY_USER and FULMAR_REGISTRY_PASSWORD \
             must both be set, or neither"
        ),
    }
}

/// Reads what came and signs it. A file that is no model stays unknown to the catalog; garbage
/// collection takes it.
async fn sign(
    registry: Registry,
    resolved: Resolved,
    name: ModelName,
    hold: Hold,
) -> anyhow::Result<Imported> {
    let done = tokio::task::spawn_blocking(move || {
        let weights = resolved.weights().context("find the weights among the model's files")?;
        let path = registry.blobs().path(&weights.digest);
        let facts = models::facts(&path).with_context(|| format!("read {}", weights.path))?;
        Ok::<_, anyhow::Error>(import::complete(&registry, &resolved, &name, &facts, hold)?)
    });
    done.await?
}

async fn file(
    registry: &Registry,
    path: &Path,
    named: Option<ModelName>,
) -> anyhow::Result<Imported> {
    anyhow::ensure!(
        path.is_file(),
        "pull {}: it is no file, and none of hf.co/…, oci://… and ollama://…",
        path.display()
    );
    let name = match named {
        Some(name) => name,
        None => local::name_of(path)?,
    };
    let (registry, path) = (registry.clone(), path.to_owned());
    tokio::task::spawn_blocking(move || {
        let facts = models::facts(&path).with_context(|| format!("read {}", path.display()))?;
        Ok::<_, anyhow::Error>(import::gguf_file(&registry, &path, &name, &facts)?)
    })
    .await?
}

/// Runs a download beside a bar that shows how far it is; without a terminal there is none. The bar
/// of a download that came stays, full.
async fn with_bar<T, E>(
    registry: &Registry,
    resolved: &Resolved,
    download: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    if !std::io::stderr().is_terminal() {
        return download.await;
    }
    let bar = ProgressBar::new(resolved.size_bytes());
    let template = "{msg} {percent:>3}% {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(resolved.name.to_string());
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    tokio::pin!(download);
    loop {
        tokio::select! {
            done = &mut download => {
                match done {
                    Ok(_) => bar.finish(),
                    Err(_) => bar.finish_and_clear(),
                }
                return done;
            }
            _ = tick.tick() => {
                let blobs = registry.blobs();
                bar.set_position(resolved.files.iter().map(|f| blobs.bytes_present(&f.digest)).sum());
            }
        }
    }
}

fn record_refusal(
    state: &Arc<State>,
    permit: &Permit,
    model: &str,
    reason: &str,
) -> anyhow::Result<()> {
    let (actor, at_s) = (permit.principal().audit_name(), state.clock().now_s());
    let (model, reason) = (model.to_owned(), reason.to_owned());
    state.store().write_blocking::<_, anyhow::Error, _>(move |tx| {
        let event = Event {
            at_s,
            actor: &actor,
            action: Action::ModelInstall.as_str(),
            resource: &model,
            outcome: Outcome::Denied,
            opened: None,
            detail: json!({ "reason": reason }),
        };
        state::record(tx, &event)?;
        Ok(())
    })?;
    state.sign_audit_log_blocking().context("sign the audit log")
}
