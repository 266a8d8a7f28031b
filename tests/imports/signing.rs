//! OpenSSF model signing: bundles made by the `model-signing` package, held against keys and roots.

use std::path::Path;
use std::process::Command;

use fulmar_tests::{client, python, root, text};

use crate::servers::{Servers, model};

/// Signs the model in all ways, into `dir`.
pub(crate) fn signed(dir: &Path) {
    let output = Command::new(python())
        .arg(root().join("tests/imports/sign.py"))
        .args([text(dir), text(&model())])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::copy(model(), dir.join("tiny.gguf")).unwrap();
}

#[test]
fn a_file_with_a_bundle_comes_in_only_when_a_trusted_signer_made_it() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    signed(dir.path());
    let file = dir.path().join("tiny.gguf");
    let device = dir.path().join("device");
    let pull = ["pull", text(&file), "--json"];
    let list = |name: &str| format!("[\"{}\"]", text(&dir.path().join(name)));
    let (key, other, top) = (list("key.pem"), list("other.pem"), list("root.pem"));
    let keys = |list| vec![("FULMAR__REGISTRY__SIGNING_KEYS", list)];
    let roots = vec![("FULMAR__REGISTRY__SIGNING_ROOTS", top.as_str())];
    let put = |bundle: &str| {
        std::fs::copy(dir.path().join(bundle), dir.path().join("tiny.gguf.sig")).unwrap();
    };

    let refusing = [("FULMAR__REGISTRY__UNSIGNED_IMPORTS", "refused")];
    let refused = servers.refused(&device, &pull, &refusing);
    assert!(refused.contains("has not signed it"), "{refused}");

    for (bundle, trusted, expected) in [
        ("key.sig", vec![], "trusted are none"),
        ("key.sig", keys(other.as_str()), "no trusted key made it"),
        ("changed.sig", keys(key.as_str()), "no trusted key made it"),
        ("keyless.sig", keys(key.as_str()), "no trusted root of Sigstore is known"),
        ("chain.sig", keys(key.as_str()), "certificate: UnknownIssuer"),
        ("folder.sig", keys(key.as_str()), "tiny.gguf is not among them"),
    ] {
        put(bundle);
        let refused = servers.refused(&device, &pull, &trusted);
        assert!(refused.contains(expected), "{bundle}: {refused}");
        let listed = servers.json(&device, &["list", "--json"], &[]);
        assert_eq!(listed, serde_json::json!([]), "{bundle}");
    }

    put("key.sig");
    let pulled = servers.json(&device, &pull, &keys(key.as_str()));
    assert_eq!(pulled["publisher"]["signature"], "verified");
    put("chain.sig");
    let pulled = servers.json(&device, &pull, &roots);
    assert!(pulled["publisher"]["signer"].as_str().unwrap().contains("Acme models"));
    let ignoring = ["pull", text(&file), "--json", "--ignore-signature"];
    let pulled = servers.json(&device, &ignoring, &[]);
    assert_eq!(pulled["publisher"]["signature"], "ignored");
    let refused = servers.refused(&device, &ignoring, &refusing);
    assert!(refused.contains("unsigned_imports"), "{refused}");
    // Other weights under the same signature.
    put("key.sig");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.push(0);
    std::fs::write(&file, bytes).unwrap();
    let refused = servers.refused(&device, &pull, &keys(key.as_str()));
    assert!(refused.contains("was signed as sha256:"), "{refused}");
}

#[test]
fn a_repository_with_a_bundle_is_checked_before_its_weights_are_fetched() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    signed(dir.path());
    let bundle = std::fs::read(dir.path().join("folder.sig")).unwrap();
    let url = format!("http://{}/files/model.sig", servers.said("hub"));
    assert!(client().put(url).body(bundle).send().unwrap().status().is_success());
    let device = dir.path().join("device");
    let pull = ["pull", "hf.co/acme/tiny:Q8_0", "--json"];
    let refused = servers.refused(&device, &pull, &[]);
    assert!(refused.contains("registry.signing_keys"), "{refused}");
    assert_eq!(servers.seen()["asked"], serde_json::json!([]), "not a byte was fetched");
    let keys = format!("[\"{}\"]", text(&dir.path().join("key.pem")));
    let pulled = servers.json(&device, &pull, &[("FULMAR__REGISTRY__SIGNING_KEYS", &keys)]);
    assert_eq!(pulled["publisher"]["signature"], "verified");
    let log = servers.fulmar(&device, &["audit", "list", "--json"], &[]);
    assert!(log.stdout.contains("verified"), "{}", log.stdout);
}
