//! `fulmar debug check`: is this file a model that runs?

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use fulmar_inference::backend::{self, BackendOptions, KvType, Rows};
use fulmar_inference::model::Architecture;
use fulmar_inference::tokenizer::Tokenizer;

use super::model::{BackendName, Compute, Sequence, open};
use crate::causes;

/// Arguments of `fulmar debug check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file or a Hugging Face folder.
    model: PathBuf,
    #[command(flatten)]
    compute: Compute,
}

/// Runs the command: 0 and a line of facts, or 1 and a line with the reason.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match facts(&args.model, &args.compute) {
        Ok(facts) => {
            println!("{facts}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let line = format!("refused: failed to {}", causes::line(error.as_ref()))
                .replace(['\n', '\r'], " ");
            eprintln!("{line}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn facts(path: &Path, compute: &Compute) -> anyhow::Result<String> {
    let gguf = open(path)?;
    let architecture = Architecture::from_gguf(&gguf).context("understand the model")?;
    // A file without a vocabulary computes; one whose vocabulary is broken would never be served.
    if gguf.value("tokenizer.ggml.model").is_some() {
        Tokenizer::from_gguf(&gguf).context("understand the vocabulary")?;
    }
    let options = BackendOptions {
        threads: compute.threads,
        context_tokens_max: architecture.context_tokens,
        kv_blocks: 1,
        kv_type: KvType::F16,
        batch_tokens_max: 1,
        cpus: Vec::new(),
        weight_copies: None,
    };
    let planned = match compute.backend {
        BackendName::Native => backend::native::plan(&gguf, &architecture, &options)
            .context("plan the model's memory")?,
        BackendName::Candle => backend::candle::plan(&gguf, &architecture, &options),
    };
    let mut sequence = Sequence::load(&gguf, compute, architecture.context_tokens, 1, 1)?;
    let (logits, _) = sequence.step(&[0], Rows::Last)?;
    anyhow::ensure!(
        logits.iter().all(|logit| logit.is_finite()),
        "compute a step: the logits are not finite, so the weights are damaged"
    );
    Ok(format!(
        "{}: {} layers, {} tokens in the vocabulary, {} of context, {} bytes of weights planned, \
         {} held",
        architecture.family.name,
        architecture.layers.len(),
        architecture.vocab_len,
        architecture.context_tokens,
        planned.weights_bytes,
        sequence.memory().weights_bytes
    ))
}
