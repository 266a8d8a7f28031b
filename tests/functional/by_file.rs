//! A device that never has a link: it joins, gets its model and its owner's policy, and hands its
//! reports in, all by file.

use std::path::{Path, PathBuf};

use fulmar_tests::{Fleet, Process, fulmar, fulmar_ok, json_of, text, until};
use serde_json::{Value, json};

/// A device beside the fleet's own, whose agent never meets a control plane that runs.
struct Island<'a> {
    fleet: &'a Fleet,
    dir: PathBuf,
    id: String,
    token: String,
    bundles: std::cell::Cell<u32>,
}

impl<'a> Island<'a> {
    /// Joins by file: token and request go out, the answer comes back. Nothing is deployed to it.
    fn joined(fleet: &'a Fleet, place: &Path, name: &str) -> Self {
        let dir = place.join(name);
        let control = fleet.start_control();
        let made = json_of(
            &[&["join-token", "--hours", "48", "--json"][..], &fleet.console_access()].concat(),
        );
        assert_eq!(control.stop(), 0);
        let join_token = made["token"].as_str().unwrap();
        let file = |what: &str| place.join(format!("{name}-{what}.json"));
        let (request, answer, forged) = (file("request"), file("answer"), file("forged"));
        let enroll = ["enroll", join_token, "--name", name, "--dir", text(&dir)];
        let _ = fulmar_ok(&[&enroll[..], &["--request", text(&request)]].concat());
        let admitted = json_of(&[
            "control-plane",
            "admit",
            "--dir",
            text(&fleet.control_dir()),
            text(&request),
            "--out",
            text(&answer),
            "--json",
        ]);
        // An answer that somebody changed on the way, or that another token asked for, is refused.
        let whole = std::fs::read_to_string(&answer).unwrap();
        std::fs::write(&forged, whole.replacen("\"signature\":\"3", "\"signature\":\"4", 1))
            .unwrap();
        let refused = fulmar(&[&enroll[..], &["--answer", text(&forged)]].concat());
        assert_eq!(refused.code, 1, "{}", refused.stdout);
        assert!(refused.stderr.contains("not signed by the CA"), "{}", refused.stderr);
        let _ = fulmar_ok(&[&enroll[..], &["--answer", text(&answer)]].concat());
        let token = fulmar_ok(&["token", "mint", "--dir", text(&dir)]).trim().to_owned();
        let id = admitted["device_id"].as_str().unwrap().to_owned();
        Self { fleet, dir, id, token, bundles: 0.into() }
    }

    fn start_agent(&self) -> Process {
        Process::start(&[
            "serve",
            "--dir",
            text(&self.dir),
            "--listen",
            "127.0.0.1:0",
            "--ready-json",
            "--until-stdin-closes",
        ])
    }

    fn ask(&self, agent: &Process) -> (u16, Value) {
        let url = agent.ready["api_urls"][0].as_str().unwrap();
        let response = fulmar_tests::client()
            .post(format!("{url}/chat/completions"))
            .bearer_auth(&self.token)
            .json(&json!({
                "model": self.fleet.model(), "max_tokens": 8, "temperature": 0,
                "messages": [{ "role": "user", "content": "turn on the fan" }],
            }))
            .send()
            .unwrap();
        (response.status().as_u16(), response.json().unwrap())
    }

    /// Writes a bundle for the device at the control plane.
    fn export(&self) -> PathBuf {
        self.bundles.set(self.bundles.get() + 1);
        let out = self.dir.with_file_name(format!("{}.bundle", self.bundles.get()));
        let _ = export(self.fleet, &["--device", &self.id], &out);
        out
    }

    fn import(&self, bundle: &Path) -> Value {
        json_of(&["bundle", "import", text(bundle), "--json", "--dir", text(&self.dir)])
    }

    /// Carries a file of reports to the control plane.
    fn hand_in(&self, name: &str) -> Value {
        let out = self.dir.with_file_name(name);
        let _ = fulmar_ok(&["bundle", "report", "--out", text(&out), "--dir", text(&self.dir)]);
        self.take(&out)
    }

    fn take(&self, file: &Path) -> Value {
        let dir = self.fleet.control_dir();
        json_of(&["control-plane", "reports", "--dir", text(&dir), text(file), "--json"])
    }
}

/// Writes a bundle at the control plane; gives what that says.
fn export(fleet: &Fleet, whom: &[&str], out: &Path) -> Value {
    let dir = fleet.control_dir();
    let export = ["bundle", "export", "--dir", text(&dir), "--json", "--out", text(out)];
    json_of(&[&export[..], whom].concat())
}

/// Deploys the fleet's model.
fn deploy(fleet: &Fleet, devices: &Value) {
    let control = fleet.start_control();
    fleet.operate("deployments", &json!({ "model": fleet.model(), "devices": devices }));
    assert_eq!(control.stop(), 0);
}

/// The owner changes the policy, and the operator hands it to the control plane.
fn policy(fleet: &Fleet, command: &str, arguments: &[&str]) {
    let registry = fleet.owner_dir().join("registry");
    let key = fleet.owner_dir().join("registry.key");
    let change = ["registry", "policy", command, text(&registry), "--key", text(&key)];
    let _ = fulmar_ok(&[&change[..], arguments].concat());
    let control = fleet.start_control();
    let _ = fulmar_ok(&[&["publish", text(&registry)][..], &fleet.console_access()].concat());
    assert_eq!(control.stop(), 0);
}

#[test]
fn a_device_that_never_has_a_link_gets_all_by_file_and_hands_in_all_by_file() {
    let fleet = Fleet::made();
    let place = tempfile::tempdir().unwrap();
    let island = Island::joined(&fleet, place.path(), "island");
    deploy(&fleet, &json!([&island.id]));
    policy(&fleet, "max-offline", &["30d"]);
    let first = island.export();
    assert_eq!(island.import(&first)["models"], json!([fleet.model()]));
    let agent = island.start_agent();
    until("the model answers", || (island.ask(&agent).0 == 200).then_some(()));

    // The owner takes the model back; the word travels by file, and a running agent follows it. (The
    // agent rests while the control plane runs: it would find it on this machine.)
    assert_eq!(agent.stop(), 0);
    policy(&fleet, "revoke", &["--model", fleet.model(), "--reason", "it leaks"]);
    let agent = island.start_agent();
    assert_eq!(island.ask(&agent).0, 200, "nobody told the device yet");
    island.import(&island.export());
    until("the model is ended", || {
        let (status, body) = island.ask(&agent);
        (status == 403 && body["error"]["code"] == "model_revoked").then_some(())
    });
    let (_, body) = island.ask(&agent);
    assert!(body["error"]["message"].as_str().unwrap().contains("it leaks"), "{body}");
    let doctor = fulmar(&["doctor", "--dir", text(&island.dir)]);
    assert_eq!(doctor.code, 1);
    assert!(doctor.stdout.contains("does not run here: it was revoked"), "{}", doctor.stdout);
    let older = fulmar(&["bundle", "import", text(&first), "--dir", text(&island.dir)]);
    assert!(older.stderr.contains("its serial number is"), "{}", older.stderr);
    assert_eq!(agent.stop(), 0);

    // The way back: reports out, twice; the acknowledgement comes with the next bundle.
    let taken = island.hand_in("1.reports");
    assert!(taken["reports"].as_u64().unwrap() > 10, "{taken}");
    assert_eq!((&taken["known"], &taken["cosigned"]), (&json!(0), &json!(true)), "{taken}");
    let again = island.take(&island.dir.with_file_name("1.reports"));
    assert_eq!(again["known"], taken["reports"], "{again}");
    let brought = island.import(&island.export());
    assert_eq!(brought["acked_through"], taken["acked_through"]);
    assert_eq!(island.hand_in("2.reports")["reports"], 0, "the outbox is empty");
    let verified = json_of(&["audit", "verify", "--json", "--dir", text(&island.dir)]);
    assert_eq!(verified["cosigned_entries"], verified["entries"]);

    let _control = fleet.start_control();
    let shown = fleet.operator(&format!("devices/{}", island.id));
    assert_eq!((&shown["name"], &shown["address"]), (&json!("island"), &json!("by file")));
    assert_eq!(shown["audit_log"]["fault"], Value::Null);
    assert_eq!(shown["audit_log"]["verified_entries"], verified["entries"]);
    assert_eq!(shown["models"][0]["name"], json!(fleet.model()));
    let entries = fleet.operator(&format!("devices/{}/audit?limit=200", island.id)).to_string();
    for action in ["policy.accept", "model.install", "model.run", "model.end"] {
        assert!(entries.contains(action), "{action}: {entries}");
    }
}

#[test]
fn a_bundle_for_a_group_is_taken_by_its_members_and_refused_by_whoever_is_not() {
    let fleet = Fleet::made();
    let place = tempfile::tempdir().unwrap();
    let member = Island::joined(&fleet, place.path(), "member");
    let other = Island::joined(&fleet, place.path(), "other");
    let group = |verb: &str, arguments: &[&str]| {
        let dir = fleet.control_dir();
        let group = ["control-plane", "group", verb, "--dir", text(&dir), "--json"];
        json_of(&[&group[..], arguments].concat())
    };
    let added = group("add", &["plant-a", "member"]);
    assert_eq!(added["devices"][0]["device_id"], json!(member.id));
    assert_eq!(group("list", &[])["groups"], json!([{ "name": "plant-a", "devices": 1 }]));
    deploy(&fleet, &json!({ "groups": ["plant-a"] }));

    let bundles: Vec<PathBuf> =
        (0..3).map(|n| place.path().join(format!("plant-a-{n}.bundle"))).collect();
    let first = export(&fleet, &["--group", "plant-a"], &bundles[0]);
    assert_eq!((&first["devices"], &first["groups"]), (&json!([member.id]), &json!(["plant-a"])));
    let shown = fulmar_ok(&["bundle", "show", text(&bundles[0])]);
    assert!(shown.contains(&format!("for group plant-a ({})", member.id)), "{shown}");
    assert_eq!(member.import(&bundles[0])["models"], json!([fleet.model()]));
    let import = |island: &Island<'_>, bundle: &Path| {
        fulmar(&["bundle", "import", text(bundle), "--dir", text(&island.dir)])
    };
    let refused = import(&other, &bundles[0]);
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    let words = format!("it is for group plant-a ({}); this device is {}", member.id, other.id);
    assert!(refused.stderr.contains(&words), "{}", refused.stderr);

    // Who joins the group later gets what was deployed to it, with the next bundle. An older bundle
    // undoes nothing.
    let unknown = fulmar(&[
        "bundle",
        "export",
        "--dir",
        text(&fleet.control_dir()),
        "--group",
        "plant-b",
        "--out",
        text(&bundles[1]),
    ]);
    assert!(unknown.stderr.contains("there is no group plant-b"), "{}", unknown.stderr);
    group("add", &["plant-a", &other.id]);
    let both = export(&fleet, &["--group", "plant-a", "--device", "member"], &bundles[1]);
    assert_eq!(both["devices"].as_array().unwrap().len(), 2, "{both}");
    for island in [&member, &other] {
        assert_eq!(island.import(&bundles[1])["models"], json!([fleet.model()]));
    }
    let older = import(&member, &bundles[0]);
    assert_eq!(older.code, 1, "{}", older.stdout);
    assert!(older.stderr.contains("its serial number is"), "{}", older.stderr);
    let agent = other.start_agent();
    until("the model answers", || (other.ask(&agent).0 == 200).then_some(()));
    assert_eq!(agent.stop(), 0);

    // The way back, over the console of a control plane that runs.
    let reports = place.path().join("other.reports");
    let _ = fulmar_ok(&["bundle", "report", "--out", text(&reports), "--dir", text(&other.dir)]);
    let control = fleet.start_control();
    let hand_in = ["bundle", "hand-in", text(&reports), "--json"];
    let taken = json_of(&[&hand_in[..], &fleet.console_access()].concat());
    assert_eq!((&taken["device_id"], &taken["known"]), (&json!(other.id), &json!(0)), "{taken}");
    let listed = ["group", "list", "plant-a", "--json"];
    let listed = json_of(&[&listed[..], &fleet.console_access()].concat());
    assert_eq!(listed["devices"].as_array().unwrap().len(), 2, "{listed}");
    let remove = ["group", "remove", "plant-a", "other", "--json"];
    let left = json_of(&[&remove[..], &fleet.console_access()].concat());
    assert_eq!(left["devices"][0]["removed"], json!(["plant-a"]));
    assert_eq!(control.stop(), 0);
    let _ = export(&fleet, &["--device", &other.id], &bundles[2]);
    assert_eq!(other.import(&bundles[2])["acked_through"], taken["acked_through"]);
}
