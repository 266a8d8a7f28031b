//! The local owner: on a device that belongs to no fleet, an Ed25519 key in the state directory
//! signs what its owner imports. An enrolled device trusts it no longer.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::Digest;
use crate::admission::Signed;
use crate::manifest::{Manifest, ManifestError};

/// Put before the manifest's bytes when they are signed, so that the signature means nothing else.
const PURPOSE: &[u8] = b"fulmar local owner manifest v1\n";

/// Why the local owner could not sign or verify.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The key file could not be read or written.
    #[error("{op} the local owner's key {path}: {source}")]
    File {
        /// What was tried.
        op: &'static str,
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds no key.
    #[error(
        "read the local owner's key {path}: it is no Ed25519 key in PKCS#8; restore it from a \
         backup, or remove it and import the models again"
    )]
    Key {
        /// The key file.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("make the local owner's key: the system gave no random bytes")]
    Random,
    /// The manifest would not be accepted.
    #[error("sign a manifest: {0}")]
    Manifest(#[from] ManifestError),
    /// Signed by another key.
    #[error(
        "verify the local owner's signature: signed by key {found}, this device's owner has key \
         {expected}; import the model again"
    )]
    OtherKey {
        /// This device's key id.
        expected: Digest,
        /// The key id noted with the model.
        found: Digest,
    },
    /// The signature does not fit the bytes.
    #[error("verify the local owner's signature (key {key_id}): it does not fit the manifest")]
    Signature {
        /// The key id.
        key_id: Digest,
    },
}

/// The local owner's key.
pub struct OwnerKey {
    pair: Ed25519KeyPair,
    key_id: Digest,
}

impl std::fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnerKey").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl OwnerKey {
    /// Reads the key from `path`, or makes one there (readable by its owner only).
    ///
    /// # Errors
    /// [`OwnerError::File`], [`OwnerError::Key`], [`OwnerError::Random`].
    pub fn open_or_create(path: &Path) -> Result<Self, OwnerError> {
        match std::fs::read(path) {
            Ok(bytes) => Self::from_pkcs8(&bytes, path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::create(path),
            Err(source) => Err(OwnerError::File { op: "read", path: path.to_owned(), source }),
        }
    }

    fn from_pkcs8(bytes: &[u8], path: &Path) -> Result<Self, OwnerError> {
        let pair = Ed25519KeyPair::from_pkcs8(bytes)
            .map_err(|_| OwnerError::Key { path: path.to_owned() })?;
        let key_id = Digest::of(pair.public_key().as_ref());
        Ok(Self { pair, key_id })
    }

    fn create(path: &Path) -> Result<Self, OwnerError> {
        let failed = |op| move |source| OwnerError::File { op, path: path.to_owned(), source };
        let pkcs8 =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| OwnerError::Random)?;
        let draft = path.with_extension("new");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed("create"))?;
        file.write_all(pkcs8.as_ref()).map_err(failed("write"))?;
        file.sync_all().map_err(failed("sync"))?;
        // A link, not a rename: of two processes that start at once, one key wins for both.
        match std::fs::hard_link(&draft, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(failed("create")(error));
            }
            _ => {}
        }
        std::fs::remove_file(&draft).map_err(failed("rename"))?;
        if let Some(dir) = path.parent() {
            std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync"))?;
        }
        let bytes = std::fs::read(path).map_err(failed("read"))?;
        Self::from_pkcs8(&bytes, path)
    }

    /// SHA-256 of the public key.
    #[must_use]
    pub fn key_id(&self) -> Digest {
        self.key_id
    }

    /// Signs a manifest, so that it may be installed here.
    ///
    /// # Errors
    /// [`OwnerError::Manifest`] where it breaks the manifest's own rules.
    pub fn sign(&self, manifest: &Manifest) -> Result<Signed, OwnerError> {
        let bytes = manifest.to_bytes()?;
        let signature = self.pair.sign(&message(&bytes)).as_ref().to_vec();
        Ok(Signed::by_owner(bytes, self.key_id, signature)?)
    }

    /// Checks that this key signed these bytes.
    ///
    /// # Errors
    /// [`OwnerError::OtherKey`], [`OwnerError::Signature`].
    pub fn verify(&self, key_id: Digest, bytes: &[u8], signature: &[u8]) -> Result<(), OwnerError> {
        if key_id != self.key_id {
            return Err(OwnerError::OtherKey { expected: self.key_id, found: key_id });
        }
        UnparsedPublicKey::new(&ED25519, self.pair.public_key())
            .verify(&message(bytes), signature)
            .map_err(|_| OwnerError::Signature { key_id })
    }
}

fn message(bytes: &[u8]) -> Vec<u8> {
    [PURPOSE, bytes].concat()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::manifest;

    #[test]
    fn the_key_is_made_once_and_is_the_owners_alone_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("owner.key");
        let first = OwnerKey::open_or_create(&path).unwrap().key_id();
        assert_eq!(OwnerKey::open_or_create(&path).unwrap().key_id(), first);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn only_this_key_over_these_bytes_verifies() {
        let dir = tempfile::tempdir().unwrap();
        let key = OwnerKey::open_or_create(&dir.path().join("a.key")).unwrap();
        let other = OwnerKey::open_or_create(&dir.path().join("b.key")).unwrap();
        let signed = key.sign(&manifest("acme/tiny:v1", 1, b"weights")).unwrap();
        key.verify(key.key_id(), signed.bytes(), signed.signature()).unwrap();
        let mut changed = signed.bytes().to_vec();
        changed[40] ^= 1;
        assert!(key.verify(key.key_id(), &changed, signed.signature()).is_err());
        assert!(other.verify(key.key_id(), signed.bytes(), signed.signature()).is_err());
        assert!(other.verify(other.key_id(), signed.bytes(), signed.signature()).is_err());
    }

    #[test]
    fn a_broken_key_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("owner.key");
        std::fs::write(&path, b"no key").unwrap();
        assert!(matches!(OwnerKey::open_or_create(&path), Err(OwnerError::Key { .. })));
    }
}
