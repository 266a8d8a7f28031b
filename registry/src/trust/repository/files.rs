//! Where a repository's files lie, and how they are replaced: written beside, synced, renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::RepositoryError;
use crate::trust::envelope::Loaded;
use crate::trust::metadata::{Body, ROOT, TIMESTAMP, encoded};

/// Longest metadata file read from a repository's own folder, in bytes.
const FILE_LENGTH_MAX: u64 = 64 << 20;

/// The folders of a repository.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
}

impl Files {
    pub(super) fn metadata(&self) -> PathBuf {
        self.dir.join("metadata")
    }

    pub(super) fn staged(&self, role: &str) -> PathBuf {
        self.dir.join("staged").join(format!("{}.json", encoded(role)))
    }

    /// Where the target `path` with this SHA-256 lies: its base name carries the hash.
    pub(super) fn target(&self, path: &str, sha256: &str) -> PathBuf {
        let (folder, base) = path.rsplit_once('/').unwrap_or(("", path));
        self.dir.join("targets").join(folder).join(format!("{sha256}.{base}"))
    }

    pub(super) fn published(&self, role: &str, version: u64) -> PathBuf {
        let name = match role {
            TIMESTAMP => format!("{TIMESTAMP}.json"),
            _ => format!("{version}.{}.json", encoded(role)),
        };
        self.metadata().join(name)
    }

    /// Creates the folders.
    pub(super) fn create(&self) -> Result<(), RepositoryError> {
        for folder in ["metadata", "staged", "targets"] {
            let path = self.dir.join(folder);
            fs::create_dir_all(&path).map_err(|source| RepositoryError::Write { path, source })?;
        }
        Ok(())
    }

    /// Keeps other writers out while the returned file is open.
    pub(super) fn lock(&self) -> Result<File, RepositoryError> {
        let path = self.dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.and_then(|file| file.lock().map(|()| file));
        lock.map_err(|source| RepositoryError::Write { path, source })
    }

    /// The newest published version of `role`.
    pub(super) fn newest<B: Body>(&self, role: &str) -> Result<Option<Loaded<B>>, RepositoryError> {
        if role == TIMESTAMP {
            return self.read(role, &self.published(role, 0));
        }
        match self.newest_version(role)? {
            Some(version) => self.read(role, &self.published(role, version)),
            None => Ok(None),
        }
    }

    pub(super) fn newest_version(&self, role: &str) -> Result<Option<u64>, RepositoryError> {
        let path = self.metadata();
        let read = |source| RepositoryError::Read { path: path.clone(), source };
        let ending = format!(".{}.json", encoded(role));
        let mut newest = None;
        for entry in fs::read_dir(&path).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            let version = name.to_str().and_then(|n| n.strip_suffix(&ending)?.parse::<u64>().ok());
            newest = newest.max(version);
        }
        Ok(newest)
    }

    /// All roots, oldest first, as file name and bytes.
    pub(super) fn roots(&self) -> Result<Vec<(String, Vec<u8>)>, RepositoryError> {
        let newest = self.newest_version(ROOT)?.unwrap_or(0);
        let mut roots = Vec::new();
        for version in 1..=newest {
            let path = self.published(ROOT, version);
            let bytes = read_bounded(&path)?.ok_or_else(|| RepositoryError::Read {
                path: path.clone(),
                source: std::io::ErrorKind::NotFound.into(),
            })?;
            roots.push((format!("{version}.root.json"), bytes));
        }
        Ok(roots)
    }

    pub(super) fn read<B: Body>(
        &self,
        role: &str,
        path: &Path,
    ) -> Result<Option<Loaded<B>>, RepositoryError> {
        let Some(bytes) = read_bounded(path)? else { return Ok(None) };
        let parse = |source| RepositoryError::Metadata { path: path.to_owned(), source };
        Ok(Some(Loaded::parse(role, bytes).map_err(parse)?))
    }

    /// Role names with a staged file.
    pub(super) fn staged_roles(&self) -> Result<Vec<String>, RepositoryError> {
        let path = self.dir.join("staged");
        let read = |source| RepositoryError::Read { path: path.clone(), source };
        let mut roles = Vec::new();
        for entry in fs::read_dir(&path).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            if let Some(role) =
                name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(decoded)
            {
                roles.push(role);
            }
        }
        roles.sort();
        Ok(roles)
    }
}

/// A file's bytes; `None` when there is no such file.
pub(super) fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, RepositoryError> {
    let read = |source| RepositoryError::Read { path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(read(e)),
        Ok(meta) if meta.len() > FILE_LENGTH_MAX => {
            return Err(read(std::io::Error::other(format!(
                "{} bytes long, the limit is {FILE_LENGTH_MAX}",
                meta.len()
            ))));
        }
        Ok(_) => {}
    }
    fs::read(path).map(Some).map_err(read)
}

/// Replaces `path` by `bytes`: the old file or the new one is there at any time.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), RepositoryError> {
    let failed = |source| RepositoryError::Write { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), RepositoryError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(RepositoryError::Write { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Undoes [`encoded`].
fn decoded(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_names_go_round_through_file_names() {
        for role in ["targets", "team/vision", "../x", "%41", "ä ö", "?"] {
            assert_eq!(decoded(&encoded(role)).as_deref(), Some(role));
            assert!(!encoded(role).contains('/'));
        }
        assert_eq!(decoded("%4"), None);
        assert_eq!(decoded("%zz"), None);
    }
}
