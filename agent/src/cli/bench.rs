//! `fulmar bench`: how fast a model file runs on this machine.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use fulmar_inference::backend::KvType;
use fulmar_inference::engine::BackendChoice;
use fulmar_inference::gguf::Gguf;
use fulmar_optimize::bench::{BenchOptions, Test, bench};

use super::Place;
use crate::folder::ModelFile;
use crate::{import, serve};

/// Arguments of `fulmar bench`; the short ones are llama-bench's. Lists give one test per
/// combination.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: its name on this device, a GGUF file, or a Hugging Face folder.
    model: String,
    /// Tokens of prompts to read; 0: none.
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
    prompt_tokens: Vec<u32>,
    /// Tokens to generate; 0: none.
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "128")]
    generated_tokens: Vec<u32>,
    /// Tokens to read and then to generate in one run, as in 512,128.
    #[arg(long = "pg", value_parser = pair)]
    both: Vec<(u32, u32)>,
    /// Tokens already in the cache.
    #[arg(short = 'd', long, value_delimiter = ',', default_value = "0")]
    depth_tokens: Vec<u32>,
    /// Sequences at once.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    sequences: Vec<u32>,
    /// Measured runs per test.
    #[arg(short = 'r', long, default_value_t = 5)]
    repetitions: u32,
    /// Threads; all processors if not given.
    #[arg(short = 't', long)]
    threads: Option<usize>,
    /// Tokens in one step at most.
    #[arg(short = 'b', long, default_value_t = 512)]
    batch_tokens_max: usize,
    /// The backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
    /// Precision of the key-value cache.
    #[arg(long, default_value = "f16")]
    kv_type: Kv,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Backend {
    Auto,
    Native,
    Candle,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kv {
    F32,
    F16,
    Q8,
}

fn pair(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once(',').and_then(|(p, n)| Some((p.parse().ok()?, n.parse().ok()?)));
    parsed.ok_or_else(|| "expected two numbers, as in 512,128".to_owned())
}

/// Runs the command.
pub(crate) fn run(place: &Place, args: Args) -> anyhow::Result<ExitCode> {
    let tests = tests(&args);
    anyhow::ensure!(!tests.is_empty(), "find a test: give -p, -n or --pg more than 0 tokens");
    let gguf = open(place, &args.model)?;
    let options = BenchOptions {
        tests,
        repetitions: args.repetitions,
        threads: match args.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        },
        backend: match args.backend {
            Backend::Auto => BackendChoice::Auto,
            Backend::Native => BackendChoice::Native,
            Backend::Candle => BackendChoice::Candle,
        },
        kv_type: match args.kv_type {
            Kv::F32 => KvType::F32,
            Kv::F16 => KvType::F16,
            Kv::Q8 => KvType::Q8,
        },
        batch_tokens_max: args.batch_tokens_max,
    };
    let mut told = |m: &fulmar_optimize::bench::Measurement| {
        eprintln!("{}: {:.2} ± {:.2} t/s", m.name, m.tokens_per_s, m.tokens_per_s_sd);
    };
    let report = super::runtime()?
        .block_on(bench(gguf, &options, &mut told))
        .with_context(|| format!("measure {}", args.model))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.markdown());
    }
    Ok(ExitCode::SUCCESS)
}

/// The model; one of this device is verified before it is read, as before every run.
fn open(place: &Place, model: &str) -> anyhow::Result<Gguf> {
    if super::run::is_path(model) {
        let (config, dir) = place.load()?;
        import::check_unsigned(&config, &dir)?;
        // The map keeps a converted file's content when its name goes.
        let file = ModelFile::of(Path::new(model), &std::env::temp_dir())?;
        return Ok(Gguf::open(file.path())?);
    }
    let is_name = !super::run::looks_like_path(model);
    anyhow::ensure!(is_name, "open {model}: there is no such file or folder");
    let (config, dir) = place.load()?;
    let app = serve::open(config, &dir)?;
    let name = super::runtime()?.block_on(app.models().resolve(model))?;
    let verified = app.models().registry().verified_model(&name.parse()?)?;
    Ok(crate::models::weights(&verified.weights, &name)?)
}

fn tests(args: &Args) -> Vec<Test> {
    let prompts = args.prompt_tokens.iter().filter(|n| **n > 0).map(|n| (*n, 0));
    let answers = args.generated_tokens.iter().filter(|n| **n > 0).map(|n| (0, *n));
    let kinds: Vec<(u32, u32)> = prompts.chain(answers).chain(args.both.iter().copied()).collect();
    let mut tests = Vec::new();
    for depth_tokens in &args.depth_tokens {
        for sequences in &args.sequences {
            tests.extend(kinds.iter().map(|(prompt_tokens, generated_tokens)| Test {
                prompt_tokens: *prompt_tokens,
                generated_tokens: *generated_tokens,
                depth_tokens: *depth_tokens,
                sequences: *sequences,
            }));
        }
    }
    tests
}
