//! Peak resident memory stays within the byte budget: several models under one budget, loaded,
//! unloaded when idle to make room, and loaded again, on both backends. Each test is a process of
//! its own.
//!
//! What is looked at is all resident memory, the mapped files' pages included: its peak since
//! before the first load (`VmHWM`), less what the process had then. Beyond the budget there may be
//! [`AROUND_BYTES`] and no more. And of a model that is loaded, no more of its file may be resident
//! than that.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::path::Path;
use std::process::Command;

use fulmar_inference::backend::KvType;
use fulmar_inference::engine::{
    BackendChoice, Engine, EngineOptions, Event, Prompt, Request, Sampling,
};
use fulmar_inference::gguf::Gguf;
use fulmar_inference::model::sample::Sample;
use fulmar_kernels::formats::TensorType;

/// Threads' stacks, the runtime, code of the program that is read in, what the allocator keeps.
/// No model's weights are as small.
const AROUND_BYTES: u64 = 20 << 20;
/// Models that are used in turn. Two of them fit.
const MODELS: [&str; 3] = ["a", "b", "c"];
/// Where the models are to be written.
const FOLDER: &str = "FULMAR_TEST_MODELS";
/// How many layers they have.
const LAYERS: &str = "FULMAR_TEST_LAYERS";

fn sample(layers: usize, seed: u64) -> Sample {
    Sample {
        layers,
        embedding_len: 512,
        heads: 8,
        kv_heads: 4,
        head_dims: 64,
        feed_forward_len: 2048,
        context_tokens: 512,
        weight_type: TensorType::Q8_0,
        seed,
        ..Sample::of("llama")
    }
}

/// A field of `/proc/self/status`, in bytes.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// Writes the models where another process asks for them: making them takes more memory than using
/// them, and what the allocator kept of it would hide what an engine takes.
#[test]
fn models_are_written_for_a_process_that_only_uses_them() {
    let own = tempfile::tempdir().unwrap();
    let (folder, layers) = match (std::env::var_os(FOLDER), std::env::var(LAYERS)) {
        (Some(folder), Ok(layers)) => (folder.into(), layers.parse().unwrap()),
        _ => (own.path().to_owned(), 1),
    };
    for (seed, name) in (1..).zip(MODELS) {
        std::fs::write(folder.join(name), sample(layers, seed).bytes().unwrap()).unwrap();
        assert!(Gguf::open(&folder.join(name)).unwrap().size_bytes() > 4 << 20);
    }
}

fn write_models(folder: &Path, layers: usize) {
    let name = "models_are_written_for_a_process_that_only_uses_them";
    let made = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(FOLDER, folder)
        .env(LAYERS, layers.to_string())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
}

async fn answer(engine: &Engine, model: &str, seed: u64) {
    let request = Request {
        model: model.to_owned(),
        prompt: Prompt::Text("the sea is wide and the ship is small ".repeat(6)),
        sampling: Sampling { seed: Some(seed), ..Sampling::default() },
        max_tokens: Some(24),
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
    assert!(tokens > 0);
}

fn options(backend: BackendChoice, budget_bytes: u64) -> EngineOptions {
    EngineOptions {
        budget_bytes,
        threads: 2,
        backend,
        context_tokens_max: 512,
        kv_tokens_max: 1024,
        kv_type: KvType::F16,
        batch_tokens_max: 64,
        sequences_max: 2,
        queue_len_max: 8,
        queue_bytes_max: 1 << 20,
        ..EngineOptions::default()
    }
}

/// Uses the models in turn, under a budget for two of them.
async fn in_turn(folder: &Path, backend: BackendChoice, budget_bytes: u64) {
    let (before, files_before) = (status("VmRSS"), status("RssFile"));
    let anonymous_before = status("RssAnon");
    let engine = Engine::start(options(backend, budget_bytes)).unwrap();
    let (mut weights_bytes, mut loads) = (0, 0);
    for round in 0..3 {
        for name in MODELS {
            if !engine.status().models.iter().any(|model| model.info.name == name) {
                let gguf = Gguf::open(&folder.join(name)).unwrap();
                let info = engine.load(name, gguf).await.unwrap();
                weights_bytes = info.planned.weights_bytes;
                loads += 1;
            }
            answer(&engine, name, round).await;
            let memory = engine.status().memory;
            assert!(memory.planned_bytes <= budget_bytes, "{memory:?}");
            assert!(memory.measured_bytes <= memory.planned_bytes, "{memory:?}");
            // Weights are written from end to end: what is said to be held is really there.
            let held: u64 =
                engine.status().models.iter().map(|model| model.measured.weights_bytes).sum();
            let anonymous = status("RssAnon") - anonymous_before;
            assert!(
                held > 0 && held <= anonymous,
                "{held} bytes of weights held, {anonymous} there"
            );
            let loaded = engine.status().models.len();
            println!(
                "{name}: {loaded} loaded, planned {} of {budget_bytes}, resident {} and at the peak {} \
                 above {before}, anonymous {}, of files {}",
                memory.planned_bytes,
                status("VmRSS") - before,
                status("VmHWM") - before,
                status("RssAnon"),
                status("RssFile"),
            );
            assert!(loaded <= 2, "three models fit the budget: it says nothing");
            assert!(round == 0 || loaded == 2 || name == MODELS[0], "two models do not fit");
            let of_files = status("RssFile") - files_before;
            assert!(of_files <= AROUND_BYTES, "{of_files} bytes of files stay resident");
        }
        engine.unload(MODELS[2]).await.unwrap();
    }
    assert!(loads >= 7, "models were not loaded again: {loads} loads");
    assert!(weights_bytes > AROUND_BYTES, "the weights are too small to tell: {weights_bytes}");
    let grown = status("VmHWM") - before;
    assert!(
        grown <= budget_bytes + AROUND_BYTES,
        "{grown} bytes resident at the peak, above {before}; the budget is {budget_bytes}"
    );
}

fn stays_within(backend: BackendChoice, layers: usize, budget_bytes: u64) {
    let folder = tempfile::tempdir().unwrap();
    write_models(folder.path(), layers);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .build()
        .unwrap();
    runtime.block_on(in_turn(folder.path(), backend, budget_bytes));
}

#[test]
fn several_models_stay_resident_within_the_budget_on_the_native_backend() {
    stays_within(BackendChoice::Native, 10, 128 << 20);
}

#[test]
fn several_models_stay_resident_within_the_budget_on_the_candle_backend() {
    stays_within(BackendChoice::Candle, 5, 400 << 20);
}
