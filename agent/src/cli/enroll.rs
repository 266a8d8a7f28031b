//! `fulmar enroll`: joining a fleet.

use std::process::ExitCode;
use std::sync::Arc;

use fulmar_policy::{Action, Policy, Principal};
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
    let name = args.name.clone().unwrap_or_else(host_name);
    let identity = super::runtime()?.block_on(join(&state, &args.token, &name))?;
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
pub(crate) async fn join(
    state: &Arc<State>,
    token: &str,
    name: &str,
) -> anyhow::Result<fulmar_sync::Identity> {
    let principal = Principal::local();
    Policy::builtin().decide(&principal, Action::DeviceEnroll, name)?;
    let enrollment = Enrollment {
        token: link::join_token(token)?,
        name: name.to_owned(),
        audit_key: state.device(),
        facts: link::facts(),
        identity_path: state.identity_path(),
        actor: principal.audit_name(),
    };
    Ok(fulmar_sync::enroll(state.store(), Arc::clone(state.clock()), &enrollment).await?)
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
