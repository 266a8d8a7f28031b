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
    println!("link     {}", text(&status["link"]["state"]));
    for (field, value) in status["link"].as_object().into_iter().flatten() {
        if field != "state" && !value.is_null() {
            println!("         {field}: {}", text(value));
        }
    }
    let memory = &status["memory"];
    println!(
        "memory   {} planned of {}, {} measured, {} resident",
        bytes(&memory["planned_bytes"]),
        bytes(&memory["budget_bytes"]),
        bytes(&memory["measured_bytes"]),
        bytes(&memory["resident_bytes"]),
    );
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
        let sum = |memory: &Value| {
            let part = |name: &str| memory[name].as_u64().unwrap_or(0);
            output::size(part("weights_bytes") + part("kv_bytes") + part("scratch_bytes"))
        };
        let name = text(&model["name"]);
        let unload = model["expires_in_ms"]
            .as_u64()
            .map_or_else(|| "when wanted".into(), |ms| format!("{} s", ms / 1000));
        table.add_row([
            name.split('@').next().unwrap_or_default().to_owned(),
            text(&model["backend"]),
            text(&model["context_tokens"]),
            sum(&model["planned"]),
            sum(&model["measured"]),
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
    let memory = &status["memory"];
    println!(
        "memory: {} planned of {}, {} measured, {} resident",
        bytes(&memory["planned_bytes"]),
        bytes(&memory["budget_bytes"]),
        bytes(&memory["measured_bytes"]),
        bytes(&memory["resident_bytes"]),
    );
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
