//! The engine as callers see it, with real backends over small random models.

use super::*;

fn options() -> EngineOptions {
    EngineOptions {
        budget_bytes: 256 << 20,
        threads: 1,
        context_tokens_max: 256,
        kv_tokens_max: 1024,
        kv_type: KvType::F32,
        batch_tokens_max: 64,
        sequences_max: 8,
        ..EngineOptions::default()
    }
}

async fn engine_with(family: &str, options: EngineOptions) -> Engine {
    let engine = Engine::start(options).expect("an engine");
    let gguf = Sample::of(family).gguf().expect("a sample");
    engine.load("m", gguf).await.expect("loads");
    engine
}

fn request(text: &str) -> Request {
    Request {
        model: "m".to_owned(),
        prompt: Prompt::Text(text.to_owned()),
        sampling: Sampling::greedy(),
        max_tokens: Some(24),
        principal: "test".to_owned(),
        ..Request::default()
    }
}

async fn finish(mut generation: Generation) -> Got {
    let mut got = Got::default();
    while let Some(event) = generation.next().await {
        match event {
            Event::Started { cached_tokens, .. } => got.cached = cached_tokens,
            Event::Token { text, id, .. } => {
                got.ids.push(id);
                got.text.push_str(&text);
            }
            Event::Done { reason, .. } => got.reason = Some(reason),
            Event::Failed { message } => got.failed = Some(message),
        }
    }
    got
}

async fn answer(engine: &Engine, request: Request) -> Got {
    finish(engine.generate(request).await.expect("accepted")).await
}

/// That they really run at once, and every other way to run them, is in `alike`.
#[tokio::test(flavor = "multi_thread")]
async fn on_every_architecture_sixteen_requests_together_get_the_text_they_get_alone() {
    for family in Sample::families() {
        let all = EngineOptions { sequences_max: 16, threads: 2, kv_tokens_max: 4096, ..options() };
        let off = EngineOptions { prefix_cache: PrefixCache::Off, ..all };
        let engine = engine_with(family, off).await;
        let mut alone = Vec::new();
        for text in TEXTS {
            alone.push(answer(&engine, request(text)).await.ids);
        }
        let mut generations = Vec::new();
        for text in TEXTS {
            generations.push(engine.generate(request(text)).await.expect("accepted"));
        }
        for ((generation, alone), text) in generations.into_iter().zip(alone).zip(TEXTS) {
            assert_eq!(finish(generation).await.ids, alone, "{family}: {text:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_there_and_a_prompt_too_long_are_refused() {
    let engine = engine_with("llama", options()).await;
    let missing = Request { model: "other".to_owned(), ..request("a") };
    assert_eq!(
        engine.generate(missing).await.map(|_| ()),
        Err(Refused::ModelNotLoaded { name: "other".to_owned() })
    );
    let long = request(&"word ".repeat(300));
    assert!(matches!(
        engine.generate(long).await.map(|_| ()),
        Err(Refused::PromptTooLong { tokens_max: 256, .. })
    ));
    let bad = Request { max_tokens: Some(0), ..request("a") };
    assert!(matches!(
        engine.generate(bad).await.map(|_| ()),
        Err(Refused::Invalid { field: "max_tokens", .. })
    ));
    let outside = Request { prompt: Prompt::Tokens(vec![1, 99_999]), ..request("") };
    assert!(matches!(
        engine.generate(outside).await.map(|_| ()),
        Err(Refused::Invalid { field: "prompt", .. })
    ));
    assert_eq!(engine.status().queue.len, 0, "a refused request leaves its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once() {
    let engine =
        engine_with("llama", EngineOptions { queue_len_max: 2, sequences_max: 1, ..options() })
            .await;
    let mut held = Vec::new();
    let mut refused = None;
    for _ in 0..20 {
        match engine.generate(Request { max_tokens: None, ..request("a long one") }).await {
            Ok(generation) => held.push(generation),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert!(matches!(refused, Some(Refused::QueueFull { max: 2, .. })), "{refused:?}");
    assert_eq!(engine.status().totals.refused, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unloading_ends_answers_as_cancelled() {
    let engine = engine_with("llama", options()).await;
    let mut generation =
        engine.generate(Request { max_tokens: None, ..request("go on") }).await.expect("accepted");
    assert!(matches!(generation.next().await, Some(Event::Started { .. })));
    engine.unload("m").await.expect("unloads");
    let got = finish(generation).await;
    assert!(
        got.reason == Some(FinishReason::Cancelled) || got.reason == Some(FinishReason::Length),
        "{got:?}"
    );
    assert_eq!(engine.unload("m").await, Err(OrderRefused::NotLoaded { name: "m".to_owned() }));
    assert!(engine.status().models.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_budget_is_refused_with_the_numbers() {
    let probe = engine_with("llama", options()).await;
    let status = probe.status();
    let one = status.memory.planned_bytes - status.memory.queue_bytes;
    assert_eq!(status.memory.free_bytes + status.memory.planned_bytes, status.memory.budget_bytes);
    // Room for one and a half models: the second sends the idle first one away.
    let budget_bytes = status.memory.queue_bytes + one * 3 / 2;
    let engine = Engine::start(EngineOptions { budget_bytes, ..options() }).expect("an engine");
    let gguf = || Sample::of("llama").gguf().expect("a sample");
    engine.load("first", gguf()).await.expect("loads");
    engine.load("second", gguf()).await.expect("loads");
    let names: Vec<_> = engine.status().models.into_iter().map(|m| m.info.name).collect();
    assert_eq!(names, ["second"]);
    // A pinned one stays, and the refusal says so.
    engine.unload("second").await.expect("unloads");
    let pinned = LoadOptions { keep_alive: KeepAlive::Pinned, ..LoadOptions::default() };
    engine.load_with("pinned", gguf(), pinned).await.expect("loads");
    match engine.load("third", gguf()).await {
        Err(LoadRefused::OverBudget { asked_bytes, free_bytes, must_go, .. }) => {
            assert!(asked_bytes > free_bytes);
            assert_eq!(must_go.len(), 1);
            assert_eq!((must_go[0].name.as_str(), must_go[0].hold), ("pinned", Hold::Pinned));
        }
        other => panic!("{other:?}"),
    }
    // And what an empty engine can't hold says that.
    let tiny = EngineOptions { budget_bytes: status.memory.queue_bytes + 1000, ..options() };
    let engine = Engine::start(tiny).expect("an engine");
    match engine.load("m", gguf()).await {
        Err(error @ LoadRefused::OverBudget { .. }) => {
            assert!(error.to_string().contains("even an empty engine"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_model_fits_the_memory_that_it_is_said_to_need_and_not_less() {
    for family in ["llama", "gemma3"] {
        let gguf = Sample::of(family).gguf().expect("a sample");
        let need = memory_need(&gguf).expect("it can be planned");
        let queue_bytes = status_of_nothing().memory.queue_bytes;
        let load = |budget_bytes| {
            let options = EngineOptions { budget_bytes, ..of_the_whole_context() };
            Engine::start(options).expect("an engine")
        };
        let enough = load(queue_bytes + need);
        enough.load("m", gguf.clone()).await.expect("it fits");
        let refused = load(queue_bytes + need - 1).load("m", gguf).await.expect_err("too little");
        assert!(matches!(refused, LoadRefused::OverBudget { .. }), "{refused}");
    }
}

/// What [`memory_need`] counts with, and every model's whole context.
fn of_the_whole_context() -> EngineOptions {
    EngineOptions {
        threads: 4,
        context_tokens_max: 1 << 20,
        kv_tokens_max: 0,
        ..EngineOptions::default()
    }
}

fn status_of_nothing() -> EngineStatus {
    Engine::start(of_the_whole_context()).expect("an engine").status()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_model_goes_when_its_time_is_over() {
    let engine = Engine::start(options()).expect("an engine");
    let gguf = Sample::of("qwen3").gguf().expect("a sample");
    let keep = KeepAlive::For(Duration::ZERO);
    let load = LoadOptions { keep_alive: keep, ..LoadOptions::default() };
    engine.load_with("m", gguf, load).await.expect("loads");
    // It may still be there for one request, or be gone already: never an error in between.
    while !engine.status().models.is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(engine.tokenizer("m").is_none());
}

#[tokio::test]
async fn a_model_that_a_request_is_on_its_way_to_stays_until_it_has_come() {
    let engine = engine_with("llama", options()).await;
    let coming = engine.shared.fronts.enter("m").expect("loaded");
    engine.keep_alive("m", KeepAlive::For(Duration::ZERO)).await.expect("loaded");
    assert!(engine.tokenizer("m").is_some(), "unloaded under a request");
    let got = answer(&engine, request("it is there")).await;
    assert_eq!(got.failed, None);
    assert!(engine.tokenizer("m").is_some(), "unloaded under a request");
    drop(coming);
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.tokenizer("m").is_some() {
        assert!(Instant::now() < deadline, "idle, and nobody comes: it is to go");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_inputs_of_an_embedding_request_count_to_its_end() {
    let engine = engine_with("llama", options()).await;
    let inputs = vec![Prompt::Text("x".repeat(100)), Prompt::Text("y".repeat(60))];
    let request = EmbedRequest {
        model: "m".to_owned(),
        inputs,
        principal: "app".to_owned(),
        priority: PRIORITY_DEFAULT,
        deadline_ms: None,
    };
    let (place, inputs) = prompt::embed_place(&engine.shared, &request).expect("room");
    drop(place);
    assert_eq!((engine.status().queue.len, engine.status().queue.bytes), (0, 160));
    drop(inputs);
    assert_eq!(engine.status().queue.bytes, 0);
    engine.embed(request).await.expect("vectors");
    assert_eq!(engine.status().queue.bytes, 0);
}

#[test]
fn idle_time_begins_with_the_end_of_a_step() {
    let mut stage = Stage::new(Setup::default());
    let _events = stage.ask(&wanted(&prompt(1, 5)));
    let before_the_step = Instant::now();
    stage.turn();
    assert!(stage.loaded.last_used() >= before_the_step);
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_of_length_one_and_the_same_whatever_runs_beside() {
    let engine = engine_with("qwen3", options()).await;
    let embed = |inputs: &[&str]| EmbedRequest {
        model: "m".to_owned(),
        inputs: inputs.iter().map(|t| Prompt::Text((*t).to_owned())).collect(),
        principal: "test".to_owned(),
        priority: PRIORITY_DEFAULT,
        deadline_ms: None,
    };
    let alone = engine.embed(embed(&["the sea"])).await.expect("a vector");
    let beside = engine.generate(request("beside")).await.expect("accepted");
    let inputs: Vec<&str> = ["a", "the sea", "b"].into_iter().cycle().take(20).collect();
    let many = engine.embed(embed(&inputs)).await.expect("vectors");
    assert_eq!(many.vectors.len(), 20);
    for (i, vector) in many.vectors.iter().enumerate() {
        let length: f32 = vector.iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-4);
        if i % 3 == 1 {
            assert_eq!(vector, &alone.vectors[0]);
        }
    }
    finish(beside).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constrained_answer_that_finishes_is_valid() {
    let engine = engine_with("llama", options()).await;
    let schema = serde_json::json!({
        "type": "object",
        "properties": { "a": { "type": "boolean" }, "b": { "enum": ["x", "y"] } },
        "required": ["a", "b"],
        "additionalProperties": false,
    });
    for seed in 0..20 {
        let got = answer(
            &engine,
            Request {
                constraint: Some(Constraint::JsonSchema(schema.clone())),
                sampling: Sampling { seed: Some(seed), ..Sampling::default() },
                max_tokens: Some(100),
                ..request("json:")
            },
        )
        .await;
        assert_eq!(got.reason, Some(FinishReason::Stop), "{got:?}");
        let value: serde_json::Value = serde_json::from_str(&got.text).expect("valid JSON");
        assert!(value["a"].is_boolean() && ["x", "y"].contains(&value["b"].as_str().unwrap()));
    }
    let unsupported = Constraint::JsonSchema(serde_json::json!({ "uniqueItems": true }));
    let refused = engine.generate(Request { constraint: Some(unsupported), ..request("a") }).await;
    assert!(matches!(refused.map(|_| ()), Err(Refused::Constraint(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_governor_narrows_and_says_why() {
    use crate::governor::{Governor, GovernorConfig, Readings};
    let engine = engine_with("llama", EngineOptions { threads: 4, ..options() }).await;
    let mut governor = Governor::new(GovernorConfig::default(), engine.strength());
    let hot = Readings { temperature_c: Some(99.0), ..Readings::default() };
    engine.govern(governor.update(&hot));
    let status = engine.status();
    assert_eq!(status.threads, 1);
    assert!(status.governor.reasons[0].text.contains("99 °C"), "{:?}", status.governor);
    let before = answer(&engine, request("same")).await;
    engine.govern(governor.update(&Readings::default()));
    assert_eq!(answer(&engine, request("same")).await.ids, before.ids);
    assert_eq!(engine.status().threads, 4);
}

/// An engine with a model, and a draft beside it.
async fn drafted(backend: BackendChoice, draft: Option<Gguf>) -> Result<Engine, LoadRefused> {
    let engine = Engine::start(EngineOptions { backend, ..options() }).expect("an engine");
    let gguf = Sample::of("llama").gguf().expect("a sample");
    let draft = draft.map(|gguf| DraftModel { name: "small".to_owned(), gguf });
    let with = LoadOptions { draft, ..LoadOptions::default() };
    engine.load_with("m", gguf, with).await.map(|_| engine)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_changes_the_steps_and_not_the_texts() {
    for backend in [BackendChoice::Native, BackendChoice::Candle] {
        // The model itself as its own draft: every guess is right.
        let twin = drafted(backend, Some(Sample::of("llama").gguf().expect("a sample"))).await;
        let (twin, plain) = (twin.expect("loads"), drafted(backend, None).await.expect("loads"));
        assert_eq!(twin.status().models[0].info.draft.as_deref(), Some("small"));
        assert_eq!(plain.status().models[0].info.draft, None);
        for (temperature, seed) in [(0.0, 1), (0.9, 2), (1.0, 3)] {
            let sampling = Sampling { temperature, seed: Some(seed), ..Sampling::default() };
            let request = Request { sampling, max_tokens: Some(60), ..request("the other") };
            let expected = answer(&plain, request.clone()).await.ids;
            assert_eq!(answer(&twin, request).await.ids, expected, "{backend:?}");
        }
        twin.unload("m").await.expect("unloads");
        let totals = twin.status().totals;
        assert!(totals.accepted_tokens * 10 >= totals.drafted_tokens * 8, "{totals:?}");
        assert!(totals.steps * 2 < totals.completion_tokens, "{totals:?}");
        // Another seed's sample draws otherwise: guesses are wrong, the text is not.
        let other = Sample { seed: 9, ..Sample::of("qwen3") }.gguf().expect("a sample");
        let other = drafted(backend, Some(other)).await.expect("loads");
        let expected = answer(&plain, request("bird")).await.ids;
        assert_eq!(answer(&other, request("bird")).await.ids, expected, "{backend:?}");
    }
    // A draft of another vocabulary is refused.
    let gemma = Sample::of("gemma3").gguf().expect("a sample");
    let same =
        Tokenizer::from_gguf(&gemma).expect("a tokenizer").vocab_len() == tokenizer().vocab_len();
    if !same {
        let refused = drafted(BackendChoice::Auto, Some(gemma)).await.map(|_| ());
        assert!(matches!(refused, Err(LoadRefused::Draft { .. })), "{refused:?}");
    }
}

/// At temperature 1 every seed's text is the text without speculation: then the distribution over
/// seeds is the same one too, exactly and not only as far as a statistic could tell.
#[tokio::test(flavor = "multi_thread")]
async fn at_temperature_one_guessing_ahead_leaves_every_seeds_text_as_it_was() {
    for backend in [BackendChoice::Native, BackendChoice::Candle] {
        let off = EngineOptions { backend, speculation: Speculation::Off, ..options() };
        let lookup = EngineOptions { speculation: Speculation::PromptLookup, ..off.clone() };
        let (plain, lookup) = (engine_with("llama", off).await, engine_with("llama", lookup).await);
        let twin = Sample::of("llama").gguf().expect("a sample");
        let other = Sample { seed: 9, ..Sample::of("llama") }.gguf().expect("a sample");
        let twin = drafted(backend, Some(twin)).await.expect("loads");
        let other = drafted(backend, Some(other)).await.expect("loads");
        let mut texts = std::collections::BTreeSet::new();
        for seed in 0..24 {
            let request = Request {
                sampling: Sampling { seed: Some(seed), ..Sampling::default() },
                max_tokens: Some(24),
                // Repeats itself, so that there is something to look up.
                ..request("on and on and on and on and on")
            };
            let expected = answer(&plain, request.clone()).await.ids;
            for (how, engine) in [("lookup", &lookup), ("twin", &twin), ("other", &other)] {
                let got = answer(engine, request.clone()).await.ids;
                assert_eq!(got, expected, "{how} on {backend:?}, seed {seed}");
            }
            texts.insert(expected);
        }
        assert!(texts.len() > 20, "seeds differ: {}", texts.len());
        for (engine, how) in [(lookup, "lookup"), (twin, "twin"), (other, "other")] {
            engine.unload("m").await.expect("unloads");
            let totals = engine.status().totals;
            assert!(totals.drafted_tokens > 0, "{how} on {backend:?} guesses: {totals:?}");
        }
    }
}
