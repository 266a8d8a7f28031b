//! What the fleet wants of this device: the director's targets, each admitted by both repositories
//! or refused with a reason.

use fulmar_registry::trust::{
    self, Active, Admission, Admitted, Repo, TargetEntry, TrustError, Trusted,
};
use fulmar_registry::{Digest, ModelName, Standing};
use rusqlite::Connection;

/// One model that the director names.
#[derive(Debug, Clone)]
pub struct DesiredModel {
    /// Its name.
    pub name: ModelName,
    /// The manifest's digest.
    pub digest: Digest,
    /// Whether to serve it.
    pub active: Active,
    /// Both repositories' word for it, or why there is none. Expired metadata admits nothing new;
    /// what is installed already needs no new word.
    pub admission: Result<Admitted, String>,
    /// Why the owner's policy does not let it run, where it does not: then it is not installed, and
    /// does not go on serving.
    pub revoked: Option<String>,
}

/// All models that the director names.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// The director's targets version.
    pub generation: u64,
    /// The models by name.
    pub models: Vec<DesiredModel>,
}

impl Desired {
    /// Whether it names this release.
    pub(crate) fn wants(&self, name: &ModelName, digest: &Digest) -> bool {
        self.models.iter().any(|model| model.name == *name && model.digest == *digest)
    }
}

/// The desired state as it is trusted now; `None` before the first one came.
///
/// # Errors
/// [`TrustError`] where the stored trust does not verify.
pub fn load(
    connection: &Connection,
    device_id: &str,
    now_s: i64,
) -> Result<Option<Desired>, TrustError> {
    let (registry, director) =
        (Trusted::load(connection, Repo::Registry)?, Trusted::load(connection, Repo::Director)?);
    let Some(director) = director else { return Ok(None) };
    let Some(generation) = director.targets_version() else { return Ok(None) };
    let standing = Standing::load(connection)?;
    let mut models = Vec::new();
    for (path, entry) in director.targets() {
        if !is_model(entry) {
            continue;
        }
        let (Ok(name), Some(digest)) = (ModelName::from_target_path(path), entry.digest()) else {
            tracing::warn!(path, "the director names a target that is no model");
            continue;
        };
        let release_floor = trust::release_floor(connection, path)?;
        let admission = Admission { now_s, device_id: Some(device_id), release_floor };
        let admitted = match &registry {
            Some(registry) => trust::admit(registry, &director, path, &admission)
                .map_err(|refused| in_words(&refused)),
            None => Err("the fleet has no registry that this device trusts yet".to_owned()),
        };
        let revoked = standing.check_model([&digest]).err().map(|barred| barred.to_string());
        let (active, admission) = (wanted(entry), admitted);
        models.push(DesiredModel { name, digest, active, admission, revoked });
    }
    Ok(Some(Desired { generation, models }))
}

fn field<'a>(entry: &'a TargetEntry, name: &str) -> Option<&'a serde_json::Value> {
    entry.custom.as_ref()?.get("fulmar")?.get(name)
}

fn is_model(entry: &TargetEntry) -> bool {
    field(entry, "kind").and_then(|kind| kind.as_str()) == Some("model")
}

fn wanted(entry: &TargetEntry) -> Active {
    match field(entry, "active").and_then(serde_json::Value::as_bool) {
        Some(true) => Active::Serve,
        _ => Active::Hold,
    }
}

/// An error with its sources, for reports.
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}
