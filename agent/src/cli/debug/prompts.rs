//! What the commands that continue prompts are given.

use std::path::PathBuf;

use serde_json::Value;

use super::model::Compute;

/// Arguments of `fulmar debug generate` and `fulmar debug greedy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file or a Hugging Face folder.
    pub(super) model: PathBuf,
    #[command(flatten)]
    pub(super) compute: Compute,
    /// Context size in tokens.
    #[arg(long, default_value_t = 1024)]
    pub(super) n_ctx: usize,
}

/// A line in: a prompt in one of three forms, and how many tokens to add at most.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Given {
    #[serde(default)]
    pub(super) messages: Option<Vec<Value>>,
    #[serde(default)]
    pub(super) text: Option<String>,
    #[serde(default)]
    pub(super) ids: Option<Vec<u32>>,
    pub(super) add: u32,
}
