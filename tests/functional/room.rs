//! Room on the disk: what a collection frees, and what it leaves.

use fulmar_tests::{Process, fulmar_ok, json_of, root, text};

#[test]
fn a_collection_by_hand_leaves_what_the_running_agent_has_in_its_engine() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("device");
    let model = root().join("packaging/demo-model/fulmar-demo.gguf");
    let serve = ["serve", "--dir", text(&place), "--model", text(&model)];
    let more = ["--listen", "127.0.0.1:0", "--ready-json", "--until-stdin-closes"];
    let agent = Process::start(&[&serve[..], &more].concat());
    let name = "local/fulmar-demo:latest";
    let at = ["--dir", text(&place)];
    let shown = json_of(&[&["show", name, "--json"][..], &at].concat());
    let weights = shown["weights_digest"].as_str().unwrap().to_owned();
    let hex = weights.trim_start_matches("sha256:");
    let blob = place.join("registry/blobs/sha256").join(&hex[..2]).join(hex);
    let gc = |more: &[&str]| json_of(&[&["gc", "--json"], more, &at].concat());
    assert_eq!(gc(&["--dry-run"])["bytes"], 0);

    // The catalog does not know it any more; the engine answers from it.
    let _ = fulmar_ok(&[&["rm", name][..], &at].concat());
    let planned = gc(&["--dry-run"]);
    assert_eq!((&planned["bytes"], &planned["dry_run"]), (&0.into(), &true.into()), "{planned}");
    assert_eq!(gc(&[])["bytes"], 0);
    assert!(blob.is_file(), "what runs was freed");
    assert_eq!(agent.stop(), 0);

    let size = model.metadata().unwrap().len();
    let planned = gc(&["--dry-run"]);
    assert_eq!(planned["garbage"]["blobs"], serde_json::json!([[weights, size]]), "{planned}");
    assert!(blob.is_file(), "only said, not done");
    assert_eq!(gc(&[])["garbage"], planned["garbage"]);
    assert!(!blob.exists());
}
