//! OpenSSF model signing, keyless: bundles of a Sigstore of our own, which the `sigstore` package
//! accepts too, and attacks on each step of verifying them.

use std::path::PathBuf;
use std::process::Command;

use fulmar_tests::{python, root, text};

use crate::servers::{Servers, model};

const ISSUER: &str = "https://id.example";
const SUBJECT: &str = "releases@acme.example";

/// A model, with roots and bundles in all ways beside it.
struct Signed {
    servers: Servers,
    dir: tempfile::TempDir,
}

impl Signed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(python())
            .arg(root().join("tests/imports/keyless.py"))
            .args([text(dir.path()), text(&model())])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::copy(model(), dir.path().join("tiny.gguf")).unwrap();
        Self { servers: Servers::start(), dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn device(&self) -> PathBuf {
        self.at("device")
    }

    /// Puts a bundle beside the model.
    fn put(&self, bundle: &str) {
        std::fs::copy(self.at(&format!("{bundle}.sig")), self.at("tiny.gguf.sig")).unwrap();
    }

    /// Settings with that root and that identity, in TOML's words.
    fn trusting(&self, root: &str, identity: &str) -> [(&'static str, String); 2] {
        let root = self.at(&format!("{root}.json"));
        [
            ("FULMAR__REGISTRY__SIGNING_TRUSTED_ROOTS", format!("[\"{}\"]", text(&root))),
            ("FULMAR__REGISTRY__SIGNING_IDENTITIES", format!("[{identity}]")),
        ]
    }

    fn refused(&self, bundle: &str, settings: &[(&str, String)]) -> String {
        self.put(bundle);
        let settings: Vec<_> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let file = self.at("tiny.gguf");
        self.servers.refused(&self.device(), &["pull", text(&file), "--json"], &settings)
    }

    /// Who has signed, as the import says it.
    fn signer(&self, bundle: &str, settings: &[(&str, String)]) -> String {
        self.put(bundle);
        let settings: Vec<_> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let file = self.at("tiny.gguf");
        let pulled = self.servers.json(&self.device(), &["pull", text(&file), "--json"], &settings);
        assert_eq!(pulled["publisher"]["signature"], "verified", "{bundle}: {pulled}");
        pulled["publisher"]["signer"].as_str().unwrap().to_owned()
    }
}

fn exactly(issuer: &str, subject: &str) -> String {
    format!("{{ issuer = '{issuer}', subject = '{subject}' }}")
}

fn matching(pattern: &str) -> String {
    format!("{{ issuer = '{ISSUER}', subject_pattern = '{pattern}' }}")
}

#[test]
fn a_keyless_signature_of_each_kind_counts_when_its_signer_is_accepted() {
    let signed = Signed::new();
    let settings = signed.trusting("root", &exactly(ISSUER, SUBJECT));
    for bundle in [
        "good-dsse",
        "good-dsse-2",
        "good-hashedrekord-2",
        "good-intoto",
        "good-promised",
        "good-p384",
        "good-ed25519",
        "good-old-issuer",
        "good-new-issuer",
        "good-stamped",
    ] {
        let signer = signed.signer(bundle, &settings);
        assert!(signer.starts_with(&format!("{SUBJECT} of {ISSUER}, signed at 20")), "{signer}");
    }
    let releases = r"^https://forge\.example/acme/[a-z]+/\.workflows/release\.yml@refs/tags/.*$";
    let signer = signed.signer("workflow", &signed.trusting("root", &matching(releases)));
    assert!(signer.contains("/acme/models/"), "{signer}");
    let user = exactly(ISSUER, "pump!acme.example");
    assert!(signed.signer("user", &signed.trusting("root", &user)).starts_with("pump!acme"));
    // A log's word on the time is enough where no timestamp authority is trusted.
    let settings = signed.trusting("no-timestamps", &exactly(ISSUER, SUBJECT));
    signed.signer("good-stamped", &settings);
}

#[test]
fn nothing_is_trusted_that_the_owner_has_not_named() {
    let signed = Signed::new();
    let (root, someone) = (signed.trusting("root", ""), exactly(ISSUER, SUBJECT));
    for (settings, expected) in [
        (&[][..], "no trusted root of Sigstore is known here"),
        (&root[..], "no identity is accepted here"),
        (&signed.trusting("root", &exactly(ISSUER, "other@acme.example")), "signed by releases@"),
        (&signed.trusting("root", &exactly("https://other", SUBJECT)), "signed by releases@"),
        (&signed.trusting("root", &matching("^releases@acme$")), "accepted are ^releases@acme$"),
        (&signed.trusting("root", &matching("acme")), "must begin with ^ and end with $"),
        (&signed.trusting("root", &format!("{{ issuer = '{ISSUER}' }}")), "has neither"),
        (&signed.trusting("missing", &someone), "missing.json"),
        (&signed.trusting("old-ca", &someone), "no certificate authority is trusted for"),
        (&signed.trusting("old-log", &someone), "rekor.test"),
        (&signed.trusting("old-ctlog", &someone), "its promise is of"),
        (&signed.trusting("other-ctlog", &someone), "trusted are https://ctfe.test"),
    ] {
        let refused = signed.refused("good-dsse", settings);
        assert!(refused.contains(expected), "{settings:?}: {refused}");
    }
    let listed = signed.servers.json(&signed.device(), &["list", "--json"], &[]);
    assert_eq!(listed, serde_json::json!([]));
}

#[test]
fn every_step_of_verifying_a_keyless_signature_refuses_its_own_attack() {
    let signed = Signed::new();
    let settings = signed.trusting("root", &exactly(ISSUER, SUBJECT));
    for (bundle, expected) in [
        ("newer", "mediaType is"),
        ("other-issuer", "signed by releases@acme.example of https://evil.example; accepted are"),
        ("two-issuers", "issuer extension"),
        ("two-names", "subject alternative name is \"2 names\""),
        ("workflow", "signed by https://forge.example/acme/models"),
        ("stranger", "does not lead to a trusted authority"),
        ("expired", "CertExpired"),
        ("too-early", "CertNotValidYet"),
        ("future", "this device's clock says"),
        ("no-purpose", "extended key usage is \"missing\", expected code signing"),
        ("not-logged", "no signed certificate timestamp"),
        ("other-ct", "a promise of log"),
        ("ct-of-another", "the promise is not of log https://ctfe.test"),
        ("root-in-bundle", "with the root"),
        ("chain-in-3", "the signer's certificate alone"),
        ("no-entry", "tlogEntries is \"0\""),
        ("unknown-log", "trusted are https://rekor.test"),
        ("log-signed-by-another", "none of its 1 signatures is of key"),
        ("wrong-proof", "entry 4 of 6 leads to root"),
        ("short-proof", "too few for entry 4 of 6"),
        ("other-index", "inclusion proof"),
        ("outside-tree", "expected one within the tree"),
        ("other-tree", "it is of a tree of 7 entries"),
        ("no-checkpoint", "checkpoint of log https://rekor.test"),
        ("no-proof", "inclusionProof is \"missing\""),
        ("later", "the signed entry timestamp is not of log https://rekor.test"),
        ("unsigned-time", "nobody who is trusted says when"),
        ("no-time", "nobody who is trusted says when"),
        ("time-of-another", "a timestamp does not count: it is of"),
        ("time-by-another", "another certificate than the trusted one"),
        ("time-too-late", "CertExpired"),
        ("second-time-too-late", "CertExpired"),
        ("other-kind", "the log entry's kind is \"dsse 0.0.1\", expected dsse 0.0.2"),
        ("kind-of-files", "the log entry's kind is \"hashedrekord 0.0.1\""),
        ("entry-of-another", "the log entry's payload hash is"),
        ("entry-of-another-payload", "the log entry's payload hash is"),
        ("entry-of-another-signature", "the log entry's signature is"),
        ("entry-of-another-certificate", "the log entry's certificate is"),
        ("tampered", "the log entry's payload hash is"),
        ("elsewhere", "was signed as sha256:"),
    ] {
        let refused = signed.refused(bundle, &settings);
        assert!(refused.contains(expected), "{bundle}: {refused}");
    }
    let listed = signed.servers.json(&signed.device(), &["list", "--json"], &[]);
    assert_eq!(listed, serde_json::json!([]));
}

#[test]
fn one_import_can_name_its_signer_unless_the_owner_says_who_counts() {
    let signed = Signed::new();
    signed.put("good-dsse");
    let (file, root) = (signed.at("tiny.gguf"), signed.at("root.json"));
    let pull = |who: &'static str| {
        let named = ["--identity", who, "--identity-provider", ISSUER];
        let pull = ["pull", text(&file), "--json", "--trusted-root", text(&root)];
        [&pull[..], &named[..]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |arguments: &[String], settings: &[(&str, &str)]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        signed.servers.fulmar(&signed.device(), &arguments, settings)
    };
    let refused = run(&pull("other@acme.example"), &[]);
    assert!(refused.stderr.contains("accepted are other@acme.example"), "{}", refused.stderr);
    let refusing = [("FULMAR__REGISTRY__UNSIGNED_IMPORTS", "refused")];
    let refused = run(&pull(SUBJECT), &refusing);
    assert!(refused.stderr.contains("registry.signing_trusted_roots"), "{}", refused.stderr);
    let pulled = run(&pull(SUBJECT), &[]);
    assert!(pulled.code == 0 && pulled.stdout.contains("verified"), "{}", pulled.stderr);
    // Who has signed is in the audit log.
    let log = signed.servers.fulmar(&signed.device(), &["audit", "list", "--json"], &[]);
    assert!(log.stdout.contains(SUBJECT), "{}", log.stdout);
    // And where unsigned imports are refused, those count whom the owner has named.
    let settings = signed.trusting("root", &exactly(ISSUER, SUBJECT));
    let mut settings: Vec<_> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    settings.extend(refusing);
    let again = signed.servers.json(&signed.device(), &["pull", text(&file), "--json"], &settings);
    assert_eq!(again["publisher"]["signature"], "verified");
}
