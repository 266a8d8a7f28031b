//! The console in a real browser.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use fulmar_tests::{Fleet, output_dir, python, root};

/// Released while the operator watches: the device has not heard of it before.
const MODEL: &str = "acme/pumps:1";

#[test]
fn an_operator_sees_the_device_turn_active_and_what_it_was_asked() {
    let fleet = Fleet::made();
    let _control = fleet.start_control();
    let (name, password) = fleet.operator_credentials();
    let mut browser = Command::new(python())
        .arg(root().join("tests/browser/console.py"))
        .env("CONSOLE_URL", fleet.facts["console_url"].as_str().unwrap())
        .env("CONSOLE_USER", name)
        .env("CONSOLE_PASSWORD", password)
        .env("DEVICE_ID", fleet.facts["device_id"].as_str().unwrap())
        .env("MODEL", MODEL)
        .env("SCREENSHOTS", output_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(browser.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // What it says when it fails is read below; until then it waits for the entry's number.
    let agent = (line.trim() == "waiting").then(|| fleet.start_agent());
    let mut stdin = browser.stdin.take().unwrap();
    if agent.is_some() {
        fleet.release(MODEL, &[]);
        fleet.until_status("the model is active on the device", |status| {
            let mut models = status["models"].as_array().unwrap().iter();
            models.any(|model| model["name"] == MODEL && model["slot"] == "active")
        });
        let question = "turn on the fan in the boiler room";
        let (status, answer) = fleet.ask_model(fleet.token(), MODEL, question);
        // A failed question is seen by the browser too: it waits in vain.
        let entry = if status == 200 { answer["fulmar"]["audit_entry"].clone() } else { answer };
        writeln!(stdin, "{entry}").unwrap();
    }
    drop(stdin);
    let output = browser.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
