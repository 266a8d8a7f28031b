//! Makes a state directory: CA, director's keys, database, first operator.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use fulmar_policy::Role;
use fulmar_policy::audit::{AuditError, AuditKey, Outcome};
use fulmar_store::{Store, StoreError};

use crate::ca::{Ca, CaError};
use crate::director::{Director, DirectorError};
use crate::failure::{Failure, chain};
use crate::{act, files, mirror, password, schema, session};

/// The key that co-signs checkpoints of audit logs, PKCS#8.
pub(crate) const AUDIT_KEY_FILE: &str = "audit.key";

/// What a new control plane is to be.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Name of the first operator, who may do everything.
    pub admin: String,
    /// The registry repository's first root, byte for byte. Without it, the first upload of
    /// metadata by an admin brings it.
    pub registry_root: Option<Vec<u8>>,
    /// Rounds of the password hash; lower only in tests.
    pub password_rounds: NonZeroU32,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { admin: "admin".to_owned(), registry_root: None, password_rounds: password::ROUNDS }
    }
}

/// What [`init`] made.
#[derive(Debug, Clone, serde::Serialize)]
pub struct InitReport {
    /// The state directory.
    pub dir: PathBuf,
    /// The first operator.
    pub admin: String,
    /// The first operator's password. It is kept nowhere: this is the only time it is told.
    pub admin_password: String,
    /// SHA-256 of the fleet CA's certificate, hex.
    pub ca_sha256: String,
}

/// Why no state directory could be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It is one already.
    #[error("make a control plane in {dir}: there is one already")]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory could not be made.
    #[error("make the directory {dir}")]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operator's name is not one.
    #[error("name the operator {found:?}: expected 1 to 63 of a-z, 0-9, '-', '.' and '_'")]
    AdminName {
        /// What was found.
        found: String,
    },
    /// The CA could not be made.
    #[error("make the fleet CA")]
    Ca(#[from] CaError),
    /// A file could not be written.
    #[error("write the state directory")]
    File(#[from] files::FileError),
    /// The database could not be made.
    #[error("make the database")]
    Store(#[from] StoreError),
    /// The first rows were refused.
    #[error("write the database: {0}")]
    Write(String),
    /// The director's key could not be made.
    #[error("make the director")]
    Director(#[from] DirectorError),
    /// The audit key could not be made.
    #[error("make the audit key")]
    Audit(#[from] AuditError),
    /// No random numbers.
    #[error("make a password")]
    Random(#[from] password::RandomError),
}

/// Makes the state directory `dir` (mode 0700): `ca.key`, `ca.pem`, `director.key`,
/// `audit.key`, `control.db`. A crash before
/// the end leaves a directory without `control.db`, which a second call completes.
///
/// # Errors
/// [`InitError`], by step.
pub fn init(dir: &Path, options: &InitOptions) -> Result<InitReport, InitError> {
    if !operator_name_is_valid(&options.admin) {
        return Err(InitError::AdminName { found: options.admin.clone() });
    }
    let database = dir.join("control.db");
    if database.exists() {
        return Err(InitError::Exists { dir: dir.to_owned() });
    }
    make_dir(dir)?;
    let now_s = crate::now_s();
    // What a crash left half-made signed nothing yet: made anew.
    for file in ["ca.key", "ca.pem", "director.key", "audit.key"] {
        remove_half_made(&dir.join(file))?;
    }
    for file in ["control.new", "control.new-wal", "control.new-shm", "control.copy"] {
        remove_half_made(&dir.join(file))?;
    }
    let ca = Ca::create(dir, now_s)?;
    Director::create(dir)?;
    let cosigner = AuditKey::generate()?;
    files::write_secret(&dir.join(AUDIT_KEY_FILE), cosigner.to_pkcs8())?;
    let admin_password = password::generate()?;
    let hash = password::hash(&admin_password, options.password_rounds)?;
    let admin = options.admin.clone();
    // Under another name until it holds what it must: `control.db` says that all is there.
    let fresh = dir.join("control.new");
    let registry_root = options.registry_root.clone();
    let director = Director::open(dir)?;
    let store = Store::open(&fresh, &schema::ALL)?;
    let writer = store.clone();
    let write = move || {
        writer.write_blocking(move |tx| {
            session::put_operator(tx, &admin, &hash, &[Role::Admin], now_s)?;
            if let Some(root) = &registry_root {
                mirror::bootstrap(tx, root, now_s)?;
            }
            director.ensure_root(tx, now_s)?;
            let detail = serde_json::json!({ "admin": admin });
            act::append(tx, "local", "control_plane.init", "-", Outcome::Completed, detail)
        })
    };
    // On a thread of its own: the caller's may belong to a runtime, where waiting is forbidden.
    std::thread::spawn(write)
        .join()
        .map_err(|_| StoreError::Stopped)?
        .map_err(|failure: Failure| InitError::Write(chain(&failure)))?;
    // The copy has no write-ahead log beside it: one rename takes all of it.
    store.backup(&dir.join("control.copy"))?;
    drop(store);
    finish(dir)?;
    Ok(InitReport {
        dir: dir.to_owned(),
        admin: options.admin.clone(),
        admin_password,
        ca_sha256: ca.sha256(),
    })
}

fn remove_half_made(path: &Path) -> Result<(), InitError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(files::FileError::Write { path: path.to_owned(), source }.into())
        }
        _ => Ok(()),
    }
}

fn finish(dir: &Path) -> Result<(), InitError> {
    let (copy, database) = (dir.join("control.copy"), dir.join("control.db"));
    let fail = |source| files::FileError::Write { path: database.clone(), source };
    std::fs::File::open(&copy).and_then(|file| file.sync_all()).map_err(fail)?;
    std::fs::rename(&copy, &database).map_err(fail)?;
    std::fs::File::open(dir).and_then(|file| file.sync_all()).map_err(fail)?;
    for file in ["control.new", "control.new-wal", "control.new-shm"] {
        remove_half_made(&dir.join(file))?;
    }
    Ok(())
}

/// Whether an operator may have this name: 1 to 63 of `[a-z0-9._-]`.
pub(crate) fn operator_name_is_valid(name: &str) -> bool {
    let sign_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    (1..=63).contains(&name.len()) && name.chars().all(sign_ok)
}

fn make_dir(dir: &Path) -> Result<(), InitError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| InitError::Dir { dir: dir.to_owned(), source })
}
