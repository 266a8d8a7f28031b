//! A Hugging Face folder, of which one file (the first byte says which) is hostile and the rest is
//! sound: converting it gives a model that can be read, or an error.
#![no_main]

use std::fmt::Write as _;
use std::fs;
use std::sync::LazyLock;

use fulmar_inference::gguf::Gguf;
use fulmar_inference::model::Architecture;
use fulmar_inference::tokenizer::Tokenizer;
use fulmar_optimize::TensorType;
use fulmar_optimize::convert::{ConvertOptions, convert};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// Files with their sound contents; weights are made by [`weights`], the vocabulary of
/// SentencePiece is there only where it is the hostile one.
const FILES: [(&str, &str); 7] = [
    ("config.json", include_str!("../corpus/folder/config.json")),
    ("tokenizer.json", include_str!("../corpus/folder/tokenizer.json")),
    ("tokenizer_config.json", include_str!("../corpus/folder/tokenizer_config.json")),
    ("tokenizer.model", ""),
    ("model.safetensors", ""),
    ("chat_template.jinja", "{{ messages }}"),
    ("generation_config.json", "{\"eos_token_id\":5}"),
];
/// Where in [`FILES`] the vocabulary lies.
const TOKENIZER: usize = 1;
const TENSORS: [(&str, &[usize]); 11] = [
    ("embed_tokens", &[6, 8]),
    ("norm", &[8]),
    ("layers.0.input_layernorm", &[8]),
    ("layers.0.self_attn.q_proj", &[8, 8]),
    ("layers.0.self_attn.k_proj", &[4, 8]),
    ("layers.0.self_attn.v_proj", &[4, 8]),
    ("layers.0.self_attn.o_proj", &[8, 8]),
    ("layers.0.post_attention_layernorm", &[8]),
    ("layers.0.mlp.gate_proj", &[16, 8]),
    ("layers.0.mlp.up_proj", &[16, 8]),
    ("layers.0.mlp.down_proj", &[8, 16]),
];

/// The folder, with all files sound.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    (0..FILES.len()).for_each(|at| restore(&folder, at));
    folder
});

/// A sound file of weights: a header of JSON behind its length, and zeros.
fn weights() -> Vec<u8> {
    let (mut header, mut end) = (String::from("{"), 0);
    for (name, shape) in TENSORS {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let comma = if start == 0 { "" } else { "," };
        write!(
            header,
            "{comma}\"model.{name}.weight\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\
             \"data_offsets\":[{start},{end}]}}"
        )
        .expect("a text");
    }
    header.push('}');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    bytes
}

/// Makes a file sound again.
fn restore(folder: &TempDir, at: usize) {
    let (name, sound) = FILES[at];
    let path = folder.path().join(name);
    match name {
        "model.safetensors" => fs::write(&path, weights()).expect("a file"),
        // It is there only where it is the hostile one.
        "tokenizer.model" => drop(fs::remove_file(&path)),
        _ => fs::write(&path, sound).expect("a file"),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((hostile, data)) = data.split_first() else { return };
    let hostile = usize::from(*hostile) % FILES.len();
    fs::write(FOLDER.path().join(FILES[hostile].0), data).expect("a file");
    // A vocabulary of SentencePiece is read where there is no other.
    let other = (FILES[hostile].0 == "tokenizer.model").then_some(TOKENIZER);
    if let Some(other) = other {
        fs::remove_file(FOLDER.path().join(FILES[other].0)).expect("it was there");
    }
    let output = FOLDER.path().join("model.gguf");
    let options = ConvertOptions { ty: TensorType::F32, name: Some("m".into()), license: None };
    if convert(FOLDER.path(), &output, &options, &mut |_| ()).is_ok() {
        let gguf = Gguf::from_bytes(fs::read(&output).expect("the file that was written"))
            .expect("what was converted can be read");
        let _ = (Architecture::from_gguf(&gguf), Tokenizer::from_gguf(&gguf));
    }
    restore(&FOLDER, hostile);
    other.into_iter().for_each(|other| restore(&FOLDER, other));
});
