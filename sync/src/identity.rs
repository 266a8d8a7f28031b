//! Who this device is to its fleet: one file, written whole, readable by its owner only.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// Why the identity could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file.
    #[error("{op} the device's identity {path}: {source}")]
    File {
        /// What was tried.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file's contents.
    #[error(
        "read the device's identity {path}: {reason}; restore it from a backup, or remove it and \
         enroll the device again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A device's membership of a fleet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The device's id for good.
    pub device_id: String,
    /// Its name for people.
    pub name: String,
    /// The control plane's device address, `https://host:port`.
    pub url: String,
    /// The device's certificate chain, PEM.
    pub certificate_pem: String,
    /// The fleet's CA, PEM.
    pub ca_pem: String,
    /// The key (Ed25519, 32 bytes) that co-signs this device's audit checkpoints, hex.
    pub audit_cosign_key: String,
    /// The device's private key, PKCS#8 PEM.
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("device_id", &self.device_id)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity; `None` where the device belongs to no fleet.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(IdentityError::File { op: "read", path: path.to_owned(), source });
            }
        };
        let damaged = |reason: String| IdentityError::Damaged { path: path.to_owned(), reason };
        // The parser's message may hold parts of the key.
        let identity: Self = serde_json::from_slice(&bytes)
            .map_err(|_| damaged("it is no JSON of an identity".to_owned()))?;
        identity.chain().and_then(|_| identity.key()).map_err(|e| damaged(e.to_string()))?;
        Ok(Some(identity))
    }

    /// Writes the identity: a crash leaves the old file or the new one.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let failed = |op| move |source| IdentityError::File { op, path: path.to_owned(), source };
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| failed("write")(std::io::Error::other(error)))?;
        write_secret(path, &bytes).map_err(failed("write"))
    }

    /// The certificate chain, the device's own certificate first.
    pub(crate) fn chain(
        &self,
    ) -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
        CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes()).collect()
    }

    /// The private key.
    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, rustls_pki_types::pem::Error> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
    }

    /// The fleet's CA certificates.
    pub(crate) fn ca(&self) -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
        CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()).collect()
    }

    /// From when to when the certificate is good, seconds since 1970.
    pub(crate) fn validity_s(&self) -> Option<(i64, i64)> {
        let chain = self.chain().ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
        let validity = certificate.validity();
        Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
    }
}

/// Writes a file that only its owner may read, and makes it durable under its name.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn identity() -> Identity {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate =
            rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        Identity {
            device_id: "d-1".into(),
            name: "one".into(),
            url: "https://127.0.0.1:1".into(),
            certificate_pem: certificate.pem(),
            ca_pem: certificate.pem(),
            audit_cosign_key: String::new(),
            key_pem: key.serialize_pem(),
        }
    }

    #[test]
    fn an_identity_is_read_as_it_was_written_and_is_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.json");
        assert!(Identity::load(&path).unwrap().is_none());
        identity().save(&path).unwrap();
        let read = Identity::load(&path).unwrap().unwrap();
        assert_eq!(read.device_id, "d-1");
        assert!(read.validity_s().is_some());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_identity_is_named_and_its_key_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.json");
        std::fs::write(&path, r#"{"key_pem": "SECRET"}"#).unwrap();
        let error = Identity::load(&path).unwrap_err().to_string();
        assert!(error.contains("identity.json") && !error.contains("SECRET"), "{error}");
        assert!(!format!("{:?}", identity()).contains("PRIVATE"));
    }
}
