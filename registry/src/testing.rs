//! What the crate's own tests share.

use crate::manifest::{FileRole, Health, Manifest, ManifestFile, SizeClass};

/// A manifest of one file with these bytes as weights.
pub(crate) fn manifest(name: &str, release: u64, weights: &[u8]) -> Manifest {
    let file = ManifestFile::describe(
        &mut &weights[..],
        Vec::new(),
        FileRole::Weights,
        "model.gguf",
        "application/vnd.fulmar.gguf",
    )
    .unwrap();
    Manifest {
        schema: 1,
        name: name.parse().unwrap(),
        release,
        created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        files: vec![file],
        architecture: "qwen3".into(),
        parameters: 5_000_000,
        size_class: SizeClass::of(5_000_000),
        quantization: "Q8_0".into(),
        context_tokens: 512,
        license: "MIT".into(),
        source: String::new(),
        template: String::new(),
        evaluation: Vec::new(),
        memory_bytes: 0,
        health: Health::default(),
    }
}
