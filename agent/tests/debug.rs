//! `fulmar debug`, run as a program over sample models.

use std::path::Path;
use std::process::{Command, Output};

fn fulmar(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fulmar")).args(arguments).output().expect("the program starts")
}

fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

/// A folder with a sample model in it.
fn sample(family: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = path(&folder, "model.gguf");
    let made = fulmar(&["debug", "sample", family, "-o", &model]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (folder, model)
}

#[test]
fn a_sample_of_every_family_passes_the_check() {
    for family in ["llama", "qwen2", "qwen3", "phi3", "gemma3", "bitnet", "bitnet-b1.58"] {
        let (_folder, model) = sample(family);
        let checked = fulmar(&["debug", "check", &model]);
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success() && said.starts_with(family), "{family}: {said}");
    }
}

#[test]
fn a_refused_file_ends_with_1_and_one_line_of_reason() {
    let (_folder, model) = sample("llama");
    let bytes = std::fs::read(&model).expect("written");
    std::fs::write(&model, &bytes[..bytes.len() / 2]).expect("writable");
    let checked = fulmar(&["debug", "check", &model]);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.code(), Some(1));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("refused: ") && said.contains("needs"), "{said}");
}

#[test]
fn logits_are_written_for_the_last_positions_of_each_sequence() {
    let (folder, model) = sample("qwen3");
    let sequences = path(&folder, "sequences.json");
    let out = path(&folder, "out.npz");
    let json = r#"{"sequences": {
        "a": {"tokens": [1, 2, 3, 4, 5], "prefill": 2, "n_ctx": 64},
        "b": {"tokens": [7], "prefill": 1, "n_ctx": 64}}, "family": "ignored"}"#;
    std::fs::write(&sequences, json).expect("writable");
    let arguments =
        ["debug", "logits", &model, "--sequences", &sequences, "--last", "4", "-o", &out];
    let done = fulmar(&arguments);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let archive =
        String::from_utf8_lossy(&std::fs::read(Path::new(&out)).expect("written")).into_owned();
    for part in ["a.logits.npy", "(4, 269)", "b.logits.npy", "(1, 269)"] {
        assert!(archive.contains(part), "{part}");
    }
}

#[test]
fn a_sequence_against_the_rules_is_refused_by_its_name() {
    let (folder, model) = sample("llama");
    let sequences = path(&folder, "sequences.json");
    let out = path(&folder, "out.npz");
    for (json, part) in [
        (r#"{"tokens": [1], "prefill": 2, "n_ctx": 64}"#, "prefill 2"),
        (r#"{"tokens": [1, 2], "prefill": 1, "n_ctx": 1}"#, "n_ctx 1"),
        (r#"{"tokens": [269], "prefill": 1, "n_ctx": 64}"#, "token 269"),
    ] {
        std::fs::write(&sequences, format!(r#"{{"sequences": {{"odd": {json}}}}}"#))
            .expect("writable");
        let done = fulmar(&["debug", "logits", &model, "--sequences", &sequences, "-o", &out]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1));
        assert!(said.contains("\"odd\"") && said.contains(part), "{said}");
    }
}
