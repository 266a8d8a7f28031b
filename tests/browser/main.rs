//! The console in a real browser.

use std::process::Command;

use fulmar_tests::{Fleet, output_dir, python, root};

#[test]
fn an_operator_signs_in_and_sees_the_device_and_what_it_was_asked() {
    let fleet = Fleet::made();
    let _control = fleet.start_control();
    let _agent = fleet.start_agent();
    let (status, answer) = fleet.ask("turn on the fan in the boiler room");
    assert_eq!(status, 200);
    let output = Command::new(python())
        .arg(root().join("tests/browser/console.py"))
        .env("CONSOLE_URL", fleet.facts["console_url"].as_str().unwrap())
        .env("CONSOLE_USER", fleet.facts["console_user"].as_str().unwrap())
        .env("CONSOLE_PASSWORD", fleet.facts["console_password"].as_str().unwrap())
        .env("DEVICE_ID", fleet.facts["device_id"].as_str().unwrap())
        .env("MODEL", fleet.model())
        .env("AUDIT_ENTRY", answer["fulmar"]["audit_entry"].to_string())
        .env("SCREENSHOTS", output_dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
