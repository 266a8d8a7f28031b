//! Checks against conformance material that is not part of this repository: the folder that
//! `FULMAR_CONFORMANCE` names (see the engine's documentation for what it holds). Without the
//! variable nothing is checked here; the same rules have tests of our own beside the code.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::path::PathBuf;

use fulmar_inference::gguf::Gguf;

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
