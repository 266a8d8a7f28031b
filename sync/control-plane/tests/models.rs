//! Models as operators find and name them.

#![allow(clippy::unwrap_used)]

mod plane;

use plane::{Plane, code, read, send};
use reqwest::{Method, StatusCode};
use serde_json::json;

#[tokio::test]
async fn the_consoles_models_are_filtered_by_what_they_are() {
    let plane = Plane::start().await;
    plane.publish(1, b"weights").await;
    let browser =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let form = [("name", "admin"), ("password", plane.report.admin_password.as_str())];
    let entered = send(&plane, &browser, "/sign-in", "", &form).await;
    let cookie = entered.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap();
    let row = r#"<th scope="row">acme/tiny:v1<small"#;
    for (query, found) in [
        ("", true),
        ("?text=TINY&size_class=&memory_bytes_max=", true),
        ("?text=other", false),
        ("?size_class=large", false),
        ("?context_tokens_min=1000000000", false),
    ] {
        let page = read(&plane, &browser, &format!("/models{query}"), cookie).await;
        assert_eq!(page.contains(row), found, "{query}");
    }
    let page = read(&plane, &browser, "/models?text=a%20%26b", cookie).await;
    assert!(page.contains("/models/live?text=a%20%26b&#38;tag="), "{page}");
    for bad in ["size_class=huge", "context_tokens_min=many"] {
        let url = plane.url(&format!("/models?{bad}"));
        let refused = browser.get(url).header("cookie", cookie).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn a_deployment_takes_a_name_with_its_digest() {
    let plane = Plane::start().await;
    let first = plane.publish(1, b"weights").await;
    let order = |model: String| json!({ "model": model, "devices": "all" });
    let made = plane.post("/api/v1/deployments", order(format!("acme/tiny:v1@{first}"))).await;
    assert_eq!(made["digest"], first.to_string());
    let other = format!("acme/tiny:v1@sha256:{}", "0".repeat(64));
    let refused = plane.call(Method::POST, "/api/v1/deployments", Some(order(other.clone()))).await;
    assert_eq!(code(refused).await, (404, "not_found".into()));
    let mut torn = order(other);
    torn["digest"] = first.to_string().into();
    let refused = plane.call(Method::POST, "/api/v1/deployments", Some(torn)).await;
    assert_eq!(code(refused).await, (400, "model_invalid".into()));
}
