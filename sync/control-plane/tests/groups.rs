//! Groups of devices: made by putting devices in, listed by, deployed to, recorded.

#![allow(clippy::unwrap_used)]

mod plane;

use plane::{Device, Plane, check_in, code, read, send};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn put(plane: &Plane, device: &Device, groups: &[&str]) -> Value {
    let path = format!("/api/v1/devices/{}/groups", device.id);
    let answer = plane.call(Method::PUT, &path, Some(json!({ "groups": groups }))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    answer.json().await.unwrap()
}

async fn deploy(plane: &Plane, devices: Value) -> Value {
    plane.post("/api/v1/deployments", json!({ "model": "acme/tiny:v1", "devices": devices })).await
}

async fn desired(plane: &Plane, device: &Device) -> Vec<Value> {
    let shown = plane.get(&format!("/api/v1/devices/{}", device.id)).await;
    shown["desired"].as_array().unwrap().clone()
}

async fn ids(plane: &Plane, query: &str) -> Vec<String> {
    let listed = plane.get(&format!("/api/v1/devices{query}")).await;
    let id = |device: &Value| device["id"].as_str().unwrap().to_owned();
    listed["devices"].as_array().unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn devices_are_put_into_groups_listed_by_them_and_every_change_is_recorded() {
    let plane = Plane::start().await;
    let (one, two) = (plane.device("one").await, plane.device("two").await);
    let changed = put(&plane, &one, &["pumps", "plant-a", "pumps"]).await;
    assert_eq!(changed["added"], json!(["plant-a", "pumps"]));
    // By id and by a name that one device alone has.
    let body = json!({ "devices": ["two", one.id] });
    let joined = plane.post("/api/v1/groups/plant-a/devices", body).await;
    assert_eq!(joined["devices"][0]["device_id"], json!(two.id));
    assert_eq!(joined["devices"][1]["added"], json!([]), "it was in it already");
    let listed = plane.get("/api/v1/groups").await;
    let expected = json!([{ "name": "plant-a", "devices": 2 }, { "name": "pumps", "devices": 1 }]);
    assert_eq!(listed["groups"], expected);
    assert_eq!(ids(&plane, "?group=pumps").await, std::slice::from_ref(&one.id));
    assert_eq!(ids(&plane, "?group=plant-a").await.len(), 2);
    assert!(ids(&plane, "?group=plant-b").await.is_empty());

    let changed = put(&plane, &one, &["plant-a"]).await;
    assert_eq!((&changed["added"], &changed["removed"]), (&json!([]), &json!(["pumps"])));
    let path = format!("/api/v1/groups/plant-a/devices/{}", two.id);
    let left = plane.call(Method::DELETE, &path, None).await;
    assert_eq!(left.status(), StatusCode::OK);
    let again = plane.call(Method::DELETE, &path, None).await;
    assert_eq!(code(again).await, (404, "not_found".into()));
    // A device that leaves the fleet leaves its groups; a group without devices is not there.
    let removed = plane.call(Method::DELETE, &format!("/api/v1/devices/{}", one.id), None).await;
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    assert_eq!(plane.get("/api/v1/groups").await["groups"], json!([]));

    let audit = plane.get("/api/v1/audit?limit=500").await;
    let entries: Vec<(&str, &Value)> = audit["audit"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["action"] == "device.group")
        .map(|entry| (entry["resource"].as_str().unwrap(), &entry["outcome"]))
        .collect();
    let (completed, failed) = (json!("completed"), json!("failed"));
    let expected = [
        (one.id.as_str(), &completed),
        ("plant-a", &completed),
        (one.id.as_str(), &completed),
        ("plant-a", &completed),
        ("plant-a", &failed),
    ];
    assert_eq!(entries, expected);
}

#[tokio::test]
async fn a_change_that_is_refused_leaves_no_part_of_it_behind() {
    let plane = Plane::start().await;
    let one = plane.device("one").await;
    let join = |body: Value| plane.call(Method::POST, "/api/v1/groups/plant-a/devices", Some(body));
    let unknown = join(json!({ "devices": [one.id, "d-nobody"] })).await;
    assert_eq!(code(unknown).await, (404, "not_found".into()));
    assert_eq!(code(join(json!({ "devices": [] })).await).await, (400, "devices_invalid".into()));
    let path = format!("/api/v1/devices/{}/groups", one.id);
    for name in ["Plant", "plant a", "", "../x"] {
        let body = json!({ "groups": ["plant-b", name] });
        let refused = plane.call(Method::PUT, &path, Some(body)).await;
        assert_eq!(code(refused).await, (400, "group_invalid".into()), "{name:?}");
    }
    let many: Vec<String> = (0..65).map(|n| format!("g{n}")).collect();
    let refused = plane.call(Method::PUT, &path, Some(json!({ "groups": many }))).await;
    assert_eq!(code(refused).await, (400, "groups_too_many".into()));
    assert_eq!(plane.get("/api/v1/groups").await["groups"], json!([]));
    // Two of the same name: which one is meant?
    let _other = plane.device("one").await;
    let refused = join(json!({ "devices": ["one"] })).await;
    assert_eq!(code(refused).await, (409, "device_ambiguous".into()));
}

#[tokio::test]
async fn who_joins_a_group_later_gets_what_was_deployed_to_it_and_keeps_it_when_leaving() {
    let plane = Plane::start().await;
    let first = plane.publish(1, b"weights one").await;
    let (early, late) = (plane.device("early").await, plane.device("late").await);
    put(&plane, &early, &["plant-a"]).await;
    let made = deploy(&plane, json!({ "groups": ["plant-a"] })).await;
    assert_eq!(made["devices"], 1);
    assert_eq!(desired(&plane, &early).await.len(), 1);
    assert!(desired(&plane, &late).await.is_empty());
    let shown = plane.get("/api/v1/deployments/1").await;
    assert_eq!((&shown["scope"], &shown["groups"]), (&json!("groups"), &json!(["plant-a"])));

    let joined = put(&plane, &late, &["plant-a"]).await;
    assert_eq!(joined["deployments"], json!([1]));
    assert_eq!(late.check_in(&check_in(1)).await.generation, 2);
    assert_eq!(desired(&plane, &late).await[0]["digest"], first.to_string());
    assert_eq!(plane.get("/api/v1/deployments/1").await["devices"], 2);

    // Leaving takes nothing back, and coming back changes nothing.
    put(&plane, &late, &[]).await;
    assert_eq!(desired(&plane, &late).await.len(), 1);
    assert_eq!(put(&plane, &late, &["plant-a"]).await["deployments"], json!([]));

    // A newer deployment to the device itself goes before the group's.
    let second = plane.publish(2, b"weights two").await;
    let other = plane.device("other").await;
    deploy(&plane, json!([other.id])).await;
    assert_eq!(put(&plane, &other, &["plant-a"]).await["deployments"], json!([]));
    assert_eq!(desired(&plane, &other).await[0]["digest"], second.to_string());

    // A stopped one is not for those who come after.
    deploy(&plane, json!({ "groups": ["plant-a"] })).await;
    plane.post("/api/v1/deployments/3/stop", json!({})).await;
    let after = plane.device("after").await;
    // The first names a release that the registry names no more: nobody new gets that one.
    assert_eq!(put(&plane, &after, &["plant-a"]).await["deployments"], json!([]));
}

#[tokio::test]
async fn a_deployment_to_a_group_that_nobody_is_in_is_refused() {
    let plane = Plane::start().await;
    plane.publish(1, b"weights").await;
    let device = plane.device("one").await;
    put(&plane, &device, &["plant-a"]).await;
    for (groups, refusal) in [
        (json!(["plant-a", "plant-b"]), (404, "not_found")),
        (json!([]), (400, "groups_invalid")),
        (json!(["Plant A"]), (400, "group_invalid")),
    ] {
        let order = json!({ "model": "acme/tiny:v1", "devices": { "groups": groups } });
        let refused = plane.call(Method::POST, "/api/v1/deployments", Some(order)).await;
        assert_eq!(code(refused).await, (refusal.0, refusal.1.into()), "{groups}");
    }
    assert!(desired(&plane, &device).await.is_empty());
}

#[tokio::test]
async fn a_join_token_can_put_its_device_into_groups_with_all_that_was_deployed_to_them() {
    let plane = Plane::start().await;
    plane.publish(1, b"weights").await;
    let early = plane.device("early").await;
    put(&plane, &early, &["plant-a"]).await;
    deploy(&plane, json!({ "groups": ["plant-a"] })).await;
    let body = json!({ "note": "", "groups": ["plant-a", "pumps"] });
    let made = plane.post("/api/v1/join-tokens", body).await;
    let token = fulmar_protocol::JoinToken::decode(made["token"].as_str().unwrap()).unwrap();
    let late = Device::enroll(&plane, &token.secret, "late").await.unwrap();
    let shown = plane.get(&format!("/api/v1/devices/{}", late.id)).await;
    assert_eq!(shown["groups"], json!(["plant-a", "pumps"]));
    assert_eq!(shown["desired"][0]["deployment_id"], 1);
}

#[tokio::test]
async fn an_auditor_sees_groups_and_changes_none() {
    let plane = Plane::start().await;
    let device = plane.device("one").await;
    put(&plane, &device, &["plant-a"]).await;
    let body = json!({ "name": "eve", "roles": ["auditor"] });
    let made = plane.post("/api/v1/operators", body).await;
    let body = json!({ "name": "eve", "password": made["password"] });
    let signed_in = plane.post("/api/v1/sign-in", body).await;
    let token = signed_in["token"].as_str().unwrap();
    let seen = plane.http.get(plane.url("/api/v1/groups")).bearer_auth(token).send().await.unwrap();
    assert_eq!(seen.status(), StatusCode::OK);
    let path = plane.url(&format!("/api/v1/devices/{}/groups", device.id));
    let refused = plane.http.put(path).bearer_auth(token).json(&json!({ "groups": [] }));
    assert_eq!(code(refused.send().await.unwrap()).await, (403, "denied".into()));
    assert_eq!(ids(&plane, "?group=plant-a").await, std::slice::from_ref(&device.id));
}

/// The console as a browser without scripts sees it.
#[tokio::test]
async fn the_console_filters_by_group_and_changes_a_devices_groups() {
    let plane = Plane::start().await;
    plane.publish(1, b"weights").await;
    let (one, two) = (plane.device("one").await, plane.device("two").await);
    let browser =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let form = [("name", "admin"), ("password", plane.report.admin_password.as_str())];
    let entered = send(&plane, &browser, "/sign-in", "", &form).await;
    let cookie = entered.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap();

    let path = format!("/devices/{}/groups", one.id);
    let saved = send(&plane, &browser, &path, cookie, &[("groups", " pumps  plant-a ")]).await;
    assert_eq!(saved.status(), StatusCode::SEE_OTHER);
    let page = read(&plane, &browser, &format!("/devices/{}", one.id), cookie).await;
    assert!(page.contains(r#"value="plant-a pumps""#), "{page}");
    let all = read(&plane, &browser, "/fleet", cookie).await;
    assert!(all.contains(&one.id) && all.contains(&two.id));
    let filtered = read(&plane, &browser, "/fleet?group=plant-a", cookie).await;
    let (first, second) = (link(&one, "one"), link(&two, "two"));
    assert!(filtered.contains(&first) && !filtered.contains(&second));
    // The live part that the page fetches again keeps to the group.
    assert!(filtered.contains("/fleet/live?group=plant-a&#38;tag="), "{filtered}");
    let live = read(&plane, &browser, "/fleet/live?group=plant-a&tag=x", cookie).await;
    assert!(live.contains(&first) && !live.contains(&second));

    let order = [
        ("model", "acme/tiny:v1"),
        ("scope", "groups"),
        ("group", "plant-a"),
        ("use_as", "active"),
    ];
    let made = send(&plane, &browser, "/deployments", cookie, &order).await;
    assert_eq!(made.headers()["location"], "/deployments/1");
    let page = read(&plane, &browser, "/deployments/1", cookie).await;
    assert!(page.contains("groups plant-a") && page.contains(&one.id), "{page}");
    let refused = send(&plane, &browser, &path, cookie, &[("groups", "Plant")]).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
}

/// A device's row on the fleet page, as opposed to its join token's.
fn link(device: &Device, name: &str) -> String {
    format!(r#"<a href="/devices/{}">{name}</a>"#, device.id)
}
