//! The governor from outside, on a host whose sensors are files of the test's.

use std::fs;
use std::path::Path;

use fulmar_tests::{Process, client, fulmar, fulmar_ok, json_of, root, text, until};
use serde_json::{Value, json};

fn write(host: &Path, file: &str, content: &str) {
    let path = host.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // In one go, so that no half of it is read.
    fs::write(path.with_extension("new"), content).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

fn heat(host: &Path, milli_c: &str) {
    write(host, "sys/class/thermal/thermal_zone0/temp", milli_c);
}

fn ps_when(place: &Path, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    until(what, || {
        let ps = json_of(&["ps", "--json", "--dir", text(place)]);
        holds(&ps).then_some(ps)
    })
}

fn causes(ps: &Value) -> Vec<String> {
    let reasons = ps["governor"]["reasons"].as_array().unwrap();
    reasons.iter().map(|r| r["cause"].as_str().unwrap().to_owned()).collect()
}

fn start(place: &Path, config: &Path) -> Process {
    let model = root().join("packaging/demo-model/fulmar-demo.gguf");
    Process::start(&[
        "serve",
        "--config",
        text(config),
        "--dir",
        text(place),
        "--model",
        text(&model),
        "--listen",
        "127.0.0.1:0",
        "--ready-json",
    ])
}

/// Where the agent listens.
fn address(agent: &Process) -> &str {
    agent.ready["api_urls"][0].as_str().unwrap().strip_suffix("/v1").unwrap()
}

/// What `/metrics` answers to a token.
fn metrics(agent: &Process, token: &str) -> (u16, String) {
    let asked = client().get(format!("{}/metrics", address(agent))).bearer_auth(token);
    let response = asked.send().unwrap();
    (response.status().as_u16(), response.text().unwrap())
}

fn token(place: &Path, role: &str) -> String {
    let minted = fulmar_ok(&["token", "mint", "--role", role, "--dir", text(place)]);
    minted.trim().to_owned()
}

fn ask(agent: &Process, token: &str) {
    let question = json!({ "model": "local/fulmar-demo:latest", "max_tokens": 4,
        "messages": [{ "role": "user", "content": "hello" }] });
    let url = format!("{}/v1/chat/completions", address(agent));
    let asked = client().post(url).bearer_auth(token).json(&question).send().unwrap();
    assert_eq!(asked.status(), 200);
}

#[test]
fn heat_and_an_empty_battery_narrow_the_engine_and_ps_and_metrics_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let (place, host, config) =
        (dir.path().join("device"), dir.path().join("host"), dir.path().join("fulmar.toml"));
    write(&host, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n");
    heat(&host, "45000\n");
    write(&host, "proc/pressure/cpu", "some avg10=0.50 avg60=0.00 avg300=0.00 total=1\n");
    write(&host, "proc/pressure/memory", "broken\n");
    fs::write(
        &config,
        format!("[engine]\nthreads = 4\n[governor]\ninterval_s = 1\nroot = {:?}\n", text(&host)),
    )
    .unwrap();
    let agent = start(&place, &config);
    let calm = ps_when(&place, "the sensors are read", |ps| ps["sensors"].is_object());
    assert_eq!(calm["threads"], 4);
    assert_eq!(calm["sensors"]["temperature_c"]["value"], 45.0);
    assert_eq!(calm["sensors"]["battery_percent"]["state"], "absent");
    let broken = &calm["sensors"]["memory_pressure_percent"];
    assert!(broken["reason"].as_str().unwrap().contains("proc/pressure/memory"), "{broken}");

    heat(&host, "85000\n");
    let hot = ps_when(&place, "heat narrows", |ps| causes(ps) == ["temperature"]);
    assert_eq!(hot["threads"], 2);
    heat(&host, "77000\n");
    for (field, value) in [("type", "Battery\n"), ("status", "Discharging\n"), ("capacity", "9\n")]
    {
        write(&host, &format!("sys/class/power_supply/BAT0/{field}"), value);
    }
    let both = ps_when(&place, "the battery too", |ps| causes(ps).len() == 2);
    assert_eq!(causes(&both), ["battery", "temperature"], "77 is within the margin of 80");
    assert_eq!(both["threads"], 1);
    assert_eq!(both["governor"]["speculation"], "off");
    let said = fulmar(&["ps", "--dir", text(&place)]).stdout;
    assert!(said.contains("narrowed: on battery at 9 %: 1 thread"), "{said}");
    assert!(said.contains("sensor memory_pressure_percent failed"), "{said}");
    let (operator, app) = (token(&place, "operator"), token(&place, "app"));
    assert_eq!(metrics(&agent, "").0, 401);
    let (status, refused) = metrics(&agent, &app);
    assert!(status == 403 && refused.contains("metrics.read"), "{status}: {refused}");
    let (status, said) = metrics(&agent, &operator);
    assert_eq!(status, 200);
    for line in [
        "fulmar_engine_narrowed{cause=\"battery\"} 1.0",
        "fulmar_engine_narrowed{cause=\"temperature\"} 1.0",
        "fulmar_engine_narrowed{cause=\"quiet_hours\"} 0.0",
        "fulmar_sensor_failed{sensor=\"memory_pressure_percent\"} 1.0",
        "fulmar_sensor_failed{sensor=\"temperature_c\"} 0.0",
        "fulmar_sensor_reading{sensor=\"battery_percent\"} 9.0",
        "fulmar_sensor_reading{sensor=\"temperature_c\"} 77.0",
        "fulmar_engine_threads 1",
        "fulmar_engine_models 1",
        "fulmar_engine_requests_total 0",
    ] {
        assert!(said.lines().any(|l| l == line), "{line}: {said}");
    }

    heat(&host, "60000\n");
    write(&host, "sys/class/power_supply/BAT0/status", "Charging\n");
    let again = ps_when(&place, "full strength again", |ps| causes(ps).is_empty());
    assert_eq!(again["threads"], 4);
    ask(&agent, &app);
    let (_, said) = metrics(&agent, &operator);
    for line in [
        "fulmar_engine_narrowed{cause=\"battery\"} 0.0",
        "fulmar_engine_narrowed{cause=\"temperature\"} 0.0",
        "fulmar_engine_threads 4",
        "fulmar_engine_requests_total 1",
        "fulmar_engine_completion_tokens_total 4",
        "fulmar_engine_running 0",
        "fulmar_questions_total{model=\"local/fulmar-demo:latest\"} 1",
        "fulmar_first_token_seconds_count 1",
    ] {
        assert!(said.lines().any(|l| l == line), "{line}: {said}");
    }
}

#[test]
fn a_governor_that_is_off_reads_nothing_and_a_wrong_setting_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (place, host, config) =
        (dir.path().join("device"), dir.path().join("host"), dir.path().join("fulmar.toml"));
    write(&host, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n");
    heat(&host, "99000\n");
    fs::write(&config, format!("[governor]\nmode = \"off\"\nroot = {:?}\n", text(&host))).unwrap();
    let agent = start(&place, &config);
    let ps = json_of(&["ps", "--json", "--dir", text(&place)]);
    assert!(ps["sensors"].is_null() && causes(&ps).is_empty(), "{ps}");
    assert_eq!(agent.stop(), 0);
    for (wrong, named) in [
        ("interval_s = 0", "governor.interval_s"),
        ("quiet_hours = [\"22\"]", "22:00-06:30"),
        ("battery = 5", "battery"),
    ] {
        fs::write(&config, format!("[governor]\n{wrong}\n")).unwrap();
        let refused = fulmar(&["serve", "--config", text(&config), "--dir", text(&place)]);
        assert_ne!(refused.code, 0);
        assert!(refused.stderr.contains(named), "{}", refused.stderr);
    }
}
