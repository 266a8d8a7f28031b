//! `fulmar debug greedy`: the likeliest continuation, straight from a backend.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use fulmar_inference::backend::Rows;
use fulmar_inference::gguf::Gguf;

use super::model::{Compute, Sequence, open};

/// Arguments of `fulmar debug greedy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file.
    model: PathBuf,
    #[command(flatten)]
    compute: Compute,
    /// Context size in tokens.
    #[arg(long, default_value_t = 1024)]
    n_ctx: usize,
}

/// A line in: token ids, and how many to add. An end token does not end it.
#[derive(Debug, serde::Deserialize)]
struct Given {
    ids: Vec<u32>,
    add: usize,
}

/// A line out.
#[derive(Debug, serde::Serialize)]
struct Continued {
    ids: Vec<u32>,
    /// The smallest lead of a chosen token over the next likely one.
    min_margin: f32,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let gguf = open(&args.model)?;
    let mut out = std::io::stdout().lock();
    for (number, line) in (1..).zip(std::io::stdin().lock().lines()) {
        let line = line.context("read standard input")?;
        if line.trim().is_empty() {
            continue;
        }
        let given: Given =
            serde_json::from_str(&line).with_context(|| format!("read line {number}"))?;
        let continued = greedy(&gguf, &args, &given)
            .with_context(|| format!("continue the prompt of line {number}"))?;
        serde_json::to_writer(&mut out, &continued).context("write the answer")?;
        writeln!(out).context("write the answer")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn greedy(gguf: &Gguf, args: &Args, given: &Given) -> anyhow::Result<Continued> {
    let len = given.ids.len();
    ensure!(len > 0, "find a token in ids");
    let total = len.saturating_add(given.add);
    ensure!(total <= args.n_ctx, "fit {total} tokens into n_ctx {}", args.n_ctx);
    let mut sequence = Sequence::load(gguf, &args.compute, args.n_ctx, total, len)?;
    let mut continued = Continued { ids: Vec::new(), min_margin: f32::INFINITY };
    let mut tokens = given.ids.clone();
    while continued.ids.len() < given.add {
        let (logits, _) = sequence.step(&tokens, Rows::Last)?;
        let (best, margin) = likeliest(logits);
        continued.min_margin = continued.min_margin.min(margin);
        continued.ids.push(best);
        tokens = vec![best];
    }
    Ok(continued)
}

/// The first of the largest logits, and its lead over the rest.
fn likeliest(logits: &[f32]) -> (u32, f32) {
    let (mut best, mut best_logit, mut next_logit) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (id, logit) in (0..).zip(logits) {
        if *logit > best_logit {
            (best, next_logit, best_logit) = (id, best_logit, *logit);
        } else {
            next_logit = next_logit.max(*logit);
        }
    }
    (best, best_logit - next_logit)
}
