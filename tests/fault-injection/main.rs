//! The plug is pulled: at any moment, and everything is there again after.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Read as _;
use std::time::{Duration, Instant};

use fulmar_tests::{Fleet, Process, client, endless, fulmar_ok, json_of, text};
use serde_json::{Value, json};

/// From the start after a kill to the first answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Starts the agent again after the plug was pulled: it answers in time, from a model whose bytes it
/// has verified. A machine with other things to do has three tries; each is a whole start after a
/// kill.
fn started_again(fleet: &Fleet) -> Process {
    let mut took = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let agent = fleet.start_agent();
        assert_eq!(fleet.ask("turn on the fan in the boiler room").0, 200);
        took.push(start.elapsed());
        if took.iter().any(|took| *took < ANSWERS_WITHIN) {
            return agent;
        }
        agent.kill();
    }
    panic!("the agent answered after {took:?}, expected {ANSWERS_WITHIN:?}")
}

#[test]
fn an_agent_killed_in_mid_answer_serves_again_and_its_log_says_so() {
    let fleet = Fleet::made();
    let agent = fleet.start_agent();
    let url = agent.ready["api_urls"][0].as_str().unwrap();
    let body = json!({
        "model": fleet.model(),
        "messages": [{ "role": "user", "content": "hello" }],
        // It does not end by itself: the answer is long, and the kill comes in its middle.
        "logit_bias": endless(),
        "temperature": 1.9,
        "stream": true,
        "max_tokens": 900,
    });
    let mut stream = client()
        .post(format!("{url}/chat/completions"))
        .bearer_auth(fleet.token())
        .json(&body)
        .send()
        .unwrap();
    let mut first = [0; 16];
    stream.read_exact(&mut first).unwrap();
    agent.kill();
    let dir = fleet.device_dir();
    let list = || {
        let log = fulmar_ok(&["audit", "list", "--json", "--limit", "50", "--dir", text(&dir)]);
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let open = list()[0].clone();
    let begun = (&open["action"], &open["outcome"]);
    assert_eq!(begun, (&json!("model.run"), &json!("started")), "an answer was open: {open}");

    let _agent = started_again(&fleet);
    let entries = list();
    let closed = entries.iter().find(|entry| entry["opened"] == open["seq"]);
    let closed = closed.unwrap_or_else(|| panic!("the answer has no end: {entries:?}"));
    assert_eq!(closed["outcome"], "failed", "{closed}");
    assert_eq!(closed["detail"]["reason"], "the agent stopped before this ended");
    let started = entries.iter().filter(|e| e["outcome"] == "started").count();
    let ended = entries.iter().filter(|e| e["opened"].is_u64()).count();
    assert_eq!(started, ended, "every question that began has an end: {entries:?}");
    let verified = json_of(&["audit", "verify", "--json", "--dir", text(&dir)]);
    assert!(verified["entries"].as_u64().unwrap() > 0);
}

#[test]
fn an_agent_killed_in_mid_download_goes_on_where_it_was() {
    let fleet = Fleet::made();
    let dir = fleet.device_dir();
    // The model is taken off, so that the next start fetches it again, slowly.
    let _ = fulmar_ok(&["rm", fleet.model(), "--dir", text(&dir)]);
    let blobs = dir.join("registry/blobs");
    std::fs::remove_dir_all(&blobs).unwrap();
    let slow = dir.join("slow.toml");
    std::fs::write(&slow, "[sync]\ndownload_bytes_per_s_max = 1500000\n").unwrap();
    let _control = fleet.start_control();
    let start = || {
        fulmar_tests::Process::start(&[
            "serve",
            "--dir",
            text(&dir),
            "--config",
            text(&slow),
            "--listen",
            "127.0.0.1:0",
            "--ready-json",
        ])
    };
    let agent = start();
    let status = fleet.until_status("the download is under way", |status| {
        let fetching = &status["link"]["fetching"];
        fetching["bytes_done"].as_u64().unwrap_or(0) > 500_000
    });
    agent.kill();
    assert!(status["link"]["fetching"]["bytes_total"].as_u64().unwrap() > 1_000_000);

    let _agent = start();
    let again = fleet.until_status("the download goes on", |status| {
        status["link"]["fetching"]["bytes_done"].as_u64().unwrap_or(0) > 0
            || status["models"][0]["slot"] == "active"
    });
    if let Some(done) = again["link"]["fetching"]["bytes_done"].as_u64() {
        assert!(done >= 400_000, "it went on at {done}, not from the beginning");
    }
    fleet.until_status("the model is active", |s| s["models"][0]["slot"] == "active");
}

#[test]
fn killed_at_many_moments_the_device_always_comes_back() {
    let fleet = Fleet::made();
    let rounds: u32 =
        std::env::var("FULMAR_FAULT_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let _control = fleet.start_control();
    for round in 0..rounds {
        let agent = fleet.start_agent();
        // Moments spread over the first second of its life; each is another one.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 997 % 1_000));
        agent.kill();
    }
    let _agent = started_again(&fleet);
    let dir = fleet.device_dir();
    assert_eq!(fulmar_tests::fulmar(&["audit", "verify", "--dir", text(&dir)]).code, 0);
}
