//! `fulmar debug sample`: a small model with random weights, for trying things out.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use fulmar_inference::model::sample::Sample;
use fulmar_kernels::formats::TensorType;

/// Arguments of `fulmar debug sample`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The family, as `general.architecture` names it.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(Sample::families()))]
    family: String,
    /// Type of the large tensors, by ggml's name.
    #[arg(long = "type", default_value = "F32", value_parser = tensor_type)]
    weight_type: TensorType,
    /// Same seed, same file.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The GGUF file to write.
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
}

fn tensor_type(name: &str) -> Result<TensorType, String> {
    TensorType::from_name(name).ok_or_else(|| format!("no tensor type is called {name:?}"))
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let sample =
        Sample { weight_type: args.weight_type, seed: args.seed, ..Sample::of(&args.family) };
    let bytes = sample.bytes().context("make the model")?;
    std::fs::write(&args.output, bytes)
        .with_context(|| format!("write {}", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}
