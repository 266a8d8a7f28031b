//! `fulmar debug generate`: prompts through the whole engine, by the likeliest token.

use std::process::ExitCode;

use anyhow::{Context, bail};
use fulmar_inference::engine::{
    Engine, EngineOptions, Event, FinishReason, Generation, Prompt, Request, Sampling,
};
use serde_json::Value;

use super::lines;
use super::model::open;
use super::prompts::{Args, Given};

/// The name under which the only model is loaded.
const NAME: &str = "model";

/// A line out.
#[derive(Debug, serde::Serialize)]
struct Generated {
    /// The tokens generated, an end token included.
    ids: Vec<u32>,
    /// Their text, without what ends it.
    text: String,
    /// Tokens of the prompt.
    prompt_tokens: u32,
    /// Why it ended.
    reason: FinishReason,
}

/// Runs the command: all prompts at once, so that they share steps.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let given: Vec<Given> = lines::read()?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let generated = runtime.block_on(generate(args, given))?;
    lines::write(&generated)?;
    Ok(ExitCode::SUCCESS)
}

async fn generate(args: Args, given: Vec<Given>) -> anyhow::Result<Vec<Generated>> {
    let options = EngineOptions {
        threads: args.compute.threads,
        backend: args.compute.choice(),
        kv_type: args.compute.kv_type(),
        context_tokens_max: args.n_ctx,
        kv_tokens_max: args.n_ctx.saturating_mul(4),
        queue_len_max: given.len().max(1),
        template_now_s: Some(super::render::now_s()?),
        ..EngineOptions::default()
    };
    let engine = Engine::start(options).context("start the engine")?;
    engine.load(NAME, open(&args.model)?).await.context("load the model")?;
    let mut running = Vec::new();
    for line in given {
        let max_tokens = Some(line.add);
        let prompt = prompt(line)?;
        let request = Request {
            model: NAME.to_owned(),
            prompt,
            sampling: Sampling::greedy(),
            max_tokens,
            ..Request::default()
        };
        running.push(engine.generate(request).await.context("accept a prompt")?);
    }
    let mut generated = Vec::new();
    for generation in running {
        generated.push(collect(generation).await?);
    }
    Ok(generated)
}

fn prompt(line: Given) -> anyhow::Result<Prompt> {
    match (line.messages, line.text, line.ids) {
        (Some(messages), None, None) => {
            Ok(Prompt::Chat { messages, tools: None, template_kwargs: Value::Null })
        }
        (None, Some(text), None) => Ok(Prompt::Text(text)),
        (None, None, Some(ids)) => Ok(Prompt::Tokens(ids)),
        _ => bail!("find a prompt: expected one of messages, text, ids"),
    }
}

async fn collect(mut generation: Generation) -> anyhow::Result<Generated> {
    let (mut ids, mut text, mut prompt_tokens) = (Vec::new(), String::new(), 0);
    while let Some(event) = generation.next().await {
        match event {
            Event::Started { prompt_tokens: tokens, .. } => prompt_tokens = tokens,
            Event::Token { text: part, id, .. } => {
                ids.push(id);
                text.push_str(&part);
            }
            Event::Done { reason, .. } => {
                return Ok(Generated { ids, text, prompt_tokens, reason });
            }
            Event::Failed { message } => bail!("generate: {message}"),
        }
    }
    bail!("generate: the engine ended without a last word")
}
