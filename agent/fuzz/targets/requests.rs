//! What people and programs hand to the agent and to the control plane (the first byte says which
//! kind): bodies of the OpenAI and Ollama APIs and of the operators' API, headers, queries,
//! configurations, and tokens whose signature holds. None may panic.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fulmar::fuzzing as agent;
use fulmar_control::fuzzing as control_plane;
use fulmar_policy::token::{TokenKey, Verifier};
use libfuzzer_sys::fuzz_target;
use ring::signature::Ed25519KeyPair;

struct Signer {
    key: Ed25519KeyPair,
    /// The head of its tokens, encoded.
    head: String,
    verifier: Verifier,
}

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let token_key = TokenKey::generate().expect("a key");
    let head = format!(r#"{{"typ":"JWT","alg":"EdDSA","kid":"{}"}}"#, token_key.id());
    Signer {
        key: Ed25519KeyPair::from_pkcs8(token_key.to_pkcs8()).expect("the same key"),
        head: URL_SAFE_NO_PAD.encode(head),
        verifier: Verifier::new([token_key.public()], "device"),
    }
});

/// A token whose claims are any bytes, signed as the device would.
fn token(claims: &[u8]) {
    let signed = format!("{}.{}", SIGNER.head, URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(SIGNER.key.sign(signed.as_bytes()));
    let _ = SIGNER.verifier.verify(&format!("{signed}.{signature}"), 1_900_000_000);
}

/// A configuration, and where a NUL stands in it, a variable behind it.
fn config(text: &str) {
    let (file, variable) = text.split_once('\0').unwrap_or((text, ""));
    let variable = variable.split_once('=');
    let name = variable.map(|(name, value)| (format!("FULMAR__{name}"), value));
    agent::config(file, name.as_ref().map(|(name, value)| (name.as_str(), *value)));
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let text = || std::str::from_utf8(data).unwrap_or("");
    match kind % 32 {
        0 => agent::chat(data),
        1 => agent::completion(data),
        2 => agent::embeddings(data),
        3 => agent::ollama_chat(data),
        4 => agent::ollama_generate(data),
        5 => agent::ollama_embed(data),
        6 => agent::ollama_show(data),
        7 => agent::search(text()),
        8 => agent::patience(text()),
        9 => config(text()),
        10 => token(data),
        11 => control_plane::config(text()),
        12 => control_plane::headers(data),
        13 => control_plane::range(text(), 1 << 40),
        route => control_plane::body(route, data),
    }
});
