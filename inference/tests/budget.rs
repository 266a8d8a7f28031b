//! Memory stays within the budget: in a process of its own, whose data is limited to the budget.
//!
//! What is looked at here is what the process allocates. `residency.rs` looks at all that is resident,
//! the pages of mapped files included.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use fulmar_inference::backend::KvType;
use fulmar_inference::engine::{
    BackendChoice, Constraint, Engine, EngineOptions, Event, Prompt, Request, Sampling,
};
use fulmar_inference::model::sample::Sample;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A little more than the model needs.
const BUDGET_BYTES: u64 = 46 << 20;
/// Stacks of threads, the runtime, and what the test itself holds.
const AROUND_BYTES: u64 = 24 << 20;

/// A field of `/proc/self/status`, in bytes.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

fn sample() -> Sample {
    Sample {
        layers: 4,
        embedding_len: 256,
        heads: 8,
        kv_heads: 4,
        head_dims: 32,
        feed_forward_len: 1024,
        context_tokens: 1024,
        ..Sample::of("llama")
    }
}

async fn answer(engine: Engine, seed: u64) -> usize {
    let constraint = seed.is_multiple_of(4).then_some(Constraint::Json);
    let request = Request {
        model: "m".to_owned(),
        prompt: Prompt::Text("the sea ".repeat(40 + 10 * seed as usize % 60)),
        sampling: Sampling { seed: Some(seed), top_p: 0.9, ..Sampling::default() },
        max_tokens: Some(60),
        constraint,
        logprobs: Some(5),
        ..Request::default()
    };
    let mut generation = engine.generate(request).await.unwrap();
    let mut tokens = 0;
    while let Some(event) = generation.next().await {
        match event {
            Event::Token { .. } => tokens += 1,
            Event::Failed { message } => panic!("{message}"),
            Event::Started { .. } | Event::Done { .. } => {}
        }
    }
    tokens
}

#[test]
fn peak_memory_stays_within_the_budget() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .build()
        .unwrap();
    runtime.block_on(many_answers_within_a_limit());
}

async fn many_answers_within_a_limit() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), sample().bytes().unwrap()).unwrap();
    let options = EngineOptions {
        budget_bytes: BUDGET_BYTES,
        threads: 2,
        backend: BackendChoice::Native,
        context_tokens_max: 1024,
        kv_tokens_max: 8192,
        kv_type: KvType::F16,
        batch_tokens_max: 256,
        sequences_max: 8,
        queue_len_max: 64,
        // Eight constraints wait at once.
        queue_bytes_max: 2 << 20,
        ..EngineOptions::default()
    };
    let before = status("RssAnon");
    let engine = Engine::start(options).unwrap();
    // The limit is set before the model is loaded; allocating beyond it aborts this process.
    let limit = status("VmData") + BUDGET_BYTES + AROUND_BYTES;
    setrlimit(Resource::Data, Rlimit { current: Some(limit), ..getrlimit(Resource::Data) })
        .unwrap();
    let gguf = fulmar_inference::gguf::Gguf::open(file.path()).unwrap();
    engine.load("m", gguf).await.unwrap();
    let mut answers = Vec::new();
    for seed in 0..32 {
        answers.push(tokio::spawn(answer(engine.clone(), seed)));
    }
    let mut tokens = 0;
    for answer in answers {
        tokens += answer.await.unwrap();
    }
    assert!(tokens > 200, "{tokens} tokens");
    let memory = engine.status().memory;
    let grown = status("RssAnon") - before;
    println!(
        "planned {} of {}, measured {}, grown by {grown}",
        memory.planned_bytes, memory.budget_bytes, memory.measured_bytes
    );
    assert!(memory.planned_bytes <= memory.budget_bytes);
    assert!(memory.measured_bytes <= memory.planned_bytes, "{memory:?}");
    assert!(grown <= BUDGET_BYTES, "{grown} bytes, planned {memory:?}");
}
