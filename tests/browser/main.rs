//! The console in a real browser.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};

use fulmar_tests::{Fleet, output_dir, python, root};

#[test]
fn an_operator_sees_the_device_turn_active_and_what_it_was_asked() {
    let fleet = Fleet::made();
    let _control = fleet.start_control();
    let mut browser = Command::new(python())
        .arg(root().join("tests/browser/console.py"))
        .env("CONSOLE_URL", fleet.facts["console_url"].as_str().unwrap())
        .env("CONSOLE_USER", fleet.facts["console_user"].as_str().unwrap())
        .env("CONSOLE_PASSWORD", fleet.facts["console_password"].as_str().unwrap())
        .env("DEVICE_ID", fleet.facts["device_id"].as_str().unwrap())
        .env("MODEL", fleet.model())
        .env("SCREENSHOTS", output_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(browser.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line.trim() == "waiting" {
        let _agent = fleet.start_agent();
        let (status, answer) = fleet.ask("turn on the fan in the boiler room");
        assert_eq!(status, 200, "{answer}");
        let mut stdin = browser.stdin.take().unwrap();
        writeln!(stdin, "{}", answer["fulmar"]["audit_entry"]).unwrap();
        let mut said = String::new();
        browser.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(browser.wait().unwrap().success(), "{said}");
    } else {
        let mut said = String::new();
        browser.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        panic!("the browser never waited for the device: {line}{said}");
    }
}
