//! `fulmar registry`, run as a program: two owners and a team, each with a key of their own.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fulmar_registry::trust::{Ed25519Key, SigningKey as _};

const PASSPHRASE: &str = "correct horse battery";

/// The program in `folder`, as `person`.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(arguments)
        .current_dir(folder)
        .env("FULMAR_KEY_PASSPHRASE", PASSPHRASE)
        .output()
        .expect("the program starts")
}

fn said(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn two_owners_release_a_model_and_let_a_team_release_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    for key in ["ann", "bob", "team", "eve"] {
        said(dir, &["registry", "new-key", &format!("{key}.key")]);
    }
    said(dir, &["debug", "sample", "qwen3", "-o", "model.gguf"]);
    let init = ["registry", "init", "reg", "--key", "ann.key", "--public", "bob.key.pub"];
    let made = said(dir, &[&init[..], &["--threshold", "2"]].concat());
    assert!(made.contains("root version 1 has 1 of 2 signatures"), "{made}");

    // One is not enough, a stranger is nobody, the second completes it.
    let sign = |key| ["registry", "sign", "reg", "--key", key];
    assert!(!said(dir, &sign("eve.key")).contains("Published"));
    let signed = said(dir, &sign("bob.key"));
    for role in ["root", "targets", "snapshot", "timestamp"] {
        assert!(signed.contains(&format!("Published {role}, version 1.")), "{signed}");
    }
    assert!(signed.contains("first root, sha256:"), "{signed}");

    let publish = |name| ["registry", "publish", "reg", "model.gguf", "--name", name];
    said(dir, &[&publish("acme/demo:1")[..], &["--key", "ann.key", "--key", "bob.key"]].concat());
    let delegate = ["registry", "delegate", "reg", "--role", "team/vision", "--path", "vision/*/*"];
    let keys = ["--public", "team.key.pub", "--key", "ann.key", "--key", "bob.key"];
    said(dir, &[&delegate[..], &keys].concat());
    said(dir, &[&publish("vision/eye:1")[..], &["--key", "team.key", "--key", "ann.key"]].concat());
    let status = said(dir, &["registry", "status", "reg"]);
    assert!(status.contains("acme/demo:1") && status.contains("vision/eye:1"), "{status}");

    // The team cannot release under the owners' names.
    let foreign = [&publish("acme/evil:1")[..], &["--role", "team/vision"]].concat();
    assert!(refused(dir, &foreign).contains("not delegated"));
    // A second release counts up by itself.
    let second = said(dir, &[&publish("vision/eye:1")[..], &["--key", "team.key"]].concat());
    assert!(second.contains("release 2"), "{second}");
}

#[test]
fn keys_are_files_that_only_a_passphrase_opens() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    said(dir, &["registry", "new-key", "a.key"]);
    assert!(refused(dir, &["registry", "new-key", "a.key"]).contains("a.key"));
    let mode = std::os::unix::fs::MetadataExt::mode(&dir.join("a.key").metadata().expect("there"));
    assert_eq!(mode & 0o077, 0);
    std::fs::write(dir.join("wrong"), "another one\n").expect("writable");
    let init = ["registry", "init", "reg", "--key", "a.key", "--passphrase-file", "wrong"];
    assert!(refused(dir, &init).contains("passphrase is wrong"));
    assert!(refused(dir, &["registry", "init", "reg"]).contains("new-key"));
    assert!(refused(dir, &["registry", "status", "nowhere"]).contains("registry init"));
}

/// The id of a key, as `status` and `rotate` know it.
fn key_id(dir: &Path, public: &str) -> String {
    let text = std::fs::read_to_string(dir.join(public)).expect("a public key");
    let key: fulmar_registry::trust::PublicKey = serde_json::from_str(&text).expect("one");
    key.key_id()
}

#[test]
fn people_sign_on_machines_of_their_own_while_keys_come_and_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    for key in ["ann", "bob", "cleo"] {
        said(dir, &["registry", "new-key", &format!("{key}.key")]);
    }
    said(dir, &["registry", "init", "reg", "--key", "ann.key"]);
    // Bob joins for the targets, and from now on both must sign.
    let add = ["registry", "add-key", "reg", "--role", "targets", "--public", "bob.key.pub"];
    let staged = said(dir, &[&add[..], &["--threshold", "2", "--key", "ann.key"]].concat());
    assert!(staged.contains("targets version 2 has 1 of 2 signatures"), "{staged}");
    assert!(!staged.contains("Published"), "a root that stops its readers: {staged}");

    // His machine does not have the registry: a file goes there and comes back.
    let request = said(dir, &["registry", "request", "reg", "--out", "ask.json"]);
    assert!(request.contains("targets version 2"), "{request}");
    let unchanged = refused(dir, &["registry", "sign-request", "ask.json", "--key", "cleo.key"]);
    assert!(unchanged.contains("no role in it wants these keys"), "{unchanged}");
    let signed = said(dir, &["registry", "sign-request", "ask.json", "--key", "bob.key"]);
    assert!(signed.contains("Signed targets"), "{signed}");
    let merged = said(dir, &["registry", "merge", "reg", "ask.json"]);
    assert!(merged.contains("snapshot version 2 has 0 of 1 signatures"), "{merged}");
    let signed = said(dir, &["registry", "sign", "reg", "--key", "ann.key"]);
    for role in ["root", "targets", "snapshot", "timestamp"] {
        assert!(signed.contains(&format!("Published {role}, version 2.")), "{signed}");
    }
    assert!(
        refused(dir, &["registry", "request", "reg", "--out", "b"]).contains("nothing is staged")
    );

    // Cleo takes Ann's place everywhere; the old root's key signs that once more.
    let ann = key_id(dir, "ann.key.pub");
    let rotate = ["registry", "rotate", "reg", "--old", &ann[..16], "--new", "cleo.key.pub"];
    let keys = ["--key", "ann.key", "--key", "bob.key", "--key", "cleo.key"];
    let rotated = said(dir, &[&rotate[..], &keys].concat());
    assert!(rotated.contains("Staged the new key for root, "), "{rotated}");
    assert!(rotated.contains("Published root, version 3."), "{rotated}");
    let status = said(dir, &["registry", "status", "reg"]);
    assert!(status.contains("A device can use it"), "{status}");
    assert!(!status.contains(&ann[..12]), "{status}");
    assert!(status.contains(&key_id(dir, "cleo.key.pub")[..12]), "{status}");
    assert!(refused(dir, &rotate).contains("no role has a key"));
    // What was ahead is taken back by a root.
    let reset = said(dir, &["registry", "reset-time", "reg", "--key", "cleo.key"]);
    assert!(reset.contains("Published root, version 4."), "{reset}");
}

/// Answers a program that waits for signatures, until it is told to stop.
fn sign_for(dir: &Path, key: &Ed25519Key, stop: &AtomicBool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
        if let Ok(message) = std::fs::read(dir.join("message")) {
            std::fs::remove_file(dir.join("message")).expect("it was there");
            let signature = key.sign(&message).expect("signed");
            std::fs::write(dir.join("signature.part"), hex::encode(signature)).expect("written");
            std::fs::rename(dir.join("signature.part"), dir.join("signature")).expect("renamed");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_program_that_holds_the_key_signs_for_its_owner() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    let hardware = tempfile::tempdir().expect("a folder");
    let key = Ed25519Key::generate().expect("a key");
    let public = serde_json::to_string(key.public()).expect("JSON");
    std::fs::write(dir.join("hsm.pub"), public).expect("writable");
    // The program asks what holds the key, and has it: this test.
    let script = "cat > \"$1/part\" && mv \"$1/part\" \"$1/message\"\n\
                  while ! mv \"$1/signature\" \"$1/taken\" 2> /dev/null; do sleep 0.02; done\n\
                  cat \"$1/taken\"\n";
    std::fs::write(dir.join("signer.sh"), script).expect("writable");
    let place = hardware.path().to_str().expect("text");
    let made = ["registry", "new-key", "owner.key", "--public", "hsm.pub", "--command"];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| sign_for(hardware.path(), &key, &stop));
        let told = said(dir, &[&made[..], &["sh", "signer.sh", place]].concat());
        assert!(told.contains(&key.key_id()), "{told}");
        let published = said(dir, &["registry", "init", "reg", "--key", "owner.key"]);
        assert!(published.contains("Published timestamp, version 1."), "{published}");
        stop.store(true, Ordering::Relaxed);
    });
    let status = said(dir, &["registry", "status", "reg"]);
    assert!(status.contains(&key.key_id()[..12]), "{status}");
    assert_eq!(key_id(dir, "owner.key.pub"), key.key_id());
    // A program that does not hold the key is found out before its file is written.
    let wrong = ["registry", "new-key", "no.key", "--public", "hsm.pub", "--command", "echo 00ff"];
    assert!(refused(dir, &wrong).contains("its signature is not one of key"));
    assert!(!dir.join("no.key").exists());
}
