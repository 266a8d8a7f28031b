//! How people and programs point at a model: a name, or a name with the digest it must have.

use std::fmt;
use std::str::FromStr;

use crate::{Digest, DigestError, ModelName, NameError};

/// `namespace/name:tag`, or `namespace/name:tag@sha256:…` for exactly one release.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelRef {
    /// The name.
    pub name: ModelName,
    /// The manifest's digest, where one release is meant and no other.
    pub digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The part before `@`.
    #[error("read a model reference: {0}")]
    Name(#[from] NameError),
    /// The part after `@`.
    #[error("read a model reference: {0}")]
    Digest(#[from] DigestError),
}

impl From<ModelName> for ModelRef {
    fn from(name: ModelName) -> Self {
        Self { name, digest: None }
    }
}

impl FromStr for ModelRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse()?)),
            None => (text, None),
        };
        Ok(Self { name: name.parse()?, digest })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_goes_round_with_and_without_digest() {
        let digest = Digest::of(b"x");
        for text in ["acme/tiny:v1".to_owned(), format!("acme/tiny:v1@{digest}")] {
            assert_eq!(text.parse::<ModelRef>().unwrap().to_string(), text);
        }
        assert!("acme/tiny@sha256:00".parse::<ModelRef>().is_err());
        assert!("@".parse::<ModelRef>().is_err());
    }
}
