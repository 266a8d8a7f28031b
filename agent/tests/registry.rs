//! `fulmar registry`, run as a program: two owners and a team, each with a key of their own.

use std::path::Path;
use std::process::{Command, Output};

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
