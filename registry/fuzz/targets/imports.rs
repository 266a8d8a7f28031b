//! What comes from elsewhere around a model, and by hand (the first byte says which kind): answers
//! of OCI registries and hubs, an Ollama store's manifests, credentials, signatures of publishers;
//! policies, requests to sign, and files that stand for a link. None may panic.
#![no_main]

use std::sync::LazyLock;

use fulmar_policy::Policy;
use fulmar_protocol::{EnrollAnswerFile, EnrollRequestFile, ReportFile};
use fulmar_registry::import::fuzzing;
use fulmar_registry::import::model_signing::TrustedSigners;
use fulmar_registry::import::sigstore::{Identity, Keyless, TrustedRoot};
use fulmar_registry::trust::repository::SigningRequest;
use libfuzzer_sys::fuzz_target;

const ROOT: &[u8] = include_bytes!("../../src/import/sigstore/data/root.json");

/// Those whose keyless signatures are in the corpus.
static SIGNERS: LazyLock<TrustedSigners> = LazyLock::new(|| {
    let root = TrustedRoot::from_json("root.json", ROOT).expect("it is sound");
    let identity = Identity::exactly("https://id.example", "releases@acme.example");
    let identities = vec![identity.expect("it is sound")];
    TrustedSigners::default().with_keyless(Keyless { roots: vec![root], identities })
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let text = || std::str::from_utf8(data).unwrap_or("");
    match kind % 15 {
        0 => fuzzing::manifest(data),
        1 => fuzzing::challenge(text()),
        2 => fuzzing::credentials(data),
        3 => fuzzing::listing(text()),
        4 => fuzzing::content_range(text()),
        5 => fuzzing::signature(data, &SIGNERS),
        6 => {
            if let Ok(policy) = Policy::parse(data) {
                let bytes = serde_json::to_vec(&policy).expect("what was read can be written");
                Policy::parse(&bytes).expect("and read again");
            }
        }
        7 => {
            if let Ok(request) = SigningRequest::read(data) {
                let _ = request.asked_for();
                let bytes = request.to_bytes().expect("what was read can be written");
                SigningRequest::read(&bytes).expect("and read again");
            }
        }
        8 => {
            let _ = EnrollRequestFile::read(data);
        }
        9 => {
            let _ = EnrollAnswerFile::read(data);
        }
        11 => fuzzing::keyless(data),
        13 => fuzzing::found(data),
        14 => fuzzing::archive(data),
        12 => drop(TrustedRoot::from_json("root.json", data)),
        _ => {
            if let Ok(file) = ReportFile::read(data) {
                let _ = file.open(|_, _| Ok(()));
            }
        }
    }
});
