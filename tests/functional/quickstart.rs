//! The first command: what it does, what it prints, and that what it prints works as it stands.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use fulmar_tests::{PATIENCE, client, endless, fulmar_bin, fulmar_ok, json_of, python, text};
use serde_json::{Value, json};

/// What the quickstart asks, and what its model makes of it.
const QUESTION: &str = "turn on the fan in the boiler room";
const ANSWER: &str = r#"{"action":"on","device":"fan","place":"boiler room"}"#;
/// What the printed commands ask the same model gives.
const PRINTED_ANSWER: &str = r#"{"action":"close","device":"valve","place":"hall 3"}"#;

/// The names of an object's fields, in alphabetical order.
fn fields(object: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        object.as_object().unwrap().keys().map(std::string::String::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn the_quickstart_answers_and_a_second_run_takes_up_where_the_first_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("fleet");
    let run = || json_of(&["quickstart", "--once", "--json", "--dir", text(&place)]);
    let first = run();
    // These and no others: no password and no token among them.
    let all = ["answer", "api_url", "audit", "console_url", "device_id", "model"];
    assert_eq!(fields(&first), [&all[..], &["tokens_per_second"]].concat());
    assert_eq!(fields(&first["audit"]), ["entries", "verified"]);
    assert_eq!(fields(&first["model"]), ["digest", "name"]);
    assert_eq!(first["answer"], ANSWER);
    assert!(first["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(first["model"]["digest"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(first["audit"]["verified"], true);
    let verify = ["audit", "verify", "--json", "--dir"];
    let verified = json_of(&[&verify[..], &[text(&place.join("device"))]].concat());
    let entries = |found: &Value| found["entries"].as_u64().unwrap();
    assert!(entries(&verified) >= entries(&first["audit"]), "{verified}");

    let second = run();
    for same in ["device_id", "model", "api_url", "console_url", "answer"] {
        assert_eq!(first[same], second[same], "{same}");
    }
    assert!(entries(&second["audit"]) > entries(&first["audit"]));
}

/// A quickstart that keeps running, in a process group as a terminal gives it one.
struct Quickstart {
    child: Child,
    lines: Receiver<String>,
}

impl Quickstart {
    fn start(place: &Path) -> Self {
        let mut child = Command::new(fulmar_bin())
            .args(["quickstart", "--dir", text(place)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// The lines up to one with these words.
    fn lines_until(&self, words: &str) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            said.push(self.lines.recv_timeout(PATIENCE).unwrap_or_else(|e| {
                panic!("{words:?} is not said ({e}): {}", said.join("\n"));
            }));
            if said.last().is_some_and(|line| line.contains(words)) {
                return said;
            }
        }
    }

    /// Ctrl-C: the terminal sends the signal to the whole group.
    fn interrupt(&self) {
        let group = format!("-{}", self.child.id());
        let sent = Command::new("kill").args(["-INT", "--", &group]).status().unwrap();
        assert!(sent.success());
    }

    /// What it still says until it ends, and its exit status.
    fn ended(mut self) -> (Vec<String>, Option<i32>) {
        let said = self.lines.iter().collect();
        (said, self.child.wait().unwrap().code())
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        // Its children end with it: their standard input closes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines from one that begins with `first` up to one that `is_last`.
fn block(lines: &[String], first: &str, is_last: impl Fn(&str) -> bool) -> String {
    let from = lines.iter().position(|line| line.starts_with(first));
    let from = from.unwrap_or_else(|| panic!("{first:?} is printed: {}", lines.join("\n")));
    let len = lines[from..].iter().position(|line| is_last(line)).unwrap() + 1;
    lines[from..from + len].join("\n")
}

/// Runs what was printed somewhere else than where the quickstart was started; gives its output.
fn run_printed(program: &Path, option: &str, printed: &str) -> String {
    let elsewhere = tempfile::tempdir().unwrap();
    let output =
        Command::new(program).args([option, printed]).current_dir(elsewhere.path()).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn word_after<'a>(text: &'a str, before: &str, ends: char) -> &'a str {
    text.split_once(before).unwrap().1.split(ends).next().unwrap()
}

#[test]
fn what_the_quickstart_prints_works_as_printed_and_ctrl_c_lets_answers_end() {
    let dir = tempfile::tempdir().unwrap();
    // A place that a shell has to be told in quotes.
    let place = dir.path().join("a fleet");
    let quickstart = Quickstart::start(&place);
    let prose = quickstart.lines_until("Ctrl-C stops it");
    let said = |words: &str| prose.iter().any(|line| line.contains(words));
    assert!(said(&format!("question  {QUESTION}")), "{}", prose.join("\n"));
    assert!(said(&format!("answer    {ANSWER}")), "{}", prose.join("\n"));
    let timed = prose.iter().find(|line| line.ends_with(" s from the start")).unwrap();
    let elapsed = timed.trim_end_matches(" s from the start").rsplit(' ').next().unwrap();
    assert!(elapsed.parse::<f64>().unwrap() < 10.0, "{timed}");

    let bash = Path::new("bash");
    let curl = block(&prose, "curl ", |line| !line.ends_with('\\'));
    let answer: Value = serde_json::from_str(&run_printed(bash, "-c", &curl)).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], PRINTED_ANSWER, "{answer}");
    let snippet = block(&prose, "from openai", |line| line.starts_with("print("));
    assert_eq!(run_printed(&python(), "-c", &snippet).trim_end(), PRINTED_ANSWER);
    let commands = |words: &str| prose.iter().find(|line| line.contains(words)).unwrap();
    let shown: Value =
        serde_json::from_str(&run_printed(bash, "-c", commands(" audit show "))).unwrap();
    assert_eq!((&shown["action"], &shown["outcome"]), (&json!("model.run"), &json!("started")));
    let verified = run_printed(bash, "-c", commands(" audit verify "));
    assert!(verified.contains("entries, each as it was written"), "{verified}");

    // Ctrl-C in the middle of an answer: it ends as it would have, then everything does.
    let body = json!({
        "model": "fulmar/demo",
        "messages": [{ "role": "user", "content": "hello" }],
        "logit_bias": endless(),
        "stream": true,
        "max_tokens": 900,
    });
    let mut stream = client()
        .post(word_after(&curl, "curl ", ' '))
        .bearer_auth(word_after(&curl, "Bearer ", '\''))
        .json(&body)
        .send()
        .unwrap();
    let mut first = [0; 16];
    stream.read_exact(&mut first).unwrap();
    quickstart.interrupt();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.trim_end().ends_with("data: [DONE]"), "the answer is cut off: {rest}");
    assert!(rest.contains("\"finish_reason\":\"length\""), "the answer is cut short: {rest}");
    let (last, code) = quickstart.ended();
    assert_eq!(code, Some(0), "{last:?}");
    assert!(last.iter().any(|line| line.ends_with("stopping")), "{last:?}");
    let device = place.join("device");
    let list = ["audit", "list", "--json", "--limit", "2", "--dir", text(&device)];
    let log = fulmar_ok(&list);
    let newest: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(newest[0]["action"], "agent.stop", "{log}");
    assert_eq!(newest[1]["outcome"], "completed", "{log}");
}
