//! Models found in a fleet's registry, offline; and named by digest wherever a model is named.

use fulmar_tests::{Fleet, client, fulmar, fulmar_ok, json_of, root, text, until};
use serde_json::{Value, json};

/// Asks the agent as an app does.
fn get(fleet: &Fleet, url: &str, path: &str) -> (u16, Value) {
    let url = format!("{}{path}", url.trim_end_matches("/v1"));
    let answer = client().get(url).bearer_auth(fleet.token()).send().unwrap();
    (answer.status().as_u16(), answer.json().unwrap())
}

#[test]
fn the_registrys_models_are_found_offline_on_the_command_line_and_over_http() {
    let fleet = Fleet::made();
    let control = fleet.start_control();
    let measured = ["--evaluation", "held-out commands:exact_match=0.951:1000"];
    let more = [&["--license", "MIT", "--source", "plant A"][..], &measured].concat();
    fleet.release("acme/pumps:1", &more);
    let agent = fleet.start_agent();
    fleet.until_status("both models are active", |status| {
        let active = |m: &&Value| m["slot"] == "active";
        status["models"].as_array().unwrap().iter().filter(active).count() == 2
    });
    // The link goes: what was verified is what is searched.
    assert_eq!(control.stop(), 0);
    let dir = fleet.device_dir();
    let search =
        |more: &[&str]| json_of(&[&["search", "--json", "--dir", text(&dir)][..], more].concat());
    let names = |found: &Value| {
        let models = found["models"].as_array().unwrap().iter();
        models.map(|m| m["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = search(&[]);
    assert_eq!(names(&all), ["acme/pumps:1", fleet.model()]);
    assert_eq!(all["source"], "registry");
    assert!(all["age_s"].as_u64().is_some() && all["expires_s"].as_i64().is_some(), "{all}");
    let pumps = &all["models"][0];
    assert_eq!((&pumps["here"], &pumps["wanted"]), (&json!("active"), &json!(true)));
    assert_eq!(pumps["facts"]["quantization"], "Q8_0");
    let result = json!({
        "task": "held-out commands", "metric": "exact_match", "value": 0.951, "cases": 1000,
    });
    assert_eq!(pumps["facts"]["evaluation"], json!([result]));
    // More than its file, for there is a cache; less than ten times that, for it is a small one.
    let need = pumps["facts"]["memory_bytes"].as_u64().unwrap();
    let size = pumps["facts"]["size_bytes"].as_u64().unwrap();
    assert!((size..10 * size + (64 << 20)).contains(&need), "{need} bytes for {size}");
    let (enough, short) = (need.to_string(), (need - 1).to_string());
    for (more, found) in [
        (&["PUMPS"][..], &["acme/pumps:1"][..]),
        (&["plant a"], &["acme/pumps:1"]),
        (&["--license", "mit", "--quantization", "q8_0"], &["acme/pumps:1", fleet.model()]),
        (&["--size-class", "small"], &[]),
        (&["--architecture", "gemma3"], &[]),
        (&["--context-tokens-min", "1000000"], &[]),
        (&["held-out"], &["acme/pumps:1"]),
        (&["--memory-bytes-max", enough.as_str()], &["acme/pumps:1", fleet.model()]),
        (&["--memory-bytes-max", short.as_str()], &[]),
    ] {
        assert_eq!(names(&search(more)), found, "{more:?}");
    }
    let table = fulmar_ok(&["search", "pumps", "--dir", text(&dir)]);
    assert!(table.contains("active") && table.contains("as signed"), "{table}");
    let shown = fulmar_ok(&["show", "acme/pumps:1", "--dir", text(&dir)]);
    for words in ["with its whole context", "exact_match=0.951:1000", "plant A"] {
        assert!(shown.contains(words), "{shown}");
    }
    let list = ["list", "--json", "--dir", text(&dir), "--memory-bytes-max"];
    let listed = |bytes: &str| json_of(&[&list[..], &[bytes]].concat()).as_array().unwrap().len();
    assert_eq!((listed(&enough), listed(&short)), (2, 0));

    let url = agent.ready["api_urls"][0].as_str().unwrap();
    let (status, found) = get(&fleet, url, "/fulmar/v1/search?text=pumps&size_class=nano");
    assert_eq!((status, names(&found)), (200, vec!["acme/pumps:1".to_owned()]), "{found}");
    let (status, refused) = get(&fleet, url, "/fulmar/v1/search?sise_class=nano");
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("invalid_request")), "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("sise_class"), "{refused}");
    let anonymous = client().get(format!("{}/fulmar/v1/search", url.trim_end_matches("/v1")));
    assert_eq!(anonymous.send().unwrap().status(), 401);
    assert_eq!(agent.stop(), 0);
}

/// Every command and every field that takes a model's name takes it with the digest that it must
/// have; another digest is refused by all of them.
#[test]
fn a_model_is_named_by_its_digest_wherever_a_model_is_named() {
    let fleet = Fleet::made();
    let control = fleet.start_control();
    let agent = fleet.start_agent();
    let dir = fleet.device_dir();
    let at = ["--dir", text(&dir)];
    let found = until("the model is found", || {
        let found = json_of(&[&["search", "--json"][..], &at].concat());
        (found["models"][0]["here"] == "active").then(|| found["models"][0].clone())
    });
    let right = found["reference"].as_str().unwrap().to_owned();
    let (name, digest) = right.split_once('@').unwrap();
    let wrong = format!("{name}@sha256:{}", "0".repeat(64));
    let short = format!("demo@{digest}");

    let url = agent.ready["api_urls"][0].as_str().unwrap().to_owned();
    let post = |path: &str, body: &Value| {
        let root = url.trim_end_matches("/v1");
        let request = client().post(format!("{root}{path}")).bearer_auth(fleet.token()).json(body);
        request.send().unwrap().status().as_u16()
    };
    let chat = |model: &str| {
        json!({ "model": model, "stream": false,
            "messages": [{ "role": "user", "content": "turn on the fan" }] })
    };
    for (model, expected) in [(right.as_str(), 200), (&short, 200), (&wrong, 404)] {
        assert_eq!(post("/v1/chat/completions", &chat(model)), expected, "chat {model}");
        assert_eq!(post("/api/chat", &chat(model)), expected, "Ollama's chat {model}");
        let prompt = json!({ "model": model, "prompt": "on", "max_tokens": 2 });
        assert_eq!(post("/v1/completions", &prompt), expected, "completions {model}");
        let input = json!({ "model": model, "input": "on" });
        assert_eq!(post("/v1/embeddings", &input), expected, "embeddings {model}");
        assert_eq!(post("/api/show", &json!({ "model": model })), expected, "show {model}");
        let (status, _) = get(&fleet, &url, &format!("/v1/models/{model}"));
        assert_eq!(status, expected, "models {model}");
    }
    assert_eq!(agent.stop(), 0);

    let bench = ["-p", "4", "-n", "0", "-r", "1"];
    let commands: [(&str, &[&str]); 6] = [
        ("run", &["turn on the fan", "--max-tokens", "2"]),
        ("bench", &bench),
        ("show", &[]),
        ("pin", &[]),
        ("pin", &["--remove"]),
        ("rm", &[]),
    ];
    for (command, more) in commands {
        let call = |model: &str| fulmar(&[&[command, model][..], more, &at].concat());
        let refused = call(&wrong);
        assert_eq!(refused.code, 1, "{command}: {}", refused.stdout);
        let done = call(&right);
        assert_eq!(done.code, 0, "{command}: {}", done.stderr);
    }

    let order = |model: &str| json!({ "model": model, "devices": "all" });
    let deployed = fleet.operate("deployments", &order(&right));
    assert_eq!(deployed["digest"], json!(digest));
    let registry = fleet.owner_dir().join("registry");
    let key = fleet.owner_dir().join("registry.key");
    let revoke = ["registry", "policy", "revoke", text(&registry), "--key", text(&key)];
    let _ = fulmar_ok(&[&revoke[..], &["--model", &right, "--reason", "test"]].concat());
    let policy = fulmar_ok(&["registry", "policy", "show", text(&registry)]);
    assert!(policy.contains(digest), "{policy}");
    assert_eq!(control.stop(), 0);
}

#[test]
fn a_draft_that_comes_after_its_model_is_taken_up() {
    let fleet = Fleet::made();
    let control = fleet.start_control();
    let agent = fleet.start_agent();
    fleet.release("acme/pumps:1", &["--draft", "acme/small:1"]);
    let dir = fleet.device_dir();
    let pumps = || {
        let ps = json_of(&["ps", "--json", "--dir", text(&dir)]);
        let models = ps["models"].as_array().unwrap().clone();
        models.into_iter().find(|m| m["name"].as_str().unwrap().starts_with("acme/pumps:1"))
    };
    let alone = until("the model is loaded", pumps);
    assert!(alone["draft_refused"].as_str().unwrap().contains("acme/small:1"), "{alone}");
    fleet.release("acme/small:1", &[]);
    until("it has its draft", || {
        let model = pumps()?;
        (model["draft"] == "acme/small:1" && model["draft_refused"].is_null()).then_some(())
    });
    assert_eq!(agent.stop(), 0);
    assert_eq!(control.stop(), 0);
}

#[test]
fn what_the_owners_policy_says_of_installing_rules_pull_on_an_enrolled_device() {
    let fleet = Fleet::made();
    let demo = root().join("packaging/demo-model/fulmar-demo.gguf");
    let dir = fleet.device_dir();
    let pull = || fulmar(&["pull", text(&demo), "--dir", text(&dir)]);
    assert!(pull().stderr.contains("this device is enrolled"), "the built-in policy allows it");
    // Nor does anything else compute with a file that the owner did not sign.
    let bench = ["bench", text(&demo), "-p", "4", "-n", "0", "-r", "1", "--dir", text(&dir)];
    let check = ["debug", "check", text(&demo), "--dir", text(&dir)];
    let run = ["run", text(&demo), "hello", "--dir", text(&dir)];
    for command in [&bench[..], &check, &run] {
        let refused = fulmar(command);
        assert_eq!(refused.code, 1, "{command:?}");
        assert!(refused.stderr.contains("this device is enrolled"), "{}", refused.stderr);
    }
    let (registry, key) =
        (fleet.owner_dir().join("registry"), fleet.owner_dir().join("registry.key"));
    let policy = json!({ "schema": 1, "roles": { "admin": { "actions": ["model.run"] } } });
    let file = fleet.owner_dir().join("policy.json");
    std::fs::write(&file, policy.to_string()).unwrap();
    let set = ["registry", "policy", "set", text(&registry), text(&file), "--key", text(&key)];
    let _ = fulmar_ok(&set);
    let control = fleet.start_control();
    let _ = fulmar_ok(&[&["publish", text(&registry)][..], &fleet.console_access()].concat());
    let agent = fleet.start_agent();
    fleet.until_status("the policy is there", |status| status["policy_version"] == 1);
    assert_eq!(agent.stop(), 0);
    assert_eq!(control.stop(), 0);
    let refused = pull();
    assert_eq!(refused.code, 1);
    let words = "may not do model.install";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
    assert!(refused.stderr.contains("policy version 1"), "{}", refused.stderr);
}
