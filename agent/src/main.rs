//! `fulmar`: the agent that runs small language models on a device under its owner's rules.
//!
//! The composition root: every part of the device is put together here, and only here.

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

fn main() -> std::process::ExitCode {
    cli::main()
}
