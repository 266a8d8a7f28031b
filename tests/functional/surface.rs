//! What the engine can do, through the clients that people use.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use fulmar_tests::{Device, fulmar_ok, json_of, python, root, text, until};
use serde_json::json;

#[test]
fn the_openai_package_completes_embeds_samples_and_constrains() {
    let device = Device::serving(&root().join("packaging/demo-model/fulmar-demo.gguf"), &[]);
    device.run_client("openai_generation.py");
    let log =
        fulmar_ok(&["audit", "list", "--json", "--limit", "1000", "--dir", text(&device.dir())]);
    for endpoint in ["/v1/embeddings", "/v1/completions", "/v1/chat/completions"] {
        assert!(log.contains(endpoint), "{endpoint} is recorded");
    }
}

#[test]
fn an_answer_that_is_not_there_in_the_time_that_the_client_gave_is_an_error_and_recorded() {
    let device = Device::serving(&root().join("packaging/demo-model/fulmar-demo.gguf"), &[]);
    let question = json!({ "model": device.model, "messages": [{ "role": "user", "content": "hi" }],
        "stream": false });
    let prompt = json!({ "model": device.model, "prompt": "hi" });
    let input = json!({ "model": device.model, "input": "hi" });
    let post = |path: &str, seconds: &str, body: &serde_json::Value| {
        let request = fulmar_tests::client().post(format!("{}/{path}", device.url));
        let request = request.bearer_auth(&device.token).header("X-Request-Timeout", seconds);
        let response = request.json(body).send().unwrap();
        (response.status().as_u16(), response.text().unwrap())
    };
    for (path, body) in [
        ("chat/completions", &question),
        ("completions", &prompt),
        ("embeddings", &input),
        ("../api/chat", &question),
    ] {
        assert_eq!(post(path, "60", body).0, 200, "{path}");
        let (status, late) = post(path, "0.001", body);
        assert_eq!(status, 504, "{path}: {late}");
        assert!(late.contains("X-Request-Timeout"), "{path}: {late}");
        let (status, refused) = post(path, "soon", body);
        assert_eq!(status, 400, "{path}: {refused}");
        assert!(refused.contains("X-Request-Timeout") && refused.contains("0.001"), "{refused}");
    }
    let mut streamed = question;
    streamed["stream"] = true.into();
    let (status, late) = post("chat/completions", "0.001", &streamed);
    assert!(status == 200 && late.contains("deadline_exceeded"), "{status}: {late}");
    let log =
        fulmar_ok(&["audit", "list", "--json", "--limit", "1000", "--dir", text(&device.dir())]);
    assert!(log.contains("\"failed\"") && log.contains("deadline"), "{log}");
}

#[test]
fn the_openai_package_chooses_which_tool_is_called() {
    let device = Device::serving(&root().join("packaging/demo-model/fulmar-demo.gguf"), &[]);
    device.run_client("openai_tools.py");
}

/// A Hugging Face folder with a random model that has the default model's vocabulary.
fn folder(dir: &Path, marks: &[&str]) -> PathBuf {
    let folder = dir.join("tiny");
    let script = root().join("tests/functional/make_folder.py");
    let made = Command::new(python()).args([&script, &folder]).args(marks).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    folder
}

#[test]
fn a_hugging_face_folder_is_served_run_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path(), &[]);
    let place = dir.path().join("device");
    let run = || {
        let place = ["--dir", text(&place), "--temperature", "0", "--max-tokens", "8"];
        fulmar_ok(&[&["run", text(&folder), "hello"], place.as_slice()].concat())
    };
    let first = run();
    assert!(!first.trim().is_empty());
    assert_eq!(run(), first);
    let listed = json_of(&["list", "--json", "--dir", text(&place)]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "twice imported, once there: {listed}");
    let served = Device::serving(&folder, &[]);
    let question = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hello" }],
        "temperature": 0, "max_tokens": 8 });
    let (status, answer) = served.post("chat/completions", &question);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["message"]["content"], first.trim_end_matches('\n'));

    // By name, by folder and by file; each option of llama-bench gives its own rows.
    let demo = root().join("packaging/demo-model/fulmar-demo.gguf");
    for model in ["tiny", text(&folder), text(&demo)] {
        let options = ["-p", "8", "-n", "4", "--pg", "8,4", "-d", "0,32", "--sequences", "1,2"];
        let more = ["-r", "2", "-t", "1", "-b", "16", "--json", "--dir", text(&place)];
        let report = json_of(&[&["bench", model], options.as_slice(), more.as_slice()].concat());
        let names: Vec<&str> = report["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["name"].as_str().unwrap())
            .collect();
        assert_eq!(names.len(), 12, "{names:?}");
        for name in ["pp8", "tg4", "pp8+tg4", "pp8 x2", "tg4 @ d32", "pp8+tg4 @ d32 x2"] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        assert!(report["results"][0]["tokens_per_s"].as_f64().unwrap() > 0.0);
        assert_eq!(report["threads"], 1);
    }
    let table = fulmar_ok(&["bench", text(&demo), "-p", "8", "-n", "0", "-r", "1"]);
    assert!(
        table.starts_with("| model | size | params | backend | threads | test | t/s |"),
        "{table}"
    );
    assert!(table.contains("| pp8 |") && table.contains(" ± "), "{table}");
}

#[test]
fn a_draft_model_guesses_ahead_and_the_answers_stay_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path(), &[]);
    let demo = root().join("packaging/demo-model/fulmar-demo.gguf");
    let ask = |device: &Device| {
        let question = |seed: u64| {
            json!({ "model": "tiny", "messages": [{ "role": "user", "content": "turn on the fan" }],
                "temperature": 1, "seed": seed, "max_tokens": 24 })
        };
        let answer = |seed| device.post("chat/completions", &question(seed)).1["choices"].clone();
        (0..6).map(answer).collect::<Vec<_>>()
    };
    let ps = |device: &Device| {
        json_of(&["ps", "--json", "--dir", text(&device.dir())])["models"]
            .as_array()
            .unwrap()
            .iter()
            .find(|model| model["name"].as_str().unwrap().starts_with("local/tiny"))
            .unwrap()
            .clone()
    };
    let alone = Device::serving(&folder, &[]);
    let expected = ask(&alone);
    assert_eq!(ps(&alone)["draft"], serde_json::Value::Null);
    let drafted = Device::serving(&folder, &["--draft-model", text(&demo)]);
    assert_eq!(ask(&drafted), expected);
    let status = until("guesses are counted", || {
        Some(ps(&drafted)).filter(|m| m["totals"]["drafted_tokens"].as_u64() > Some(0))
    });
    assert_eq!(status["draft"], "local/fulmar-demo:latest");
    assert_eq!(status["speculation"], "auto");
    assert_eq!(status["draft_refused"], serde_json::Value::Null);
    let table = fulmar_ok(&["ps", "--dir", text(&drafted.dir())]);
    assert!(table.contains("local/fulmar-demo:latest: "), "{table}");

    // The configuration names a draft that is not there: the model answers, and `ps` says why alone.
    let config = dir.path().join("fulmar.toml");
    std::fs::write(&config, "[engine.drafts]\n\"local/tiny:latest\" = \"acme/gone:1\"\n").unwrap();
    let lone = Device::serving(&folder, &["--config", text(&config)]);
    assert_eq!(ask(&lone), expected);
    let reason = ps(&lone)["draft_refused"].as_str().unwrap().to_owned();
    assert!(reason.contains("acme/gone:1"), "{reason}");
}

#[test]
fn every_familys_reasoning_and_calls_are_taken_apart() {
    for marks in ["<tool_call>", "<|python_tag|>", "<|tool_call|>", "<start_of_turn>"] {
        let dir = tempfile::tempdir().unwrap();
        let device = Device::serving(&folder(dir.path(), &[marks]), &[]);
        device.run_client_with("openai_families.py", &[("MARKS", marks)]);
    }
}

#[test]
fn the_ollama_package_talks_to_a_device() {
    let device = Device::serving(&root().join("packaging/demo-model/fulmar-demo.gguf"), &[]);
    device.run_client("ollama_client.py");
    let log =
        fulmar_ok(&["audit", "list", "--json", "--limit", "1000", "--dir", text(&device.dir())]);
    for endpoint in ["/api/chat", "/api/generate", "/api/embed"] {
        assert!(log.contains(endpoint), "{endpoint} is recorded");
    }
}

/// Asks for a streamed answer, reads its first words and closes the socket; gives the number of the
/// audit entry that records the question.
fn ask_and_leave(device: &Device, question: &serde_json::Value) -> u64 {
    let address = device.url.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let body = question.to_string();
    let head = [
        "POST /v1/chat/completions HTTP/1.1".to_owned(),
        format!("Host: {address}"),
        format!("Authorization: Bearer {}", device.token),
        "Content-Type: application/json".to_owned(),
        format!("Content-Length: {}", body.len()),
    ];
    socket.write_all(format!("{}\r\n\r\n{body}", head.join("\r\n")).as_bytes()).unwrap();
    let (mut said, mut piece) = (String::new(), [0; 512]);
    loop {
        let len = socket.read(&mut piece).unwrap();
        assert!(len > 0, "it ended: {said}");
        said.push_str(&String::from_utf8_lossy(&piece[..len]));
        let entry = said.split_once("\"audit_entry\":").map(|(_, rest)| rest);
        if let Some((number, _)) = entry.and_then(|rest| rest.split_once('}')) {
            return number.parse().unwrap();
        }
    }
}

/// The entry that says how a question's answer ended.
fn ended(device: &Device, opened: u64) -> Option<serde_json::Value> {
    let log =
        fulmar_ok(&["audit", "list", "--json", "--limit", "1000", "--dir", text(&device.dir())]);
    let mut entries = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    entries.find(|entry| entry["opened"] == opened)
}

#[test]
fn a_client_that_goes_away_frees_its_place_and_the_log_says_so() {
    let device = Device::serving(&root().join("packaging/demo-model/fulmar-demo.gguf"), &[]);
    let endless = json!({ "type": "grammar", "syntax": "regex", "definition": "[a-z ]{4000}" });
    let question = json!({ "model": device.model, "stream": true, "response_format": endless,
        "messages": [{ "role": "user", "content": "go on and on" }] });
    // A machine that is slow in the wrong place may come to the answer's end first: asked again.
    let entry = until("an answer is cut short", || {
        let opened = ask_and_leave(&device, &question);
        let entry = until("the entry is completed", || ended(&device, opened));
        (entry["detail"]["finish_reason"] != "length").then_some(entry)
    });
    assert_eq!(entry["outcome"], "failed", "{entry}");
    assert_eq!(entry["detail"]["reason"], "the client went away", "{entry}");
    assert!(entry["detail"]["tokens"].as_u64().unwrap() < 1000, "{entry}");
    // What the engine says of itself it renews now and then.
    let ps = until("the answer is cancelled and nothing runs any more", || {
        let ps = json_of(&["ps", "--json", "--dir", text(&device.dir())]);
        let model = ps["models"][0].clone();
        let cancelled = model["totals"]["cancelled"].as_u64().unwrap() >= 1;
        (cancelled && model["running"] == 0 && model["waiting"] == 0).then_some(model)
    });
    assert_eq!(ps["kv"]["used"], 0, "{ps}");
    let (status, answer) = device.post(
        "chat/completions",
        &json!({ "model": device.model, "max_tokens": 4,
            "messages": [{ "role": "user", "content": "hello" }] }),
    );
    assert_eq!(status, 200, "{answer}");
}
