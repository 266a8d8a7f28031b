//! `fulmar enroll`: joining a fleet.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use fulmar_policy::{Action, Policy, Principal};
use fulmar_protocol::ENROLL_FILE_BYTES_MAX;
use fulmar_sync::Enrollment;
use serde_json::json;

use super::{Place, output};
use crate::link;
use crate::state::State;

/// Arguments of `fulmar enroll`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The join token from the control plane; @FILE reads it from a file.
    #[arg(env = "FULMAR_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// A name for people, 1 to 63 of a-z, 0-9 and '-'; default: the host's.
    #[arg(long)]
    name: Option<String>,
    /// Without a link: write the request to this file, for `fulmar control-plane admit`.
    #[arg(long, value_name = "FILE", conflicts_with = "answer")]
    request: Option<PathBuf>,
    /// Without a link: join with the answer in this file.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// The owner's registry root (root.json), brought by hand: for a join token that names none.
    #[arg(long, value_name = "FILE")]
    registry_root: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Joins the fleet. A running agent must be restarted to meet its control plane.
pub(crate) fn run(place: &Place, args: &Args) -> anyhow::Result<ExitCode> {
    let (config, dir) = place.load()?;
    std::fs::create_dir_all(&dir)?;
    let _log = super::quiet_log(&config, &dir)?;
    let state = State::open(&dir)?;
    let asked_as = args.answer.is_some().then(|| read_name(&state)).flatten();
    let name = args.name.clone().or(asked_as).unwrap_or_else(host_name);
    let enrollment = Enrollment {
        registry_root: args.registry_root.as_deref().map(read_root).transpose()?,
        ..enrollment(&state, &args.token, &name)?
    };
    if let Some(file) = &args.request {
        return write_request(&state, &enrollment, file);
    }
    let identity = super::runtime()?.block_on(async {
        match &args.answer {
            Some(file) => join_by_answer(&state, &enrollment, file).await,
            None => Ok(join_as(&state, &enrollment).await?),
        }
    })?;
    state.sign_audit_log_blocking()?;
    if args.json {
        output::json(&json!({
            "device_id": identity.device_id, "name": identity.name, "url": identity.url,
        }))?;
    } else {
        println!("joined the fleet at {} as {}", identity.url, identity.name);
        println!("start or restart the agent now: fulmar serve, or systemctl restart fulmar");
    }
    Ok(ExitCode::SUCCESS)
}

/// Joins with a token as text.
///
/// # Errors
/// What the control plane refused, or what could not be written.
// The quickstart's device joins in the process that made the token.
#[cfg(all(feature = "control-plane", feature = "demo-model"))]
pub(crate) async fn join(
    state: &Arc<State>,
    token: &str,
    name: &str,
) -> anyhow::Result<fulmar_sync::Identity> {
    Ok(join_as(state, &enrollment(state, token, name)?).await?)
}

async fn join_as(
    state: &State,
    enrollment: &Enrollment,
) -> Result<fulmar_sync::Identity, fulmar_sync::EnrollError> {
    fulmar_sync::enroll(state.store(), Arc::clone(state.clock()), enrollment).await
}

fn read_root(file: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}

fn enrollment(state: &State, token: &str, name: &str) -> anyhow::Result<Enrollment> {
    let principal = Principal::local();
    Policy::builtin().decide(&principal, Action::DeviceEnroll, name)?;
    Ok(Enrollment {
        token: link::join_token(token)?,
        name: name.to_owned(),
        audit_key: state.device(),
        facts: link::facts(),
        identity_path: state.identity_path(),
        actor: principal.audit_name(),
        registry_root: None,
    })
}

fn write_request(
    state: &State,
    enrollment: &Enrollment,
    file: &std::path::Path,
) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(!file.exists(), "write the request: {} is there already", file.display());
    let request = fulmar_sync::enroll_request(enrollment)?;
    let bytes = serde_json::to_vec(&request).context("write the request")?;
    // It holds the token's secret.
    crate::state::write_secret(file, &bytes)?;
    let kept = name_path(state);
    std::fs::write(&kept, &enrollment.name).with_context(|| format!("write {}", kept.display()))?;
    println!("wrote the request to {}; at the control plane:", file.display());
    println!("fulmar control-plane admit --dir DIR {} --out ANSWER", file.display());
    Ok(ExitCode::SUCCESS)
}

/// The name in the request that waits for its answer.
fn name_path(state: &State) -> std::path::PathBuf {
    state.identity_path().with_extension("pending-name")
}

fn read_name(state: &State) -> Option<String> {
    std::fs::read_to_string(name_path(state)).ok()
}

async fn join_by_answer(
    state: &State,
    enrollment: &Enrollment,
    file: &std::path::Path,
) -> anyhow::Result<fulmar_sync::Identity> {
    let data = std::fs::metadata(file).with_context(|| format!("read {}", file.display()))?;
    let (found, max) = (data.len(), ENROLL_FILE_BYTES_MAX as u64);
    anyhow::ensure!(found <= max, "read {}: {found} bytes, at most {max}", file.display());
    let answer = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let clock = Arc::clone(state.clock());
    let joined = fulmar_sync::enroll_by_answer(state.store(), clock, enrollment, &answer).await?;
    let _ = std::fs::remove_file(name_path(state));
    Ok(joined)
}

/// The host's name as far as it is a device's name.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let clean: String = name
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    let clean = clean.trim_matches('-');
    if clean.is_empty() { "device".into() } else { clean.into() }
}
