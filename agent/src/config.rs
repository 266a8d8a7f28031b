//! The agent's configuration: one TOML file, unknown fields refused; environment variables go
//! before it, command-line options before both. Each part of the agent owns its section.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{engine, governor, http, logging};

/// Where the file is looked for when none is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/fulmar/fulmar.toml";
/// `FULMAR__HTTP__LISTEN='["127.0.0.1:80"]'` sets `listen` in section `http`.
const ENVIRONMENT_PREFIX: &str = "FULMAR__";

/// All settings of an agent. Every field has a default.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where the agent keeps its database, keys and models. Default: `/var/lib/fulmar` for root,
    /// else `fulmar` in the user's data directory.
    pub(crate) state_dir: Option<PathBuf>,
    /// Local HTTP.
    pub(crate) http: http::Config,
    /// The engine and its byte budget.
    pub(crate) engine: engine::Config,
    /// When the engine goes slower by itself.
    pub(crate) governor: governor::Config,
    /// Models on disk.
    pub(crate) registry: RegistryConfig,
    /// The link to the control plane.
    pub(crate) sync: SyncConfig,
    /// Logs.
    pub(crate) log: logging::Config,
}

/// Models on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RegistryConfig {
    /// Bytes that all models together may hold on disk.
    pub(crate) blobs_bytes_max: u64,
    /// PEM files of public keys whose signatures over imported models count (OpenSSF model
    /// signing).
    pub(crate) signing_keys: Vec<PathBuf>,
    /// PEM files of certificates that signers' chains may end in.
    pub(crate) signing_roots: Vec<PathBuf>,
    /// Sigstore's trusted roots (`trusted_root.json`, as `cosign trusted-root create` and Sigstore's
    /// own TUF repository give them), for keyless signatures. Nothing is trusted but what they
    /// name; none is built in, none is fetched.
    pub(crate) signing_trusted_roots: Vec<PathBuf>,
    /// Whose keyless signatures count.
    pub(crate) signing_identities: Vec<SigningIdentity>,
    /// Whether a model may be imported that no trusted signer has signed.
    pub(crate) unsigned_imports: UnsignedImports,
    /// Seconds between two readings of all models' files; 0: never.
    pub(crate) scrub_interval_s: u64,
}

/// An identity that keyless signatures are accepted from: an issuer, and `subject` or
/// `subject_pattern`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SigningIdentity {
    /// Who vouches for the subject, as `https://accounts.google.com`.
    pub(crate) issuer: String,
    /// Who signs, exactly: a mail address, or a workflow's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<String>,
    /// A regular expression for who signs; it begins with `^` and ends with `$`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject_pattern: Option<String>,
}

/// What becomes of an import without a publisher's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UnsignedImports {
    /// It goes on, and is told so.
    Allowed,
    /// It is refused.
    Refused,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            blobs_bytes_max: 64 << 30,
            signing_keys: Vec::new(),
            signing_roots: Vec::new(),
            signing_trusted_roots: Vec::new(),
            signing_identities: Vec::new(),
            unsigned_imports: UnsignedImports::Allowed,
            scrub_interval_s: 7 * 86_400,
        }
    }
}

/// The link to the control plane.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SyncConfig {
    /// Bytes per second that downloads may use; 0: no limit.
    pub(crate) download_bytes_per_s_max: u64,
    /// What the link costs; on a metered one large downloads wait.
    pub(crate) link_cost: fulmar_sync::LinkCost,
    /// Bytes that one release, all its files together, may still cost on a metered link; `pull` follows
    /// it too.
    pub(crate) metered_bytes_max: u64,
    /// Where models' files are asked for before the control plane, in this order: files by digest
    /// under these addresses, as `http://cache.local/blobs`. They need no trust: every chunk is
    /// held against what the owner signed.
    pub(crate) blob_urls: Vec<String>,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            download_bytes_per_s_max: 0,
            link_cost: fulmar_sync::LinkCost::Unknown,
            metered_bytes_max: 16 << 20,
            blob_urls: Vec::new(),
        }
    }
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is not TOML, or has a field that is unknown or of another type.
    #[error("parse the configuration {path}: {reason}")]
    Parse { path: PathBuf, reason: String },
    /// An environment variable does not fit.
    #[error("read the environment variable {name}: {reason}")]
    Environment { name: String, reason: String },
    /// No place for the state.
    #[error("choose a state directory: neither --dir, state_dir, XDG_DATA_HOME nor HOME is set")]
    StateDir,
}

impl Config {
    /// Reads `file`, or [`DEFAULT_FILE`] if there, and lays the environment over it.
    ///
    /// # Errors
    /// [`ConfigError`] names file and field.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                String::new()
            }
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        Self::from_parts(path, &text, std::env::vars())
    }

    pub(crate) fn from_parts(
        path: &Path,
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let parse = |error: toml::de::Error| ConfigError::Parse {
            path: path.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        };
        // First alone, so that an error names the file's own line.
        toml::from_str::<Self>(text).map_err(parse)?;
        let mut table: toml::Table = toml::from_str(text).map_err(parse)?;
        let mut overlaid: Vec<(String, String)> =
            environment.filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
        overlaid.sort();
        for (name, value) in overlaid {
            set(&mut table, &name, &value)
                .and_then(|()| {
                    table.clone().try_into::<Self>().map(drop).map_err(|e| e.to_string())
                })
                .map_err(|reason| ConfigError::Environment { name, reason })?;
        }
        table.try_into().map_err(parse)
    }

    /// Refuses what no agent can be started with: `serve`, `config check` and `doctor` say the same.
    ///
    /// # Errors
    /// Names the section and the field.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.http.check()?;
        self.engine.check()?;
        self.governor.check()?;
        fulmar_sync::check_blob_urls(&self.sync.blob_urls).context("read sync.blob_urls")?;
        self.log.check()
    }

    /// The state directory: the argument's, the file's, or the default.
    ///
    /// # Errors
    /// [`ConfigError::StateDir`].
    pub(crate) fn state_dir(&self, argument: Option<&Path>) -> Result<PathBuf, ConfigError> {
        if let Some(dir) = argument.or(self.state_dir.as_deref()) {
            return Ok(dir.to_owned());
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/fulmar"));
        }
        user_data_dir().ok_or(ConfigError::StateDir)
    }
}

/// `fulmar` in the user's data directory (XDG Base Directory specification).
pub(crate) fn user_data_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("fulmar"))
}

/// Sets one field, `FULMAR__SECTION__FIELD`, to a TOML value; what is no TOML value is text.
fn set(table: &mut toml::Table, name: &str, value: &str) -> Result<(), String> {
    let path = name[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase();
    let mut keys: Vec<&str> = path.split("__").collect();
    let Some(field) = keys.pop().filter(|field| !field.is_empty()) else {
        return Err("expected FULMAR__SECTION__FIELD".into());
    };
    let mut at = table;
    for key in keys {
        at = at
            .entry(key)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("{key} is no section"))?;
    }
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    at.insert(field.to_owned(), parsed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        Config::from_parts(Path::new("fulmar.toml"), text, environment)
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = read("", &[]).unwrap();
        assert_eq!(config.registry.blobs_bytes_max, 64 << 30);
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_line_and_name() {
        let error = read("[registry]\nblob_bytes_max = 5\n", &[]).unwrap_err().to_string();
        assert!(error.contains("fulmar.toml"), "{error}");
        assert!(error.contains("blob_bytes_max") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let config = read(
            "[registry]\nblobs_bytes_max = 5\n",
            &[
                ("FULMAR__REGISTRY__BLOBS_BYTES_MAX", "7"),
                ("FULMAR__STATE_DIR", "/x y"),
                ("OTHER", "1"),
            ],
        )
        .unwrap();
        assert_eq!(config.registry.blobs_bytes_max, 7);
        assert_eq!(config.state_dir, Some(PathBuf::from("/x y")));
    }

    #[test]
    fn a_wrong_variable_is_refused_by_its_name() {
        let error = read("", &[("FULMAR__REGISTRY__COLOUR", "red")]).unwrap_err().to_string();
        assert!(error.contains("FULMAR__REGISTRY__COLOUR") && error.contains("colour"), "{error}");
        assert!(read("", &[("FULMAR__", "1")]).is_err());
    }

    #[test]
    fn what_no_agent_can_start_with_is_refused_by_its_field() {
        read("", &[]).unwrap().check().unwrap();
        for (text, field) in [
            ("[http]\nconnections_max = 0", "http.connections_max"),
            ("[http]\nlisten = [\"0.0.0.0:80\"]", "http.exposure"),
            ("[engine]\nthreads = 5000", "threads"),
            ("[engine]\nsequences_max = 0", "sequences_max"),
            ("[governor]\ninterval_s = 0", "interval_s"),
            ("[sync]\nblob_urls = [\"ftp://cache.local\"]", "sync.blob_urls"),
            ("[log]\nlevel = \"fulmar=loud\"", "log.level"),
            ("[log]\nlevel = \"loud\"", "log.level"),
        ] {
            let refused = format!("{:#}", read(text, &[]).unwrap().check().unwrap_err());
            assert!(refused.contains(field), "{text}: {refused}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(
            section in proptest::sample::select(vec!["", "[engine]", "[http]", "[registry]", "[x]"]),
            name in "[a-z_]{1,12}|listen|threads|budget_bytes",
            value in ".{0,12}|[0-9]{1,25}|\"[^\"]{0,9}\"|\\[[0-9,]{0,9}\\]|\\{.{0,9}\\}",
            environment in "[A-Z_]{0,20}",
        ) {
            let _ = read(&format!("{section}\n{name} = {value}\n"), &[]);
            let _ = read("", &[(&format!("FULMAR__{environment}"), &value)]);
        }
    }
}
