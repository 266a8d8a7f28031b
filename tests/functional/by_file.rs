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
    /// Joins by file: token and request go out, the answer comes back.
    fn joined(fleet: &'a Fleet, place: &Path) -> Self {
        let dir = place.join("island");
        let control = fleet.start_control();
        let made =
            json_of(&[&["join-token", "--hours", "48", "--json"][..], &access(fleet)].concat());
        assert_eq!(control.stop(), 0);
        let join_token = made["token"].as_str().unwrap();
        let (request, answer) = (place.join("request.json"), place.join("answer.json"));
        let enroll = ["enroll", join_token, "--name", "island", "--dir", text(&dir)];
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
        let forged = place.join("forged.json");
        let whole = std::fs::read_to_string(&answer).unwrap();
        std::fs::write(&forged, whole.replacen("\"signature\":\"3", "\"signature\":\"4", 1))
            .unwrap();
        let refused = fulmar(&[&enroll[..], &["--answer", text(&forged)]].concat());
        assert_eq!(refused.code, 1, "{}", refused.stdout);
        assert!(refused.stderr.contains("not signed by the CA"), "{}", refused.stderr);
        let _ = fulmar_ok(&[&enroll[..], &["--answer", text(&answer)]].concat());
        let token = fulmar_ok(&["token", "mint", "--dir", text(&dir)]).trim().to_owned();
        let id = admitted["device_id"].as_str().unwrap().to_owned();
        let control = fleet.start_control();
        fleet.operate("deployments", &json!({ "model": fleet.model(), "devices": [&id] }));
        assert_eq!(control.stop(), 0);
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
        let dir = self.fleet.control_dir();
        let export = ["bundle", "export", "--dir", text(&dir), "--device", &self.id, "--out"];
        let _ = fulmar_ok(&[&export[..], &[text(&out)]].concat());
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

fn access(fleet: &Fleet) -> [&str; 4] {
    let console = fleet.facts["console_url"].as_str().unwrap();
    ["--console", console, "--password", fleet.facts["console_password"].as_str().unwrap()]
}

/// The owner changes the policy, and the operator hands it to the control plane.
fn policy(fleet: &Fleet, command: &str, arguments: &[&str]) {
    let registry = fleet.owner_dir().join("registry");
    let key = fleet.owner_dir().join("registry.key");
    let change = ["registry", "policy", command, text(&registry), "--key", text(&key)];
    let _ = fulmar_ok(&[&change[..], arguments].concat());
    let control = fleet.start_control();
    let _ = fulmar_ok(&[&["publish", text(&registry)][..], &access(fleet)].concat());
    assert_eq!(control.stop(), 0);
}

#[test]
fn a_device_that_never_has_a_link_gets_all_by_file_and_hands_in_all_by_file() {
    let fleet = Fleet::made();
    let place = tempfile::tempdir().unwrap();
    let island = Island::joined(&fleet, place.path());
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
