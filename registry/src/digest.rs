//! SHA-256 digests of blobs and manifests, written `sha256:<64 lowercase hex digits>`.
//!
//! Invariant: a [`Digest`] always holds 32 bytes; its text form is unique (upper case is refused),
//! so equal digests are equal strings in SQL, JSON and file names alike.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const PREFIX: &str = "sha256:";

/// The SHA-256 of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {found:?} is not of the form sha256:<64 lowercase hex digits>")]
pub struct DigestError {
    /// The text as found, cut after 100 characters.
    pub found: String,
}

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        let mut array = [0; 32];
        array.copy_from_slice(digest.as_ref());
        Self(array)
    }

    /// A digest computed elsewhere, 32 bytes of SHA-256.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 lowercase hex digits, without the algorithm's name.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Parses the 64 lowercase hex digits, without the algorithm's name.
    ///
    /// # Errors
    /// When `text` is of another length or has other characters.
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        let refuse = || DigestError { found: text.chars().take(100).collect() };
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refuse());
        }
        let mut array = [0; 32];
        hex::decode_to_slice(text, &mut array).map_err(|_| refuse())?;
        Ok(Self(array))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.strip_prefix(PREFIX)
            .ok_or_else(|| DigestError { found: text.chars().take(100).collect() })
            .and_then(Self::from_hex)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl rusqlite::ToSql for Digest {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::from(self.to_string()))
    }
}

impl rusqlite::types::FromSql for Digest {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        value.as_str()?.parse().map_err(|e| rusqlite::types::FromSqlError::Other(Box::new(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
    }

    #[test]
    fn text_goes_round_and_has_one_form_only() {
        let digest = Digest::of(b"fulmar");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!(EMPTY.to_uppercase().parse::<Digest>().is_err());
        assert!(EMPTY.replace('e', "E").parse::<Digest>().is_err());
        assert!(EMPTY[..70].parse::<Digest>().is_err());
        assert!(format!("{EMPTY}0").parse::<Digest>().is_err());
        assert!(EMPTY[7..].parse::<Digest>().is_err());
        assert!("sha512:00".parse::<Digest>().is_err());
    }

    #[test]
    fn json_carries_the_text() {
        let digest = Digest::of(b"");
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{EMPTY}\""));
        assert_eq!(serde_json::from_str::<Digest>(&format!("\"{EMPTY}\"")).unwrap(), digest);
        assert!(serde_json::from_str::<Digest>("\"sha256:00\"").is_err());
    }
}
