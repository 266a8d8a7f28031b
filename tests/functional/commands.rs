//! Commands that no other test needs for something else.

use std::process::Command;

use fulmar_tests::{Fleet, Process, fulmar, fulmar_ok, json_of, python, root, text};
use serde_json::{Value, json};

/// The models that a device has, by slot and quantisation.
fn slots(dir: &str) -> Vec<(String, String)> {
    let listed = json_of(&["list", "--json", "--dir", dir]);
    let word = |model: &Value, field: &str| model[field].as_str().unwrap_or("-").to_owned();
    let models = listed.as_array().unwrap().iter();
    models.map(|model| (word(model, "slot"), word(model, "quantization"))).collect()
}

#[test]
fn a_folder_is_converted_and_quantised_and_the_release_before_serves_again() {
    let place = tempfile::tempdir().unwrap();
    let (folder, small) = (place.path().join("folder"), place.path().join("small"));
    let script = root().join("tests/functional/make_folder.py");
    let made = Command::new(python()).args([&script, &folder]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::create_dir(&small).unwrap();
    let (whole, small) = (place.path().join("tiny.gguf"), small.join("tiny.gguf"));
    let convert = ["convert", text(&folder), "-o", text(&whole), "--name", "tiny"];
    let said = fulmar_ok(&convert);
    assert!(said.contains("25 tensors"), "{said}");
    let said = fulmar_ok(&["quantize", text(&whole), "-o", text(&small), "--to", "Q8_0"]);
    assert!(said.contains("25 tensors"), "{said}");
    let size = |path| std::fs::metadata(path).unwrap().len();
    assert!(size(&small) < size(&whole) * 2 / 3, "half the bits, and headers");
    let refused = fulmar(&["quantize", text(&whole), "-o", text(&small), "--to", "Q9_9"]);
    assert!(refused.code != 0 && refused.stderr.contains("Q4_K_M"), "{}", refused.stderr);
    let refused = fulmar(&["convert", text(place.path()), "-o", text(&small)]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("find config.json"), "{}", refused.stderr);

    let dir = place.path().join("device");
    let at = ["--dir", text(&dir)];
    let ask = |model: &str| {
        let question = ["run", model, "hello", "--temperature", "0", "--max-tokens", "4"];
        fulmar_ok(&[&question[..], &at].concat())
    };
    let answer = ask(text(&whole));
    let _ = ask(text(&small));
    let pair = |slot: &str, quantization: &str| (slot.to_owned(), quantization.to_owned());
    let after = [pair("active", "Q8_0"), pair("previous", "F16")];
    assert_eq!(slots(text(&dir)), after);
    let back = ["rollback", "local/tiny:latest", "--reason", "it was better"];
    let _ = fulmar_ok(&[&back[..], &at].concat());
    let listed = slots(text(&dir));
    assert!(listed.contains(&pair("active", "F16")), "{listed:?}");
    assert_eq!(ask("tiny"), answer);
    let log = fulmar_ok(&[&["audit", "list", "--json"][..], &at].concat());
    assert!(log.contains("model.rollback") && log.contains("it was better"), "{log}");
    let again = fulmar(&[&back[..], &at].concat());
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("no previous release"), "{}", again.stderr);
}

#[test]
fn sync_meets_the_control_plane_now() {
    let fleet = Fleet::made();
    let _control = fleet.start_control_checked_in_every("600000");
    let _agent = fleet.start_agent();
    let dir = fleet.device_dir();
    fleet.until_status("the device checks in", |s| s["link"]["state"] == "online");
    fleet.release("acme/pumps:1", &[]);
    // The next check-in by itself is ten minutes away.
    let nudged = json_of(&["sync", "--json", "--dir", text(&dir)]);
    assert_eq!(nudged["nudged"], true, "{nudged}");
    fleet.until_status("the model is active", |status| {
        let mut models = status["models"].as_array().unwrap().iter();
        models.any(|model| model["name"] == "acme/pumps:1" && model["slot"] == "active")
    });

    let alone = tempfile::tempdir().unwrap();
    let at = ["--dir", text(alone.path())];
    let refused = fulmar(&[&["sync"][..], &at].concat());
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("fulmar serve"), "{}", refused.stderr);
    let serve = ["serve", "--listen", "127.0.0.1:0", "--ready-json"];
    let _lonely = Process::start(&[&serve[..], &at].concat());
    let said = fulmar_ok(&[&["sync"][..], &at].concat());
    assert!(said.contains("belongs to no fleet"), "{said}");
}

#[test]
fn config_check_and_doctor_refuse_what_serve_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fulmar.toml");
    let at = ["--config", text(&file), "--dir", text(dir.path())];
    let said = |command: &[&str]| fulmar(&[command, &at].concat());
    std::fs::write(&file, "[http]\nlisten = [\"127.0.0.1:0\"]\n").unwrap();
    let good = said(&["config", "check"]);
    assert_eq!(good.code, 0, "{}", good.stderr);
    assert!(good.stdout.contains("the configuration holds"), "{}", good.stdout);
    for (text, words) in [
        ("[http]\nlisten = [\"0.0.0.0:1\"]", "http.exposure"),
        ("[engine]\nqueue_len_max = 0", "queue_len_max is 0, expected 1 to 65536"),
        ("[governor]\ninterval_s = 0", "interval_s"),
        ("[log]\nlevel = \"fulmar=loud\"", "log.level"),
        ("[sync]\nblob_urls = [\"ftp://cache.local\"]", "sync.blob_urls"),
    ] {
        std::fs::write(&file, text).unwrap();
        for command in [&["config", "check"][..], &["serve", "--ready-json"]] {
            let refused = said(command);
            assert_eq!(refused.code, 1, "{command:?} with {text}: {}", refused.stdout);
            assert!(refused.stderr.contains(words), "{command:?}: {}", refused.stderr);
        }
        let checks: Value = serde_json::from_str(&said(&["doctor", "--json"]).stdout).unwrap();
        let configuration = &checks[0];
        assert_eq!(
            (&configuration["what"], &configuration["finding"]),
            (&json!("configuration"), &json!("bad"))
        );
        assert!(configuration["said"].as_str().unwrap().contains(words), "{configuration}");
    }
}
