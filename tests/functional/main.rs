//! The main job from outside, with the clients that people use.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod by_file;
mod commands;
mod governor;
mod quickstart;
mod room;
mod search;
mod service;
mod surface;

use std::process::{Command, Stdio};

use fulmar_tests::{Fleet, Process, fulmar_bin, fulmar_ok, json_of, python, root, text};

#[test]
fn the_openai_package_talks_to_a_device() {
    let fleet = Fleet::made();
    let _agent = fleet.start_agent();
    let output = Command::new(python())
        .arg(root().join("tests/functional/openai_client.py"))
        .env("BASE_URL", fleet.facts["api_url"].as_str().unwrap())
        .env("API_KEY", fleet.token())
        .env("MODEL", fleet.model())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_device_works_on_without_its_control_plane_and_catches_up_after() {
    let fleet = Fleet::made();
    let agent = fleet.start_agent();
    fleet.until_status("the device notices that it is alone", |s| s["link"]["state"] == "offline");
    assert_eq!(fleet.ask("turn on the fan in the boiler room").0, 200);
    assert_eq!(agent.stop(), 0);

    // Also across a restart of its own.
    let _agent = fleet.start_agent();
    let (status, answer) = fleet.ask("close the valve in hall 3");
    assert_eq!(status, 200);
    let entry = answer["fulmar"]["audit_entry"].as_u64().unwrap();
    let pending = fleet.status()["link"]["outbox_pending"].as_u64().unwrap();
    assert!(pending > 0, "reports wait for the control plane");

    let _control = fleet.start_control();
    fleet.until_status("the device catches up", |s| {
        s["link"]["state"] == "online" && s["link"]["outbox_pending"] == 0
    });
    let device = fleet.facts["device_id"].as_str().unwrap();
    let audit = fleet.operator(&format!("devices/{device}/audit"));
    let seen = serde_json::to_string(&audit).unwrap();
    assert!(seen.contains(&format!("\"seq\":{entry}")), "entry {entry} arrived: {seen}");
}

#[test]
fn a_reader_that_has_seen_enough_gets_no_complaint() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(fulmar_bin());
    command.args(["config", "show", "--dir", text(dir.path())]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn one_file_is_served_without_a_fleet_and_still_only_with_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("device");
    let model = root().join("packaging/demo-model/fulmar-demo.gguf");
    let agent = Process::start(&[
        "serve",
        "--dir",
        text(&place),
        "--model",
        text(&model),
        "--listen",
        "127.0.0.1:0",
        "--ready-json",
    ]);
    let url = agent.ready["api_urls"][0].as_str().unwrap().to_owned();
    let anonymous = fulmar_tests::client().get(format!("{url}/models")).send().unwrap();
    assert_eq!(anonymous.status(), 401);
    let token = fulmar_ok(&["token", "mint", "--dir", text(&place)]);
    let listed: serde_json::Value = fulmar_tests::client()
        .get(format!("{url}/models"))
        .bearer_auth(token.trim())
        .send()
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(listed["data"][0]["id"], "local/fulmar-demo:latest");
    let health = url.replace("/v1", "/health");
    assert_eq!(fulmar_tests::client().get(health).send().unwrap().status(), 200);
    assert_eq!(agent.stop(), 0);
}

#[test]
fn a_question_in_the_terminal_is_answered_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("device");
    let model = root().join("packaging/demo-model/fulmar-demo.gguf");
    let question = "turn on the fan in the boiler room";
    let answer =
        fulmar_ok(&["run", text(&model), question, "--dir", text(&place), "--temperature", "0"]);
    assert!(!answer.trim().is_empty());
    let verified = json_of(&["audit", "verify", "--json", "--dir", text(&place)]);
    assert_eq!(verified["entries"], verified["signed_entries"]);
    let log = fulmar_ok(&["audit", "list", "--json", "--dir", text(&place)]);
    assert!(log.contains("model.run") && log.contains("completed"), "{log}");
}

#[test]
fn too_large_a_model_is_refused_with_the_bytes_that_were_short() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("device");
    let model = root().join("packaging/demo-model/fulmar-demo.gguf");
    std::fs::write(
        dir.path().join("fulmar.toml"),
        "[engine]\nbudget_bytes = 20000000\nkv_tokens_max = 1000000\n",
    )
    .unwrap();
    let config = dir.path().join("fulmar.toml");
    let refused = fulmar_tests::fulmar(&[
        "run",
        text(&model),
        "hello",
        "--dir",
        text(&place),
        "--config",
        text(&config),
    ]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("bytes are needed"), "{}", refused.stderr);
    assert!(refused.stderr.contains("20000000"), "{}", refused.stderr);
}
