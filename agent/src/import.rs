//! Bringing a local file into the registry under the local owner's key.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use fulmar_policy::audit::{Event, Outcome};
use fulmar_policy::{Action, Permit, Principal};
use fulmar_registry::catalog::{self, CatalogError};
use fulmar_registry::import::{self, Imported, Resolved};
use fulmar_registry::{ModelName, Registry};
use fulmar_sync::LinkCost;
use serde_json::json;

use crate::app::App;
use crate::config::{Config, SyncConfig};
use crate::folder::{self, ModelFile};
use crate::signing::{self, Rules, Signing};
use crate::state::State;
use crate::{models, state};

/// Imports a GGUF file or a Hugging Face folder as `local/NAME:latest` and makes it active. Doing it again with the same
/// file changes nothing.
///
/// # Errors
/// What is wrong with the file, or what the registry refused.
pub(crate) async fn serve_file(app: &Arc<App>, file: &Path) -> anyhow::Result<String> {
    let name = name_of(file)?;
    let permit =
        app.policy().decide(&Principal::local(), Action::ModelInstall, &name.to_string())?;
    app.models().registry().check_local_import()?;
    let (registry, path) = (app.models().registry().clone(), file.to_owned());
    let scratch = app.state().dir().to_owned();
    let import = move || -> anyhow::Result<Imported> {
        let file = ModelFile::of(&path, &scratch)?;
        let facts = models::facts(file.path()).context("read the model")?;
        Ok(import::gguf_file(&registry, file.path(), &name, &facts)?)
    };
    let imported = tokio::task::spawn_blocking(import)
        .await
        .context("import the file")?
        .with_context(|| format!("import {}", file.display()))?;
    let name = imported.signed.name().to_string();
    let rules = Rules::of(&app.config().registry)?;
    let signing = signing::check_imported(file, &imported, &rules, app.state().clock().now_s())?;
    install_active(app.state(), app.models().registry(), &permit, imported, &signing).await?;
    Ok(name)
}

/// Refuses to run a file that nobody signed where the state directory is that of a fleet's device, as
/// [`serve_file`] does. A machine without a device is its user's own.
///
/// # Errors
/// That the device is enrolled, or that it cannot be told.
pub(crate) fn check_unsigned(config: &Config, dir: &Path) -> anyhow::Result<()> {
    if !State::is_there(dir) {
        return Ok(());
    }
    let state = State::open(dir)?;
    let limits = fulmar_registry::Options { blob_bytes_max: config.registry.blobs_bytes_max };
    let registry = Registry::open(&state.registry_dir(), state.store().clone(), &limits)?;
    Ok(registry.check_local_import()?)
}

/// Refuses to fetch what costs more than a metered link may.
///
/// # Errors
/// With what is missing, the limit, and the settings that say so.
pub(crate) fn check_cost(
    registry: &Registry,
    resolved: &Resolved,
    link: &SyncConfig,
) -> anyhow::Result<()> {
    let here: u64 = resolved.files.iter().map(|f| registry.blobs().bytes_present(&f.digest)).sum();
    let (missing, limit) = (resolved.size_bytes().saturating_sub(here), link.metered_bytes_max);
    anyhow::ensure!(
        link.link_cost != LinkCost::Metered || missing <= limit,
        "{missing} bytes are missing, and the link is metered (sync.link_cost): at most {limit} are \
         fetched for a model (sync.metered_bytes_max)"
    );
    Ok(())
}

/// Installs and activates what the local owner signed, with its audit entry.
///
/// # Errors
/// What the catalog or the audit log refused; nothing is installed then.
pub(crate) async fn install_active(
    state: &State,
    registry: &Registry,
    permit: &Permit,
    imported: Imported,
    signing: &Signing,
) -> anyhow::Result<()> {
    let signing = json!(signing);
    let at_s = state.clock().now_s();
    let registry = registry.clone();
    let actor = permit.principal().audit_name();
    state
        .store()
        .write::<_, anyhow::Error, _>(move |tx| {
            // Held until the catalog knows the blobs: no garbage collection takes them before.
            let Imported { signed, hold: _hold } = imported;
            catalog::install(tx, &signed, registry.blobs(), at_s)?;
            let (name, digest) = (signed.name(), signed.digest());
            let changed: Result<_, CatalogError> = catalog::activate(tx, name, &digest, at_s);
            if changed? != catalog::Activated::Already {
                let event = Event {
                    at_s,
                    actor: &actor,
                    action: Action::ModelInstall.as_str(),
                    resource: &name.to_string(),
                    outcome: Outcome::Completed,
                    opened: None,
                    detail: json!({
                        "digest": digest.to_string(),
                        "authority": signed.authority(),
                        "activated": true,
                        "publisher": signing,
                    }),
                };
                state::record(tx, &event)?;
            }
            Ok(())
        })
        .await
}

/// `local/NAME:latest` after a file's name.
///
/// # Errors
/// When no name can be made of it.
pub(crate) fn name_of(file: &Path) -> anyhow::Result<ModelName> {
    ModelName::new("local", &clean(&folder::stem(file)?), "latest")
        .with_context(|| format!("make a model's name of {}", file.display()))
}

/// A file's name as a model's: lower case, anything strange a dash.
fn clean(stem: &str) -> String {
    let dashed: String = stem
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .collect();
    let trimmed = dashed.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if trimmed.is_empty() { "model".to_owned() } else { trimmed.chars().take(60).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_becomes_a_models_name() {
        for (stem, name) in [
            ("Qwen3-0.6B-Q8_0", "qwen3-0.6b-q8_0"),
            ("my model (1)", "my-model--1"),
            ("...", "model"),
            ("模型", "model"),
        ] {
            assert_eq!(clean(stem), name);
            assert!(ModelName::new("local", &clean(stem), "latest").is_ok(), "{stem}");
        }
    }
}
