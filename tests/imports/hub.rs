//! `fulmar pull hf.co/…` and `huggingface_hub` against the same hub.

use std::process::Command;

use fulmar_tests::{python, root, until};

use serde_json::Value;

use crate::servers::Servers;

#[test]
fn the_hub_serves_fulmar_and_the_huggingface_hub_package_alike() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(python())
        .arg(root().join("tests/imports/hub_client.py"))
        .env("HF_ENDPOINT", format!("http://{}", servers.said("hub")))
        .env("HF_TOKEN", servers.said("token"))
        .env("HF_HOME", dir.path().join("hf"))
        .env("HF_HUB_DISABLE_XET", "1")
        .env("SHA256", servers.said("sha256"))
        .env("COMMIT", servers.said("commit"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let device = dir.path().join("device");
    let pulled = servers.json(&device, &["pull", "hf.co/acme/tiny:Q8_0", "--json"], &[]);
    assert_eq!(pulled["name"], "acme/tiny:Q8_0");
    let source = pulled["source"].as_str().unwrap();
    assert!(source.ends_with(servers.said("commit")), "pinned to a commit: {source}");
    let shown = servers.json(&device, &["show", "acme/tiny:Q8_0", "--json"], &[]);
    assert_eq!(shown["weights_digest"], format!("sha256:{}", servers.said("sha256")));
    assert_eq!(
        (&shown["slot"], &shown["license"]),
        (&"active".into(), &"MIT OR Apache-2.0".into())
    );
    assert_eq!(shown["authority"]["kind"], "local_owner");
    let answer = servers.fulmar(&device, &["run", "acme/tiny:Q8_0", "turn on the fan"], &[]);
    assert!(answer.code == 0 && !answer.stdout.trim().is_empty(), "{}", answer.stderr);
    let again = servers.json(&device, &["pull", "hf.co/acme/tiny:Q8_0@v1", "--json"], &[]);
    assert_eq!(again["digest"], pulled["digest"], "the same again changes nothing");

    let seen = servers.seen();
    let shown: Vec<_> = seen["authorization"].as_array().unwrap().iter().collect();
    assert!(!shown.is_empty() && shown.iter().all(|value| value.is_null()), "{shown:?}");
}

/// The bar as it was drawn, one text for each time: name, percent, bytes and rate.
fn drawn(terminal: &str) -> Vec<&str> {
    // Each drawing begins at the line's start again, with control sequences between.
    terminal.split(['\r', '\n', '\u{1b}']).filter(|text| text.contains('%')).collect()
}

#[test]
fn on_a_terminal_a_bar_moves_to_100_percent_and_elsewhere_there_is_none() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    // About two seconds.
    let arguments = ["pull", "hf.co/acme/tiny:Q8_0", "--bytes-per-s-max", "2500000"];
    let pull = |device: &str| servers.command(&dir.path().join(device), &arguments, &[]);
    let command = pull("watched");
    let mut on_terminal = Command::new(python());
    on_terminal.arg(root().join("tests/imports/terminal.py"));
    on_terminal.arg(command.get_program()).args(command.get_args());
    on_terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = on_terminal.env("TERM", "xterm").output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["code"], 0, "{said}");
    assert!(!said["stdout"].as_str().unwrap().contains('%'), "{said}");
    let whole = format!("/{:.2} MiB ", servers.size() as f64 / f64::from(1 << 20));
    let bars = drawn(said["terminal"].as_str().unwrap());
    let percents: Vec<u32> = bars
        .iter()
        .map(|bar| {
            assert!(bar.contains("acme/tiny:Q8_0 ") && bar.contains(&whole), "{bar:?}");
            bar.split('%').next().unwrap().rsplit(' ').next().unwrap().parse().unwrap()
        })
        .collect();
    assert!(percents.is_sorted() && percents.last() == Some(&100), "{percents:?}");
    let between = percents.iter().filter(|percent| (1..100).contains(*percent)).count();
    assert!(between >= 2, "it moves: {percents:?}");
    let last = bars.last().unwrap();
    let all = format!("{}{whole}", whole.trim_matches(['/', ' ']));
    assert!(last.contains(&all) && last.contains("iB/s"), "{last:?}");

    let output = pull("unwatched").output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_hub_that_cuts_every_answer_is_gone_on_with_by_range() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let pulled = servers.json(dir.path(), &["pull", "hf.co/acme/cut:Q8_0", "--json"], &[]);
    assert_eq!(pulled["bytes"], servers.size());
    let seen = servers.seen();
    let ranges: Vec<u64> = seen["asked"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|asked| asked[1].as_str()?.strip_prefix("bytes=")?.strip_suffix('-'))
        .map(|offset| offset.parse().unwrap())
        .collect();
    assert!(ranges.len() as u64 >= servers.size() / 400_000 - 1, "{ranges:?}");
    assert!(ranges.is_sorted_by(|a, b| a < b), "never from the beginning: {ranges:?}");
}

#[test]
fn wrong_and_endless_bytes_are_refused_and_nothing_of_them_is_visible() {
    let servers = Servers::start();
    for (repository, expected) in [("lies", "expected sha256:"), ("endless", "more than its")] {
        let dir = tempfile::tempdir().unwrap();
        let model = format!("hf.co/acme/{repository}:Q8_0");
        let refused = servers.refused(dir.path(), &["pull", &model], &[]);
        assert!(refused.contains(expected), "{repository}: {refused}");
        assert!(Servers::blobs(dir.path()).0.is_empty(), "{repository}");
        let listed = servers.json(dir.path(), &["list", "--json"], &[]);
        assert_eq!(listed, serde_json::json!([]), "{repository}");
    }
}

#[test]
fn what_stands_in_the_way_is_said_with_what_to_do() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let pull =
        |model: &str, more: &[(&str, &str)]| servers.refused(dir.path(), &["pull", model], more);
    let refused = pull("hf.co/acme/tiny", &[("HF_TOKEN", "wrong")]);
    assert!(refused.contains("401") && refused.contains("HF_TOKEN"), "{refused}");
    let refused = pull("hf.co/acme/tiny", &[("HF_HUB_OFFLINE", "1")]);
    assert!(refused.contains("switched off"), "{refused}");
    let refused = pull("hf.co/acme/tiny:Q2_K", &[]);
    assert!(refused.contains("Q2_K") && refused.contains("tiny-Q8_0.gguf"), "{refused}");
    let refused = pull("hf.co/acme/tiny@v9", &[]);
    assert!(refused.contains("404") && refused.contains("revision"), "{refused}");
    let limit = ("FULMAR__REGISTRY__BLOBS_BYTES_MAX", "1000000");
    let refused = pull("hf.co/acme/tiny", &[limit]);
    assert!(refused.contains("limit of 1000000 bytes"), "{refused}");
    assert!(refused.contains(&servers.size().to_string()), "what was asked: {refused}");
    let (whole, partial) = Servers::blobs(dir.path());
    let bytes = |path| std::fs::metadata(path).unwrap().len();
    assert!(whole.is_empty() && partial.iter().all(|path| bytes(path) == 0));
    assert_eq!(servers.seen()["asked"], serde_json::json!([]), "not a byte was fetched");
}

#[test]
fn what_a_search_of_the_hub_prints_is_what_a_pull_takes() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let search =
        |more: &[&str]| servers.json(dir.path(), &[&["search", "--json"][..], more].concat(), &[]);
    let found = search(&["hf.co/TINY"]);
    let model = &found["models"][0];
    assert_eq!(model["models"], serde_json::json!(["hf.co/acme/tiny:Q8_0"]), "{found}");
    assert_eq!(
        (&model["architecture"], &model["license"]),
        (&"qwen3".into(), &"apache-2.0".into())
    );
    assert_eq!(found["models"].as_array().unwrap().len(), 1);
    let pulled =
        servers.json(dir.path(), &["pull", model["models"][0].as_str().unwrap(), "--json"], &[]);
    assert_eq!(pulled["name"], "acme/tiny:Q8_0");

    // The local registry's own search knows it now.
    let local = search(&["tiny"]);
    assert_eq!(
        (&local["source"], &local["models"][0]["here"]),
        (&"local".into(), &"active".into())
    );
    let count = |more: &[&str]| search(more)["models"].as_array().unwrap().len();
    assert_eq!(count(&["hf.co/acme"]), 4);
    assert_eq!(count(&["hf.co/acme", "--limit", "2"]), 2);
    assert_eq!(count(&["hf.co/acme", "--quantization", "q8_0", "--size-class", "nano"]), 4);
    for none in [["--quantization", "Q4_K_M"], ["--architecture", "llama"], ["--license", "MIT"]] {
        assert_eq!(count(&[&["hf.co/acme"][..], &none].concat()), 0, "{none:?}");
    }
    let refused = |more: &[&str], environment: &[(&str, &str)]| {
        servers.refused(dir.path(), &[&["search", "hf.co/acme"][..], more].concat(), environment)
    };
    assert!(refused(&["--offline"], &[]).contains("switched off"));
    assert!(refused(&[], &[("HF_HUB_OFFLINE", "1")]).contains("switched off"));
    assert!(refused(&[], &[("HF_TOKEN", "wrong")]).contains("HF_TOKEN"));
    assert!(refused(&["--memory-bytes-max", "1"], &[]).contains("does not say"));
}

#[test]
fn a_pull_that_is_killed_goes_on_where_it_was() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let bytes = |path: &std::path::PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let slowly = ["pull", "hf.co/acme/tiny:Q8_0", "--bytes-per-s-max", "1000000"];
    let mut pull = servers.command(dir.path(), &slowly, &[]).spawn().unwrap();
    until("a part of it has come", || {
        let begun = dir.path().join("registry/incoming").is_dir();
        let partial = if begun { Servers::blobs(dir.path()).1 } else { Vec::new() };
        partial.iter().any(|path| bytes(path) > 500_000).then_some(())
    });
    pull.kill().unwrap();
    pull.wait().unwrap();
    let (whole, partial) = Servers::blobs(dir.path());
    assert!(whole.is_empty() && partial.len() == 1, "{whole:?} {partial:?}");
    let kept = bytes(&partial[0]);
    assert!(kept < servers.size(), "it was killed on the way");
    let pulled = servers.json(dir.path(), &["pull", "hf.co/acme/tiny:Q8_0", "--json"], &[]);
    assert_eq!(pulled["bytes"], servers.size());
    let seen = servers.seen();
    let ranges: Vec<&serde_json::Value> =
        seen["asked"].as_array().unwrap().iter().map(|asked| &asked[1]).collect();
    assert_eq!(ranges, [&serde_json::Value::Null, &format!("bytes={kept}-").into()]);
    let answer = servers.fulmar(dir.path(), &["run", "acme/tiny:Q8_0", "turn on the fan"], &[]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
}

#[test]
fn on_a_metered_link_a_pull_says_what_it_would_cost_and_waits_for_a_yes() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let metered = |limit| {
        [("FULMAR__SYNC__LINK_COST", "metered"), ("FULMAR__SYNC__METERED_BYTES_MAX", limit)]
    };
    let refused = servers.refused(dir.path(), &["pull", "hf.co/acme/tiny"], &metered("1000000"));
    let size = servers.size().to_string();
    for part in [size.as_str(), "sync.link_cost", "at most 1000000", "--metered"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert_eq!(servers.seen()["asked"], serde_json::json!([]), "not a byte was fetched");
    let all = ["pull", "hf.co/acme/tiny", "--metered", "--json"];
    assert_eq!(servers.json(dir.path(), &all, &metered("1000000"))["bytes"], servers.size());
    // What is here costs nothing.
    let again = ["pull", "hf.co/acme/tiny", "--json"];
    let _ = servers.json(dir.path(), &again, &metered("0"));
}

/// A process that ends with the test.
struct Ends(std::process::Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_model_whose_file_breaks_is_fetched_again_from_the_hub_that_it_was_pulled_from() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let _ = servers.json(dir.path(), &["pull", "hf.co/acme/tiny", "--json"], &[]);
    let before = servers.seen()["asked"].as_array().unwrap().len();
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    let scrub = [("FULMAR__REGISTRY__SCRUB_INTERVAL_S", "1")];
    let agent = servers.command(dir.path(), &serve, &scrub).spawn().unwrap();
    let _agent = Ends(agent);
    let in_engine = || {
        let ps = servers.fulmar(dir.path(), &["ps", "--json"], &[]);
        let ps: serde_json::Value = serde_json::from_str(&ps.stdout).ok()?;
        ps["models"][0]["name"].as_str().map(str::to_owned)
    };
    let loaded = until("the model is loaded", in_engine);
    let blob = Servers::blobs(dir.path()).0.into_iter().next().unwrap();
    let bytes = crate::downloads::flip(&blob);
    until("it was fetched again", || {
        std::fs::read(&blob).is_ok_and(|now| now == bytes).then_some(())
    });
    until("it is in the engine again", || in_engine().filter(|name| *name == loaded));
    let recorded = ["model.end", "model.repair"];
    until("both are recorded", || {
        let log = servers.fulmar(dir.path(), &["audit", "list", "--json"], &[]);
        let actions = crate::downloads::done_with(&log.stdout, "acme/tiny:Q8_0");
        actions.ends_with(&recorded.map(str::to_owned)).then_some(())
    });
    assert_eq!(servers.seen()["asked"].as_array().unwrap().len(), before + 1);
}
