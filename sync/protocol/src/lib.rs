//! Wire messages between a device and its control plane, and the sans-IO device session.
//!
//! JSON over HTTPS, the device known by its client certificate on every path but `enroll`:
//!
//! | path | method | body → answer |
//! |---|---|---|
//! | `/device/v1/enroll` | POST | [`EnrollRequest`] → [`EnrollResponse`] |
//! | `/device/v1/renew` | POST | [`RenewRequest`] → [`RenewResponse`] |
//! | `/device/v1/check-in` | POST | [`CheckIn`] → [`CheckInResponse`] |
//! | `/device/v1/registry/{file}` | GET | TUF metadata of the registry repository |
//! | `/device/v1/director/{file}` | GET | TUF metadata of this device's director repository |
//! | `/device/v1/blobs/{digest}` | GET | bytes of a blob, with `Range` |
//! | `/device/v1/outbox` | POST | [`OutboxBatch`] → [`OutboxAck`] |
//!
//! Every failure is an [`ApiError`] with a stable `code`.
//!
//! A metadata `{file}` is named as a TUF client wants it: in the registry with versions
//! (`2.root.json`, `timestamp.json`, `7.snapshot.json`, `7.targets.json`, `3.team-a.json`), in the
//! director only the roots (`2.root.json`, `timestamp.json`, `snapshot.json`, `targets.json`). A
//! model's manifest is a blob like its weights, by the digest that the targets give.

mod enroll_file;
mod join_token;
mod report_file;

pub use enroll_file::{
    ENROLL_FILE_BYTES_MAX, EnrollAnswerFile, EnrollFileError, EnrollRequestFile, enroll_words,
};
pub use join_token::{JOIN_TOKEN_PREFIX, JoinTokenError};
pub use report_file::{
    REPORT_FILE_BYTES_MAX, REPORT_FILE_LEN_MAX, ReportFile, ReportFileBody, ReportFileError,
};

use serde::{Deserialize, Serialize};

/// Largest JSON body either side accepts, in bytes.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Reports in one [`OutboxBatch`] at most.
pub const OUTBOX_BATCH_LEN_MAX: usize = 256;

/// What a join token says: `fjt1.` and the base64url of this as JSON. It is a secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// The control plane's device address, `https://host:port`.
    pub url: String,
    /// SHA-256 of the DER of the fleet's CA certificate, hex: what the first TLS handshake is
    /// checked against.
    pub ca_sha256: String,
    /// The secret that the control plane knows by its hash only.
    pub secret: String,
    /// The registry's root when the token was made: whoever answers for the control plane later
    /// cannot bring another owner. Missing in tokens of a control plane without a registry, and in
    /// those of older ones: with them a device joins only where it is given the owner's root by
    /// hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_root: Option<RegistryRoot>,
}

/// A root of the registry, by what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryRoot {
    /// Its version.
    pub version: u64,
    /// SHA-256 of its file, hex.
    pub sha256: String,
}

/// A device asks to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// The join token's secret.
    pub secret: String,
    /// A name for people, 1 to 63 of `[a-z0-9-]`.
    pub name: String,
    /// Certificate signing request, PEM. Its key never leaves the device.
    pub csr_pem: String,
    /// The device's audit checkpoint key (Ed25519, 32 bytes), hex.
    pub audit_key: String,
    /// What the device is.
    pub facts: DeviceFacts,
    /// The version of the registry's root that the join token names: this one is wanted, the first
    /// if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_root_version: Option<u64>,
}

/// What a device has, for people and for rollouts to filter by.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// `x86_64`, `aarch64`, …
    pub arch: String,
    /// Operating system, as in `/etc/os-release`'s `PRETTY_NAME`.
    pub os: String,
    /// fulmar's version.
    pub agent_version: String,
    /// Logical processors.
    pub cpus: u32,
    /// Main memory in bytes.
    pub memory_bytes: u64,
}

/// The device is a member now.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollResponse {
    /// The device's id for good.
    pub device_id: String,
    /// The device's certificate chain, PEM.
    pub certificate_pem: String,
    /// The fleet's CA, PEM: what the control plane's certificate is checked against from now on.
    pub ca_pem: String,
    /// The registry repository's root that trust is to begin with, byte for byte, base64; empty while
    /// the control plane has none.
    pub registry_root: String,
    /// The director repository's first trusted root, byte for byte, base64.
    pub director_root: String,
    /// The key (Ed25519, 32 bytes) that the control plane co-signs audit checkpoints with, hex.
    pub audit_cosign_key: String,
}

/// A member asks for a new certificate, over a connection that its present one opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// Certificate signing request, PEM; the same key or a new one.
    pub csr_pem: String,
}

/// The new certificate. The one before stays good until this one is first used.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewResponse {
    /// The device's certificate chain, PEM.
    pub certificate_pem: String,
}

/// Whether `name` is one that a device may have: 1 to 63 of `[a-z0-9-]`.
#[must_use]
pub fn device_name_is_valid(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// How a model stands on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// Wanted; its bytes are on the way.
    Downloading,
    /// Bytes complete and verified.
    Installed,
    /// Serving.
    Active,
    /// Could not be installed or failed its health contract.
    Failed,
}

/// One model on the device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelStatus {
    /// `namespace/name:tag`.
    pub name: String,
    /// The manifest's digest.
    pub digest: String,
    /// How it stands.
    pub state: ModelState,
    /// Bytes of it on the device, of how many.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// What went wrong, for [`ModelState::Failed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One check-in: what I run, what I ack, how much room and what link I have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckIn {
    /// New at every start of the agent.
    pub boot_id: String,
    /// The generation of desired state that the device has made durable.
    pub generation_seen: u64,
    /// The generation that it has fully applied.
    pub generation_applied: u64,
    /// Models on the device.
    pub models: Vec<ModelStatus>,
    /// Bytes free in the blob store, within its limit.
    pub disk_free_bytes: u64,
    /// The device's clock, seconds since 1970.
    pub clock_s: i64,
    /// `unmetered`, `metered` or `unknown`.
    pub link: String,
    /// What changed of the facts, or all of them at start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<DeviceFacts>,
    /// The device's audit tree: entries and root hash (hex), for the control plane to co-sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_checkpoint: Option<AuditCheckpoint>,
}

/// A signed state of a device's audit log. In the signed words the device is named by its public
/// audit key, hex: that name is the same before and after it joins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditCheckpoint {
    /// Entries in the log.
    pub entries: u64,
    /// Merkle tree root (RFC 6962), hex.
    pub root: String,
    /// Ed25519 signature by the device's audit key, hex.
    pub signature: String,
}

/// What the control plane answers to a [`CheckIn`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckInResponse {
    /// The newest generation of this device's desired state: the version of its director targets.
    /// When it is above `generation_seen`, the device refreshes both repositories.
    pub generation: u64,
    /// Version of the registry repository's timestamp, so that an unchanged one costs no request.
    pub registry_timestamp_version: u64,
    /// Version of the director repository's timestamp.
    pub director_timestamp_version: u64,
    /// Things to do once.
    #[serde(default)]
    pub commands: Vec<Command>,
    /// When to come again, in milliseconds.
    pub next_check_in_ms: u64,
    /// The control plane's co-signature of the checkpoint that came with the check-in, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_cosignature: Option<String>,
}

/// Something the control plane asks a device to do once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Check in again now.
    SyncNow {
        /// Unique: a device carries a command out once.
        id: String,
    },
}

/// Reports in the order in which they happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboxBatch {
    /// At most [`OUTBOX_BATCH_LEN_MAX`], `seq` rising.
    pub reports: Vec<Report>,
}

/// One report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Number in the device's outbox, from 1, without gaps.
    pub seq: u64,
    /// When it happened, by the device's clock, seconds since 1970.
    pub at_s: i64,
    /// `audit`, `model`, `sync`, `error`.
    pub kind: String,
    /// The report itself; for `audit`, the audit entry.
    pub body: serde_json::Value,
}

/// What the control plane has made durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboxAck {
    /// All reports up to and with this number are durable.
    pub acked_through: u64,
}

/// A refusal, the same shape on every path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// Stable, for programs: `join_token_unknown`, `device_unknown`, `body_too_large`, …
    pub code: String,
    /// For people: what was found, what was expected, what to do.
    pub message: String,
}
