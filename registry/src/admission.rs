//! What may be installed: only what somebody with the right to say so has signed, byte for byte.
//!
//! [`Signed`] is the one way into the catalog, and only this crate makes one: either because the
//! registry repository and the director repository name the same target with the same length and
//! digest, or because the local owner's key signed the manifest on a device that belongs to no
//! fleet.

use serde::{Deserialize, Serialize};

use crate::manifest::{Manifest, ManifestError};
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
}

impl Signed {
    /// For the two modules that check signatures.
    pub(crate) fn new(
        bytes: Vec<u8>,
        authority: Authority,
        signature: Vec<u8>,
    ) -> Result<Self, ManifestError> {
        let manifest = Manifest::parse(&bytes)?;
        let digest = Digest::of(&bytes);
        Ok(Self { manifest, bytes, digest, authority, signature })
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

    pub(crate) fn signature(&self) -> &[u8] {
        &self.signature
    }
}
