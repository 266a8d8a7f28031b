//! What may be installed: only what somebody with the right to say so has signed, byte for byte.
//!
//! [`Signed`] is the one way into the catalog, and only this crate makes one: either because the
//! registry repository and the director repository name the same target with the same length and
//! digest, or because the local owner's key signed the manifest on a device that belongs to no
//! fleet.

use serde::{Deserialize, Serialize};

use crate::manifest::{Manifest, ManifestError};
use crate::trust::Admitted;
use crate::{Digest, ModelName};

/// Who says that a model may run here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Authority {
    /// Both repositories name it.
    TwoRepositories {
        /// Version of the registry repository's top-level targets when it was admitted.
        registry_version: u64,
        /// Version of the director repository's targets, the generation, when it was admitted.
        director_version: u64,
    },
    /// The owner of an unenrolled device signed it.
    LocalOwner {
        /// SHA-256 of the owner's public key.
        key_id: Digest,
    },
}

impl Authority {
    /// In words, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::TwoRepositories { registry_version, director_version } => format!(
                "the owner's registry (targets {registry_version}) and the director (generation \
                 {director_version})"
            ),
            Self::LocalOwner { key_id } => {
                format!("this device's local owner (key {})", &key_id.hex()[..16])
            }
        }
    }
}

/// A manifest that may be installed, with who says so.
#[derive(Debug, Clone)]
pub struct Signed {
    manifest: Manifest,
    bytes: Vec<u8>,
    digest: Digest,
    authority: Authority,
    /// The local owner's signature; empty for [`Authority::TwoRepositories`].
    signature: Vec<u8>,
    admitted: Option<Admitted>,
}

/// Bytes that are not the manifest which the repositories name.
#[derive(Debug, thiserror::Error)]
pub enum ManifestRefused {
    /// Other bytes.
    #[error(
        "accept the manifest of {name}: expected {length} bytes with digest {expected}, found \
         {found_length} bytes with digest {found}"
    )]
    Differs {
        /// The model.
        name: ModelName,
        /// Length by the repositories.
        length: u64,
        /// Digest by the repositories.
        expected: Digest,
        /// Length found.
        found_length: u64,
        /// Digest found.
        found: Digest,
    },
    /// The manifest speaks of another model or release than its target.
    #[error("accept the manifest of {name}: its {field} is {found}, the target's is {expected}")]
    Contradicts {
        /// The model by the target's path.
        name: ModelName,
        /// `name` or `release`.
        field: &'static str,
        /// By the target.
        expected: String,
        /// By the manifest.
        found: String,
    },
    /// The manifest breaks its own rules.
    #[error("accept the manifest of {name}: {source}")]
    Manifest {
        /// The model.
        name: ModelName,
        /// Which rule.
        source: ManifestError,
    },
}

impl Signed {
    /// The manifest that both repositories name, if these are its bytes.
    ///
    /// # Errors
    /// [`ManifestRefused`].
    pub fn admit(admitted: Admitted, bytes: Vec<u8>) -> Result<Self, ManifestRefused> {
        let name = || admitted.name().clone();
        let (found_length, found) = (bytes.len() as u64, Digest::of(&bytes));
        let (length, expected) = (admitted.length(), admitted.digest());
        if (found_length, found) != (length, expected) {
            return Err(ManifestRefused::Differs {
                name: name(),
                length,
                expected,
                found_length,
                found,
            });
        }
        let manifest = Manifest::parse(&bytes)
            .map_err(|source| ManifestRefused::Manifest { name: name(), source })?;
        let contradicts = |field, expected, found| {
            Err(ManifestRefused::Contradicts { name: name(), field, expected, found })
        };
        if manifest.name != *admitted.name() {
            return contradicts("name", admitted.name().to_string(), manifest.name.to_string());
        }
        if manifest.release != admitted.release() {
            let (expected, found) = (admitted.release(), manifest.release);
            return contradicts("release", expected.to_string(), found.to_string());
        }
        let authority = Authority::TwoRepositories {
            registry_version: admitted.registry_version(),
            director_version: admitted.director_version(),
        };
        let (signature, admitted) = (Vec::new(), Some(admitted));
        Ok(Self { manifest, bytes, digest: found, authority, signature, admitted })
    }

    /// For [`crate::OwnerKey`], which has just signed these bytes.
    pub(crate) fn by_owner(
        bytes: Vec<u8>,
        key_id: Digest,
        signature: Vec<u8>,
    ) -> Result<Self, ManifestError> {
        let manifest = Manifest::parse(&bytes)?;
        let digest = Digest::of(&bytes);
        let authority = Authority::LocalOwner { key_id };
        Ok(Self { manifest, bytes, digest, authority, signature, admitted: None })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's bytes as signed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The model's digest: that of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &ModelName {
        &self.manifest.name
    }

    /// Who says that it may be installed.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The admission to record, for models of two repositories.
    pub(crate) fn admitted(&self) -> Option<&Admitted> {
        self.admitted.as_ref()
    }

    pub(crate) fn signature(&self) -> &[u8] {
        &self.signature
    }
}
