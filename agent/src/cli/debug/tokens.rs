//! `fulmar debug tokenize` and `detokenize`: a model's vocabulary on JSON lines.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use fulmar_inference::tokenizer::{Special, Tokenizer};

use super::lines;
use super::model::open;

/// Arguments of `fulmar debug tokenize` and `detokenize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file, with or without weights, or a Hugging Face folder.
    model: PathBuf,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Text {
    text: String,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Ids {
    ids: Vec<u32>,
}

/// `{text}` in, `{ids}` out. No special token is added, and none is parsed out of the text.
pub(super) fn tokenize(args: Args) -> anyhow::Result<ExitCode> {
    let tokenizer = tokenizer(&args)?;
    lines::answer(|given: Text| Ok(Ids { ids: tokenizer.encode(&given.text, Special::Plain) }))?;
    Ok(ExitCode::SUCCESS)
}

/// `{ids}` in, `{text}` out. Bytes that are not UTF-8 become U+FFFD.
pub(super) fn detokenize(args: Args) -> anyhow::Result<ExitCode> {
    let tokenizer = tokenizer(&args)?;
    lines::answer(|given: Ids| {
        let size = tokenizer.vocab_len();
        if let Some(id) = given.ids.iter().find(|id| **id as usize >= size) {
            anyhow::bail!("decode id {id}: the vocabulary has {size} tokens");
        }
        Ok(Text { text: tokenizer.decode(&given.ids) })
    })?;
    Ok(ExitCode::SUCCESS)
}

fn tokenizer(args: &Args) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_gguf(&open(&args.model)?).context("understand the vocabulary")
}
