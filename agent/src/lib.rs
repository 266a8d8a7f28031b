//! `fulmar`: the agent that runs small language models on a device under its owner's rules.
//!
//! The composition root: every part of the device is put together here, and only here. A library so
//! that the fuzz target `requests` can link what parses; for everybody else there is [`main`].

mod app;
mod ask;
mod causes;
mod cli;
mod client;
mod config;
mod console;
mod damage;
mod engine;
mod folder;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod governor;
mod http;
mod import;
mod link;
mod logging;
mod models;
#[cfg(all(feature = "control-plane", feature = "demo-model"))]
mod quickstart;
mod search;
mod serve;
mod signing;
mod standing;
mod state;
mod systemd;

/// The program: reads the command line, runs the command, says how it went.
#[must_use]
pub fn main() -> std::process::ExitCode {
    cli::main()
}
