//! Downloads of a device: several sources, caps, metered links, room, and repair.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use fulmar_tests::{Fleet, Process, client, fulmar_ok, json_of, text, until};
use serde_json::{Value, json};

use crate::servers::Servers;

/// A fleet whose device has lost its model, and the servers beside it.
struct Lost {
    fleet: Fleet,
    servers: Servers,
}

impl Lost {
    fn new() -> Self {
        let fleet = Fleet::made();
        let dir = fleet.device_dir();
        let _ = fulmar_ok(&["rm", fleet.model(), "--dir", text(&dir)]);
        std::fs::remove_dir_all(dir.join("registry/blobs")).unwrap();
        Self { fleet, servers: Servers::start() }
    }

    fn agent(&self, settings: &str) -> Process {
        agent(&self.fleet, settings)
    }
}

fn agent(fleet: &Fleet, settings: &str) -> Process {
    let dir = fleet.device_dir();
    let config = dir.join("test.toml");
    std::fs::write(&config, settings).unwrap();
    let arguments =
        ["serve", "--dir", text(&dir), "--config", text(&config), "--listen", "127.0.0.1:0"];
    Process::start(&[&arguments[..], &["--ready-json"]].concat())
}

fn is_active(status: &Value) -> bool {
    status["models"][0]["slot"] == "active"
}

fn blobs_of(dir: &Path) -> Vec<std::path::PathBuf> {
    Servers::blobs(dir).0
}

#[test]
fn sources_are_tried_in_order_past_a_dead_one_a_liar_and_one_that_cuts() {
    let lost = Lost::new();
    let cdn = format!("http://{}/acme", lost.servers.said("cdn"));
    let _control = lost.fleet.start_control();
    let urls = json!(["http://127.0.0.1:9/blobs", format!("{cdn}/lies"), format!("{cdn}/cut")]);
    let _agent = lost.agent(&format!("[sync]\nblob_urls = {urls}\n"));
    lost.fleet.until_status("the model is active again", is_active);
    let seen = lost.servers.seen();
    let asked: Vec<(&str, u64)> = seen["asked"]
        .as_array()
        .unwrap()
        .iter()
        .map(|asked| {
            let range = asked[1].as_str().unwrap_or("bytes=0-");
            let offset = range.trim_start_matches("bytes=").trim_end_matches('-');
            (asked[0].as_str().unwrap(), offset.parse().unwrap())
        })
        .collect();
    let cut: Vec<u64> = asked
        .iter()
        .filter(|(path, _)| path.starts_with("/acme/cut/"))
        .map(|(_, at)| *at)
        .collect();
    assert!(asked[0].0.starts_with("/acme/lies/"), "{asked:?}");
    assert!(cut[0] > 0, "what was good of the liar's bytes is kept: {asked:?}");
    assert!(cut.is_sorted() && lost.servers.size() - cut.last().unwrap() <= 400_000, "{asked:?}");
}

#[test]
fn on_a_metered_link_a_large_model_waits_and_says_so() {
    let lost = Lost::new();
    let _control = lost.fleet.start_control();
    let metered = "[sync]\nlink_cost = \"metered\"\nmetered_bytes_max = 1000000\n";
    let agent = lost.agent(metered);
    let status = lost.fleet.until_status("it says why it waits", |status| {
        status["link"]["troubles"][0]["reason"].as_str().is_some_and(|r| r.contains("metered"))
    });
    let reason = status["link"]["troubles"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("at most 1000000"), "{reason}");
    assert!(reason.contains(&lost.servers.size().to_string()), "what is missing: {reason}");
    let dir = lost.fleet.device_dir();
    let weights = |path: &std::path::PathBuf| path.metadata().unwrap().len() > 1_000_000;
    assert!(!blobs_of(&dir).iter().any(weights), "not a byte was spent");
    assert_eq!(agent.stop(), 0);
    let _agent = lost.agent("[sync]\nlink_cost = \"unmetered\"\n");
    lost.fleet.until_status("it goes on", is_active);
}

#[test]
fn without_room_the_limit_and_what_was_asked_are_said() {
    let lost = Lost::new();
    let _control = lost.fleet.start_control();
    let _agent = lost.agent("[registry]\nblobs_bytes_max = 2000000\n");
    let status = lost.fleet.until_status("it says what is short", |status| {
        status["link"]["troubles"][0]["reason"].as_str().is_some_and(|r| r.contains("limit"))
    });
    let reason = status["link"]["troubles"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("limit of 2000000 bytes"), "{reason}");
    assert!(reason.contains(&lost.servers.size().to_string()), "{reason}");
}

#[test]
fn what_one_pull_was_promised_no_other_process_gets_until_it_ends() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let (device, other) = (dir.path().join("device"), dir.path().join("other.gguf"));
    let mut bytes = std::fs::read(crate::servers::model()).unwrap();
    let end = bytes.len() - 64;
    bytes[end] ^= 1;
    std::fs::write(&other, &bytes).unwrap();
    // Room for one and a half.
    let limit = servers.size() * 3 / 2;
    let config = dir.path().join("test.toml");
    std::fs::write(&config, format!("[registry]\nblobs_bytes_max = {limit}\n")).unwrap();
    let slow = ["pull", "hf.co/acme/tiny:Q8_0", "--bytes-per-s-max", "100000", "--config"];
    let mut first = servers
        .command(&device, &[&slow[..], &[text(&config)]].concat(), &[])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the first has begun", || {
        let begun = device.join("registry/incoming").is_dir()
            && Servers::blobs(&device).1.iter().any(|path| path.metadata().unwrap().len() > 0);
        begun.then_some(())
    });
    let second =
        ["pull", text(&other), "--name", "acme/other:v1", "--config", text(&config), "--json"];
    let refused = servers.refused(&device, &second, &[]);
    assert!(refused.contains(&format!("limit of {limit} bytes leaves")), "{refused}");
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(servers.json(&device, &second, &[])["name"], "acme/other:v1");
}

#[test]
fn a_bandwidth_cap_holds() {
    let lost = Lost::new();
    let _control = lost.fleet.start_control();
    let start = std::time::Instant::now();
    let _agent = lost.agent("[sync]\ndownload_bytes_per_s_max = 2000000\n");
    lost.fleet.until_status("the model is active again", is_active);
    let least = lost.servers.size() as f64 / 2_000_000.0;
    let took = start.elapsed().as_secs_f64();
    assert!(took > least * 0.8, "{took} s for what takes {least} s at the cap");
}

/// Flips a bit in the middle of a file, in place, as a dying disk does it; gives what was there.
pub(crate) fn flip(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    let mut permissions = std::fs::metadata(path).unwrap().permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "disks ask nobody")]
    permissions.set_readonly(false);
    std::fs::set_permissions(path, permissions).unwrap();
    // Only that byte: others may have the file mapped.
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[middle] ^ 1], middle as u64).unwrap();
    bytes
}

/// What the agent did with a model of that name, oldest first.
pub(crate) fn done_with(log: &str, model: &str) -> Vec<String> {
    let entries = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_model = entries.filter(|entry| entry["resource"] == model);
    let mut actions: Vec<(u64, String)> = of_model
        .map(|e| (e["seq"].as_u64().unwrap(), e["action"].as_str().unwrap().to_owned()))
        .collect();
    actions.sort_unstable();
    actions.into_iter().map(|(_, action)| action).collect()
}

#[test]
fn the_background_scrub_finds_a_flipped_bit_and_only_its_chunk_is_fetched_again() {
    let fleet = Fleet::made();
    let servers = Servers::start();
    let dir = fleet.device_dir();
    let _control = fleet.start_control();
    let cache = format!("http://{}/acme/tiny", servers.said("cdn"));
    let settings = format!("[registry]\nscrub_interval_s = 1\n[sync]\nblob_urls = [\"{cache}\"]\n");
    let _agent = agent(&fleet, &settings);
    let in_engine = || {
        let ps = json_of(&["ps", "--json", "--dir", text(&dir)]);
        ps["models"][0]["name"].as_str().map(str::to_owned)
    };
    let loaded = until("the model is loaded", in_engine);
    let largest = |path: &std::path::PathBuf| path.metadata().unwrap().len();
    let blob = blobs_of(&dir).into_iter().max_by_key(largest).unwrap();
    let bytes = flip(&blob);
    until("nobody asked, and it is whole again", || {
        std::fs::read(&blob).is_ok_and(|now| now == bytes).then_some(())
    });
    // What was made of the broken file has left the engine, and nobody had to ask for it to be back.
    let actions = until("it was mended", || {
        let list = ["audit", "list", "--json", "--limit", "50", "--dir", text(&dir)];
        let actions = done_with(&fulmar_ok(&list), fleet.model());
        actions.contains(&"model.repair".to_owned()).then_some(actions)
    });
    let at = |action: &str| actions.iter().position(|a| a == action).unwrap();
    assert!(at("model.end") < at("model.repair"), "{actions:?}");
    until("it is in the engine again", || in_engine().filter(|name| *name == loaded));
    let seen = servers.seen();
    let asked = seen["asked"].as_array().unwrap();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let range = asked[0][1].as_str().unwrap().trim_start_matches("bytes=");
    let (first, last) = range.split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    assert!((first..=last).contains(&(bytes.len() / 2)) && last - first < 5 << 20, "{range}");
    assert!(last - first + 1 < bytes.len() / 2, "{range} of {}", bytes.len());
}

/// A device without a fleet that has two releases of a model.
struct Two {
    servers: Servers,
    dir: tempfile::TempDir,
    device: std::path::PathBuf,
    changed: std::path::PathBuf,
    /// The manifests' digests.
    first: String,
    second: String,
    /// Where the second one's weights lie.
    blob: std::path::PathBuf,
}

impl Two {
    fn pulled() -> Self {
        let servers = Servers::start();
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        // Another release: the last weights differ.
        let changed = dir.path().join("changed.gguf");
        let mut bytes = std::fs::read(crate::servers::model()).unwrap();
        let end = bytes.len() - 64;
        bytes[end] ^= 1;
        std::fs::write(&changed, &bytes).unwrap();
        let first = pull(&servers, &device, &crate::servers::model());
        let second = pull(&servers, &device, &changed);
        assert_ne!(first, second);
        let shown = servers.json(&device, &["show", "acme/pumps:v1", "--json"], &[]);
        let hex = shown["weights_digest"].as_str().unwrap().trim_start_matches("sha256:");
        let blob = blobs_of(&device).into_iter().find(|path| path.ends_with(hex)).unwrap();
        Self { servers, dir, device, changed, first, second, blob }
    }
}

fn pull(servers: &Servers, device: &Path, file: &Path) -> String {
    let arguments = ["pull", text(file), "--name", "acme/pumps:v1", "--json"];
    servers.json(device, &arguments, &[])["digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_bit_that_flips_under_a_running_model_has_the_one_before_answer_until_it_is_pulled_again() {
    let Two { servers, dir: _dir, device, changed, first, second, blob } = Two::pulled();
    let config = device.join("test.toml");
    std::fs::write(&config, "[registry]\nscrub_interval_s = 1\n").unwrap();
    let serve = ["serve", "--dir", text(&device), "--config", text(&config)];
    let more = ["--listen", "127.0.0.1:0", "--ready-json", "--until-stdin-closes"];
    let agent = Process::start(&[&serve[..], &more].concat());
    let token = fulmar_ok(&["token", "mint", "--dir", text(&device)]).trim().to_owned();
    let url = format!("{}/chat/completions", agent.ready["api_urls"][0].as_str().unwrap());
    let ask = || {
        let messages = json!([{ "role": "user", "content": "turn on the fan" }]);
        let body = json!({ "model": "acme/pumps:v1", "messages": messages, "max_tokens": 16 });
        let answer = client().post(&url).bearer_auth(&token).json(&body).send().unwrap();
        assert_eq!(answer.status(), 200);
    };
    let in_engine = |digest: &str| {
        let ps = json_of(&["ps", "--json", "--dir", text(&device)]);
        let models = ps["models"].as_array().unwrap().iter();
        models.map(|m| m["name"].as_str().unwrap()).eq([format!("acme/pumps:v1@{digest}")])
    };
    ask();
    assert!(in_engine(&second));
    let _ = flip(&blob);
    until("the one before serves", || in_engine(&first).then_some(()));
    ask();
    let log = fulmar_ok(&["audit", "list", "--json", "--limit", "9", "--dir", text(&device)]);
    assert!(done_with(&log, "acme/pumps:v1").contains(&"model.end".to_owned()), "{log}");
    let doctor = servers.fulmar(&device, &["doctor"], &[]);
    let advice = "fulmar pull changed.gguf --name acme/pumps:v1 brings it back";
    assert!(doctor.code == 1 && doctor.stdout.contains(advice), "{}", doctor.stdout);
    assert_eq!(pull(&servers, &device, &changed), second, "the same bytes are the same release");
    until("it is back", || in_engine(&second).then_some(()));
    ask();
    assert_eq!(agent.stop(), 0);
}

#[test]
fn for_a_damaged_release_the_one_before_answers_unless_it_was_pinned() {
    let Two { servers, dir: _dir, device, first, second, blob, .. } = Two::pulled();
    let _ = flip(&blob);
    let answer = servers.fulmar(&device, &["run", "acme/pumps:v1", "turn on the fan"], &[]);
    assert!(answer.code == 0 && !answer.stdout.trim().is_empty(), "{}", answer.stderr);
    let log = servers.fulmar(&device, &["audit", "list", "--json", "--limit", "2"], &[]);
    assert!(log.stdout.contains(&first) && !log.stdout.contains(&second), "{}", log.stdout);
    let pinned = format!("acme/pumps:v1@{second}");
    let refused = servers.refused(&device, &["run", &pinned, "turn on the fan"], &[]);
    assert!(refused.contains(&second), "{refused}");
}

#[test]
fn every_command_finds_a_model_by_the_same_short_name() {
    let Two { servers, dir: _dir, device, first, second, .. } = Two::pulled();
    let shown = |name: &str| servers.json(&device, &["show", name, "--json"], &[]);
    let done = |arguments: &[&str]| {
        let output = servers.fulmar(&device, arguments, &[]);
        assert_eq!(output.code, 0, "{arguments:?}: {}", output.stderr);
    };
    for name in ["pumps", "acme/pumps", "acme/pumps:v1"] {
        let found = shown(name);
        assert_eq!((&found["name"], &found["digest"]), (&json!("acme/pumps:v1"), &json!(second)));
    }
    done(&["pin", "pumps"]);
    done(&["pin", "pumps", "--remove"]);
    done(&["rollback", "pumps"]);
    assert_eq!(shown("pumps")["digest"], json!(first));
    done(&["run", "pumps", "turn on the fan"]);
    done(&["rm", "pumps"]);
    // The other release is there, and does not serve.
    let refused = servers.refused(&device, &["show", "pumps"], &[]);
    assert!(refused.contains("acme/pumps:v1: it is installed and not active"), "{refused}");
}
