//! `fulmar search`: what could run here, by what the registry says or on a hub.

use std::process::ExitCode;

use anyhow::Context as _;
use fulmar_policy::{Action, Principal};
use fulmar_registry::import::Network;
use fulmar_registry::import::hub_search::{self, HubModel};
use fulmar_registry::import::hugging_face::{Hub, Reference};
use fulmar_registry::manifest::SizeClass;
use serde_json::{Value, json};

use super::{Place, output};
use crate::search::{self, Facts, Found, Results, Wanted};

/// Arguments of `fulmar search`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only models whose name, source or evaluation holds this text; hf.co/TEXT searches the hub
    /// instead, for repositories with GGUF files.
    text: Option<String>,
    #[command(flatten)]
    wanted: Wanted,
    /// Repositories of the hub at most, up to 100.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
    /// Use no network.
    #[arg(long)]
    offline: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Searches.
pub(crate) fn run(place: &Place, args: &Args) -> anyhow::Result<ExitCode> {
    match args.text.as_deref().filter(|text| Reference::is_one(text)) {
        Some(text) => on_hub(place, args, text),
        None => in_registry(place, args),
    }
}

fn in_registry(place: &Place, args: &Args) -> anyhow::Result<ExitCode> {
    let state = place.open()?;
    let wanted = Wanted { text: args.text.clone(), ..args.wanted.clone() };
    let (policy, now_s) = (state.policy()?, state.clock().now_s());
    let principal = Principal::local();
    let search = search::search(state.store(), &policy, &principal, &wanted, now_s);
    let results = super::runtime()?.block_on(search)?;
    if args.json {
        output::json(&results)?;
        return Ok(ExitCode::SUCCESS);
    }
    tell(&results, wanted != Wanted::default(), now_s);
    Ok(ExitCode::SUCCESS)
}

fn tell(results: &Results, filtered: bool, now_s: i64) {
    if results.models.is_empty() {
        match (filtered, results.source) {
            (true, _) => println!("no model is like that; fulmar search shows all"),
            (false, "local") => println!("no models; `fulmar pull` brings one in"),
            (false, _) => println!("the registry offers no model yet, as far as this device knows"),
        }
    } else {
        let mut table = output::table(&[
            "name", "digest", "here", "arch", "params", "quant", "context", "size", "memory",
            "license",
        ]);
        for model in &results.models {
            table.add_row(row(model));
        }
        println!("{table}");
    }
    for model in &results.models {
        if let Some(barred) = &model.barred {
            println!("{} may not run: {barred}", model.name);
        }
    }
    if results.unknown > 0 {
        println!("{} more: the registry does not say what they are", results.unknown);
    }
    if results.source == "registry" {
        println!("{}", age(results, now_s));
    }
    if results.roles_not_held > 0 {
        println!(
            "what {} other teams of the registry publish is not known on this device",
            results.roles_not_held
        );
    }
}

fn row(model: &Found) -> Vec<String> {
    let known =
        |of: &dyn Fn(&Facts) -> String| model.facts.as_ref().map_or_else(|| "?".to_owned(), of);
    let here = match (model.here, model.wanted) {
        ("absent", true) => "on its way",
        ("absent", false) => "-",
        ("other_release", true) => "update on its way",
        ("other_release", false) => "other release",
        (here, _) => here,
    };
    vec![
        model.name.clone(),
        output::short_digest(&model.digest),
        here.to_owned(),
        known(&|f| f.architecture.clone()),
        known(&|f| format!("{} {}", output::count(f.parameters), f.size_class)),
        known(&|f| f.quantization.clone()),
        known(&|f| f.context_tokens.to_string()),
        known(&|f| output::size(f.size_bytes)),
        known(&|f| match f.memory_bytes {
            0 => "?".to_owned(),
            bytes => output::size(bytes),
        }),
        known(&|f| if f.license.is_empty() { "-".to_owned() } else { f.license.clone() }),
    ]
}

/// How old the metadata are.
fn age(results: &Results, now_s: i64) -> String {
    let signed = match (results.signed_at_s, results.age_s) {
        (Some(at_s), Some(age_s)) => {
            let ago = match age_s {
                0..7_200 => format!("{} minutes", age_s / 60),
                7_200..172_800 => format!("{} hours", age_s / 3_600),
                _ => format!("{} days", age_s / 86_400),
            };
            format!("as signed {ago} ago ({})", output::time(at_s))
        }
        _ => "as of an unknown time".to_owned(),
    };
    match results.expires_s {
        None => format!("{signed}; not complete yet"),
        Some(at_s) if at_s <= now_s => {
            format!("{signed}; expired {}: nothing new is admitted", output::time(at_s))
        }
        Some(at_s) => format!("{signed}; good until {}", output::time(at_s)),
    }
}

fn on_hub(place: &Place, args: &Args, text: &str) -> anyhow::Result<ExitCode> {
    let state = place.open()?;
    state.policy()?.decide(&Principal::local(), Action::ModelList, "-")?;
    anyhow::ensure!(
        args.wanted.memory_bytes_max.is_none(),
        "search the hub by --memory-bytes-max: a hub does not say what memory a model needs"
    );
    let mut hub = Hub::from_environment();
    if args.offline {
        hub.network = Network::Forbidden;
    }
    let words = ["https://", "hf.co/", "huggingface.co/", "hf://"];
    let text = words.iter().fold(text, |text, word| text.strip_prefix(word).unwrap_or(text));
    let search = hub_search::search(&hub, text, args.limit);
    let found = super::runtime()?.block_on(search).context("search the hub")?;
    let found: Vec<HubModel> =
        found.into_iter().filter_map(|model| fitting(model, &args.wanted)).collect();
    if args.json {
        let models: Vec<Value> = found.iter().map(hub_json).collect();
        output::json(&json!({ "source": hub.endpoint, "models": models }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        println!("no repository with GGUF files is like that");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = output::table(&["pull", "arch", "params", "context", "license", "downloads"]);
    for model in &found {
        for name in &model.models {
            table.add_row(hub_row(model, name));
        }
    }
    println!("{table}");
    if found.iter().any(|model| model.gated) {
        println!("* its files want a licence accepted on the hub first, and HF_TOKEN");
    }
    Ok(ExitCode::SUCCESS)
}

fn hub_row(model: &HubModel, name: &str) -> Vec<String> {
    let or_unknown = |text: String| if text.is_empty() { "?".to_owned() } else { text };
    let number = |count: u64| if count == 0 { String::new() } else { output::count(count) };
    vec![
        format!("{name}{}", if model.gated { " *" } else { "" }),
        or_unknown(model.architecture.clone()),
        or_unknown(number(model.parameters)),
        or_unknown(number(u64::from(model.context_tokens))),
        or_unknown(model.license.clone()),
        output::count(model.downloads),
    ]
}

fn hub_json(model: &HubModel) -> Value {
    json!({
        "repository": model.repository,
        "models": model.models,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "context_tokens": model.context_tokens,
        "license": model.license,
        "downloads": model.downloads,
        "likes": model.likes,
        "gated": model.gated,
    })
}

/// The repository with those of its files that are wanted; what the hub does not say is not like
/// what is asked.
fn fitting(mut model: HubModel, wanted: &Wanted) -> Option<HubModel> {
    let contains = |text: &str, part: &str| text.to_lowercase().contains(&part.to_lowercase());
    let fits = wanted.architecture.as_ref().is_none_or(|a| *a == model.architecture)
        && wanted.license.as_ref().is_none_or(|part| contains(&model.license, part))
        && wanted.context_tokens_min.is_none_or(|min| model.context_tokens >= min)
        && wanted
            .size_class
            .is_none_or(|class| model.parameters > 0 && SizeClass::of(model.parameters) == class);
    if let Some(quantization) = &wanted.quantization {
        let wanted = quantization.to_lowercase();
        model.models.retain(|name| {
            let name = name.to_lowercase();
            let name = name.strip_suffix(".gguf").unwrap_or(&name);
            name.ends_with(&format!(":{wanted}")) || name.ends_with(&format!("-{wanted}"))
        });
    }
    (fits && !model.models.is_empty()).then_some(model)
}
