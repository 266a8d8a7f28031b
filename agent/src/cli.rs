//! The command line: one module per command, each with its arguments and a `run`.

mod audit;
mod bench;
mod bundle;
mod config;
mod convert;
mod debug;
mod doctor;
pub(crate) mod enroll;
mod gc;
mod group;
mod models;
pub(crate) mod output;
mod publish;
mod pull;
mod quantize;
#[cfg(all(feature = "control-plane", feature = "demo-model"))]
mod quickstart;
mod registry;
mod run;
mod search;
mod serve;
mod status;
pub(crate) mod token;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use crate::causes;
use crate::config::Config;
use crate::logging::{self, Console};
use crate::state::State;

/// Runs small language models on a device, under rules that its owner signed.
#[derive(Debug, Parser)]
#[command(name = "fulmar", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Which device: its configuration and its state directory.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// Configuration file (TOML).
    #[arg(
        long,
        global = true,
        env = "FULMAR_CONFIG",
        value_name = "FILE",
        help_heading = "Which device"
    )]
    config: Option<PathBuf>,
    /// State directory.
    #[arg(long, global = true, env = "FULMAR_DIR", help_heading = "Which device")]
    dir: Option<PathBuf>,
}

impl Place {
    /// The directory as given, if it was.
    #[cfg(all(feature = "control-plane", feature = "demo-model"))]
    pub(crate) fn dir(&self) -> Option<&std::path::Path> {
        self.dir.as_deref()
    }

    /// The configuration and the state directory.
    pub(crate) fn load(&self) -> anyhow::Result<(Config, PathBuf)> {
        let config = Config::load(self.config.as_deref())?;
        let dir = config.state_dir(self.dir.as_deref())?;
        Ok((config, dir))
    }

    /// The state directory, opened, for commands that work without a running agent.
    pub(crate) fn open(&self) -> anyhow::Result<Arc<State>> {
        let (_, dir) = self.load()?;
        State::open(&dir)
    }

    /// The running agent's socket.
    pub(crate) fn socket(&self) -> anyhow::Result<PathBuf> {
        Ok(crate::state::socket(&self.load()?.1))
    }
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// A fleet of one on this machine, from nothing to an answer.
    #[cfg(all(feature = "control-plane", feature = "demo-model"))]
    Quickstart(quickstart::Args),
    /// Serve models over local HTTP, and meet the control plane when there is one.
    Serve(serve::Args),
    /// Ask a model in the terminal.
    Run(run::Args),
    /// List the models on this device.
    List(models::ListArgs),
    /// Find models: in the trusted registry, or on a hub.
    Search(search::Args),
    /// Show what a model is and who signed it.
    Show(models::ShowArgs),
    /// Take a model off this device.
    Rm(models::RmArgs),
    /// Bring a model in: a file, a Hugging Face repository, an OCI artifact, an Ollama store.
    Pull(pull::Args),
    /// Go back to the release of a model that served before.
    Rollback(models::RollbackArgs),
    /// Keep a release from garbage collection.
    Pin(models::PinArgs),
    /// Free what no model needs.
    Gc(gc::Args),
    /// Show what the engine does now.
    Ps(status::PsArgs),
    /// Show the device, its link and its models.
    Status(status::StatusArgs),
    /// Join a fleet.
    Enroll(enroll::Args),
    /// Meet the control plane now.
    Sync(status::SyncArgs),
    /// Take what the fleet wants from a file that somebody carried here.
    Bundle(bundle::Args),
    /// Make, list and revoke the tokens of apps.
    Token(token::Args),
    /// Read, verify and prove the audit log.
    Audit(audit::Args),
    /// Say in plain words what is wrong and what to do.
    Doctor(doctor::Args),
    /// Check and print the configuration.
    Config(config::Args),
    /// The control plane, for a fleet on one machine.
    #[cfg(feature = "control-plane")]
    ControlPlane(fulmar_control::cli::Args),
    /// Make a GGUF file of a Hugging Face folder.
    Convert(convert::Args),
    /// Make the weights of a GGUF file smaller.
    Quantize(quantize::Args),
    /// The owner's registry: keys, releases, teams, signatures.
    Registry(registry::Args),
    /// Hand what the owner signed to a control plane.
    Publish(publish::PublishArgs),
    /// Make a join token for a device, at a control plane.
    JoinToken(publish::JoinTokenArgs),
    /// Groups of devices, at a control plane.
    Group(group::Args),
    /// Measure how fast a model file runs here.
    Bench(bench::Args),
    /// Look inside: logits, tokens, templates, files.
    Debug(debug::Args),
}

/// Parses the arguments, runs the command, prints a failure with its causes.
pub(crate) fn main() -> ExitCode {
    be_quiet_on_closed_pipes();
    // One provider for the process, before anything speaks TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Cli { place, command } = Cli::parse();
    match dispatch(&place, command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fulmar: failed to {}", causes::line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Whoever reads our output may have read enough (`fulmar list | head`): the end of the command,
/// and nothing to complain about.
fn be_quiet_on_closed_pipes() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if !(text.starts_with("failed printing to std") && text.contains("Broken pipe")) {
            usual(panic);
        }
    }));
}

fn dispatch(place: &Place, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        #[cfg(all(feature = "control-plane", feature = "demo-model"))]
        Command::Quickstart(args) => quickstart::run(place, &args),
        Command::Serve(args) => serve::run(place, args),
        Command::Run(args) => run::run(place, args),
        Command::List(args) => models::list(place, &args),
        Command::Search(args) => search::run(place, &args),
        Command::Show(args) => models::show(place, &args),
        Command::Rm(args) => models::rm(place, &args),
        Command::Pull(args) => pull::run(place, &args),
        Command::Rollback(args) => models::rollback(place, &args),
        Command::Pin(args) => models::pin(place, &args),
        Command::Gc(args) => gc::run(place, &args),
        Command::Ps(args) => status::ps(place, &args),
        Command::Status(args) => status::status(place, &args),
        Command::Enroll(args) => enroll::run(place, &args),
        Command::Sync(args) => status::sync(place, &args),
        Command::Bundle(args) => bundle::run(place, &args),
        Command::Token(args) => token::run(place, args),
        Command::Audit(args) => audit::run(place, args),
        Command::Doctor(args) => doctor::run(place, &args),
        Command::Config(args) => config::run(place, &args),
        #[cfg(feature = "control-plane")]
        Command::ControlPlane(args) => fulmar_control::cli::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Registry(args) => registry::run(args),
        Command::Publish(args) => publish::publish(&args),
        Command::JoinToken(args) => publish::join_token(&args),
        Command::Group(args) => group::run(&args),
        Command::Bench(args) => bench::run(place, args),
        Command::Debug(args) => debug::run(place, args),
    }
}

/// A runtime for commands that wait for something.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Logs of a short command: to the files, and only what went wrong to the terminal.
pub(crate) fn quiet_log(
    config: &Config,
    dir: &std::path::Path,
) -> anyhow::Result<tracing_appender::non_blocking::WorkerGuard> {
    logging::start(&config.log, dir, Console::Quiet)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn every_command_has_arguments_that_do_not_clash() {
        super::Cli::command().debug_assert();
    }
}
