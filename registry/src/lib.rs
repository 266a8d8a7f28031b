//! The signed model registry.

pub mod blobs;
pub mod digest;
pub mod manifest;
pub mod name;

pub use digest::{Digest, DigestError};
pub use manifest::{Manifest, ManifestError, ManifestFile};
pub use name::{ModelName, NameError};
