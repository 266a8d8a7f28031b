//! `fulmar status`, `ps` and `sync`: what the running agent says.

use std::process::ExitCode;

use hyper::Method;
use serde_json::Value;

use super::{Place, output};
use crate::client;

/// Arguments of `fulmar status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `fulmar ps`.
#[derive(Debug, clap::Args)]
pub(crate) struct PsArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `fulmar sync`.
#[derive(Debug, clap::Args)]
pub(crate) struct SyncArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn ask(place: &Place, method: Method, path: &str) -> anyhow::Result<Value> {
    let socket = place.socket()?;
    super::runtime()?.block_on(client::call(&socket, method, path))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".into(), output::size)
}

/// Shows the device, its link and its models.
pub(crate) fn status(place: &Place, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let status = ask(place, Method::GET, "/fulmar/v1/status")?;
    if args.json {
        output::json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("fulmar {} in {}", text(&status["version"]), text(&status["state_dir"]));
    println!("device   {}", text(&status["device"]));
    println!("policy   version {}", text(&status["policy_version"]));
    for (number, line) in link_lines(&status["link"]).iter().enumerate() {
        println!("{:<8} {line}", if number == 0 { "link" } else { "" });
    }
    println!("memory   {}", memory_line(&status["memory"]));
    let queue = &status["queue"];
    println!("queue    {} of {}", text(&queue["len"]), text(&queue["len_max"]));
    let mut table = output::table(&["model", "digest", "slot", "failure"]);
    for model in status["models"].as_array().into_iter().flatten() {
        table.add_row([
            text(&model["name"]),
            output::short_digest(&text(&model["digest"])),
            text(&model["slot"]),
            text(&model["failure"]),
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// The link to the control plane, for people; `--json` has the fields as they are.
fn link_lines(link: &Value) -> Vec<String> {
    let Some(id) = link["device_id"].as_str() else { return vec![text(&link["state"])] };
    let time = |value: &Value| value.as_i64().map_or_else(|| "never".into(), output::time);
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let state = &link["link"];
    let mut first = format!("{} since {}", text(&state["state"]), time(&state["since_s"]));
    if let Some(reason) = state["reason"].as_str() {
        first += &format!(": {reason}");
    }
    let mut lines = vec![
        first,
        format!("{id} of the fleet at {}", text(&link["url"])),
        format!("last check-in {}", time(&link["checked_in_at_s"])),
        format!(
            "desired state: generation {} applied, {} seen",
            count(&link["generation_applied"]),
            count(&link["generation_seen"])
        ),
        format!("reports that wait: {}", count(&link["outbox_pending"])),
    ];
    if let Some(model) = link["fetching"]["model"].as_str() {
        let (done, total) =
            (bytes(&link["fetching"]["bytes_done"]), bytes(&link["fetching"]["bytes_total"]));
        lines.push(format!("fetching {model}: {done} of {total}"));
    }
    for trouble in link["troubles"].as_array().into_iter().flatten() {
        let digest = output::short_digest(&text(&trouble["digest"]));
        lines.push(format!(
            "trouble with {} {digest}: {}",
            text(&trouble["model"]),
            text(&trouble["reason"])
        ));
    }
    lines.extend(link["error"].as_str().map(|error| format!("error: {error}")));
    lines
}

/// Shows what the engine does now.
pub(crate) fn ps(place: &Place, args: &PsArgs) -> anyhow::Result<ExitCode> {
    let status = ask(place, Method::GET, "/fulmar/v1/ps")?;
    if args.json {
        output::json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = output::table(&[
        "model",
        "backend",
        "context",
        "planned",
        "measured",
        "kv blocks",
        "running",
        "waiting",
        "guesses",
        "unloads in",
    ]);
    for model in status["models"].as_array().into_iter().flatten() {
        let sum = |memory: &Value, tokenizer: &Value| {
            let part = |name: &str| memory[name].as_u64().unwrap_or(0);
            let backend = part("weights_bytes") + part("kv_bytes") + part("scratch_bytes");
            output::size(backend + tokenizer.as_u64().unwrap_or(0))
        };
        let name = text(&model["name"]);
        let unload = model["expires_in_ms"]
            .as_u64()
            .map_or_else(|| "when wanted".into(), |ms| format!("{} s", ms / 1000));
        table.add_row([
            name.split('@').next().unwrap_or_default().to_owned(),
            text(&model["backend"]),
            text(&model["context_tokens"]),
            sum(&model["planned"], &model["tokenizer_bytes"]),
            sum(&model["measured"], &model["measured_tokenizer_bytes"]),
            format!("{}/{}", text(&model["kv"]["used"]), text(&model["kv"]["blocks"])),
            text(&model["running"]),
            text(&model["waiting"]),
            guesses(model),
            unload,
        ]);
    }
    println!("{table}");
    for model in status["models"].as_array().into_iter().flatten() {
        if let Some(reason) = model["draft_refused"].as_str() {
            println!("{} runs without its draft: {reason}", text(&model["name"]));
        }
    }
    println!("memory: {}", memory_line(&status["memory"]));
    println!("threads: {}", text(&status["threads"]));
    for reason in status["governor"]["reasons"].as_array().into_iter().flatten() {
        println!("narrowed: {}", text(&reason["text"]));
    }
    for (name, sensor) in status["sensors"].as_object().into_iter().flatten() {
        if sensor["state"] == "failed" {
            println!("sensor {name} failed: {}", text(&sensor["reason"]));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What guesses tokens ahead for a model, and how many of the guesses were right.
fn guesses(model: &Value) -> String {
    let how = match (model["draft"].as_str(), model["speculation"].as_str()) {
        (Some(draft), _) => draft.to_owned(),
        (None, Some("off")) => return "off".to_owned(),
        (None, _) => "prompt lookup".to_owned(),
    };
    let (made, right) = (&model["totals"]["drafted_tokens"], &model["totals"]["accepted_tokens"]);
    format!("{how}: {}/{}", text(right), text(made))
}

/// Asks the agent to meet the control plane now.
pub(crate) fn sync(place: &Place, args: &SyncArgs) -> anyhow::Result<ExitCode> {
    let answer = ask(place, Method::POST, "/fulmar/v1/sync")?;
    if args.json {
        output::json(&answer)?;
    } else if answer["nudged"] == true {
        println!("checking in now; `fulmar status` shows how it went");
    } else {
        println!("this device belongs to no fleet; `fulmar enroll JOIN_TOKEN` joins one");
    }
    Ok(ExitCode::SUCCESS)
}

/// The byte budget in a line: what was planned, what is held, and what the system counts.
fn memory_line(memory: &Value) -> String {
    format!(
        "{} planned of {}, {} measured, {} resident ({} at the peak)",
        bytes(&memory["planned_bytes"]),
        bytes(&memory["budget_bytes"]),
        bytes(&memory["measured_bytes"]),
        bytes(&memory["resident_bytes"]),
        bytes(&memory["resident_peak_bytes"]),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_link_is_told_in_words() {
        assert_eq!(link_lines(&json!({ "state": "unenrolled" })), ["unenrolled"]);
        let lines = link_lines(&json!({
            "state": "offline", "device_id": "d-1", "url": "https://c:7443",
            "link": { "state": "offline", "since_s": 0, "reason": "no route", "failures": 2 },
            "checked_in_at_s": null, "generation_seen": 3, "generation_applied": 2,
            "outbox_pending": 4, "error": null,
            "fetching": { "model": "a/b:1", "digest": "x", "bytes_done": 5, "bytes_total": 2000 },
            "troubles": [{ "model": "a/b:1", "digest": "sha256:0123456789abcdef", "reason": "full" }],
        }));
        assert_eq!(
            lines,
            [
                "offline since 1970-01-01T00:00:00Z: no route",
                "d-1 of the fleet at https://c:7443",
                "last check-in never",
                "desired state: generation 2 applied, 3 seen",
                "reports that wait: 4",
                "fetching a/b:1: 5 B of 2.0 kB",
                "trouble with a/b:1 0123456789ab: full",
            ]
        );
    }
}
