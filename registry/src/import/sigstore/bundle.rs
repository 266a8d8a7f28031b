//! The JSON of a Sigstore bundle, versions 0.1 to 0.3: a signature, and what is needed to verify it.
//!
//! It follows protocol buffers' rules for JSON: bytes in base64, 64-bit numbers as text. Fields
//! that are unknown do not count.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, de};

/// Which version of the format a bundle is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::import) enum Version {
    /// A promise of the log is enough.
    V01,
    /// The proof that the log has the entry is in it.
    V02,
    /// And the signer's certificate is alone.
    V03,
}

impl Version {
    pub(in crate::import) fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.dev.sigstore.bundle+json;version=0.1" => Some(Self::V01),
            "application/vnd.dev.sigstore.bundle+json;version=0.2" => Some(Self::V02),
            "application/vnd.dev.sigstore.bundle+json;version=0.3"
            | "application/vnd.dev.sigstore.bundle.v0.3+json" => Some(Self::V03),
            _ => None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::import) struct Bundle {
    pub(in crate::import) media_type: String,
    pub(in crate::import) verification_material: Material,
    pub(in crate::import) dsse_envelope: Option<Envelope>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::import) struct Material {
    pub(in crate::import) public_key: Option<de::IgnoredAny>,
    pub(in crate::import) x509_certificate_chain: Option<Chain>,
    /// The signer's certificate alone, from version 0.3 on.
    pub(in crate::import) certificate: Option<Certificate>,
    #[serde(default, deserialize_with = "list")]
    pub(in crate::import) tlog_entries: Vec<LogEntry>,
    pub(super) timestamp_verification_data: Option<Timestamps>,
}

#[derive(Debug, Deserialize)]
pub(in crate::import) struct Chain {
    #[serde(default, deserialize_with = "list")]
    pub(in crate::import) certificates: Vec<Certificate>,
}

#[derive(Debug, Clone, Deserialize)]
pub(in crate::import) struct Certificate {
    #[serde(rename = "rawBytes")]
    pub(in crate::import) der: Base64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::import) struct Envelope {
    pub(in crate::import) payload: Base64,
    pub(in crate::import) payload_type: String,
    pub(in crate::import) signatures: Vec<Signature>,
}

#[derive(Debug, Deserialize)]
pub(in crate::import) struct Signature {
    pub(in crate::import) sig: Base64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Timestamps {
    #[serde(default, deserialize_with = "list")]
    pub(super) rfc3161_timestamps: Vec<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Timestamp {
    /// A TimeStampResp in DER.
    pub(super) signed_timestamp: Base64,
}

/// An entry of Rekor's, with what Rekor says about it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::import) struct LogEntry {
    /// Over all parts of the log.
    #[serde(default)]
    pub(super) log_index: Number,
    pub(super) log_id: LogId,
    pub(super) kind_version: KindVersion,
    /// Seconds since 1970; 0 where the log says no time.
    #[serde(default)]
    pub(super) integrated_time: Number,
    pub(super) inclusion_promise: Option<Promise>,
    pub(super) inclusion_proof: Option<Proof>,
    pub(super) canonicalized_body: Base64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogId {
    pub(super) key_id: Base64,
}

#[derive(Debug, Deserialize)]
pub(super) struct KindVersion {
    pub(super) kind: String,
    pub(super) version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Promise {
    pub(super) signed_entry_timestamp: Base64,
}

/// From an entry to the root of the tree that a checkpoint is of.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Proof {
    /// In this part of the log.
    #[serde(default)]
    pub(super) log_index: Number,
    pub(super) root_hash: Base64,
    pub(super) tree_size: Number,
    #[serde(default, deserialize_with = "list")]
    pub(super) hashes: Vec<Base64>,
    pub(super) checkpoint: Option<Checkpoint>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Checkpoint {
    /// A signed note.
    pub(super) envelope: String,
}

/// Bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::import) struct Base64(pub(in crate::import) Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let decoded = STANDARD.decode(text.as_bytes());
        decoded.map(Self).map_err(|error| de::Error::custom(format!("no base64: {error}")))
    }
}

/// A number that is not negative, as protocol buffers write it: in quotes, or without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Number(pub(super) u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) => text
                .parse()
                .map(Self)
                .map_err(|_| de::Error::custom(format!("{text:?}, expected a number from 0 on"))),
        }
    }
}

/// A list that may be `null`, as some writers have it where it is empty.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_known_by_their_media_types() {
        let old = |n: &str| format!("application/vnd.dev.sigstore.bundle+json;version={n}");
        for (media_type, version) in [
            (old("0.1"), Version::V01),
            (old("0.2"), Version::V02),
            (old("0.3"), Version::V03),
            ("application/vnd.dev.sigstore.bundle.v0.3+json".to_owned(), Version::V03),
        ] {
            assert_eq!(Version::of(&media_type), Some(version));
        }
        for unknown in [old("0.4"), old("99.9"), String::new()] {
            assert_eq!(Version::of(&unknown), None, "{unknown}");
        }
    }

    #[test]
    fn numbers_are_read_in_quotes_and_without_and_are_never_negative() {
        let read = |text: &str| serde_json::from_str::<Number>(text).map(|n| n.0);
        assert_eq!((read("\"12\"").unwrap(), read("12").unwrap()), (12, 12));
        for wrong in ["\"-1\"", "-1", "\"x\"", "1.5", "\"99999999999999999999\""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
