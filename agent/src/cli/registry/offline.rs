//! Signing on machines that do not have the registry: a file goes out, and comes back signed.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fulmar_registry::trust::repository::{Repository, SigningRequest};

use super::keys::{self, Passphrase};
use super::{now_s, report, signing_keys};

#[derive(Debug, clap::Args)]
pub(super) struct RequestArgs {
    /// The registry's folder.
    registry: PathBuf,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct SignRequestArgs {
    /// The file; signatures are added to it.
    request: PathBuf,
    /// A key file to sign with; may be repeated.
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    passphrase: Passphrase,
}

#[derive(Debug, clap::Args)]
pub(super) struct MergeArgs {
    /// The registry's folder.
    registry: PathBuf,
    /// Files that came back; several people may have signed copies of the same one.
    #[arg(required = true)]
    requests: Vec<PathBuf>,
}

fn read(path: &Path) -> anyhow::Result<SigningRequest> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    SigningRequest::read(&bytes).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, request: &SigningRequest) -> anyhow::Result<()> {
    std::fs::write(path, request.to_bytes()?).with_context(|| format!("write {}", path.display()))
}

fn show(request: &SigningRequest) {
    for role in request.asked_for() {
        let signed = role.signed_by.len();
        println!(
            "{} version {}, until {}, {signed} signatures:",
            role.role, role.version, role.expires
        );
        for target in &role.targets {
            println!("  {target}");
        }
    }
}

pub(super) fn request(args: &RequestArgs) -> anyhow::Result<()> {
    let request = Repository::open(&args.registry)?.request()?;
    if request.asked_for().is_empty() {
        bail!("write a signing request: nothing is staged in {}", args.registry.display());
    }
    write(&args.out, &request)?;
    show(&request);
    println!("Sign it with `fulmar registry sign-request {} --key FILE`.", args.out.display());
    Ok(())
}

pub(super) fn sign_request(args: &SignRequestArgs) -> anyhow::Result<()> {
    let mut request = read(&args.request)?;
    show(&request);
    let files = args
        .keys
        .iter()
        .map(|path| keys::read(path, &args.passphrase))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let signed = request.sign(&signing_keys(&files, &args.keys)?)?;
    if signed.is_empty() {
        bail!(
            "sign {}: no role in it wants these keys, or they signed it already",
            args.request.display()
        );
    }
    write(&args.request, &request)?;
    println!("Signed {}. Carry it back for `fulmar registry merge`.", signed.join(", "));
    Ok(())
}

pub(super) fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    let repository = Repository::open(&args.registry)?;
    for path in &args.requests {
        let request = read(path)?;
        let progress = repository
            .merge(&request, now_s())
            .with_context(|| format!("take {}", path.display()))?;
        report(&repository, &progress)?;
    }
    Ok(())
}
