//! Searching a hub for repositories with GGUF files: `GET /api/models`, as the hub's own clients
//! ask it. What comes back are names that a pull takes as they are.

use serde::Deserialize;

use super::hugging_face::{Hub, encoded, wanted_of};
use super::remote::RemoteError;

/// Repositories in one answer at most.
pub const RESULTS_MAX: u32 = 100;
/// What is asked of each repository: an answer has these fields and the name.
const FIELDS: [&str; 6] = ["siblings", "gguf", "tags", "downloads", "likes", "gated"];

/// A repository with GGUF files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `ORGANISATION/REPOSITORY`.
    pub repository: String,
    /// What to give to a pull, one for each file: `hf.co/ORGANISATION/REPOSITORY:QUANTISATION`.
    pub models: Vec<String>,
    /// As in GGUF's `general.architecture`; empty where the hub does not say.
    pub architecture: String,
    /// Number of parameters; 0 where the hub does not say.
    pub parameters: u64,
    /// The longest context in tokens; 0 where the hub does not say.
    pub context_tokens: u32,
    /// The licence's name; empty where the hub does not say.
    pub license: String,
    /// Downloads of late, as the hub counts them.
    pub downloads: u64,
    /// How many people like it.
    pub likes: u64,
    /// Whether its files want a licence to be accepted first, with an account.
    pub gated: bool,
}

#[derive(Debug, Deserialize)]
struct Entry {
    id: String,
    #[serde(default)]
    siblings: Option<Vec<Sibling>>,
    #[serde(default)]
    gguf: Option<GgufInfo>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    downloads: u64,
    #[serde(default)]
    likes: u64,
    /// `false`, `"auto"` or `"manual"`.
    #[serde(default)]
    gated: serde_json::Value,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

#[derive(Debug, Default, Deserialize)]
struct GgufInfo {
    #[serde(default)]
    total: u64,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    context_length: u32,
}

/// Repositories whose name holds `text`, those first that are downloaded most.
///
/// # Errors
/// [`RemoteError`].
pub async fn search(hub: &Hub, text: &str, limit: u32) -> Result<Vec<HubModel>, RemoteError> {
    let limit = limit.clamp(1, RESULTS_MAX);
    let mut url = format!(
        "{}/api/models?search={}&filter=gguf&sort=downloads&limit={limit}",
        hub.endpoint,
        encoded(text)
    );
    for field in FIELDS {
        url.push_str("&expand=");
        url.push_str(field);
    }
    // One page: the hub gives no more than the limit.
    let (entries, _): (Vec<Entry>, _) = hub.remote()?.json(&url).await?;
    Ok(entries.into_iter().map(model).collect())
}

/// For the fuzz target: an answer of a search, and what it gives to a pull.
#[cfg(feature = "fuzzing")]
pub(super) fn try_answer(bytes: &[u8]) {
    let Ok(entries) = serde_json::from_slice::<Vec<Entry>>(bytes) else { return };
    for found in entries.into_iter().map(model) {
        for reference in &found.models {
            assert!(super::hugging_face::Reference::is_one(reference), "{reference} is no pull");
            let _ = super::hugging_face::Reference::parse(reference);
        }
    }
}

fn model(entry: Entry) -> HubModel {
    let files: Vec<String> =
        entry.siblings.unwrap_or_default().into_iter().map(|s| s.rfilename).collect();
    let repository = entry.id;
    let models = wanted_of(&files).into_iter().map(|w| format!("hf.co/{repository}:{w}"));
    let license = entry.tags.iter().find_map(|tag| tag.strip_prefix("license:"));
    let gguf = entry.gguf.unwrap_or_default();
    HubModel {
        models: models.collect(),
        repository,
        architecture: gguf.architecture,
        parameters: gguf.total,
        context_tokens: gguf.context_length,
        license: license.unwrap_or_default().to_owned(),
        downloads: entry.downloads,
        likes: entry.likes,
        gated: !matches!(entry.gated, serde_json::Value::Null | serde_json::Value::Bool(false)),
    }
}
