//! How fast a model runs on this machine, measured through the engine.
//!
//! The tests and columns are `llama-bench`'s, so that figures can be laid side by side: `pp512`
//! reads a prompt of 512 tokens, `tg128` generates 128 tokens one after the other, `pp512+tg128`
//! does both, ` @ d4096` starts behind 4096 tokens, and ` x4` runs four sequences at once. Prompts
//! are random tokens; end tokens are forbidden, so that every run has the length asked for. One run
//! per test goes before the measured ones.
//!
//! What is timed is what a caller of the engine sees, sampling and scheduling included, without
//! HTTP. Tokens that the prefix cache knew (the depth) are not counted.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use fulmar_inference::backend::KvType;
use fulmar_inference::engine::{
    BackendChoice, Engine, EngineOptions, Event, LoadRefused, ModelInfo, Prompt, Refused, Request,
    Sampling, Speculation, StartError,
};
use fulmar_inference::gguf::Gguf;
use serde::Serialize;

use crate::quantize::Mix;

/// Most tokens of a test's prompt, depth or answer.
pub const TOKENS_MAX: u32 = 1 << 20;
/// Most sequences at once.
pub const SEQUENCES_MAX: u32 = 256;
/// Most repetitions of a test.
pub const REPETITIONS_MAX: u32 = 1000;

const MODEL: &str = "bench";
/// Added to the logits of end tokens: the most that the engine takes.
const FORBIDDEN: f32 = -1000.0;

/// One test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Test {
    /// Tokens of the prompt that are timed.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// Tokens that are in the cache before the prompt, not timed.
    pub depth_tokens: u32,
    /// Sequences at once, at least 1.
    pub sequences: u32,
}

impl Test {
    /// `llama-bench`'s name of the test.
    pub fn name(&self) -> String {
        let mut name = match (self.prompt_tokens, self.generated_tokens) {
            (p, 0) => format!("pp{p}"),
            (0, n) => format!("tg{n}"),
            (p, n) => format!("pp{p}+tg{n}"),
        };
        if self.depth_tokens > 0 {
            let _ = write!(name, " @ d{}", self.depth_tokens);
        }
        if self.sequences > 1 {
            let _ = write!(name, " x{}", self.sequences);
        }
        name
    }

    /// Context that one sequence needs.
    fn context_tokens(&self) -> usize {
        self.depth_tokens as usize
            + self.prompt_tokens as usize
            + self.generated_tokens as usize
            + 2
    }

    fn check(&self) -> Result<(), BenchError> {
        let fields = [
            ("prompt_tokens", self.prompt_tokens, 0, TOKENS_MAX),
            ("generated_tokens", self.generated_tokens, 0, TOKENS_MAX),
            ("depth_tokens", self.depth_tokens, 0, TOKENS_MAX),
            ("sequences", self.sequences, 1, SEQUENCES_MAX),
        ];
        for (field, found, min, max) in fields {
            if found < min || found > max {
                return Err(BenchError::Range { field, found, min, max });
            }
        }
        if self.prompt_tokens == 0 && self.generated_tokens == 0 {
            return Err(BenchError::Range {
                field: "generated_tokens",
                found: 0,
                min: 1,
                max: TOKENS_MAX,
            });
        }
        Ok(())
    }
}

/// What to measure and how.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// The tests, in order.
    pub tests: Vec<Test>,
    /// Measured runs per test.
    pub repetitions: u32,
    /// Threads that compute.
    pub threads: usize,
    /// The backend.
    pub backend: BackendChoice,
    /// Precision of the key-value cache.
    pub kv_type: KvType,
    /// Tokens in one step at most.
    pub batch_tokens_max: usize,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A number is out of its range.
    #[error("use {field} = {found}: expected {min} to {max}")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u32,
        /// Smallest allowed.
        min: u32,
        /// Largest allowed.
        max: u32,
    },
    /// A test does not fit the model's context.
    #[error("run test {test}: it needs {needed} tokens of context, the model has {available}")]
    Context {
        /// The test.
        test: String,
        /// Tokens needed.
        needed: usize,
        /// Tokens there.
        available: usize,
    },
    /// The engine did not start.
    #[error("start the engine")]
    Start(#[from] StartError),
    /// The model was not loaded.
    #[error("load the model")]
    Load(#[from] LoadRefused),
    /// The engine refused a request.
    #[error("run a test")]
    Refused(#[from] Refused),
    /// A run ended before it was complete.
    #[error("run a test: {0}")]
    Ended(String),
}

/// One test's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// What was run.
    pub test: Test,
    /// Its name.
    pub name: String,
    /// Mean of the runs, in tokens per second.
    pub tokens_per_s: f64,
    /// Standard deviation of the runs, in tokens per second.
    pub tokens_per_s_sd: f64,
    /// Every run, in tokens per second.
    pub runs: Vec<f64>,
}

/// All figures of a model.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Architecture, size and weight type.
    pub model: String,
    /// Bytes of the weights in the file.
    pub size_bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// The backend that ran.
    pub backend: String,
    /// Threads that computed.
    pub threads: usize,
    /// One per test.
    pub results: Vec<Measurement>,
}

/// Loads the model into an engine of its own and runs the tests; `done` hears of each.
///
/// # Errors
/// [`BenchError`].
pub async fn bench(
    gguf: Gguf,
    options: &BenchOptions,
    done: &mut dyn FnMut(&Measurement),
) -> Result<Report, BenchError> {
    let (repetitions, max) = (options.repetitions, REPETITIONS_MAX);
    if repetitions == 0 || repetitions > max {
        return Err(BenchError::Range { field: "repetitions", found: repetitions, min: 1, max });
    }
    for test in &options.tests {
        test.check()?;
    }
    let mut report = describe(&gguf, options.threads);
    let engine = Engine::start(engine_options(options))?;
    let info = engine.load(MODEL, gguf).await?;
    report.backend.clone_from(&info.backend);
    let mut runs = Runs::new(&engine, &info);
    for test in &options.tests {
        if test.context_tokens() > info.context_tokens {
            let (needed, available) = (test.context_tokens(), info.context_tokens);
            return Err(BenchError::Context { test: test.name(), needed, available });
        }
        runs.once(test).await?;
        let mut rates = Vec::new();
        for _ in 0..options.repetitions {
            rates.push(runs.once(test).await?);
        }
        let measurement = summarise(*test, rates);
        done(&measurement);
        report.results.push(measurement);
    }
    Ok(report)
}

fn engine_options(options: &BenchOptions) -> EngineOptions {
    let default = EngineOptions::default();
    let context = options.tests.iter().map(Test::context_tokens).max().unwrap_or(0);
    let sequences = options.tests.iter().map(|t| t.sequences as usize).max().unwrap_or(1);
    let context = context.next_multiple_of(fulmar_inference::backend::BLOCK_TOKENS);
    EngineOptions {
        // The machine's memory is the limit, not a budget: this engine is alone.
        budget_bytes: 1 << 42,
        threads: options.threads,
        backend: options.backend,
        kv_type: options.kv_type,
        batch_tokens_max: options.batch_tokens_max,
        context_tokens_max: context.max(default.context_tokens_max.min(512)),
        // Room for the depth to stay cached beside the running sequences.
        kv_tokens_max: 2 * context * sequences,
        sequences_max: sequences,
        queue_len_max: sequences.max(default.queue_len_max),
        queue_bytes_max: 1 << 32,
        speculation: Speculation::Off,
        ..default
    }
}

/// What the columns say of a file.
fn describe(gguf: &Gguf, threads: usize) -> Report {
    let parameters: u64 = gguf.tensors().iter().map(|info| info.elements() as u64).sum();
    let size_bytes = gguf.tensors().iter().map(|info| info.size_bytes as u64).sum();
    let file_type = gguf.u32("general.file_type").ok().flatten();
    let mix = Mix::ALL.into_iter().find(|mix| Some(mix.file_type()) == file_type);
    let label = match parameters {
        0..1_000_000_000 => format!("{:.1}M", parameters as f64 / 1e6),
        _ => format!("{:.2}B", parameters as f64 / 1e9),
    };
    Report {
        model: format!("{} {label} {}", gguf.architecture(), mix.map_or("mixed", Mix::name)),
        size_bytes,
        parameters,
        backend: String::new(),
        threads,
        results: Vec::new(),
    }
}

/// Runs tests, each with tokens never used before.
struct Runs<'a> {
    engine: &'a Engine,
    vocabulary: u64,
    /// End tokens, which may not be chosen.
    forbidden: Vec<(u32, f32)>,
    random: u64,
}

/// When a sequence's first and last token were seen, how long the engine says that it took from one to
/// the other, and how much of the prompt was computed.
struct Times {
    first: Instant,
    last: Instant,
    decode: Duration,
    computed: u32,
}

impl<'a> Runs<'a> {
    fn new(engine: &'a Engine, info: &ModelInfo) -> Self {
        let tokenizer = engine.tokenizer(MODEL);
        let is_end = |id: &u32| tokenizer.as_ref().is_some_and(|t| t.is_end(*id));
        let vocabulary = info.vocabulary as u64;
        let forbidden =
            (0..info.vocabulary as u32).filter(is_end).map(|id| (id, FORBIDDEN)).collect();
        Self { engine, vocabulary, forbidden, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// The next random tokens (xorshift64).
    fn tokens(&mut self, len: u32) -> Vec<u32> {
        let mut next = || {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            (self.random % self.vocabulary.max(1)) as u32
        };
        (0..len).map(|_| next()).collect()
    }

    /// One run of a test, in tokens per second.
    async fn once(&mut self, test: &Test) -> Result<f64, BenchError> {
        let mut prompts = Vec::new();
        for _ in 0..test.sequences {
            // Generation starts from one token at least.
            let least = u32::from(test.prompt_tokens == 0 && test.depth_tokens == 0);
            let mut prompt = self.tokens(test.depth_tokens + least);
            if test.depth_tokens > 0 {
                self.sequence(prompt.clone(), 1).await?;
            }
            prompt.extend(self.tokens(test.prompt_tokens));
            prompts.push(prompt);
        }
        // A run of `n` tokens has `n` steps after its first token.
        let answer = test.generated_tokens + u32::from(test.prompt_tokens == 0);
        let started = Instant::now();
        let all = prompts.into_iter().map(|prompt| self.sequence(prompt, answer.max(1)));
        let times: Vec<Times> = futures_util::future::try_join_all(all).await?;
        Ok(rate(test, started, &times))
    }

    /// Runs one sequence to its end.
    async fn sequence(&self, prompt: Vec<u32>, tokens: u32) -> Result<Times, BenchError> {
        let request = Request {
            model: MODEL.to_owned(),
            prompt: Prompt::Tokens(prompt),
            sampling: Sampling { logit_bias: self.forbidden.clone(), ..Sampling::greedy() },
            max_tokens: Some(tokens),
            principal: MODEL.to_owned(),
            ..Request::default()
        };
        let mut generation = self.engine.generate(request).await?;
        let (mut computed, mut seen, mut first, mut last) = (0, 0, None, Instant::now());
        let mut decode = Duration::ZERO;
        while let Some(event) = generation.next().await {
            match event {
                Event::Started { prompt_tokens, cached_tokens } => {
                    computed = prompt_tokens.saturating_sub(cached_tokens);
                }
                Event::Token { .. } => {
                    seen += 1;
                    last = Instant::now();
                    first.get_or_insert(last);
                }
                Event::Done { usage, .. } => decode = Duration::from_micros(usage.decode_us),
                Event::Failed { message } => return Err(BenchError::Ended(message)),
            }
        }
        match first {
            Some(first) if seen == tokens => Ok(Times { first, last, decode, computed }),
            _ => Err(BenchError::Ended(format!("{seen} of {tokens} tokens were generated"))),
        }
    }
}

/// Tokens per second over all sequences of a run.
fn rate(test: &Test, started: Instant, times: &[Times]) -> f64 {
    let computed: u32 = times.iter().map(|t| t.computed).sum();
    let generated = u64::from(test.generated_tokens) * times.len() as u64;
    let last = times.iter().map(|t| t.last).max().unwrap_or(started);
    let (tokens, from) = match test.prompt_tokens {
        0 => (generated, times.iter().map(|t| t.first).min().unwrap_or(started)),
        _ => (generated + u64::from(computed), started),
    };
    // Where the processor is wanted by others, tokens may be seen late and all at once.
    let decode = times.iter().map(|t| t.decode).max().unwrap_or_default();
    let elapsed = last.duration_since(from).max(decode);
    tokens as f64 / elapsed.as_secs_f64().max(1e-9)
}

fn summarise(test: Test, runs: Vec<f64>) -> Measurement {
    let len = runs.len() as f64;
    let mean = runs.iter().sum::<f64>() / len;
    let squares: f64 = runs.iter().map(|run| (run - mean).powi(2)).sum();
    let sd = if runs.len() > 1 { (squares / (len - 1.0)).sqrt() } else { 0.0 };
    Measurement { test, name: test.name(), tokens_per_s: mean, tokens_per_s_sd: sd, runs }
}

impl Report {
    /// A table in Markdown, with `llama-bench`'s columns.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| model | size | params | backend | threads | test | t/s |\n\
             | --- | ---: | ---: | --- | ---: | ---: | ---: |\n",
        );
        for result in &self.results {
            let _ = writeln!(
                out,
                "| {} | {:.2} MiB | {:.2} M | {} | {} | {} | {:.2} ± {:.2} |",
                self.model,
                self.size_bytes as f64 / f64::from(1 << 20),
                self.parameters as f64 / 1e6,
                self.backend,
                self.threads,
                result.name,
                result.tokens_per_s,
                result.tokens_per_s_sd
            );
        }
        out
    }
}

#[cfg(test)]
mod tests;
