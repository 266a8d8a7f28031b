//! Trust in metadata: a TUF client (specification 1.0.x) and the repository side of it, both
//! without network, and the rule that two repositories must agree.
//!
//! - [`Trusted`] is the verified state of one repository, kept in SQLite.
//! - [`Refresh`] moves it forward: it asks for files by name and verifies what it is fed.
//! - [`admit`] lets a model in that the owner's registry and the director both name.
//! - [`NamedPolicy`] is the owner's policy on its way in, [`HeldPolicy`] the one that holds.
//!
//! Invariants: nothing unverified is kept; the time never runs backwards below the highest signed
//! time, which never goes beyond the owner's word; bytes are kept exactly as they were verified; no
//! input panics.
//!
//! Deliberately absent: fetching (callers do that), mirrors metadata, succinct delegations.

mod admit;
mod canonical;
mod damaged;
mod date;
pub mod director;
mod envelope;
mod error;
mod explain;
mod explain_policy;
mod explain_time;
mod key;
mod keyfile;
mod metadata;
mod pattern;
mod pin;
mod policy;
mod refresh;
pub mod repository;
mod signing;
mod state;
mod time;
mod trusted;

pub use admit::{Active, Admission, Admitted, Refused, ReleaseFloor, admit, release_floor};
pub use canonical::{NotCanonical, to_vec as canonical_json};
pub use damaged::Beginning;
pub use date::Date;
pub use error::TrustError;
pub use explain::{Finding, Severity, explain};
pub use key::{KeyValue, PublicKey};
pub use keyfile::KeyFile;
pub use metadata::{
    DelegatedRole, Delegations, FileMeta, Header, RoleKeys, Root, Snapshot, TargetEntry, Targets,
    Timestamp,
};
pub use pin::RootPin;
pub use policy::{
    HeldPolicy, NamedPolicy, POLICY_BYTES_MAX, POLICY_PATH, PolicyFloor, PolicyRefused,
    SignedPolicy, held_policy, held_policy_digest, policy_floor,
};
pub use refresh::{Fetched, Limits, Refresh, Scope, Want};
pub use signing::{CommandKey, Ed25519Key, KeyError, SigningKey};
pub use state::SCHEMA;
pub use time::{note_time_refused, signed_time, time_is_accepted};
pub use trusted::{Repo, SEARCH_ROLES_MAX, Trusted};

/// The file name of a role without a version: percent-encoded, so safe as a name in one folder and
/// as a URL segment.
#[must_use]
pub fn role_file_name(role: &str) -> String {
    format!("{}.json", metadata::encoded(role))
}

/// Field of a timestamp's signed part: when it was signed, as a date-time. It raises the signed
/// time floor.
pub(crate) const SIGNED_AT_FIELD: &str = "x-fulmar-signed-at";

/// Field of a director's targets: the id of the device they are for.
pub(crate) const DEVICE_FIELD: &str = "x-fulmar-device";

#[cfg(test)]
mod tests;
