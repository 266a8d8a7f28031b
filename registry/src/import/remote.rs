//! What imports over a network share: one client, refusals in words, files with digests known
//! before they are fetched.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, Response, StatusCode, Url, redirect};

use super::oci::Login;
use super::{ImportError, Imported, ModelFacts, sign};
use crate::blobs::Expected;
use crate::fetch::{FetchError, Pace, WithoutResume, fetch, in_words};
use crate::gc::{self, Hold, LockError};
use crate::manifest::{FileRole, ManifestFile};
use crate::{BlobError, Digest, ModelName, Registry};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that describes models, in bytes.
const JSON_BYTES_MAX: u64 = 16 << 20;
/// How often an answer may send on to another address.
const REDIRECTS_MAX: usize = 10;

/// Whether an import may use the network at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Allowed,
    /// It may not (`HF_HUB_OFFLINE=1`, or the configuration says so).
    Forbidden,
}

/// Why a model could not be fetched from elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The reference.
    #[error("read the reference {found:?}: expected {expected}")]
    Reference {
        /// As given.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// The offline switch.
    #[error("fetch {url}: the network is switched off (HF_HUB_OFFLINE, or --offline)")]
    Offline {
        /// What was wanted.
        url: String,
    },
    /// No answer.
    #[error("reach {url}: {reason}")]
    Unreachable {
        /// What was wanted.
        url: String,
        /// Why not.
        reason: String,
    },
    /// A refusal.
    #[error("fetch {url}: the server answered {status}; {hint}")]
    Refused {
        /// What was wanted.
        url: String,
        /// HTTP status.
        status: u16,
        /// What to do.
        hint: &'static str,
    },
    /// An answer that cannot be used.
    #[error("read the answer of {url}: {reason}")]
    Answer {
        /// What was wanted.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing there that can run here.
    #[error("choose a model in {from}: {reason}; there are: {found}")]
    NoModel {
        /// The repository.
        from: String,
        /// What was looked for.
        reason: String,
        /// What is there.
        found: String,
    },
    /// A local file of an Ollama store.
    #[error("read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A blob.
    #[error(transparent)]
    Fetch(#[from] Box<FetchError<RemoteError>>),
    /// The blob store.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// A collection is under way.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// A file somewhere else whose digest is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// What it is for.
    pub role: FileRole,
    /// Its path in the manifest.
    pub path: String,
    /// Its media type in the manifest.
    pub media_type: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256.
    pub digest: Digest,
    /// Where it can be had, in the order to try.
    pub urls: Vec<String>,
    /// What these bytes are packed in.
    pub packing: Packing,
}

/// What a file is packed in where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Nothing: its bytes are the file.
    Bare,
    /// A tar archive, perhaps with other files.
    Tar,
}

/// A model somewhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Where it is, with its revision: becomes the manifest's `source`.
    pub source: String,
    /// The name it gets unless the caller has another.
    pub name: ModelName,
    /// Its licence, where that is said.
    pub license: String,
    /// Its files, exactly one of them weights.
    pub files: Vec<RemoteFile>,
    /// Publishers' signatures, where some lie beside it; any of them may be the one that counts.
    pub bundles: Vec<FoundBundle>,
}

/// A publisher's signature as it was found, not verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundBundle {
    /// As it came.
    pub bytes: Vec<u8>,
    /// Where it was found, for messages.
    pub from: String,
    /// What the publisher calls the weights: their path in what was signed. Nothing where the
    /// source has no names for files.
    pub weights_path: Option<String>,
}

impl Resolved {
    /// The weights.
    #[must_use]
    pub fn weights(&self) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.role == FileRole::Weights)
    }

    /// Whether the weights' own digest is known only when their archive is here.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.files.iter().any(|file| file.packing != Packing::Bare)
    }

    /// Length of all files, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }
}

/// Who is asked, and with what in hand.
#[derive(Debug, Clone)]
pub struct Remote {
    http: Client,
    network: Network,
    access: Option<Access>,
}

/// What is shown to one server, and to no other.
#[derive(Debug, Clone)]
struct Access {
    /// `https://host:port`.
    origin: String,
    /// The value for `Authorization`, once there is one. Shared by clones: a token that ran out in
    /// mid-download is replaced for all.
    shown: Arc<Mutex<Option<String>>>,
    /// Answers challenges.
    login: Option<Login>,
}

impl Access {
    fn of(&self, url: &str) -> Option<String> {
        let home = Url::parse(&self.origin).ok()?.origin();
        let asked = Url::parse(url).ok()?.origin();
        if home != asked {
            return None;
        }
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, authorization: String) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
    }
}

impl Remote {
    /// A client that trusts the system's certificate authorities.
    ///
    /// # Errors
    /// [`RemoteError::Unreachable`] where TLS cannot be set up.
    pub fn new(network: Network) -> Result<Self, RemoteError> {
        // reqwest takes the process's provider; somebody may have set it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("fulmar/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::custom(sent_on))
            .build()
            .map_err(|error| RemoteError::Unreachable {
                url: "any server".to_owned(),
                reason: in_words(&error),
            })?;
        Ok(Self { http, network, access: None })
    }

    /// With a value for `Authorization`, shown to the server at `origin` alone.
    #[must_use]
    pub fn with_authorization(self, origin: &str, authorization: Option<String>) -> Self {
        let shown = Arc::new(Mutex::new(authorization));
        Self { access: Some(Access { origin: origin.to_owned(), shown, login: None }), ..self }
    }

    /// With answers to the challenges of the server at `origin`.
    #[must_use]
    pub(super) fn with_login(self, origin: &str, login: Login) -> Self {
        let (origin, shown) = (origin.to_owned(), Arc::default());
        Self { access: Some(Access { origin, shown, login: Some(login) }), ..self }
    }

    /// Asks for `url`, with more headers; any status but a 401 that could be answered.
    pub(super) async fn ask(
        &self,
        url: &str,
        headers: &[(&str, String)],
    ) -> Result<Response, RemoteError> {
        let shown = self.access.as_ref().and_then(|access| access.of(url));
        let answer = self.send(url, headers, shown.clone()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let Some((access, login)) =
            self.access.as_ref().and_then(|access| Some((access, access.login.as_ref()?)))
        else {
            return Ok(answer);
        };
        // Only the registry itself is answered, not whoever it has sent us on to.
        let is_home =
            Url::parse(&access.origin).is_ok_and(|home| home.origin() == answer.url().origin());
        let challenges: Vec<&str> = answer
            .headers()
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        if !is_home || challenges.is_empty() {
            return Ok(answer);
        }
        match login.answer(self, &challenges.join(", ")).await? {
            Some(fresh) if Some(&fresh) != shown.as_ref() => {
                access.show(fresh.clone());
                self.send(url, headers, Some(fresh)).await
            }
            _ => Ok(answer),
        }
    }

    /// One request, with or without `Authorization`.
    pub(super) async fn send(
        &self,
        url: &str,
        headers: &[(&str, String)],
        authorization: Option<String>,
    ) -> Result<Response, RemoteError> {
        let mut request = self.http.get(url);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        self.sent(url, request).await
    }

    /// Posts a form.
    pub(super) async fn post_form(
        &self,
        url: &str,
        form: &[(&str, String)],
    ) -> Result<Response, RemoteError> {
        let mut encoded = Url::parse("form:").map_err(|error| RemoteError::Answer {
            url: url.to_owned(),
            reason: error.to_string(),
        })?;
        encoded.query_pairs_mut().extend_pairs(form);
        let request = self
            .http
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(encoded.query().unwrap_or_default().to_owned());
        self.sent(url, request).await
    }

    async fn sent(
        &self,
        url: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, RemoteError> {
        if self.network == Network::Forbidden {
            return Err(RemoteError::Offline { url: url.to_owned() });
        }
        request.send().await.map_err(|error| RemoteError::Unreachable {
            url: url.to_owned(),
            reason: in_words(&error),
        })
    }

    /// The whole of a bounded answer.
    pub(super) async fn body(mut answer: Response, limit: u64) -> Result<Vec<u8>, RemoteError> {
        let url = answer.url().to_string();
        let mut bytes = Vec::new();
        loop {
            let part = answer.chunk().await.map_err(|error| RemoteError::Unreachable {
                url: url.clone(),
                reason: in_words(&error),
            })?;
            let Some(part) = part else { return Ok(bytes) };
            if (bytes.len() + part.len()) as u64 > limit {
                let reason = format!("more than {limit} bytes came");
                return Err(RemoteError::Answer { url, reason });
            }
            bytes.extend_from_slice(&part);
        }
    }

    /// A JSON answer, and the address of the next page if there is one.
    pub(super) async fn json<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
    ) -> Result<(T, Option<String>), RemoteError> {
        let answer = accepted(url, self.ask(url, &[]).await?)?;
        let next = next_page(&answer);
        let bytes = Self::body(answer, JSON_BYTES_MAX).await?;
        let parsed = serde_json::from_slice(&bytes).map_err(|error| RemoteError::Answer {
            url: url.to_owned(),
            reason: error.to_string(),
        })?;
        Ok((parsed, next))
    }

    /// Brings all files of a model into the store, with several sources tried in order. The store
    /// holds off garbage collection until the result is dropped.
    ///
    /// # Errors
    /// [`RemoteError`] of the last source tried.
    pub async fn fetch_all(
        &self,
        registry: &Registry,
        resolved: &Resolved,
        pace: &Pace,
    ) -> Result<Hold, RemoteError> {
        let hold = gc::hold(registry.blobs())?;
        for file in &resolved.files {
            self.fetch_one(registry, file, pace).await?;
        }
        Ok(hold)
    }

    async fn fetch_one(
        &self,
        registry: &Registry,
        file: &RemoteFile,
        pace: &Pace,
    ) -> Result<(), RemoteError> {
        let (digest, size_bytes) = (file.digest, file.size_bytes);
        let expected = Expected { digest, size_bytes, chunks: Vec::new() };
        let mut last = None;
        for url in &file.urls {
            let open = |offset: u64| async move {
                let headers = match offset {
                    0 => Vec::new(),
                    _ => vec![("range", format!("bytes={offset}-"))],
                };
                accepted(url, self.ask(url, &headers).await?)
            };
            let resume = WithoutResume::Restart;
            match fetch(registry.blobs(), &expected, pace, resume, open).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(url, %error, "a source failed");
                    last = Some(error);
                }
            }
        }
        Err(match last {
            Some(error) => Box::new(error).into(),
            None => RemoteError::NoModel {
                from: file.path.clone(),
                reason: "nobody has this file".to_owned(),
                found: "no sources".to_owned(),
            },
        })
    }
}

/// Describes files that are in the store, signs the manifest as the local owner. Blocks.
///
/// # Errors
/// [`ImportError`].
pub fn complete(
    registry: &Registry,
    resolved: &Resolved,
    name: &ModelName,
    facts: &ModelFacts,
    hold: Hold,
) -> Result<Imported, ImportError> {
    let mut files = Vec::new();
    for file in &resolved.files {
        let mut blob = registry.blobs().open_verified(&file.digest)?;
        let offsets = match file.role {
            FileRole::Weights => facts.tensor_offsets.clone(),
            _ => Vec::new(),
        };
        let described = ManifestFile::describe(
            &mut blob.file,
            offsets,
            file.role,
            &file.path,
            &file.media_type,
        )
        .map_err(|source| ImportError::File { op: "read", path: blob.path, source })?;
        files.push(described);
    }
    let facts = ModelFacts {
        source: resolved.source.clone(),
        license: if facts.license.is_empty() {
            resolved.license.clone()
        } else {
            facts.license.clone()
        },
        ..facts.clone()
    };
    sign(registry, name, files, &facts, hold)
}

/// 200 and 206 pass; the rest becomes a refusal that says what to do.
pub(super) fn accepted(url: &str, answer: Response) -> Result<Response, RemoteError> {
    let hint = match answer.status() {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(answer),
        StatusCode::UNAUTHORIZED => {
            "it wants to know who asks: set HF_TOKEN for a hub; for a registry, --auth-file or \
             FULMAR_REGISTRY_USER and FULMAR_REGISTRY_PASSWORD"
        }
        StatusCode::FORBIDDEN => {
            "the token may not read it; a gated model must be accepted on its page first"
        }
        StatusCode::NOT_FOUND => "check the name and the revision; private ones want a token",
        StatusCode::TOO_MANY_REQUESTS => "too many requests: try again later",
        status if status.is_server_error() => "the server is in trouble: try again later",
        _ => "that was not expected",
    };
    Err(RemoteError::Refused { url: url.to_owned(), status: answer.status().as_u16(), hint })
}

/// Follows an answer to another address, never out of TLS. `Authorization` stays behind when the
/// host or the port changes: the client sees to that.
fn sent_on(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if from_tls && attempt.url().scheme() != "https" {
        return attempt.error("the server sent on to an address without TLS");
    }
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("the server sent on too often");
    }
    attempt.follow()
}

/// `Link: <https://…>; rel="next"`, on the same host only.
fn next_page(answer: &Response) -> Option<String> {
    next_in(answer.headers().get("link")?.to_str().ok()?, answer.url())
}

/// The next page that a header names, seen from this one.
pub(super) fn next_in(link: &str, here: &Url) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let url = next.split('<').nth(1)?.split('>').next()?;
    let url = here.join(url).ok()?;
    (url.origin() == here.origin()).then(|| url.to_string())
}

/// A text as a part of a model's name: lower case, anything strange a dash.
pub(super) fn name_part(text: &str) -> String {
    let dashed: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .collect();
    let dashed = dashed.replace("..", "-");
    let trimmed = dashed.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if trimmed.is_empty() { "model".to_owned() } else { trimmed.chars().take(60).collect() }
}
