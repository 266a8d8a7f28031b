//! Models in and out of the registry.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, bail};
use fulmar_registry::blobs::Blobs;
use fulmar_registry::facts::model_custom;
use fulmar_registry::import;
use fulmar_registry::manifest::Evaluation;
use fulmar_registry::trust::repository::Repository;
use fulmar_registry::{Manifest, ModelName};

use super::{Target, now_s};
use crate::models;

#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    #[command(flatten)]
    target: Target,
    /// A GGUF file, or a manifest (.json).
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The model's name, namespace/name:tag; needed for a GGUF file.
    #[arg(long)]
    name: Option<ModelName>,
    /// The release counter; one more than the last if not given.
    #[arg(long)]
    release: Option<u64>,
    /// The licence, as an SPDX expression; what the file says if not given.
    #[arg(long)]
    license: Option<String>,
    /// Where it came from.
    #[arg(long)]
    source: Option<String>,
    /// A small model of the same vocabulary, namespace/name:tag, that guesses ahead for this one on
    /// devices that have both.
    #[arg(long, value_name = "NAME")]
    draft: Option<ModelName>,
    /// What was measured, as TASK:METRIC=VALUE or TASK:METRIC=VALUE:CASES; may be given several times.
    #[arg(long, value_name = "RESULT")]
    evaluation: Vec<Evaluation>,
    /// A file of results: JSON, the list that a manifest has as `evaluation`.
    #[arg(long, value_name = "FILE")]
    evaluations: Option<PathBuf>,
    /// The role that names it; the one that the name is delegated to if not given.
    #[arg(long)]
    role: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct WithdrawArgs {
    #[command(flatten)]
    target: Target,
    /// The model's name.
    name: ModelName,
}

pub(super) fn publish(args: &PublishArgs) -> anyhow::Result<()> {
    let repository = args.target.open()?;
    let is_manifest = args.model.extension().is_some_and(|ending| ending == "json");
    let manifest = match is_manifest {
        true => {
            anyhow::ensure!(
                args.evaluation.is_empty() && args.evaluations.is_none(),
                "publish {}: a manifest says itself what was measured",
                args.model.display()
            );
            let bytes = std::fs::read(&args.model)
                .with_context(|| format!("read {}", args.model.display()))?;
            Manifest::parse(&bytes).with_context(|| format!("read {}", args.model.display()))?
        }
        false => of_gguf(&repository, args)?,
    };
    if args.name.as_ref().is_some_and(|name| *name != manifest.name) {
        bail!("publish {}: the manifest is of {}", args.model.display(), manifest.name);
    }
    let custom = model_custom(&manifest);
    let published = repository.publish_target(
        &manifest.name.target_path(),
        &manifest.to_bytes()?,
        Some(custom),
        args.role.as_deref(),
        now_s(),
    )?;
    println!(
        "Staged {} release {} in {}: {}",
        manifest.name, manifest.release, published.role, published.digest
    );
    args.target.finish(&repository)
}

pub(super) fn withdraw(args: &WithdrawArgs) -> anyhow::Result<()> {
    let repository = args.target.open()?;
    let roles = repository.remove_target(&args.name.target_path(), now_s())?;
    println!("Staged the removal of {} from {}.", args.name, roles.join(", "));
    args.target.finish(&repository)
}

/// A manifest of a GGUF file, whose blob is kept in the registry's folder.
fn of_gguf(repository: &Repository, args: &PublishArgs) -> anyhow::Result<Manifest> {
    let path = &args.model;
    let name = args.name.as_ref().context("name the model: give --name namespace/name:tag")?;
    let mut facts = models::facts(path).with_context(|| format!("read {}", path.display()))?;
    if let Some(license) = &args.license {
        facts.license.clone_from(license);
    }
    if let Some(source) = &args.source {
        facts.source.clone_from(source);
    }
    facts.draft.clone_from(&args.draft);
    facts.evaluation = evaluation(args)?;
    let release = match args.release {
        // Where the last one is not to be known, the owner is believed, and devices still refuse.
        Some(release) => match last_release(repository, name).unwrap_or(0) {
            last if release < last => bail!(
                "publish {name}: --release is {release} and the registry has {last}: devices refuse \
                 an older one; give {last} to sign it anew, or leave it out"
            ),
            _ => release,
        },
        None => last_release(repository, name)? + 1,
    };
    let file = import::describe_gguf(path, &facts)?;
    let blobs = Blobs::open(&repository.dir().join("blobs"), u64::MAX)?;
    let mut reader = File::open(path).with_context(|| format!("open {}", path.display()))?;
    blobs.put_file(&file, &mut reader)?;
    Ok(import::manifest(name, release, vec![file], &facts))
}

/// What was measured: by file, then by argument.
fn evaluation(args: &PublishArgs) -> anyhow::Result<Vec<Evaluation>> {
    let mut results: Vec<Evaluation> = Vec::new();
    if let Some(path) = &args.evaluations {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        results = serde_json::from_slice(&bytes)
            .with_context(|| format!("read the results in {}", path.display()))?;
    }
    results.extend(args.evaluation.iter().cloned());
    Ok(results)
}

/// The published release counter of a model; 0 where there is none.
fn last_release(repository: &Repository, name: &ModelName) -> anyhow::Result<u64> {
    let Ok(trusted) = repository.trusted(now_s()) else {
        bail!(
            "find the last release of {name}: the registry is not published, or has expired; give \
             --release, or renew it"
        );
    };
    let custom = trusted.target(&name.target_path()).and_then(|entry| entry.custom.as_ref());
    Ok(custom.and_then(|c| c["fulmar"]["release"].as_u64()).unwrap_or(0))
}
