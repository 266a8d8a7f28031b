//! `fulmar quantize`: GGUF to GGUF with smaller weights.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use fulmar_optimize::quantize::{Mix, QuantizeOptions, quantize};
use fulmar_optimize::{Progress, Summary};
use indicatif::{ProgressBar, ProgressStyle};

/// Arguments of `fulmar quantize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The GGUF file to read, with F32, F16 or BF16 weights.
    source: PathBuf,
    /// The GGUF file to write.
    #[arg(short, long)]
    output: PathBuf,
    /// F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q5_1, Q5_0, Q4_K_M, Q4_K_S, Q4_1 or Q4_0.
    #[arg(long, default_value = "Q8_0", value_parser = mix)]
    to: Mix,
    /// Threads; all processors if not given.
    #[arg(long)]
    threads: Option<usize>,
}

fn mix(text: &str) -> Result<Mix, String> {
    Mix::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = Mix::ALL.iter().map(|mix| mix.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let same = |path: &Path| std::fs::canonicalize(path).ok();
    anyhow::ensure!(
        same(&args.output).is_none() || same(&args.output) != same(&args.source),
        "quantize {}: the output is the source, whose weights would be lost; name another file",
        args.source.display()
    );
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let options = QuantizeOptions { mix: args.to, threads };
    let mut bar = Bar::new();
    let summary = quantize(&args.source, &args.output, &options, &mut |p| bar.show(p))
        .with_context(|| format!("quantize {}", args.source.display()))?;
    bar.finish(&args.output, summary);
    Ok(ExitCode::SUCCESS)
}

/// Progress by bytes, hidden where the terminal is none.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {wide_msg}");
        let bar = ProgressBar::new(0);
        Self(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    pub(super) fn show(&mut self, progress: Progress<'_>) {
        self.0.set_length(progress.total_bytes);
        self.0.set_position(progress.done_bytes);
        self.0.set_message(progress.tensor.to_owned());
    }

    /// Takes the bar off the terminal.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }

    /// Clears the bar and prints one line.
    pub(super) fn finish(&self, output: &Path, summary: Summary) {
        self.clear();
        println!(
            "{}: {} tensors, {:.1} MB from {:.1} MB",
            output.display(),
            summary.tensors,
            summary.output_bytes as f64 / 1e6,
            summary.input_bytes as f64 / 1e6
        );
    }
}
