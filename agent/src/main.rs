//! `fulmar`: the agent that runs small language models on a device under its owner's rules.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
