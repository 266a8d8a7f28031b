//! Makes a state directory: CA, director's keys, database, first operator.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use fulmar_store::{Store, StoreError};

use crate::ca::{Ca, CaError};
use crate::{files, password, schema};

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
    /// SQLite refused.
    #[error("write the database")]
    Sqlite(#[from] rusqlite::Error),
    /// No random numbers.
    #[error("make a password")]
    Random(#[from] password::RandomError),
}

/// Makes the state directory `dir` (mode 0700): `ca.key`, `ca.pem`, `control.db`. A crash before
/// the end leaves a directory without `control.db`, which a second call completes.
///
/// # Errors
/// [`InitError`], by step.
pub fn init(dir: &Path, options: &InitOptions) -> Result<InitReport, InitError> {
    let name_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    if !(1..=63).contains(&options.admin.len()) || !options.admin.chars().all(name_ok) {
        return Err(InitError::AdminName { found: options.admin.clone() });
    }
    let database = dir.join("control.db");
    if database.exists() {
        return Err(InitError::Exists { dir: dir.to_owned() });
    }
    make_dir(dir)?;
    let now_s = crate::now_s();
    let ca = match Ca::open(dir) {
        Ok(ca) => ca,
        Err(CaError::File(files::FileError::Read { source, .. }))
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            // A half-made CA signed nothing yet.
            let _ = std::fs::remove_file(dir.join("ca.key"));
            let _ = std::fs::remove_file(dir.join("ca.pem"));
            Ca::create(dir, now_s)?
        }
        Err(error) => return Err(error.into()),
    };
    let admin_password = password::generate()?;
    let hash = password::hash(&admin_password, options.password_rounds)?;
    let admin = options.admin.clone();
    let store = Store::open(&database, &[&schema::SCHEMA])?;
    store.write_blocking(move |tx| {
        tx.execute(
            "INSERT INTO operator (name, password_hash, roles, created_s)
             VALUES (?1, ?2, '[\"admin\"]', ?3)",
            (&admin, &hash, now_s),
        )?;
        Ok::<_, InitError>(())
    })?;
    Ok(InitReport {
        dir: dir.to_owned(),
        admin: options.admin.clone(),
        admin_password,
        ca_sha256: ca.sha256(),
    })
}

fn make_dir(dir: &Path) -> Result<(), InitError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| InitError::Dir { dir: dir.to_owned(), source })
}
