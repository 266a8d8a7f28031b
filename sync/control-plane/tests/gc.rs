//! Files of old releases go when nobody wants them any more, and no earlier.

#![allow(clippy::unwrap_used)]

mod plane;

use std::process::Command;

use fulmar_protocol::ModelState;
use fulmar_registry::Digest;
use plane::{Plane, check_in, holds};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Runs the command beside the serving control plane.
fn gc(plane: &Plane, more: &[&str]) -> Value {
    let config = plane.dir.path().join("control.toml");
    std::fs::write(&config, "withdrawn_days_kept = 0\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fulmar-control"))
        .args(["gc", "--json", "--config", config.to_str().unwrap()])
        .args(["--dir", plane.report.dir.to_str().unwrap()])
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The digests that a collection names.
fn digests(garbage: &Value) -> Vec<String> {
    let blobs = garbage["blobs"].as_array().unwrap();
    let mut digests: Vec<String> =
        blobs.iter().map(|blob| blob[0].as_str().unwrap().to_owned()).collect();
    digests.sort();
    digests
}

/// A manifest and its weights.
fn of(manifest: &Digest, weights: &[u8]) -> Vec<String> {
    let mut digests = vec![manifest.to_string(), Digest::of(weights).to_string()];
    digests.sort();
    digests
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_holds_or_should_hold_stays_and_the_rest_of_the_old_goes() {
    let plane = Plane::start().await;
    let (one, two, three) = ([1; 1000], [2; 1000], [3; 1000]);
    let first = plane.publish(1, &one).await;
    let device = plane.device("pump-7").await;
    let order = json!({ "model": plane::MODEL, "devices": [device.id] });
    plane.post("/api/v1/deployments", order.clone()).await;
    let mut done = check_in(2);
    done.models = vec![holds(&first, ModelState::Active)];
    device.check_in(&done).await;

    let second = plane.publish(2, &two).await;
    let third = plane.publish(3, &three).await;
    // Uploaded, and the metadata is still to come.
    assert_eq!(plane.put_blob(b"the next release").await, StatusCode::CREATED);
    plane.post("/api/v1/deployments", order).await;

    // The first is on the device and is what stopping goes back to; the second is nobody's.
    assert_eq!(digests(&gc(&plane, &["--dry-run"])), of(&second, &two));
    assert_eq!(digests(&gc(&plane, &[])), of(&second, &two));
    assert_eq!(digests(&gc(&plane, &[])), Vec::<String>::new());

    let mut done = check_in(3);
    done.models = vec![holds(&third, ModelState::Active), holds(&first, ModelState::Installed)];
    device.check_in(&done).await;
    assert_eq!(digests(&gc(&plane, &["--dry-run"])), Vec::<String>::new(), "it may roll back");
    done.models.pop();
    device.check_in(&done).await;
    assert_eq!(digests(&gc(&plane, &[])), of(&first, &one));

    // An owner who changes their mind is told which file is not here any more.
    plane.owner.release(1, &one);
    let files = Some(plane.owner.files());
    let refused = plane.call(Method::POST, "/api/v1/registry/metadata", files).await;
    assert_eq!(plane::code(refused).await, (409, "blob_missing".to_owned()));
    assert_eq!(plane.put_blob(&one).await, StatusCode::CREATED);
    assert_eq!(plane.put_blob(&plane::manifest(1, &one)).await, StatusCode::CREATED);
    plane.post("/api/v1/registry/metadata", plane.owner.files()).await;
}
