//! The command line, for the binary `fulmar-control` and for `fulmar control-plane` alike.

mod group;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::carry::Wanted;
use crate::{Config, InitOptions, gc, systemd};

/// Arguments of the control plane.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a state directory with a fleet CA, a director and a first operator.
    Init(Init),
    /// Serve devices and operators until told to stop.
    Serve(Serve),
    /// Write what devices should hold to one file, for those without a link.
    Bundle(Bundle),
    /// Groups of devices: list them, put devices in, take devices out.
    Group(group::Args),
    /// Let a device without a link join: takes the request that it wrote (`fulmar enroll
    /// --request`), and writes the answer for it (`fulmar enroll --answer`).
    Admit(Admit),
    /// Take in a file that a device without a link wrote (`fulmar bundle report`).
    Reports(Reports),
    /// Replace the director's key by a new one: devices follow when they next ask. Works beside a
    /// serving control plane.
    RotateDirectorKey(RotateDirectorKey),
    /// Free the files of old releases that no device and no deployment wants.
    Gc(Gc),
}

#[derive(Debug, clap::Args)]
struct Gc {
    /// Configuration file (TOML).
    #[arg(long)]
    config: Option<PathBuf>,
    /// The state directory; goes before the configuration's `dir`.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only say what would be freed.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct RotateDirectorKey {
    /// The state directory.
    #[arg(long)]
    dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Admit {
    /// The state directory.
    #[arg(long)]
    dir: PathBuf,
    /// The device's request.
    request: PathBuf,
    /// The answer to write.
    #[arg(long)]
    out: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Reports {
    /// The state directory.
    #[arg(long)]
    dir: PathBuf,
    /// The device's file.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Arguments of `bundle`.
#[derive(Debug, clap::Args)]
pub struct Bundle {
    /// The state directory.
    #[arg(long)]
    dir: PathBuf,
    /// A device's id, or a name that it alone has; may be repeated. All devices if neither a device
    /// nor a group is named.
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<String>,
    /// A group: for the devices that are in it now; may be repeated, beside `--device` too.
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Init {
    /// The state directory to make.
    #[arg(long)]
    dir: PathBuf,
    /// Name of the first operator.
    #[arg(long, default_value = "admin")]
    admin: String,
    /// The owner's registry root (root.json): whose models may be deployed.
    #[arg(long)]
    registry_root: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Configuration file (TOML).
    #[arg(long)]
    config: Option<PathBuf>,
    /// The state directory; goes before the configuration's `dir`.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where devices connect, ADDRESS:PORT; port 0 takes a free one.
    #[arg(long)]
    device_listen: Option<SocketAddr>,
    /// What devices are told to connect to, https://HOST:PORT.
    #[arg(long)]
    device_url: Option<String>,
    /// Where operators connect, ADDRESS:PORT; port 0 takes a free one.
    #[arg(long)]
    console_listen: Option<SocketAddr>,
    /// How often devices check in, in milliseconds.
    #[arg(long)]
    check_in_interval_ms: Option<u64>,
    /// When ready, print one line of JSON to standard output: device_url and console_url.
    #[arg(long)]
    ready_json: bool,
    /// Stop when standard input closes: for programs that start this one.
    #[arg(long)]
    until_stdin_closes: bool,
    /// Log lines as JSON.
    #[arg(long)]
    log_json: bool,
}

/// Runs the command; returns when it is done or the process was told to stop.
///
/// # Errors
/// What failed, worded to follow "failed to".
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Another part of the process may have installed it already: the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match args.command {
        Command::Init(args) => init(args),
        Command::Serve(args) => serve(args),
        Command::Bundle(args) => bundle(&args),
        Command::Group(args) => group::run(&args),
        Command::Admit(args) => admit(&args),
        Command::Reports(args) => reports(&args),
        Command::RotateDirectorKey(args) => rotate_director_key(&args),
        Command::Gc(args) => collect(args),
    }
}

/// Why a command failed: the error and its causes in one line.
#[must_use]
pub fn why(error: &(dyn std::error::Error + 'static)) -> String {
    crate::failure::chain(error)
}

fn init(args: Init) -> anyhow::Result<ExitCode> {
    let registry_root = match &args.registry_root {
        Some(path) => {
            Some(std::fs::read(path).with_context(|| format!("read {}", path.display()))?)
        }
        None => None,
    };
    let options = InitOptions { admin: args.admin, registry_root, ..InitOptions::default() };
    let report = crate::init(&args.dir, &options)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("made a control plane in {}", report.dir.display());
        println!("operator: {}", report.admin);
        println!("password: {}   (told this once)", report.admin_password);
        println!("fleet CA: sha256 {}", report.ca_sha256);
    }
    Ok(ExitCode::SUCCESS)
}

fn collect(args: Gc) -> anyhow::Result<ExitCode> {
    let mut config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    if let Some(dir) = args.dir {
        config.dir = dir;
    }
    let mode = if args.dry_run { gc::Mode::DryRun } else { gc::Mode::Free };
    let garbage = gc::run(&config, mode)?;
    if args.json {
        println!("{}", serde_json::to_string(&garbage)?);
        return Ok(ExitCode::SUCCESS);
    }
    for (digest, bytes) in &garbage.blobs {
        println!("file {digest} ({bytes} bytes)");
    }
    let verb = if args.dry_run { "would be" } else { "are" };
    println!("{} bytes {verb} freed", garbage.bytes);
    Ok(ExitCode::SUCCESS)
}

/// Writes a bundle.
///
/// # Errors
/// What failed, worded to follow "failed to".
pub fn bundle(args: &Bundle) -> anyhow::Result<ExitCode> {
    let config = Config { dir: args.dir.clone(), ..Config::default() };
    let wanted = Wanted { devices: args.devices.clone(), groups: args.groups.clone() };
    let exported = crate::carry::export(&config, wanted, &args.out)?;
    if args.json {
        println!("{}", serde_json::to_string(&exported)?);
    } else {
        let devices = exported.devices.join(", ");
        println!("{}: {} files, {} bytes", args.out.display(), exported.blobs, exported.bytes);
        println!("for {devices}; on each: fulmar bundle import {}", args.out.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn admit(args: &Admit) -> anyhow::Result<ExitCode> {
    let config = Config { dir: args.dir.clone(), ..Config::default() };
    let request =
        std::fs::read(&args.request).with_context(|| format!("read {}", args.request.display()))?;
    let (device_id, answer) = crate::carry::admit(&config, &request)?;
    std::fs::write(&args.out, serde_json::to_vec(&answer)?)
        .with_context(|| format!("write {}", args.out.display()))?;
    if args.json {
        println!("{}", serde_json::json!({ "device_id": device_id }));
    } else {
        println!("device {device_id} is a member; carry {} to it:", args.out.display());
        println!("fulmar enroll JOIN_TOKEN --answer {}", args.out.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn rotate_director_key(args: &RotateDirectorKey) -> anyhow::Result<ExitCode> {
    let rotated = crate::rotate_director_key(&args.dir)?;
    if args.json {
        println!("{}", serde_json::to_string(&rotated)?);
    } else {
        let (old, new) = (&rotated.old_key_id[..12], &rotated.new_key_id[..12]);
        println!("the director's key is {new} now, no longer {old}");
        println!(
            "devices follow by root version {} when they next check in, or take a bundle",
            rotated.root_version
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn reports(args: &Reports) -> anyhow::Result<ExitCode> {
    let config = Config { dir: args.dir.clone(), ..Config::default() };
    let taken = crate::carry::hand_in(&config, &args.file)?;
    if args.json {
        println!("{}", serde_json::to_string(&taken)?);
    } else {
        let (device, reports, known) = (&taken.device_id, taken.reports, taken.known);
        println!("{device}: {reports} reports, {known} of them known already");
        println!("the next bundle for it says that they are here");
        if let Some(fault) = &taken.fault {
            println!("its audit log is not what it was: {fault}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(args: Serve) -> anyhow::Result<ExitCode> {
    log_to_stderr(args.log_json);
    let mut config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    if let Some(dir) = args.dir {
        config.dir = dir;
    }
    if let Some(listen) = args.device_listen {
        config.device.listen = listen;
    }
    if let Some(url) = args.device_url {
        config.device.url = Some(url);
    }
    if let Some(listen) = args.console_listen {
        config.console.listen = listen;
    }
    if let Some(interval) = args.check_in_interval_ms {
        config.check_in_interval_ms = interval;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let signal = stop_signal().context("listen for signals")?;
        let closed = args.until_stdin_closes.then(stdin_closed);
        let stop = async move {
            match closed {
                None => signal.await,
                Some(closed) => tokio::select! {
                    () = signal => {}
                    _ = closed => {}
                },
            }
        };
        let running = crate::serve(config, stop).await?;
        if args.ready_json {
            let ready = serde_json::json!({
                "device_url": running.device_url,
                "console_url": running.console_url,
            });
            let mut out = std::io::stdout();
            writeln!(out, "{ready}").and_then(|()| out.flush()).context("say that it serves")?;
        }
        systemd::ready();
        let alive = tokio::spawn(systemd::watchdog());
        running.stopped().await?;
        alive.abort();
        Ok(ExitCode::SUCCESS)
    })
}

fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        systemd::stopping();
    })
}

/// Completes when standard input ends. The thread ends with the process: a task of the runtime
/// would hold its end up.
fn stdin_closed() -> tokio::sync::oneshot::Receiver<()> {
    let (told, closed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = told.send(());
    });
    closed
}

fn log_to_stderr(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FULMAR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A subscriber of the surrounding program stays.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}
