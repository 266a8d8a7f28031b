//! `fulmar pull oci://…` and `skopeo` against the same registry.

use std::path::Path;
use std::process::Command;

use fulmar_tests::{python, root, text};

use crate::servers::{Servers, model};

/// Copies with skopeo, which must succeed.
fn skopeo(servers: &Servers, arguments: &[&str]) {
    let credentials = format!("{}:{}", servers.said("user"), servers.said("password"));
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--preserve-digests"])
        .args(arguments)
        .args(["--src-tls-verify=false", "--dest-tls-verify=false"])
        .arg(if arguments[0].starts_with("docker:") { "--src-creds" } else { "--dest-creds" })
        .arg(credentials)
        .output()
        .expect("skopeo is installed (tests/run installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An artifact of that kind, as a layout on disk.
fn layout(dir: &Path, kind: &str) -> String {
    let place = dir.join(kind);
    let status = Command::new(python())
        .arg(root().join("tests/imports/oci_layout.py"))
        .args([text(&place), text(&model()), kind])
        .status()
        .unwrap();
    assert!(status.success());
    format!("oci:{}:v1", text(&place))
}

#[test]
fn what_skopeo_pushed_is_pulled_with_a_bearer_token_and_skopeo_takes_it_out_again() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let registry = servers.said("registry");
    for kind in ["modelpack", "ollama"] {
        let place = format!("docker://{registry}/team/{kind}:v1");
        skopeo(&servers, &[&layout(dir.path(), kind), &place]);
        let device = dir.path().join(format!("device-{kind}"));
        let model = format!("oci://{registry}/team/{kind}:v1");
        let refused = servers.refused(&device, &["pull", &model], &[]);
        assert!(refused.contains("401") && refused.contains("--auth-file"), "{refused}");
        let who = [
            ("FULMAR_REGISTRY_USER", servers.said("user")),
            ("FULMAR_REGISTRY_PASSWORD", servers.said("password")),
        ];
        let pulled = servers.json(&device, &["pull", &model, "--json"], &who);
        assert_eq!(pulled["name"], format!("team/{kind}:v1"));
        let shown = servers.json(&device, &["show", &format!("team/{kind}:v1"), "--json"], &[]);
        assert_eq!(shown["weights_digest"], format!("sha256:{}", servers.said("sha256")));
        let out = dir.path().join(format!("{kind}-out"));
        skopeo(&servers, &[&place, &format!("oci:{}:v1", text(&out))]);
        assert!(out.join("blobs/sha256").join(servers.said("sha256")).is_file());
    }
}

#[test]
fn of_a_tar_layer_that_skopeo_pushed_the_model_is_installed_and_the_archive_leaves() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let registry = servers.said("registry");
    let place = format!("docker://{registry}/team/packed:v1");
    skopeo(&servers, &[&layout(dir.path(), "modelpack-tar"), &place]);
    let device = dir.path().join("device");
    let who = [
        ("FULMAR_REGISTRY_USER", servers.said("user")),
        ("FULMAR_REGISTRY_PASSWORD", servers.said("password")),
    ];
    let model = format!("oci://{registry}/team/packed:v1");
    let pulled = servers.json(&device, &["pull", &model, "--json"], &who);
    assert_eq!(pulled["bytes"], servers.size());
    let shown = servers.json(&device, &["show", "team/packed:v1", "--json"], &[]);
    assert_eq!(shown["weights_digest"], format!("sha256:{}", servers.said("sha256")));
    let (blobs, partial) = Servers::blobs(&device);
    let weights = blobs.iter().filter(|path| path.ends_with(servers.said("sha256"))).count();
    let large = blobs.iter().filter(|path| path.metadata().unwrap().len() >= servers.size());
    assert_eq!((weights, large.count(), partial.len()), (1, 1, 0), "{blobs:?}");
    let answer = servers.fulmar(&device, &["run", "team/packed:v1", "turn on the fan"], &[]);
    assert!(answer.code == 0 && !answer.stdout.trim().is_empty(), "{}", answer.stderr);
}

#[test]
fn credentials_come_from_a_file_and_an_expired_token_is_renewed_in_mid_download() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let registry = servers.said("registry");
    let auth_file = dir.path().join("auth.json");
    let login = Command::new("skopeo")
        .args(["login", "--tls-verify=false", "--authfile", text(&auth_file)])
        .args(["-u", servers.said("user"), "-p", servers.said("password"), registry])
        .output()
        .unwrap();
    assert!(login.status.success(), "{}", String::from_utf8_lossy(&login.stderr));
    let source = layout(dir.path(), "modelpack");
    for repository in ["basic/tiny", "team/cut"] {
        skopeo(&servers, &[&source, &format!("docker://{registry}/{repository}:v1")]);
        let device = dir.path().join(repository.replace('/', "-"));
        let model = format!("oci://{registry}/{repository}:v1");
        let arguments = ["pull", &model, "--auth-file", text(&auth_file), "--json"];
        let pulled = servers.json(&device, &arguments, &[]);
        // Without its licence the artifact has the weights alone.
        assert_eq!(pulled["bytes"], servers.size());
        let source = pulled["source"].as_str().unwrap();
        assert!(source.contains("@sha256:"), "pinned to the manifest: {source}");
        let pinned =
            ["pull", source, "--auth-file", text(&auth_file), "--json", "--name", "team/pin:v1"];
        assert_eq!(servers.json(&device, &pinned, &[])["source"], source);
    }
}
