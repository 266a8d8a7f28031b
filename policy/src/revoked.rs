//! What the owner took back: models, tokens, keys and devices, each with the reason for people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Entries of one kind at most.
pub(crate) const ENTRIES_MAX: usize = 10_000;
/// Longest id or reason, in bytes.
const TEXT_BYTES_MAX: usize = 500;

/// Revocations by id; the values are reasons. A revocation holds as long as the newest policy names
/// it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Revoked {
    /// Digests (`sha256:` and 64 hex digits) of models' manifests, or of any of their files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, String>,
    /// Ids of app tokens.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<String, String>,
    /// Ids of devices' token keys: all tokens that the key signed end.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
    /// Ids of devices: no model runs on them any more.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, String>,
}

/// What is wrong with a list of revocations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field revoked.{field}: found {found}, expected {expected}")]
pub struct RevokedError {
    /// `models`, `tokens`, `keys` or `devices`.
    pub field: &'static str,
    /// What is there.
    pub found: String,
    /// What may be there.
    pub expected: &'static str,
}

impl Revoked {
    /// The four lists by their names.
    pub fn lists(&self) -> [(&'static str, &BTreeMap<String, String>); 4] {
        [
            ("models", &self.models),
            ("tokens", &self.tokens),
            ("keys", &self.keys),
            ("devices", &self.devices),
        ]
    }

    pub(crate) fn check(&self) -> Result<(), RevokedError> {
        for (field, list) in self.lists() {
            let wrong = |found: String, expected| Err(RevokedError { field, found, expected });
            if list.len() > ENTRIES_MAX {
                return wrong(format!("{} entries", list.len()), "at most 10000");
            }
            for (id, reason) in list {
                if id.is_empty() || id.len() > TEXT_BYTES_MAX || reason.len() > TEXT_BYTES_MAX {
                    return wrong(format!("{id:.80?}"), "ids and reasons of up to 500 bytes");
                }
                if field == "models" && !is_digest(id) {
                    return wrong(format!("{id:.80?}"), "sha256: and 64 hex digits in lower case");
                }
            }
        }
        Ok(())
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}
