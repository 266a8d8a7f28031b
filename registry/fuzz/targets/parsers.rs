//! Every parser of the registry that reads outside bytes: none may panic, and what is read and
//! written again stays the same.
#![no_main]

use fulmar_registry::trust::{Date, Ed25519Key, Repo, Trusted, canonical_json};
use fulmar_registry::{Digest, Manifest, ModelName, ModelRef};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Trusted::from_root(Repo::Registry, data.to_vec());
    if let Ok(manifest) = Manifest::parse(data) {
        let bytes = manifest.to_bytes().expect("a manifest that was read can be written");
        assert_eq!(Manifest::parse(&bytes).expect("and read again"), manifest);
    }
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(data)
        && let Ok(bytes) = canonical_json(&value)
        && let Ok(again) = serde_json::from_slice::<serde_json::Value>(&bytes)
    {
        assert_eq!(again, value);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Ed25519Key::from_file_text(text, None);
    if let Some(date) = Date::parse(text) {
        assert_eq!(date.to_string(), text);
    }
    if let Ok(name) = text.parse::<ModelName>() {
        assert_eq!(ModelName::from_target_path(&name.target_path()).as_ref(), Ok(&name));
        assert_eq!(name.to_string().parse().as_ref(), Ok(&name));
    }
    let _ = ModelName::from_target_path(text);
    if let Ok(reference) = text.parse::<ModelRef>() {
        let again: ModelRef = reference.to_string().parse().expect("and read again");
        assert_eq!(again, reference);
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
});
