//! The signed model registry.

pub mod digest;
pub mod name;

pub use digest::{Digest, DigestError};
pub use name::{ModelName, NameError};
