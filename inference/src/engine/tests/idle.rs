//! What an engine costs that has nothing to do.

use super::*;

/// Hundredths of a second of processor time, by a file that Linux keeps.
fn ticks(path: &str) -> u64 {
    let stat = std::fs::read_to_string(path).expect("Linux keeps it");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn an_engine_that_has_answered_uses_no_processor() {
    const WINDOW_TICKS: u64 = 40;
    const OTHERS_TICKS_MAX: u64 = 2;
    let options = EngineOptions { threads: 4, kv_type: KvType::F16, ..EngineOptions::default() };
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
    // A window is this thread's own work, so a busy machine makes it longer, not wrong; the first
    // may still see the threads fall asleep.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (process, own) = (ticks("/proc/self/stat"), ticks("/proc/thread-self/stat"));
        while ticks("/proc/thread-self/stat") - own < WINDOW_TICKS {}
        let all = ticks("/proc/self/stat") - process;
        let others = all.saturating_sub(ticks("/proc/thread-self/stat") - own);
        if others <= OTHERS_TICKS_MAX {
            break;
        }
        let late = Instant::now() > deadline;
        assert!(
            !late,
            "the idle engine's threads used {others} ticks while one used {WINDOW_TICKS}"
        );
    }
}
