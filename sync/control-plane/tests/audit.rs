//! Devices' audit logs: co-signed where the entries handed in give the signed head, and a rewritten
//! history found, recorded and shown. Over the link, and by file.

#![allow(clippy::unwrap_used)]

mod plane;

use fulmar_policy::audit::{Reported, Tree, signature_holds};
use fulmar_protocol::{
    AuditCheckpoint, CheckIn, OutboxAck, OutboxBatch, Report, ReportFile, ReportFileBody,
};
use plane::{Device, Plane, check_in, code, now_s};
use reqwest::Method;
use serde_json::{Value, json};

/// A device's log, as the device keeps it.
#[derive(Clone, Default)]
struct Log {
    entries: Vec<Reported>,
}

impl Log {
    fn of(texts: &[&str]) -> Self {
        let mut log = Self::default();
        texts.iter().for_each(|text| log.add(text));
        log
    }

    fn add(&mut self, text: &str) {
        let mut entry = Reported {
            seq: self.entries.len() as u64 + 1,
            at_s: 1_900_000_000,
            actor: "app".into(),
            action: "model.run".into(),
            resource: "acme/tiny:v1".into(),
            outcome: "completed".into(),
            opened: None,
            // Fields in an order of their own, and a number that printing anew would change.
            detail_json: format!(r#"{{"z":1.10,"a":"{text}"}}"#),
            leaf: String::new(),
        };
        entry.leaf = hex::encode(entry.leaf_hash());
        self.entries.push(entry);
    }

    fn reports(&self, from: usize, to: usize) -> Vec<Report> {
        let entries = self.entries[from..to].iter();
        entries
            .map(|entry| Report {
                seq: entry.seq,
                at_s: entry.at_s,
                kind: "audit".into(),
                body: json!(entry),
            })
            .collect()
    }

    /// A check-in with the head over the first `entries` entries, signed.
    fn check_in(&self, device: &Device, entries: usize) -> CheckIn {
        let mut tree = Tree::default();
        self.entries[..entries].iter().for_each(|entry| tree.push(entry.leaf_hash()));
        let name = hex::encode(device.audit_key.public());
        let signature = device.audit_key.sign(&name, entries as u64, &tree.root());
        let mut request = check_in(0);
        request.audit_checkpoint = Some(AuditCheckpoint {
            entries: entries as u64,
            root: hex::encode(tree.root()),
            signature: hex::encode(signature),
        });
        request
    }
}

async fn hand_in(device: &Device, reports: Vec<Report>) {
    let ack = device.post("outbox", &OutboxBatch { reports }).await;
    let _: OutboxAck = ack.json().await.unwrap();
}

async fn log_of(plane: &Plane, device: &Device) -> Value {
    plane.get(&format!("/api/v1/devices/{}", device.id)).await["audit_log"].clone()
}

#[tokio::test]
async fn a_head_is_co_signed_when_the_entries_handed_in_give_it_and_not_before() {
    let plane = Plane::start().await;
    let device = plane.device("prover").await;
    let log = Log::of(&["one", "two", "three", "four", "five", "six", "seven"]);
    hand_in(&device, log.reports(0, 3)).await;
    assert_eq!(device.check_in(&log.check_in(&device, 5)).await.audit_cosignature, None);
    let seen = json!({ "entries": 3, "verified_entries": 0, "fault": null });
    assert_eq!(log_of(&plane, &device).await, seen, "what has not come yet is no fault");

    hand_in(&device, log.reports(3, 7)).await;
    let first = device.check_in(&log.check_in(&device, 5)).await.audit_cosignature.unwrap();
    let key = hex::decode(&device.joined.audit_cosign_key).unwrap();
    let checkpoint = log.check_in(&device, 5).audit_checkpoint.unwrap();
    let root = hex::decode(checkpoint.root).unwrap().try_into().unwrap();
    let name = hex::encode(device.audit_key.public());
    assert!(signature_holds(&key, &name, 5, &root, &hex::decode(&first).unwrap()));
    let again = device.check_in(&log.check_in(&device, 5)).await.audit_cosignature;
    assert_eq!(again.as_deref(), Some(first.as_str()));
    assert!(device.check_in(&log.check_in(&device, 7)).await.audit_cosignature.is_some());
    let seen = json!({ "entries": 7, "verified_entries": 7, "fault": null });
    assert_eq!(log_of(&plane, &device).await, seen);
    // Operators read the detail as it was.
    let shown = plane.get(&format!("/api/v1/devices/{}/audit?limit=1", device.id)).await;
    assert_eq!(shown["entries"][0]["body"]["detail"]["a"], "seven");

    // A head with a wrong signature is refused, and is no fault of the log.
    let mut forged = log.check_in(&device, 6);
    forged.audit_checkpoint.as_mut().unwrap().entries = 12;
    assert_eq!(device.check_in(&forged).await.audit_cosignature, None);
    assert_eq!(log_of(&plane, &device).await["fault"], Value::Null);
}

#[tokio::test]
async fn a_device_that_rewrites_its_history_is_found_and_shown() {
    let plane = Plane::start().await;
    let honest = Log::of(&["one", "two", "three"]);
    let rewritten = Log::of(&["one", "nothing happened", "three"]);
    let mut changed = honest.clone();
    changed.entries[1].actor = "nobody".into();

    // Signs a head over another history than it handed in.
    let liar = plane.device("liar").await;
    hand_in(&liar, honest.reports(0, 3)).await;
    assert_eq!(liar.check_in(&rewritten.check_in(&liar, 3)).await.audit_cosignature, None);
    // Hands in an entry that its hash is not of.
    let forger = plane.device("forger").await;
    hand_in(&forger, changed.reports(0, 3)).await;
    // Leaves entries out.
    let silent = plane.device("silent").await;
    let mut gap = honest.reports(0, 1);
    gap.push(Report { seq: 2, ..honest.reports(2, 3).remove(0) });
    hand_in(&silent, gap).await;
    // Tells an entry again, as another.
    let teller = plane.device("teller").await;
    hand_in(&teller, honest.reports(0, 3)).await;
    let again = Report { seq: 4, ..rewritten.reports(1, 2).remove(0) };
    hand_in(&teller, vec![again]).await;
    // Goes back behind what was co-signed.
    let cutter = plane.device("cutter").await;
    hand_in(&cutter, honest.reports(0, 3)).await;
    assert!(cutter.check_in(&honest.check_in(&cutter, 3)).await.audit_cosignature.is_some());
    assert_eq!(cutter.check_in(&honest.check_in(&cutter, 2)).await.audit_cosignature, None);

    for (device, fault) in [
        (&liar, "over 3 entries is not that of the entries handed in"),
        (&forger, "entry 2 is not the one that its hash is of"),
        (&silent, "entries 2 to 2 were never handed in"),
        (&teller, "entry 2 was handed in again as another"),
        (&cutter, "cut or rewritten"),
    ] {
        let seen = log_of(&plane, device).await;
        let found = seen["fault"].as_str().unwrap_or_default();
        assert!(found.contains(fault), "expected {fault:?}, found {seen}");
        // Nothing is co-signed from then on, whatever it says.
        let answer = device.check_in(&honest.check_in(device, 3)).await.audit_cosignature;
        let known = plane.get(&format!("/api/v1/devices/{}", device.id)).await;
        let before = known["audit_checkpoint"]["cosignature"].as_str().map(str::to_owned);
        assert_eq!(answer, before, "{fault}");
    }
    let recorded = plane.get("/api/v1/audit?limit=500").await.to_string();
    assert!(recorded.contains("checkpoint.cosign") && recorded.contains("not that of the entries"));
}

fn file(device: &Device, serial: u64, check_in: CheckIn, reports: Vec<Report>) -> ReportFile {
    let body = ReportFileBody { device_id: device.id.clone(), serial, check_in, reports };
    ReportFile::make(&body, |bytes| hex::encode(device.audit_key.sign_reports(bytes))).unwrap()
}

async fn by_file(plane: &Plane, file: &ReportFile) -> reqwest::Response {
    plane.call(Method::POST, "/api/v1/report-files", Some(json!(file))).await
}

#[tokio::test]
async fn a_file_of_reports_is_taken_as_if_it_had_come_over_the_link_any_number_of_times() {
    let plane = Plane::start().await;
    let device = plane.device("island").await;
    let log = Log::of(&["one", "two", "three"]);
    let mut told = log.check_in(&device, 3);
    told.disk_free_bytes = 77;
    let first = file(&device, 1, told.clone(), log.reports(0, 3));
    for known in [0, 3] {
        let taken: Value = by_file(&plane, &first).await.json().await.unwrap();
        assert_eq!((&taken["reports"], &taken["known"]), (&json!(3), &json!(known)));
        assert_eq!((&taken["acked_through"], &taken["cosigned"]), (&json!(3), &json!(true)));
    }
    let shown = plane.get(&format!("/api/v1/devices/{}", device.id)).await;
    assert_eq!((&shown["disk_free_bytes"], &shown["address"]), (&json!(77), &json!("by file")));
    assert_eq!(shown["audit_log"]["verified_entries"], 3);
    let entries = plane.get(&format!("/api/v1/devices/{}/audit", device.id)).await;
    assert_eq!(entries["entries"].as_array().unwrap().len(), 3);

    // An older file does not undo what a newer one said, nor what came over the link after it.
    told.disk_free_bytes = 55;
    told.clock_s = now_s() + 5;
    by_file(&plane, &file(&device, 2, told.clone(), Vec::new())).await;
    by_file(&plane, &first).await;
    let shown = plane.get(&format!("/api/v1/devices/{}", device.id)).await;
    assert_eq!(shown["disk_free_bytes"], 55);
    let mut online = check_in(0);
    (online.disk_free_bytes, online.clock_s) = (33, now_s() + 9);
    device.check_in(&online).await;
    by_file(&plane, &file(&device, 3, told, Vec::new())).await;
    let shown = plane.get(&format!("/api/v1/devices/{}", device.id)).await;
    assert_eq!(shown["disk_free_bytes"], 33);
}

#[tokio::test]
async fn a_changed_or_foreign_file_of_reports_is_refused_and_nothing_of_it_stays() {
    let plane = Plane::start().await;
    let (device, other) = (plane.device("island").await, plane.device("other").await);
    let log = Log::of(&["one"]);
    let good = file(&device, 1, log.check_in(&device, 1), log.reports(0, 1));
    let foreign = file(&other, 1, log.check_in(&other, 1), log.reports(0, 1));
    let mut changed = good.clone();
    changed.body = foreign.body.clone();
    let posing = ReportFile { device_id: device.id.clone(), ..foreign };
    let unknown = ReportFile { device_id: "d-unknown".into(), ..good.clone() };
    let newer = ReportFile { schema: 2, ..good.clone() };
    for (file, expected) in [(changed, 400), (posing, 400), (newer, 400), (unknown, 404)] {
        let (status, found) = code(by_file(&plane, &file).await).await;
        assert_eq!(status, expected, "{found}");
    }
    let entries = plane.get(&format!("/api/v1/devices/{}/audit", device.id)).await;
    assert_eq!(entries["entries"], json!([]));
}
