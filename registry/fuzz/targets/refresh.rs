//! Metadata that is signed but hostile: the first byte says which role, the rest is its signed
//! part. It is signed with a key that the root names, so that the fuzzer gets past the signatures
//! to all the rules behind them.
#![no_main]

use std::sync::LazyLock;

use fulmar_registry::trust::director::DirectorSigner;
use fulmar_registry::trust::{
    Ed25519Key, Fetched, Refresh, Repo, Scope, SigningKey, Trusted, canonical_json,
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const NOW_S: i64 = 1_900_000_000;
const EXPIRES: &str = "2099-01-01T00:00:00Z";

static SIGNER: LazyLock<Ed25519Key> = LazyLock::new(|| Ed25519Key::generate().expect("a key"));
static ROOT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let copy = Ed25519Key::from_pkcs8(SIGNER.to_pkcs8()).expect("the same key");
    DirectorSigner::new(copy).root(4_000_000_000).expect("a root")
});

fn signed(value: &Value) -> Option<Vec<u8>> {
    let message = canonical_json(value).ok()?;
    let sig: String =
        SIGNER.sign(&message).ok()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let signatures = json!([{ "keyid": SIGNER.key_id(), "sig": sig }]);
    serde_json::to_vec(&json!({ "signatures": signatures, "signed": value })).ok()
}

/// A sound file of `kind` that lists `file` at `version`.
fn listing(kind: &str, file: &str, version: &Value) -> Option<Vec<u8>> {
    signed(&json!({
        "_type": kind, "spec_version": "1.0", "version": 1, "expires": EXPIRES,
        "meta": { file: { "version": version } },
    }))
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let Ok(value) = serde_json::from_slice::<Value>(rest) else { return };
    let Some(file) = signed(&value) else { return };
    let version = value.get("version").cloned().unwrap_or(json!(1));
    let trusted = Trusted::from_root(Repo::Director, ROOT.clone()).expect("the root is sound");
    let mut refresh =
        Refresh::new(trusted, NOW_S).scope(Scope::Paths(vec!["a/b/c.json".into(), "x".into()]));
    let mut fed = false;
    while let Some(want) = refresh.next() {
        let stage = match want.file_name.as_str() {
            "2.root.json" => 0,
            "timestamp.json" => 1,
            "snapshot.json" => 2,
            "targets.json" => 3,
            _ => 4,
        };
        let bytes = if stage == kind % 4 && !fed {
            fed = true;
            Some(file.clone())
        } else {
            match stage {
                1 if kind % 4 == 2 => listing("timestamp", "snapshot.json", &version),
                1 => listing("timestamp", "snapshot.json", &json!(1)),
                2 => listing("snapshot", "targets.json", &version),
                _ => None,
            }
        };
        if refresh.feed(bytes.map_or(Fetched::NotFound, Fetched::Found)).is_err() {
            break;
        }
    }
    let trusted = refresh.into_progress();
    let _ = trusted.check_expiry(NOW_S);
    for (path, entry) in trusted.targets() {
        assert_eq!(trusted.target(path), Some(entry));
        let _ = entry.verify(path, b"bytes");
    }
});
