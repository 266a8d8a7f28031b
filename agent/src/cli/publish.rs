//! `fulmar publish` and `fulmar join-token`: an operator's work at a control plane, without the
//! browser.
//!
//! Publishing hands in what the owner signed already (`fulmar registry publish`): no key is needed
//! here, and the control plane verifies every signature again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use fulmar_registry::trust::repository::Repository;
use fulmar_registry::{Digest, Manifest, ModelName};
use serde_json::{Value, json};

use super::output;
use crate::console::{Console, Source};

/// Which control plane, and who asks.
#[derive(Debug, clap::Args)]
pub(crate) struct Access {
    /// The console's address, http://127.0.0.1:PORT or https://HOST:PORT.
    #[arg(long, env = "FULMAR_CONSOLE", value_name = "URL")]
    console: String,
    /// The certificate that the console's is checked against (PEM), for a console with one of the
    /// fleet's own CA.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The operator's name.
    #[arg(long, env = "FULMAR_OPERATOR", default_value = "admin")]
    operator: String,
    /// The operator's password; asked for in the terminal if not given.
    #[arg(long, env = "FULMAR_OPERATOR_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// A bearer token instead of a password.
    #[arg(long, env = "FULMAR_CONSOLE_TOKEN", hide_env_values = true, conflicts_with = "password")]
    token: Option<String>,
}

impl Access {
    pub(super) async fn sign_in(&self) -> anyhow::Result<Console> {
        let ca = self.ca.as_deref();
        if let Some(token) = &self.token {
            return Console::with_token(&self.console, ca, token.clone());
        }
        let password = match &self.password {
            Some(password) => password.clone(),
            None => dialoguer::Password::new()
                .with_prompt(format!("Password of {}", self.operator))
                .interact()
                .context("ask for the operator's password: give --password or --token")?,
        };
        Console::sign_in(&self.console, ca, &self.operator, &password).await
    }
}

/// Arguments of `fulmar publish`.
#[derive(Debug, clap::Args)]
pub(crate) struct PublishArgs {
    /// The owner's registry folder, signed.
    #[arg(value_name = "REGISTRY")]
    registry: PathBuf,
    /// A file of a model that the control plane lacks; may be repeated.
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Deploy what is new: all, or a device's id; may be repeated.
    #[arg(long = "deploy", value_name = "DEVICE")]
    deploy: Vec<String>,
    /// Deploy what is new to a group, to the devices that join it later too; may be repeated.
    #[arg(long = "deploy-group", value_name = "NAME", conflicts_with = "deploy")]
    deploy_groups: Vec<String>,
    #[command(flatten)]
    access: Access,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Hands a signed registry to a control plane: the blobs that it lacks, then the metadata.
pub(crate) fn publish(args: &PublishArgs) -> anyhow::Result<ExitCode> {
    let release = read_registry(&args.registry)?;
    let done = super::runtime()?.block_on(async {
        let console = args.access.sign_in().await?;
        let blobs = missing(&console, &release, &args.files).await?;
        let uploaded = blobs.len();
        let published = console.publish(&blobs, &release.metadata).await?;
        let mut deployments = Vec::new();
        if let Some(devices) = deploy_to(args) {
            for model in &published {
                deployments.push(console.deploy(model, None, devices.clone()).await?);
            }
        }
        anyhow::Ok(json!({
            "published": published, "uploaded_blobs": uploaded, "deployments": deployments,
        }))
    })?;
    if args.json {
        output::json(&done)?;
    } else {
        tell(args, &done);
    }
    Ok(ExitCode::SUCCESS)
}

/// To whom what is new goes, as the control plane's API says it.
fn deploy_to(args: &PublishArgs) -> Option<Value> {
    if !args.deploy_groups.is_empty() {
        return Some(json!({ "groups": args.deploy_groups }));
    }
    let all = args.deploy.iter().any(|device| device == "all");
    let devices = if all { json!("all") } else { json!(args.deploy) };
    (!args.deploy.is_empty()).then_some(devices)
}

fn tell(args: &PublishArgs, done: &Value) {
    let published: Vec<&str> =
        done["published"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if published.is_empty() {
        println!("the control plane has the registry as it is now; no release is new");
        if !args.deploy.is_empty() || !args.deploy_groups.is_empty() {
            println!(
                "nothing was deployed: --deploy is for new releases; others go by the console"
            );
        }
        return;
    }
    println!("published {}", published.join(", "));
    for deployment in done["deployments"].as_array().into_iter().flatten() {
        println!("deployment {deployment} begins");
    }
}

/// What a registry folder says and holds.
struct Signed {
    metadata: Vec<(String, Vec<u8>)>,
    /// Manifests and other targets, which lie in the folder.
    targets: Vec<(Digest, Vec<u8>)>,
    /// Files of models, which lie elsewhere: digest, length, and of which model.
    files: BTreeMap<Digest, (u64, ModelName)>,
}

fn read_registry(folder: &Path) -> anyhow::Result<Signed> {
    let now_s = jiff::Timestamp::now().as_second();
    let repository = Repository::open(folder)?;
    let trusted = repository.trusted(now_s).with_context(|| {
        format!(
            "use the registry {}: `fulmar registry status` says what it lacks",
            folder.display()
        )
    })?;
    let mut signed = Signed {
        metadata: repository.metadata_files(now_s)?,
        targets: Vec::new(),
        files: BTreeMap::new(),
    };
    for (path, entry) in trusted.targets() {
        let bytes = repository.read_target(&trusted, path)?;
        let kind = entry.custom.as_ref().and_then(|custom| custom.pointer("/fulmar/kind"));
        if kind.and_then(Value::as_str) == Some("model") {
            let manifest =
                Manifest::parse(&bytes).with_context(|| format!("read the manifest {path}"))?;
            for file in &manifest.files {
                signed.files.insert(file.digest, (file.size_bytes, manifest.name.clone()));
            }
        }
        signed.targets.push((Digest::of(&bytes), bytes));
    }
    Ok(signed)
}

/// The blobs that the control plane lacks, with where their bytes are.
async fn missing(
    console: &Console,
    signed: &Signed,
    given: &[PathBuf],
) -> anyhow::Result<Vec<(Digest, Source)>> {
    let mut blobs = Vec::new();
    for (digest, bytes) in &signed.targets {
        if !console.has(digest).await? {
            blobs.push((*digest, Source::Bytes(bytes.clone())));
        }
    }
    let given = given.to_vec();
    let given = tokio::task::spawn_blocking(move || {
        given
            .into_iter()
            .map(|path| Ok((digest_of(&path)?, path)))
            .collect::<anyhow::Result<BTreeMap<_, _>>>()
    })
    .await??;
    for (digest, (size_bytes, model)) in &signed.files {
        if console.has(digest).await? {
            continue;
        }
        let path = given.get(digest).with_context(|| {
            format!(
                "publish {model}: the control plane lacks its file {digest} ({}); give it with \
                 --file",
                output::size(*size_bytes)
            )
        })?;
        blobs.push((*digest, Source::File(path.clone())));
    }
    Ok(blobs)
}

fn digest_of(path: &Path) -> anyhow::Result<Digest> {
    let read = || format!("read {}", path.display());
    let mut file = std::fs::File::open(path).with_context(read)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).with_context(read)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Ok(Digest::from_bytes(bytes))
}

/// Arguments of `fulmar join-token`.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinTokenArgs {
    /// What it is for.
    #[arg(long, default_value = "")]
    note: String,
    /// For how many hours it is good.
    #[arg(long, default_value_t = 1)]
    hours: u32,
    /// A group that the device belongs to as soon as it joins; may be repeated.
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,
    #[command(flatten)]
    access: Access,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Makes a join token.
pub(crate) fn join_token(args: &JoinTokenArgs) -> anyhow::Result<ExitCode> {
    let made = super::runtime()?.block_on(async {
        let console = args.access.sign_in().await?;
        console.join_token(&args.note, Some(args.hours), &args.groups).await
    })?;
    if args.json {
        output::json(&json!({ "token": made.token, "expires_s": made.expires_s }))?;
    } else {
        println!("fulmar enroll {}", made.token);
        eprintln!("for one device, good until {}", output::time(made.expires_s));
    }
    Ok(ExitCode::SUCCESS)
}
