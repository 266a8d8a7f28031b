//! What is measured: bytes of what was allocated. It stays within the plan, and doesn't come from it.

use fulmar_kernels::formats::TensorType;

use super::*;
use crate::backend::{BLOCK_TOKENS, BackendOptions, candle, native};
use crate::gguf::Gguf;
use crate::model::Architecture;

const BACKENDS: [BackendChoice; 2] = [BackendChoice::Native, BackendChoice::Candle];

fn options(backend: BackendChoice, kv_type: KvType) -> EngineOptions {
    EngineOptions {
        threads: 2,
        backend,
        kv_type,
        context_tokens_max: 128,
        kv_tokens_max: 512,
        batch_tokens_max: 64,
        sequences_max: 4,
        ..EngineOptions::default()
    }
}

/// An answer in JSON, so that the tables of constraints are built, too.
async fn answer(engine: &Engine, seed: u64) {
    let request = Request {
        model: "m".to_owned(),
        prompt: Prompt::Text("the sea is wide and the ship is small ".repeat(2)),
        sampling: Sampling { seed: Some(seed), top_p: 0.9, ..Sampling::default() },
        max_tokens: Some(8),
        constraint: Some(Constraint::Json),
        ..Request::default()
    };
    let mut generation = engine.generate(request).await.expect("accepted");
    while let Some(event) = generation.next().await {
        assert!(!matches!(event, Event::Failed { .. }), "{event:?}");
    }
}

/// The engine's status once everything that was asked for is over.
async fn at_rest(engine: &Engine) -> EngineStatus {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = engine.status();
        let totals = status.totals;
        let over = totals.finished_stop + totals.finished_length;
        if over == totals.requests && over == 4 {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn on_every_architecture_and_backend_what_is_held_is_within_what_was_planned() {
    let forms = [
        (KvType::F16, TensorType::F32),
        (KvType::Q8, TensorType::Q4_0),
        (KvType::F32, TensorType::Q8_0),
    ];
    for family in Sample::families() {
        for (backend, (kv_type, weights)) in
            BACKENDS.into_iter().flat_map(|b| forms.into_iter().map(move |form| (b, form)))
        {
            let what = format!("{family} on {backend:?}, {weights} with a cache of {kv_type:?}");
            let engine = Engine::start(options(backend, kv_type)).expect("an engine");
            let sample = Sample { weight_type: weights, ..Sample::of(family) };
            engine.load("m", sample.gguf().expect("a sample")).await.expect("loads");
            for seed in 0..4 {
                answer(&engine, seed).await;
            }
            let status = at_rest(&engine).await;
            let model = &status.models[0];
            let (planned, measured) = (model.info.planned, model.measured);
            let parts = [
                ("weights", planned.weights_bytes, measured.weights_bytes),
                ("cache", planned.kv_bytes, measured.kv_bytes),
                ("scratch", planned.scratch_bytes, measured.scratch_bytes),
                ("tables", model.info.tokenizer_bytes, model.measured_tokenizer_bytes),
                ("queue", status.memory.queue_bytes, status.memory.measured_queue_bytes),
                ("all", status.memory.planned_bytes, status.memory.measured_bytes),
            ];
            for (part, planned, measured) in parts {
                assert!(measured <= planned, "{part}: {measured} held, {planned} planned: {what}");
                assert!(measured > 0 || part == "queue", "{part} is not measured: {what}");
            }
            // What is there from the start to the end is planned closely.
            assert!(measured.kv_bytes * 5 > planned.kv_bytes * 4, "{what}: {status:?}");
            assert!(measured.weights_bytes * 2 > planned.weights_bytes, "{what}: {status:?}");
        }
    }
}

/// A loaded model whose plan says nothing.
fn unplanned(backend: BackendChoice, gguf: &Gguf, blocks: usize, batch_tokens: usize) -> Loaded {
    let options = BackendOptions {
        threads: 1,
        context_tokens_max: 64,
        kv_blocks: blocks,
        kv_type: KvType::F16,
        batch_tokens_max: batch_tokens,
        cpus: Vec::new(),
        weight_copies: None,
    };
    let architecture = Architecture::from_gguf(gguf).expect("read");
    let loaded = match backend {
        BackendChoice::Candle => candle::load(gguf, &architecture, &options),
        _ => native::load(gguf, &architecture, &options),
    };
    let setup = Setup { blocks, batch_tokens, ..Setup::default() };
    let tokenizer = Arc::new(Tokenizer::from_gguf(gguf).expect("a tokenizer"));
    let stage = Stage::over(loaded.expect("loads"), setup, tokenizer, Arc::default());
    assert_eq!(stage.loaded.planned, MemoryUse::default());
    stage.loaded
}

#[test]
fn what_is_measured_follows_what_was_allocated_and_not_the_plan() {
    let small = Sample { layers: 2, ..Sample::of("llama") };
    let large = Sample { layers: 4, ..small.clone() };
    let (small, large) = (small.gguf().expect("a sample"), large.gguf().expect("a sample"));
    let kv_len = Architecture::from_gguf(&small).expect("read").kv_len() as u64;
    for backend in BACKENDS {
        let measured = |gguf, blocks, batch| unplanned(backend, gguf, blocks, batch).measured();
        let [one, wide, deep, long] = [
            measured(&small, 8, 16),
            measured(&small, 8, 64),
            measured(&large, 8, 16),
            measured(&small, 40, 16),
        ];
        // Keys and values of 16 bits in two layers; what lists the blocks comes on top.
        let cache = |blocks: u64| blocks * BLOCK_TOKENS as u64 * 2 * 2 * 2 * kv_len;
        for (found, blocks) in [(one, 8), (long, 40)] {
            let beside = found.kv_bytes - cache(blocks);
            assert!(beside > 0 && beside < blocks * 2048, "{backend:?}: {found:?}");
        }
        assert!(deep.weights_bytes > one.weights_bytes * 5 / 4, "{backend:?}: {deep:?}");
        assert!(deep.kv_bytes > one.kv_bytes * 19 / 10, "{backend:?}: {deep:?}");
        assert_eq!(wide.weights_bytes, one.weights_bytes, "{backend:?}");
        if backend == BackendChoice::Native {
            assert!(wide.scratch_bytes > one.scratch_bytes * 2, "{one:?}, {wide:?}");
        }
    }
}
