//! The signed model registry.

pub mod admission;
pub mod blobs;
pub mod catalog;
pub mod digest;
pub mod fetch;
pub mod gc;
pub mod import;
pub mod manifest;
pub mod name;
pub mod owner;
pub mod reference;
mod registry;
#[cfg(test)]
mod testing;
pub mod trust;

pub use admission::{Authority, ManifestRefused, Signed};
pub use blobs::{BlobError, Blobs, VerifiedFile};
pub use catalog::{CatalogError, Installed, Slot};
pub use digest::{Digest, DigestError};
pub use manifest::{Manifest, ManifestError, ManifestFile};
pub use name::{ModelName, NameError};
pub use owner::{OwnerError, OwnerKey};
pub use reference::{ModelRef, ReferenceError};
pub use registry::{LoadError, Options, Registry, RegistryError, SCHEMAS, VerifiedModel};
