//! Models out of Hugging Face repositories, or a hub of the same kind.
//!
//! `hf.co/ORG/REPO[:QUANT][@REVISION]`; the revision is pinned to a commit before anything is
//! fetched, and every file is checked against the digest that the hub's index gives. A repository
//! without a GGUF file is a [`Checkpoint`], if it has safetensors.

mod checkpoint;

use serde::Deserialize;

pub use checkpoint::Checkpoint;

use super::GGUF_MEDIA_TYPE;
use super::model_signing::BUNDLE_BYTES_MAX;
use super::remote::{
    FoundBundle, Network, Packing, Remote, RemoteError, RemoteFile, Resolved, accepted, name_part,
};
use crate::manifest::FileRole;
use crate::{Digest, ModelName};

const EXPECTED: &str = "hf.co/ORGANISATION/REPOSITORY[:QUANTIZATION or FILE.gguf][@REVISION]";
/// Pages of a repository's index read at most.
const PAGES_MAX: usize = 50;
/// What is taken where nobody asks for a quantisation, best first.
const PREFERRED: [&str; 8] = ["Q4_K_M", "Q8_0", "Q5_K_M", "Q4_0", "Q6_K", "IQ4_XS", "F16", "BF16"];

/// Where the hub is and who asks.
#[derive(Debug, Clone)]
pub struct Hub {
    /// `https://huggingface.co`, or what `HF_ENDPOINT` says.
    pub endpoint: String,
    /// `HF_TOKEN`.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`.
    pub network: Network,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::from(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Self {
        let endpoint = variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".to_owned());
        let offline = variable("HF_HUB_OFFLINE").is_some_and(|value| {
            matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on")
        });
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: variable("HF_TOKEN"),
            network: if offline { Network::Forbidden } else { Network::Allowed },
        }
    }

    /// The client for this hub.
    ///
    /// # Errors
    /// [`RemoteError::Unreachable`] where TLS cannot be set up.
    pub fn remote(&self) -> Result<Remote, RemoteError> {
        if !self.endpoint.starts_with("http://") && !self.endpoint.starts_with("https://") {
            return Err(RemoteError::Unreachable {
                url: self.endpoint.clone(),
                reason: "HF_ENDPOINT must begin with https:// or http://".to_owned(),
            });
        }
        let authorization = self.token.as_ref().map(|token| format!("Bearer {token}"));
        Ok(Remote::new(self.network)?.with_authorization(&self.endpoint, authorization))
    }
}

/// A reference into a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    organisation: String,
    repository: String,
    /// A quantisation or a file's name.
    wanted: Option<String>,
    revision: Option<String>,
}

impl Reference {
    /// Whether a text means a hub: `hf.co/…`, `huggingface.co/…` or `hf://…`.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        strip(text).is_some()
    }

    /// Reads a reference.
    ///
    /// # Errors
    /// [`RemoteError::Reference`].
    pub fn parse(text: &str) -> Result<Self, RemoteError> {
        let refuse = || RemoteError::Reference { found: text.to_owned(), expected: EXPECTED };
        let rest = strip(text).ok_or_else(refuse)?;
        let (rest, revision) = match rest.split_once('@') {
            Some((rest, revision)) => (rest, Some(revision)),
            None => (rest, None),
        };
        let (path, wanted) = match rest.split_once(':') {
            Some((path, wanted)) => (path, Some(wanted)),
            None => (rest, None),
        };
        let (organisation, repository) = path.split_once('/').ok_or_else(refuse)?;
        let fits = |part: &str, more: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !part.is_empty()
                && part.len() <= 200
                && !part.contains("..")
                && part.chars().all(allowed)
        };
        let all_fit = fits(organisation, "._-")
            && fits(repository, "._-")
            && wanted.is_none_or(|wanted| fits(wanted, "._-/"))
            && revision.is_none_or(|revision| fits(revision, "._-/"));
        if !all_fit {
            return Err(refuse());
        }
        Ok(Self {
            organisation: organisation.to_owned(),
            repository: repository.to_owned(),
            wanted: wanted.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }
}

impl Reference {
    /// The file that a manifest's source means, where it came from this hub: the source names the
    /// repository and the commit.
    pub(super) fn of_source(hub: &Hub, source: &str, file: &str) -> Option<Self> {
        let rest = source.strip_prefix(&hub.endpoint)?.strip_prefix('/')?;
        let (repository, commit) = rest.rsplit_once('@')?;
        Self::parse(&format!("hf.co/{repository}:{file}@{commit}")).ok()
    }
}

fn strip(text: &str) -> Option<&str> {
    let text = text.strip_prefix("https://").unwrap_or(text);
    ["hf.co/", "huggingface.co/", "hf://"].into_iter().find_map(|prefix| text.strip_prefix(prefix))
}

#[derive(Debug, Deserialize)]
struct Info {
    sha: String,
    #[serde(default, rename = "cardData")]
    card: Option<Card>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Card {
    #[serde(default)]
    license: serde_json::Value,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    lfs: Option<Lfs>,
    /// Git's SHA-1 of a file that is not in large file storage.
    #[serde(default)]
    oid: String,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// What a reference means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A GGUF file.
    Model(Resolved),
    /// Safetensors, which a conversion makes a GGUF file of.
    Checkpoint(Checkpoint),
}

/// A repository's files at a pinned commit.
struct Listing {
    /// `ORG/REPO`.
    repository: String,
    commit: String,
    license: String,
    entries: Vec<Entry>,
    /// Where it is, with the commit.
    from: String,
}

/// Finds the GGUF file that a reference means, at a pinned commit.
///
/// # Errors
/// [`RemoteError`].
pub async fn resolve(hub: &Hub, reference: &Reference) -> Result<Resolved, RemoteError> {
    let remote = hub.remote()?;
    let listing = list(hub, &remote, reference).await?;
    resolve_file(hub, &remote, &listing, reference).await
}

/// Finds what a reference means, at a pinned commit: a GGUF file, or a checkpoint where the
/// repository has none.
///
/// # Errors
/// [`RemoteError`].
pub async fn find(hub: &Hub, reference: &Reference) -> Result<Found, RemoteError> {
    let remote = hub.remote()?;
    let listing = list(hub, &remote, reference).await?;
    let has_file = listing.entries.iter().any(|e| e.kind == "file" && is_model(&e.path));
    if has_file || !checkpoint::is_there(&listing.entries) {
        return Ok(Found::Model(resolve_file(hub, &remote, &listing, reference).await?));
    }
    let wanted = reference.wanted.as_deref();
    Ok(Found::Checkpoint(checkpoint::resolve(hub, &remote, &listing, wanted).await?))
}

async fn list(hub: &Hub, remote: &Remote, reference: &Reference) -> Result<Listing, RemoteError> {
    let repository = format!("{}/{}", reference.organisation, reference.repository);
    let revision = reference.revision.as_deref().unwrap_or("main");
    let api = format!("{}/api/models/{repository}", hub.endpoint);
    let url = format!("{api}/revision/{}", encoded(revision));
    let (info, _): (Info, _) = remote.json(&url).await?;
    let is_commit = info.sha.len() == 40 && info.sha.chars().all(|c| c.is_ascii_hexdigit());
    if !is_commit {
        let reason = format!("{:?} is no commit", info.sha);
        return Err(RemoteError::Answer { url, reason });
    }
    let mut entries: Vec<Entry> = Vec::new();
    let mut page = Some(format!("{api}/tree/{}?recursive=true", info.sha));
    for _ in 0..PAGES_MAX {
        let Some(url) = page else { break };
        let (more, next): (Vec<Entry>, _) = remote.json(&url).await?;
        entries.extend(more);
        page = next;
    }
    let from = format!("{}/{repository}@{}", hub.endpoint, info.sha);
    Ok(Listing { repository, license: license(&info), commit: info.sha, entries, from })
}

async fn resolve_file(
    hub: &Hub,
    remote: &Remote,
    listing: &Listing,
    reference: &Reference,
) -> Result<Resolved, RemoteError> {
    let Listing { repository, commit, entries, from, .. } = listing;
    let (entry, quantization) = choose(entries, reference.wanted.as_deref(), from)?;
    let (digest, size_bytes) = checked(entry, from)?;
    let url = format!("{}/{repository}/resolve/{commit}/{}", hub.endpoint, encoded(&entry.path));
    let file_name = entry.path.rsplit('/').next().unwrap_or(&entry.path).to_owned();
    let bundle = bundle(hub, remote, entries, &entry.path, repository, commit).await?;
    Ok(Resolved {
        source: from.clone(),
        name: model_name(repository, &quantization, from)?,
        license: listing.license.clone(),
        files: vec![RemoteFile {
            role: FileRole::Weights,
            path: file_name,
            media_type: GGUF_MEDIA_TYPE.to_owned(),
            size_bytes,
            digest,
            urls: vec![url],
            packing: Packing::Bare,
        }],
        bundles: bundle.into_iter().collect(),
    })
}

/// The name that a repository's model of a quantisation gets.
fn model_name(repository: &str, quantization: &str, from: &str) -> Result<ModelName, RemoteError> {
    let (organisation, repository) = repository.split_once('/').unwrap_or(("", repository));
    let (organisation, repository) = (name_part(organisation), name_part(repository));
    ModelName::new(&organisation, &repository, &tag_of(quantization))
        .map_err(|_| RemoteError::Reference { found: from.to_owned(), expected: EXPECTED })
}

/// The publisher's signature: of this file, or of the whole repository.
async fn bundle(
    hub: &Hub,
    remote: &Remote,
    entries: &[Entry],
    path: &str,
    repository: &str,
    commit: &str,
) -> Result<Option<FoundBundle>, RemoteError> {
    let beside = format!("{path}.sig");
    let is_there = |wanted: &str| entries.iter().any(|e| e.kind == "file" && e.path == wanted);
    let Some(found) = [beside.as_str(), "model.sig"].into_iter().find(|path| is_there(path)) else {
        return Ok(None);
    };
    let url = format!("{}/{repository}/resolve/{commit}/{}", hub.endpoint, encoded(found));
    let answer = accepted(&url, remote.ask(&url, &[]).await?)?;
    let bytes = Remote::body(answer, BUNDLE_BYTES_MAX).await?;
    let from = format!("{}/{repository}@{commit}/{found}", hub.endpoint);
    Ok(Some(FoundBundle { bytes, from, weights_path: Some(path.to_owned()) }))
}

fn license(info: &Info) -> String {
    let card = info.card.as_ref().and_then(|card| card.license.as_str()).map(str::to_owned);
    let tagged =
        || info.tags.iter().find_map(|tag| tag.strip_prefix("license:")).map(str::to_owned);
    card.or_else(tagged).unwrap_or_default()
}

/// The SHA-256 in the index. A file without one cannot be checked and is refused.
fn checked(entry: &Entry, from: &str) -> Result<(Digest, u64), RemoteError> {
    let lfs = entry.lfs.as_ref();
    match lfs.and_then(|lfs| Some((Digest::from_hex(&lfs.oid).ok()?, lfs.size))) {
        Some((digest, size)) if size > 0 => Ok((digest, size)),
        _ => Err(RemoteError::Answer {
            url: from.to_owned(),
            reason: format!("{} ({} bytes) has no SHA-256 in the index", entry.path, entry.size),
        }),
    }
}

/// The file that is meant: the named one, the one of the named quantisation, the only one, or the
/// first of the preferred quantisations. Returns its quantisation too, as its name says it.
fn choose<'a>(
    entries: &'a [Entry],
    wanted: Option<&str>,
    from: &str,
) -> Result<(&'a Entry, String), RemoteError> {
    let is_model = |entry: &&Entry| entry.kind == "file" && is_model(&entry.path);
    let models: Vec<&Entry> = entries.iter().filter(is_model).collect();
    let refuse = |reason: String| {
        let list: Vec<&str> = models.iter().take(30).map(|entry| entry.path.as_str()).collect();
        let found = match list.is_empty() {
            true => "no GGUF files, and no config.json with *.safetensors beside it".to_owned(),
            false => list.join(", "),
        };
        RemoteError::NoModel { from: from.to_owned(), reason, found }
    };
    let of = |quantization: &str| models.iter().find(|e| is_of(&e.path, quantization)).copied();
    let found = match wanted {
        Some(wanted) => {
            let named = models.iter().find(|entry| entry.path == wanted).copied();
            let entry = named.or_else(|| in_a_folder(&models, wanted)).or_else(|| of(wanted));
            entry.ok_or_else(|| refuse(format!("nothing is called {wanted}")))?
        }
        None => match models.as_slice() {
            [only] => only,
            _ => PREFERRED
                .into_iter()
                .find_map(of)
                .ok_or_else(|| refuse("name a quantisation or a file after a colon".to_owned()))?,
        },
    };
    if is_part(&found.path) {
        return Err(refuse(format!("{} is one part of several: merge them first", found.path)));
    }
    Ok((found, quantization_of(&found.path)))
}

/// The only file of that name, whatever folder it is in: manifests do not say the folder.
fn in_a_folder<'a>(models: &[&'a Entry], wanted: &str) -> Option<&'a Entry> {
    let mut named = models.iter().filter(|e| e.path.rsplit('/').next() == Some(wanted));
    let only = named.next()?;
    named.next().is_none().then_some(only)
}

fn is_model(path: &str) -> bool {
    let path = path.to_lowercase();
    path.ends_with(".gguf") && !path.contains("mmproj")
}

/// Whether a file is one of several that make a model together.
fn is_part(path: &str) -> bool {
    path.contains("-of-0")
}

/// What stands after the colon for each model among a repository's files, so that
/// [`Reference::parse`] and [`resolve`] find exactly that file: its quantisation where that means it
/// alone, else its path. Files that no reference means are left out.
pub(super) fn wanted_of(paths: &[String]) -> Vec<String> {
    let models: Vec<&String> = paths.iter().filter(|path| is_model(path)).collect();
    let wanted = |path: &&String| {
        let quantization = quantization_of(path);
        let alone = models.iter().filter(|other| is_of(other, &quantization)).count() == 1;
        let short = alone && tag_of(&quantization) == quantization;
        if short { quantization } else { (*path).clone() }
    };
    let fits = |wanted: &String| Reference::parse(&format!("hf.co/a/b:{wanted}")).is_ok();
    models.iter().filter(|path| !is_part(path)).map(wanted).filter(fits).collect()
}

fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.get(..name.len().saturating_sub(".gguf".len())).unwrap_or(name)
}

/// Whether a file's name ends in a quantisation, as `model-Q4_K_M.gguf` does.
fn is_of(path: &str, quantization: &str) -> bool {
    let (stem, wanted) = (stem(path).to_lowercase(), quantization.to_lowercase());
    // `model_Q8_0` is one, yet `K_M` is no quantisation of `Q4_K_M`.
    let whole = wanted.starts_with(['q', 'i', 'f', 'b', 't', 'm']);
    stem.strip_suffix(&wanted).is_some_and(|before| {
        before.is_empty() || before.ends_with(['-', '.']) || (whole && before.ends_with('_'))
    })
}

fn quantization_of(path: &str) -> String {
    let last = stem(path).rsplit(['-', '.']).next().unwrap_or_default();
    last.to_uppercase()
}

fn tag_of(quantization: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let valid = (1..=32).contains(&quantization.len())
        && quantization.chars().all(fits)
        && quantization.starts_with(|c: char| c.is_ascii_alphanumeric());
    if valid { quantization.to_owned() } else { "latest".to_owned() }
}

/// Percent-encodes what a path may hold besides the plain characters; slashes stay.
pub(super) fn encoded(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Reads a listing and a card, and chooses a file, as an import would.
#[cfg(feature = "fuzzing")]
pub(super) fn try_listing(text: &str, wanted: Option<&str>) {
    if let Ok(info) = serde_json::from_str::<Info>(text) {
        let _ = license(&info);
    }
    let Ok(entries) = serde_json::from_str::<Vec<Entry>>(text) else { return };
    if let Ok((entry, quantization)) = choose(&entries, wanted, "here") {
        let _ = checked(entry, "here");
        assert!(encoded(&entry.path).is_ascii() && tag_of(&quantization).is_ascii());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        Entry { kind: "file".into(), path: path.into(), size: 1, lfs: None, oid: String::new() }
    }

    fn chosen(paths: &[&str], wanted: Option<&str>) -> Result<(String, String), RemoteError> {
        let entries: Vec<Entry> = paths.iter().map(|path| entry(path)).collect();
        choose(&entries, wanted, "x")
            .map(|(entry, quantization)| (entry.path.clone(), quantization))
    }

    #[test]
    fn references_are_read_with_quantisation_and_revision() {
        let reference = Reference::parse("hf.co/Qwen/Qwen3-0.6B-GGUF:Q8_0@v1").unwrap();
        assert_eq!(reference.organisation, "Qwen");
        assert_eq!(reference.wanted.as_deref(), Some("Q8_0"));
        assert_eq!(reference.revision.as_deref(), Some("v1"));
        assert!(Reference::parse("https://huggingface.co/a/b").is_ok());
        for bad in ["hf.co/a", "hf.co//b", "hf.co/a/b:", "hf.co/a/../b", "a/b", "hf.co/a/b@x y"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_quantisation_is_found_at_the_end_of_a_files_name() {
        let paths = ["README.md", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "mmproj-m-Q8_0.gguf"];
        let (path, quantization) = chosen(&paths, Some("q4_k_s")).unwrap();
        assert_eq!((path.as_str(), quantization.as_str()), ("m-Q4_K_S.gguf", "Q4_K_S"));
        assert_eq!(chosen(&paths, None).unwrap().0, "m-Q4_K_M.gguf");
        assert!(chosen(&paths, Some("K_M")).is_err_and(|e| e.to_string().contains("K_M")));
        assert!(chosen(&["model.bin"], None).is_err_and(|e| e.to_string().contains("safetensors")));
        assert!(chosen(&["m-Q8_0-00001-of-00002.gguf"], None).is_err());
    }

    #[test]
    fn every_model_of_a_repository_is_told_by_what_finds_it_again() {
        let paths = [
            "README.md",
            "m-Q4_K_M.gguf",
            "m-Q8_0.gguf",
            "old/m-Q8_0.gguf",
            "tiny.gguf",
            "m-F16-00001-of-00002.gguf",
            "m-F16-00002-of-00002.gguf",
            "mmproj-m-F16.gguf",
            "no model here-Q2_K.gguf",
        ];
        let paths = paths.map(str::to_owned);
        let wanted = wanted_of(&paths);
        assert_eq!(wanted, ["Q4_K_M", "m-Q8_0.gguf", "old/m-Q8_0.gguf", "TINY", "Q2_K"]);
        let entries: Vec<Entry> = paths.iter().map(|path| entry(path)).collect();
        for (wanted, found) in wanted.iter().zip([1, 2, 3, 4, 8]) {
            assert_eq!(choose(&entries, Some(wanted), "x").unwrap().0.path, paths[found]);
        }
    }

    #[test]
    fn the_environment_says_where_the_hub_is() {
        let hub = Hub::from(|name| match name {
            "HF_ENDPOINT" => Some("http://127.0.0.1:9/".to_owned()),
            "HF_HUB_OFFLINE" => Some("1".to_owned()),
            _ => None,
        });
        assert_eq!(hub.endpoint, "http://127.0.0.1:9");
        assert_eq!((hub.token, hub.network), (None, Network::Forbidden));
    }

    #[test]
    fn an_address_without_a_scheme_is_refused_by_its_variable() {
        let hub = Hub::from(|name| (name == "HF_ENDPOINT").then(|| "127.0.0.1:9".to_owned()));
        let refused = hub.remote().unwrap_err().to_string();
        assert!(refused.contains("127.0.0.1:9: HF_ENDPOINT must begin with https://"), "{refused}");
    }
}
