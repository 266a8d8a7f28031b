//! `fulmar doctor`: looks at everything that tends to go wrong and says what to do.

use std::path::Path;
use std::process::ExitCode;

use fulmar_policy::audit;
use fulmar_registry::catalog::{self, Filter, Installed, Slot};
use fulmar_registry::import::oci;
use fulmar_registry::{Authority, Blobs, Manifest, ManifestFile, trust};

use super::{Place, output};
use crate::causes;
use crate::config::Config;
use crate::state::State;

/// Arguments of `fulmar doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Finding {
    Good,
    Notice,
    Bad,
}

#[derive(Debug, serde::Serialize)]
struct Check {
    finding: Finding,
    what: &'static str,
    said: String,
}

fn check(what: &'static str, outcome: Result<String, String>) -> Check {
    match outcome {
        Ok(said) => Check { finding: Finding::Good, what, said },
        Err(said) => Check { finding: Finding::Bad, what, said },
    }
}

/// Runs all checks; exits 1 when one is bad.
pub(crate) fn run(place: &Place, args: &Args) -> anyhow::Result<ExitCode> {
    let (config, dir) = place.load()?;
    let configuration = check(
        "configuration",
        config.check().map(|()| "holds".into()).map_err(|e| causes::line(e.as_ref())),
    );
    let state = match State::open(&dir) {
        Ok(state) => state,
        Err(error) => return tell(args, &[configuration, unopened(&dir, &error)]),
    };
    let mut checks = vec![
        configuration,
        database(&state),
        audit_log(&state),
        clock(&state),
        processor(),
        memory(&config),
        agent(place),
    ];
    checks.push(disk(&state, &config));
    checks.extend(trust(&state));
    checks.extend(models(&state, &config));
    tell(args, &checks)
}

/// A state directory that no command can work with.
fn unopened(dir: &Path, error: &anyhow::Error) -> Check {
    let mut said = causes::line(error.as_ref());
    if error.downcast_ref::<fulmar_store::StoreError>().is_some() {
        said += &format!(
            "; restore it from a backup, or move {} away and begin anew (`fulmar enroll`, `fulmar \
             pull`)",
            dir.display()
        );
    }
    check("state", Err(said))
}

/// Prints the checks; exits 1 when one is bad.
fn tell(args: &Args, checks: &[Check]) -> anyhow::Result<ExitCode> {
    if args.json {
        output::json(&checks)?;
    } else {
        for check in checks {
            let mark = match check.finding {
                Finding::Good => "ok",
                Finding::Notice => "note",
                Finding::Bad => "BAD",
            };
            println!("{mark:<5}{:<14}{}", check.what, check.said);
        }
    }
    let bad = checks.iter().any(|check| check.finding == Finding::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn database(state: &State) -> Check {
    let outcome = match state.store().integrity_check() {
        Ok(lines) if lines.is_empty() => Ok(format!("{} is sound", state.store().path().display())),
        Ok(lines) => Err(format!("{}; restore a backup", lines.join("; "))),
        Err(error) => Err(error.to_string()),
    };
    check("database", outcome)
}

fn audit_log(state: &State) -> Check {
    let outcome = state.control_plane_audit_key().map_err(|e| causes::line(e.as_ref())).and_then(
        |control_plane| {
            state
                .store()
                .read_blocking(|connection| {
                    let key = state.audit_key().public();
                    audit::verify(connection, &state.device(), key, control_plane.as_deref())
                })
                .map(|v| {
                    format!(
                        "{} entries verified, {} signed, {} co-signed",
                        v.entries, v.signed_entries, v.cosigned_entries
                    )
                })
                .map_err(|error| error.to_string())
        },
    );
    check("audit log", outcome)
}

/// What models take, and what may still come.
fn disk(state: &State, config: &Config) -> Check {
    let blobs = Blobs::open(&state.registry_dir(), config.registry.blobs_bytes_max);
    let said =
        blobs.and_then(|blobs| blobs.usage()).map_err(|error| error.to_string()).map(|usage| {
            format!(
                "{} of models, {} unfinished, {} of regrouped copies; {} may still come",
                output::size(usage.used_bytes),
                output::size(usage.incoming_bytes),
                output::size(usage.copies_bytes),
                output::size(usage.free_bytes),
            )
        });
    check("disk", said)
}

/// fulmar's own age is a floor for any clock that is right: 2026-01-01.
const BUILT_AFTER_S: i64 = 1_767_225_600;

fn clock(state: &State) -> Check {
    let now_s = state.clock().now_s();
    let outcome = if now_s < BUILT_AFTER_S {
        Err(format!(
            "{} is before this program was made; set the clock, or tokens and metadata do not hold",
            output::time(now_s)
        ))
    } else {
        Ok(output::time(now_s))
    };
    check("clock", outcome)
}

fn processor() -> Check {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Check {
        finding: Finding::Good,
        what: "processor",
        said: format!("{threads} threads, {}", std::env::consts::ARCH),
    }
}

fn memory(config: &Config) -> Check {
    let total = crate::engine::memory_bytes();
    let budget = match config.engine.budget_bytes {
        0 => total / 2,
        bytes => bytes,
    };
    let outcome = if budget > total {
        Err(format!(
            "engine.budget_bytes is {}, the machine has {}; lower it",
            output::size(budget),
            output::size(total)
        ))
    } else {
        Ok(format!("budget {} of {}", output::size(budget), output::size(total)))
    };
    check("memory", outcome)
}

fn agent(place: &Place) -> Check {
    let running = place
        .socket()
        .ok()
        .is_some_and(|socket| std::os::unix::net::UnixStream::connect(socket).is_ok());
    let (finding, said) = if running {
        (Finding::Good, "running")
    } else {
        (Finding::Notice, "not running; `fulmar serve` starts it")
    };
    Check { finding, what: "agent", said: said.into() }
}

/// Whom this device believes, until when, and what to do where that ends.
fn trust(state: &State) -> Vec<Check> {
    let now_s = jiff::Timestamp::now().as_second();
    let explained: Result<_, fulmar_store::StoreError> =
        state.store().read_blocking(|connection| Ok(trust::explain(connection, now_s)));
    match explained {
        Err(error) => vec![check("trust", Err(error.to_string()))],
        Ok(findings) => findings
            .into_iter()
            .map(|found| Check {
                finding: match found.severity {
                    trust::Severity::Fine => Finding::Good,
                    trust::Severity::Notice => Finding::Notice,
                    trust::Severity::Problem => Finding::Bad,
                },
                what: "trust",
                said: match found.advice {
                    Some(advice) => format!("{} {advice}", found.says),
                    None => found.says,
                },
            })
            .collect(),
    }
}

fn models(state: &State, config: &Config) -> Vec<Check> {
    let blobs = match Blobs::open(&state.registry_dir(), config.registry.blobs_bytes_max) {
        Ok(blobs) => blobs,
        Err(error) => return vec![check("models", Err(error.to_string()))],
    };
    let listed = state.store().read_blocking(|c| catalog::list(c, &Filter::default()));
    let models = match listed {
        Ok(models) => models,
        Err(error) => return vec![check("models", Err(error.to_string()))],
    };
    let damaged = state.store().read_blocking(catalog::damaged).unwrap_or_default();
    if models.is_empty() && damaged.is_empty() {
        let said = "none installed; a fleet sends them, or `fulmar serve --model FILE.gguf`".into();
        return vec![Check { finding: Finding::Notice, what: "models", said }];
    }
    let damaged = damaged.into_iter().map(|row| {
        let said = format!(
            "{}: {}; its fleet sends it again by itself (`fulmar sync`); a model of this device's \
             own is pulled again, or removed (`fulmar rm`)",
            row.name, row.reason
        );
        check("model", Err(said))
    });
    let models = models.into_iter().map(|model| match (&model.failure, damage(&model, &blobs)) {
        (Some(reason), _) => check("model", Err(format!("{} failed: {reason}", model.name()))),
        (None, Some(advice)) => check("model", Err(advice)),
        (None, None) => check(
            "model",
            Ok(format!(
                "{} is {}, by {}",
                model.name(),
                model.slot.map_or("installed", Slot::as_str),
                model.authority.describe()
            )),
        ),
    });
    models.chain(damaged).collect()
}

/// What is wrong with a model's files, and what to do.
fn damage(model: &Installed, blobs: &Blobs) -> Option<String> {
    let is_gone = |file: &&ManifestFile| !blobs.contains(&file.digest, file.size_bytes);
    let gone = model.manifest.files.iter().find(is_gone)?;
    let (name, path) = (model.name(), &gone.path);
    let advice = match &model.authority {
        Authority::TwoRepositories { .. } => "it is fetched again when the control plane or an \
             address of sync.blob_urls is reached"
            .to_owned(),
        Authority::LocalOwner { .. } => {
            format!("fulmar pull {} --name {name} brings it back", origin(&model.manifest))
        }
    };
    Some(format!("{name}: its file {path} broke or is gone; {advice}"))
}

/// What to pull for the same bytes again: where a model came from, as far as its manifest says.
fn origin(manifest: &Manifest) -> String {
    let source = &manifest.source;
    let file = manifest.weights().map_or("FILE.gguf", |weights| weights.path.as_str());
    if oci::Reference::is_one(source) {
        return source.clone();
    }
    if let Some(store) = source.strip_prefix("ollama://") {
        return format!("ollama://{}", store.split('@').next().unwrap_or(store));
    }
    // A hub's address, its repository and the commit.
    let hub = source.strip_prefix("http").and_then(|_| {
        let (path, commit) = source.rsplit_once('@')?;
        let mut parts = path.rsplitn(3, '/');
        let (repository, organisation) = (parts.next()?, parts.next()?);
        Some(format!("hf.co/{organisation}/{repository}:{file}@{commit}"))
    });
    hub.unwrap_or_else(|| file.to_owned())
}

#[cfg(test)]
mod tests {
    use fulmar_registry::import::{self, ModelFacts};
    use fulmar_registry::manifest::FileRole;

    use super::*;

    #[test]
    fn a_damaged_model_is_pulled_again_from_where_it_came() {
        let origin_of = |source: &str| {
            let (role, kind) = (FileRole::Weights, import::GGUF_MEDIA_TYPE);
            let file =
                ManifestFile::describe(&mut &b"x"[..], Vec::new(), role, "m-Q8_0.gguf", kind);
            let facts = ModelFacts { source: source.to_owned(), ..ModelFacts::default() };
            let name = "acme/m:1".parse().unwrap();
            origin(&import::manifest(&name, 1, vec![file.unwrap()], &facts))
        };
        let pinned = "oci://127.0.0.1:5000/team/tiny@sha256:00";
        assert_eq!(origin_of(pinned), pinned);
        assert_eq!(origin_of("ollama://h/library/tiny@sha256:00"), "ollama://h/library/tiny");
        let hub = origin_of("https://huggingface.co/acme/tiny@0123abcd");
        assert_eq!(hub, "hf.co/acme/tiny:m-Q8_0.gguf@0123abcd");
        for elsewhere in ["", "plant A, a stick", "https://example.com"] {
            assert_eq!(origin_of(elsewhere), "m-Q8_0.gguf");
        }
    }
}
