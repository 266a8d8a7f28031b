//! `fulmar debug`, run as a program over sample models.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn fulmar(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fulmar")).args(arguments).output().expect("the program starts")
}

/// Runs the program over lines of JSON.
fn answers(arguments: &[&str], lines: &str) -> Vec<serde_json::Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(lines.as_bytes()).expect("the program reads");
    drop(input);
    let output = child.wait_with_output().expect("the program ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
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
fn a_file_whose_vocabulary_cannot_be_used_is_refused_though_it_computes() {
    let (_folder, model) = sample("llama");
    let mut bytes = std::fs::read(&model).expect("written");
    // The end token's id stands behind the key's name and the value's type.
    let key = b"tokenizer.ggml.eos_token_id";
    let at = bytes.windows(key.len()).position(|w| w == key).expect("is there") + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&1_000_000_u32.to_le_bytes());
    std::fs::write(&model, &bytes).expect("writable");
    let checked = fulmar(&["debug", "check", &model]);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("vocabulary") && said.contains("1000000"), "{said}");
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

#[test]
fn tokens_come_back_as_the_text_they_were_and_special_ones_are_not_parsed() {
    let (_folder, model) = sample("qwen3");
    let lines = "{\"text\": \"the other <|im_end|>\"}\n{\"text\": \"\"}\n";
    let tokenized = answers(&["debug", "tokenize", &model], lines);
    let ids = tokenized[0]["ids"].as_array().expect("ids");
    assert!(!ids.is_empty() && ids.iter().all(|id| id.as_u64() < Some(266)), "{ids:?}");
    let given: String = tokenized.iter().map(|line| format!("{line}\n")).collect();
    let texts = answers(&["debug", "detokenize", &model], &given);
    assert_eq!(texts[0]["text"], "the other <|im_end|>");
    assert_eq!(texts[1]["text"], "");
}

#[test]
fn a_conversation_is_rendered_or_says_why_not() {
    let (folder, model) = sample("llama");
    let conversation =
        r#"{"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": true}"#;
    let rendered = answers(&["debug", "render", &model], conversation);
    assert_eq!(rendered[0]["text"], "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n");
    let template = path(&folder, "broken.jinja");
    std::fs::write(&template, "{{ raise_exception('no') }}").expect("writable");
    let refused = answers(&["debug", "render", &template], conversation);
    assert!(refused[0]["error"].as_str().is_some_and(|e| e.contains("no")), "{refused:?}");
}

#[test]
fn the_engine_continues_a_prompt_as_a_backend_alone_does() {
    let (_folder, model) = sample("gemma3");
    let lines = "{\"text\": \"the other\", \"add\": 12}\n{\"ids\": [5, 6, 7], \"add\": 12}\n";
    let alone = answers(&["debug", "greedy", &model, "--backend", "candle"], lines);
    let together = answers(&["debug", "generate", &model, "--backend", "candle"], lines);
    for (alone, together) in alone.iter().zip(&together) {
        let (alone, together) = (alone["ids"].as_array(), together["ids"].as_array());
        let len = together.map_or(0, Vec::len);
        assert_eq!(alone.map(|ids| &ids[..len]), together.map(|ids| &ids[..]));
    }
}
