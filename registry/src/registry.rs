//! The device's registry as a whole: tables, blobs and the local owner's key under one roof, and
//! the one door through which a model leaves for the engine: [`Registry::verified_model`].

use std::path::{Path, PathBuf};

use fulmar_store::{Schema, Store, StoreError};
use rusqlite::Connection;

use crate::admission::Authority;
use crate::blobs::{BlobError, Blobs, FileInParts};
use crate::catalog::{self, CatalogError, Installed};
use crate::manifest::Manifest;
use crate::trust::{self, Repo, TrustError, Trusted};
use crate::{Barred, Digest, ModelRef, OwnerError, OwnerKey, Standing};

/// The tables that a store must have before [`Registry::open`].
pub const SCHEMAS: [&Schema; 2] = [&trust::SCHEMA, &catalog::SCHEMA];

/// Limits of a registry.
#[derive(Debug, Clone)]
pub struct Options {
    /// What all blobs together may take, in bytes.
    pub blob_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { blob_bytes_max: 64 << 30 }
    }
}

/// Why the registry could not be opened or asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The blob store.
    #[error("open the registry: {0}")]
    Blobs(#[from] BlobError),
    /// The local owner's key.
    #[error("open the registry: {0}")]
    Owner(#[from] OwnerError),
    /// The state of trust.
    #[error("read the state of trust: {0}")]
    Trust(#[from] Box<TrustError>),
    /// The database.
    #[error("read the registry's tables: {0}")]
    Store(#[from] StoreError),
    /// A local import on a device that belongs to a fleet.
    #[error(
        "import a model: this device is enrolled, so only models that the registry's owner and \
         the director both signed may run; publish it to the fleet's registry instead"
    )]
    Enrolled,
}

/// Why a model was not handed to the engine.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not in the catalog, or not whole there.
    #[error("load model: {0}")]
    Catalog(#[from] CatalogError),
    /// Its bytes are not those that were signed.
    #[error("load model {reference}: {source}")]
    Blob {
        /// Which model.
        reference: ModelRef,
        /// What is wrong.
        source: BlobError,
    },
    /// The local owner's signature does not hold.
    #[error("load model {reference}: {source}")]
    Owner {
        /// Which model.
        reference: ModelRef,
        /// What is wrong.
        source: OwnerError,
    },
    /// Signed by the local owner, and the device has joined a fleet since.
    #[error(
        "load model {reference}: the local owner signed it before this device was enrolled; an \
         enrolled device runs only what the registry's owner and the director both signed"
    )]
    LocalOnEnrolled {
        /// Which model.
        reference: ModelRef,
    },
    /// The trust that admitted it is gone.
    #[error(
        "load model {reference}: it was admitted by a fleet whose trust this device no longer \
         has; enroll again, or remove the model"
    )]
    TrustGone {
        /// Which model.
        reference: ModelRef,
    },
    /// The state of trust does not verify.
    #[error("load model {reference}: {source}")]
    Trust {
        /// Which model.
        reference: ModelRef,
        /// What is wrong.
        source: Box<TrustError>,
    },
    /// The owner's policy does not let it run.
    #[error("load model {reference}: {barred}")]
    Barred {
        /// Which model.
        reference: ModelRef,
        /// Why not.
        barred: Barred,
    },
    /// The database.
    #[error("load model: {0}")]
    Store(#[from] StoreError),
}

/// A model that may be loaded, with its weights open.
#[derive(Debug)]
pub struct VerifiedModel {
    /// What it is.
    pub manifest: Manifest,
    /// The model's digest.
    pub digest: Digest,
    /// The weights, to be verified part by part as they are used.
    pub weights: FileInParts,
    /// Who says that it may run.
    pub authority: Authority,
}

/// A device's registry; cloning is cheap.
#[derive(Debug, Clone)]
pub struct Registry {
    store: Store,
    blobs: Blobs,
    owner: std::sync::Arc<OwnerKey>,
    dir: PathBuf,
}

impl Registry {
    /// Opens the registry in `dir` over a store that has [`SCHEMAS`]. Makes the local owner's key
    /// at first.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn open(dir: &Path, store: Store, options: &Options) -> Result<Self, RegistryError> {
        let blobs = Blobs::open(dir, options.blob_bytes_max)?;
        let owner = OwnerKey::open_or_create(&dir.join("owner.key"))?;
        Ok(Self { store, blobs, owner: owner.into(), dir: dir.to_owned() })
    }

    /// The registry's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The database.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The blobs.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The local owner's key.
    #[must_use]
    pub fn owner(&self) -> &OwnerKey {
        &self.owner
    }

    /// Refuses on an enrolled device.
    ///
    /// # Errors
    /// [`RegistryError::Enrolled`]; [`RegistryError::Trust`].
    pub fn check_local_import(&self) -> Result<(), RegistryError> {
        let director = self.store.read_blocking(|connection| {
            Trusted::load(connection, Repo::Director).map_err(|e| RegistryError::from(Box::new(e)))
        })?;
        director.map_or(Ok(()), |_| Err(RegistryError::Enrolled))
    }

    /// Opens the release that `reference` means (the active one, if it names no digest) after
    /// verifying who says that it may run, and the bytes of its files: once per process and file
    /// identity, those of the weights part by part as they are used. Blocks.
    ///
    /// # Errors
    /// [`LoadError`]; a corrupt blob is in quarantine then and wants to be fetched again.
    pub fn verified_model(&self, reference: &ModelRef) -> Result<VerifiedModel, LoadError> {
        let installed = self.store.read_blocking(|connection| {
            let installed = catalog::find(connection, reference)?;
            self.check_authority(connection, reference, &installed)?;
            Ok::<_, LoadError>(installed)
        })?;
        let mut weights = None;
        let refused = |source| LoadError::Blob { reference: reference.clone(), source };
        for file in &installed.manifest.files {
            if Some(file) == installed.manifest.weights() {
                weights = Some(self.blobs.open_in_parts(file).map_err(refused)?);
            } else {
                self.blobs.open_verified_file(file).map_err(refused)?;
            }
        }
        // A manifest without weights does not parse.
        let weights = weights.ok_or_else(|| CatalogError::Damaged {
            name: reference.name.to_string(),
            column: "manifest",
        })?;
        let Installed { manifest, digest, authority, .. } = installed;
        Ok(VerifiedModel { manifest, digest, weights, authority })
    }

    fn check_authority(
        &self,
        connection: &Connection,
        reference: &ModelRef,
        installed: &Installed,
    ) -> Result<(), LoadError> {
        let reference = || reference.clone();
        let load = |repo| {
            Trusted::load(connection, repo).map_err(|source| LoadError::Trust {
                reference: reference(),
                source: Box::new(source),
            })
        };
        check_standing(connection, &reference(), installed)?;
        let director = load(Repo::Director)?;
        match &installed.authority {
            Authority::LocalOwner { key_id } => {
                if director.is_some() {
                    return Err(LoadError::LocalOnEnrolled { reference: reference() });
                }
                self.owner
                    .verify(*key_id, &installed.manifest_bytes, &installed.signature)
                    .map_err(|source| LoadError::Owner { reference: reference(), source })
            }
            // The metadata of today may no longer name a release that was admitted before; it may
            // run on, as what a rollback goes to. Without any trust there is nothing to go by.
            Authority::TwoRepositories { .. } => {
                if director.is_none() || load(Repo::Registry)?.is_none() {
                    return Err(LoadError::TrustGone { reference: reference() });
                }
                Ok(())
            }
        }
    }
}

fn check_standing(
    connection: &Connection,
    reference: &ModelRef,
    installed: &Installed,
) -> Result<(), LoadError> {
    let trust =
        |source| LoadError::Trust { reference: reference.clone(), source: Box::new(source) };
    let standing = Standing::load(connection).map_err(trust)?;
    // The clock as it is, for the door must not be opened by whoever hands a time in.
    let clock_s = jiff::Timestamp::now().as_second();
    let now_s = clock_s.max(trust::signed_time(connection).map_err(trust)?);
    standing
        .check(&installed.digest, &installed.manifest, now_s)
        .map_err(|barred| LoadError::Barred { reference: reference.clone(), barred })
}

#[cfg(test)]
mod tests;
