//! What goes wrong ends alone.

use super::*;

/// A prompt with a token that no generated text of the test has before it fails.
const POISON: u32 = 255;

fn poisoned() -> Wanted {
    let mut w = wanted(&prompt(8, 20));
    w.prompt[10] = POISON;
    w
}

fn healthy() -> Vec<Wanted> {
    let ok =
        |w: &Wanted| !w.prompt.contains(&POISON) && !reference(w, usize::MAX).contains(&POISON);
    (1..40).map(|i| wanted(&prompt(i, 15))).filter(ok).take(5).collect()
}

fn crowd_with(faults: Faults, bad: &Wanted) -> (Vec<Got>, Got, Stage) {
    let mut stage = Stage::new(Setup { faults, ..Setup::default() });
    let healthy = healthy();
    assert_eq!(healthy.len(), 5);
    let mut events: Vec<_> = healthy[..3].iter().map(|w| stage.ask(w)).collect();
    let bad = stage.ask(bad);
    events.extend(healthy[3..].iter().map(|w| stage.ask(w)));
    stage.run();
    for (w, got) in healthy.iter().zip(events).map(|(w, e)| (w, read(e))) {
        assert_eq!(got.ids, reference(w, usize::MAX));
        assert_eq!(got.failed, None);
    }
    (Vec::new(), read(bad), stage)
}

#[test]
fn a_sequence_that_the_backend_fails_on_ends_alone() {
    let (_, bad, stage) =
        crowd_with(Faults { fails: Some(POISON), ..Faults::default() }, &poisoned());
    assert!(bad.failed.is_some_and(|m| m.contains("fail")));
    assert_eq!(stage.loaded.totals().failed, 1);
}

#[test]
fn a_sequence_that_the_backend_panics_on_ends_alone() {
    let (_, bad, _) = crowd_with(Faults { panics: Some(POISON), ..Faults::default() }, &poisoned());
    assert!(bad.failed.is_some_and(|m| m.contains("panicked")));
}

#[test]
fn a_sequence_whose_logits_are_not_numbers_ends_alone() {
    let mut w = wanted(&prompt(8, 20));
    w.prompt[19] = POISON;
    let (_, bad, _) = crowd_with(Faults { not_a_number: Some(POISON), ..Faults::default() }, &w);
    assert!(bad.failed.is_some_and(|m| m.contains("not a number")));
}

#[test]
fn a_sequence_that_the_engine_panics_on_ends_alone() {
    let bad = Wanted { panics_after: Some(3), ..wanted(&prompt(8, 20)) };
    let (_, bad, stage) = crowd_with(Faults::default(), &bad);
    assert!(bad.failed.is_some_and(|m| m.contains("panicked: ") && m.contains("a bug")));
    assert_eq!((bad.ids.len(), stage.loaded.totals().failed), (3, 1));
}

#[test]
fn a_sequence_whose_block_is_not_copied_ends_alone_and_without_a_wrong_text() {
    let (known, other) = (prompt(4, 64), prompt(9, 64));
    let faults = Faults { fails_to_copy: Some(known[32]), ..Faults::default() };
    assert_ne!(known[32], other[32]);
    let mut stage = Stage::new(Setup { faults, ..Setup::default() });
    for tokens in [&known, &other] {
        let first = stage.ask(&wanted(tokens));
        stage.run();
        assert_eq!(read(first).ids, reference(&wanted(tokens), usize::MAX));
    }
    // All of both is known by now: to choose a token, each needs a copy of its last block.
    let (bad, good) = (stage.ask(&wanted(&known)), stage.ask(&wanted(&other)));
    let fresh = stage.ask(&wanted(&prompt(2, 20)));
    stage.run();
    let bad = read(bad);
    assert!(bad.failed.is_some_and(|m| m.contains("copied")));
    assert!(bad.ids.is_empty(), "{:?}", bad.ids);
    assert_eq!(read(good).ids, reference(&wanted(&other), usize::MAX));
    assert_eq!(read(fresh).ids, reference(&wanted(&prompt(2, 20)), usize::MAX));
    // What is known of the text was not spoilt: a longer one goes on from it.
    let longer = wanted(&[known, vec![7]].concat());
    let events = stage.ask(&longer);
    stage.run();
    assert_eq!(read(events).ids, reference(&longer, usize::MAX));
}

#[test]
fn an_answer_whose_reader_is_too_far_behind_ends_and_others_go_on() {
    let mut stage = Stage::new(Setup { blocks: 512, ..Setup::default() });
    let ends: Vec<(u32, f32)> = tokenizer().ends().iter().map(|end| (*end, -100.0)).collect();
    // Each token weighs about a thousand bytes with these log-probabilities.
    let long = |seed: u32| Wanted {
        tokens_max: 4000,
        logprobs: Some(20),
        sampling: Sampling { logit_bias: ends.clone(), ..Sampling::greedy() },
        ..wanted(&prompt(seed, 10))
    };
    let (slow, mut fast) = (stage.ask(&long(1)), stage.ask(&long(2)));
    let mut read_by_fast = 0;
    while !stage.loaded.is_idle() {
        stage.turn();
        while let Ok(event) = fast.try_recv() {
            match event {
                Event::Token { .. } => read_by_fast += 1,
                Event::Failed { message } => panic!("{message}"),
                Event::Started { .. } | Event::Done { .. } => {}
            }
        }
    }
    assert_eq!(read_by_fast, 4000);
    let slow = read(slow);
    assert!(slow.failed.is_some_and(|m| m.contains("bytes behind")));
    assert!((200..4000).contains(&slow.ids.len()), "{}", slow.ids.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_counts_as_what_waits_until_its_answer_ends() {
    let options = EngineOptions {
        budget_bytes: 256 << 20,
        threads: 1,
        queue_bytes_max: 256 * 1024,
        ..EngineOptions::default()
    };
    let engine = Engine::start(options).expect("an engine");
    engine.load("m", Sample::of("llama").gguf().expect("a sample")).await.expect("loads");
    let asked = |text: &str| Request {
        model: "m".to_owned(),
        prompt: Prompt::Text("a".to_owned()),
        constraint: Some(Constraint::Regex(format!("({text})+"))),
        max_tokens: Some(100),
        ..Request::default()
    };
    let long = engine.generate(asked(&"abc".repeat(2000))).await.map(|_| ());
    assert!(matches!(long, Err(Refused::QueueBytes { bytes_max: 262_144, .. })), "{long:?}");
    assert_eq!(engine.status().queue.bytes, 0);
    let mut short = engine.generate(asked("abc")).await.expect("accepted");
    assert!(matches!(short.next().await, Some(Event::Started { .. })));
    let mut last = None;
    while let Some(event) = short.next().await {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Done { .. })), "{last:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.status().queue.bytes > 0 {
        assert!(Instant::now() < deadline, "an answer that ended holds bytes");
        tokio::task::yield_now().await;
    }
}

/// Puts a stage's model into an engine.
async fn commit(engine: &Engine, name: &str, faults: Faults) {
    let mut loaded = Stage::new(Setup { faults, ..Setup::default() }).loaded;
    loaded.info.name = name.to_owned();
    let front = front::Front::new(
        name.to_owned(),
        engine.shared.next_ordinal(),
        tokenizer(),
        Ok(None),
        crate::model::Pooling::Mean,
        2048,
        loaded.info.vocabulary,
    );
    let reserved = budget::Reserved::new(0, &Arc::default());
    let (reply, answer) = oneshot::channel();
    let (loaded, front) = (Box::new(loaded), Arc::new(front));
    let order = Order::Commit { loaded, front, reserved, reply };
    engine.shared.mailbox.push_order(order).expect("it takes orders");
    answer.await.expect("an answer").expect("it is taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_that_no_sequence_is_to_blame_for_ends_the_model_with_all_its_answers_and_no_other()
{
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let engine = Engine::start(options).expect("an engine");
    commit(&engine, "good", Faults::default()).await;
    commit(&engine, "bad", Faults { panics_with_threads: Some(1), ..Faults::default() }).await;
    let request = |model: &str| Request {
        model: model.to_owned(),
        prompt: Prompt::Tokens(prompt(1, 20)),
        sampling: Sampling::greedy(),
        max_tokens: Some(8),
        ..Request::default()
    };
    let good = engine.generate(request("good")).await.expect("accepted");
    let bad = engine.generate(request("bad")).await.expect("accepted");
    let last = async |mut generation: Generation| {
        let mut last = None;
        while let Some(event) = generation.next().await {
            last = Some(event);
        }
        last
    };
    assert!(matches!(last(bad).await, Some(Event::Failed { .. })));
    assert!(matches!(last(good).await, Some(Event::Done { .. })));
    let gone = engine.generate(request("bad")).await.map(|_| ());
    assert!(matches!(gone, Err(Refused::ModelNotLoaded { .. })), "{gone:?}");
    let again = engine.generate(request("good")).await.expect("accepted");
    assert!(matches!(last(again).await, Some(Event::Done { .. })));
}

#[test]
fn a_caller_that_goes_frees_everything_at_the_next_step() {
    let mut stage = Stage::new(Setup::default());
    let events = stage.ask(&Wanted { tokens_max: 1000, ..wanted(&prompt(1, 100)) });
    let waiting = stage.ask(&wanted(&prompt(2, 10)));
    for _ in 0..5 {
        stage.turn();
    }
    assert!(stage.loaded.kv().used > 0);
    drop((events, waiting));
    stage.turn();
    assert!(stage.loaded.is_idle());
    assert_eq!(stage.loaded.kv().used, 0);
    assert_eq!(stage.queue.status().len, 0);
    assert_eq!(stage.loaded.totals().cancelled, 2);
}

#[test]
fn a_deadline_ends_an_answer_that_runs_and_one_that_waits() {
    let mut stage = Stage::new(Setup { sequences: 1, ..Setup::default() });
    let late = Some(Duration::from_secs(3));
    let running = stage.ask(&Wanted { tokens_max: 1000, deadline: late, ..wanted(&prompt(1, 10)) });
    let waiting = stage.ask(&Wanted { deadline: late, ..wanted(&prompt(2, 10)) });
    for _ in 0..4 {
        stage.turn();
    }
    stage.now += Duration::from_secs(3);
    stage.turn();
    assert!(stage.loaded.is_idle());
    let (running, waiting) = (read(running), read(waiting));
    assert_eq!(running.reason, Some(FinishReason::Deadline));
    assert!(!running.ids.is_empty());
    assert_eq!(waiting.reason, Some(FinishReason::Deadline));
    assert_eq!(stage.loaded.totals().deadline, 2);
}

#[test]
fn a_place_in_the_queue_is_given_back_when_the_request_starts() {
    let mut stage = Stage::new(Setup { sequences: 1, ..Setup::default() });
    let _a = stage.ask(&wanted(&prompt(1, 10)));
    let _b = stage.ask(&wanted(&prompt(2, 10)));
    assert_eq!(stage.queue.status().len, 2);
    stage.turn();
    assert_eq!(stage.queue.status().len, 1);
}
