//! `fulmar run`: a question in the terminal. The engine runs in this process, under the same
//! verification, policy and audit as over HTTP.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use fulmar_inference::engine::{FinishReason, Prompt, Request, Sampling};
use fulmar_policy::{Action, Principal};
use serde_json::{Value, json};

use super::Place;
use crate::app::App;
use crate::ask::{self, Part, Question};
use crate::{import, serve};

/// Arguments of `fulmar run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A model's name, a GGUF file, or a Hugging Face folder.
    model: String,
    /// The question; without it, standard input is read, line by line in a terminal.
    prompt: Option<String>,
    /// What the model is told first.
    #[arg(long)]
    system: Option<String>,
    /// 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Same seed, same answer.
    #[arg(long)]
    seed: Option<u64>,
    /// Tokens of the answer at most.
    #[arg(long)]
    max_tokens: Option<u32>,
    /// Print tokens, times and the audit entry after the answer.
    #[arg(long, short)]
    verbose: bool,
}

/// Runs the command.
pub(crate) fn run(place: &Place, args: Args) -> anyhow::Result<ExitCode> {
    let (config, dir) = place.load()?;
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let _log = super::quiet_log(&config, &dir)?;
    let app = serve::open(config, &dir)?;
    super::runtime()?.block_on(async {
        let result = converse(&app, &args).await;
        app.answers().close();
        app.answers().wait().await;
        result
    })?;
    app.state().sign_audit_log_blocking()?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a model is given by its place on disk: a file, or a Hugging Face folder.
pub(super) fn is_path(model: &str) -> bool {
    Path::new(model).is_file() || Path::new(model).join("config.json").is_file()
}

/// Whether it looks like a place on disk: no model's name begins or ends like that.
pub(super) fn looks_like_path(model: &str) -> bool {
    let ends = Path::new(model).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    ends || ["/", "./", "../", "~"].iter().any(|start| model.starts_with(start))
}

async fn converse(app: &Arc<App>, args: &Args) -> anyhow::Result<()> {
    let name = if is_path(&args.model) {
        import::serve_file(app, Path::new(&args.model)).await?
    } else {
        app.models().resolve(&args.model).await.map_err(|error| match error {
            _ if looks_like_path(&args.model) => {
                let why = "there is no such file, and no folder with a config.json";
                anyhow::anyhow!("open {}: {why}", args.model)
            }
            error => error.into(),
        })?
    };
    let mut messages: Vec<Value> = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    if let Some(prompt) = &args.prompt {
        return ask_once(app, args, &name, &mut messages, prompt).await.map(drop);
    }
    if !std::io::stdin().is_terminal() {
        let mut prompt = String::new();
        std::io::stdin().read_to_string(&mut prompt).context("read standard input")?;
        return ask_once(app, args, &name, &mut messages, prompt.trim_end()).await.map(drop);
    }
    loop {
        print!(">>> ");
        std::io::stdout().flush()?;
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line).context("read standard input")?;
        if read == 0 || line.trim() == "/bye" {
            return Ok(());
        }
        if !line.trim().is_empty() {
            let answer = ask_once(app, args, &name, &mut messages, line.trim()).await?;
            messages.push(json!({ "role": "assistant", "content": answer }));
        }
    }
}

async fn ask_once(
    app: &Arc<App>,
    args: &Args,
    name: &str,
    messages: &mut Vec<Value>,
    prompt: &str,
) -> anyhow::Result<String> {
    anyhow::ensure!(
        !prompt.trim().is_empty(),
        "find a question: it is empty; write it behind the model's name, or to standard input"
    );
    messages.push(json!({ "role": "user", "content": prompt }));
    let permit = app.policy().decide(&Principal::local(), Action::ModelRun, name)?;
    let request = Request {
        prompt: Prompt::Chat {
            messages: messages.clone(),
            tools: None,
            template_kwargs: Value::Null,
        },
        sampling: Sampling {
            temperature: args.temperature,
            seed: args.seed,
            ..Sampling::default()
        },
        max_tokens: args.max_tokens,
        ..Request::default()
    };
    let question = Question {
        endpoint: "fulmar run",
        request,
        prompt: json!({ "messages": messages }),
        deadline: None,
    };
    let mut answer = ask::ask(app, &permit, question).await.context("ask the model")?;
    let entry = answer.entry;
    let mut text = String::new();
    while let Some(part) = answer.next().await {
        match part {
            Part::Text { text: more, .. } => {
                print!("{more}");
                std::io::stdout().flush()?;
                text += &more;
            }
            Part::Reasoning { text: thought } => {
                eprint!("{thought}");
                std::io::stderr().flush()?;
            }
            Part::Call(call) => println!("{}", json!({ call.name: call.arguments })),
            Part::Done { reason, usage } => {
                println!();
                if reason == FinishReason::Length {
                    eprintln!("(cut off: the answer reached its length limit)");
                }
                if args.verbose {
                    eprintln!(
                        "{} prompt and {} answer tokens, first after {} ms, then {:.1} tokens/s; \
                         audit entry {entry}",
                        usage.prompt_tokens,
                        usage.completion_tokens,
                        usage.prompt_ms,
                        crate::http::tokens_per_s(&usage),
                    );
                }
            }
            Part::Failed { failure } => anyhow::bail!("generate the answer: {failure}"),
        }
    }
    Ok(text)
}
