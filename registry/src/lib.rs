//! The signed model registry: what may run here, by whose word, and the bytes of it.
//!
//! - [`trust`]: both TUF repositories and the rule that they must agree.
//! - [`admission`], [`owner`]: the two ways to a [`Signed`] manifest, and there is no third.
//! - [`blobs`], [`fetch`], [`import`], [`bundle`]: bytes by digest, and how they come in.
//! - [`standing`]: the owner's policy, what was taken back, how long the fleet is silent.
//! - [`catalog`], [`gc`]: what is installed, which release serves, what may go.
//! - [`Registry`]: all of it, and the one door to the engine, [`Registry::verified_model`].
//!
//! Invariants: only signed manifests are installed; only verified bytes are handed out; nothing
//! partial is visible; release counters and metadata versions never go back.
//!
//! Deliberately absent: reading models, running them, and deciding who may ask.

pub mod admission;
pub mod blobs;
pub mod bundle;
pub mod catalog;
pub mod digest;
pub mod facts;
pub mod fetch;
pub mod gc;
pub mod import;
pub mod manifest;
pub mod name;
pub mod offer;
pub mod owner;
pub mod reference;
mod registry;
pub mod standing;
#[cfg(test)]
mod testing;
pub mod trust;

pub use admission::{Authority, ManifestRefused, Signed};
pub use blobs::{BlobError, Blobs, FileInParts, VerifiedFile};
pub use catalog::{CatalogError, Installed, Slot};
pub use digest::{Digest, DigestError};
pub use facts::Facts;
pub use manifest::{Manifest, ManifestError, ManifestFile};
pub use name::{ModelName, NameError};
pub use owner::{OwnerError, OwnerKey};
pub use reference::{ModelRef, ReferenceError};
pub use registry::{LoadError, Options, Registry, RegistryError, SCHEMAS, VerifiedModel};
pub use standing::{Barred, Standing};
