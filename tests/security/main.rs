//! Attacks, each refused with its own error.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use fulmar_tests::{Fleet, fulmar_ok, json_of, text};

fn code(body: &serde_json::Value) -> &str {
    body["error"]["code"].as_str().unwrap_or_default()
}

#[test]
fn every_wrong_token_is_refused_with_its_own_error() {
    let fleet = Fleet::made();
    let _agent = fleet.start_agent();
    let good = fleet.token().to_owned();

    let mut changed = good.clone();
    let middle = good.len() / 2;
    let other = if &good[middle..=middle] == "A" { "B" } else { "A" };
    changed.replace_range(middle..=middle, other);
    let (status, body) = fleet.ask_as(&changed, "hello");
    assert_eq!((status, code(&body)), (401, "invalid_token"), "{body}");

    // A token of another device, signed by that device's own key.
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = fulmar_ok(&["token", "mint", "--dir", text(elsewhere.path())]);
    let (status, body) = fleet.ask_as(foreign.trim(), "hello");
    assert_eq!((status, code(&body)), (401, "invalid_token"), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("not signed by this device"));

    let dir = fleet.device_dir();
    let minted = json_of(&["token", "mint", "--json", "--dir", text(&dir)]);
    let token = minted["token"].as_str().unwrap();
    assert_eq!(fleet.ask_as(token, "hello").0, 200);
    let id = minted["claims"]["jti"].as_str().unwrap();
    let _ = fulmar_ok(&["token", "revoke", id, "--dir", text(&dir)]);
    let (status, body) = fleet.ask_as(token, "hello");
    assert_eq!((status, code(&body)), (401, "token_revoked"), "{body}");

    // An auditor may look, not ask; the refusal is in the log.
    let auditor = fulmar_ok(&["token", "mint", "--role", "auditor", "--dir", text(&dir)]);
    let (status, body) = fleet.ask_as(auditor.trim(), "hello");
    assert_eq!((status, code(&body)), (403, "denied"), "{body}");
    let log = fulmar_ok(&["audit", "list", "--json", "--limit", "1", "--dir", text(&dir)]);
    assert!(log.contains("\"denied\"") && log.contains("model.run"), "{log}");
}

/// The largest file under a directory: the weights.
fn largest_file(dir: &Path) -> PathBuf {
    let mut found: Option<(u64, PathBuf)> = None;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let data = entry.metadata().unwrap();
            if data.is_dir() {
                folders.push(entry.path());
            } else if found.as_ref().is_none_or(|(size, _)| *size < data.len()) {
                found = Some((data.len(), entry.path()));
            }
        }
    }
    found.unwrap().1
}

/// Flips one bit in the middle of a file, whatever its permissions say.
fn flip_a_bit(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    let mut permissions = std::fs::metadata(path).unwrap().permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "the attacker owns the disk")]
    permissions.set_readonly(false);
    std::fs::set_permissions(path, permissions).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&[bytes[at] ^ 1]).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_flipped_bit_in_the_weights_is_found_before_they_are_used() {
    let fleet = Fleet::made();
    flip_a_bit(&largest_file(&fleet.device_dir().join("registry")));
    let _agent = fleet.start_agent();
    let (status, body) = fleet.ask("hello");
    assert_eq!((status, code(&body)), (503, "model_not_verified"), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("sha256"), "{body}");
}

#[test]
fn a_broken_blob_is_repaired_when_the_control_plane_is_there() {
    let fleet = Fleet::made();
    flip_a_bit(&largest_file(&fleet.device_dir().join("registry")));
    let _control = fleet.start_control();
    let _agent = fleet.start_agent();
    fulmar_tests::until("the model answers again", || (fleet.ask("hello").0 == 200).then_some(()));
}

#[test]
fn a_changed_audit_log_is_noticed() {
    let fleet = Fleet::made();
    let dir = fleet.device_dir();
    let store = rusqlite::Connection::open(dir.join("state.db")).unwrap();
    store
        .execute_batch(
            "DROP TRIGGER audit_entry_is_never_changed;
             UPDATE audit_entry SET actor = 'nobody' WHERE seq = 2;",
        )
        .unwrap();
    drop(store);
    let verified = fulmar_tests::fulmar(&["audit", "verify", "--dir", text(&dir)]);
    assert_eq!(verified.code, 1);
    assert!(verified.stderr.contains("entry 2 was changed"), "{}", verified.stderr);
}

/// Copies a directory with everything in it.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_replayed_older_timestamp_is_refused_and_the_device_works_on() {
    let fleet = Fleet::made();
    let kept = tempfile::tempdir().unwrap();
    copy_dir(&fleet.control_dir(), kept.path());

    // The owner signs a newer timestamp, and the device takes it.
    let control = fleet.start_control();
    let (registry, key) =
        (fleet.owner_dir().join("registry"), fleet.owner_dir().join("registry.key"));
    let _ = fulmar_ok(&[
        "registry",
        "renew",
        text(&registry),
        "--role",
        "timestamp",
        "--key",
        text(&key),
    ]);
    let _ = fulmar_ok(&[&["publish", text(&registry)][..], &fleet.console_access()].concat());
    let _agent = fleet.start_agent();
    let checked_in = |s: &serde_json::Value| s["link"]["checked_in_at_s"].as_i64().unwrap_or(0);
    let first = fleet.until_status("the device checks in", |s| checked_in(s) > 0);
    // The cycle after the next begins only when the one that refreshed has ended.
    fleet.until_status("it goes on", |s| checked_in(s) > checked_in(&first) + 1);
    assert_eq!(control.stop(), 0);

    // Somebody puts the control plane's disk of yesterday back.
    std::fs::remove_dir_all(fleet.control_dir()).unwrap();
    copy_dir(kept.path(), &fleet.control_dir());
    let _control = fleet.start_control();
    let status = fleet.until_status("the device refuses it", |s| {
        s["link"]["error"].as_str().is_some_and(|error| error.contains("timestamp"))
    });
    let error = status["link"]["error"].as_str().unwrap();
    assert!(error.contains("already trusted"), "{error}");
    assert!(error.contains("rollback attack"), "{error}");
    assert_eq!(fleet.ask("turn on the fan in the boiler room").0, 200);
}
