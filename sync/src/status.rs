//! How the link stands, for people, `fulmar status` and metrics.

use serde::Serialize;

/// Whether the control plane can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Link {
    /// The last check-in did not come through; the device works on by itself.
    Offline {
        /// Since when, seconds since 1970.
        since_s: i64,
        /// Why, in words.
        reason: String,
        /// Check-ins failed in a row.
        failures: u32,
    },
    /// The last check-in came through.
    Online {
        /// Since when, seconds since 1970.
        since_s: i64,
    },
}

/// A blob on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// The model, `namespace/name:tag`.
    pub model: String,
    /// Its digest.
    pub digest: String,
    /// Bytes of all its files that are here.
    pub bytes_done: u64,
    /// Bytes in all; 0 while the manifest is on its way.
    pub bytes_total: u64,
}

/// A desired model that does not come on, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// The model, `namespace/name:tag`.
    pub model: String,
    /// Its digest.
    pub digest: String,
    /// Why, in words.
    pub reason: String,
}

/// The link's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The device's id in its fleet.
    pub device_id: String,
    /// The control plane's address.
    pub url: String,
    /// Whether it can be reached.
    pub link: Link,
    /// The last check-in that came through, seconds since 1970.
    pub checked_in_at_s: Option<i64>,
    /// The newest desired state made durable.
    pub generation_seen: u64,
    /// The newest desired state fully applied.
    pub generation_applied: u64,
    /// Reports that wait for the control plane.
    pub outbox_pending: u64,
    /// The model that is being fetched.
    pub fetching: Option<Progress>,
    /// Models that do not come on.
    pub troubles: Vec<Trouble>,
    /// The last thing that went wrong besides the link, in words.
    pub error: Option<String>,
}
