//! What systemd hears from the services, on a socket of its kind.

use std::os::unix::net::UnixDatagram;

use fulmar_tests::{PATIENCE, Process, fulmar_ok, text};

/// Starts a service as systemd does, and listens until it has said each of these, in this order;
/// then asks it to stop.
fn hears(arguments: &[&str], expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = |words: &str| {
        let mut message = [0; 256];
        loop {
            let len = socket.recv(&mut message).unwrap_or_else(|e| panic!("{words}: {e}"));
            let said = String::from_utf8_lossy(&message[..len]);
            if said.lines().any(|line| line == words) {
                return;
            }
        }
    };
    let variables = [("NOTIFY_SOCKET", text(&path)), ("WATCHDOG_USEC", "400000")];
    let service = Process::start_with(arguments, &variables);
    for words in expected {
        hear(words);
    }
    service.signal("TERM");
    hear("STOPPING=1");
}

#[test]
fn the_agent_tells_systemd_that_it_is_ready_alive_and_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let serve = ["serve", "--dir", text(dir.path()), "--listen", "127.0.0.1:0", "--ready-json"];
    hears(&serve, &["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
}

#[test]
fn the_control_plane_tells_systemd_that_it_is_ready_alive_and_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("control");
    let _ = fulmar_ok(&["control-plane", "init", "--dir", text(&place)]);
    let any = "127.0.0.1:0";
    let serve = ["control-plane", "serve", "--dir", text(&place), "--device-listen", any];
    let more = ["--console-listen", any, "--ready-json"];
    hears(&[&serve[..], &more].concat(), &["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
}
