//! The state directory: database, keys, models. Whoever can write to it owns the device.
//!
//! | name | what |
//! |---|---|
//! | `state.db` | registry, trust, audit log, tokens, outbox |
//! | `audit.key`, `token.key` | Ed25519, PKCS#8, mode 0600 |
//! | `weights.key` | 32 random bytes, mode 0600: binds the engine's copies of weights to the device |
//! | `registry/` | models' files by digest, and the local owner's key |
//! | `identity.json` | the device's certificate and key, once enrolled |
//! | `log/` | JSON lines |
//! | `fulmar.sock` | the running agent's local socket |

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use fulmar_inference::backend::WeightCopies;
use fulmar_policy::Policy;
use fulmar_policy::audit::{self, AuditError, AuditKey, Event};
use fulmar_policy::token::TokenKey;
use fulmar_store::Store;
use fulmar_sync::SignedClock;
use ring::rand::{SecureRandom as _, SystemRandom};
use rusqlite::Transaction;

const DATABASE: &str = "state.db";

/// The key that binds the engine's copies of weights to this device.
struct WeightsKey([u8; WeightCopies::KEY_BYTES]);

impl std::fmt::Debug for WeightsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WeightsKey")
    }
}

fn weights_key(bytes: &[u8]) -> Result<WeightsKey, std::array::TryFromSliceError> {
    bytes.try_into().map(WeightsKey)
}

/// Everything that outlives the process, opened.
#[derive(Debug)]
pub(crate) struct State {
    dir: PathBuf,
    store: Store,
    audit_key: AuditKey,
    token_key: TokenKey,
    weights_key: WeightsKey,
    clock: Arc<SignedClock>,
    started: Instant,
}

impl State {
    /// Opens the state directory, making it and its keys if missing.
    ///
    /// # Errors
    /// Names the file that cannot be made, read or understood.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Arc<Self>> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("make the state directory {}", dir.display()))?;
        let mut schemas = vec![&audit::SCHEMA, &fulmar_policy::token::SCHEMA];
        schemas.extend(fulmar_registry::SCHEMAS);
        schemas.push(&fulmar_sync::state::SCHEMA);
        let store = Store::open(&dir.join(DATABASE), &schemas)?;
        // Another key would be another device, whose log nobody signed.
        let is_signed = store.read_blocking(audit::last_checkpoint)?.is_some();
        anyhow::ensure!(
            !is_signed || dir.join("audit.key").exists(),
            "open the state directory {}: audit.key is gone, which names this device and signed its \
             audit log; restore it from a backup, or move the directory away and begin anew",
            dir.display()
        );
        let audit_key = key(dir, "audit.key", AuditKey::from_pkcs8, || {
            Ok(AuditKey::generate()?.to_pkcs8().to_vec())
        })?;
        let token_key = key(dir, "token.key", TokenKey::from_pkcs8, || {
            Ok(TokenKey::generate()?.to_pkcs8().to_vec())
        })?;
        let weights_key = key(dir, "weights.key", weights_key, || {
            let mut bytes = [0; WeightCopies::KEY_BYTES];
            SystemRandom::new().fill(&mut bytes).context("draw a key")?;
            Ok(bytes.to_vec())
        })?;
        let signed_s = store.read_blocking(fulmar_registry::trust::signed_time)?;
        let clock = Arc::new(SignedClock::new(signed_s));
        let started = Instant::now();
        Ok(Arc::new(Self {
            dir: dir.to_owned(),
            store,
            audit_key,
            token_key,
            weights_key,
            clock,
            started,
        }))
    }

    /// Whether there is a device in a directory already.
    pub(crate) fn is_there(dir: &Path) -> bool {
        // What cannot be looked at may be one.
        dir.join(DATABASE).try_exists().unwrap_or(true)
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The database.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The key of app tokens.
    pub(crate) fn token_key(&self) -> &TokenKey {
        &self.token_key
    }

    /// The key of the engine's copies of weights.
    pub(crate) fn weights_key(&self) -> &[u8; WeightCopies::KEY_BYTES] {
        &self.weights_key.0
    }

    /// The key that signs the audit log.
    pub(crate) fn audit_key(&self) -> &AuditKey {
        &self.audit_key
    }

    /// The device's time.
    pub(crate) fn clock(&self) -> &Arc<SignedClock> {
        &self.clock
    }

    /// Milliseconds since the process started, never going back: for rates and waits.
    pub(crate) fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The policy in force: the owner's, or the built-in one.
    ///
    /// # Errors
    /// When the stored policy is not the one that was signed.
    pub(crate) fn policy(&self) -> anyhow::Result<Policy> {
        let held = self.store.read_blocking(fulmar_registry::trust::held_policy)?;
        Ok(held.map_or_else(Policy::builtin, |held| held.policy))
    }

    /// Who this device is to its fleet, once enrolled.
    pub(crate) fn identity_path(&self) -> PathBuf {
        self.dir.join("identity.json")
    }

    /// The device's name for itself, in tokens and audit signatures: its public audit key, hex.
    /// It is the same before and after the device joins a fleet.
    pub(crate) fn device(&self) -> String {
        hex::encode(self.audit_key.public())
    }

    /// Where the registry keeps models' files.
    pub(crate) fn registry_dir(&self) -> PathBuf {
        self.dir.join("registry")
    }

    /// The control plane's public key for co-signing the audit log, once enrolled.
    ///
    /// # Errors
    /// When the identity cannot be read.
    pub(crate) fn control_plane_audit_key(&self) -> anyhow::Result<Option<Vec<u8>>> {
        fulmar_sync::Identity::load(&self.identity_path())?
            .map(|identity| {
                hex::decode(&identity.audit_cosign_key)
                    .context("read the control plane's audit key")
            })
            .transpose()
    }

    /// The agent's local socket.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.dir)
    }

    /// Signs the audit log as it is.
    ///
    /// # Errors
    /// [`AuditError`].
    pub(crate) async fn sign_audit_log(self: &Arc<Self>) -> Result<(), AuditError> {
        let state = Arc::clone(self);
        self.store.write(move |tx| state.sign_in(tx)).await
    }

    /// [`State::sign_audit_log`] for commands outside a runtime.
    ///
    /// # Errors
    /// [`AuditError`].
    pub(crate) fn sign_audit_log_blocking(self: &Arc<Self>) -> Result<(), AuditError> {
        let state = Arc::clone(self);
        self.store.write_blocking(move |tx| state.sign_in(tx))
    }

    fn sign_in(&self, tx: &Transaction<'_>) -> Result<(), AuditError> {
        audit::checkpoint(tx, &self.audit_key, &self.device(), self.clock.now_s()).map(|_| ())
    }
}

/// Where the agent of a state directory listens.
pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("fulmar.sock")
}

/// Appends an audit entry in the caller's transaction, for the device's own log and for the
/// control plane.
///
/// # Errors
/// [`AuditError`]; the caller then must not do what it wanted to record.
pub(crate) fn record(tx: &Transaction<'_>, event: &Event<'_>) -> Result<u64, AuditError> {
    fulmar_sync::record(tx, event)
}

/// Reads a key file, or makes it: mode 0600, durable before it is used.
fn key<T, E: std::error::Error + Send + Sync + 'static>(
    dir: &Path,
    name: &str,
    parse: impl Fn(&[u8]) -> Result<T, E>,
    generate: impl Fn() -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<T> {
    let path = dir.join(name);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let bytes = generate()?;
            write_secret(&path, &bytes)?;
            // Another process may have been first: what is on disk counts.
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))?
        }
        Err(error) => {
            return Err(error).with_context(|| format!("read {}", path.display()));
        }
    };
    parse(&bytes).with_context(|| format!("use {}", path.display()))
}

/// Makes a file that only its owner reads, durably, unless it is there already.
///
/// # Errors
/// Names the file.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    // A file's name alone has an empty parent.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // A link, unlike a rename, never replaces a key that another process made meanwhile.
        match std::fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        std::fs::remove_file(&temporary)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn keys_are_made_once_and_are_secret() {
        let dir = tempfile::tempdir().unwrap();
        let first = State::open(&dir.path().join("state")).unwrap();
        let device = first.device();
        drop(first);
        let second = State::open(&dir.path().join("state")).unwrap();
        assert_eq!(second.device(), device);
        for name in ["audit.key", "token.key", "weights.key"] {
            let mode = std::fs::metadata(second.dir().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("audit.key"), b"rubbish").unwrap();
        let error = format!("{:#}", State::open(dir.path()).unwrap_err());
        assert!(error.contains("audit.key"), "{error}");
        assert_eq!(std::fs::read(dir.path().join("audit.key")).unwrap(), b"rubbish");
    }

    #[test]
    fn a_device_whose_log_is_signed_gets_no_other_key() {
        let dir = tempfile::tempdir().unwrap();
        let open = || State::open(dir.path());
        // Nothing is signed yet: whose key it is does not matter.
        drop(open().unwrap());
        std::fs::remove_file(dir.path().join("audit.key")).unwrap();
        let state = open().unwrap();
        let mint = |tx: &Transaction<'_>| {
            let event = Event {
                at_s: 1,
                actor: "local",
                action: "token.mint",
                resource: "app",
                outcome: audit::Outcome::Completed,
                opened: None,
                detail: serde_json::Value::Null,
            };
            record(tx, &event).map(drop)
        };
        state.store().write_blocking(mint).unwrap();
        state.sign_audit_log_blocking().unwrap();
        drop(state);
        std::fs::remove_file(dir.path().join("audit.key")).unwrap();
        let error = open().unwrap_err().to_string();
        assert!(error.contains("audit.key is gone") && error.contains("backup"), "{error}");
        assert!(!dir.path().join("audit.key").exists());
    }
}
