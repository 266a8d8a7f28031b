//! `fulmar debug greedy`: the likeliest continuation, straight from a backend. An end token does not
//! end it.

use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use fulmar_inference::backend::Rows;
use fulmar_inference::chat::{self, ChatTemplate, RenderInput};
use fulmar_inference::gguf::Gguf;
use fulmar_inference::tokenizer::{Special, Tokenizer};
use serde_json::Value;

use super::lines;
use super::model::{Sequence, open};
use super::prompts::{Args, Given};
use super::render::now_s;

/// A line out.
#[derive(Debug, serde::Serialize)]
struct Continued {
    /// The prompt as text, where it was given as such.
    #[serde(skip_serializing_if = "Option::is_none")]
    rendered: Option<String>,
    /// The prompt's tokens.
    prompt_ids: Vec<u32>,
    /// The tokens added.
    ids: Vec<u32>,
    /// Their bytes, in hexadecimal digits.
    bytes_hex: String,
    /// The smallest lead of a chosen token over the next likely one.
    min_margin: f32,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let gguf = open(&args.model)?;
    let tokenizer = Tokenizer::from_gguf(&gguf).context("understand the vocabulary")?;
    lines::answer(|given: Given| {
        let (rendered, prompt_ids) = prompt(&gguf, &tokenizer, &given)?;
        greedy(&gguf, &args, &tokenizer, Continued::after(rendered, prompt_ids), given.add as usize)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn prompt(
    gguf: &Gguf,
    tokenizer: &Tokenizer,
    given: &Given,
) -> anyhow::Result<(Option<String>, Vec<u32>)> {
    match (&given.ids, &given.text, &given.messages) {
        (Some(ids), None, None) => Ok((None, ids.clone())),
        (None, Some(text), None) => {
            let mut ids = Vec::new();
            ids.extend(tokenizer.bos().filter(|_| tokenizer.add_bos()));
            ids.extend(tokenizer.encode(text, Special::Plain));
            Ok((Some(text.clone()), ids))
        }
        (None, None, Some(messages)) => {
            let template = ChatTemplate::from_gguf(gguf, tokenizer)?;
            let template = template.context("find a chat template in the model")?;
            let input = RenderInput {
                messages,
                tools: None,
                kwargs: &Value::Null,
                add_generation_prompt: true,
                now_s: now_s()?,
            };
            let encoded = chat::encode(&template, tokenizer, &input)?;
            Ok((Some(encoded.text), encoded.ids))
        }
        _ => bail!("find a prompt: expected one of ids, text, messages"),
    }
}

impl Continued {
    fn after(rendered: Option<String>, prompt_ids: Vec<u32>) -> Self {
        let (ids, bytes_hex) = (Vec::new(), String::new());
        Self { rendered, prompt_ids, ids, bytes_hex, min_margin: f32::INFINITY }
    }
}

fn greedy(
    gguf: &Gguf,
    args: &Args,
    tokenizer: &Tokenizer,
    mut continued: Continued,
    add: usize,
) -> anyhow::Result<Continued> {
    let len = continued.prompt_ids.len();
    ensure!(len > 0, "find a token in the prompt");
    let total = len.saturating_add(add);
    ensure!(total <= args.n_ctx, "fit {total} tokens into n_ctx {}", args.n_ctx);
    let mut sequence = Sequence::load(gguf, &args.compute, args.n_ctx, total, len)?;
    let mut tokens = continued.prompt_ids.clone();
    while continued.ids.len() < add {
        let (logits, _) = sequence.step(&tokens, Rows::Last)?;
        let (best, margin) = likeliest(logits);
        continued.min_margin = continued.min_margin.min(margin);
        continued.ids.push(best);
        tokens = vec![best];
    }
    let bytes = continued.ids.iter().flat_map(|id| tokenizer.token_bytes(*id));
    continued.bytes_hex = bytes.map(|byte| format!("{byte:02x}")).collect();
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
