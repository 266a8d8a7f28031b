//! `fulmar debug render`: chat templates on JSON lines.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use fulmar_inference::chat::{ChatTemplate, RenderInput};
use fulmar_inference::tokenizer::Tokenizer;
use serde_json::Value;

use super::lines;
use super::model::open;
use crate::causes;

/// Arguments of `fulmar debug render`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A template (`.jinja`), or a model with one: a GGUF file or a Hugging Face folder.
    template: PathBuf,
}

/// A line in; `bos_token` and `eos_token` are by default the model's, or nothing.
#[derive(Debug, serde::Deserialize)]
struct Given {
    messages: Vec<Value>,
    #[serde(default)]
    tools: Option<Value>,
    #[serde(default)]
    kwargs: Value,
    #[serde(default)]
    add_generation_prompt: bool,
    #[serde(default)]
    bos_token: Option<String>,
    #[serde(default)]
    eos_token: Option<String>,
}

/// A line out.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Rendered {
    Text(String),
    Error(String),
}

/// Runs the command. A template or conversation that does not render is an `{error}` line.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let template = Template::read(&args.template)?;
    let mut compiled = HashMap::new();
    let now_s = now_s()?;
    lines::answer(|given: Given| {
        let tokens = template.tokens(&given);
        let ready = compiled.entry(tokens).or_insert_with_key(|(bos, eos)| {
            ChatTemplate::from_source(&template.source, bos, eos).map_err(|e| causes::line(&e))
        });
        let rendered = match ready {
            Ok(ready) => ready.render(&given.input(now_s)).map_err(|e| causes::line(&e)),
            Err(error) => Err(error.clone()),
        };
        Ok(rendered.map_or_else(Rendered::Error, Rendered::Text))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Seconds since 1970 for templates that print the date: `SOURCE_DATE_EPOCH` where it is set
/// (<https://reproducible-builds.org/specs/source-date-epoch/>), so that a rendering can be made
/// again on another day; the clock otherwise.
pub(super) fn now_s() -> anyhow::Result<i64> {
    if let Ok(given) = std::env::var("SOURCE_DATE_EPOCH") {
        return given.parse().with_context(|| {
            format!("read SOURCE_DATE_EPOCH {given:?}: expected whole seconds since 1970")
        });
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Ok(since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)))
}

impl Given {
    fn input(&self, now_s: i64) -> RenderInput<'_> {
        RenderInput {
            messages: &self.messages,
            tools: self.tools.as_ref(),
            kwargs: &self.kwargs,
            add_generation_prompt: self.add_generation_prompt,
            now_s,
        }
    }
}

struct Template {
    source: String,
    bos: String,
    eos: String,
}

impl Template {
    fn read(path: &Path) -> anyhow::Result<Self> {
        if path.extension().is_some_and(|extension| extension == "jinja") {
            let source = std::fs::read_to_string(path)
                .with_context(|| format!("read template {}", path.display()))?;
            return Ok(Self { source, bos: String::new(), eos: String::new() });
        }
        let gguf = open(path)?;
        let tokenizer = Tokenizer::from_gguf(&gguf).context("understand the vocabulary")?;
        let source = gguf.str("tokenizer.chat_template").context("read the chat template")?;
        let source = source.context("find a chat template in the model")?.to_owned();
        let text = |id: Option<u32>| {
            let bytes = id.map_or(&[][..], |id| tokenizer.token_bytes(id));
            String::from_utf8_lossy(bytes).into_owned()
        };
        Ok(Self { source, bos: text(tokenizer.bos()), eos: text(tokenizer.eos()) })
    }

    /// The tokens that begin and end a text, for one line.
    fn tokens(&self, given: &Given) -> (String, String) {
        let bos = given.bos_token.as_ref().unwrap_or(&self.bos);
        (bos.clone(), given.eos_token.as_ref().unwrap_or(&self.eos).clone())
    }
}
