//! `fulmar registry`: the owner's side of the signed registry. It needs no device and no network:
//! a folder, and people with keys.
//!
//! Every command that changes something stages it; `--key` signs at once, `sign` later, on another
//! machine if need be. What has its threshold of signatures is published.

mod keys;
mod offline;
mod policy;
mod release;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use fulmar_registry::trust::repository::{Delegation, Plan, Progress, Repository};
use fulmar_registry::trust::{Date, KeyFile, PublicKey, SigningKey};
use fulmar_registry::{Digest, ModelName};

use keys::Passphrase;

/// Arguments of `fulmar registry`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a signing key: FILE, encrypted, and FILE.pub beside it for the others.
    NewKey(keys::NewKeyArgs),
    /// Make a registry, with the keys that root and targets need.
    Init(InitArgs),
    /// Let one more key sign for a role, or change how many must.
    AddKey(AddKeyArgs),
    /// Replace a key by another, in every role that has it.
    Rotate(RotateArgs),
    /// Let a team name the models below its paths, with its own keys.
    Delegate(DelegateArgs),
    /// Release a model: its GGUF file, or a manifest made elsewhere.
    Publish(release::PublishArgs),
    /// Take a model out of the registry.
    Withdraw(release::WithdrawArgs),
    /// The policy that devices follow: roles, revocations, how long they may be offline.
    Policy(policy::PolicyArgs),
    /// Give roles a new version that expires later.
    Renew(RenewArgs),
    /// Have all devices forget the signed times after now: the way back where the control plane's
    /// clock, or that of somebody who signs, was ahead and has been set right. Stages a root.
    ResetTime(ResetTimeArgs),
    /// Add signatures to what is staged, and publish what has enough of them.
    Sign(SignArgs),
    /// Write what is staged to a file, for people on other machines to sign.
    Request(offline::RequestArgs),
    /// Sign such a file, without the registry: it says what it is about, and only adds signatures.
    SignRequest(offline::SignRequestArgs),
    /// Take signatures out of files that came back, and publish what has enough of them.
    Merge(offline::MergeArgs),
    /// Show roles, keys, expiry and what lacks signatures.
    Status(StatusArgs),
}

/// The registry's folder, and the keys to sign with.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The registry's folder.
    #[arg(value_name = "REGISTRY")]
    registry: PathBuf,
    /// A key file to sign with; may be repeated.
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    passphrase: Passphrase,
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    #[command(flatten)]
    target: Target,
    /// A public key of somebody who signs too, but not here; may be repeated.
    #[arg(long = "public", value_name = "FILE")]
    public: Vec<PathBuf>,
    /// How many of the keys must sign root and targets.
    #[arg(long, default_value_t = 1)]
    threshold: u64,
}

#[derive(Debug, clap::Args)]
struct AddKeyArgs {
    #[command(flatten)]
    target: Target,
    /// The role: root, targets, snapshot, timestamp or a delegated one.
    #[arg(long)]
    role: String,
    /// The new key's public file; may be repeated.
    #[arg(long = "public", value_name = "FILE")]
    public: Vec<PathBuf>,
    /// How many must sign from now on; as before if not given.
    #[arg(long)]
    threshold: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct RotateArgs {
    #[command(flatten)]
    target: Target,
    /// The old key's id, or the beginning of it.
    #[arg(long, value_name = "KEY_ID")]
    old: String,
    /// The new key's public file.
    #[arg(long = "new", value_name = "FILE")]
    new: PathBuf,
}

#[derive(Debug, clap::Args)]
struct DelegateArgs {
    #[command(flatten)]
    target: Target,
    /// The team's role, as team/vision.
    #[arg(long)]
    role: String,
    /// What it may name, as vision/*/*; a star stays within its part. May be repeated. Model
    /// manifests lie at namespace/name/tag.json.
    #[arg(long = "path", value_name = "PATTERN", required = true)]
    paths: Vec<String>,
    /// A public key of the team; may be repeated.
    #[arg(long = "public", value_name = "FILE", required = true)]
    public: Vec<PathBuf>,
    /// How many of them must sign.
    #[arg(long, default_value_t = 1)]
    threshold: u64,
    /// The role that delegates.
    #[arg(long, default_value = "targets")]
    from: String,
    /// Let nobody further down name these paths.
    #[arg(long)]
    terminating: bool,
    /// For how many days a version of the role holds.
    #[arg(long, default_value_t = 365)]
    expiry_days: u32,
}

#[derive(Debug, clap::Args)]
struct RenewArgs {
    #[command(flatten)]
    target: Target,
    /// The roles; snapshot and timestamp if none is given.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct ResetTimeArgs {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct SignArgs {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// The registry's folder.
    #[arg(value_name = "REGISTRY")]
    registry: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::NewKey(args) => keys::new_key(&args)?,
        Command::Init(args) => init(&args)?,
        Command::AddKey(args) => add_key(&args)?,
        Command::Rotate(args) => rotate(&args)?,
        Command::Delegate(args) => delegate(&args)?,
        Command::Publish(args) => release::publish(&args)?,
        Command::Withdraw(args) => release::withdraw(&args)?,
        Command::Policy(args) => policy::run(&args)?,
        Command::Renew(args) => renew(&args)?,
        Command::ResetTime(args) => reset_time(&args)?,
        Command::Sign(args) => sign(&args)?,
        Command::Request(args) => offline::request(&args)?,
        Command::SignRequest(args) => offline::sign_request(&args)?,
        Command::Merge(args) => offline::merge(&args)?,
        Command::Status(args) => status(&args.registry)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Target {
    fn open(&self) -> anyhow::Result<Repository> {
        Ok(Repository::open(&self.registry)?)
    }

    fn key_files(&self) -> anyhow::Result<Vec<KeyFile>> {
        self.keys.iter().map(|path| keys::read(path, &self.passphrase)).collect()
    }

    /// Signs what is staged with the given keys, and says how it stands.
    fn finish(&self, repository: &Repository) -> anyhow::Result<()> {
        let files = self.key_files()?;
        let signing = signing_keys(&files, &self.keys)?;
        report(repository, &repository.sign(&signing, now_s())?)
    }
}

fn signing_keys<'a>(
    files: &'a [KeyFile],
    paths: &[PathBuf],
) -> anyhow::Result<Vec<&'a dyn SigningKey>> {
    let mut keys = Vec::with_capacity(files.len());
    for (file, path) in files.iter().zip(paths) {
        match file.signing() {
            Some(key) => keys.push(key),
            None => bail!("sign with {}: it holds a public key only", path.display()),
        }
    }
    Ok(keys)
}

fn init(args: &InitArgs) -> anyhow::Result<()> {
    let files = args.target.key_files()?;
    let mut public: Vec<PublicKey> = files.iter().map(|file| file.public().clone()).collect();
    public.extend(keys::read_public(&args.public)?);
    if public.is_empty() {
        bail!(
            "make a registry without keys: make one with `fulmar registry new-key owner.key`, then \
             give it with --key"
        );
    }
    let plan = Plan::with_keys(&public, args.threshold);
    let repository = Repository::init(&args.target.registry, &plan, now_s())?;
    let progress = repository.sign(&signing_keys(&files, &args.target.keys)?, now_s())?;
    println!("Made a registry in {}.", args.target.registry.display());
    report(&repository, &progress)
}

fn add_key(args: &AddKeyArgs) -> anyhow::Result<()> {
    let repository = args.target.open()?;
    let (mut keys, threshold) = repository.keys(&args.role)?;
    for key in keys::read_public(&args.public)? {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    repository.set_keys(&args.role, &keys, args.threshold.unwrap_or(threshold), now_s())?;
    args.target.finish(&repository)
}

fn rotate(args: &RotateArgs) -> anyhow::Result<()> {
    let repository = args.target.open()?;
    let new = keys::read_public(std::slice::from_ref(&args.new))?;
    let mut changed = Vec::new();
    for role in repository.status()? {
        let (mut keys, threshold) = repository.keys(&role.role)?;
        let before = keys.len();
        keys.retain(|key| !key.key_id().starts_with(&args.old));
        if keys.len() == before {
            continue;
        }
        if before - keys.len() > 1 {
            bail!("rotate {}: more than one key id of {} begins so", args.old, role.role);
        }
        keys.extend(new.iter().filter(|key| !keys.contains(key)).cloned().collect::<Vec<_>>());
        repository.set_keys(&role.role, &keys, threshold, now_s())?;
        changed.push(role.role);
    }
    if changed.is_empty() {
        bail!("rotate {}: no role has a key whose id begins so", args.old);
    }
    println!("Staged the new key for {}.", changed.join(", "));
    args.target.finish(&repository)
}

fn delegate(args: &DelegateArgs) -> anyhow::Result<()> {
    let repository = args.target.open()?;
    let delegation = Delegation {
        from: args.from.clone(),
        name: args.role.clone(),
        paths: args.paths.clone(),
        keys: keys::read_public(&args.public)?,
        threshold: args.threshold,
        terminating: args.terminating,
        expiry_days: args.expiry_days,
    };
    repository.delegate(&delegation, now_s())?;
    args.target.finish(&repository)
}

fn renew(args: &RenewArgs) -> anyhow::Result<()> {
    let repository = args.target.open()?;
    let default = ["snapshot".to_owned(), "timestamp".to_owned()];
    let roles = if args.roles.is_empty() { &default[..] } else { &args.roles };
    for role in roles {
        repository.renew(role, now_s())?;
    }
    args.target.finish(&repository)
}

fn reset_time(args: &ResetTimeArgs) -> anyhow::Result<()> {
    let repository = args.target.open()?;
    repository.reset_time(now_s())?;
    args.target.finish(&repository)
}

fn sign(args: &SignArgs) -> anyhow::Result<()> {
    if args.target.keys.is_empty() {
        bail!("sign without a key: give one with --key");
    }
    args.target.finish(&args.target.open()?)
}

/// What is published now, and what still lacks signatures.
fn report(repository: &Repository, progress: &Progress) -> anyhow::Result<()> {
    for (role, version) in &progress.published {
        println!("Published {role}, version {version}.");
    }
    for missing in &progress.missing {
        println!("Staged: {missing}.");
    }
    if !progress.missing.is_empty() {
        println!("Sign with `fulmar registry sign {} --key FILE`.", repository.dir().display());
    } else if !progress.published.is_empty() {
        let root = repository.first_root()?;
        println!("Devices trust it by its first root, {}.", Digest::of(&root));
    }
    Ok(())
}

fn status(dir: &Path) -> anyhow::Result<()> {
    let repository = Repository::open(dir)?;
    let mut table = super::output::table(&["role", "version", "expires", "signed by", "keys", ""]);
    for role in repository.status()? {
        let keys: Vec<String> =
            role.key_ids.iter().map(|id| id.chars().take(12).collect()).collect();
        table.add_row(vec![
            role.role,
            role.version.map_or("-".to_owned(), |version| version.to_string()),
            role.expires.map_or("-".to_owned(), |at| at.to_string()),
            format!("{} of {}", role.threshold, keys.len()),
            keys.join(" "),
            if role.staged { "staged".to_owned() } else { String::new() },
        ]);
    }
    println!("{table}");
    // With no keys, this only counts what is missing.
    for missing in repository.sign(&[], now_s())?.missing {
        println!("Staged: {missing}.");
    }
    match repository.trusted(now_s()) {
        Ok(trusted) => {
            println!("A device can use it at {}. It names:", Date(now_s()));
            for (path, entry) in trusted.targets() {
                let name = ModelName::from_target_path(path)
                    .map_or_else(|_| path.to_owned(), |name| name.to_string());
                let digest = entry.digest().map_or_else(String::new, |d| d.to_string());
                println!("  {name}  {digest}");
            }
            Ok(())
        }
        Err(error) => Err(error).context("use it as a device would"),
    }
}

fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}
