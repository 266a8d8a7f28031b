//! Repositories of safetensors alone, which are converted on the device.

use std::path::{Path, PathBuf};
use std::process::Command;

use fulmar_tests::{client, python, root, text};
use serde_json::json;

use crate::servers::{Servers, model};

/// A Hugging Face folder with a random model.
fn folder(dir: &Path) -> PathBuf {
    let folder = dir.join("folder");
    let script = root().join("tests/functional/make_folder.py");
    let made = Command::new(python()).args([&script, &folder]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(folder.join("adapter_model.safetensors"), "nothing that is read").unwrap();
    folder
}

/// Puts a file into the hub's repository of safetensors.
fn put(servers: &Servers, name: &str, bytes: Vec<u8>) {
    let url = format!("http://{}/checkpoint/{name}", servers.said("hub"));
    assert!(client().put(url).body(bytes).send().unwrap().status().is_success());
}

/// Puts all of a folder there.
fn publish(servers: &Servers, folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        put(servers, &name, std::fs::read(&path).unwrap());
    }
}

#[test]
fn a_repository_of_safetensors_is_converted_quantised_and_answers() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    publish(&servers, &folder(dir.path()));
    let device = dir.path().join("device");
    let pull = ["pull", "hf.co/acme/checkpoint:Q8_0", "--json"];
    let pulled = servers.json(&device, &pull, &[]);
    assert_eq!(pulled["name"], "acme/checkpoint:Q8_0");
    let source = pulled["source"].as_str().unwrap();
    assert!(source.starts_with("converted from ") && source.ends_with(servers.said("commit")));
    let shown = servers.json(&device, &["show", "acme/checkpoint:Q8_0", "--json"], &[]);
    assert_eq!((&shown["slot"], &shown["quantization"]), (&"active".into(), &"Q8_0".into()));
    assert_eq!(shown["license"], "apache-2.0");
    let answer = ["run", "acme/checkpoint:Q8_0", "turn on the fan", "--max-tokens", "4"];
    let answer = servers.fulmar(&device, &answer, &[]);
    assert!(answer.code == 0 && !answer.stdout.trim().is_empty(), "{}", answer.stderr);

    let (blobs, incoming) = Servers::blobs(&device);
    let bytes = pulled["bytes"].as_u64().unwrap();
    let held: u64 = blobs.iter().map(|path| std::fs::metadata(path).unwrap().len()).sum();
    assert_eq!(held, bytes, "what was converted is gone: {blobs:?} {incoming:?}");
    assert!(!device.join("converting").exists());
    let asked = servers.seen()["asked"].to_string();
    assert!(!asked.contains("adapter_model"), "{asked}");

    let again = servers.json(&device, &pull, &[]);
    assert_eq!(again["digest"], pulled["digest"], "the same files give the same bytes");
    let smaller = servers.json(&device, &["pull", "hf.co/acme/checkpoint", "--json"], &[]);
    assert_eq!(smaller["name"], "acme/checkpoint:Q4_K_M");
    assert!(smaller["bytes"].as_u64().unwrap() < bytes);
    let refused = servers.refused(&device, &["pull", "hf.co/acme/checkpoint:IQ2_XS"], &[]);
    assert!(refused.contains("IQ2_XS") && refused.contains("Q4_K_M"), "{refused}");
}

#[test]
fn a_checkpoint_is_refused_where_a_file_is_wrong_or_unsigned() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path());
    std::fs::remove_file(folder.join("adapter_model.safetensors")).unwrap();
    publish(&servers, &folder);
    let signed = dir.path().join("signed");
    std::fs::create_dir(&signed).unwrap();
    let made = Command::new(python())
        .arg(root().join("tests/imports/sign.py"))
        .args([text(&signed), text(&model()), text(&folder)])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    put(&servers, "model.sig", std::fs::read(signed.join("given.sig")).unwrap());
    let device = dir.path().join("device");
    let pull = ["pull", "hf.co/acme/checkpoint:Q8_0", "--json"];
    let refused = servers.refused(&device, &pull, &[]);
    assert!(refused.contains("registry.signing_keys"), "{refused}");
    assert_eq!(servers.seen()["asked"], json!([]), "not a byte of the weights was fetched");
    let keys = format!("[\"{}\"]", text(&signed.join("key.pem")));
    let keys = [("FULMAR__REGISTRY__SIGNING_KEYS", keys.as_str())];
    let pulled = servers.json(&device, &pull, &keys);
    assert_eq!(pulled["publisher"]["signature"], "verified");

    // Another configuration than the signed one, though the hub's index agrees with it.
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    put(&servers, "config.json", config.replace("1e-06", "1e-05").into_bytes());
    let refused = servers.refused(&device, &pull, &keys);
    assert!(refused.contains("config.json"), "{refused}");
    // Weights that are none: nothing of them becomes visible.
    put(&servers, "model.safetensors", b"nothing".to_vec());
    let refused = servers.refused(&device, &[&pull[..], &["--ignore-signature"]].concat(), &[]);
    assert!(refused.contains("model.safetensors"), "{refused}");
    let listed = servers.json(&device, &["list", "--json"], &[]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
}
