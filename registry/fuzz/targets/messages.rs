//! What arrives in messages (the first byte says which kind): between device and control plane,
//! tokens, references to models elsewhere, and bundles. None may panic; a message that was read
//! and written is read again as the same.
#![no_main]

use std::io::{Seek, Write};
use std::sync::{LazyLock, Mutex};

use fulmar_policy::token::{TokenKey, Verifier};
use fulmar_protocol as protocol;
use fulmar_registry::bundle::Bundle;
use fulmar_registry::import::{hugging_face, oci};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let key = TokenKey::generate().expect("a key");
    Verifier::new([key.public()], "device")
});
static FILE: LazyLock<Mutex<NamedTempFile>> =
    LazyLock::new(|| Mutex::new(NamedTempFile::new().expect("a file")));

/// Reads a message; what was read is written and read again.
fn message<T: DeserializeOwned + Serialize>(data: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(data) else { return };
    let written = serde_json::to_value(&message).expect("what was read can be written");
    let again: T = serde_json::from_value(written.clone()).expect("and read again");
    assert_eq!(serde_json::to_value(&again).expect("and written"), written);
}

fn bundle(data: &[u8]) {
    let mut file = FILE.lock().expect("no other thread");
    let file = &mut *file;
    file.as_file().set_len(0).expect("a file");
    file.rewind().expect("a file");
    file.write_all(data).expect("a file");
    if let Ok(bundle) = Bundle::open(file.path()) {
        let _ = (bundle.check_device("device"), bundle.header().policy());
        let devices = bundle.header().devices().count();
        assert!(devices <= data.len() && bundle.header().blobs().len() <= data.len());
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 10 {
        0 => message::<protocol::EnrollRequest>(data),
        1 => message::<protocol::EnrollResponse>(data),
        2 => message::<protocol::RenewRequest>(data),
        3 => message::<protocol::CheckIn>(data),
        4 => message::<protocol::CheckInResponse>(data),
        5 => message::<protocol::OutboxBatch>(data),
        6 => message::<protocol::OutboxAck>(data),
        7 => bundle(data),
        8 => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            let _ = VERIFIER.verify(text, 1_900_000_000);
            if let Ok(token) = protocol::JoinToken::decode(text) {
                let again = protocol::JoinToken::decode(&token.encode());
                assert_eq!(again.expect("and read again").encode(), token.encode());
            }
        }
        _ => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            let _ = (hugging_face::Reference::parse(text), oci::Reference::parse(text));
            let _ = protocol::device_name_is_valid(text);
        }
    }
});
