//! The device's end of the link: joining a fleet, checking in, accepting what the fleet wants,
//! fetching and installing it, handing reports in. The agent works on without all of it.
//!
//! - [`enroll()`] makes a device a member; [`Identity`] is what it is then.
//! - [`Sync`] is the link: [`Sync::run`] lives as long as the agent, [`Sync::status`] says how it
//!   stands, [`Sync::nudge`] is `fulmar sync`.
//! - [`plan()`] is pure; what carries plans out asks the agent through [`Hooks`].
//! - [`record`] is how anybody on the device appends to the audit log, so that the control plane
//!   hears of it.
//!
//! Invariants:
//! - Nothing is acknowledged before it is durable; reports are numbered without gaps.
//! - An older generation of desired state than one seen is refused by name.
//! - Only what both repositories name is installed; what serves goes on serving until its
//!   successor was verified, tried out and activated.
//! - Waits after failures grow and are jittered; downloads go on where they stopped.
//!
//! Deliberately absent: trust decisions (the registry crate's), the engine, HTTP for applications.

mod bundle;
mod clock;
mod desired;
mod download;
mod enroll;
mod identity;
mod mirror;
pub mod outbox;
mod plan;
mod reconcile;
mod refresh;
mod run;
pub mod schedule;
mod scrub;
pub mod state;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod transport;

pub use bundle::{Carried, CarryError, Reported, SignReports, export_reports, import_bundle};
pub use clock::SignedClock;
pub use desired::{Desired, DesiredModel, load as desired};
pub use download::{DownloadError, Downloader, Limits, LinkCost};
pub use enroll::{EnrollError, Enrollment, enroll, enroll_by_answer, enroll_request};
pub use identity::{Identity, IdentityError};
pub use mirror::{BlobUrlError, check_blob_urls};
pub use outbox::record;
pub use plan::{Actual, Blocked, Files, Held, Origin, Plan, Step, plan};
pub use reconcile::{Checked, Hooks, StepError, wanted};
pub use refresh::RefreshError;
pub use run::{Deps, Options, Sync, SyncError};
pub use scrub::scrub;
pub use status::{Link, Progress, Status, Trouble};
pub use tls::TlsError;
pub use transport::{Transport, TransportError};
