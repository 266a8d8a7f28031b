//! The real server over TLS: devices join, check in, get what they should run, report.

#![allow(clippy::unwrap_used)]

mod plane;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_protocol::{ModelState, OutboxAck, OutboxBatch, Report};
use fulmar_registry::Digest;
use fulmar_registry::trust::{Admission, Fetched, Refresh, Repo, Scope, Trusted, admit};
use plane::{Plane, check_in, code, holds, now_s};
use reqwest::{Method, StatusCode};
use serde_json::json;

/// Runs the trust client against the server, as a device does that just joined.
async fn refresh(device: &plane::Device, repo: Repo, root: &str) -> Trusted {
    let root = STANDARD.decode(root).unwrap();
    go_on(device, Trusted::from_root(repo, root).unwrap()).await
}

/// Refreshes what a device trusts.
async fn go_on(device: &plane::Device, trusted: Trusted) -> Trusted {
    let repo = trusted.repo();
    let mut refresh = Refresh::new(trusted, now_s()).scope(Scope::Everything);
    while let Some(want) = refresh.next() {
        let answer = device.get(&format!("{}/{}", repo.as_str(), want.file_name)).await;
        let fetched = match answer.status() {
            StatusCode::OK => Fetched::Found(answer.bytes().await.unwrap().to_vec()),
            StatusCode::NOT_FOUND => Fetched::NotFound,
            other => panic!("{}: {other}", want.file_name),
        };
        refresh.feed(fetched).unwrap();
    }
    refresh.finish().unwrap()
}

#[tokio::test]
async fn a_deployment_reaches_a_device_and_both_repositories_admit_it() {
    let plane = Plane::start().await;
    let weights: Vec<u8> = (0..200_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    let digest = plane.publish(1, &weights).await;
    let device = plane.device("pump-7").await;

    let before = device.check_in(&check_in(0)).await;
    assert_eq!(before.generation, 1);

    let order = json!({ "model": "acme/tiny:v1", "devices": [device.id] });
    let deployment = plane.post("/api/v1/deployments", order).await;
    assert_eq!(deployment["digest"], digest.to_string());
    let after = device.check_in(&check_in(0)).await;
    assert_eq!(after.generation, 2);
    assert!(after.director_timestamp_version > before.director_timestamp_version);

    let registry = refresh(&device, Repo::Registry, &device.joined.registry_root).await;
    let director = refresh(&device, Repo::Director, &device.joined.director_root).await;
    assert_eq!(director.targets_version(), Some(2));
    assert_eq!(registry.timestamp_version(), Some(after.registry_timestamp_version));
    let admission = Admission { now_s: now_s(), device_id: Some(&device.id), release_floor: None };
    let admitted = admit(&registry, &director, "acme/tiny/v1.json", &admission).unwrap();
    assert_eq!(admitted.digest(), digest);

    // The manifest, then the weights in two ranges, as after a cut line.
    let manifest = device.get(&format!("blobs/{digest}")).await.bytes().await.unwrap();
    assert_eq!(Digest::of(&manifest), digest);
    let path = format!("blobs/{}", Digest::of(&weights));
    let whole = device.get(&path).await;
    let etag = whole.headers()["etag"].clone();
    assert_eq!(whole.bytes().await.unwrap(), weights);
    let rest = device
        .http
        .get(device.at(&path))
        .header("range", "bytes=150000-")
        .header("if-range", &etag)
        .send()
        .await
        .unwrap();
    assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(rest.headers()["content-range"], "bytes 150000-199999/200000");
    assert_eq!(rest.bytes().await.unwrap(), weights[150_000..]);

    let mut done = check_in(2);
    done.models = vec![holds(&digest, ModelState::Active)];
    device.check_in(&done).await;
    let shown = plane.get("/api/v1/deployments/1").await;
    assert_eq!((&shown["state"], &shown["done"]), (&json!("done"), &json!(1)));
    let device = plane.get(&format!("/api/v1/devices/{}", device.id)).await;
    assert_eq!(
        (&device["state"], &device["models"][0]["state"]),
        (&json!("online"), &json!("active"))
    );
    assert_eq!(plane.get("/api/v1/audit/verify").await["verified"], true);
}

#[tokio::test]
async fn a_join_token_names_the_owners_newest_root_and_the_device_gets_that_one() {
    let plane = Plane::start().await;
    plane.publish(1, b"weights").await;
    let early = plane.join_token().await.registry_root.unwrap();
    let first = plane.owner.repository.first_root().unwrap();
    assert_eq!((early.version, early.sha256), (1, Digest::of(&first).hex()));
    // The owner rotates; tokens made before still lead to the root that they name.
    plane.owner.repository.renew("root", now_s()).unwrap();
    plane.publish(2, b"more weights").await;
    let token = plane.join_token().await;
    let named = token.registry_root.clone().unwrap();
    assert_eq!(named.version, 2);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut request = plane::enroll_request(&token.secret, "pump-7", &key, &[7; 32]);
    let anonymous = plane::client(plane.ca(), None);
    let post = |request| {
        anonymous.post(format!("{}/device/v1/enroll", plane.device_url)).json(&request).send()
    };
    request.registry_root_version = Some(9);
    let refused = post(request.clone()).await.unwrap();
    assert_eq!(code(refused).await, (409, "registry_root_unknown".into()));
    for (version, digest) in [(2, named.sha256), (1, Digest::of(&first).hex())] {
        let secret = plane.join_token().await.secret;
        let wanted = fulmar_protocol::EnrollRequest {
            secret: if version == 2 { token.secret.clone() } else { secret },
            registry_root_version: Some(version),
            ..request.clone()
        };
        let joined: fulmar_protocol::EnrollResponse =
            post(wanted).await.unwrap().json().await.unwrap();
        let root = STANDARD.decode(joined.registry_root).unwrap();
        assert_eq!(Digest::of(&root).hex(), digest, "version {version}");
    }
}

#[tokio::test]
async fn devices_follow_the_director_to_another_key() {
    let mut plane = Plane::start().await;
    let digest = plane.publish(1, b"weights").await;
    let device = plane.device("pump-7").await;
    plane.post("/api/v1/deployments", json!({ "model": "acme/tiny:v1", "devices": "all" })).await;
    let before = device.check_in(&check_in(0)).await;
    let registry = refresh(&device, Repo::Registry, &device.joined.registry_root).await;
    let director = refresh(&device, Repo::Director, &device.joined.director_root).await;

    let dir = plane.report.dir.clone();
    let key_file = dir.join("director.key");
    let old = std::fs::read(&key_file).unwrap();
    let rotate = move || fulmar_control::rotate_director_key(&dir).unwrap();
    let rotated = tokio::task::spawn_blocking(rotate).await.unwrap();
    assert_eq!(rotated.root_version, 2);
    assert_ne!(std::fs::read(&key_file).unwrap(), old);

    // The serving control plane takes it up, and says that there is something new.
    let after = device.check_in(&check_in(before.generation)).await;
    assert_eq!(after.generation, before.generation);
    assert!(after.director_timestamp_version > before.director_timestamp_version);
    let followed = go_on(&device, director).await;
    let keys: Vec<_> = followed.root().keys.keys().cloned().collect();
    assert_eq!((followed.root_version(), keys), (2, vec![rotated.new_key_id.clone()]));
    assert_eq!(followed.targets_version(), Some(before.generation));
    let admission = Admission { now_s: now_s(), device_id: Some(&device.id), release_floor: None };
    let admitted = admit(&registry, &followed, "acme/tiny/v1.json", &admission).unwrap();
    assert_eq!(admitted.digest(), digest);
    // So does one that joined long ago, and one that joins now.
    let late = plane.device("pump-8").await;
    for device in [&device, &late] {
        let fresh = refresh(device, Repo::Director, &device.joined.director_root).await;
        assert_eq!(fresh.root_version(), 2);
    }

    // A crash between the database and the files: the next start completes it.
    plane.stop().await;
    std::fs::rename(&key_file, plane.report.dir.join("director.next.key")).unwrap();
    std::fs::write(&key_file, &old).unwrap();
    plane.serve().await;
    plane.publish(2, b"other weights").await;
    plane.post("/api/v1/deployments", json!({ "model": "acme/tiny:v1", "devices": "all" })).await;
    let device = plane::Device { url: plane.device_url.clone(), ..device };
    let again = go_on(&device, followed).await;
    assert!(again.targets_version() > Some(before.generation));
    assert_ne!(std::fs::read(&key_file).unwrap(), old, "the file was put in place");
    assert_eq!(plane.get("/api/v1/audit/verify").await["verified"], true);
}

#[tokio::test]
async fn stopping_puts_back_what_has_not_arrived_and_leaves_what_has() {
    let plane = Plane::start().await;
    let one = plane.publish(1, b"weights one").await;
    let (arrived, waiting) = (plane.device("arrived").await, plane.device("waiting").await);
    plane.post("/api/v1/deployments", json!({ "model": "acme/tiny:v1", "devices": "all" })).await;
    for device in [&arrived, &waiting] {
        let mut request = check_in(2);
        request.models = vec![holds(&one, ModelState::Active)];
        device.check_in(&request).await;
    }
    let two = plane.publish(2, b"weights two").await;
    plane.post("/api/v1/deployments", json!({ "model": "acme/tiny:v1", "devices": "all" })).await;
    let mut request = check_in(3);
    request.models = vec![holds(&two, ModelState::Active)];
    arrived.check_in(&request).await;

    let stopped = plane.post("/api/v1/deployments/2/stop", json!({})).await;
    assert_eq!(stopped["devices_put_back"], 1);
    assert_eq!(arrived.check_in(&request).await.generation, 3);
    assert_eq!(waiting.check_in(&check_in(2)).await.generation, 4);
    let shown = plane.get(&format!("/api/v1/devices/{}", waiting.id)).await;
    assert_eq!(shown["desired"][0]["digest"], one.to_string());
    let again = plane.call(Method::POST, "/api/v1/deployments/2/stop", Some(json!({}))).await;
    assert_eq!(code(again).await, (409, "deployment_stopped".into()));
}

#[tokio::test]
async fn a_device_that_joins_later_gets_what_all_devices_have() {
    let plane = Plane::start().await;
    plane.publish(1, b"weights").await;
    plane.post("/api/v1/deployments", json!({ "model": "acme/tiny:v1", "devices": "all" })).await;
    let device = plane.device("late").await;
    assert_eq!(device.check_in(&check_in(0)).await.generation, 2);
    let director = refresh(&device, Repo::Director, &device.joined.director_root).await;
    assert!(director.target("acme/tiny/v1.json").is_some());
    assert_eq!(director.device_id(), Some(device.id.as_str()));
}

#[tokio::test]
async fn reports_are_kept_once_however_often_they_come() {
    let mut plane = Plane::start().await;
    let device = plane.device("reporter").await;
    let report = |seq: u64| Report {
        seq,
        at_s: now_s(),
        kind: "audit".into(),
        body: json!({ "seq": seq, "action": "model.run" }),
    };
    let batch = OutboxBatch { reports: (1..=3).map(report).collect() };
    for _ in 0..2 {
        let ack: OutboxAck = device.post("outbox", &batch).await.json().await.unwrap();
        assert_eq!(ack.acked_through, 3);
    }
    let more = OutboxBatch { reports: (2..=5).map(report).collect() };
    let ack: OutboxAck = device.post("outbox", &more).await.json().await.unwrap();
    assert_eq!(ack.acked_through, 5);
    let falling = OutboxBatch { reports: vec![report(7), report(6)] };
    assert_eq!(code(device.post("outbox", &falling).await).await, (400, "seq_not_rising".into()));

    // What was acknowledged is there after a restart.
    plane.stop().await;
    plane.serve().await;
    let shown = plane.get(&format!("/api/v1/devices/{}/audit", device.id)).await;
    let seqs: Vec<_> =
        shown["entries"].as_array().unwrap().iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [5, 4, 3, 2, 1]);
}

#[tokio::test]
async fn a_renewed_certificate_takes_over_when_it_is_used() {
    let plane = Plane::start().await;
    let device = plane.device("renewer").await;
    let csr = rcgen::CertificateParams::default().serialize_request(&device.key).unwrap();
    let request = fulmar_protocol::RenewRequest { csr_pem: csr.pem().unwrap() };
    let renewed: fulmar_protocol::RenewResponse =
        device.post("renew", &request).await.json().await.unwrap();
    // The old one is good until the new one was seen.
    device.check_in(&check_in(0)).await;
    let new = plane::client(plane.ca(), Some((&renewed.certificate_pem, &device.key)));
    let answer = new.post(device.at("check-in")).json(&check_in(0)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let old = device.post("check-in", &check_in(0)).await;
    assert_eq!(code(old).await, (403, "device_unknown".into()));
}

#[tokio::test]
async fn an_upload_goes_on_where_it_stopped() {
    let plane = Plane::start().await;
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 253) as u8).collect();
    let path = plane.url(&format!("/api/v1/blobs/{}", Digest::of(&bytes)));
    let send = |offset: usize, end: usize| {
        plane
            .http
            .put(&path)
            .bearer_auth(&plane.token)
            .header("upload-length", bytes.len())
            .header("upload-offset", offset)
            .body(bytes[offset..end].to_vec())
            .send()
    };
    let first = send(0, 40_000).await.unwrap();
    assert_eq!(first.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let state = plane.http.head(&path).bearer_auth(&plane.token).send().await.unwrap();
    assert_eq!(state.status(), StatusCode::NOT_FOUND);
    let offset: usize = state.headers()["upload-offset"].to_str().unwrap().parse().unwrap();
    assert_eq!(offset, 40_000);
    assert_eq!(send(offset, bytes.len()).await.unwrap().status(), StatusCode::CREATED);
    let state = plane.http.head(&path).bearer_auth(&plane.token).send().await.unwrap();
    assert_eq!(state.status(), StatusCode::OK);
}

#[tokio::test]
async fn metrics_and_health_say_how_the_fleet_stands() {
    let plane = Plane::start().await;
    plane.device("one").await.check_in(&check_in(0)).await;
    let health = plane.http.get(plane.url("/health")).send().await.unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    let text = plane.call(Method::GET, "/metrics", None).await.text().await.unwrap();
    let values: BTreeMap<&str, &str> =
        text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(' ')).collect();
    assert_eq!(values["fulmar_control_devices"], "1");
    assert_eq!(values["fulmar_control_devices_online"], "1");
    let unsigned = plane.http.get(plane.url("/metrics")).send().await.unwrap();
    assert_eq!(unsigned.status(), StatusCode::UNAUTHORIZED);
}
