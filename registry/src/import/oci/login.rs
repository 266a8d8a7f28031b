//! Who asks an OCI registry, and what it wants to see: Basic credentials, or a bearer token from
//! the token service that its challenge names (distribution specification, RFC 9110 section 11).
//!
//! Credentials go to the registry itself and to the token service that the registry names, over
//! TLS or on loopback; never to a host that a download is sent on to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use serde::Deserialize;

use crate::import::remote::{Remote, RemoteError};

/// Longest answer of a token service, in bytes.
const TOKEN_BYTES_MAX: u64 = 1 << 20;
/// Longest file of credentials, in bytes.
const AUTH_FILE_BYTES_MAX: u64 = 4 << 20;

/// What a person or a program has in hand for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and its password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// An identity token, exchanged for bearer tokens (OAuth 2 refresh).
    Identity {
        /// The token.
        token: String,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password of {user:?}"),
            Self::Identity { .. } => write!(f, "Identity"),
        }
    }
}

impl Credentials {
    fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::Identity { .. } => None,
        }
    }
}

/// A file of credentials, as docker, podman and skopeo write it.
#[derive(Debug, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Debug, Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

/// Where credentials are looked for, in this order: the named file alone, else
/// `REGISTRY_AUTH_FILE`, the user's `containers/auth.json`, docker's `config.json`.
///
/// # Errors
/// [`RemoteError::File`] where a file is there (or was named) and cannot be used.
pub fn find(
    named: Option<&Path>,
    host: &str,
    repository: &str,
) -> Result<Option<Credentials>, RemoteError> {
    if let Some(path) = named {
        return in_file(path, host, repository);
    }
    for path in usual_files() {
        if path.is_file()
            && let Some(found) = in_file(&path, host, repository)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn usual_files() -> Vec<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = |rest: &str| dir("HOME").map(|home| home.join(rest));
    [
        dir("REGISTRY_AUTH_FILE"),
        dir("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        dir("XDG_CONFIG_HOME").map(|dir| dir.join("containers/auth.json")),
        home(".config/containers/auth.json"),
        dir("DOCKER_CONFIG").map(|dir| dir.join("config.json")),
        home(".docker/config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The credentials that a file has for the most specific part of `host/repository`.
fn in_file(path: &Path, host: &str, repository: &str) -> Result<Option<Credentials>, RemoteError> {
    let failed = |source| RemoteError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| {
            use std::io::Read as _;
            file.take(AUTH_FILE_BYTES_MAX).read_to_end(&mut bytes)
        })
        .map_err(failed)?;
    in_bytes(&bytes, host, repository)
        .map_err(|reason| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, reason)))
}

/// The same of a file's bytes.
pub(in crate::import) fn in_bytes(
    bytes: &[u8],
    host: &str,
    repository: &str,
) -> Result<Option<Credentials>, String> {
    let file: AuthFile = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let whole = format!("{host}/{repository}");
    let best = file
        .auths
        .iter()
        .filter(|(key, _)| {
            let key = place(key);
            whole.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .max_by_key(|(key, _)| place(key).len());
    let Some((key, auth)) = best else { return Ok(None) };
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::Identity { token: auth.identity_token.clone() }));
    }
    if !auth.username.is_empty() {
        let (user, password) = (auth.username.clone(), auth.password.clone());
        return Ok(Some(Credentials::Password { user, password }));
    }
    // An entry without any is a mark that a credential helper keeps them.
    if auth.auth.is_empty() {
        return Ok(None);
    }
    let decoded = STANDARD.decode(auth.auth.trim()).ok();
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    match text.as_deref().and_then(|text| text.split_once(':')) {
        Some((user, password)) => Ok(Some(Credentials::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        })),
        None => Err(format!("auths.{key}.auth is not the base64 of USER:PASSWORD")),
    }
}

/// `https://index.docker.io/v1/` and `example.com/team` as `host[/path]`.
fn place(key: &str) -> &str {
    let key = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or(key.strip_suffix("/v2")).unwrap_or(key)
}

/// What an answer of 401 asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer(BTreeMap<String, String>),
}

/// The challenges of one header, the token service's first.
fn challenge(header: &str) -> Option<Challenge> {
    let found = |scheme: &str| {
        let lower = header.to_ascii_lowercase();
        let scheme = scheme.to_ascii_lowercase();
        let starts = lower.starts_with(&scheme);
        let at = if starts { Some(0) } else { lower.find(&format!(", {scheme}")).map(|at| at + 2) };
        at.map(|at| header[at + scheme.len()..].trim_start())
    };
    if let Some(parameters) = found("Bearer ") {
        return Some(Challenge::Bearer(parameters_of(parameters)));
    }
    found("Basic").map(|_| Challenge::Basic)
}

/// `realm="…",scope="a:pull,push"`: commas within quotes belong to the value.
fn parameters_of(text: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim().trim_start_matches(',').trim().to_ascii_lowercase();
        // A space within a name: the next scheme has begun.
        if name.contains(' ') {
            break;
        }
        let (value, later) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        parameters.insert(name, value.trim().to_owned());
        rest = later;
    }
    parameters
}

/// Asks for what a registry hands out, with the credentials at hand.
#[derive(Debug, Clone)]
pub(in crate::import) struct Login {
    host: String,
    repository: String,
    credentials: Option<Credentials>,
}

impl Login {
    pub(super) fn new(host: &str, repository: &str, credentials: Option<Credentials>) -> Self {
        Self { host: host.to_owned(), repository: repository.to_owned(), credentials }
    }

    /// The value for `Authorization` that answers a challenge; nothing where there is none to
    /// give.
    ///
    /// # Errors
    /// [`RemoteError`] of the token service.
    pub(in crate::import) async fn answer(
        &self,
        remote: &Remote,
        header: &str,
    ) -> Result<Option<String>, RemoteError> {
        match challenge(header) {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(self.credentials.as_ref().and_then(Credentials::basic)),
            Some(Challenge::Bearer(parameters)) => {
                let token = self.token(remote, &parameters).await?;
                Ok(token.map(|token| format!("Bearer {token}")))
            }
        }
    }

    async fn token(
        &self,
        remote: &Remote,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Option<String>, RemoteError> {
        #[derive(Deserialize)]
        struct Token {
            // Some services send both: they are the same.
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let Some(realm) = parameters.get("realm") else { return Ok(None) };
        let mut url = self.service(realm)?;
        let scope = parameters.get("scope").cloned();
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let mut form = vec![("scope", scope)];
        form.extend(parameters.get("service").map(|service| ("service", service.clone())));
        let answer = match &self.credentials {
            Some(Credentials::Identity { token }) => {
                form.push(("grant_type", "refresh_token".to_owned()));
                form.push(("client_id", "fulmar".to_owned()));
                form.push(("refresh_token", token.clone()));
                remote.post_form(url.as_str(), &form).await?
            }
            credentials => {
                url.query_pairs_mut().extend_pairs(&form);
                let shown = credentials.as_ref().and_then(Credentials::basic);
                remote.send(url.as_str(), &[], shown).await?
            }
        };
        let answer = super::accepted(realm, answer)?;
        let bytes = Remote::body(answer, TOKEN_BYTES_MAX).await?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| RemoteError::Answer {
            url: realm.clone(),
            reason: error.to_string(),
        })?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        Ok(Some(token).filter(|token| !token.is_empty()))
    }

    /// The token service's address: protected by TLS, or the registry's own on loopback.
    fn service(&self, realm: &str) -> Result<Url, RemoteError> {
        let refuse = |reason: String| RemoteError::Answer { url: self.host.clone(), reason };
        let url = Url::parse(realm)
            .map_err(|error| refuse(format!("its token service {realm:?}: {error}")))?;
        let same_host = realm.starts_with(&format!("http://{}/", self.host));
        if url.scheme() != "https" && !(same_host && super::is_loopback(&self.host)) {
            return Err(refuse(format!("its token service {realm:?} is not protected by TLS")));
        }
        Ok(url)
    }
}

/// Reads a challenge and the token service in it, as an answer of 401 would have it read.
#[cfg(feature = "fuzzing")]
pub(in crate::import) fn try_challenge(header: &str) {
    let login = Login::new("127.0.0.1:5000", "team/model", None);
    if let Some(Challenge::Bearer(parameters)) = challenge(header)
        && let Some(realm) = parameters.get("realm")
        && let Ok(service) = login.service(realm)
    {
        let own = service.host_str() == Some("127.0.0.1") && service.port() == Some(5000);
        assert!(service.scheme() == "https" || own, "a token service without TLS: {service}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_with_commas_inside_quotes() {
        let header = r#"Bearer realm="https://a/token",service="r",scope="repository:x:pull,push""#;
        let Some(Challenge::Bearer(found)) = challenge(header) else { panic!() };
        assert_eq!(found["scope"], "repository:x:pull,push");
        assert_eq!(found["service"], "r");
        assert_eq!(challenge("Basic realm=\"r\""), Some(Challenge::Basic));
        let both = r#"Basic realm="r", Bearer realm="https://a/token""#;
        assert!(matches!(challenge(both), Some(Challenge::Bearer(found)) if found.len() == 1));
        assert_eq!(challenge("Negotiate"), None);
        assert_eq!(challenge("Béarer ="), None);
    }

    #[test]
    fn the_most_specific_entry_of_a_file_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        let of = |user: &str| STANDARD.encode(format!("{user}:secret:with colon"));
        let file = serde_json::json!({ "auths": {
            "example.com": { "auth": of("all") },
            "example.com/team": { "auth": of("team") },
            "https://index.docker.io/v1/": { "identitytoken": "t" },
            "kept.example": {},
        }});
        std::fs::write(&path, file.to_string()).unwrap();
        let user = |host: &str, repository: &str| match in_file(&path, host, repository).unwrap() {
            Some(Credentials::Password { user, password }) => {
                assert_eq!(password, "secret:with colon");
                user
            }
            other => format!("{other:?}"),
        };
        assert_eq!(user("example.com", "team/tiny"), "team");
        assert_eq!(user("example.com", "teams/tiny"), "all");
        assert_eq!(user("index.docker.io", "library/x"), "Some(Identity)");
        assert_eq!(user("kept.example", "x"), "None");
        assert_eq!(user("example.com.evil", "x"), "None");
        std::fs::write(&path, r#"{"auths": {"h": {"auth": "eA=="}}}"#).unwrap();
        let refused = in_file(&path, "h", "x").unwrap_err().to_string();
        assert!(refused.contains("auths.h.auth"), "{refused}");
        assert!(find(Some(&dir.path().join("none")), "h", "x").is_err());
    }

    #[test]
    fn credentials_are_not_printed() {
        let secret = Credentials::Password { user: "me".into(), password: "hush".into() };
        assert!(!format!("{secret:?}").contains("hush"));
    }

    #[test]
    fn a_token_service_without_tls_is_refused_unless_it_is_the_loopback_registry() {
        let login = Login::new("127.0.0.1:5000", "x", None);
        assert!(login.service("http://127.0.0.1:5000/token").is_ok());
        assert!(login.service("http://127.0.0.1:5001/token").is_err());
        let far = Login::new("example.com", "x", None);
        assert!(far.service("http://example.com/token").is_err());
        assert!(far.service("https://auth.example.com/token").is_ok());
    }
}
