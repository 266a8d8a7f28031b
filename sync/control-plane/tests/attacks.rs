//! What must not work: at the device port, at sign-in, in the browser, in the registry's metadata.

#![allow(clippy::unwrap_used)]

mod plane;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_protocol::{CheckIn, ModelState};
use fulmar_registry::Digest;
use fulmar_registry::trust::{Fetched, Refresh, Repo, Trusted};
use plane::{Device, Owner, Plane, check_in, client, code, enroll_request, holds, now_s};
use rcgen::{CertificateParams, Issuer, KeyPair};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn without_a_certificate_only_joining_is_open() {
    let plane = Plane::start().await;
    let anonymous = client(plane.ca(), None);
    for path in ["registry/timestamp.json", "director/timestamp.json", "blobs/sha256:00"] {
        let url = format!("{}/device/v1/{path}", plane.device_url);
        let answer = anonymous.get(url).send().await.unwrap();
        assert_eq!(code(answer).await, (401, "certificate_required".into()), "{path}");
    }
    for path in ["check-in", "outbox", "renew"] {
        let url = format!("{}/device/v1/{path}", plane.device_url);
        let answer = anonymous.post(url).json(&check_in(0)).send().await.unwrap();
        assert_eq!(code(answer).await, (401, "certificate_required".into()), "{path}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_does_not_get_past_the_handshake() {
    let plane = Plane::start().await;
    let device = plane.device("victim").await;
    let ca_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut forged = CertificateParams::default();
    forged.distinguished_name.push(rcgen::DnType::CommonName, device.id.as_str());
    let forged = forged.signed_by(&key, &issuer).unwrap().pem();
    let attacker = client(plane.ca(), Some((&forged, &key)));
    assert!(attacker.post(device.at("check-in")).json(&check_in(0)).send().await.is_err());
}

#[tokio::test]
async fn a_removed_device_is_refused_at_once() {
    let plane = Plane::start().await;
    let device = plane.device("lost").await;
    device.check_in(&check_in(0)).await;
    let path = format!("/api/v1/devices/{}", device.id);
    let removed = plane.call(Method::DELETE, &path, None).await;
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    // Over the connection that it had open.
    let answer = device.post("check-in", &check_in(0)).await;
    assert_eq!(code(answer).await, (403, "device_removed".into()));
    assert_eq!(plane.get("/api/v1/devices").await["devices"], json!([]));
}

#[tokio::test]
async fn a_device_gets_its_own_orders_and_only_the_blobs_in_them() {
    let plane = Plane::start().await;
    let weights = vec![7_u8; 50_000];
    let digest = plane.publish(1, &weights).await;
    let (one, other) = (plane.device("one").await, plane.device("other").await);
    let order = json!({ "model": "acme/tiny:v1", "devices": [one.id] });
    plane.post("/api/v1/deployments", order).await;

    let root = STANDARD.decode(&other.joined.director_root).unwrap();
    let mut refresh = Refresh::new(Trusted::from_root(Repo::Director, root).unwrap(), now_s());
    while let Some(want) = refresh.next() {
        let answer = other.get(&format!("director/{}", want.file_name)).await;
        refresh
            .feed(match answer.status() {
                StatusCode::OK => Fetched::Found(answer.bytes().await.unwrap().to_vec()),
                _ => Fetched::NotFound,
            })
            .unwrap();
    }
    let director = refresh.finish().unwrap();
    assert_eq!(director.device_id(), Some(other.id.as_str()));
    assert_eq!(director.targets().count(), 0);

    for blob in [digest, Digest::of(&weights)] {
        assert_eq!(one.get(&format!("blobs/{blob}")).await.status(), StatusCode::OK);
        let refused = other.get(&format!("blobs/{blob}")).await;
        assert_eq!(code(refused).await, (404, "blob_not_assigned".into()));
    }
    for path in ["registry/..%2f..%2fca.key", "director/..%2fdirector.key", "blobs/..%2fca.key"] {
        assert!(one.get(path).await.status().is_client_error(), "{path}");
    }
}

#[tokio::test]
async fn a_device_mends_what_was_deployed_to_it_and_fetches_nothing_that_never_was() {
    let plane = Plane::start().await;
    let (old, new) = (vec![7_u8; 50_000], vec![8_u8; 50_000]);
    let first = plane.publish(1, &old).await;
    let (one, other) = (plane.device("one").await, plane.device("other").await);
    let order = json!({ "model": "acme/tiny:v1", "devices": [one.id] });
    plane.post("/api/v1/deployments", order.clone()).await;
    let second = plane.publish(2, &new).await;
    plane.post("/api/v1/deployments", order).await;

    let refused = async |device: &Device, blob: Digest| {
        let answer = device.get(&format!("blobs/{blob}")).await;
        assert_eq!(code(answer).await, (404, "blob_not_assigned".into()), "{blob}");
    };
    let old_blobs = [first, Digest::of(&old)];
    // Replaced, and not on the device by its own word.
    refused(&one, old_blobs[1]).await;
    let both = [holds(&second, ModelState::Active), holds(&first, ModelState::Installed)];
    let request = CheckIn { models: both.to_vec(), ..check_in(3) };
    one.check_in(&request).await;
    for blob in old_blobs {
        assert_eq!(one.get(&format!("blobs/{blob}")).await.status(), StatusCode::OK);
    }
    // Who only says that it has them gets neither release.
    other.check_in(&request).await;
    for blob in [first, second, Digest::of(&old), Digest::of(&new)] {
        refused(&other, blob).await;
    }

    // The owner takes the weights of the first back.
    let revoked = json!({ "revoked": { "models": { Digest::of(&old).to_string(): "it leaks" } } });
    plane.owner.repository.publish_policy(revoked, None, now_s()).unwrap();
    plane.owner.repository.sign(&[&plane.owner.key], now_s()).unwrap();
    let policy = plane.owner.repository.draft_policy().unwrap().unwrap();
    assert_eq!(plane.put_blob(&policy).await, StatusCode::CREATED);
    plane.post("/api/v1/registry/metadata", plane.owner.files()).await;
    for blob in old_blobs {
        refused(&one, blob).await;
    }
    assert_eq!(one.get(&format!("blobs/{}", Digest::of(&new))).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_join_token_works_once_in_its_time_and_not_when_revoked() {
    let plane = Plane::start().await;
    let refused = |result: Result<Device, (u16, String)>| result.err().map(|(_, code)| code);
    let token = plane.join_token().await;
    Device::enroll(&plane, &token.secret, "first").await.unwrap();
    let again = Device::enroll(&plane, &token.secret, "second").await;
    assert_eq!(refused(again).as_deref(), Some("join_token_used"));
    let guess = Device::enroll(&plane, "guess", "third").await;
    assert_eq!(refused(guess).as_deref(), Some("join_token_unknown"));

    let made = plane.post("/api/v1/join-tokens", json!({})).await;
    let path = format!("/api/v1/join-tokens/{}", made["id"].as_str().unwrap());
    plane.call(Method::DELETE, &path, None).await;
    let token = fulmar_protocol::JoinToken::decode(made["token"].as_str().unwrap()).unwrap();
    let revoked = Device::enroll(&plane, &token.secret, "fourth").await;
    assert_eq!(refused(revoked).as_deref(), Some("join_token_revoked"));

    let made = plane.post("/api/v1/join-tokens", json!({ "life_s": 1 })).await;
    let expires_s = made["expires_s"].as_i64().unwrap();
    while now_s() < expires_s {
        tokio::task::yield_now().await;
    }
    let token = fulmar_protocol::JoinToken::decode(made["token"].as_str().unwrap()).unwrap();
    let expired = Device::enroll(&plane, &token.secret, "fifth").await;
    assert_eq!(refused(expired).as_deref(), Some("join_token_expired"));
    assert_eq!(plane.get("/api/v1/devices").await["devices"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_bad_request_does_not_cost_the_join_token() {
    let plane = Plane::start().await;
    let token = plane.join_token().await;
    let url = format!("{}/device/v1/enroll", plane.device_url);
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let good = enroll_request(&token.secret, "pump", &key, &[1; 32]);
    let http = client(plane.ca(), None);
    for (request, expected) in [
        (
            {
                let mut r = good.clone();
                r.name = "Pump <script>".into();
                r
            },
            "name_invalid",
        ),
        (
            {
                let mut r = good.clone();
                r.audit_key = "zz".into();
                r
            },
            "audit_key_invalid",
        ),
        (
            {
                let mut r = good.clone();
                r.csr_pem = "none".into();
                r
            },
            "csr_invalid",
        ),
    ] {
        let answer = http.post(&url).json(&request).send().await.unwrap();
        assert_eq!(code(answer).await, (400, expected.into()));
    }
    assert_eq!(http.post(&url).json(&good).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn bodies_are_bounded_and_checked() {
    let plane = Plane::start().await;
    let device = plane.device("talker").await;
    let long = "x".repeat(fulmar_protocol::BODY_BYTES_MAX + 1);
    let answer = device
        .http
        .post(device.at("outbox"))
        .header("content-type", "application/json")
        .body(long)
        .send()
        .await
        .unwrap();
    assert_eq!(code(answer).await, (413, "body_too_large".into()));
    let mut unknown = serde_json::to_value(check_in(0)).unwrap();
    unknown["surprise"] = 1.into();
    let answer = device.post("check-in", &unknown).await;
    assert_eq!(code(answer).await, (400, "body_invalid".into()));
    let mut lying = check_in(u64::MAX);
    lying.link = "pigeon".into();
    assert_eq!(code(device.post("check-in", &lying).await).await, (400, "link_invalid".into()));
    // A generation that was never given is not believed.
    device.check_in(&check_in(u64::MAX)).await;
    let shown = plane.get(&format!("/api/v1/devices/{}", device.id)).await;
    assert_eq!(shown["generation_applied"], 1);
}

#[tokio::test]
async fn metadata_that_the_owner_did_not_sign_is_refused_and_nothing_of_it_stays() {
    let plane = Plane::start().await;
    let weights = b"evil weights";
    let stranger = Owner::new();
    let manifest = stranger.release(1, weights);
    assert_eq!(plane.put_blob(weights).await, StatusCode::CREATED);
    assert_eq!(plane.put_blob(&manifest).await, StatusCode::CREATED);
    let path = "/api/v1/registry/metadata";
    let refused = plane.call(Method::POST, path, Some(stranger.files())).await;
    assert_eq!(code(refused).await, (422, "metadata_refused".into()));
    assert_eq!(plane.get("/api/v1/releases").await["releases"], json!([]));
    let order = json!({ "model": "acme/tiny:v1", "devices": "all" });
    let refused = plane.call(Method::POST, "/api/v1/deployments", Some(order)).await;
    assert_eq!(code(refused).await, (404, "not_found".into()));

    // A single changed byte in the owner's own files.
    let manifest = plane.owner.release(1, weights);
    plane.put_blob(&manifest).await;
    let mut files = plane.owner.files();
    let name = files["files"].as_object().unwrap().keys().find(|k| k.ends_with("targets.json"));
    let name = name.unwrap().clone();
    let bytes = STANDARD.decode(files["files"][&name].as_str().unwrap()).unwrap();
    let text = String::from_utf8(bytes).unwrap().replacen("acme/tiny", "acme/evil", 1);
    files["files"][&name] = STANDARD.encode(text).into();
    let refused = plane.call(Method::POST, path, Some(files)).await;
    assert_eq!(code(refused).await, (422, "metadata_refused".into()));
    plane.post(path, plane.owner.files()).await;
}

#[tokio::test]
async fn older_metadata_is_refused_also_after_a_restart() {
    let mut plane = Plane::start().await;
    plane.publish(1, b"one").await;
    let old = plane.owner.files();
    plane.publish(2, b"two").await;
    for _ in 0..2 {
        let path = "/api/v1/registry/metadata";
        let refused = plane.call(Method::POST, path, Some(old.clone())).await;
        assert_eq!(code(refused).await, (422, "metadata_refused".into()));
        let releases = plane.get("/api/v1/releases").await;
        assert_eq!(releases["releases"][0]["release"], 2);
        plane.stop().await;
        plane.serve().await;
    }
}

#[tokio::test]
async fn a_release_without_its_blobs_or_with_other_bytes_is_not_taken() {
    let plane = Plane::start().await;
    let weights = vec![3_u8; 10_000];
    let manifest = plane.owner.release(1, &weights);
    plane.put_blob(&manifest).await;
    let path = "/api/v1/registry/metadata";
    let refused = plane.call(Method::POST, path, Some(plane.owner.files())).await;
    assert_eq!(code(refused).await, (409, "blob_missing".into()));
    let tampered = plane
        .http
        .put(plane.url(&format!("/api/v1/blobs/{}", Digest::of(&weights))))
        .bearer_auth(&plane.token)
        .body(vec![4_u8; 10_000])
        .send()
        .await
        .unwrap();
    assert_eq!(code(tampered).await, (422, "blob_refused".into()));
    assert_eq!(plane.put_blob(&weights).await, StatusCode::CREATED);
    plane.post(path, plane.owner.files()).await;
}

#[tokio::test]
async fn guessing_passwords_is_slowed_down_and_recorded() {
    let plane = Plane::start().await;
    let guess = || {
        plane
            .http
            .post(plane.url("/api/v1/sign-in"))
            .json(&json!({ "name": "admin", "password": "guess" }))
            .send()
    };
    let mut last = (0, String::new());
    for _ in 0..10 {
        last = code(guess().await.unwrap()).await;
    }
    assert_eq!(last, (429, "sign_in_too_often".into()));
    let audit = plane.get("/api/v1/audit?limit=500").await;
    let denied = audit["audit"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["action"] == "sign_in" && entry["outcome"] == "denied");
    assert_eq!(denied.count(), 8);
}

#[tokio::test]
async fn roles_decide_and_refusals_are_recorded() {
    let plane = Plane::start().await;
    let made =
        plane.post("/api/v1/operators", json!({ "name": "ann", "roles": ["auditor"] })).await;
    let token = plane.sign_in("ann", made["password"].as_str().unwrap()).await;
    let as_ann = |method: Method, path: &str| {
        plane.http.request(method, plane.url(path)).bearer_auth(&token).json(&json!({})).send()
    };
    assert_eq!(as_ann(Method::GET, "/api/v1/audit").await.unwrap().status(), StatusCode::OK);
    let refused = as_ann(Method::POST, "/api/v1/join-tokens").await.unwrap();
    assert_eq!(code(refused).await, (403, "denied".into()));
    let audit = plane.get("/api/v1/audit?limit=500").await;
    let last = audit["audit"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (&last["action"], &last["outcome"]),
        (&json!("join_token.create"), &json!("denied"))
    );
    assert!(last["actor"].as_str().unwrap().starts_with("ann (token"));

    // Removed, her token is worth nothing.
    plane.call(Method::DELETE, "/api/v1/operators/ann", None).await;
    let gone = as_ann(Method::GET, "/api/v1/audit").await.unwrap();
    assert_eq!(code(gone).await, (401, "unauthenticated".into()));
}

#[tokio::test]
async fn a_browsers_session_is_bound_to_our_own_pages() {
    let plane = Plane::start().await;
    let http =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let form = format!("name=admin&password={}", plane.report.admin_password);
    let sign_in = |origin: &str| {
        http.post(plane.url("/sign-in"))
            .header("origin", origin)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.clone())
            .send()
    };
    let foreign = sign_in("http://127.0.0.1:1").await.unwrap();
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
    let own = sign_in(&plane.console_url).await.unwrap();
    assert_eq!(own.status(), StatusCode::SEE_OTHER);
    let cookie = own.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();

    let page = http.get(plane.url("/fleet")).header("cookie", &cookie).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let csp = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(!csp.contains("unsafe") && csp.contains("default-src 'none'"), "{csp}");
    let html = page.text().await.unwrap();
    for forbidden in ["<script>", "style=", "onclick", "javascript:", "http://", "https://"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    let change = |origin: &str| {
        http.post(plane.url("/sign-out")).header("origin", origin).header("cookie", &cookie).send()
    };
    assert_eq!(change("http://evil.example").await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(change(&plane.console_url).await.unwrap().status(), StatusCode::SEE_OTHER);
    let after = http.get(plane.url("/fleet")).header("cookie", &cookie).send().await.unwrap();
    assert_eq!(after.headers()["location"], "/sign-in");
    let fragment = http.get(plane.url("/fleet/live")).header("hx-request", "true").send();
    assert_eq!(fragment.await.unwrap().headers()["hx-redirect"], "/sign-in");
}

#[tokio::test]
async fn a_foreign_host_name_is_not_served_on_loopback() {
    let plane = Plane::start().await;
    let answer = plane
        .http
        .get(plane.url("/health"))
        .header("host", "rebound.example")
        .send()
        .await
        .unwrap();
    assert_eq!(code(answer).await, (421, "host_unknown".into()));
}

#[tokio::test]
async fn whatever_a_device_says_is_text_in_the_console() {
    let plane = Plane::start().await;
    let device = plane.device("imp").await;
    let mut request = check_in(0);
    request.boot_id = "<script>alert(1)</script>".into();
    request.facts = Some(fulmar_protocol::DeviceFacts {
        os: "<img src=x onerror=alert(1)>".into(),
        ..fulmar_protocol::DeviceFacts::default()
    });
    device.check_in(&request).await;
    let form = format!("name=admin&password={}", plane.report.admin_password);
    let http =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let signed = http
        .post(plane.url("/sign-in"))
        .header("origin", &plane.console_url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form)
        .send()
        .await
        .unwrap();
    let cookie =
        signed.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    for path in ["/fleet".to_owned(), format!("/devices/{}", device.id)] {
        let page = http.get(plane.url(&path)).header("cookie", &cookie).send().await.unwrap();
        let html = page.text().await.unwrap();
        assert!(!html.contains("<img src=x") && html.contains("&#60;img"), "{path}");
    }
}

#[tokio::test]
async fn broken_tls_and_http_leave_the_port_serving() {
    let plane = Plane::start().await;
    let address = plane.device_url.strip_prefix("https://").unwrap().to_owned();
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1], &[0; 512]] {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(junk).await.unwrap();
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    plane.device("after").await.check_in(&check_in(0)).await;
}
