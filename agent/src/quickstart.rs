//! `fulmar quickstart`: from nothing to an answer under a signed model, a role and a budget, with a
//! console that shows it.
//!
//! One directory holds the owner (offline keys), the control plane and one device. The last two run
//! as processes of their own and talk over TLS; the quickstart only does what their owner would do
//! by hand: sign, publish, enrol, deploy, ask. A second run takes up where the first stopped: every
//! step first looks whether it was done.

mod child;
mod owner;
mod report;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::{enroll, token};
use crate::console::{Console, Source, plain_client};
use crate::state::State;
use child::Process;
use owner::Owner;
use report::Report;

/// How long the roll-out may take.
const ROLLOUT_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the device checks in: often, since somebody is watching.
const CHECK_IN_INTERVAL_MS: u64 = 1_000;
/// What the model is asked.
const QUESTION: &str = "turn on the fan in the boiler room";

/// What `fulmar quickstart` is told.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Where everything lies.
    pub(crate) dir: PathBuf,
    /// Stop after the answer, or keep running until Ctrl-C.
    pub(crate) stay: Stay,
    /// Prose or one JSON object.
    pub(crate) format: Format,
    /// Ports, where they are not to be chosen.
    pub(crate) ports: Ports,
}

/// Whether the quickstart keeps running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Until Ctrl-C.
    UntilInterrupted,
    /// Only for one answer.
    Once,
}

/// How it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Prose,
    /// One object.
    Json,
}

/// Ports on loopback, kept between runs so that what was printed goes on working.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ports {
    /// Where the device's apps connect.
    pub(crate) api: Option<u16>,
    /// Where the console is.
    pub(crate) console: Option<u16>,
    /// Where devices meet the control plane.
    pub(crate) device: Option<u16>,
}

/// What is remembered between runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    ports: Ports,
    admin: String,
    admin_password: String,
}

/// Runs the quickstart.
///
/// # Errors
/// The step that failed, and why.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut report = Report::new(options.format);
    let dir = &options.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;

    report.step("owner keys, control plane and device");
    let now_s = jiff::Timestamp::now().as_second();
    let owner = Owner::open(&dir.join("owner"), now_s)?;
    let memory = prepare(dir, &owner, options.ports)?;
    let mut control = start_control(dir, memory.ports).await?;
    let console_url = text(control.told("console_url")?)?;

    report.step("the embedded model, signed by its owner");
    let release = owner.publish(now_s)?;
    let console =
        Console::sign_in(&console_url, None, &memory.admin, &memory.admin_password).await?;
    let blobs = [
        (release.digest, Source::Bytes(release.manifest.clone())),
        (release.weights_digest, Source::File(release.weights.clone())),
    ];
    console.publish(&blobs, &release.metadata).await?;

    report.step("the device joins the fleet");
    let state = State::open(&dir.join("device"))?;
    let device_id = join(&state, &console).await?;
    let mut agent = start_agent(dir, memory.ports).await?;
    let api_url = text(&agent.told("api_urls")?[0])?;

    report.step("roll-out");
    deploy(&console, &release, &device_id).await?;
    wait_active(&state.socket(), &release, &mut report).await?;

    report.step("a question");
    let mint =
        token::Mint { subject: "quickstart".into(), hours: 24 * 30, ..token::Mint::default() };
    let minting = std::sync::Arc::clone(&state);
    let (app_token, _) =
        tokio::task::spawn_blocking(move || token::mint(&minting, &mint)).await??;
    let answer = ask(&api_url, &app_token, &release.name.to_string()).await?;
    state.sign_audit_log().await?;
    let control_key = state.control_plane_audit_key()?;
    let verified = state.store().read_blocking(|connection| {
        let key = state.audit_key().public();
        fulmar_policy::audit::verify(connection, &state.device(), key, control_key.as_deref())
    })?;
    report.finished(&report::Facts {
        dir,
        elapsed: started.elapsed(),
        question: QUESTION,
        answer: &answer,
        device_id: &device_id,
        release: &release,
        verified: &verified,
        console_url: &console_url,
        api_url: &api_url,
        admin: &memory.admin,
        admin_password: &memory.admin_password,
        app_token: &app_token,
        stay: options.stay,
    })?;

    let ended = match options.stay {
        Stay::Once => Ok(()),
        Stay::UntilInterrupted => tokio::select! {
            // Ctrl-C reaches all three processes: that the others end then is no failure.
            biased;
            signal = crate::serve::stop_signal(crate::serve::Lifetime::Service) => signal,
            error = control.ended() => Err(error),
            error = agent.ended() => Err(error),
        },
    };
    report.step("stopping");
    agent.stop().await?;
    control.stop().await?;
    ended
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value.as_str().context("read what a process told")?.to_owned())
}

/// Makes the control plane's directory at first, and chooses ports.
fn prepare(dir: &Path, owner: &Owner, asked: Ports) -> anyhow::Result<Memory> {
    let path = dir.join("quickstart.json");
    let mut memory = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice::<Memory>(&bytes)
            .with_context(|| format!("read {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let control = dir.join("control");
            // A run that was cut off here left a control plane whose password nobody knows.
            if control.exists() {
                std::fs::remove_dir_all(&control)
                    .with_context(|| format!("remove {}", control.display()))?;
            }
            let options = fulmar_control::InitOptions {
                registry_root: Some(owner.root()?),
                ..fulmar_control::InitOptions::default()
            };
            let made = fulmar_control::init(&control, &options)?;
            Memory {
                ports: Ports::default(),
                admin: made.admin,
                admin_password: made.admin_password,
            }
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    memory.ports = Ports {
        api: Some(choose_port(asked.api, memory.ports.api)?),
        console: Some(choose_port(asked.console, memory.ports.console)?),
        // The device goes on asking at this one, so it stays what it was.
        device: Some(choose_port(asked.device.or(memory.ports.device), None)?),
    };
    let bytes = serde_json::to_vec_pretty(&memory)?;
    if std::fs::read(&path).ok().as_deref() != Some(&bytes) {
        let _ = std::fs::remove_file(&path);
        crate::state::write_secret(&path, &bytes)?;
    }
    Ok(memory)
}

/// Ports below those that systems hand out for outgoing connections (32,768 and up on Linux): what
/// is chosen here is still free when the process that serves on it starts, and at the next run.
const CHOSEN_PORTS: std::ops::Range<u16> = 20_000..32_768;

/// The port that was asked for, or else the one of the last run where it is still free.
fn choose_port(asked: Option<u16>, kept: Option<u16>) -> anyhow::Result<u16> {
    match asked.or(kept.filter(|&port| is_free(port))) {
        Some(port) => Ok(port),
        None => free_port(),
    }
}

/// A port that nobody listens on now.
fn free_port() -> anyhow::Result<u16> {
    let span = u128::from(CHOSEN_PORTS.end - CHOSEN_PORTS.start);
    (0..1_000)
        .filter_map(|_| u16::try_from(uuid::Uuid::new_v4().as_u128() % span).ok())
        .map(|offset| CHOSEN_PORTS.start + offset)
        .find(|&port| is_free(port))
        .with_context(|| {
            format!(
                "find a free port from {} to {}: 1,000 tried at random are taken; choose with \
                 --api-port, --console-port and --device-port",
                CHOSEN_PORTS.start,
                CHOSEN_PORTS.end - 1
            )
        })
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn address(port: Option<u16>) -> String {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0))).to_string()
}

async fn start_control(dir: &Path, ports: Ports) -> anyhow::Result<Process> {
    let arguments: Vec<OsString> = vec![
        "control-plane".into(),
        "serve".into(),
        "--dir".into(),
        dir.join("control").into(),
        "--device-listen".into(),
        address(ports.device).into(),
        "--console-listen".into(),
        address(ports.console).into(),
        "--check-in-interval-ms".into(),
        CHECK_IN_INTERVAL_MS.to_string().into(),
        "--ready-json".into(),
        "--until-stdin-closes".into(),
    ];
    Process::start("control plane", &arguments, &dir.join("control.log")).await
}

async fn start_agent(dir: &Path, ports: Ports) -> anyhow::Result<Process> {
    let arguments: Vec<OsString> = vec![
        "serve".into(),
        "--dir".into(),
        dir.join("device").into(),
        "--listen".into(),
        address(ports.api).into(),
        "--ready-json".into(),
        "--until-stdin-closes".into(),
    ];
    Process::start("agent", &arguments, &dir.join("device.log")).await
}

/// Joins the fleet, unless the device is a member.
async fn join(state: &std::sync::Arc<State>, console: &Console) -> anyhow::Result<String> {
    if let Some(identity) = fulmar_sync::Identity::load(&state.identity_path())? {
        return Ok(identity.device_id);
    }
    let join_token = console.join_token("quickstart", None, &[]).await?.token;
    let identity = enroll::join(state, &join_token, "quickstart").await?;
    state.sign_audit_log().await?;
    Ok(identity.device_id)
}

/// Says that the device should serve the release, unless that was said before.
async fn deploy(
    console: &Console,
    release: &owner::Release,
    device_id: &str,
) -> anyhow::Result<()> {
    let digest = release.digest.to_string();
    let device = console.device(device_id).await?;
    let desired = device["desired"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !desired.iter().any(|model| model["digest"] == digest.as_str()) {
        let devices = json!([device_id]);
        console.deploy(&release.name.to_string(), Some(&release.digest), devices).await?;
    }
    Ok(())
}

/// Waits until the agent serves the release, showing how far it is.
async fn wait_active(
    socket: &Path,
    release: &owner::Release,
    report: &mut Report,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + ROLLOUT_TIMEOUT;
    let digest = release.digest.to_string();
    let mut last = Value::Null;
    while Instant::now() < deadline {
        last = crate::client::call(socket, hyper::Method::GET, "/fulmar/v1/status").await?;
        let models = last["models"].as_array().map(Vec::as_slice).unwrap_or_default();
        let model = models.iter().find(|model| model["digest"] == digest.as_str());
        if let Some(model) = model {
            if model["slot"] == "active" {
                return Ok(());
            }
            if let Some(reason) = model["failure"].as_str() {
                anyhow::bail!("roll the model out: {reason}");
            }
        }
        let fetching = &last["link"]["fetching"];
        report.progress(
            fetching["bytes_done"].as_u64().unwrap_or(0),
            fetching["bytes_total"].as_u64().unwrap_or(0),
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!(
        "roll the model out: not active within {} s; the device says: {}",
        ROLLOUT_TIMEOUT.as_secs(),
        last["link"]
    )
}

/// What the model said.
#[derive(Debug)]
struct Answer {
    text: String,
    tokens_per_second: f64,
    audit_entry: u64,
}

async fn ask(api_url: &str, token: &str, model: &str) -> anyhow::Result<Answer> {
    let body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": QUESTION }],
        "temperature": 0,
        "max_tokens": 128,
    });
    let response = plain_client()?
        .post(format!("{api_url}/chat/completions"))
        .bearer_auth(token)
        .json(&body)
        .send()
        .await
        .context("ask the model")?;
    let status = response.status();
    let answer: Value = response.json().await.context("read the answer")?;
    anyhow::ensure!(
        status.is_success(),
        "ask the model: {status}: {}",
        answer["error"]["message"].as_str().unwrap_or("no reason given")
    );
    Ok(Answer {
        text: text(&answer["choices"][0]["message"]["content"])?,
        tokens_per_second: answer["timings"]["decode_tokens_per_s"].as_f64().unwrap_or(0.0),
        audit_entry: answer["fulmar"]["audit_entry"].as_u64().context("find the audit entry")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_the_last_run_is_kept_while_it_is_free_and_replaced_when_it_is_taken() {
        let kept = free_port().unwrap();
        assert_eq!(choose_port(None, Some(kept)).unwrap(), kept);
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, kept)).unwrap();
        let chosen = choose_port(None, Some(kept)).unwrap();
        assert_ne!(chosen, kept);
        assert!(CHOSEN_PORTS.contains(&chosen), "{chosen}");
    }

    #[test]
    fn a_port_that_was_asked_for_is_never_replaced() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let asked = taken.local_addr().unwrap().port();
        assert_eq!(choose_port(Some(asked), None).unwrap(), asked);
    }
}
