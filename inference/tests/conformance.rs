//! Checks against conformance material that is not part of this repository: the folder that
//! `FULMAR_CONFORMANCE` names (see the engine's documentation for what it holds). Without the
//! variable nothing is checked here; the same rules have tests of our own beside the code.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::path::PathBuf;

use fulmar_inference::chat::{ChatTemplate, RenderInput};
use fulmar_inference::gguf::Gguf;
use fulmar_inference::tokenizer::{Special, Tokenizer};

/// The files in a folder of the material, sorted; nothing when there is no material.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let Some(root) = std::env::var_os("FULMAR_CONFORMANCE") else { return Vec::new() };
    let mut files: Vec<PathBuf> = std::fs::read_dir(PathBuf::from(root).join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(ending))
        .collect();
    files.sort();
    files
}

#[test]
fn malformed_files_are_refused_and_none_panics() {
    let mut wrong = Vec::new();
    for path in files("badgguf", ".gguf") {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let result = Gguf::open(&path);
        let structural = ["header_", "kv_", "tensor_", "data_"].iter().any(|p| name.starts_with(p));
        let free = ["kv_bool_2", "tensor_overlap"].contains(&name.as_str());
        println!("{name}: {}", result.as_ref().map_or_else(|e| e.to_string(), |_| "ok".into()));
        if structural && !free && result.is_ok() {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "not refused: {wrong:?}");
}

#[test]
fn whole_models_are_read() {
    for folder in ["qwen3", "phi3", "gemma3", "llama3", "bitnet", "bitnet-b158", "tokenizers"] {
        for path in files(folder, ".gguf") {
            let gguf = Gguf::open(&path).unwrap();
            for tensor in gguf.tensors() {
                let tensor = gguf.tensor(&tensor.name).unwrap();
                assert_eq!(tensor.data.len(), tensor.info.size_bytes);
            }
        }
    }
}

#[test]
fn texts_become_the_reference_tokenizers_ids_and_come_back() {
    let vocabularies = [
        ("llama-bpe", "llama-bpe"),
        ("llama-spm", "llama-spm"),
        ("o200k", "o200k"),
        ("phi-3", "phi-3-spm"),
        ("qwen2", "qwen2"),
    ];
    for (vocabulary, rows) in vocabularies {
        let file = format!("ggml-vocab-{vocabulary}.gguf");
        let Some(path) = files("tokenizers", &file).pop() else { continue };
        let gguf = Gguf::open(&path).unwrap();
        let started = std::time::Instant::now();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        println!("{vocabulary}: {} tokens in {:?}", tokenizer.vocab_len(), started.elapsed());
        let text = std::fs::read_to_string(path.with_file_name(format!("{rows}.jsonl"))).unwrap();
        let mut wrong = 0;
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let expected: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            let ids = tokenizer.encode(row["text"].as_str().unwrap(), Special::Plain);
            if ids != expected {
                wrong += 1;
                if wrong <= 3 {
                    println!("{vocabulary}: {}: {ids:?}, expected {expected:?}", row["text"]);
                }
            }
        }
        assert_eq!(wrong, 0, "{vocabulary}");
    }
}

#[test]
fn whole_prompts_become_the_references_ids_and_answers_its_bytes() {
    for folder in ["qwen3", "phi3", "gemma3", "llama3", "bitnet", "bitnet-b158"] {
        let Some(path) = files(folder, "s-f32.gguf").pop() else { continue };
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let rows = std::fs::read_to_string(path.with_file_name("e2e.json")).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
        for row in rows {
            let ids = |key: &str| -> Vec<u32> { serde_json::from_value(row[key].clone()).unwrap() };
            let mut found = tokenizer.encode(row["rendered"].as_str().unwrap(), Special::Parse);
            if row["chat"] == false && tokenizer.add_bos() {
                found.splice(..0, tokenizer.bos());
            }
            assert_eq!(found, ids("prompt_ids"), "{folder}: {}", row["rendered"]);
            let bytes: Vec<u8> = ids("greedy_ids")
                .iter()
                .flat_map(|id| tokenizer.token_bytes(*id))
                .copied()
                .collect();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, row["greedy_bytes_hex"].as_str().unwrap(), "{folder}");
        }
    }
}

#[test]
fn conversations_render_as_transformers_renders_them() {
    for path in files("chat", ".jinja") {
        let source = std::fs::read_to_string(&path).unwrap();
        let rows = std::fs::read_to_string(path.with_extension("json")).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
        for row in rows {
            let text = |key: &str| row[key].as_str().unwrap_or_default();
            let template =
                ChatTemplate::from_source(&source, text("bos_token"), text("eos_token")).unwrap();
            let rendered = template.render(&RenderInput {
                messages: row["messages"].as_array().unwrap(),
                tools: Some(&row["tools"]),
                kwargs: &row["kwargs"],
                add_generation_prompt: row["add_generation_prompt"] == true,
                now_s: 0,
            });
            let place = format!("{}: {}", path.display(), row["name"]);
            match row["expected"].as_str() {
                Some(expected) => assert_eq!(rendered.unwrap(), expected, "{place}"),
                None => {
                    let refused = rendered.unwrap_err().to_string();
                    let expected = text("error").split_once(": ").unwrap().1;
                    assert!(refused.ends_with(expected), "{place}: {refused}");
                }
            }
        }
    }
}

#[test]
fn templates_in_malformed_files_end() {
    for path in files("badgguf", ".gguf") {
        let Ok(gguf) = Gguf::open(&path) else { continue };
        let started = std::time::Instant::now();
        let result = Tokenizer::from_gguf(&gguf).map_err(|error| error.to_string());
        let result = result.and_then(|tokenizer| {
            let template = ChatTemplate::from_gguf(&gguf, &tokenizer).map_err(|e| e.to_string())?;
            let Some(template) = template else { return Ok(String::new()) };
            let messages = [serde_json::json!({"role": "user", "content": "Hello"})];
            let input = RenderInput {
                messages: &messages,
                tools: None,
                kwargs: &serde_json::Value::Null,
                add_generation_prompt: true,
                now_s: 0,
            };
            template.render(&input).map_err(|error| error.to_string())
        });
        println!("{}: {result:?} in {:?}", path.display(), started.elapsed());
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
    }
}
