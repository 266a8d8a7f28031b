//! `fulmar convert`: a Hugging Face folder to GGUF.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use fulmar_optimize::convert::{ConvertOptions, convert};

use super::quantize::Bar;

/// Arguments of `fulmar convert`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder with config.json, *.safetensors and tokenizer.json.
    folder: PathBuf,
    /// The GGUF file to write.
    #[arg(short, long)]
    output: PathBuf,
    /// Type of the weights; norms and biases are always F32.
    #[arg(long, default_value = "f16")]
    to: Type,
    /// The model's name in the file; the folder's name if not given.
    #[arg(long)]
    name: Option<String>,
    /// The model's license in the file, an SPDX expression such as Apache-2.0.
    #[arg(long)]
    license: Option<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    use fulmar_optimize::TensorType;
    let ty = match args.to {
        Type::F32 => TensorType::F32,
        Type::F16 => TensorType::F16,
        Type::Bf16 => TensorType::Bf16,
    };
    let options = ConvertOptions { ty, name: args.name, license: args.license };
    let mut bar = Bar::new();
    let summary = convert(&args.folder, &args.output, &options, &mut |p| bar.show(p))
        .with_context(|| format!("convert {}", args.folder.display()))?;
    bar.finish(&args.output, summary);
    Ok(ExitCode::SUCCESS)
}
