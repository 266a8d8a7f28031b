//! What an engine costs that has nothing to do. In a process of its own, whatever runs the tests: all
//! threads of an engine's name are this engine's.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::time::{Duration, Instant};

use fulmar_inference::engine::{BackendChoice, Engine, EngineOptions, Prompt, Request};
use fulmar_inference::model::sample::Sample;

/// Nanoseconds on a processor, and how often it was given one, of a thread.
fn used(thread: &str) -> (u64, u64) {
    let counts = std::fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap();
    let fields: Vec<u64> = counts.split_whitespace().flat_map(str::parse).collect();
    (fields[0], fields[2])
}

/// The same of the engine's threads together, and how many there are.
fn used_by_engine() -> (u64, u64, usize) {
    let mut sum = (0, 0, 0);
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().file_name().into_string().unwrap();
        let name = std::fs::read_to_string(format!("/proc/self/task/{task}/comm")).unwrap();
        if name.starts_with("fulmar-") {
            let (nanoseconds, times) = used(&format!("self/task/{task}"));
            sum = (sum.0 + nanoseconds, sum.1 + times, sum.2 + 1);
        }
    }
    sum
}

#[tokio::test]
async fn an_engine_that_has_answered_uses_no_processor() {
    const WINDOW: Duration = Duration::from_millis(400);
    const THREADS: usize = 4;
    let backend = BackendChoice::Native;
    let options = EngineOptions { threads: THREADS, backend, ..EngineOptions::default() };
    let engine = Engine::start(options).expect("an engine");
    engine.load("m", Sample::of("llama").gguf().expect("a sample")).await.expect("loads");
    let request = Request {
        model: "m".to_owned(),
        prompt: Prompt::Text("some work first".to_owned()),
        max_tokens: Some(24),
        ..Request::default()
    };
    let mut generation = engine.generate(request).await.expect("accepted");
    while generation.next().await.is_some() {}
    let (nanoseconds, _, threads) = used_by_engine();
    // The engine's own thread computes, too.
    assert_eq!(threads, THREADS, "the threads are not found by their names");
    assert!(nanoseconds > 0, "what they use is not counted");
    // A window is this thread's own work, so a busy machine makes it longer, not wrong; the first
    // may still see the threads fall asleep.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (before, own) = (used_by_engine(), used("thread-self").0);
        while u128::from(used("thread-self").0 - own) < WINDOW.as_nanos() {}
        let after = used_by_engine();
        let (spent, times) = (Duration::from_nanos(after.0 - before.0), after.1 - before.1);
        if spent < WINDOW / 20 && times < 10 {
            break;
        }
        let late = Instant::now() > deadline;
        assert!(!late, "the idle engine's threads ran {times} times, {spent:?} in {WINDOW:?}");
    }
}
