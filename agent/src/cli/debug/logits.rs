//! `fulmar debug logits`: the numbers themselves, for comparison with other programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use fulmar_inference::backend::Rows;
use fulmar_inference::gguf::Gguf;

use super::model::{Compute, Sequence, open};
use super::npz;

/// Arguments of `fulmar debug logits`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file or a Hugging Face folder.
    model: PathBuf,
    /// JSON with `sequences: {NAME: {tokens, prefill, n_ctx}}`.
    #[arg(long, value_name = "FILE.json")]
    sequences: PathBuf,
    /// Keep the logits of the last N positions of each sequence.
    #[arg(long, default_value_t = 32, value_name = "N")]
    last: usize,
    #[command(flatten)]
    compute: Compute,
    /// Where to write `NAME.logits`, f32 [rows, vocabulary].
    #[arg(short, long, value_name = "OUT.npz")]
    output: PathBuf,
}

#[derive(Debug, serde::Deserialize)]
struct Sequences {
    sequences: BTreeMap<String, Given>,
}

/// One sequence: the first `prefill` tokens go in at once, the rest one a step.
#[derive(Debug, serde::Deserialize)]
struct Given {
    tokens: Vec<u32>,
    prefill: usize,
    n_ctx: usize,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let name = args.sequences.display();
    let json = std::fs::read(&args.sequences).with_context(|| format!("read {name}"))?;
    let given: Sequences =
        serde_json::from_slice(&json).with_context(|| format!("read sequences of {name}"))?;
    let gguf = open(&args.model)?;
    let mut arrays = Vec::new();
    for (name, sequence) in &given.sequences {
        let rows =
            logits(&gguf, &args, sequence).with_context(|| format!("compute sequence {name:?}"))?;
        arrays.push(npz::Array { name: format!("{name}.logits"), ..rows });
    }
    let archive = npz::archive(&arrays).context("pack the logits")?;
    std::fs::write(&args.output, archive)
        .with_context(|| format!("write {}", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn logits(gguf: &Gguf, args: &Args, given: &Given) -> anyhow::Result<npz::Array> {
    let len = given.tokens.len();
    ensure!(
        (1..=len).contains(&given.prefill),
        "start with prefill {}: expected 1 to the {len} tokens",
        given.prefill
    );
    ensure!(len <= given.n_ctx, "fit {len} tokens into n_ctx {}", given.n_ctx);
    let mut sequence = Sequence::load(gguf, &args.compute, given.n_ctx, len, given.prefill)?;
    let first = len.saturating_sub(args.last);
    let rows = if first < given.prefill { Rows::All } else { Rows::None };
    let (prompt, rest) = given.tokens.split_at(given.prefill);
    let (prompt_logits, mut width) = sequence.step(prompt, rows)?;
    let mut values = match rows {
        Rows::All => prompt_logits[first * width..].to_vec(),
        _ => Vec::new(),
    };
    for (index, token) in rest.iter().enumerate() {
        let rows = if given.prefill + index >= first { Rows::Last } else { Rows::None };
        let (step_logits, step_width) = sequence.step(&[*token], rows)?;
        values.extend_from_slice(step_logits);
        width = step_width;
    }
    Ok(npz::Array { name: String::new(), rows: len - first, columns: width, values })
}
